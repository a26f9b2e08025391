//! A log file, followed as `tail -F` does: for hosts that forward the kernel's log to one, or where
//! /dev/kmsg cannot be read.
//!
//! # Threads
//!
//! The *follower* ([`followed`]) reads the file: once a second, and at once when it is woken. The
//! *watcher* ([`watch`]) runs linemux, whose watch on the file wakes the follower. linemux is only a
//! hint: no byte goes through it, and the follower never calls it, never waits for it and takes no
//! lock that it holds while it works.
//!
//! linemux 0.3.0 has faults that no setting turns off:
//!
//! | fault | remedy |
//! |---|---|
//! | its reader spins for ever when the directory of a watched file vanishes | its reader ([`linemux::MuxedLines`]) is not used; its watch ([`linemux::MuxedEvents`]) then returns `None` at once, which ends it |
//! | silent after a rotation when the new file is already as long as the old one | the follower identifies files by device and inode, and linemux is started anew after every rotation |
//! | pieces of lines, `Err` for bytes that are no UTF-8, a line of any length in memory | the follower cuts bytes into lines |
//! | opens a FIFO and waits for ever, follows symbolic links | opens nothing |
//! | falls silent (the failure of a new watch is ignored) | growth that it did not announce, twice running: started anew |
//! | its queue of events has no limit | more than 1000 events in 20 ms: it is dropped for 10 s |
//! | waits for its notify thread when it adds a file, without limit while events pour in | only the watcher waits |
//! | panics when the system gives no thread | it is started only after a trial thread could be |
//!
//! # No line is lost and none comes twice
//!
//! A *generation* is one file that was found at the path, held open: its inode cannot become another
//! file's. Every read begins where the last one ended, so each byte is delivered once and in order,
//! however often the follower is woken.
//!
//! - *Rotation by renaming, deletion, a new directory:* another inode at the path is a new
//!   generation, read from its start. The old one is still read until it has been silent for a
//!   minute: its writer may not have reopened its log yet. Order is kept: the sizes of all generations are taken
//!   first, from the newest to the oldest; then they are read in the other order, each up to that
//!   size. A line below the newer file's size was written before the older file's size was taken,
//!   so what the same writer wrote before it into the older file lies below that size.
//! - *Truncation:* every read begins with up to 256 bytes that were read before. If they are not
//!   there any more, the file was truncated, even if it has grown past the old place since. It is
//!   then read from its start, unless it begins as it did before: then it was only cut shorter, and
//!   what is left of it was read.
//!
//! Lost can be: lines of a file that came and went between two looks; lines that were truncated
//! away, or written after a file was cut shorter but not to nothing, before the next look; an
//! unfinished line at the end of a file that is not written any more, or of more than 8 KiB where
//! reading begins. Between two looks lie some 20 ms while linemux watches, and a second at most.
//!
//! # What is followed
//!
//! A regular file. A symbolic link in its place is refused, whoever owns it: where others may write
//! to the directory, they could make root read any file. Links further up in the path are followed;
//! they are the operator's business. Any user may be able to have a line written to the file.
//!
//! What the file holds at the start is old and is skipped, but for an unfinished last line. A file
//! that appears later is new and is read from its beginning, also if it is an old one that was moved
//! there.
//!
//! The follower may hang in a file system that hangs; its state then reports it.

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
pub use self::followed::OnLine;
use self::shared::Shared;
pub use self::shared::{Down, FileState};

/// A look that takes longer hangs.
const HANG: Duration = Duration::from_secs(10);
/// How long [`FileSource::stop`] waits for the threads.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// Stack of each thread: mlockall(2) may keep all of it in memory.
const STACK: usize = 256 * 1024;

/// How to follow.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How often the file is looked at without being woken.
    pub check: Duration,
    /// Whether linemux watches the file, so that lines come at once and not at the next check.
    pub watch: bool,
    /// How long a file that is not at its path any more is read for, after its last line.
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

/// Follows a log file on threads of its own.
#[derive(Debug)]
pub struct FileSource {
    shared: Arc<Shared>,
    /// Closes when both threads have ended.
    ended: mpsc::Receiver<()>,
}

impl FileSource {
    /// Begins to follow.
    ///
    /// # Errors
    /// When no thread can be started.
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

    /// Ends both threads. False if one hangs; it is left behind.
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

/// The follower's thread.
fn follow(shared: &Shared, settings: Settings, mut followed: Followed) {
    // What linemux was last asked to watch.
    let mut watched = None;
    // Looks in a row that found something that linemux had not announced.
    let mut unannounced = 0;
    let mut woken = false;
    while shared.goes_on() {
        let grew = followed.look(settings.keep, &|| shared.goes_on());
        shared.state().clone_from(&followed.state);
        unannounced = if grew && !woken { unannounced + 1 } else { 0 };
        let present = followed.at_path();
        // linemux watches what is not there any more, or has fallen silent.
        if present != watched || unannounced > 1 {
            shared.request_watch(present.is_some());
            watched = present;
            unannounced = 0;
        }
        shared.rests();
        woken = shared.wait(settings.check);
    }
}
