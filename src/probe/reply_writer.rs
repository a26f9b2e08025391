//! Sends the helper's replies on a separate thread: replies found before a step that hangs must not
//! hang with it, and sending each one separately would cost two context switches per image.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::protocol::{Reply, append};
use crate::model::path::PlainPath;

/// Maximum time that replies are held back to be sent together.
const GATHER: Duration = Duration::from_millis(10);
/// Maximum time between beats as long as no step hangs.
const BEAT: Duration = Duration::from_millis(100);
/// A step that takes longer is reported by name. Must be shorter than any deadline.
const SLOW: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    /// The current file and since when, until it was reported as slow.
    at_hand: Option<(PathBuf, Instant)>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    something: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A panic elsewhere cannot leave bytes or a path inconsistent.
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

    /// Queues a reply; it is sent within [`GATHER`].
    pub(super) fn push(&mut self, reply: &Reply) {
        let mut waiting = self.shared.lock();
        let was_empty = waiting.lines.is_empty();
        if append(&mut waiting.lines, reply).is_err() {
            // Cannot happen with the protocol's types; without an answer the other side would wait.
            std::process::abort();
        }
        drop(waiting);
        self.last = Instant::now();
        if was_empty {
            self.shared.something.notify_one();
        }
    }

    /// Sends a beat if nothing was sent for `BEAT`. Called between steps.
    pub(super) fn beat(&mut self) {
        if self.last.elapsed() >= BEAT {
            self.push(&Reply::Beat);
        }
    }

    /// Records the file that the next steps concern, in case they hang.
    pub(super) fn at_hand(&mut self, path: &Path) {
        let mut waiting = self.shared.lock();
        let file = (path.to_owned(), Instant::now());
        if waiting.at_hand.replace(file).is_none() {
            // The thread may be waiting without a timeout.
            self.shared.something.notify_one();
        }
    }

    /// Sends the last reply of a request at once.
    pub(super) fn done(&mut self) -> io::Result<()> {
        let mut waiting = self.shared.lock();
        waiting.at_hand = None;
        let mut lines = std::mem::take(&mut waiting.lines);
        append(&mut lines, &Reply::Done)?;
        // Under the lock, so that the sending thread cannot send in between.
        self.socket.write_all(&lines)
    }
}

fn send_for_ever(shared: &Shared, mut out: UnixStream) {
    loop {
        let mut waiting = shared.lock();
        while waiting.lines.is_empty() {
            let at_hand = waiting
                .at_hand
                .take_if(|(_, since)| since.elapsed() >= SLOW);
            if let Some((path, _)) = at_hand {
                // Messages of the protocol can always be serialised.
                let _ = append(&mut waiting.lines, &Reply::Slow(PlainPath(path)));
                break;
            }
            let since = waiting.at_hand.as_ref().map(|(_, since)| since.elapsed());
            let left = since.map_or(Duration::MAX, |since| SLOW.saturating_sub(since));
            let waited = shared.something.wait_timeout(waiting, left);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(waiting);
        std::thread::sleep(GATHER);
        // Sent under the lock, or a later `done` could overtake it.
        let mut waiting = shared.lock();
        let lines = std::mem::take(&mut waiting.lines);
        if out.write_all(&lines).is_err() {
            // The other side is gone, so this process has no further purpose.
            std::process::exit(0);
        }
    }
}
