//! The kernel's own trace of who did what when (Documentation/trace/ftrace.rst), in an instance that is
//! ours alone: what else is traced on the machine goes on undisturbed.

use std::fs;
use std::path::{Path, PathBuf};

use super::support::{Here, NotHere};

const INSTANCES: &str = "/sys/kernel/tracing/instances";
const NAME: &str = "fragwatch-bench.";
/// Of each processor; nothing is overwritten before it is read.
const BUFFER_KIB: &str = "8192";

/// Traces until it goes out of scope.
#[derive(Debug)]
pub struct Trace(PathBuf);

/// Something that was traced.
#[derive(Debug)]
pub struct Event {
    /// Who did it.
    pub thread: u32,
    /// When, in seconds since boot (`CLOCK_MONOTONIC`).
    pub at: f64,
    /// `sched_waking`, `sys_pwrite64`, …
    pub name: String,
    /// What is told of it.
    pub text: String,
}

impl Trace {
    /// Traces nothing yet.
    pub fn new() -> Here<Trace> {
        if !Path::new(INSTANCES).is_dir() {
            return Err(NotHere::because(
                "there is no tracefs at /sys/kernel/tracing",
            ));
        }
        remove_what_others_left();
        let trace = Trace(Path::new(INSTANCES).join(format!("{NAME}{}", std::process::id())));
        fs::create_dir(&trace.0).map_err(NotHere::because)?;
        trace.set("trace_clock", "mono")?;
        trace.set("buffer_size_kb", BUFFER_KIB)?;
        Ok(trace)
    }

    /// Traces an event (`sched/sched_waking`) where the filter holds (`pid == 1`).
    pub fn event(&self, event: &str, filter: &str) -> Here<()> {
        self.set(&format!("events/{event}/filter"), filter)?;
        self.set(&format!("events/{event}/enable"), "1")
    }

    /// Forgets what was traced.
    pub fn clear(&self) {
        fs::write(self.0.join("trace"), "").expect("the trace is cleared");
    }

    /// What was traced, in order of time.
    pub fn events(&self) -> Vec<Event> {
        let text = fs::read(self.0.join("trace")).expect("the trace is read");
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().filter_map(parse).collect()
    }

    fn set(&self, file: &str, value: &str) -> Here<()> {
        let path = self.0.join(file);
        fs::write(&path, value)
            .map_err(|error| NotHere::because(format_args!("{}: {error}", path.display())))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // An instance can be removed while it traces.
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

/// By a benchmark that was killed.
fn remove_what_others_left() {
    let entries = fs::read_dir(INSTANCES).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(NAME).map(|pid| format!("/proc/{pid}"));
        if process.is_some_and(|process| !Path::new(&process).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// `    rescue-actor-1234    [001] d..1.  14449.824948: sys_pwrite64(fd: 5, …)`, the name followed by
/// `: ` or `(`.
fn parse(line: &str) -> Option<Event> {
    if line.starts_with('#') {
        return None;
    }
    let (head, rest) = line.split_once(" [")?;
    let thread = head.trim_end().rsplit_once('-')?.1.parse().ok()?;
    let (stamp, rest) = rest.split_once(": ")?;
    let at = stamp.split_whitespace().last()?.parse().ok()?;
    let end = rest.find([':', '('])?;
    let (name, text) = rest.split_at(end);
    Some(Event {
        thread,
        at,
        name: name.to_owned(),
        text: text.to_owned(),
    })
}
