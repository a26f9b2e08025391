//! The mounted XFS: their layout, free space and quotas, read by a process of its own.
//!
//! ```text
//! examination ── thread ── process: a thread for each XFS ── open the mount point, ioctl
//!                    ▲                       │
//!                    └─── one JSON a line ◄──┘
//! ```
//!
//! A call may wait for a lock or a disk of that file system, and then cannot be interrupted; no image is
//! opened. What was reported in time counts. The process ends with the last of its calls, or when its
//! standard input ends, with the program that has started it. Nothing is run between fork and exec: std then
//! uses posix_spawn(3), whereas fork(2) would hold the mmap_lock of the rescue and make all its pages
//! copy-on-write.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::thread;

use serde::{Deserialize, Serialize};

use super::files::Reading;
use super::outcome::NotChecked;
use crate::discover::mounts::{Mount, MountTable};
use crate::model::{Bytes, DeviceNumber, Features, path::wire};
use crate::sys::geometry::{
    FLAG_BIGTIME, FLAG_EXCHANGE_RANGE, FLAG_NREXT64, FLAG_REFLINK, FLAG_RMAPBT, free_blocks,
    geometry, group,
};
use crate::sys::{mounts, quota};

/// The hidden subcommand that runs the program as this process.
pub const COMMAND: &str = "doctor-helper";
/// File systems, groups of one and projects of one that are read at most.
const MOST_FILESYSTEMS: usize = 64;
const MOST_GROUPS: u32 = 10_000;
const MOST_PROJECTS: usize = 10_000;
/// Held while the process of an examination runs.
pub static RUNS: Mutex<()> = Mutex::new(());
/// Bytes that are read of the answers.
const MOST_ANSWERS: u64 = 8 << 20;

/// An XFS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xfs {
    /// Its device number.
    pub device: DeviceNumber,
    /// Where it is mounted.
    #[serde(with = "wire")]
    pub mount: PathBuf,
    /// Its data section.
    pub size: Bytes,
    /// What is free of it.
    pub free: Bytes,
    /// Its allocation groups.
    pub groups: u32,
    /// Size of its log.
    pub log: Bytes,
    /// Sector size of its log.
    pub log_sector: Bytes,
    /// Stripe unit of its log; 0 or 1 without one.
    pub log_stripe: Bytes,
    /// Its realtime section; 0 without one.
    pub realtime: Bytes,
    /// Its features.
    pub features: Features,
    /// Whether its timestamps reach beyond 2038.
    pub bigtime: bool,
    /// Groups of which less than a hundredth is free; `None` if not read.
    pub full_groups: Option<u32>,
    /// Its projects with a limit; `None` if not read.
    pub projects: Option<Vec<Project>>,
}

/// What a project uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Its ID.
    pub id: u32,
    /// What its files occupy.
    pub used: Bytes,
    /// What they may occupy.
    pub limit: Bytes,
}

/// What was read of all XFS.
#[derive(Debug, Clone, Default)]
pub struct Filesystems {
    /// Those that have answered.
    pub answered: Vec<Xfs>,
    /// Mount points of the others.
    pub silent: Vec<PathBuf>,
    /// Why all could not be read.
    pub failed: Option<NotChecked>,
}

impl Filesystems {
    /// Whether files of one of them can share blocks, or of one that has not answered.
    pub fn may_share(&self) -> bool {
        !self.silent.is_empty() || self.answered.iter().any(|it| it.features.reflink)
    }
}

/// What was reported until now.
pub type Found = BTreeMap<DeviceNumber, Xfs>;

/// Starts the process and takes its answers, until it has ended. For a thread that may hang. Refuses while
/// another holds `runs`: on a file system that hangs, one process waits, not one for each examination.
pub fn read(command: &[OsString], runs: &Mutex<()>, found: &Mutex<Found>) -> Reading<()> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok(());
    };
    let _alone = match runs.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let why = "the helper process of an earlier examination still waits";
            return Err(NotChecked::because(why.to_owned()));
        }
        locked => locked,
    };
    let failed = |error: io::Error| NotChecked::because(format!("the helper process: {error}"));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    // Its standard input is open until `wait` closes it.
    let mut child = command.spawn().map_err(failed)?;
    let answers = child.stdout.take().into_iter();
    let lines = answers.flat_map(|it| BufReader::new(it.take(MOST_ANSWERS)).split(b'\n'));
    for line in lines.map_while(Result::ok) {
        // A line that was cut is none.
        if let Ok(xfs) = serde_json::from_slice::<Xfs>(&line) {
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.insert(xfs.device, xfs);
        }
    }
    child.wait().map_err(failed)?;
    Ok(())
}

/// Adds those that are mounted and were not reported.
pub fn complete(found: Found, mounts: &[mounts::Mount], failed: Option<NotChecked>) -> Filesystems {
    let table = MountTable::new(mounts.to_vec());
    let devices: BTreeSet<_> = devices(mounts).take(MOST_FILESYSTEMS).collect();
    let silent = devices.iter().filter(|it| !found.contains_key(it));
    let silent = silent.filter_map(|it| Some(table.principal(*it)?.point.clone()));
    Filesystems {
        silent: silent.collect(),
        answered: found.into_values().collect(),
        failed,
    }
}

fn devices(mounts: &[mounts::Mount]) -> impl Iterator<Item = DeviceNumber> {
    let xfs = mounts.iter().filter(|mount| mount.type_name == "xfs");
    xfs.map(|mount| DeviceNumber {
        major: mount.device.0,
        minor: mount.device.1,
    })
}

/// The process: reads each XFS in a thread and prints what it has read, while its standard input is open.
///
/// # Errors
/// If the mounts cannot be read.
pub fn serve() -> io::Result<()> {
    thread::Builder::new().spawn(|| {
        // An error is an end as well.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        process::exit(0);
    })?;
    let mounts = mounts::read(Path::new("/proc"))?;
    let table = MountTable::new(mounts.clone());
    let devices: BTreeSet<_> = devices(&mounts).take(MOST_FILESYSTEMS).collect();
    let principals = devices.iter().filter_map(|it| table.principal(*it));
    thread::scope(|scope| {
        for mount in principals {
            // One that cannot be read is silent.
            scope.spawn(move || report(mount).unwrap_or(()));
        }
    });
    Ok(())
}

/// Prints first what is in memory, then all.
fn report(mount: &Mount) -> io::Result<()> {
    let root = root(mount)?;
    let mut xfs = in_memory(&root, mount)?;
    print(&xfs)?;
    xfs.full_groups = full_groups(&root, xfs.groups).ok();
    xfs.projects = projects(&root, xfs.device).ok();
    print(&xfs)
}

fn print(xfs: &Xfs) -> io::Result<()> {
    let mut line = serde_json::to_vec(xfs)?;
    line.push(b'\n');
    io::stdout().lock().write_all(&line)
}

/// Opens the root of the file system; fails if the path leads elsewhere by now.
fn root(mount: &Mount) -> io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut options = OpenOptions::new();
    let root = options.read(true).custom_flags(flags).open(&mount.point)?;
    let device = root.metadata()?.dev();
    let is_it = mount.holds(&root, device);
    is_it
        .then_some(root)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn in_memory(root: &File, mount: &Mount) -> io::Result<Xfs> {
    let geometry = geometry(root)?;
    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(u64::from(geometry.block_size)));
    let has = |flag| geometry.flags & flag != 0;
    Ok(Xfs {
        device: mount.device,
        mount: mount.point.clone(),
        size: bytes(geometry.data_blocks),
        free: bytes(free_blocks(root)?),
        groups: geometry.groups,
        log: bytes(u64::from(geometry.log_blocks)),
        log_sector: Bytes(u64::from(geometry.log_sector)),
        log_stripe: Bytes(u64::from(geometry.log_stripe)),
        realtime: bytes(geometry.realtime_blocks),
        features: Features {
            reflink: has(FLAG_REFLINK),
            rmapbt: has(FLAG_RMAPBT),
            nrext64: has(FLAG_NREXT64),
            exchange_range: has(FLAG_EXCHANGE_RANGE),
        },
        bigtime: has(FLAG_BIGTIME),
        full_groups: None,
        projects: None,
    })
}

fn full_groups(root: &File, groups: u32) -> io::Result<u32> {
    let mut full = 0;
    for number in 0..groups.min(MOST_GROUPS) {
        let (length, free) = group(root, number)?;
        full += u32::from(free < length / 100);
    }
    Ok(full)
}

fn projects(root: &File, device: DeviceNumber) -> io::Result<Vec<Project>> {
    // Project 0 is all other files: its limits are defaults, and not enforced.
    let (mut projects, mut next) = (Vec::new(), Some(1));
    for _ in 0..MOST_PROJECTS {
        let Some(from) = next else { break };
        let device = (device.major, device.minor);
        let Some(quota) = quota::next_project(root, device, from)? else {
            break;
        };
        if quota.limit > 0 {
            projects.push(Project {
                id: quota.project,
                used: Bytes(quota.used),
                limit: Bytes(quota.limit),
            });
        }
        next = quota.project.checked_add(1);
    }
    Ok(projects)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    /// It hangs, like one whose file system does.
    #[test]
    fn what_a_process_has_reported_before_it_hangs_counts() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let line = r#"{"device":{"major":8,"minor":16},"mount":"/srv","size":1,"free":1,"groups":1,"log":1,
            "log_sector":1,"log_stripe":1,"realtime":0,"features":{"reflink":true,"rmapbt":true,
            "nrext64":true,"exchange_range":true},"bigtime":true,"full_groups":null,"projects":null}"#;
        let line = line.replace('\n', "");
        let script = format!(
            "echo nonsense; echo '{line}'; read line < {}",
            pipe.display()
        );
        let command = ["sh", "-c", &script].map(OsString::from);
        let (runs, found) = (Mutex::new(()), Mutex::new(Found::new()));
        thread::scope(|scope| {
            let reader = scope.spawn(|| read(&command, &runs, &found));
            while found.lock().unwrap().is_empty() {
                assert!(!reader.is_finished());
                thread::yield_now();
            }
            let why = "the helper process of an earlier examination still waits".to_owned();
            let second = read(&command, &runs, &Mutex::default());
            assert_eq!(second, Err(NotChecked::because(why)));
            // Released.
            std::fs::write(&pipe, "x\n").unwrap();
            assert_eq!(reader.join().unwrap(), Ok(()));
        });
        assert!(runs.try_lock().is_ok());
        let found = complete(found.into_inner().unwrap(), &[], None);
        assert_eq!((found.answered.len(), found.may_share()), (1, true));
    }
}
