//! Reads and writes in the background, as a running guest does, and times each of them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::guest::{Aligned, BLOCK, open_direct, stamp};
use super::random::{Random, SEED};

/// How long each operation took, the shortest first.
#[derive(Debug, Clone, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    fn new(mut times: Vec<Duration>) -> Latencies {
        times.sort_unstable();
        Latencies(times)
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What `percent` of them did not exceed: `percentile(99.9)`. Zero if there was none.
    pub fn percentile(&self, percent: f64) -> Duration {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        let at = rank.clamp(1, self.0.len().max(1)) - 1;
        self.0.get(at).copied().unwrap_or_default()
    }

    /// The longest.
    pub fn worst(&self) -> Duration {
        self.percentile(100.0)
    }

    /// All of them, sorted.
    pub fn sorted(&self) -> &[Duration] {
        &self.0
    }
}

/// What a [`Writer`] did.
#[derive(Debug)]
pub struct Written {
    /// How long each write took.
    pub latencies: Latencies,
    /// Version of the last write of each block.
    versions: HashMap<u64, u64>,
    path: PathBuf,
}

impl Written {
    /// Reads every block that was written and finds what was written to it last.
    ///
    /// # Panics
    /// If a block holds something else: a write was lost.
    pub fn verify(&self) {
        let file = File::open(&self.path).expect("the file is still there");
        let (mut found, mut expected) = (Aligned::block(), Aligned::block());
        for (&block, &version) in &self.versions {
            file.read_exact_at(&mut found, block * BLOCK).unwrap();
            stamp(&mut expected, block, version);
            assert!(*found == *expected, "block {block} lost version {version}");
        }
    }
}

/// Writes random blocks of a file, 4 KiB each, directly to disk.
#[derive(Debug)]
pub struct Writer(Background<HashMap<u64, u64>>);

impl Writer {
    /// Writes to `path`, within its present size, so many times a second; as fast as it can if
    /// that is nothing.
    pub fn start(path: &Path, per_second: Option<u32>) -> Writer {
        Writer(Background::start(path, per_second, |file, at, versions| {
            // Version 0 is what the fragmenters write.
            stamp(at.buffer, at.block, at.turn + 1);
            file.write_all_at(at.buffer, at.block * BLOCK)?;
            versions.insert(at.block, at.turn + 1);
            Ok(())
        }))
    }

    /// Writes so far.
    pub fn count(&self) -> u64 {
        self.0.count()
    }

    /// Ends it.
    pub fn stop(self) -> Written {
        let path = self.0.path.clone();
        let (latencies, versions) = self.0.stop();
        Written {
            latencies,
            versions,
            path,
        }
    }
}

/// Reads random blocks of a file, 4 KiB each, directly from disk.
#[derive(Debug)]
pub struct Reader(Background<()>);

impl Reader {
    /// As [`Writer::start`].
    pub fn start(path: &Path, per_second: Option<u32>) -> Reader {
        Reader(Background::start(path, per_second, |file, at, ()| {
            file.read_exact_at(at.buffer, at.block * BLOCK)
        }))
    }

    /// Reads so far.
    pub fn count(&self) -> u64 {
        self.0.count()
    }

    /// Ends it.
    pub fn stop(self) -> Latencies {
        self.0.stop().0
    }
}

/// One turn of an operation.
struct Turn<'a> {
    turn: u64,
    block: u64,
    buffer: &'a mut [u8],
}

type Outcome<T> = io::Result<(Vec<Duration>, T)>;
type Operation<T> = fn(&File, Turn<'_>, &mut T) -> io::Result<()>;

/// A thread that does something over and over and keeps a `T` of it. Out of scope it ends soon,
/// but is not waited for: it may hang in a stall that is resumed only later.
#[derive(Debug)]
struct Background<T> {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<Outcome<T>>>,
}

impl<T: Default + Send + 'static> Background<T> {
    fn start(path: &Path, per_second: Option<u32>, operation: Operation<T>) -> Background<T> {
        let file = open_direct(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let pace = per_second.map(|n| Duration::from_secs(1) / n);
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || repeat(&file, pace, operation, &stopped, &counter));
        Background {
            path: path.to_owned(),
            stop,
            done,
            thread: Some(thread),
        }
    }

    fn count(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn stop(mut self) -> (Latencies, T) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("nobody took it");
        let (times, kept) = thread
            .join()
            .expect("it does not panic")
            .unwrap_or_else(|e| panic!("{}: {e}", self.path.display()));
        (Latencies::new(times), kept)
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn repeat<T: Default>(
    file: &File,
    pace: Option<Duration>,
    operation: Operation<T>,
    stop: &AtomicBool,
    done: &AtomicU64,
) -> Outcome<T> {
    let blocks = file.metadata()?.len() / BLOCK;
    let mut random = Random::new(SEED);
    let mut buffer = Aligned::block();
    let (mut times, mut kept) = (Vec::new(), T::default());
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let turn = Turn {
            turn: times.len() as u64,
            block: random.below(blocks),
            buffer: &mut buffer,
        };
        let start = Instant::now();
        operation(file, turn, &mut kept)?;
        times.push(start.elapsed());
        done.fetch_add(1, Ordering::Relaxed);
        if let Some(pace) = pace {
            // After a hiccup it does not make up for what it missed: a guest that waited for its
            // disk does not write twice as fast afterwards.
            next = (next + pace).max(start);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
    Ok((times, kept))
}
