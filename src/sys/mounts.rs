//! /proc/PID/mountinfo: the mounts of a process (proc_pid_mountinfo(5)). Reading it involves no
//! other file system, so that it works while one hangs.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Maximum number of readings of a mount table that changes all the time.
const MOST_READINGS: u32 = 5;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Mount ID, unique in the kernel while it is mounted, then used again; `mnt_id` of an fdinfo.
    pub id: u32,
    /// ID of the mount that it is mounted on; its own at the root of a mount namespace.
    pub parent: u32,
    /// Major and minor device number of the file system.
    pub device: (u32, u32),
    /// The directory of the file system that is mounted: `/` for all of it.
    pub root: PathBuf,
    /// The mount point, below the root directory of the process.
    pub point: PathBuf,
    /// Type of the file system: `xfs`, `fuse.sshfs`, …
    pub type_name: String,
}

/// The mounts of the calling process; `proc` is where procfs is mounted.
pub fn read(proc: &Path) -> io::Result<Vec<Mount>> {
    Ok(parse(&read_whole(&proc.join("self/mountinfo"))?))
}

/// The mounts of another process, which may be in another namespace. Fails if it has ended.
pub fn read_of(proc: &Path, pid: u32) -> io::Result<Vec<Mount>> {
    Ok(parse(&read_whole(
        &proc.join(pid.to_string()).join("mountinfo"),
    )?))
}

/// Reads a mount table as of one moment. read(2) returns it in parts of about a page, between which
/// a mount may come or go; poll(2) reports a change since it was opened (mounts_poll,
/// fs/proc_namespace.c).
fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    for _ in 0..MOST_READINGS {
        text.clear();
        let mut file = File::open(path)?;
        file.read_to_end(&mut text)?;
        let mut state = [PollFd::new(&file, PollFlags::PRI)];
        poll(&mut state, Some(&Timespec::default()))?;
        if !state[0].revents().contains(PollFlags::ERR) {
            break;
        }
    }
    Ok(text)
}

/// ID of the mount through which a file was opened, even if it was lazily unmounted since
/// (proc_pid_fdinfo(5), `mnt_id`). Fails if fdinfo cannot be read or lacks it.
pub fn of_descriptor(proc: &Path, file: BorrowedFd<'_>) -> io::Result<u32> {
    let path = proc.join(format!("self/fdinfo/{}", file.as_raw_fd()));
    let text = std::fs::read_to_string(path)?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    id.and_then(|id| id.trim().parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Parses the lines and skips those it does not understand.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?;
    let parent = std::str::from_utf8(fields.next()?).ok()?;
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let type_name = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount {
        id: id.parse().ok()?,
        parent: parent.parse().ok()?,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: PathBuf::from(OsString::from_vec(root)),
        point: PathBuf::from(OsString::from_vec(point)),
        type_name: String::from_utf8_lossy(&unescape(type_name)).into_owned(),
    })
}

/// Decodes space, tab, newline and backslash from octal escapes (mangle_path, fs/seq_file.c).
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut parts = field.split(|byte| *byte == b'\\');
    let mut bytes = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        let escaped = part.split_at_checked(3).and_then(|(digits, rest)| {
            let digits = std::str::from_utf8(digits).ok()?;
            Some((u8::from_str_radix(digits, 8).ok()?, rest))
        });
        let (byte, rest) = escaped.unwrap_or((b'\\', part));
        bytes.push(byte);
        bytes.extend(rest);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mount_point_may_hold_anything() {
        let text = b"36 35 98:0 / / rw,noatime master:1 - ext4 /dev/root rw,errors=continue\n\
            bad line\n\
            40 36 7:3 /sub /srv/a\\040b\\134\\012c rw shared:2 propagate_from:1 - xfs /dev/loop3 rw\n\
            41 36 0:52 / /srv/fuse rw - fuse.sshfs host: rw\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0].point, Path::new("/"));
        assert_eq!(mounts[1].point, Path::new("/srv/a b\\\nc"));
        assert_eq!(mounts[1].root, Path::new("/sub"));
        assert_eq!((mounts[1].id, mounts[1].parent), (40, 36));
        assert_eq!(mounts[1].device, (7, 3));
        assert_eq!(mounts[1].type_name, "xfs");
        assert_eq!(mounts[2].type_name, "fuse.sshfs");
    }

    #[test]
    fn our_own_mounts_are_read() {
        let mounts = read(Path::new("/proc")).unwrap();
        assert!(mounts.iter().any(|mount| mount.point == Path::new("/")));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text: Vec<u8>) {
            drop(parse(&text));
        }
    }
}
