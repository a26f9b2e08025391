//! The operator's command that is run when an incident begins and when it is over.
//!
//! It gets the incident in its environment and as JSON on its standard input, and may do with it
//! what it likes: fork, hang, never read. Whatever it does, nobody waits for it but a thread that
//! has nothing else to do, and after its timeout its whole process group is ended.
//!
//! Even to *start* it can hang: the kernel reads the program from a file system, and our thread
//! waits for that in vfork(2). So it is started on a thread that may be left behind.

use std::io::{self, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde::{Deserialize, Serialize};

use crate::model::IncidentId;

/// How long a hook may take unless told otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// Hooks of one moment that may wait for the one that runs.
const QUEUE: usize = 8;
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// How long an ended process may take to be gone before it is left to a thread of its own.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// How often it is looked whether the hook has ended.
const BEAT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};
/// What the hook could speak to our systemd with.
const OURS_ALONE: [&str; 5] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
];

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// An incident has begun.
    Begin,
    /// An incident is over.
    End,
}

impl Moment {
    /// The value of `FRAGWATCH_EVENT`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Moment::Begin => "begin",
            Moment::End => "end",
        }
    }
}

/// One run of the hook that is asked for.
#[derive(Debug, Clone)]
pub struct HookCall {
    /// Why.
    pub moment: Moment,
    /// Of which incident.
    pub incident: IncidentId,
    /// What is put into its environment.
    pub variables: Vec<(&'static str, String)>,
    /// What it can read from its standard input.
    pub json: Vec<u8>,
}

/// How a run came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookReport {
    /// Why it was run.
    pub moment: Moment,
    /// How it ended.
    pub outcome: HookOutcome,
    /// How long it took.
    pub took_ms: u64,
}

/// How a run of the hook ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookOutcome {
    /// By itself, with this status.
    Exited(i32),
    /// By a signal that was not ours.
    Killed(i32),
    /// By us, because it took too long.
    TimedOut,
    /// It could not be started in time: its program lies on a file system that does not answer.
    NotStartedInTime,
    /// It could not be started at all.
    Failed(String),
}

impl std::fmt::Display for HookOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HookOutcome::Exited(0) => f.write_str("succeeded"),
            HookOutcome::Exited(status) => write!(f, "ended with status {status}"),
            HookOutcome::Killed(signal) => write!(f, "was ended by signal {signal}"),
            HookOutcome::TimedOut => f.write_str("took too long and was ended"),
            HookOutcome::NotStartedInTime => {
                f.write_str("could not be started in time: its file system does not answer")
            }
            HookOutcome::Failed(error) => write!(f, "could not be started: {error}"),
        }
    }
}

/// Runs the hook: at most one of each moment at a time.
#[derive(Debug)]
pub struct Hooks {
    begin: SyncSender<HookCall>,
    end: SyncSender<HookCall>,
    dropped: AtomicU64,
}

impl Hooks {
    /// `command` is the program and its arguments; no shell is involved. `on_report` is called on
    /// the hooks' own threads.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(
        command: Vec<String>,
        timeout: Duration,
        on_report: impl Fn(IncidentId, HookReport) + Send + Sync + 'static,
    ) -> io::Result<Hooks> {
        let on_report = Arc::new(on_report);
        let worker = |name: &str| {
            let (sender, calls) = mpsc::sync_channel(QUEUE);
            let runner = Runner {
                command: command.clone(),
                timeout,
                starting: Arc::new(AtomicBool::new(false)),
            };
            let on_report = Arc::clone(&on_report);
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || work(&runner, &calls, &*on_report))?;
            Ok::<_, io::Error>(sender)
        };
        Ok(Hooks {
            begin: worker("hook-begin")?,
            end: worker("hook-end")?,
            dropped: AtomicU64::new(0),
        })
    }

    /// Asks for a run. Never waits: if too many are asked for already, this one is dropped and
    /// counted.
    pub fn call(&self, call: HookCall) {
        let queue = match call.moment {
            Moment::Begin => &self.begin,
            Moment::End => &self.end,
        };
        if queue.try_send(call).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Runs that were asked for and never made.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn work(runner: &Runner, calls: &Receiver<HookCall>, on_report: &dyn Fn(IncidentId, HookReport)) {
    for call in calls {
        let began = Instant::now();
        let outcome = runner.run(&call);
        let report = HookReport {
            moment: call.moment,
            outcome,
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        on_report(call.incident, report);
    }
}

struct Runner {
    command: Vec<String>,
    timeout: Duration,
    /// Whether a thread is at starting it, perhaps since an earlier call.
    starting: Arc<AtomicBool>,
}

impl Runner {
    fn run(&self, call: &HookCall) -> HookOutcome {
        let deadline = Instant::now() + self.timeout;
        if self.starting.swap(true, Ordering::AcqRel) {
            return HookOutcome::NotStartedInTime;
        }
        let started = match self.start(call) {
            Ok(started) => started,
            Err(error) => {
                self.starting.store(false, Ordering::Release);
                return HookOutcome::Failed(error.to_string());
            }
        };
        match started.recv_timeout(self.timeout) {
            Ok(Ok(child)) => attend(child, &call.json, deadline),
            Ok(Err(error)) => HookOutcome::Failed(error.to_string()),
            Err(_) => HookOutcome::NotStartedInTime,
        }
    }

    fn start(&self, call: &HookCall) -> io::Result<Receiver<io::Result<Child>>> {
        let mut command = self.command(call)?;
        let (sender, started) = mpsc::sync_channel(0);
        let starting = Arc::clone(&self.starting);
        let body = move || {
            let result = command.spawn();
            starting.store(false, Ordering::Release);
            // If nobody waits for it any more it comes too late.
            if let Err(mpsc::SendError(Ok(mut child))) = sender.send(result) {
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                let _ = child.wait();
            }
        };
        let thread = thread::Builder::new().name("hook-start".to_owned());
        thread.spawn(body)?;
        Ok(started)
    }

    fn command(&self, call: &HookCall) -> io::Result<Command> {
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it names no program"))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(call.variables.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .process_group(0);
        for name in OURS_ALONE {
            command.env_remove(name);
        }
        Ok(command)
    }
}

/// Feeds the hook and waits for its end, or makes it end.
fn attend(mut child: Child, json: &[u8], deadline: Instant) -> HookOutcome {
    let mut food = child.stdin.take().and_then(|stdin| Food::new(stdin, json));
    while !has_ended(&child) {
        if Instant::now() >= deadline {
            end_group(child);
            return HookOutcome::TimedOut;
        }
        food = food.and_then(Food::give);
        // Wakes up when the hook reads; if it does not, or there is nothing more to read, by time.
        let mut events: Vec<PollFd<'_>> = Vec::new();
        events.extend(
            food.as_ref()
                .map(|food| PollFd::new(&food.stdin, PollFlags::OUT)),
        );
        let _ = poll(&mut events, Some(&BEAT));
    }
    match child.wait() {
        Ok(status) => outcome(status),
        Err(error) => HookOutcome::Failed(error.to_string()),
    }
}

fn outcome(status: ExitStatus) -> HookOutcome {
    match (status.code(), status.signal()) {
        (Some(code), _) => HookOutcome::Exited(code),
        (None, signal) => HookOutcome::Killed(signal.unwrap_or(0)),
    }
}

/// What is still to be written to its standard input.
struct Food<'a> {
    stdin: ChildStdin,
    rest: &'a [u8],
}

impl<'a> Food<'a> {
    fn new(stdin: ChildStdin, json: &'a [u8]) -> Option<Food<'a>> {
        rustix::io::ioctl_fionbio(&stdin, true).ok()?;
        Some(Food { stdin, rest: json })
    }

    /// As much as it takes at once. Nothing remains, and the pipe is closed, when it has all or
    /// wants no more.
    fn give(mut self) -> Option<Food<'a>> {
        while !self.rest.is_empty() {
            match self.stdin.write(self.rest) {
                Ok(written) => self.rest = self.rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(self),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        None
    }
}

/// Whether the hook itself has ended. It is not taken off the kernel's list by that: as long as it
/// is there its number stands for its group and for no other.
fn has_ended(child: &Child) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(
        waitid(WaitId::Pid(Pid::from_child(child)), options),
        Ok(None) | Err(rustix::io::Errno::INTR)
    )
}

/// Ends the hook and all it has forked into its group.
fn end_group(mut child: Child) {
    let group = Pid::from_child(&child);
    let _ = kill_process_group(group, Signal::TERM);
    wait_for_end(&child, GRACE);
    // Also when the hook itself is gone: its children may not be.
    let _ = kill_process_group(group, Signal::KILL);
    wait_for_end(&child, LAST_WAIT);
    if has_ended(&child) {
        let _ = child.wait();
    } else {
        // It hangs in the kernel. Somebody has to take note of its end, some day.
        let thread = thread::Builder::new().name("hook-reap".to_owned());
        let _ = thread.spawn(move || child.wait());
    }
}

fn wait_for_end(child: &Child, within: Duration) {
    let deadline = Instant::now() + within;
    while !has_ended(child) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(script: &str, timeout_ms: u64) -> (Hooks, Receiver<HookReport>) {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let (sender, reports) = mpsc::channel();
        let timeout = Duration::from_millis(timeout_ms);
        let hooks = Hooks::start(command, timeout, move |_, report| {
            let _ = sender.send(report);
        });
        (hooks.unwrap(), reports)
    }

    fn call(moment: Moment, json: Vec<u8>) -> HookCall {
        HookCall {
            moment,
            incident: IncidentId(1),
            variables: vec![("FRAGWATCH_EVENT", moment.as_str().to_owned())],
            json,
        }
    }

    fn outcome_of(script: &str, timeout_ms: u64, json: Vec<u8>) -> HookOutcome {
        let (hooks, reports) = hooks(script, timeout_ms);
        hooks.call(call(Moment::Begin, json));
        reports
            .recv_timeout(Duration::from_secs(20))
            .unwrap()
            .outcome
    }

    #[test]
    fn it_gets_environment_and_standard_input() {
        let out = tempfile::NamedTempFile::new().unwrap();
        let path = out.path().display();
        let script = format!("echo $FRAGWATCH_EVENT $NOTIFY_SOCKET >{path}; cat >>{path}; exit 3");
        // More than a pipe holds.
        let json = vec![b'x'; 300_000];
        assert_eq!(outcome_of(&script, 10_000, json), HookOutcome::Exited(3));
        let text = std::fs::read(out.path()).unwrap();
        assert_eq!(text.len(), "begin\n".len() + 300_000);
    }

    #[test]
    fn one_that_reads_nothing_is_no_matter() {
        let json = vec![b'x'; 300_000];
        assert_eq!(
            outcome_of("exit 0", 10_000, json.clone()),
            HookOutcome::Exited(0)
        );
        assert_eq!(
            outcome_of("exec <&-; exit 0", 10_000, json.clone()),
            HookOutcome::Exited(0)
        );
        assert_eq!(outcome_of("sleep 60", 200, json), HookOutcome::TimedOut);
        assert_eq!(
            outcome_of("kill -9 $$", 10_000, vec![]),
            HookOutcome::Killed(9)
        );
    }

    #[test]
    fn one_that_cannot_be_started_is_told() {
        let (sender, reports) = mpsc::channel();
        let hooks = Hooks::start(vec!["/nowhere".to_owned()], TIMEOUT, move |_, report| {
            let _ = sender.send(report);
        });
        hooks.unwrap().call(call(Moment::End, vec![]));
        let report = reports.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(
            matches!(report.outcome, HookOutcome::Failed(_)),
            "{report:?}"
        );
    }

    #[test]
    fn begin_and_end_do_not_wait_for_each_other_and_the_queue_is_bounded() {
        let (hooks, reports) = hooks("[ $FRAGWATCH_EVENT = end ] || sleep 60", 1500);
        let began = Instant::now();
        for _ in 0..QUEUE + 5 {
            hooks.call(call(Moment::Begin, vec![b'x'; 300_000]));
        }
        hooks.call(call(Moment::End, vec![]));
        assert!(began.elapsed() < Duration::from_secs(1));
        assert!(hooks.dropped() >= 4);
        let first = reports.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!(
            (first.moment, first.outcome),
            (Moment::End, HookOutcome::Exited(0))
        );
        let second = reports.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(
            (second.moment, second.outcome),
            (Moment::Begin, HookOutcome::TimedOut)
        );
    }
}
