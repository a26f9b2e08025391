//! An emergency on the real kernel: an event that makes it write a record, a daemon to whose eyes that
//! is an emergency, and what the kernel itself says was done.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, SeekFrom, seek};
use rustix::mount::{MountFlags, mount_remount};

use super::bed::Bed;
use super::daemon::{RunningDaemon, fragwatch, free_address};
use super::rundir::{self, Place};
use super::skip::{Here, NotHere};

/// A message of a deadlock.
pub const DEADLOCK: &str =
    "XFS: nginx(31293) possible memory allocation deadlock size 65728 in kmem_alloc (mode:0x250)";

/// A line of a log file, written now by the kernel: one of long ago is none of the present.
pub fn in_a_file(text: &str) -> String {
    let time = jiff::Zoned::now().strftime("%b %e %H:%M:%S");
    format!("{time} kvm7 kernel: [12345.678901] {text}\n")
}

/// Long enough for a machine that is busy with other things. Nothing takes so long but a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The kernel has one log and one slab cache: those who use them take turns.
pub fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file system whose unmounting makes the kernel write a record.
#[derive(Debug)]
pub struct Event(Bed);

impl Event {
    /// It has not happened yet.
    pub fn new() -> Here<Event> {
        Bed::xfs().map(Event)
    }

    /// The kernel writes "XFS (loop3): Unmounting Filesystem UUID". Mounting writes a record too, but
    /// the bed's own first one would be within the look-back of each daemon.
    ///
    /// Unmounting alone does not do: while another test makes a file system it has all others
    /// mounted in a namespace of its own, and what is mounted again meanwhile was never unmounted
    /// to the kernel.
    pub fn happens(&mut self) {
        self.0.cold();
    }

    /// Matches only this file system's: a loop device's number is soon another's.
    pub fn pattern(&self) -> String {
        let blkid = Command::new("blkid")
            .args(["-p", "-s", "UUID", "-o", "value"])
            .arg(self.0.image())
            .output()
            .unwrap();
        let uuid = String::from_utf8(blkid.stdout).unwrap();
        assert_eq!(uuid.trim().len(), 36, "{uuid:?}");
        format!(r"^XFS \(loop\d+\): Unmounting Filesystem {}", uuid.trim())
    }
}

/// Records of XFS itself by the thousand, microseconds each: the kernel refuses to remount with log
/// buffers of a size that is none, and says so each time.
#[derive(Debug)]
pub struct Refusals {
    bed: Bed,
    /// No other process's.
    size: u64,
}

impl Refusals {
    /// Tries it out once: old kernels are silent.
    pub fn new() -> Here<Refusals> {
        let refusals = Refusals {
            bed: Bed::xfs()?,
            size: 1_000_000 + u64::from(std::process::id()),
        };
        let mut log = KernelLog::from_now();
        let trial = 100;
        refusals.happens_to(trial);
        let deadline = Instant::now() + Duration::from_secs(1);
        while log.count(&refusals.text(trial)) == 0 {
            if Instant::now() > deadline {
                return Err(NotHere::because(
                    "XFS does not say why it refuses a remount",
                ));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(refusals)
    }

    /// One record.
    pub fn happens(&self) {
        self.happens_to(0);
    }

    /// Matches those of this process.
    pub fn pattern(&self) -> String {
        format!("^XFS.*: {}", self.text(0))
    }

    /// One record of several kinds.
    pub fn happens_to(&self, kind: u64) {
        let options = format!("logbsize={}", self.of_kind(kind));
        let options = std::ffi::CString::new(options).unwrap();
        let refused = mount_remount(self.bed.path(), MountFlags::empty(), &options);
        assert_eq!(refused, Err(rustix::io::Errno::INVAL));
    }

    /// What a record of this kind has and no other.
    pub fn text(&self, kind: u64) -> String {
        format!("invalid logbufsize: {} ", self.of_kind(kind))
    }

    fn of_kind(&self, kind: u64) -> u64 {
        // More than there are process ids.
        self.size + kind * (1 << 23)
    }
}

/// What the kernel's log says from some moment on.
#[derive(Debug)]
pub struct KernelLog {
    kmsg: File,
    /// What was read of it.
    lines: Vec<String>,
}

impl KernelLog {
    /// From this moment on: what earlier threads of the same number did is not in it, and what is
    /// in it is not overwritten.
    pub fn from_now() -> KernelLog {
        let kmsg = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open("/dev/kmsg")
            .unwrap();
        seek(&kmsg, SeekFrom::End(0)).unwrap();
        KernelLog {
            kmsg,
            lines: Vec::new(),
        }
    }

    /// All lines so far, without their headers.
    pub fn lines(&mut self) -> &[String] {
        let mut record = [0; 8192];
        loop {
            match self.kmsg.read(&mut record) {
                Ok(length) => {
                    let record = String::from_utf8_lossy(&record[..length]);
                    let text = record.split_once(';').map_or("", |(_, text)| text);
                    self.lines.push(text.to_owned());
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(_) => return &self.lines,
            }
        }
    }

    /// How many of them have `text`.
    pub fn count(&mut self, text: &str) -> usize {
        let lines = self.lines().iter();
        lines.filter(|line| line.contains(text)).count()
    }

    /// How many of the lines since the last call have `text`.
    pub fn take(&mut self, text: &str) -> usize {
        let found = self.count(text);
        self.lines.clear();
        found
    }

    /// Drops of caches by the thread of this number, if it is an actor: others drop them too, and
    /// the counters of /proc/vmstat do not tell who.
    pub fn drops_by(&mut self, actor: u32) -> usize {
        self.count(&drop_line(actor))
    }

    /// Drops of caches by any thread that is called as our actor.
    pub fn drops(&mut self) -> usize {
        let lines = self.lines().iter();
        lines
            .filter(|line| line.starts_with("rescue-actor (") && line.contains("drop_caches"))
            .count()
    }
}

/// How the kernel tells of a drop by this thread.
pub fn drop_line(actor: u32) -> String {
    format!("rescue-actor ({actor}): drop_caches")
}

/// A counter of /proc/vmstat.
pub fn vmstat(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap().parse().unwrap()
}

/// A daemon that is to be started.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pattern: String,
    klog: String,
    rescue: String,
    images: Vec<PathBuf>,
    state: Option<PathBuf>,
    environment: Vec<(String, PathBuf)>,
}

impl Plan {
    /// To its eyes a record with this pattern is an emergency.
    pub fn of(pattern: String) -> Plan {
        Plan {
            pattern,
            ..Plan::default()
        }
    }

    /// Keys of `[klog]`.
    pub fn klog(mut self, keys: &str) -> Plan {
        keys.clone_into(&mut self.klog);
        self
    }

    /// Keys of `[rescue]`.
    pub fn rescue(mut self, keys: &str) -> Plan {
        keys.clone_into(&mut self.rescue);
        self
    }

    /// What it watches: nothing unless told otherwise.
    pub fn images(mut self, path: &Path) -> Plan {
        self.images.push(path.to_owned());
        self
    }

    /// Where it keeps incidents, if not beside its configuration.
    pub fn state(mut self, directory: &Path) -> Plan {
        self.state = Some(directory.to_owned());
        self
    }

    /// A variable of its environment.
    pub fn environment(mut self, name: &str, value: impl AsRef<Path>) -> Plan {
        let value = value.as_ref().to_owned();
        self.environment.push((name.to_owned(), value));
        self
    }

    /// What its configuration says.
    pub fn configuration(&self, address: SocketAddr) -> String {
        let Plan {
            pattern,
            klog,
            rescue,
            images,
            ..
        } = self;
        format!(
            "[images]\npaths = {images:?}\nmin_size = \"0B\"\n\
             [sampling]\ninterval = \"1s\"\nprobe_timeout = \"1s\"\nmap_interval = \"never\"\n\
             [metrics]\nlisten = \"{address}\"\n\
             [klog]\n{klog}\n\
             [[klog.rule]]\nname = \"test_event\"\npattern = '{pattern}'\naction = \"rescue\"\n\
             [rescue]\n{rescue}\n"
        )
    }

    /// `fragwatch run` with its configuration in `directory`.
    pub fn command(&self, directory: &Path, address: SocketAddr) -> Command {
        let config = directory.join("fragwatch.toml");
        fs::write(&config, self.configuration(address)).unwrap();
        let mut command = fragwatch();
        command.arg("run").arg("--config").arg(&config);
        let state = self.state.as_deref().unwrap_or(directory);
        command.env("STATE_DIRECTORY", state);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it and waits until it is armed and has proved it by a drill.
    pub fn start(&self) -> Host {
        let host = self.start_under(&[]);
        if !self.rescue.contains("enabled = false") {
            host.wait("fragwatch_klog_roundtrip_success", 1.0);
        }
        host
    }

    /// Starts it by a command that becomes the daemon, if there is one, and does not wait.
    pub fn start_under(&self, command: &[&str]) -> Host {
        let directory = rundir::of_process(Place::quick());
        let directory = tempfile::tempdir_in(directory).unwrap();
        let address = free_address();
        let log = KernelLog::from_now();
        let mut daemon = self.command(directory.path(), address);
        if let Some((program, arguments)) = command.split_first() {
            let mut under = Command::new(program);
            under.args(arguments).arg(daemon.get_program());
            under.args(daemon.get_args());
            for (name, value) in daemon.get_envs() {
                match value {
                    Some(value) => under.env(name, value),
                    None => under.env_remove(name),
                };
            }
            daemon = under;
        }
        Host {
            daemon: RunningDaemon::spawn(&mut daemon, address),
            address,
            log,
            directory,
        }
    }
}

/// A daemon on its guard.
#[derive(Debug)]
pub struct Host {
    pub daemon: RunningDaemon,
    pub address: SocketAddr,
    /// Since its start.
    pub log: KernelLog,
    pub directory: tempfile::TempDir,
}

impl Host {
    /// The value of a series; not a number if there is none.
    pub fn metric(&self, name: &str) -> f64 {
        let body = self.daemon.get("/metrics").body;
        let value = body
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or(f64::NAN)
    }

    /// Actions that it tells of.
    pub fn done(&self, step: &str, outcome: &str) -> f64 {
        let name = "fragwatch_rescue_actions_total";
        // Label order is the exporter's.
        self.metric(&format!("{name}{{step=\"{step}\",outcome=\"{outcome}\"}}"))
    }

    /// Waits until an action is told of.
    pub fn wait_done(&self, step: &str, outcome: &str) {
        let name = "fragwatch_rescue_actions_total";
        let name = format!("{name}{{step=\"{step}\",outcome=\"{outcome}\"}}");
        self.wait(&name, 1.0);
    }

    /// Waits until a series has at least this value.
    pub fn wait(&self, name: &str, least: f64) {
        let deadline = Instant::now() + PATIENCE;
        while self
            .metric(name)
            .partial_cmp(&least)
            .is_none_or(std::cmp::Ordering::is_lt)
        {
            assert!(
                Instant::now() < deadline,
                "{name} is {}, not {least}:\n{}\n{}",
                self.metric(name),
                self.daemon.get("/metrics").body,
                self.daemon.stderr()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Incidents that the kernel's log began.
    pub fn incidents(&self) -> f64 {
        self.metric("fragwatch_rescue_incidents_total{trigger=\"kernel_log\"}")
    }

    /// Waits for the first of them.
    pub fn wait_for_incident(&self) {
        self.wait(
            "fragwatch_rescue_incidents_total{trigger=\"kernel_log\"}",
            1.0,
        );
    }

    /// The number of its thread of this name.
    pub fn thread(&self, name: &str) -> u32 {
        wait_for_thread(self.daemon.pid(), name)
    }

    /// Drops of caches by its actor since its start, by the kernel's log.
    pub fn drops(&mut self) -> usize {
        let actor = self.thread("rescue-actor");
        self.log.drops_by(actor)
    }

    /// Waits for one.
    pub fn wait_for_drop(&mut self) {
        let actor = self.thread("rescue-actor");
        wait_for_drop(&mut self.log, actor);
    }
}

/// Waits for the thread of this name and gives its number.
pub fn wait_for_thread(pid: u32, name: &str) -> u32 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let is = |task: &fs::DirEntry| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        if let Some(task) = tasks.into_iter().find(is) {
            return task.file_name().to_str().unwrap().parse().unwrap();
        }
        assert!(Instant::now() < deadline, "no thread {name}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until this actor has dropped the slab cache, by the kernel's log.
pub fn wait_for_drop(log: &mut KernelLog, actor: u32) {
    let deadline = Instant::now() + PATIENCE;
    while log.drops_by(actor) == 0 {
        assert!(
            Instant::now() < deadline,
            "no drop, {} lines",
            log.lines().len()
        );
        thread::sleep(Duration::from_millis(20));
    }
}
