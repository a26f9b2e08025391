//! Which processes have the image or its copy open, by device and inode: the truth about which of the
//! two a VM uses, whatever libvirt has noted.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat};
use rustix::io::Errno;

use super::refusal::FileId;
use crate::probe::open;
use crate::sys::{generation, locks};

/// A file that a process has open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) pid: u32,
    pub(super) file: FileId,
    /// Whether for writing.
    pub(super) writes: bool,
    /// Whether with QEMU's lock for writing.
    pub(super) locks: bool,
    /// The path that it was opened by, as it is now: ` (deleted)` follows if that is removed
    /// (proc_pid_fd(5)).
    pub(super) name: PathBuf,
    /// The entry of the descriptor in /proc, which leads to the file.
    link: PathBuf,
}

/// The files below the given directories that processes other than this one have open.
pub(super) fn opened(proc: &Path, directories: &[&Path]) -> Vec<Opened> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = pids.filter(|pid| *pid != std::process::id());
    others
        .flat_map(|pid| opened_by(proc, pid, directories))
        .collect()
}

/// The same of one process.
pub(super) fn opened_by(proc: &Path, pid: u32, directories: &[&Path]) -> Vec<Opened> {
    let process = proc.join(pid.to_string());
    let entries = fs::read_dir(process.join("fd")).into_iter().flatten();
    let find = |entry: fs::DirEntry| {
        let link = entry.path();
        // By the name first: nothing is asked about files on other file systems, which may hang.
        let name = fs::read_link(&link).ok()?;
        let is_below = |directory: &&Path| name.starts_with(directory);
        directories.iter().find(|directory| is_below(directory))?;
        let info = fs::read_to_string(process.join("fdinfo").join(entry.file_name())).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
        let file = fs::metadata(&link)
            .ok()
            .filter(|_| flags & libc::O_PATH == 0)?;
        Some(Opened {
            pid,
            file: FileId {
                device: file.dev(),
                inode: file.ino(),
            },
            writes: flags & libc::O_ACCMODE != libc::O_RDONLY,
            locks: info.lines().any(is_lock_for_writing),
            name,
            link,
        })
    };
    entries.flatten().filter_map(find).collect()
}

/// Whether a line of fdinfo is QEMU's lock for writing, by which it guards a file that it uses for that
/// (raw_apply_lock_bytes, block/file-posix.c). The line ends with the first and the last locked byte
/// (lock_get_status, fs/locks.c); since Linux 4.1 there is one per lock of the descriptor.
fn is_lock_for_writing(line: &str) -> bool {
    let mut words = line.split_whitespace().rev();
    let mut byte = || words.next()?.parse::<u64>().ok();
    let (last, first) = (byte(), byte());
    let locked = first.zip(last).map(|(first, last)| first..=last);
    line.starts_with("lock:") && locked.is_some_and(|bytes| bytes.contains(&locks::QEMU_WRITES))
}

/// Whether the file, if it is still open, has this generation. The inode number of a removed file is
/// soon that of another.
pub(super) fn has_generation(opened: &Opened, generation: u32) -> bool {
    let handle = match rustix::fs::open(&opened.link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    {
        Ok(handle) => handle,
        Err(error) => return error != Errno::NOENT,
    };
    // The process may have closed it, and opened a device with that number, whose opening has effects.
    let is_it = |stat: Stat| {
        let (device, inode) = (stat.st_dev, stat.st_ino);
        let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        is_regular && opened.file == FileId { device, inode }
    };
    let has = |file| generation::generation(&file).unwrap_or(0) == generation;
    fstat(&handle).map_or(true, is_it) && open::reopen(&handle).map_or(true, has)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_lock_of_qemu_is_known() {
        // The first four of QEMU 10.0 on Linux 6.18.
        let lines = [
            (
                "lock:\t2: OFDLCK ADVISORY  READ -1 07:04:131 201 201",
                false,
            ),
            ("lock:\t1: OFDLCK ADVISORY  READ -1 07:04:131 100 101", true),
            ("lock:\t1: OFDLCK ADVISORY  READ -1 07:04:132 101 101", true),
            ("lock:\t1: POSIX  ADVISORY  WRITE 9170 00:2c:35 0 0", false),
            (
                "lock:\t1: POSIX  ADVISORY  WRITE 4711 00:38:101 0 EOF",
                false,
            ),
            ("flags:\t0100101 101", false),
            ("lock:", false),
        ];
        for (line, expected) in lines {
            assert_eq!(is_lock_for_writing(line), expected, "{line}");
        }
    }

    #[test]
    fn a_renamed_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let path = dir.join("a");
        fs::write(&path, "").unwrap();
        let sleep = |file: fs::File| {
            let mut command = Command::new("sleep");
            command.arg("600").stdin(Stdio::from(file));
            command.spawn().unwrap()
        };
        let mut children = [
            sleep(fs::File::open(&path).unwrap()),
            sleep(fs::OpenOptions::new().write(true).open(&path).unwrap()),
        ];
        fs::rename(&path, dir.join("b")).unwrap();
        let file = fs::metadata(dir.join("b")).unwrap();
        let mut found = opened(Path::new("/proc"), &[&dir]);
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        // Processes that other tests fork have it open until they execute their programs.
        found.retain(|opened| children.iter().any(|child| child.id() == opened.pid));
        found.sort_by_key(|opened| opened.writes);
        let (device, inode) = (file.dev(), file.ino());
        let found: Vec<_> = found
            .iter()
            .map(|it| (it.pid, it.file, it.writes))
            .collect();
        let file = FileId { device, inode };
        let expected = [
            (children[0].id(), file, false),
            (children[1].id(), file, true),
        ];
        assert_eq!(found, expected);
        assert_eq!(opened(Path::new("/proc"), &[&dir.join("c")]), []);
    }
}
