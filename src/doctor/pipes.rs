//! Programs that write to full pipes, and who could read from these.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::files;
use crate::sys::proc;

/// A program that sleeps in a write to a pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipeWriter {
    /// Its process.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// The pipe: `pipe:[4711]`.
    pub pipe: String,
}

/// Such programs, and the processes that have the other ends of their pipes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pipes {
    /// Of one thread only: another thread could read.
    pub writers: Vec<PipeWriter>,
    /// By pipe: the processes that can read from it.
    pub readers: BTreeMap<String, BTreeSet<u32>>,
}

impl Pipes {
    /// The writers that wait for each other for ever: all readers of the pipe of each are among them.
    pub fn deadlocked(&self) -> Vec<&PipeWriter> {
        let mut left: Vec<&PipeWriter> = self.writers.iter().collect();
        loop {
            let pids: BTreeSet<u32> = left.iter().map(|writer| writer.pid).collect();
            let before = left.len();
            left.retain(|writer| {
                let readers = self.readers.get(&writer.pipe);
                readers.is_some_and(|readers| !readers.is_empty() && readers.is_subset(&pids))
            });
            if left.len() == before {
                return left;
            }
        }
    }
}

/// The pipe that a sleeping thread writes to: the descriptor is the first argument of write(2), and
/// the third of splice(2) (proc_pid_syscall, fs/proc/base.c).
pub fn written(process: &Path) -> Option<String> {
    let text = files::read(&process.join("syscall")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut words = text.split_ascii_whitespace().skip(1);
    let first = words.next();
    let descriptors = [first, words.nth(1)];
    descriptors.into_iter().flatten().find_map(|word| {
        let number = u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()?;
        let target = fs::read_link(process.join("fd").join(number.to_string())).ok()?;
        let target = target.to_str()?;
        let is_written = access(process, &number.to_string())? != O_RDONLY;
        (target.starts_with("pipe:[") && is_written).then(|| target.to_owned())
    })
}

const O_RDONLY: u64 = 0;
const O_WRONLY: u64 = 1;

/// The access mode of a descriptor, from the last octal digit of its flags.
fn access(process: &Path, descriptor: &str) -> Option<u64> {
    let text = files::read(&process.join("fdinfo").join(descriptor)).ok()?;
    let mut lines = text.split(|byte| *byte == b'\n');
    let flags = lines.find_map(|line| line.strip_prefix(b"flags:"))?;
    let last = flags.trim_ascii().last()?;
    Some(proc::number(&[*last])? & 3)
}

/// The processes that can read from the pipes of these writers.
pub fn read(proc: &Path, writers: Vec<PipeWriter>) -> Pipes {
    let mut readers: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    if writers.is_empty() {
        return Pipes::default();
    }
    let pipes: BTreeSet<&str> = writers.iter().map(|it| it.pipe.as_str()).collect();
    let processes = fs::read_dir(proc).into_iter().flatten().flatten();
    for process in processes {
        let Some(pid) = process.file_name().to_str().and_then(|it| it.parse().ok()) else {
            continue;
        };
        let entries = fs::read_dir(process.path().join("fd"));
        for entry in entries.into_iter().flatten().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let target = target.to_str().filter(|target| pipes.contains(target));
            let name = entry.file_name();
            if let (Some(target), Some(name)) = (target, name.to_str())
                && access(&process.path(), name) != Some(O_WRONLY)
            {
                readers.entry(target.to_owned()).or_default().insert(pid);
            }
        }
    }
    Pipes { writers, readers }
}
