//! One run: the operator's command before it, `fragwatch defrag` as a child process, the command
//! after it. On a thread of its own, which may hang with its file system.
//!
//! The child is killed with this thread, and xfs_fsr with the child: nothing outlives the daemon.
//! What is under way is noted in the state directory, so that the next daemon knows what was cut
//! off.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::history::{ImageRef, RunRow};
use crate::hook::{Call, Hook, HookOutcome};
use crate::model::path::{shown, wire};
use crate::model::{Bytes, Engine, ExtentCount, ImageKey, Stop, UnixTime, Vm};
use crate::sys::child::tied;

/// What the operator's commands may take: one may shut a VM down.
const HOOK_TIMEOUT: Duration = Duration::from_secs(600);
/// How often the child is looked at.
const BEAT: Duration = Duration::from_millis(50);
/// A child that has not ended so long after it was told to is killed.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is read of what the child says.
const MOST_SAID: u64 = 1 << 20;
/// Files in the state directory that note what is under way.
const PREFIX: &str = "running-";

/// What is to be done.
pub(super) struct Task {
    pub(super) reference: ImageRef,
    /// The first of them that can.
    pub(super) engines: Vec<Engine>,
    pub(super) vm: Option<Vm>,
    pub(super) extents: ExtentCount,
    pub(super) hook_before: Vec<String>,
    pub(super) hook_after: Vec<String>,
    /// The daemon's configuration file, if one was named.
    pub(super) config: Option<PathBuf>,
    /// The state directory.
    pub(super) state: PathBuf,
}

impl Task {
    /// The engine that is tried first.
    fn engine(&self) -> &'static str {
        self.engines.first().map_or("", |engine| engine.as_str())
    }
}

/// A run under way.
pub(super) struct Errand {
    stop: Arc<AtomicBool>,
    why: Arc<Mutex<Option<Stop>>>,
}

/// How it ended.
pub(super) struct Ended {
    pub(super) filesystem: String,
    began: UnixTime,
    took: Duration,
    engine: &'static str,
    from: ExtentCount,
    result: Result<Value, String>,
}

impl Errand {
    /// Starts it. Its end is told to `ended`.
    pub(super) fn start(task: Task, ended: mpsc::UnboundedSender<Ended>) -> io::Result<Errand> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let work = move || {
            let began = SystemTime::now();
            let clock = Instant::now();
            let result = go(&task, &told);
            // Nobody listens any more when the daemon ends.
            let _ = ended.send(Ended {
                filesystem: task.reference.key.filesystem.clone(),
                began: unix(began),
                took: clock.elapsed(),
                engine: task.engine(),
                from: task.extents,
                result,
            });
        };
        thread::Builder::new()
            .name("defrag".to_owned())
            .spawn(work)?;
        Ok(Errand {
            stop,
            why: Arc::default(),
        })
    }

    /// Has it end soon. The first reason counts.
    pub(super) fn stop(&self, why: Stop) {
        let mut first = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(why);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Why it was told to end, if it was.
    pub(super) fn stopped(&self) -> Option<Stop> {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ended {
    /// As the history notes it.
    pub(super) fn row(&self, image: ImageRef, stopped: Option<Stop>) -> RunRow {
        let mut row = RunRow {
            image,
            at: self.began,
            engine: self.engine.to_owned(),
            from: self.from,
            to: self.from,
            bytes: Bytes(0),
            took: self.took,
            outcome: "failed".to_owned(),
            reason: String::new(),
        };
        match &self.result {
            Ok(run) => {
                let number = |key: &str| run[key].as_u64();
                let engine = run["engine"].as_str();
                row.engine = engine.unwrap_or(self.engine).to_owned();
                row.outcome = run["outcome"].as_str().unwrap_or("failed").to_owned();
                row.from = number("from").map_or(row.from, ExtentCount);
                row.to = number("to").map_or(row.from, ExtentCount);
                row.bytes = Bytes(number("written_bytes").unwrap_or(0));
                row.reason = reason(run);
                if let Some(seconds) = run["seconds"].as_f64() {
                    row.took = Duration::try_from_secs_f64(seconds).unwrap_or(row.took);
                }
            }
            Err(reason) => row.reason.clone_from(reason),
        }
        if let Some(stop) = stopped.filter(|_| row.outcome == "stopped") {
            row.reason = stop.to_string();
        }
        row
    }
}

/// Why it came out so, and why not by the engine that was to do it.
fn reason(run: &Value) -> String {
    let passed = run["passed_over"].as_array().into_iter().flatten();
    let passed = passed.filter_map(|passed| {
        let (engine, why) = (passed["engine"].as_str()?, passed["reason"].as_str()?);
        Some(format!("not by {engine}: {why}"))
    });
    let own = run["reason"].as_str().map(str::to_owned);
    own.into_iter().chain(passed).collect::<Vec<_>>().join("; ")
}

fn go(task: &Task, stop: &AtomicBool) -> Result<Value, String> {
    let note =
        Note::write(task).map_err(|error| format!("its beginning cannot be noted: {error}"))?;
    let ran_before = !task.hook_before.is_empty();
    if ran_before {
        let call = call(task, "before", None);
        if let Err(reason) = run_hook("defrag.hook_before", &task.hook_before, call, stop) {
            drop(note);
            return Ok(not_begun(&reason, stop));
        }
    }
    let result = defragment(task, stop);
    if ran_before || !task.hook_after.is_empty() {
        let call = call(task, "after", result.as_ref().ok());
        if let Err(reason) = run_hook(
            "defrag.hook_after",
            &task.hook_after,
            call,
            &AtomicBool::new(false),
        ) {
            warn!("{reason}");
        }
    }
    drop(note);
    result
}

/// A run that its hook did not let begin is put off, as one that the guards refuse: the image is no
/// worse for it, and the next time the hook may succeed.
fn not_begun(reason: &str, stop: &AtomicBool) -> Value {
    let outcome = match stop.load(Ordering::Relaxed) {
        true => "stopped",
        false => "refused",
    };
    serde_json::json!({ "outcome": outcome, "guard": "hook", "reason": reason })
}

fn run_hook(
    name: &'static str,
    command: &[String],
    call: Call,
    stop: &AtomicBool,
) -> Result<(), String> {
    if command.is_empty() {
        return Ok(());
    }
    let (sender, outcome) = std_mpsc::channel();
    let on_end = move |(), outcome: HookOutcome, _: Duration| drop(sender.send(outcome));
    let hook = Hook::start("hook-defrag", command.to_vec(), HOOK_TIMEOUT, 1, on_end)
        .map_err(|error| format!("{name}: {error}"))?;
    hook.call((), call);
    loop {
        match outcome.recv_timeout(BEAT) {
            Ok(HookOutcome::Exited(0)) => {
                info!("{name} succeeded");
                return Ok(());
            }
            Ok(outcome) => return Err(format!("{name} {outcome}")),
            Err(std_mpsc::RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => {
                return Err(format!("{name} had not ended when the run was stopped"));
            }
            Err(std_mpsc::RecvTimeoutError::Timeout) => {}
            Err(std_mpsc::RecvTimeoutError::Disconnected) => {
                return Err(format!("{name}: its thread has ended"));
            }
        }
    }
}

fn call(task: &Task, moment: &str, result: Option<&Value>) -> Call {
    let mut variables = vec![
        ("FRAGWATCH_EVENT", format!("defrag-{moment}")),
        ("FRAGWATCH_IMAGE", shown(&task.reference.path)),
        ("FRAGWATCH_ENGINE", task.engine().to_owned()),
        ("FRAGWATCH_EXTENTS", task.extents.0.to_string()),
    ];
    if let Some(vm) = &task.vm {
        variables.push(("FRAGWATCH_VM", vm.name.clone().unwrap_or_default()));
        variables.push(("FRAGWATCH_VM_UUID", vm.uuid.clone().unwrap_or_default()));
        variables.push(("FRAGWATCH_VM_PID", vm.pid.to_string()));
    }
    let mut json = serde_json::json!({ "schema": 1, "event": format!("defrag-{moment}") });
    for (name, value) in &variables {
        json[name.trim_start_matches("FRAGWATCH_").to_ascii_lowercase()] = value.clone().into();
    }
    if let Some(result) = result {
        let outcome = result["outcome"].as_str().unwrap_or_default();
        variables.push(("FRAGWATCH_OUTCOME", outcome.to_owned()));
        json["run"] = result.clone();
    }
    Call {
        variables,
        json: json.to_string().into_bytes(),
    }
}

/// Runs `fragwatch defrag` on the image.
fn defragment(task: &Task, stop: &AtomicBool) -> Result<Value, String> {
    let mut child = spawn(task).map_err(|error| format!("fragwatch defrag: {error}"))?;
    let mut out = child.stdout.take();
    let said = thread::Builder::new().spawn(move || {
        let mut text = Vec::new();
        if let Some(out) = &mut out {
            let _ = out.take(MOST_SAID).read_to_end(&mut text);
        }
        text
    });
    let said = said.map_err(|error| format!("no thread: {error}"))?;
    let status = wait(&mut child, stop).map_err(|error| format!("fragwatch defrag: {error}"))?;
    let Some(status) = status else {
        return Err("fragwatch defrag hangs and was left behind".to_owned());
    };
    let text = said.join().unwrap_or_default();
    let document: Value = serde_json::from_slice(&text)
        .map_err(|_| format!("fragwatch defrag said nothing; {status}"))?;
    let run = document["runs"].get(0).cloned();
    run.ok_or_else(|| format!("fragwatch defrag did nothing; {status}"))
}

fn spawn(task: &Task) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("fragwatch");
    let mut arguments: Vec<OsString> = Vec::new();
    if let Some(config) = &task.config {
        arguments.extend(["--config".into(), config.into()]);
    }
    arguments.extend(["defrag", "--json", "--force-window"].map(OsString::from));
    for engine in &task.engines {
        arguments.extend(["--engine", engine.as_str()].map(OsString::from));
    }
    arguments.extend(["--".into(), task.reference.path.clone().into()]);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .env("STATE_DIRECTORY", &task.state)
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .process_group(0);
    tied(&mut command);
    command.spawn()
}

/// Has a child process put back the extent-size hints that killed runs have left noted in `hints`.
/// Nobody waits for it: it touches the images.
pub(super) fn restore_hints(hints: &Path) -> io::Result<()> {
    let hints = hints.to_owned();
    let work = move || {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("fragwatch")
            .arg(crate::cli::RESTORE_HINTS)
            .arg(hints)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        tied(&mut command);
        match command.output() {
            Ok(output) => {
                for line in String::from_utf8_lossy(&output.stderr).lines() {
                    warn!("{line}");
                }
            }
            Err(error) => warn!("extent-size hints of killed runs are not restored: {error}"),
        }
    };
    thread::Builder::new()
        .name("hints".to_owned())
        .spawn(work)?;
    Ok(())
}

/// Waits for its end, and asks for it when it is time. Nothing if it does not come.
fn wait(child: &mut Child, stop: &AtomicBool) -> io::Result<Option<std::process::ExitStatus>> {
    let mut told: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        match told {
            None if stop.load(Ordering::Relaxed) => {
                // Not waited for yet, so the id is not another's.
                let _ = kill_process(Pid::from_child(child), Signal::TERM);
                told = Some(Instant::now());
            }
            Some(at) if at.elapsed() > PATIENCE => {
                child.kill()?;
                thread::sleep(Duration::from_secs(1));
                return child.try_wait();
            }
            _ => {}
        }
        thread::sleep(BEAT);
    }
}

/// What is under way, for the next daemon.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    filesystem: String,
    inode: u64,
    generation: u32,
    #[serde(with = "wire")]
    path: PathBuf,
    engine: String,
    extents: ExtentCount,
    began: UnixTime,
}

/// The file of a run; removed when it is over.
struct Note(PathBuf);

impl Note {
    fn write(task: &Task) -> io::Result<Note> {
        let key = &task.reference.key;
        let noted = Noted {
            filesystem: key.filesystem.clone(),
            inode: key.inode,
            generation: key.generation,
            path: task.reference.path.clone(),
            engine: task.engine().to_owned(),
            extents: task.extents,
            began: unix(SystemTime::now()),
        };
        let path = task
            .state
            .join(format!("{PREFIX}{}-{}.json", key.inode, key.generation));
        let mut file = tempfile::Builder::new()
            .prefix(".running-")
            .tempfile_in(&task.state)?;
        file.write_all(&serde_json::to_vec(&noted)?)?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        fs::File::open(&task.state)?.sync_all()?;
        Ok(Note(path))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            warn!("{}: cannot be removed: {error}", shown(&self.0));
        }
    }
}

/// Runs that were cut off when an earlier daemon was killed. Forgets them.
pub(in crate::daemon) fn interrupted_before(state: &Path) -> Vec<RunRow> {
    let Ok(entries) = fs::read_dir(state) else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !ours {
            continue;
        }
        let noted = fs::read(entry.path()).ok();
        let noted = noted.and_then(|text| serde_json::from_slice::<Noted>(&text).ok());
        if let Some(noted) = noted {
            let reference = ImageRef {
                key: ImageKey {
                    filesystem: noted.filesystem,
                    inode: noted.inode,
                    generation: noted.generation,
                },
                path: noted.path,
            };
            rows.push(super::interrupted(
                reference,
                noted.began,
                &noted.engine,
                noted.extents,
            ));
        }
        let _ = fs::remove_file(entry.path());
    }
    rows
}

fn unix(time: SystemTime) -> UnixTime {
    let since = time.duration_since(UNIX_EPOCH);
    UnixTime::from_seconds(since.map_or(0.0, |since| since.as_secs_f64()))
}
