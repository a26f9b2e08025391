//! Log files, followed as `tail -F` does: for hosts that forward the kernel's log to one, or where
//! /dev/kmsg cannot be read.
//!
//! # Who does what
//!
//! Two threads. The *follower* reads the files. It looks at every file once a second, whatever
//! happens, and at once when it is woken. The *watcher* runs linemux, whose watch on the files
//! wakes the follower. linemux is only ever a hint: no byte goes through it, and the follower never
//! calls it, never waits for it and takes no lock that it holds while it works.
//!
//! linemux 0.3.0 has faults that no setting turns off, and this is what becomes of each:
//!
//! | fault | here |
//! |---|---|
//! | its reader spins for ever when the directory of a watched file vanishes | its reader ([`linemux::MuxedLines`]) is not used; its watch ([`linemux::MuxedEvents`]) then returns `None` at once, which ends it |
//! | silent after a rotation when the new file is already as long as the old one | the follower knows files by device and inode, and linemux is made anew after every rotation |
//! | pieces of lines, `Err` for bytes that are no UTF-8, a line of any length in memory | bytes are read and cut into lines by us |
//! | opens a FIFO and waits for ever, follows symbolic links | opens nothing |
//! | falls silent (the failure of a new watch is ignored) | growth that nobody announced, twice running: made anew |
//! | its queue of events has no limit | more than 1000 events in 20 ms: it is dropped for 10 s |
//! | waits for its notify thread when it adds a file, without limit while events pour in | that is the watcher's time, not the follower's |
//! | panics when the system gives no thread | none is made unless a trial thread could be started just before |
//!
//! # Why no line is lost and none comes twice
//!
//! A *generation* is one file that was found at the path, held open: its inode cannot become another
//! file's. It has a position of its own, and every read begins where the last one ended; what is
//! handed on is therefore the file's content, each byte once and in order, however often and
//! whenever the follower is woken. linemux decides when, never what.
//!
//! - *Rotation by renaming, deletion, a new directory:* another inode at the path is a new
//!   generation, read from its start. The old one is still read, until it has been silent for a
//!   minute: its writer may not know yet. Order is kept: the sizes of all generations are taken
//!   first, from the newest to the oldest; then they are read in the other order, each up to that
//!   size. A line below the newer file's mark was written before the older file's mark was taken,
//!   so what the same writer wrote before it into the older file lies below that mark.
//! - *Truncation:* every read begins with up to 256 bytes that were read before. If they are not
//!   there any more, the file was truncated, even if it has grown past the old place since. It is
//!   then read from its start, unless it begins as it did before: then it was only cut shorter, and
//!   what is left of it was read.
//!
//! What can be lost: lines of a file that came and went between two looks; lines that were truncated
//! away before the next look; lines that were written, after a file was cut shorter but not to
//! nothing, before the next look; an unfinished line at the end of a file that is not written any
//! more, or of more than 8 KiB where reading begins. Between two looks lie some 20 ms while linemux
//! watches, and a second at most.
//!
//! # What is followed
//!
//! A regular file. A symbolic link in its place is refused, whoever owns it: where others may write
//! to the directory, they could make root read any file. Links further up in the path are followed;
//! who may change them is in the operator's hands. So is what the file tells: anybody can have a
//! line written to it.
//!
//! What a file holds at the start is old and is passed over, but for an unfinished last line. A file
//! that appears later is new and is read from its beginning, also if it is an old one that somebody
//! moved there.
//!
//! The follower may hang in a file system that hangs; nothing else does, and its state says so. All
//! files share it: to keep those of several file systems apart, start several sources.

use std::collections::HashSet;
use std::fs::File;
use std::future::Future as _;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::Builder;
use std::time::{Duration, Instant};

use linemux::MuxedEvents;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, SeekFrom, Stat, fstat, open, seek, statat};
use rustix::io::{Errno, pread, retry_on_intr};
use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use super::tail::{Assembler, FINGERPRINT, Line, MAX_LINE, Position};

/// Bytes of a read.
const CHUNK: usize = 64 * 1024;
/// Generations of one file that are kept open. More of them within a minute is no rotation.
const GENERATIONS: usize = 8;
/// Between two wakes: a busy log is read fifty times a second and not at every line.
const PAUSE: Duration = Duration::from_millis(20);
/// Events within one pause that linemux may bring.
const FLOOD: u32 = 1000;
/// How long it goes without linemux after more of them.
const FLOOD_REST: Duration = Duration::from_secs(10);
/// Between two linemuxes.
const REST: Duration = Duration::from_millis(100);
/// A look that takes longer is one that hangs.
const HANG: Duration = Duration::from_secs(10);
/// How long to wait for the threads to end.
const FAREWELL: Duration = Duration::from_secs(2);
/// Stack of each thread: mlockall(2) may keep all of it in memory.
const STACK: usize = 256 * 1024;

/// What is called, on the follower's thread, for every line. It should not wait.
pub type OnLine = Box<dyn FnMut(&Path, Line<'_>) + Send>;

/// How to follow.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How often every file is looked at without being told.
    pub check: Duration,
    /// Whether linemux watches the files, so that lines come at once and not at the next check.
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

/// Why a file is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Down {
    /// The first look is still to come.
    #[error("not looked at yet")]
    NotYet,
    /// Nothing is there.
    #[error("there is no such file")]
    Missing,
    /// A link, which could lead anywhere.
    #[error("it is a symbolic link; configure the file that it leads to")]
    Link,
    /// Something that is no file of lines.
    #[error("it is {0}, not a regular file")]
    NotRegular(&'static str),
    /// The system refused.
    #[error("cannot {0} it: {1}")]
    Failed(&'static str, Errno),
    /// The follower has been busy for long: its file system hangs.
    #[error("no answer from the file system for {} s", .0.as_secs())]
    Hangs(Duration),
}

/// One file and how it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileState {
    /// As it was configured.
    pub path: PathBuf,
    /// Why it is not followed; `None` if it is.
    pub down: Option<Down>,
    /// Inode number of the file at the path, and how far it has been read.
    pub position: Option<(u64, u64)>,
    /// Lines that were delivered.
    pub lines: u64,
    /// Those of them that lost their end.
    pub cut: u64,
}

impl FileState {
    fn new(path: PathBuf) -> FileState {
        FileState {
            path,
            down: Some(Down::NotYet),
            position: None,
            lines: 0,
            cut: 0,
        }
    }
}

/// How linemux goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchState {
    /// Whether it is watching.
    pub active: bool,
    /// How many there have been.
    pub made: u64,
    /// How often they woke the follower.
    pub wakes: u64,
}

/// Follows log files on threads of its own.
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
    /// When there is no thread to be had.
    pub fn start(files: Vec<PathBuf>, on_line: OnLine) -> io::Result<FileSource> {
        FileSource::start_with(Settings::default(), files, on_line)
    }

    /// Begins to follow, in another way than usual.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start_with(
        settings: Settings,
        mut files: Vec<PathBuf>,
        on_line: OnLine,
    ) -> io::Result<FileSource> {
        let mut known = HashSet::new();
        files.retain(|path| known.insert(path.clone()));
        let shared = Arc::new(Shared::new(&files));
        let (ending, ended) = mpsc::channel();
        if settings.watch {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()?;
            let (shared, ending) = (Arc::clone(&shared), ending.clone());
            spawn("klog-linemux", move || {
                watch(&runtime, &shared, settings.check);
                drop(ending);
            })?;
        }
        let follower = Follower {
            shared: Arc::clone(&shared),
            settings,
            files: files.into_iter().map(Followed::new).collect(),
            on_line,
            buffer: vec![0; FINGERPRINT + CHUNK].into_boxed_slice(),
            watched: Vec::new(),
            unannounced: 0,
        };
        let following = spawn("klog-files", move || {
            follower.run();
            drop(ending);
        });
        if following.is_err() {
            shared.stop();
        }
        following.map(|()| FileSource { shared, ended })
    }

    /// How every file goes.
    #[must_use]
    pub fn state(&self) -> Vec<FileState> {
        let mut states = self.shared.states().clone();
        if let Some(time) = self.shared.busy_for().filter(|time| *time >= HANG) {
            for state in &mut states {
                state.down = Some(Down::Hangs(time));
            }
        }
        states
    }

    /// How linemux goes.
    #[must_use]
    pub fn watch_state(&self) -> WatchState {
        WatchState {
            active: self.shared.watching.load(Ordering::Relaxed),
            made: self.shared.made.load(Ordering::Relaxed),
            wakes: self.shared.wakes.load(Ordering::Relaxed),
        }
    }

    /// Ends both threads, and tells whether they have ended: one that hangs is left behind.
    pub fn stop(self) -> bool {
        self.shared.stop();
        self.ended.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Disconnected)
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

/// What the two threads and the owner share. Every lock is held for a copy and no longer.
#[derive(Debug)]
struct Shared {
    stopping: AtomicBool,
    /// Whether the follower is to look.
    woken: Mutex<bool>,
    bell: Condvar,
    states: Mutex<Vec<FileState>>,
    epoch: Instant,
    /// When the follower last began something, in milliseconds since the epoch and one; 0 while it
    /// waits.
    busy_since: AtomicU64,
    wanted: Mutex<Wanted>,
    wanted_changed: Notify,
    watching: AtomicBool,
    made: AtomicU64,
    wakes: AtomicU64,
}

/// What linemux is to watch. A new number asks for a new linemux.
#[derive(Debug, Clone, Default)]
struct Wanted {
    number: u64,
    paths: Vec<PathBuf>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(files: &[PathBuf]) -> Shared {
        let states = files.iter().cloned().map(FileState::new);
        Shared {
            stopping: AtomicBool::new(false),
            woken: Mutex::new(false),
            bell: Condvar::new(),
            states: Mutex::new(states.collect()),
            epoch: Instant::now(),
            busy_since: AtomicU64::new(0),
            wanted: Mutex::default(),
            wanted_changed: Notify::new(),
            watching: AtomicBool::new(false),
            made: AtomicU64::new(0),
            wakes: AtomicU64::new(0),
        }
    }

    fn states(&self) -> MutexGuard<'_, Vec<FileState>> {
        lock(&self.states)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
        self.wanted_changed.notify_one();
    }

    fn wake(&self) {
        *lock(&self.woken) = true;
        self.bell.notify_one();
    }

    fn hint(&self) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
        self.wake();
    }

    /// Waits until woken, but no longer than `time`; whether it was woken.
    fn wait(&self, time: Duration) -> bool {
        let woken = lock(&self.woken);
        let waited = self.bell.wait_timeout_while(woken, time, |woken| !*woken);
        let (mut woken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut woken)
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Called by the follower before everything that could hang; whether it is to go on.
    fn goes_on(&self) -> bool {
        self.busy_since
            .store(self.milliseconds().saturating_add(1), Ordering::Relaxed);
        !self.is_stopping()
    }

    fn rests(&self) {
        self.busy_since.store(0, Ordering::Relaxed);
    }

    fn busy_for(&self) -> Option<Duration> {
        let since = self.busy_since.load(Ordering::Relaxed).checked_sub(1)?;
        let time = self.milliseconds().saturating_sub(since);
        Some(Duration::from_millis(time))
    }

    fn want(&self, paths: Vec<PathBuf>) {
        let mut wanted = lock(&self.wanted);
        wanted.number += 1;
        wanted.paths = paths;
        self.wanted_changed.notify_one();
    }
}

/// What the file is, other than its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(stat: &Stat) -> FileId {
        FileId {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// The follower's thread.
struct Follower {
    shared: Arc<Shared>,
    settings: Settings,
    files: Vec<Followed>,
    on_line: OnLine,
    buffer: Box<[u8]>,
    /// What linemux was last asked to watch.
    watched: Vec<Option<FileId>>,
    /// How many looks in a row found something that linemux had not told.
    unannounced: u32,
}

impl Follower {
    fn run(mut self) {
        let mut woken = false;
        while self.shared.goes_on() {
            let mut grew = false;
            for (place, file) in self.files.iter_mut().enumerate() {
                let going_on = || self.shared.goes_on();
                grew |= file.look(
                    self.settings.keep,
                    &mut self.buffer,
                    &mut self.on_line,
                    &going_on,
                );
                if let Some(state) = self.shared.states().get_mut(place) {
                    state.clone_from(&file.state);
                }
            }
            self.tend_watch(grew && !woken);
            self.shared.rests();
            woken = self.shared.wait(self.settings.check);
        }
    }

    /// Has linemux made anew if it watches what is not there any more, or seems to sleep.
    fn tend_watch(&mut self, unannounced: bool) {
        let present: Vec<Option<FileId>> = self.files.iter().map(Followed::at_path).collect();
        self.unannounced = if unannounced { self.unannounced + 1 } else { 0 };
        if present != self.watched || self.unannounced > 1 {
            let files = self.files.iter();
            let followed = files.filter(|file| file.at_path().is_some());
            self.shared
                .want(followed.map(|file| file.state.path.clone()).collect());
            self.watched = present;
            self.unannounced = 0;
        }
    }
}

/// One of the files.
struct Followed {
    state: FileState,
    /// Oldest first.
    generations: Vec<Generation>,
    before: Before,
}

/// What was at the path before the first generation was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Not known: what is found may be old.
    Unknown,
    /// A file that could not be opened. It may be old.
    Closed(FileId),
    /// Not what is there now: that is new.
    Nothing,
}

impl Followed {
    fn new(path: PathBuf) -> Followed {
        Followed {
            state: FileState::new(path),
            generations: Vec::new(),
            before: Before::Unknown,
        }
    }

    /// The file that is followed, if it is at its path.
    fn at_path(&self) -> Option<FileId> {
        let newest = self.generations.last()?;
        newest.at_path.then_some(newest.id)
    }

    /// Sees what is at the path and reads what is new; whether anything was, in the file at the
    /// path.
    fn look(
        &mut self,
        keep: Duration,
        buffer: &mut [u8],
        on_line: &mut OnLine,
        going_on: &dyn Fn() -> bool,
    ) -> bool {
        let mut down = self.look_at_path().err();

        // The marks from the newest to the oldest, the reading the other way: see the module.
        let mut marks = Vec::with_capacity(GENERATIONS);
        for generation in self.generations.iter().rev() {
            marks.push(fstat(&generation.file));
        }
        let mut grew = false;
        for (generation, mark) in self.generations.iter_mut().zip(marks.into_iter().rev()) {
            let state = &mut self.state;
            let mut deliver = |line: Line<'_>| {
                state.lines += 1;
                state.cut += u64::from(line.cut);
                on_line(&state.path, line);
            };
            let read = mark.and_then(|mark| {
                generation.linked = mark.st_nlink > 0;
                generation.read_to(size_of(&mark), buffer, &mut deliver, going_on)
            });
            match read {
                Ok(read) => {
                    if read {
                        generation.touched = Instant::now();
                    }
                    grew |= read && generation.at_path;
                }
                Err(error) => down = down.or(Some(Down::Failed("read", error))),
            }
        }
        self.retire(keep);
        let newest = self.generations.last().filter(|newest| newest.at_path);
        self.state.position = newest.map(|newest| (newest.id.inode, newest.position.offset()));
        self.state.down = down;
        grew
    }

    /// Makes the file at the path the newest generation.
    fn look_at_path(&mut self) -> Result<(), Down> {
        let found = match identify(&self.state.path) {
            Ok(id) if self.is_open(id) => Ok(id),
            Ok(id) => self.open(id),
            Err(down) => {
                if matches!(down, Down::Missing | Down::Link | Down::NotRegular(_)) {
                    self.before = Before::Nothing;
                }
                Err(down)
            }
        };
        let id = found.ok();
        for generation in &mut self.generations {
            let at_path = Some(generation.id) == id;
            if generation.at_path && !at_path {
                generation.touched = Instant::now();
            }
            generation.at_path = at_path;
        }
        // Stable: only the one at the path moves, to the end.
        self.generations
            .sort_by_key(|generation| generation.at_path);
        found.map(drop)
    }

    fn is_open(&self, id: FileId) -> bool {
        self.generations.iter().any(|known| known.id == id)
    }

    fn open(&mut self, seen: FileId) -> Result<FileId, Down> {
        if self.before == Before::Unknown {
            self.before = Before::Closed(seen);
        }
        let generation = Generation::open(&self.state.path, self.before)?;
        self.before = Before::Nothing;
        let id = generation.id;
        // It may have been rotated since it was seen, and even back to one that is open.
        if !self.is_open(id) {
            self.generations.push(generation);
        }
        Ok(id)
    }

    /// Closes what has been silent for long, if it has a successor or no name any more; and what
    /// there is too much of.
    fn retire(&mut self, keep: Duration) {
        let surplus = self.generations.len().saturating_sub(GENERATIONS);
        self.generations.drain(..surplus);
        let followed = self.at_path().is_some();
        self.generations.retain(|generation| {
            let can_go = followed || !generation.linked;
            generation.at_path || !can_go || generation.touched.elapsed() < keep
        });
    }
}

/// What is at the path, without opening it: opening a device may do something to it.
fn identify(path: &Path) -> Result<FileId, Down> {
    let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
    checked(&stat.map_err(|error| refused("look at", error))?)
}

fn refused(what: &'static str, error: Errno) -> Down {
    match error {
        Errno::NOENT | Errno::NOTDIR => Down::Missing,
        // Of O_NOFOLLOW.
        Errno::LOOP => Down::Link,
        error => Down::Failed(what, error),
    }
}

fn checked(stat: &Stat) -> Result<FileId, Down> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(FileId::of(stat)),
        FileType::Symlink => Err(Down::Link),
        FileType::Directory => Err(Down::NotRegular("a directory")),
        FileType::Fifo => Err(Down::NotRegular("a FIFO")),
        FileType::Socket => Err(Down::NotRegular("a socket")),
        _ => Err(Down::NotRegular("a device")),
    }
}

/// A file that was found at the path.
struct Generation {
    file: File,
    id: FileId,
    position: Position,
    assembler: Assembler,
    at_path: bool,
    /// Whether it has a name anywhere.
    linked: bool,
    /// When it last grew, or left its path.
    touched: Instant,
}

impl Generation {
    fn open(path: &Path, before: Before) -> Result<Generation, Down> {
        // Should a FIFO have come in between, NONBLOCK does not wait for its writer.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = open(path, flags, Mode::empty()).map_err(|error| refused("open", error))?;
        let stat = fstat(&file).map_err(|error| refused("look at", error))?;
        let id = checked(&stat)?;
        let mut generation = Generation {
            file: File::from(file),
            id,
            position: Position::default(),
            assembler: Assembler::default(),
            at_path: true,
            linked: true,
            touched: Instant::now(),
        };
        if before == Before::Closed(id) {
            let passed = generation.pass_over(size_of(&stat));
            passed.map_err(|error| Down::Failed("read", error))?;
        }
        Ok(generation)
    }

    /// Delivers what is new up to `mark`; whether anything was.
    fn read_to(
        &mut self,
        mark: u64,
        buffer: &mut [u8],
        deliver: &mut dyn FnMut(Line<'_>),
        going_on: &dyn Fn() -> bool,
    ) -> Result<bool, Errno> {
        let mut grew = false;
        while going_on() {
            let overlap = self.position.overlap();
            let from = self.position.read_from();
            let ahead = usize::try_from(mark.saturating_sub(from)).unwrap_or(usize::MAX);
            let length = ahead.max(overlap).min(buffer.len());
            let Some(buffer) = buffer.get_mut(..length) else {
                break;
            };
            let read = retry_on_intr(|| pread(&self.file, &mut *buffer, from))?;
            match self.position.news(buffer.get(..read).unwrap_or_default()) {
                Some([]) => break,
                Some(news) => {
                    self.assembler.push(news, &mut *deliver);
                    self.position.advance(news);
                    if news.len() >= MAX_LINE && news.iter().all(|byte| *byte == 0) {
                        self.skip_hole(mark);
                    }
                }
                None => self.begin_again()?,
            }
            grew = true;
        }
        Ok(grew)
    }

    /// A writer that does not know of a truncation goes on at its old place and leaves a hole
    /// before it, of any size. More NULs than a line can hold change nothing.
    fn skip_hole(&mut self, mark: u64) {
        let offset = self.position.offset();
        let data = seek(&self.file, SeekFrom::Data(offset)).unwrap_or(mark);
        self.position.skip_nuls(data.min(mark).max(offset));
    }

    /// The file was truncated.
    fn begin_again(&mut self) -> Result<(), Errno> {
        self.assembler.reset(false);
        let size = size_of(&fstat(&self.file)?);
        if self.position.begins_like(&self.bytes(0, FINGERPRINT)?) {
            return self.pass_over(size);
        }
        self.position = Position::default();
        Ok(())
    }

    /// Goes to the end, which is at `size`, or rather to the beginning of the line that is not
    /// finished there.
    fn pass_over(&mut self, size: u64) -> Result<(), Errno> {
        let from = size.saturating_sub(MAX_LINE as u64);
        let end = self.bytes(from, MAX_LINE)?;
        let end = end
            .get(..usize::try_from(size - from).unwrap_or(usize::MAX))
            .unwrap_or(&end);
        let newline = end.iter().rposition(|byte| *byte == b'\n');
        let offset = match newline {
            Some(newline) => from + newline as u64 + 1,
            None if from == 0 => 0,
            None => from + end.len() as u64,
        };
        self.assembler.reset(newline.is_none() && from > 0);
        let known = offset.min(FINGERPRINT as u64);
        let length = usize::try_from(known).unwrap_or(FINGERPRINT);
        let head = self.bytes(0, length)?;
        let tail = self.bytes(offset - known, length)?;
        // Truncated since its size was taken: then what it holds now is new.
        if head.len() < length || tail.len() < length {
            self.assembler.reset(false);
            self.position = Position::default();
        } else {
            self.position = Position::new(offset, head, tail);
        }
        Ok(())
    }

    fn bytes(&self, from: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        let read = retry_on_intr(|| pread(&self.file, &mut *bytes, from))?;
        bytes.truncate(read);
        Ok(bytes)
    }
}

/// Why linemux is to end.
enum End {
    /// Something else is to be watched.
    Changed,
    /// It does not work.
    Failed,
    /// It brings more than it is worth.
    Flooded,
}

/// The watcher's thread.
fn watch(runtime: &Runtime, shared: &Shared, check: Duration) {
    runtime.block_on(async {
        while !shared.is_stopping() {
            let wanted = lock(&shared.wanted).clone();
            if wanted.paths.is_empty() {
                shared.wanted_changed.notified().await;
                continue;
            }
            let end = watch_files(shared, wanted).await;
            shared.watching.store(false, Ordering::Relaxed);
            let rest = match end {
                End::Changed => REST.min(check),
                End::Failed => check,
                End::Flooded => FLOOD_REST,
            };
            let until = tokio::time::Instant::now() + rest;
            while !shared.is_stopping()
                && tokio::time::timeout_at(until, shared.wanted_changed.notified())
                    .await
                    .is_ok()
            {}
        }
    });
}

/// Wakes the follower whenever linemux has something to tell.
async fn watch_files(shared: &Shared, wanted: Wanted) -> End {
    // notify, below linemux, starts a thread and panics later if that failed.
    let trial = Builder::new().name("klog-trial".to_owned()).spawn(|| ());
    if trial
        .map_err(drop)
        .and_then(|trial| trial.join().map_err(drop))
        .is_err()
    {
        return End::Failed;
    }
    let Ok(mut events) = MuxedEvents::new() else {
        return End::Failed;
    };
    let mut watched = 0;
    for path in wanted.paths {
        watched += u32::from(events.add_file(path).await.is_ok());
    }
    if watched == 0 {
        return End::Failed;
    }
    shared.made.fetch_add(1, Ordering::Relaxed);
    shared.watching.store(true, Ordering::Relaxed);
    // For what was written before the watch began.
    shared.wake();
    loop {
        tokio::select! {
            () = shared.wanted_changed.notified() => {
                if shared.is_stopping() || lock(&shared.wanted).number != wanted.number {
                    return End::Changed;
                }
                continue;
            }
            event = events.next_event() => {
                // None: it watches nothing any more.
                let Ok(Some(_)) = event else { return End::Failed };
            }
        }
        shared.hint();
        tokio::time::sleep(PAUSE).await;
        match drain(&mut events) {
            Ok(0) => {}
            Ok(count) if count < FLOOD => shared.hint(),
            Ok(_) => return End::Flooded,
            Err(end) => return end,
        }
    }
}

/// Takes all events that are there, and no more than a flood of them.
fn drain(events: &mut MuxedEvents) -> Result<u32, End> {
    let mut context = Context::from_waker(Waker::noop());
    for count in 0..FLOOD {
        let next = pin!(tokio::task::unconstrained(events.next_event()));
        match next.poll(&mut context) {
            Poll::Pending => return Ok(count),
            Poll::Ready(Ok(Some(_))) => {}
            Poll::Ready(_) => return Err(End::Failed),
        }
    }
    Ok(FLOOD)
}
