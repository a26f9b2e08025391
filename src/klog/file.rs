//! Follows a log file like `tail -F`, for a forwarded kernel log or if /dev/kmsg is unreadable.
//!
//! # Threads
//!
//! The *follower* ([`followed`]) reads the file once a second and whenever it is woken. The
//! *watcher* ([`watch`]) runs linemux, whose file watch wakes the follower. linemux only gives
//! hints: no data passes through it, and the follower never calls it, waits for it or takes a lock
//! that it holds while working.
//!
//! linemux 0.3.0 has faults that cannot be configured away:
//!
//! | fault | remedy |
//! |---|---|
//! | its reader loops forever when the directory of a watched file vanishes | its reader ([`linemux::MuxedLines`]) is not used; its watch ([`linemux::MuxedEvents`]) then returns `None` at once, which ends it |
//! | no events after a rotation if the new file is already as long as the old one | the follower identifies files by device and inode, and linemux is restarted after every rotation |
//! | partial lines, `Err` for bytes that are not UTF-8, lines of any length in memory | the follower splits the data into lines |
//! | opens a FIFO and waits forever, follows symbolic links | it opens nothing |
//! | no more events (the failure of a new watch is ignored) | restarted after unannounced growth twice in a row |
//! | its event queue is unbounded | 1000 events or more within 20 ms: stopped for 10 s |
//! | adding a file waits for its notify thread, without limit while events keep coming | only the watcher waits |
//! | panics if the system cannot start a thread | it is started only after a trial thread could be |
//!
//! # No line is lost or delivered twice
//!
//! A *generation* is one file that was found at the path. It is held open, so its inode number
//! cannot be reused. Every read starts where the last one ended: each byte is delivered once and in
//! order, however often the follower is woken.
//!
//! - *Rotation by renaming, deletion, a new directory:* another inode at the path is a new
//!   generation, read from its start. The old one is read until it has been silent for a minute,
//!   because its writer may not have reopened its log yet. To keep the order, the sizes of all
//!   generations are taken first, newest to oldest; then they are read, oldest to newest, each up
//!   to that size. A line below the newer file's size was written before the older file's size was
//!   taken, so what the same writer wrote before it into the older file lies below that size.
//! - *Truncation:* every read starts with up to 256 bytes that were read before. If they have
//!   changed, the file was truncated, even if it has grown beyond the old offset since. It is then
//!   read from its start, unless it starts with the same bytes as before: then it was only
//!   shortened, and the rest was read already.
//!
//! What can be lost: lines of a file that came and went between two checks; lines truncated away,
//! or written to a file that was shortened but not emptied, before the next check; an unfinished
//! line at the end of an abandoned file, or one of more than 8 KiB where reading starts. Checks are
//! about 20 ms apart while linemux watches, and at most a second.
//!
//! # What is followed
//!
//! Only a regular file. A symbolic link at the path is refused, whoever owns it: who may write to
//! the directory could make root read any file. Links further up in the path are followed, at the
//! operator's responsibility. Any user may be able to have a line written to the file.
//!
//! The content at the start is old and is skipped, except for an unfinished last line. A file that
//! appears later is new and is read from its start, even if it is an old one that was moved there.
//! The follower may hang together with a file system; its state then reports that.

mod followed;
mod shared;
mod watch;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::Builder;
use std::time::Duration;

use self::followed::Followed;
pub use self::followed::{OnLine, last_lines};
use self::shared::Shared;
pub use self::shared::{Down, FileState};

/// A check that takes longer is reported as hanging.
const HANG: Duration = Duration::from_secs(10);
/// How long [`FileSource::stop`] waits for the threads.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// Stack size of each thread: mlockall(2) may keep all of it in memory.
const STACK: usize = 256 * 1024;

/// How the file is followed.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Interval between checks without a wake-up.
    pub check: Duration,
    /// Whether linemux watches the file, so that lines arrive at once and not at the next check.
    pub watch: bool,
    /// How long after its last line a file that has left the path is still read.
    pub keep: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            check: Duration::from_secs(1),
            watch: true,
            keep: Duration::from_secs(60),
        }
    }
}

/// Follows a log file on its own threads.
#[derive(Debug)]
pub struct FileSource {
    shared: Arc<Shared>,
    /// Disconnected when both threads have ended.
    ended: mpsc::Receiver<()>,
}

impl FileSource {
    /// Starts to follow a file on two new threads.
    pub fn start(settings: Settings, path: PathBuf, on_line: OnLine) -> io::Result<FileSource> {
        let shared = Arc::new(Shared::default());
        let (ending, ended) = mpsc::channel();
        if settings.watch {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()?;
            let (shared, path, ending) = (Arc::clone(&shared), path.clone(), ending.clone());
            spawn("klog-linemux", move || {
                watch::run(&runtime, &shared, &path, settings.check);
                drop(ending);
            })?;
        }
        let (of_follower, followed) = (Arc::clone(&shared), Followed::new(path, on_line));
        let following = spawn("klog-files", move || {
            follow(&of_follower, settings, followed);
            drop(ending);
        });
        if following.is_err() {
            shared.stop();
        }
        following.map(|()| FileSource { shared, ended })
    }

    /// The state of the file.
    pub fn state(&self) -> FileState {
        let mut state = self.shared.state().clone();
        if let Some(time) = self.shared.busy_for().filter(|time| *time >= HANG) {
            state.down = Some(Down::Hangs(time));
        }
        state
    }

    /// Ends both threads. Returns false if one hangs and is left behind.
    pub fn stop(self) -> bool {
        self.shared.stop();
        self.ended.recv_timeout(SHUTDOWN_TIMEOUT) == Err(RecvTimeoutError::Disconnected)
    }
}

impl Drop for FileSource {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let builder = Builder::new().name(name.to_owned()).stack_size(STACK);
    builder.spawn(run).map(drop)
}

fn follow(shared: &Shared, settings: Settings, mut followed: Followed) {
    // What linemux was last requested to watch.
    let mut watched = None;
    // Consecutive checks that found growth which linemux had not announced.
    let mut unannounced = 0;
    let mut woken = false;
    while shared.goes_on() {
        let grew = followed.look(settings.keep, &|| shared.goes_on());
        shared.state().clone_from(&followed.state);
        unannounced = if grew && !woken { unannounced + 1 } else { 0 };
        let present = followed.at_path();
        // linemux watches a file that is gone, or has stopped reporting events.
        if present != watched || unannounced > 1 {
            shared.request_watch(present.is_some());
            watched = present;
            unannounced = 0;
        }
        shared.rests();
        woken = shared.wait(settings.check);
    }
}
