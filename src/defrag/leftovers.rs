//! Removes temporary files left by a killed xfs_fsr, which creates `.fsrPID` beside the image and
//! unlinks it at once, before it copies (fsr/xfs_fsr.c, fsrfile_common). Only a kill between the
//! two leaves a name, so such files are rare, and empty or nearly so. As the directory belongs to a
//! user, a file is removed only if everything about it fits.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, statat, unlinkat};

use crate::probe::open;
use crate::sys::locks;

/// Removes them from a directory. Returns their number; fails if the directory cannot be read.
pub fn sweep(directory: BorrowedFd<'_>, proc: &Path) -> io::Result<usize> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        found.extend(pid_of(name).map(|pid| (name.to_vec(), pid)));
    }
    // A file that cannot be checked is not removed.
    let is_removed = |(name, pid): &(Vec<u8>, u32)| {
        remove(directory, OsStr::from_bytes(name), *pid, proc).unwrap_or(false)
    };
    Ok(found.iter().filter(|file| is_removed(file)).count())
}

/// `.fsr4711`
fn pid_of(name: &[u8]) -> Option<u32> {
    let digits = name.strip_prefix(b".fsr")?;
    let is_plain = digits.first() != Some(&b'0') && digits.iter().all(u8::is_ascii_digit);
    is_plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

fn remove(directory: BorrowedFd<'_>, name: &OsStr, pid: u32, proc: &Path) -> io::Result<bool> {
    let (file, stat) = open::regular_file(directory, name)?;
    // xfs_fsr creates it as root and gives it to the image's owner only after copying.
    let is_of_its_kind = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_nlink == 1;
    if !is_of_its_kind || is_fsr(proc, pid) || locks::in_use(&file)?.open != Some(false) {
        return Ok(false);
    }
    let now = statat(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)?;
    let is_same = (now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino);
    if !is_same || FileType::from_raw_mode(now.st_mode) != FileType::RegularFile {
        return Ok(false);
    }
    unlinkat(directory, name, AtFlags::empty())?;
    Ok(true)
}

fn is_fsr(proc: &Path, pid: u32) -> bool {
    std::fs::read(proc.join(format!("{pid}/comm"))).is_ok_and(|name| name == b"xfs_fsr\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    #[test]
    fn only_what_xfs_fsr_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let proc = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in [".fsr", ".fsrx", ".fsr12x", "fsr12", ".fsr012", "a.fsr12"] {
            fs::write(path(name), "").unwrap();
        }
        fs::create_dir(path(".fsr13")).unwrap();
        symlink("a.fsr12", path(".fsr14")).unwrap();
        fs::write(path(".fsr15"), "").unwrap();
        fs::hard_link(path(".fsr15"), path("linked")).unwrap();
        fs::write(path(".fsr16"), "").unwrap();
        fs::create_dir(proc.path().join("16")).unwrap();
        fs::write(proc.path().join("16/comm"), "xfs_fsr\n").unwrap();
        let held = File::create(path(".fsr17")).unwrap();
        let kept = fs::read_dir(dir.path()).unwrap().count();
        fs::write(path(".fsr4711"), "").unwrap();
        let directory = File::open(dir.path()).unwrap();
        // A process that another test starts has what was open as well until its exec.
        let removes_one = || {
            (0..200).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(50));
                sweep(directory.as_fd(), proc.path()).unwrap() == 1
            })
        };
        assert!(removes_one());
        assert!(!path(".fsr4711").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), kept);
        drop(held);
        assert!(removes_one());
    }
}
