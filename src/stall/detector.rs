//! The detector: its thread, and the readers that it can leave behind.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use rustix::process::configure_io_flusher_behavior;

use super::scanner::{Progress, Scanner, Seen};
use super::tracker::StallTracker;
use crate::model::StuckTask;
use crate::rescue::clock::now;

/// How often it is looked.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Readers that may hang.
pub const LEFT_BEHIND: usize = 4;
/// A reader that takes longer is left behind. Shorter than [`GAP`](super::GAP), so that a stall is
/// not forgotten over it.
const READER_DEADLINE: Duration = Duration::from_secs(3);

/// What a detector is made of.
#[derive(Debug, Clone)]
pub struct StallSettings {
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// How long a task has to be starved.
    pub stall_after: Duration,
    /// How often it is looked; [`INTERVAL`] outside of tests.
    pub interval: Duration,
}

/// How the detector does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StallHealth {
    /// Seconds that were looked at, if only at the gate.
    pub beats: u64,
    /// Looks at all tasks.
    pub looks: u64,
    /// Readers that hang.
    pub left_behind: usize,
    /// The thread at whose file the last of them hangs.
    pub hangs_at: Option<u32>,
    /// No reader can be had: the detector is blind.
    pub blind: bool,
}

/// The running stall detector. Ends when it goes out of scope.
#[derive(Debug)]
pub struct StallDetector {
    counts: Arc<Counts>,
    _stop: SyncSender<()>,
}

#[derive(Debug, Default)]
struct Counts {
    beats: AtomicU64,
    looks: AtomicU64,
    left_behind: AtomicUsize,
    hangs_at: AtomicU32,
    blind: AtomicBool,
}

impl StallDetector {
    /// Starts it. `on_stall` is called at each look at which tasks are stuck, with the one that is
    /// stuck the longest, on the detector's own thread: it must not wait.
    ///
    /// # Errors
    /// When stacks cannot be read, which takes CAP_SYS_ADMIN, CAP_SYS_PTRACE and CONFIG_STACKTRACE,
    /// or threads are short.
    pub fn start(
        settings: StallSettings,
        on_stall: impl FnMut(&StuckTask) + Send + 'static,
    ) -> io::Result<StallDetector> {
        check_stacks(&settings.proc)?;
        let counts = Arc::new(Counts::default());
        let (stop, stopped) = mpsc::sync_channel(0);
        let mut readers = Readers {
            proc: settings.proc,
            current: None,
            left_behind: Vec::new(),
            counts: Arc::clone(&counts),
        };
        readers.start()?;
        let tracker = StallTracker::new(settings.stall_after);
        thread::Builder::new()
            .name("stall".to_owned())
            .spawn(move || run(readers, tracker, settings.interval, &stopped, on_stall))?;
        Ok(StallDetector {
            counts,
            _stop: stop,
        })
    }

    /// How it does.
    #[must_use]
    pub fn health(&self) -> StallHealth {
        let counts = &self.counts;
        let hangs_at = counts.hangs_at.load(Ordering::Relaxed);
        StallHealth {
            beats: counts.beats.load(Ordering::Relaxed),
            looks: counts.looks.load(Ordering::Relaxed),
            left_behind: counts.left_behind.load(Ordering::Relaxed),
            hangs_at: (hangs_at != 0).then_some(hangs_at),
            blind: counts.blind.load(Ordering::Relaxed),
        }
    }
}

/// Whether our own stack can be read, which is always there, and that of kthreadd, which is not
/// ours and needs the right to look at others.
fn check_stacks(proc: &Path) -> io::Result<()> {
    for (name, must_be_there) in [("self/stack", true), ("2/stack", false)] {
        let path = proc.join(name);
        match std::fs::read(&path) {
            Err(error) if must_be_there || error.kind() != io::ErrorKind::NotFound => {
                let text = format!("{}: {error}", path.display());
                return Err(io::Error::new(error.kind(), text));
            }
            _ => {}
        }
    }
    Ok(())
}

fn run(
    mut readers: Readers,
    mut tracker: StallTracker,
    interval: Duration,
    stopped: &Receiver<()>,
    mut on_stall: impl FnMut(&StuckTask),
) {
    while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        readers.counts.beats.fetch_add(1, Ordering::Relaxed);
        let Some(seen) = readers.scan(tracker.is_alarmed()) else {
            continue;
        };
        readers.counts.looks.fetch_add(1, Ordering::Relaxed);
        let time = now();
        let stuck = tracker.update(time, seen.iter().map(|seen| (seen.key, seen.verdict)));
        let Some((key, since)) = stuck.into_iter().min_by_key(|(_, since)| *since) else {
            continue;
        };
        if let Some(seen) = seen.into_iter().find(|seen| seen.key == key) {
            on_stall(&StuckTask {
                tid: key.tid,
                comm: seen.comm,
                lasted: time.since(since),
                stack: seen.stack,
            });
        }
    }
}

/// The reader at work, and those that hang.
struct Readers {
    proc: PathBuf,
    current: Option<Reader>,
    left_behind: Vec<(u32, Arc<Progress>)>,
    counts: Arc<Counts>,
}

struct Reader {
    asked: SyncSender<bool>,
    seen: Receiver<Option<Vec<Seen>>>,
    progress: Arc<Progress>,
}

impl Readers {
    /// Has the reader look. Nothing if the gate is closed or the reader hangs.
    fn scan(&mut self, alarmed: bool) -> Option<Vec<Seen>> {
        self.left_behind
            .retain(|(_, progress)| !progress.returned.load(Ordering::Acquire));
        if self.current.is_none() && self.left_behind.len() < LEFT_BEHIND {
            // Without a thread there is nothing to be done but to try again.
            let _ = self.start();
        }
        let seen = match &self.current {
            Some(reader) if reader.asked.try_send(alarmed).is_ok() => {
                reader.seen.recv_timeout(READER_DEADLINE).ok()
            }
            _ => None,
        };
        if seen.is_none()
            && let Some(reader) = self.current.take()
        {
            let at = reader.progress.at.load(Ordering::Relaxed);
            self.left_behind.push((at, reader.progress));
        }
        let counts = &self.counts;
        let hangs_at = self.left_behind.last().map_or(0, |(tid, _)| *tid);
        counts.hangs_at.store(hangs_at, Ordering::Relaxed);
        counts
            .left_behind
            .store(self.left_behind.len(), Ordering::Relaxed);
        counts.blind.store(seen.is_none(), Ordering::Relaxed);
        seen.flatten()
    }

    fn start(&mut self) -> io::Result<()> {
        let progress = Arc::new(Progress::default());
        let skip = self.left_behind.iter().map(|(tid, _)| *tid).collect();
        let (asked, questions) = mpsc::sync_channel::<bool>(1);
        let (answers, seen) = mpsc::sync_channel(1);
        let reader_progress = Arc::clone(&progress);
        let proc = self.proc.clone();
        let body = move || {
            // Without it we may wait for a shrinker of XFS; see the module.
            let _ = configure_io_flusher_behavior(true);
            let scanner = Scanner::open(&proc, skip, Arc::clone(&reader_progress));
            if let Ok(mut scanner) = scanner {
                for alarmed in questions {
                    if answers.send(scanner.scan(alarmed)).is_err() {
                        break;
                    }
                }
            }
            reader_progress.returned.store(true, Ordering::Release);
        };
        thread::Builder::new()
            .name("stall-reader".to_owned())
            .spawn(body)?;
        self.current = Some(Reader {
            asked,
            seen,
            progress,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake_proc::{task, tree};
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::fs;
    use std::time::Instant;

    fn settings(proc: &Path) -> StallSettings {
        StallSettings {
            proc: proc.to_owned(),
            stall_after: Duration::from_millis(300),
            interval: Duration::from_millis(50),
        }
    }

    #[test]
    fn a_stall_is_told_again_and_again_until_it_is_over() {
        let proc = tree();
        let (sender, told) = mpsc::channel();
        let began = Instant::now();
        let detector = StallDetector::start(settings(proc.path()), move |stuck| {
            let _ = sender.send(stuck.clone());
        });
        let detector = detector.unwrap();
        let wait = Duration::from_secs(5);
        let stuck = told.recv_timeout(wait).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(300));
        assert_eq!((stuck.tid, stuck.comm.as_str()), (8, "CPU 8/KVM"));
        assert_eq!(stuck.stack.len(), 3);
        assert!(told.recv_timeout(wait).unwrap().lasted > stuck.lasted);
        task(proc.path(), 7, 8, 3, 'S', 0, &[]);
        thread::sleep(Duration::from_millis(200));
        while told.try_recv().is_ok() {}
        assert!(told.recv_timeout(Duration::from_millis(300)).is_err());
        assert!(detector.health().looks > 5);
        assert!(!detector.health().blind);
    }

    #[test]
    fn a_task_at_which_the_reader_hangs_blinds_nobody() {
        let proc = tree();
        let hole = proc.path().join("12/task/12/stack");
        fs::remove_file(&hole).unwrap();
        mknodat(CWD, &hole, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let (sender, told) = mpsc::channel();
        let detector = StallDetector::start(settings(proc.path()), move |stuck| {
            let _ = sender.send(stuck.tid);
        });
        let detector = detector.unwrap();
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(8));
        let health = detector.health();
        assert_eq!((health.left_behind, health.hangs_at), (1, Some(12)));
        // Let go, it ends.
        drop(fs::OpenOptions::new().write(true).open(&hole).unwrap());
        thread::sleep(Duration::from_millis(500));
        assert_eq!(detector.health().left_behind, 0);
    }

    #[test]
    fn without_stacks_there_is_no_detector() {
        let proc = tempfile::tempdir().unwrap();
        assert!(StallDetector::start(settings(proc.path()), |_| {}).is_err());
    }
}
