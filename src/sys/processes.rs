//! /proc/PID: the open files of processes (proc_pid_fd(5), proc_pid_fdinfo(5)).
//!
//! Only procfs itself is read, never the files behind it: their file system may hang. This excludes
//! stat(2) of `/proc/PID/fd/N`, which follows the link to the file system (vfs_getattr); XFS takes
//! the inode's lock for it. The text of the link (proc_pid_readlink, fs/proc/base.c: d_path) and
//! `/proc/PID/fdinfo/N` (seq_show, fs/proc/fd.c: flags, mount ID and, since 5.14, inode number)
//! come from memory. A process that ends between two steps counts as having no open files.

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{CWD, Dir, Mode, OFlags, openat, readlinkat};

/// Maximum number of reading threads; nearly all time goes into the kernel's procfs entries.
const MOST_THREADS: usize = 4;
/// Fewer processes are read faster than a thread is started.
const WORTH_A_THREAD: usize = 64;
/// Room for a process name, which `TASK_COMM_LEN` limits to less.
const COMM: usize = 64;

/// A file that a process has open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFile {
    /// Its current name, new after a rename, with ` (deleted)` appended after removal; relative to
    /// the root of the process's own mounts.
    pub path: PathBuf,
    /// Flags of open(2) and fcntl(2).
    pub flags: u32,
    /// The mount on which it was opened; see [`Mount::id`](super::mounts::Mount::id).
    pub mount: u32,
    /// Inode number; `None` before kernel 5.14.
    pub inode: Option<u64>,
}

/// A process that has files open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process ID.
    pub pid: u32,
    /// Its name (`comm`).
    pub name: String,
    /// The program that it runs, if it can be read.
    pub program: Option<PathBuf>,
    /// Whether it runs a VM with KVM: it has a descriptor of one (kvm_dev_ioctl_create_vm,
    /// virt/kvm/kvm_main.c).
    pub has_kvm: bool,
    /// Its files by descriptor, without sockets, pipes, devices and others without a file system.
    pub files: Vec<OpenFile>,
}

/// Processes that have files open, except those that cannot be inspected (no permission, or just
/// ended). `proc` is where procfs is mounted. Fails if it cannot be listed.
pub fn with_open_files(proc: &Path) -> io::Result<Vec<Process>> {
    let proc = open_directory(CWD, proc)?;
    let mut pids = Vec::new();
    for entry in Dir::read_from(&proc)? {
        let name = entry?.file_name().to_owned();
        pids.extend(
            name.to_bytes()
                .iter()
                .all(u8::is_ascii_digit)
                .then_some(name),
        );
    }
    let next = AtomicUsize::new(0);
    let read_some = || {
        let mut found = Vec::new();
        while let Some(pid) = pids.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.extend(process(&proc, pid));
        }
        found
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = cores.min(MOST_THREADS).min(pids.len() / WORTH_A_THREAD);
    let mut processes = std::thread::scope(|scope| {
        let spawn = |_| {
            let builder = std::thread::Builder::new().name("proc".to_owned());
            builder.spawn_scoped(scope, read_some).ok()
        };
        // One fewer: this thread reads as well.
        let others: Vec<_> = (1..threads).filter_map(spawn).collect();
        let mut found = read_some();
        for other in others {
            found.extend(other.join().unwrap_or_default());
        }
        found
    });
    processes.sort_unstable_by_key(|process| process.pid);
    Ok(processes)
}

/// Returns the command line of a process.
///
/// **May hang.** The text is in the memory of that process: reading takes its memory lock and may
/// swap in a page (get_mm_cmdline, fs/proc/base.c), both of which a stuck process can delay. Call
/// it on a thread that can be abandoned.
pub fn command_line(proc: &Path, pid: u32) -> io::Result<Vec<Vec<u8>>> {
    let mut text = std::fs::read(proc.join(pid.to_string()).join("cmdline"))?;
    if text.last() == Some(&0) {
        text.pop();
    }
    Ok(text.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect())
}

fn process(proc: &OwnedFd, pid: &CStr) -> Option<Process> {
    let directory = open_directory(proc, pid).ok()?;
    let (files, has_kvm) = files(&directory)?;
    let mut comm = [0; COMM];
    let comm = read_file(&directory, c"comm", &mut comm)?;
    Some(Process {
        pid: pid.to_str().ok()?.parse().ok()?,
        name: String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(comm)).into_owned(),
        program: readlinkat(&directory, c"exe", []).ok().map(path),
        has_kvm,
        files,
    })
}

/// The files that a process has open, and whether it has a VM of KVM; `None` without files.
fn files(process: &OwnedFd) -> Option<(Vec<OpenFile>, bool)> {
    let directory = open_directory(process, c"fd").ok()?;
    let mut infos = None;
    let mut info = [0; 4096];
    let (mut files, mut has_kvm) = (Vec::new(), false);
    for entry in Dir::read_from(&directory).ok()?.map_while(Result::ok) {
        // Fails for what is no descriptor: `.` and `..`.
        let Ok(target) = readlinkat(&directory, entry.file_name(), []) else {
            continue;
        };
        if !can_be_a_file(target.to_bytes()) {
            has_kvm |= target.to_bytes() == b"anon_inode:kvm-vm";
            continue;
        }
        if infos.is_none() {
            infos = Some(open_directory(process, c"fdinfo").ok()?);
        }
        let infos = infos.as_ref();
        let text = infos.and_then(|infos| read_file(infos, entry.file_name(), &mut info));
        files.extend(text.and_then(|text| open_file(target, text)));
    }
    (!files.is_empty()).then_some((files, has_kvm))
}

/// A descriptor, from its link and the text of its fdinfo.
fn open_file(target: CString, info: &[u8]) -> Option<OpenFile> {
    let field = |name: &str| {
        let mut lines = info.split(|&byte| byte == b'\n');
        let value = lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b":"));
        std::str::from_utf8(value?).ok().map(str::trim)
    };
    Some(OpenFile {
        flags: u32::from_str_radix(field("flags")?, 8).ok()?,
        mount: field("mnt_id")?.parse().ok()?,
        inode: field("ino").and_then(|inode| inode.parse().ok()),
        path: path(target),
    })
}

fn path(link: CString) -> PathBuf {
    PathBuf::from(OsString::from_vec(link.into_bytes()))
}

/// By its name alone: sockets (`socket:[123]`), devices and named memory are not files. Not reading
/// their fdinfo saves half of the time.
fn can_be_a_file(target: &[u8]) -> bool {
    const NEVER: [&[u8]; 6] = [b"/dev/", b"/proc/", b"/sys/", b"/memfd:", b"/[", b"/SYSV"];
    let is_never = NEVER.iter().any(|prefix| target.starts_with(prefix));
    // The only place in /dev that holds files; a file system may even be mounted there.
    target.starts_with(b"/dev/shm/") || (target.starts_with(b"/") && !is_never)
}

/// As much of a file as fits. The lines that are used come first and are short.
fn read_file<'b>(at: impl AsFd, name: &CStr, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(at, name, flags, Mode::empty()).ok()?;
    let length = rustix::io::read(&file, &mut *buffer).ok()?;
    buffer.get(..length)
}

fn open_directory(at: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(at, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn process(proc: &Path, pid: u32, open: &[(&str, &str)]) -> PathBuf {
        let directory = proc.join(pid.to_string());
        fs::create_dir_all(directory.join("fd")).unwrap();
        fs::create_dir_all(directory.join("fdinfo")).unwrap();
        fs::write(directory.join("comm"), "db (1)\n").unwrap();
        symlink("/usr/bin/db", directory.join("exe")).unwrap();
        for (number, (target, info)) in open.iter().enumerate() {
            symlink(target, directory.join("fd").join(number.to_string())).unwrap();
            fs::write(directory.join("fdinfo").join(number.to_string()), info).unwrap();
        }
        directory
    }

    const INFO: &str = "pos:\t0\nflags:\t0140002\nmnt_id:\t29\nino:\t131\n\
        lock:\t1: OFDLCK ADVISORY READ -1 07:00:131 100 101\n";

    #[test]
    fn files_are_named_and_all_else_is_not() {
        let proc = tempfile::tempdir().unwrap();
        let open = [
            ("/dev/null", INFO),
            ("socket:[7]", INFO),
            ("/srv/a b", INFO),
            ("/memfd:pc.ram (deleted)", INFO),
            ("anon_inode:[eventfd]", INFO),
            ("anon_inode:kvm-vm", INFO),
            ("/srv/old", "pos:\t0\nflags:\t02\nmnt_id:\t29\n"),
        ];
        process(proc.path(), 7, &open);
        process(proc.path(), 8, &open[..2]);
        fs::create_dir(proc.path().join("sys")).unwrap();
        let found = with_open_files(proc.path()).unwrap();
        let file = |path: &str, flags, inode| OpenFile {
            path: PathBuf::from(path),
            flags,
            mount: 29,
            inode,
        };
        let mut files = found[0].files.clone();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let expected = [
            file("/srv/a b", 0o140_002, Some(131)),
            file("/srv/old", 2, None),
        ];
        assert_eq!(files, expected);
        assert_eq!((found.len(), found[0].pid), (1, 7));
        assert_eq!((found[0].name.as_str(), found[0].has_kvm), ("db (1)", true));
        assert_eq!(found[0].program.as_deref(), Some(Path::new("/usr/bin/db")));
    }

    #[test]
    fn a_process_may_vanish_between_any_two_steps() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, gone) in (1..).zip(["fd", "fdinfo", "fdinfo/0", "comm"]) {
            let directory = process(proc.path(), pid, &[("/srv/a", INFO)]);
            let path = directory.join(gone);
            fs::remove_dir_all(&path)
                .or_else(|_| fs::remove_file(&path))
                .unwrap();
        }
        // The program may be unreadable to us where the open files are not.
        let directory = process(proc.path(), 9, &[("/srv/a", INFO), ("/srv/b", "")]);
        fs::remove_file(directory.join("exe")).unwrap();
        let found = with_open_files(proc.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].files.len(), &found[0].program), (1, &None));
    }

    #[test]
    fn a_command_line_is_cut_at_its_ends() {
        let proc = tempfile::tempdir().unwrap();
        let directory = process(proc.path(), 3, &[]);
        fs::write(directory.join("cmdline"), b"kvm\0-name\0\0a b\0").unwrap();
        let parts = command_line(proc.path(), 3).unwrap();
        let expected: [&[u8]; 4] = [b"kvm", b"-name", b"", b"a b"];
        assert_eq!(parts, expected);
    }

    #[test]
    fn what_the_kernel_says_of_us_is_understood() {
        use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("held");
        let held = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .custom_flags(libc::O_APPEND)
            .open(&path)
            .unwrap();
        let us = std::process::id();
        let found = with_open_files(Path::new("/proc")).unwrap();
        let process = found.iter().find(|process| process.pid == us).unwrap();
        let file = process.files.iter().find(|file| file.path == path).unwrap();
        assert!(file.inode.is_none() || file.inode == Some(held.metadata().unwrap().ino()));
        let access = file.flags & libc::O_ACCMODE as u32;
        assert_eq!(access, libc::O_WRONLY as u32);
        let mounts = super::super::mounts::read(Path::new("/proc")).unwrap();
        assert!(mounts.iter().any(|mount| mount.id == file.mount));
    }
}
