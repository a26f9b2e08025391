//! Reads a log file and its predecessors at the same path; see the parent module.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, SeekFrom, Stat, fstat, open, seek, statat};
use rustix::io::{Errno, pread, retry_on_intr};

use super::shared::{Down, FileState};
use crate::klog::tail::{Assembler, FINGERPRINT, Line, MAX_LINE, Position};

const CHUNK: usize = 64 * 1024;
/// Maximum number of generations kept open. More of them within a minute are not a rotation.
const GENERATIONS: usize = 8;

/// Called on the follower's thread for every line. It should not block.
pub type OnLine = Box<dyn FnMut(Line<'_>) + Send>;

/// Identifies a file independently of its name: device and inode.
pub(super) type FileId = (u64, u64);

fn id_of(stat: &Stat) -> FileId {
    (stat.st_dev, stat.st_ino)
}

fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// A path and the files that were found at it.
pub(super) struct Followed {
    path: PathBuf,
    on_line: OnLine,
    buffer: Box<[u8]>,
    pub(super) state: FileState,
    /// Oldest first.
    generations: Vec<Generation>,
    before: Before,
}

/// What was at the path before the first generation was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Not known: a file found now may be old.
    Unknown,
    /// A file that could not be opened and may be old.
    Closed(FileId),
    /// Another file or none: a file found now is new.
    Nothing,
}

impl Followed {
    pub(super) fn new(path: PathBuf, on_line: OnLine) -> Followed {
        Followed {
            path,
            on_line,
            buffer: vec![0; FINGERPRINT + CHUNK].into_boxed_slice(),
            state: FileState::default(),
            generations: Vec::new(),
            before: Before::Unknown,
        }
    }

    /// The followed file, if it is at the path.
    pub(super) fn at_path(&self) -> Option<FileId> {
        let newest = self.generations.last()?;
        newest.at_path.then_some(newest.id)
    }

    /// Checks the path and reads new data. Returns true if the file at the path has grown.
    pub(super) fn look(&mut self, keep: Duration, going_on: &dyn Fn() -> bool) -> bool {
        let mut down = self.look_at_path().err();

        // Sizes from newest to oldest, data from oldest to newest: see the parent module.
        let mut marks = Vec::with_capacity(GENERATIONS);
        for generation in self.generations.iter().rev() {
            marks.push(fstat(&generation.file));
        }
        let mut grew = false;
        for (generation, mark) in self.generations.iter_mut().zip(marks.into_iter().rev()) {
            let state = &mut self.state;
            let on_line = &mut self.on_line;
            let mut deliver = |line: Line<'_>| {
                state.lines += 1;
                state.cut += u64::from(line.cut);
                on_line(line);
            };
            let read = mark.and_then(|mark| {
                generation.linked = mark.st_nlink > 0;
                generation.read_to(size_of(&mark), &mut self.buffer, &mut deliver, going_on)
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
        self.state.position = newest.map(|newest| (newest.id.1, newest.position.offset()));
        self.state.down = down;
        grew
    }

    /// Makes the file at the path the newest generation.
    fn look_at_path(&mut self) -> Result<(), Down> {
        let found = match identify(&self.path) {
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
        // A stable sort: only the generation at the path moves, to the end.
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
        let generation = Generation::open(&self.path, self.before)?;
        self.before = Before::Nothing;
        let id = generation.id;
        // The file may have been rotated since `seen`, even back to one that is open already.
        if !self.is_open(id) {
            self.generations.push(generation);
        }
        Ok(id)
    }

    /// Closes surplus generations, and those silent for `keep` that have a successor or no name.
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

/// The file at the path. It is not opened first: opening a device may have side effects.
fn identify(path: &Path) -> Result<FileId, Down> {
    let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
    checked(&stat.map_err(|error| refused("look at", error))?)
}

fn refused(what: &'static str, error: Errno) -> Down {
    match error {
        Errno::NOENT | Errno::NOTDIR => Down::Missing,
        // Caused by O_NOFOLLOW.
        Errno::LOOP => Down::Link,
        error => Down::Failed(what, error),
    }
}

fn checked(stat: &Stat) -> Result<FileId, Down> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(id_of(stat)),
        FileType::Symlink => Err(Down::Link),
        FileType::Directory => Err(Down::NotRegular("a directory")),
        FileType::Fifo => Err(Down::NotRegular("a FIFO")),
        FileType::Socket => Err(Down::NotRegular("a socket")),
        _ => Err(Down::NotRegular("a device")),
    }
}

/// Opens a regular file.
fn open_regular(path: &Path) -> Result<(File, Stat), Down> {
    // NONBLOCK: if a FIFO has taken the place of the file, open does not wait for a writer.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty()).map_err(|error| refused("open", error))?;
    let stat = fstat(&file).map_err(|error| refused("look at", error))?;
    checked(&stat)?;
    Ok((File::from(file), stat))
}

/// The whole lines in the last 64 KiB of a file.
pub fn last_lines(path: &Path) -> Result<Vec<Vec<u8>>, Down> {
    identify(path)?;
    let (file, stat) = open_regular(path)?;
    let from = size_of(&stat).saturating_sub(CHUNK as u64);
    let mut end = vec![0; CHUNK];
    let read = retry_on_intr(|| pread(&file, &mut *end, from));
    end.truncate(read.map_err(|error| Down::Failed("read", error))?);
    let mut lines = Vec::new();
    let mut assembler = Assembler::default();
    assembler.reset(from > 0);
    assembler.push(&end, |line| lines.push(line.bytes.to_vec()));
    Ok(lines)
}

struct Generation {
    file: File,
    id: FileId,
    position: Position,
    assembler: Assembler,
    at_path: bool,
    /// Whether it still has a name in any directory.
    linked: bool,
    /// When it last grew or left the path.
    touched: Instant,
}

impl Generation {
    fn open(path: &Path, before: Before) -> Result<Generation, Down> {
        let (file, stat) = open_regular(path)?;
        let id = id_of(&stat);
        let mut generation = Generation {
            file,
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

    /// Delivers new data up to `mark`. Returns true if there was any.
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
            match self
                .position
                .new_bytes(buffer.get(..read).unwrap_or_default())
            {
                Some([]) => break,
                Some(new) => {
                    self.assembler.push(new, &mut *deliver);
                    self.position.advance(new);
                    if new.len() >= MAX_LINE && new.iter().all(|byte| *byte == 0) {
                        self.skip_hole(mark);
                    }
                }
                None => self.begin_again()?,
            }
            grew = true;
        }
        Ok(grew)
    }

    /// Skips a hole of any size, which a writer that continues at its old offset leaves after a
    /// truncation. NULs beyond the maximum length of a line change nothing.
    fn skip_hole(&mut self, mark: u64) {
        let offset = self.position.offset();
        let data = seek(&self.file, SeekFrom::Data(offset)).unwrap_or(mark);
        self.position.skip_nuls(data.min(mark).max(offset));
    }

    /// Called when the file was truncated.
    fn begin_again(&mut self) -> Result<(), Errno> {
        self.assembler.reset(false);
        let size = size_of(&fstat(&self.file)?);
        if self.position.begins_like(&self.bytes(0, FINGERPRINT)?) {
            return self.pass_over(size);
        }
        self.position = Position::default();
        Ok(())
    }

    /// Moves to the start of the unfinished last line, or to the end, which is at `size`.
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
        // Truncated since `size` was taken: the present content is new.
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
