//! Reads command lines of processes without waiting for a process that is stuck.
//!
//! Reading one can block indefinitely ([`command_line`]), so each is read once, on a separate
//! thread: a stuck process blocks only that thread, and its command line arrives late or never.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::sys::mutex::lock;
use crate::sys::processes::command_line;

/// Maximum wait for one answer; a read normally takes tens of microseconds.
const DEADLINE: Duration = Duration::from_millis(100);
/// Maximum number of reader threads. While all of them hang, no further command line is read.
const MOST_THREADS: usize = 4;

/// Identifies a process uniquely: PID and start time.
pub(super) type Key = (u32, u64);

/// A command line; `None` if it could not be read.
pub(super) type Answer = (Key, Option<Vec<Vec<u8>>>);

/// Reads command lines; see the module documentation.
#[derive(Debug)]
pub(super) struct CommandLines {
    proc: PathBuf,
    queue: Arc<Mutex<VecDeque<Key>>>,
    threads: Arc<AtomicUsize>,
    sender: Sender<Answer>,
    answers: Receiver<Answer>,
    pending: BTreeSet<Key>,
}

impl CommandLines {
    pub(super) fn new(proc: PathBuf) -> Self {
        let (sender, answers) = channel();
        CommandLines {
            proc,
            queue: Arc::default(),
            threads: Arc::default(),
            sender,
            answers,
            pending: BTreeSet::new(),
        }
    }

    /// Requests the command lines of `new` processes; returns all answers not yet returned.
    pub(super) fn read(&mut self, new: &[Key]) -> Vec<Answer> {
        let mut read: Vec<_> = self.answers.try_iter().collect();
        for (key, _) in &read {
            self.pending.remove(key);
        }
        let mut waited_for: BTreeSet<_> = new.iter().copied().collect();
        self.pending.extend(&waited_for);
        lock(&self.queue).extend(new);
        // A thread that hangs is left behind; the next one continues with the queue.
        while !lock(&self.queue).is_empty() && self.start_thread() {
            while let Ok(answer) = self.answers.recv_timeout(DEADLINE) {
                waited_for.remove(&answer.0);
                self.pending.remove(&answer.0);
                read.push(answer);
                if waited_for.is_empty() {
                    break;
                }
            }
        }
        read
    }

    /// Whether the command line was requested but not yet answered.
    pub(super) fn is_pending(&self, key: Key) -> bool {
        self.pending.contains(&key)
    }

    fn start_thread(&self) -> bool {
        if self.threads.load(Ordering::SeqCst) >= MOST_THREADS {
            return false;
        }
        self.threads.fetch_add(1, Ordering::SeqCst);
        let (queue, sender) = (Arc::clone(&self.queue), self.sender.clone());
        let (threads, proc) = (Arc::clone(&self.threads), self.proc.clone());
        let next = move || lock(&queue).pop_front();
        let started = std::thread::Builder::new()
            .name("command-lines".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || {
                while let Some(key) = next() {
                    // Fails only if the receiver is gone, when the program ends.
                    let _ = sender.send((key, command_line(&proc, key.0).ok()));
                }
                threads.fetch_sub(1, Ordering::SeqCst);
            });
        if started.is_err() {
            self.threads.fetch_sub(1, Ordering::SeqCst);
        }
        started.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::fs;
    use std::path::Path;

    fn process(proc: &Path, pid: u32) {
        let directory = proc.join(pid.to_string());
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("cmdline"), format!("qemu\0{pid}\0")).unwrap();
    }

    /// Whoever opens a FIFO waits until somebody writes into it.
    fn stuck(proc: &Path, pid: u32) -> PathBuf {
        let directory = proc.join(pid.to_string());
        fs::create_dir(&directory).unwrap();
        let fifo = directory.join("cmdline");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        fifo
    }

    fn pids(answers: &[Answer]) -> Vec<u32> {
        let mut pids: Vec<_> = answers.iter().map(|answer| answer.0.0).collect();
        pids.sort_unstable();
        pids
    }

    #[test]
    fn each_is_read_once() {
        let proc = tempfile::tempdir().unwrap();
        (1..=50).for_each(|pid| process(proc.path(), pid));
        let mut lines = CommandLines::new(proc.path().to_owned());
        let keys: Vec<Key> = (1..=51).map(|pid| (pid, 0)).collect();
        let mut answers = lines.read(&keys);
        answers.sort();
        assert_eq!(answers.len(), 51);
        let second = Some(vec![b"qemu".to_vec(), b"2".to_vec()]);
        assert_eq!(answers[1], ((2, 0), second));
        assert_eq!(answers[50], ((51, 0), None), "it has ended");
        assert!(lines.read(&[]).is_empty());
    }

    #[test]
    fn one_that_is_stuck_holds_up_nobody() {
        let proc = tempfile::tempdir().unwrap();
        let fifo = stuck(proc.path(), 1);
        (2..=5).for_each(|pid| process(proc.path(), pid));
        let mut lines = CommandLines::new(proc.path().to_owned());
        let keys: Vec<Key> = (1..=5).map(|pid| (pid, 0)).collect();
        let mut answers = lines.read(&keys);
        // On a machine that is very busy another one may be late as well.
        while answers.len() < 4 {
            answers.extend(lines.read(&[]));
        }
        assert_eq!(pids(&answers), [2, 3, 4, 5]);
        assert!(lines.is_pending((1, 0)) && !lines.is_pending((2, 0)));
        assert!(lines.read(&[]).is_empty());
        // It comes loose.
        fs::write(&fifo, "late\0").unwrap();
        let mut answers = Vec::new();
        while answers.is_empty() {
            answers = lines.read(&[]);
        }
        assert_eq!(answers, [((1, 0), Some(vec![b"late".to_vec()]))]);
        assert!(!lines.is_pending((1, 0)));
    }

    #[test]
    fn many_that_are_stuck_take_a_few_threads_only() {
        let proc = tempfile::tempdir().unwrap();
        let fifos: Vec<_> = (1..=9).map(|pid| stuck(proc.path(), pid)).collect();
        process(proc.path(), 10);
        let mut lines = CommandLines::new(proc.path().to_owned());
        let keys: Vec<Key> = (1..=10).map(|pid| (pid, 0)).collect();
        assert!(lines.read(&keys).is_empty());
        assert_eq!(lines.threads.load(Ordering::SeqCst), MOST_THREADS);
        for fifo in &fifos {
            fs::write(fifo, "x\0").unwrap();
        }
        let mut answers = Vec::new();
        while answers.len() < 10 {
            answers.extend(lines.read(&[]));
        }
        assert_eq!(pids(&answers), (1..=10).collect::<Vec<_>>());
    }
}
