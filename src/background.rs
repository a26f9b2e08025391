//! A bounded queue with a worker thread, for work that may hang: adding a job never blocks on it.
//!
//! The lock is held for a few instructions only, never while a job runs. The rescue's fast side
//! does not use the queue, because adding a job takes a lock and may allocate.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Stack size of a thread that does little. mlockall(2) can keep a whole stack in memory.
pub const SMALL_STACK: usize = 64 * 1024;
/// The default stack size of std::thread.
pub const STACK: usize = 2 * 1024 * 1024;

/// The sending side. When the last clone is dropped, the thread does the waiting jobs and ends.
#[derive(Debug)]
pub struct Background<T>(Arc<Owner<T>>);

impl<T> Clone for Background<T> {
    fn clone(&self) -> Self {
        Background(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Owner<T>(Arc<Shared<T>>);

impl<T> Drop for Owner<T> {
    fn drop(&mut self) {
        self.0.lock().stopping = true;
        self.0.changed.notify_all();
    }
}

/// The thread's side of the queue: an iterator that waits for the next job. It ends when no job is
/// left after [`Background::stop`] or the drop of the last [`Background`].
#[derive(Debug)]
pub struct Jobs<T>(Arc<Shared<T>>);

/// The load of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Number of waiting jobs, without the current one.
    pub waiting: usize,
    /// How long the thread has worked on the current job or its start; `None` while it waits.
    pub busy_for: Option<Duration>,
}

#[derive(Debug)]
struct Shared<T> {
    queue: Mutex<Queue<T>>,
    changed: Condvar,
    capacity: usize,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Queue<T> {
    jobs: VecDeque<T>,
    /// `None` while the thread waits for a job.
    busy_since: Option<Instant>,
    /// Whether the thread has requested its first job.
    ready: bool,
    stopping: bool,
    ended: bool,
}

impl<T: Send + 'static> Background<T> {
    /// Starts the thread, which ends when `work` returns. `capacity` is the maximum number of
    /// waiting jobs, `stack` a size in bytes: [`SMALL_STACK`] or [`STACK`].
    pub fn start(
        name: &str,
        capacity: usize,
        stack: usize,
        work: impl FnOnce(&mut Jobs<T>) + Send + 'static,
    ) -> io::Result<Background<T>> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                jobs: VecDeque::new(),
                busy_since: Some(Instant::now()),
                ready: false,
                stopping: false,
                ended: false,
            }),
            changed: Condvar::new(),
            capacity,
            dropped: AtomicU64::new(0),
        });
        let mut jobs = Jobs(Arc::clone(&shared));
        let thread = thread::Builder::new().name(name.to_owned());
        thread.stack_size(stack).spawn(move || work(&mut jobs))?;
        Ok(Background(Arc::new(Owner(shared))))
    }
}

impl<T> Background<T> {
    /// Adds a job. If the queue is full or stopping, counts the job as dropped and returns false.
    pub fn push(&self, job: T) -> bool {
        let capacity = self.shared().capacity;
        let pushed = self.push_with(|jobs| {
            let fits = jobs.len() < capacity;
            fits.then(|| jobs.push_back(job)).is_some()
        });
        if !pushed {
            self.count_dropped();
        }
        pushed
    }

    /// Modifies the waiting jobs. Returns the result of `change`, or false if stopping.
    pub fn push_with(&self, change: impl FnOnce(&mut VecDeque<T>) -> bool) -> bool {
        let mut queue = self.shared().lock();
        let changed = !queue.stopping && !queue.ended && change(&mut queue.jobs);
        self.shared().changed.notify_all();
        changed
    }

    /// Counts a job as dropped.
    pub fn count_dropped(&self) {
        self.shared().dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of dropped jobs.
    pub fn dropped(&self) -> u64 {
        self.shared().dropped.load(Ordering::Relaxed)
    }

    /// The current load.
    pub fn load(&self) -> Load {
        let queue = self.shared().lock();
        Load {
            waiting: queue.jobs.len(),
            busy_for: queue.busy_since.map(|since| since.elapsed()),
        }
    }

    /// Waits until the thread has requested its first job or ended. Returns false after `within`.
    pub fn wait_until_ready(&self, within: Duration) -> bool {
        self.shared()
            .wait(within, |queue| queue.ready || queue.ended)
    }

    /// Waits until all jobs are done. Returns false after `within`.
    pub fn drain(&self, within: Duration) -> bool {
        self.shared().wait(within, |queue| {
            queue.ended || (queue.jobs.is_empty() && queue.busy_since.is_none())
        })
    }

    /// Rejects further jobs and waits until the others are done and the thread has ended. Returns
    /// false after `within`; the thread is then left behind.
    pub fn stop(&self, within: Duration) -> bool {
        self.shared().lock().stopping = true;
        self.shared().changed.notify_all();
        self.shared().wait(within, |queue| queue.ended)
    }

    fn shared(&self) -> &Shared<T> {
        &self.0.0
    }
}

impl<T> Jobs<T> {
    /// Number of dropped jobs.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Sleeps for `time`, or until the queue is stopping.
    pub fn pause(&self, time: Duration) {
        self.0.lock().busy_since = None;
        self.0.wait(time, |queue| queue.stopping);
    }

    /// Puts a job back in front unless `replaced` is true for a waiting one. Drops it if stopping.
    pub fn put_back(&self, job: T, replaced: impl Fn(&T, &T) -> bool) {
        let mut queue = self.0.lock();
        if queue.stopping {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        } else if !queue.jobs.iter().any(|newer| replaced(&job, newer)) {
            queue.jobs.push_front(job);
        }
    }
}

impl<T> Iterator for Jobs<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let mut queue = self.0.lock();
        queue.busy_since = None;
        queue.ready = true;
        self.0.changed.notify_all();
        let waiting = |queue: &mut Queue<T>| queue.jobs.is_empty() && !queue.stopping;
        let mut queue = self
            .0
            .changed
            .wait_while(queue, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        let job = queue.jobs.pop_front()?;
        queue.busy_since = Some(Instant::now());
        Some(job)
    }
}

impl<T> Drop for Jobs<T> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, within: Duration, done: impl Fn(&Queue<T>) -> bool) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), within, |queue| !done(queue));
        let (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        done(&queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn a_full_queue_drops_and_a_stopped_one_does_what_it_has() {
        let (start, started) = mpsc::channel::<()>();
        let (done, results) = mpsc::channel();
        let queue = Background::start("test", 2, SMALL_STACK, move |jobs| {
            let _ = started.recv();
            jobs.for_each(|job| done.send(job).unwrap());
        })
        .unwrap();
        assert!(!queue.wait_until_ready(Duration::from_millis(10)));
        assert_eq!([1, 2, 3].map(|job| queue.push(job)), [true, true, false]);
        assert_eq!((queue.dropped(), queue.load().waiting), (1, 2));
        assert!(queue.load().busy_for.is_some());
        assert!(!queue.drain(Duration::from_millis(10)));
        assert!(!queue.stop(Duration::from_millis(10)));
        assert!(!queue.push(4) && !queue.push_with(|_| true));
        start.send(()).unwrap();
        assert!(queue.stop(SOON) && queue.drain(SOON));
        assert_eq!(results.iter().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn jobs_can_be_replaced_and_put_back() {
        let (done, results) = mpsc::channel();
        let (start, started) = mpsc::channel::<()>();
        let queue = Background::start("test", 9, SMALL_STACK, move |jobs| {
            let _ = started.recv();
            let first = jobs.next().unwrap();
            jobs.put_back(first, |job, newer| newer % 10 == job % 10);
            jobs.put_back(7, |_, _| true);
            jobs.pause(Duration::from_millis(1));
            jobs.for_each(|job| done.send(job).unwrap());
        })
        .unwrap();
        assert!(queue.push(1) && queue.push(2));
        assert!(
            queue.push_with(|jobs| jobs.iter_mut().any(|job| *job == 2 && {
                *job = 22;
                true
            }))
        );
        start.send(()).unwrap();
        assert!(queue.wait_until_ready(SOON) && queue.drain(SOON));
        assert!(
            queue.load()
                == Load {
                    waiting: 0,
                    busy_for: None
                }
        );
        // The thread ends with the last of its owners.
        drop(queue);
        assert_eq!(results.iter().collect::<Vec<_>>(), [1, 22]);
    }
}
