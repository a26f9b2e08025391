//! The detector thread, and the readers that it can leave behind.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::configure_io_flusher_behavior;

use super::access::check_stacks;
use super::scanner::{ScanProgress, Scanner, Seen};
use super::tracker::{StallTracker, TaskKey};
use crate::model::{Monotonic, StuckTask};
use crate::rescue::clock::now;
use crate::sys::mutex::lock;
use crate::sys::realtime::touch_stack;

/// Interval between checks of the gate.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of hanging readers.
pub const LEFT_BEHIND: usize = 4;
/// Time limit of a reader; below [`GAP`](super::tracker::GAP), so that no stall is forgotten.
const READER_DEADLINE: Duration = Duration::from_secs(3);
/// Stack and heap that each thread touches before use: a generous estimate, not measured.
const STACK_KIB: usize = 128;
const HEAP_KIB: usize = 96;
/// The detector is down after this time without an answer; it allows for the loss of a few readers.
pub const SILENT_AFTER: Duration = Duration::from_secs(15);

/// Settings of the detector.
#[derive(Debug, Clone)]
pub struct StallSettings {
    /// Mount point of procfs.
    pub proc: PathBuf,
    /// How long a task must be starved to be stuck.
    pub stall_after: Duration,
    /// Interval between checks of the gate; [`INTERVAL`] except in tests.
    pub interval: Duration,
}

/// State of the detector.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StallHealth {
    /// Scans of all tasks.
    pub scans: u64,
    /// Number of hanging readers.
    pub left_behind: usize,
    /// The thread at which the last of them hangs.
    pub hangs_at: Option<u32>,
    /// Why stalls would currently go unnoticed; `None` if they would not.
    pub trouble: Option<String>,
}

/// The running stall detector; stops when dropped.
#[derive(Debug)]
pub struct StallDetector {
    counts: Arc<Counts>,
    _stop: SyncSender<()>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Time of the last beat, in nanoseconds ([`Monotonic`]).
    beat_at: AtomicU64,
    answered_at: AtomicU64,
    scans: AtomicU64,
    left_behind: AtomicUsize,
    hangs_at: AtomicU32,
    /// Why stacks could not be read at the last scan. Locked only for a copy.
    unreadable: Mutex<Option<String>>,
}

impl Counts {
    fn trouble(&self) -> Option<String> {
        let age = |of: &AtomicU64| now().since(Monotonic(of.load(Ordering::Relaxed)));
        let (beat, answered) = (age(&self.beat_at), age(&self.answered_at));
        if beat > SILENT_AFTER {
            return Some(format!("its thread has not run for {} s", beat.as_secs()));
        }
        if answered <= SILENT_AFTER {
            return lock(&self.unreadable).clone();
        }
        let place = match self.hangs_at.load(Ordering::Relaxed) {
            0 => String::new(),
            tid => format!(", the last one at task {tid}"),
        };
        Some(format!(
            "/proc has not been read for {} s: {} threads hang in it{place}",
            answered.as_secs(),
            self.left_behind.load(Ordering::Relaxed)
        ))
    }
}

impl StallDetector {
    /// Starts the detector. Each scan that finds stuck tasks calls `on_stall`, on the detector's
    /// thread, with the longest stuck one; it must not block.
    ///
    /// # Errors
    /// If stacks cannot be read (requires CAP_SYS_ADMIN, CAP_SYS_PTRACE and CONFIG_STACKTRACE), or
    /// threads cannot be started.
    pub fn start(
        settings: StallSettings,
        on_stall: impl FnMut(&StuckTask) + Send + 'static,
    ) -> io::Result<StallDetector> {
        check_stacks(&settings.proc)?;
        let counts = Arc::new(Counts::default());
        let time = now().0;
        counts.beat_at.store(time, Ordering::Relaxed);
        counts.answered_at.store(time, Ordering::Relaxed);
        let (stop, stopped) = mpsc::sync_channel(0);
        let mut readers = ScanThreads {
            proc: settings.proc,
            current: None,
            left_behind: Vec::new(),
            counts: Arc::clone(&counts),
        };
        readers.start()?;
        let tracker = StallTracker::new(settings.stall_after);
        spawn("stall", move || {
            run(readers, tracker, settings.interval, &stopped, on_stall);
        })?;
        Ok(StallDetector {
            counts,
            _stop: stop,
        })
    }

    /// Returns the state of the detector.
    pub fn health(&self) -> StallHealth {
        let counts = &self.counts;
        let hangs_at = counts.hangs_at.load(Ordering::Relaxed);
        StallHealth {
            scans: counts.scans.load(Ordering::Relaxed),
            left_behind: counts.left_behind.load(Ordering::Relaxed),
            hangs_at: (hangs_at != 0).then_some(hangs_at),
            trouble: counts.trouble(),
        }
    }
}

fn run(
    mut readers: ScanThreads,
    mut tracker: StallTracker,
    interval: Duration,
    stopped: &Receiver<()>,
    mut on_stall: impl FnMut(&StuckTask),
) {
    while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        let counts = &readers.counts;
        counts.beat_at.store(now().0, Ordering::Relaxed);
        let scanned = readers.scan(tracker.tracked());
        let time = now();
        let Ok(seen) = scanned else {
            tracker.missed(time);
            continue;
        };
        let Some(seen) = seen else { continue };
        readers.counts.scans.fetch_add(1, Ordering::Relaxed);
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

/// Starts a thread that is prepared for memory shortage: it touches the stack and heap that `body`
/// will use.
fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let prepared = move || {
        // Requires CAP_SYS_RESOURCE and Linux 5.6.
        let _ = configure_io_flusher_behavior(true);
        touch_stack::<STACK_KIB>();
        // Less than the free memory that malloc(3) would return to the kernel (M_TRIM_THRESHOLD).
        drop(std::hint::black_box(vec![1_u8; HEAP_KIB * 1024]));
        body();
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(prepared)?;
    Ok(())
}

/// Result of a scan; `None` if the gate was closed.
type Scanned = io::Result<Option<Vec<Seen>>>;

struct ScanThreads {
    proc: PathBuf,
    current: Option<ScanThread>,
    left_behind: Vec<(u32, Arc<ScanProgress>)>,
    counts: Arc<Counts>,
}

struct ScanThread {
    asked: SyncSender<Vec<TaskKey>>,
    scanned: Receiver<Scanned>,
    progress: Arc<ScanProgress>,
}

impl ScanThreads {
    /// Requests a scan. Fails if stacks cannot be read or the reader hangs.
    fn scan(&mut self, tracked: Vec<TaskKey>) -> Scanned {
        self.left_behind
            .retain(|(_, progress)| !progress.returned.load(Ordering::Acquire));
        if self.current.is_none() && self.left_behind.len() < LEFT_BEHIND {
            // If no thread can be started, the next scan retries.
            let _ = self.start();
        }
        let answer = match &self.current {
            Some(reader) if reader.asked.try_send(tracked).is_ok() => {
                reader.scanned.recv_timeout(READER_DEADLINE).ok()
            }
            _ => None,
        };
        if answer.is_none()
            && let Some(reader) = self.current.take()
        {
            let at = reader.progress.at.load(Ordering::Relaxed);
            self.left_behind.push((at, reader.progress));
        }
        self.note(answer.as_ref());
        answer.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
    }

    fn note(&self, answer: Option<&Scanned>) {
        let counts = &self.counts;
        let left_behind = &self.left_behind;
        let hangs_at = left_behind.last().map_or(0, |(tid, _)| *tid);
        counts.hangs_at.store(hangs_at, Ordering::Relaxed);
        counts
            .left_behind
            .store(left_behind.len(), Ordering::Relaxed);
        let Some(answer) = answer else { return };
        counts.answered_at.store(now().0, Ordering::Relaxed);
        // A closed gate does not show whether stacks can be read.
        if !matches!(answer, Ok(None)) {
            let reason = answer.as_ref().err().map(ToString::to_string);
            *lock(&counts.unreadable) = reason;
        }
    }

    fn start(&mut self) -> io::Result<()> {
        let progress = Arc::new(ScanProgress::default());
        let skip = self.left_behind.iter().map(|(tid, _)| *tid).collect();
        let (asked, questions) = mpsc::sync_channel::<Vec<TaskKey>>(1);
        let (answers, scanned) = mpsc::sync_channel(1);
        let reader_progress = Arc::clone(&progress);
        let proc = self.proc.clone();
        spawn("stall-reader", move || {
            // Ends when the detector has dropped one of the channels.
            let _ = match Scanner::open(&proc, skip, Arc::clone(&reader_progress)) {
                Ok(mut scanner) => questions
                    .into_iter()
                    .try_for_each(|tracked| answers.send(scanner.scan(&tracked))),
                Err(error) => answers.send(Err(error)),
            };
            reader_progress.returned.store(true, Ordering::Release);
        })?;
        self.current = Some(ScanThread {
            asked,
            scanned,
            progress,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stall::tests::{HEALTHY, task, tree};
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::fs;
    use std::path::Path;
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
        let wait = Duration::from_secs(30);
        let stuck = told.recv_timeout(wait).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(300));
        assert_eq!((stuck.tid, stuck.comm.as_str()), (8, "CPU 8/KVM"));
        assert_eq!(stuck.stack.len(), 3);
        assert!(told.recv_timeout(wait).unwrap().lasted > stuck.lasted);
        task(proc.path(), 7, 8, 3, 'S', 0, &HEALTHY);
        let deadline = Instant::now() + Duration::from_secs(20);
        while told.recv_timeout(Duration::from_millis(300)).is_ok() {
            assert!(Instant::now() < deadline, "it is told for ever");
        }
        assert!(detector.health().scans >= 3);
        assert_eq!(detector.health().trouble, None);
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
        // Released, it ends.
        drop(fs::OpenOptions::new().write(true).open(&hole).unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while detector.health().left_behind > 0 {
            assert!(Instant::now() < deadline, "{:?}", detector.health());
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_detector_whose_readers_all_hang_is_not_up() {
        let proc = tree();
        let detector = StallDetector::start(settings(proc.path()), |_| {}).unwrap();
        let until = |what: &str, reached: &dyn Fn(&StallHealth) -> bool| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !reached(&detector.health()) {
                assert!(Instant::now() < deadline, "{what}: {:?}", detector.health());
                thread::sleep(Duration::from_millis(20));
            }
            detector.health()
        };
        let before = until("a scan", &|health| health.scans > 0);
        assert_eq!(before.trouble, None);
        let beat = detector.counts.beat_at.load(Ordering::Relaxed);
        // Every reader reads this one first.
        let hole = proc.path().join("vmstat");
        let holes = [8, 9, 12].map(|tid| {
            let pid = if tid == 12 { 12 } else { 7 };
            proc.path().join(format!("{pid}/task/{tid}/stack"))
        });
        for hole in holes.iter().chain([&hole]) {
            fs::remove_file(hole).unwrap();
            mknodat(CWD, hole, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        }
        let hangs = until("that it hangs", &|health| health.trouble.is_some());
        let trouble = hangs.trouble.unwrap();
        assert!(
            trouble.starts_with("/proc has not been read for "),
            "{trouble}"
        );
        assert!(hangs.left_behind > 1, "{}", hangs.left_behind);
        assert!(
            detector.counts.beat_at.load(Ordering::Relaxed) > beat,
            "its thread runs"
        );
        // What hangs is let go, and what it opens next is a file.
        for hole in holes.iter().chain([&hole]) {
            let both = fs::OpenOptions::new().read(true).write(true).open(hole);
            fs::remove_file(hole).unwrap();
            fs::write(hole, "").unwrap();
            drop(both.unwrap());
        }
        until("that it is up", &|health| health.trouble.is_none());
    }

    #[test]
    fn stacks_that_cannot_be_read_any_more_are_noticed() {
        let proc = tree();
        let detector = StallDetector::start(settings(proc.path()), |_| {}).unwrap();
        let own = proc.path().join("self/stack");
        let health = |troubled: bool| {
            let deadline = Instant::now() + Duration::from_secs(20);
            while detector.health().trouble.is_some() != troubled {
                assert!(Instant::now() < deadline, "{:?}", detector.health());
                thread::sleep(Duration::from_millis(20));
            }
            detector.health().trouble
        };
        fs::remove_file(&own).unwrap();
        let trouble = health(true).unwrap();
        assert!(trouble.contains("self/stack"), "{trouble}");
        fs::write(&own, "").unwrap();
        assert_eq!(health(false), None);
    }

    #[test]
    fn without_stacks_there_is_no_detector() {
        let proc = tempfile::tempdir().unwrap();
        assert!(StallDetector::start(settings(proc.path()), |_| {}).is_err());
    }
}
