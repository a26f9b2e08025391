//! One directory a test process, and who removes what is in it.
//!
//! Everything a test process makes lies in `fragwatch-bed.NS.PID.START` under the temporary
//! directory, and under `/dev/shm` what has to be fast. Three remove it:
//!
//! 1. the guard of each thing, on drop, also when the test panics;
//! 2. the *janitor*, a shell script in a session of its own that waits for the death of the test
//!    process, by SIGKILL too (`janitor.sh`);
//! 3. the next test process, if the janitor was killed as well.
//!
//! The state of the kernel and the directory itself say what there is to remove; no list has to
//! be kept, none can be wrong.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{GIB, tools};

const JANITOR: &str = include_str!("janitor.sh");

/// Where a thing lies.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// The temporary directory.
    Disk,
    /// Memory, as a tmpfs.
    Memory,
}

impl Place {
    /// Memory, if there is plenty: quick, and not disturbed by what else the disk is busy with.
    pub fn quick() -> Place {
        if room(Place::Memory) > 4 * GIB {
            Place::Memory
        } else {
            Place::Disk
        }
    }
}

struct Run {
    name: String,
    /// Holds the pipe whose end tells the janitor that this process is gone.
    janitor: Child,
}

static RUN: OnceLock<Run> = OnceLock::new();
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A new directory for one thing, with a name that no other has.
pub fn new_dir(place: Place) -> io::Result<PathBuf> {
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = of_process(place).join(n.to_string());
    fs::create_dir(&dir)?;
    Ok(dir)
}

/// The run directory of this process.
pub fn of_process(place: Place) -> PathBuf {
    base(place).join(&RUN.get_or_init(start).name)
}

/// The process id of the janitor, for those who want to do without it.
pub fn janitor() -> u32 {
    of_process(Place::Disk);
    RUN.get().expect("it runs").janitor.id()
}

/// Bytes that can be written to `place`.
fn room(place: Place) -> u64 {
    let Ok(fs) = rustix::fs::statvfs(base(place)) else {
        return 0;
    };
    let free = fs.f_bavail * fs.f_frsize;
    match place {
        Place::Disk => free,
        // A tmpfs promises more than there is.
        Place::Memory => free.min(tools::meminfo("MemAvailable") / 2),
    }
}

fn base(place: Place) -> PathBuf {
    match place {
        Place::Disk => std::env::temp_dir(),
        Place::Memory => PathBuf::from("/dev/shm"),
    }
}

/// The first thing is made: sweep what others left, set up the janitor.
fn start() -> Run {
    sweep();
    let pid = std::process::id();
    let start = start_time(pid).expect("the own process is there");
    let name = format!("{}{pid}.{start}", prefix());
    let dirs = [Place::Disk, Place::Memory].map(|place| base(place).join(&name));
    for dir in dirs
        .iter()
        .filter(|dir| dir.parent().is_some_and(Path::exists))
    {
        // Others may pass, if a program is tested that is not root; but only we write.
        DirBuilder::new()
            .mode(0o711)
            .create(dir)
            .expect("a new name");
    }
    let janitor = script("watch")
        .args(dirs)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the janitor starts");
    Run { name, janitor }
}

/// Removes what dead test processes left behind.
pub fn sweep() {
    let prefix = prefix();
    let found: Vec<PathBuf> = [Place::Disk, Place::Memory]
        .into_iter()
        .filter_map(|place| fs::read_dir(base(place)).ok())
        .flat_map(|entries| entries.filter_map(Result::ok))
        .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
        .map(|e| e.path())
        .filter(|dir| is_ours(dir))
        .collect();
    if !found.is_empty() {
        let _ = script("sweep")
            .args(found)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Anybody can make a directory in these places, and could name processes in it to be killed.
fn is_ours(dir: &Path) -> bool {
    let us = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(dir).is_ok_and(|of| of.is_dir() && of.uid() == us)
}

/// The script in a session of its own: neither Ctrl-C nor a kill of the process group reaches it.
fn script(command: &str) -> Command {
    let mut script = Command::new("setsid");
    script
        .args(["sh", "-c", JANITOR, "fragwatch-janitor", command])
        // Not in the way of an unmount.
        .current_dir("/");
    script
}

/// Of all run directories that this process can judge: a process id means nothing in another
/// namespace that shares the directory.
fn prefix() -> String {
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let number: String = namespace
        .to_string_lossy()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    format!("fragwatch-bed.{number}.")
}

/// When a process started, in clock ticks since boot: with its id it names a process for good.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks and parentheses; behind it comes field 3.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// Removes the directory of one thing.
pub fn remove(dir: &Path) {
    if let Err(e) = fs::remove_dir_all(dir) {
        eprintln!("{}: {e}", dir.display());
    }
}
