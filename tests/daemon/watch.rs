//! A daemon with its configuration, its sweeps and its helpers.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::scrape::Scrape;
use crate::support::rundir::{self, Place};
use crate::support::{RunningDaemon, fragwatch, free_address, stall};

/// What is waited for comes within this time, also on a machine that has much else to do.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Sweeps as often as can be configured, and waits as long as it can be then.
pub const OFTEN: &str = r#"
[sampling]
interval = "1s"
probe_timeout = "1s"
map_interval = "never"
"#;

/// Sweeps at the start, and when [`Watch::sweep`] asks for one.
pub const WHEN_ASKED: &str = r#"
[sampling]
interval = "1h"
probe_timeout = "10s"
map_interval = "never"
"#;

/// Polls until there is a value.
///
/// # Panics
/// If that does not come.
pub fn until<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "not seen: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A directory with the configuration of a daemon.
#[derive(Debug)]
pub struct Etc {
    dir: PathBuf,
    pub address: SocketAddr,
}

impl Etc {
    pub fn new() -> Etc {
        Etc {
            dir: rundir::new_dir(Place::quick()).unwrap(),
            address: free_address(),
        }
    }

    /// The file for `--config`.
    pub fn file(&self) -> PathBuf {
        self.dir.join("fragwatch.toml")
    }

    /// Where a file of this name lies in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes any text into it.
    pub fn write(&self, text: &str) {
        fs::write(self.file(), text).unwrap();
    }

    /// Has the daemon watch `paths`; `more` are further sections.
    pub fn configure(&self, paths: &[&Path], more: &str) {
        self.write(&self.text(paths, more));
    }

    /// What [`Etc::configure`] writes. The rescue stays off: it would act on the stalls that tests
    /// make, for the whole machine, and write to the kernel's log.
    pub fn text(&self, paths: &[&Path], more: &str) -> String {
        format!(
            "[images]\npaths = {paths:?}\nmin_size = \"0B\"\n\
             [metrics]\nlisten = \"{}\"\n\
             [rescue]\nenabled = false\n{more}",
            self.address
        )
    }

    /// `fragwatch run` with it.
    pub fn run(&self) -> Command {
        self.run_subcommand("run")
    }

    /// Any other subcommand with it.
    pub fn run_subcommand(&self, subcommand: &str) -> Command {
        let mut command = fragwatch();
        command.arg(subcommand).arg("--config").arg(self.file());
        command.env("STATE_DIRECTORY", &self.dir);
        command.env("RUNTIME_DIRECTORY", &self.dir);
        command
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        rundir::remove(&self.dir);
    }
}

/// A daemon that runs.
#[derive(Debug)]
pub struct Watch {
    // Ends before its configuration goes.
    pub daemon: RunningDaemon,
    pub etc: Etc,
}

impl Watch {
    /// Starts one that watches `paths`, and waits for its first sweep.
    pub fn start(paths: &[&Path], more: &str) -> Watch {
        let watch = Watch::start_soon(paths, more);
        watch.until("the first sweep", |now| now.swept().is_some());
        watch
    }

    /// Starts one with what is configured, and waits for its first sweep.
    pub fn start_with(etc: Etc) -> Watch {
        let daemon = RunningDaemon::start(&etc.file(), etc.address);
        let watch = Watch { daemon, etc };
        watch.until("the first sweep", |now| now.swept().is_some());
        watch
    }

    /// As [`Watch::start_with`], and what lies beside the configuration is its state.
    pub fn start_with_state(etc: Etc) -> Watch {
        let daemon = RunningDaemon::spawn(&mut etc.run(), etc.address);
        let watch = Watch { daemon, etc };
        watch.until("the first sweep", |now| now.swept().is_some());
        watch
    }

    /// As [`Watch::start`], but waits only until it answers.
    pub fn start_soon(paths: &[&Path], more: &str) -> Watch {
        let etc = Etc::new();
        etc.configure(paths, more);
        let daemon = RunningDaemon::start(&etc.file(), etc.address);
        Watch { daemon, etc }
    }

    pub fn scrape(&self) -> Scrape {
        let answer = self.daemon.get("/metrics");
        assert_eq!(answer.status, 200);
        Scrape::of(&answer.body)
    }

    /// Scrapes until that holds.
    pub fn until(&self, what: &str, holds: impl Fn(&Scrape) -> bool) -> Scrape {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.scrape();
            if holds(&now) {
                return now;
            }
            assert!(Instant::now() < deadline, "not seen: {what}\n{}", now.text);
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end of the sweep that goes on, and so many further ones: they began later than
    /// now.
    pub fn sweeps(&self, number: u32) -> Scrape {
        let mut now = self.scrape();
        for _ in 0..=number {
            let before = now.swept();
            now = self.until("a sweep", |now| now.swept() > before);
        }
        now
    }

    /// Has one that is configured with [`WHEN_ASKED`] do a sweep: it does when it reloads.
    pub fn sweep(&self) -> Scrape {
        let before = self.scrape().swept();
        self.daemon.signal(Signal::HUP);
        self.until("the sweep that was asked for", |now| now.swept() > before)
    }

    /// Its probe helpers, those that were not waited for included. Not its other children: at its
    /// start it runs `fragwatch restore-hints` beside the first sweep.
    pub fn helpers(&self) -> Vec<Process> {
        let mut children = children(self.daemon.pid());
        children.retain(|child| child.name() == "fragwatch-probe");
        children
    }

    /// Stops the daemon, waits until its helpers rest and have nothing open on the file system
    /// mounted at `mount`, acts, and lets the daemon go on.
    pub fn between_sweeps<T>(&self, mount: &Path, act: impl FnOnce() -> T) -> T {
        self.daemon.signal(Signal::STOP);
        let proc = PathBuf::from(format!("/proc/{}", self.daemon.pid()));
        until("the daemon stops", || {
            (stall::state(&proc) == Some('T')).then_some(())
        });
        until("its helpers rest", || {
            let rests = |helper: &Process| helper.state() == Some('S') && !helper.holds(mount);
            self.helpers().iter().all(rests).then_some(())
        });
        let result = act();
        self.daemon.signal(Signal::CONT);
        result
    }

    /// Lines of its log that contain `text`.
    pub fn log(&self, text: &str) -> Vec<String> {
        let log = self.daemon.stderr();
        let lines = log.lines().filter(|line| line.contains(text));
        lines.map(str::to_owned).collect()
    }
}

/// Another process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pub pid: u32,
    start: u64,
}

impl Process {
    /// One that runs.
    pub fn of(pid: u32) -> Process {
        let start = rundir::start_time(pid).expect("it runs");
        Process { pid, start }
    }

    fn proc(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.pid))
    }

    /// As `ps -o comm` shows it, also of one that has ended and is not yet waited for.
    fn name(&self) -> String {
        let stat = fs::read_to_string(self.proc().join("stat")).unwrap_or_default();
        let name = stat
            .split_once('(')
            .and_then(|(_, rest)| rest.rsplit_once(')'));
        name.map(|(name, _)| name.to_owned()).unwrap_or_default()
    }

    /// `D` waits for a disk, `Z` has ended and is not yet waited for; nothing once it is gone.
    pub fn state(&self) -> Option<char> {
        let state = stall::state(&self.proc());
        state.filter(|_| rundir::start_time(self.pid) == Some(self.start))
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.state(), None | Some('Z'))
    }

    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid.cast_signed()).unwrap();
        let _ = kill_process(pid, signal);
    }

    /// What its descriptors stand for.
    pub fn descriptors(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.proc().join("fd")) else {
            return Vec::new();
        };
        let links = entries.flatten().map(|entry| fs::read_link(entry.path()));
        links.flatten().collect()
    }

    /// Whether it has a file open below `mount`, or stands there.
    pub fn holds(&self, mount: &Path) -> bool {
        let cwd = fs::read_link(self.proc().join("cwd")).into_iter();
        let mut held = cwd.chain(self.descriptors());
        held.any(|path| path.starts_with(mount))
    }
}

/// The children of a process.
pub fn children(parent: u32) -> Vec<Process> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name may hold blanks and parentheses; behind it come state and parent.
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
        fields.and_then(|f| f.split(' ').nth(1)) == Some(parent.to_string().as_str())
    };
    let process = |pid| {
        Some(Process {
            pid,
            start: rundir::start_time(pid)?,
        })
    };
    let mut children: Vec<_> = pids.filter(is_child).filter_map(process).collect();
    children.sort();
    children
}
