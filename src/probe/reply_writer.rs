//! The helper's replies on their way out.
//!
//! A thread of its own sends them: what was found before a step that hangs must not hang with it,
//! and sending each reply by itself would cost two context switches an image.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::protocol::{PlainPath, Reply, append};

/// Replies wait at most this long for others to be sent with.
const GATHER: Duration = Duration::from_millis(10);
/// A beat is sent at least this often, as long as no step hangs.
const BEAT: Duration = Duration::from_millis(100);
/// What takes longer is reported by name. Shorter than any deadline, or it would come too late.
const SLOW: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Waiting {
    frames: Vec<u8>,
    /// The file at hand and since when, until it was reported as slow.
    at_hand: Option<(PathBuf, Instant)>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    something: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Bytes and a path are whole at any time; a panic elsewhere does not make them wrong.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes replies and sends them soon.
pub(super) struct ReplyWriter {
    shared: Arc<Shared>,
    socket: UnixStream,
    last: Instant,
}

impl ReplyWriter {
    /// Starts the sending thread.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            something: Condvar::new(),
        });
        let (theirs, out) = (Arc::clone(&shared), socket.try_clone()?);
        std::thread::Builder::new()
            .name("reply_writer".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || send_for_ever(&theirs, out))?;
        Ok(ReplyWriter {
            shared,
            socket,
            last: Instant::now(),
        })
    }

    /// Takes a reply; it is sent within [`GATHER`].
    pub(super) fn push(&mut self, reply: &Reply) {
        let mut waiting = self.shared.lock();
        let was_empty = waiting.frames.is_empty();
        if append(&mut waiting.frames, reply).is_err() {
            // Cannot happen with the types of the protocol; without an answer the other side
            // would wait, so end instead.
            std::process::abort();
        }
        drop(waiting);
        self.last = Instant::now();
        if was_empty {
            self.shared.something.notify_one();
        }
    }

    /// Sends a beat if nothing was sent for a while. Called between steps.
    pub(super) fn beat(&mut self) {
        if self.last.elapsed() >= BEAT {
            self.push(&Reply::Beat);
        }
    }

    /// Names the file that the next steps are about, in case they hang.
    pub(super) fn at_hand(&mut self, path: &Path) {
        let mut waiting = self.shared.lock();
        let file = (path.to_owned(), Instant::now());
        if waiting.at_hand.replace(file).is_none() {
            // The thread may wait for something to send, and would not look at the clock.
            self.shared.something.notify_one();
        }
    }

    /// Sends the last reply of a request at once.
    pub(super) fn done(&mut self) -> io::Result<()> {
        let mut waiting = self.shared.lock();
        waiting.at_hand = None;
        let mut frames = std::mem::take(&mut waiting.frames);
        append(&mut frames, &Reply::Done)?;
        // Under the lock, so that the sending thread cannot get in between.
        self.socket.write_all(&frames)
    }
}

fn send_for_ever(shared: &Shared, mut out: UnixStream) {
    loop {
        let mut waiting = shared.lock();
        while waiting.frames.is_empty() {
            let left = |since: &Instant| SLOW.saturating_sub(since.elapsed());
            let left = waiting.at_hand.as_ref().map(|(_, since)| left(since));
            waiting = match left {
                Some(Duration::ZERO) => {
                    if let Some((path, _)) = waiting.at_hand.take() {
                        // The message is one of the protocol's and can be written.
                        let _ = append(&mut waiting.frames, &Reply::Slow(PlainPath(path)));
                    }
                    waiting
                }
                Some(left) => {
                    let waited = shared.something.wait_timeout(waiting, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = shared.something.wait(waiting);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        drop(waiting);
        std::thread::sleep(GATHER);
        // Sent under the lock, or a later `done` could overtake it.
        let mut waiting = shared.lock();
        let frames = std::mem::take(&mut waiting.frames);
        if out.write_all(&frames).is_err() {
            // The other side is gone; this process has no other purpose.
            std::process::exit(0);
        }
    }
}
