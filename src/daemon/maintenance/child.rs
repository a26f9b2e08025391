//! The child processes: one carries out a job, one restores extent-size hints.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tracing::warn;

use super::control::Control;
use crate::defrag::blockcopy::copying;
use crate::defrag::hint::RESTORE_COMMAND;
use crate::defrag::job::{self, DefragJob, JobMessage, JobReport};
use crate::defrag::notes;
use crate::model::{RunOutcome, RunReport};
use crate::sys::child::kill_with_parent;

const INTERVAL: Duration = Duration::from_millis(50);
const TERM_TIMEOUT: Duration = Duration::from_secs(60);
/// Time from SIGKILL until a process is left behind.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);
/// Limit for the report once the process has ended: it is already in the pipe.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
const LONGEST_OUTPUT: u64 = 16 << 20;

/// Runs the job in a child process (SIGTERM when the run is to stop) and returns its report, or a
/// substitute if there is none. Fails if no process can be started.
pub(super) fn run(job: &DefragJob, control: &Arc<Control>) -> io::Result<JobReport> {
    let mut child = spawn([job::COMMAND.as_ref()], Stdio::null())?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let document = serde_json::to_vec(job)?;
    if let Some(mut input) = input {
        // Fails if the process has already ended, which is detected below.
        let _ = input.write_all(&document);
    }
    let (sender, reported) = mpsc::channel();
    let ours = Arc::clone(control);
    let reader = thread::Builder::new().name("defrag-report".to_owned());
    let read = move || {
        // Without a receiver if the process was left behind.
        let _ = sender.send(output.and_then(|output| read_report(output, &ours)));
    };
    reader.spawn(read)?;
    let reason = match wait(&mut child, control)? {
        Some(status) => match reported.recv_timeout(REPORT_TIMEOUT) {
            Ok(Some(report)) => return Ok(report),
            _ => format!("exited without output: {status}"),
        },
        None => "hangs in the kernel and was left behind".to_owned(),
    };
    let outcome = match control.stopped() {
        // SIGTERM came before the process had a handler for it, or SIGKILL after that.
        Some(why) => RunOutcome::Stopped { why },
        None => RunOutcome::NoReport { reason },
    };
    Ok(JobReport {
        run: RunReport::of(job.engine, outcome),
        passed_over: Vec::new(),
    })
}

fn read_report(output: ChildStdout, control: &Control) -> Option<JobReport> {
    let mut report = None;
    for line in BufReader::new(output.take(LONGEST_OUTPUT)).lines() {
        match serde_json::from_str(&line.ok()?) {
            Ok(JobMessage::Progress(progress)) => control.progress.store(Some(progress)),
            Ok(JobMessage::Report(found)) => report = Some(*found),
            Err(error) => warn!("fragwatch {}: invalid message: {error}", job::COMMAND),
        }
    }
    report
}

/// Runs this program with other arguments. The child is killed when this thread ends.
fn spawn<'a>(arguments: impl IntoIterator<Item = &'a OsStr>, errors: Stdio) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("fragwatch")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(errors)
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .process_group(0);
    kill_with_parent(&mut command);
    command.spawn()
}

/// Waits for the child, and terminates it when the run is stopped; `None` if it does not end.
fn wait(child: &mut Child, control: &Control) -> io::Result<Option<ExitStatus>> {
    let mut asked: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        match asked {
            None if control.stopped().is_some() => {
                // Not yet reaped, so the PID cannot have been reused.
                let _ = kill_process(Pid::from_child(child), Signal::TERM);
                asked = Some(Instant::now());
            }
            Some(at) if at.elapsed() > TERM_TIMEOUT => {
                child.kill()?;
                thread::sleep(KILL_TIMEOUT);
                return child.try_wait();
            }
            _ => {}
        }
        thread::sleep(INTERVAL);
    }
}

/// How often what is still noted is tried again.
const RESTORE_INTERVAL: Duration = Duration::from_secs(3600);
/// The same while QEMU copies for a run that is over: until it has ended, the lock of a fleet is held.
const COPY_INTERVAL: Duration = Duration::from_secs(60);

/// Restores, in a child process, the extent-size hints of killed runs noted in `hints`, and ends what
/// they have begun; again each hour, while something is noted. Does not wait for it, because it opens
/// the images.
pub(super) fn restore_hints(hints: PathBuf) -> io::Result<()> {
    let mut logged = Vec::new();
    let mut restore = move |hints: &Path| {
        let arguments = [RESTORE_COMMAND.as_ref(), hints.as_os_str()];
        let output = spawn(arguments, Stdio::piped()).and_then(Child::wait_with_output);
        match output {
            Ok(output) if output.stderr == logged => {}
            Ok(output) => {
                for line in String::from_utf8_lossy(&output.stderr).lines() {
                    warn!("{line}");
                }
                logged = output.stderr;
            }
            Err(error) => warn!("extent-size hints of killed runs are not restored: {error}"),
        }
    };
    let is_left = |note: &Path| notes::left(note).is_ok_and(|lock| lock.is_some());
    let has_notes = |hints: &Path| fs::read_dir(hints).is_ok_and(|mut it| it.next().is_some());
    let work = move || {
        loop {
            restore(&hints);
            let restored = Instant::now();
            thread::sleep(COPY_INTERVAL);
            while !copying(&hints).any(|note| is_left(&note))
                && (restored.elapsed() < RESTORE_INTERVAL || !has_notes(&hints))
            {
                thread::sleep(COPY_INTERVAL);
            }
        }
    };
    thread::Builder::new()
        .name("hints".to_owned())
        .spawn(work)?;
    Ok(())
}
