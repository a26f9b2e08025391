//! Which processes have the image or its copy open, by device and inode: the truth about which of the
//! two a VM uses, whatever libvirt has noted.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::refusal::FileId;

/// A file that a process has open for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Writer {
    pub(super) pid: u32,
    pub(super) file: FileId,
}

/// The files below the given directories that processes other than this one have open for writing.
pub(super) fn writers(proc: &Path, directories: &[&Path]) -> Vec<Writer> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = pids.filter(|pid| *pid != std::process::id());
    others
        .flat_map(|pid| writes_of(proc, pid, directories))
        .collect()
}

/// The same of one process.
pub(super) fn writes_of(proc: &Path, pid: u32, directories: &[&Path]) -> Vec<Writer> {
    let process = proc.join(pid.to_string());
    let entries = fs::read_dir(process.join("fd")).into_iter().flatten();
    let write = |entry: fs::DirEntry| {
        // By the name first: nothing is asked about files on other file systems, which may hang.
        let name = fs::read_link(entry.path()).ok()?;
        let is_below = |directory: &&Path| name.starts_with(directory);
        directories.iter().find(|directory| is_below(directory))?;
        let info = fs::read_to_string(process.join("fdinfo").join(entry.file_name())).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY && flags & libc::O_PATH == 0;
        let file = fs::metadata(entry.path()).ok().filter(|_| writes)?;
        let file = FileId {
            device: file.dev(),
            inode: file.ino(),
        };
        Some(Writer { pid, file })
    };
    entries.flatten().filter_map(write).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn only_writers_count_and_a_renamed_file_is_found() {
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
        let mut found = writers(Path::new("/proc"), &[&dir]);
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        // Processes that other tests fork have it open until they execute their programs.
        found.retain(|writer| children.iter().any(|child| child.id() == writer.pid));
        let (device, inode) = (file.dev(), file.ino());
        let expected = Writer {
            pid: children[1].id(),
            file: FileId { device, inode },
        };
        assert_eq!(found, [expected]);
        assert_eq!(writers(Path::new("/proc"), &[&dir.join("c")]), []);
    }
}
