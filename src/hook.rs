//! Runs the operator's commands, one at a time, each in its own process group.
//!
//! A command receives the event in its environment and as JSON on its standard input. It may fork,
//! hang or not read its input: only a dedicated thread waits for it, and after the timeout its
//! whole process group is terminated. Even its start can hang, as the caller waits in vfork(2)
//! while the kernel reads the program from a file system; so it is started on an expendable thread.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

use crate::background::{Background, STACK};
use crate::sys::child::has_ended;

/// Default time limit of a command.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// Time from SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// Time from SIGKILL until waiting for the exit is left to a separate thread.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval at which the exit of the command is checked.
const INTERVAL: Duration = Duration::from_millis(20);
/// Variables with which the command could send notifications to systemd in the daemon's name.
const SYSTEMD_VARIABLES: &str = "NOTIFY_SOCKET WATCHDOG_USEC WATCHDOG_PID LISTEN_FDS LISTEN_PID";

/// The input of a command.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// Environment variables.
    pub variables: Vec<(&'static str, String)>,
    /// Standard input.
    pub json: Vec<u8>,
}

/// How a run of a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookOutcome {
    /// It exited with this status.
    Exited(i32),
    /// It was killed by a signal that fragwatch did not send.
    Killed(i32),
    /// It exceeded its time limit and was terminated.
    TimedOut,
    /// It could not be started in time: its program is on a file system that does not respond.
    NotStartedInTime,
    /// It could not be started.
    Failed(String),
    /// It was terminated at the caller's request.
    Cancelled,
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
            HookOutcome::Cancelled => f.write_str("was ended with fragwatch"),
        }
    }
}

/// Runs a command once and returns when it has ended. `started` gets its PID, which is also its
/// process group. `is_cancelled` returns whether to terminate it now; called 50 times per second.
pub fn run_once(
    command: Vec<String>,
    timeout: Duration,
    call: &Call,
    started: impl FnOnce(u32),
    is_cancelled: impl Fn() -> bool,
) -> HookOutcome {
    Runner::new(command, timeout).run(call, started, is_cancelled)
}

/// The queue of a command that is run repeatedly, one run at a time. `T` identifies a run.
pub type Hook<T> = Background<(T, Call)>;

/// Starts the thread of a command. `command` is the program and its arguments, without a shell.
/// `name` is the name of the thread, on which `on_end` gets outcome and duration of each run. Up to
/// `queue` runs wait; further ones are dropped.
pub fn start<T: Send + 'static>(
    name: &str,
    command: Vec<String>,
    timeout: Duration,
    queue: usize,
    on_end: impl Fn(T, HookOutcome, Duration) + Send + 'static,
) -> io::Result<Hook<T>> {
    let runner = Runner::new(command, timeout);
    Background::start(name, queue, STACK, move |calls| {
        for (what, call) in calls {
            let began = Instant::now();
            let outcome = runner.run(&call, |_| (), || false);
            on_end(what, outcome, began.elapsed());
        }
    })
}

struct Runner {
    command: Vec<String>,
    timeout: Duration,
    /// Whether a thread is starting the command, possibly since an earlier call.
    starting: Arc<AtomicBool>,
}

impl Runner {
    fn new(command: Vec<String>, timeout: Duration) -> Runner {
        Runner {
            command,
            timeout,
            starting: Arc::default(),
        }
    }

    fn run(
        &self,
        call: &Call,
        on_start: impl FnOnce(u32),
        is_cancelled: impl Fn() -> bool,
    ) -> HookOutcome {
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
            Ok(Ok(child)) => {
                on_start(child.id());
                wait(child, deadline, is_cancelled)
            }
            Ok(Err(error)) => HookOutcome::Failed(error.to_string()),
            Err(_) => HookOutcome::NotStartedInTime,
        }
    }

    fn start(&self, call: &Call) -> io::Result<Receiver<io::Result<Child>>> {
        let mut command = self.command(call)?;
        let (sender, started) = mpsc::sync_channel(0);
        let starting = Arc::clone(&self.starting);
        let body = move || {
            let result = command.spawn();
            starting.store(false, Ordering::Release);
            // If nothing waits for it any more, it has started too late.
            if let Err(mpsc::SendError(Ok(mut child))) = sender.send(result) {
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                let _ = child.wait();
            }
        };
        let thread = thread::Builder::new().name("hook-start".to_owned());
        thread.spawn(body)?;
        Ok(started)
    }

    fn command(&self, call: &Call) -> io::Result<Command> {
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it names no program"))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(call.variables.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(input(&call.json)?)
            .process_group(0);
        for name in SYSTEMD_VARIABLES.split(' ') {
            command.env_remove(name);
        }
        Ok(command)
    }
}

/// The command's input as a file in memory: unlike a pipe, nothing waits for it to be read.
fn input(json: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("hook", MemfdFlags::CLOEXEC)?);
    file.write_all(json)?;
    file.rewind()?;
    Ok(file)
}

/// Waits for the exit of the command, or terminates it.
fn wait(mut child: Child, deadline: Instant, is_cancelled: impl Fn() -> bool) -> HookOutcome {
    while !has_ended(&child) {
        if is_cancelled() {
            end_group(child);
            return HookOutcome::Cancelled;
        }
        if Instant::now() >= deadline {
            end_group(child);
            return HookOutcome::TimedOut;
        }
        thread::sleep(INTERVAL);
    }
    match child.wait() {
        Ok(status) => match status.code() {
            Some(code) => HookOutcome::Exited(code),
            None => HookOutcome::Killed(status.signal().unwrap_or(0)),
        },
        Err(error) => HookOutcome::Failed(error.to_string()),
    }
}

/// Terminates the command and all its descendants in its process group.
fn end_group(mut child: Child) {
    let group = Pid::from_child(&child);
    let _ = kill_process_group(group, Signal::TERM);
    wait_for_end(&child, GRACE);
    // Even if the command itself has exited, its children may still run.
    let _ = kill_process_group(group, Signal::KILL);
    wait_for_end(&child, EXIT_TIMEOUT);
    if has_ended(&child) {
        let _ = child.wait();
    } else {
        // It hangs in the kernel: a separate thread reaps it.
        let thread = thread::Builder::new().name("hook-reap".to_owned());
        let _ = thread.spawn(move || child.wait());
    }
}

fn wait_for_end(child: &Child, within: Duration) {
    let deadline = Instant::now() + within;
    while !has_ended(child) && Instant::now() < deadline {
        thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, timeout_ms: u64, json: Vec<u8>) -> HookOutcome {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        run_command(command, timeout_ms, json)
    }

    fn run_command(command: Vec<String>, timeout_ms: u64, json: Vec<u8>) -> HookOutcome {
        let (sender, ends) = mpsc::channel();
        let timeout = Duration::from_millis(timeout_ms);
        let on_end = move |(), outcome, _| drop(sender.send(outcome));
        let hook = start("hook-test", command, timeout, 1, on_end).unwrap();
        let variables = vec![("FRAGWATCH_EVENT", "begin".to_owned())];
        assert!(hook.push(((), Call { variables, json })));
        ends.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn it_gets_environment_and_standard_input() {
        let out = tempfile::NamedTempFile::new().unwrap();
        let path = out.path().display();
        let script = format!("echo $FRAGWATCH_EVENT $NOTIFY_SOCKET >{path}; cat >>{path}; exit 3");
        // More than a pipe holds.
        let json = vec![b'x'; 300_000];
        assert_eq!(run(&script, 10_000, json), HookOutcome::Exited(3));
        let text = std::fs::read(out.path()).unwrap();
        assert_eq!(text.len(), "begin\n".len() + 300_000);
    }

    #[test]
    fn one_that_reads_nothing_is_no_matter() {
        let json = vec![b'x'; 300_000];
        assert_eq!(run("exit 0", 10_000, json.clone()), HookOutcome::Exited(0));
        let closes = run("exec <&-; exit 0", 10_000, json.clone());
        assert_eq!(closes, HookOutcome::Exited(0));
        assert_eq!(run("sleep 60", 1000, json), HookOutcome::TimedOut);
        assert_eq!(run("kill -9 $$", 10_000, vec![]), HookOutcome::Killed(9));
    }

    #[test]
    fn one_that_cannot_be_started_is_told() {
        let outcome = run_command(vec!["/nowhere".to_owned()], 10_000, vec![]);
        assert!(matches!(outcome, HookOutcome::Failed(_)), "{outcome:?}");
    }

    #[test]
    fn runs_come_one_after_the_other_and_those_too_many_are_counted() {
        let out = tempfile::NamedTempFile::new().unwrap();
        let path = out.path().display();
        // Until all are pushed the first one runs.
        let waits = tempfile::NamedTempFile::new().unwrap();
        let script = format!(
            "echo + >>{path}; while [ -e {} ]; do sleep 0.01; done; echo - >>{path}",
            waits.path().display()
        );
        let command = vec!["/bin/sh".to_owned(), "-c".to_owned(), script];
        let (sender, ends) = mpsc::channel();
        let on_end = move |number, outcome, _| drop(sender.send((number, outcome)));
        let hook = start("hook-test", command, TIMEOUT, 2, on_end).unwrap();
        let taken: Vec<u32> = (0..10)
            .filter(|number| hook.push((*number, Call::default())))
            .collect();
        drop(waits);
        assert_eq!(hook.dropped(), 10 - taken.len() as u64);
        // Two wait, and one may run already.
        assert!((2..=3).contains(&taken.len()), "{taken:?}");
        for number in &taken {
            let ended = ends.recv_timeout(Duration::from_secs(20)).unwrap();
            assert_eq!(ended, (*number, HookOutcome::Exited(0)));
        }
        let text = std::fs::read_to_string(out.path()).unwrap();
        assert_eq!(text, "+\n-\n".repeat(taken.len()));
    }
}
