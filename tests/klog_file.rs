//! The log-file source against a model: random actions on a log, and every line that a correct
//! follower can see has to come once and in order.
//!
//! What it cannot see, and what the model therefore waits for before it destroys anything:
//!
//! - a file is renamed or deleted only once the follower has opened it (what it then holds unread
//!   is read from the open file);
//! - a file is truncated only once the follower has read it;
//! - after a file was cut shorter but not emptied, nothing is written before the follower noticed.
//!
//! An unfinished line is no line: one at the end of a file that is rotated or emptied never comes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a test; its files are small and its machines have 64 bits"
)]

#[allow(
    dead_code,
    unreachable_pub,
    reason = "of the test bed, this is all that is needed"
)]
#[path = "support/random.rs"]
mod random;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fragwatch::internals::klog::{Down, FileSource, FileState, Line, MAX_LINE, Settings};
use random::Random;

/// Longest wait for anything; only a fault lasts as long.
const LONG: Duration = Duration::from_secs(20);

/// A line as it was delivered, and whether it lost its end.
type Delivered = (Vec<u8>, bool);

/// The tests measure processor time and count threads: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A source that follows one file, and what it delivered.
struct Followed {
    source: FileSource,
    lines: Arc<Mutex<Vec<Delivered>>>,
}

impl Followed {
    fn start(settings: Settings, path: &Path) -> Followed {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&lines);
        let on_line = Box::new(move |line: Line<'_>| {
            all.lock().unwrap().push((line.bytes.to_vec(), line.cut));
        });
        let source = FileSource::start(settings, path.to_owned(), on_line).unwrap();
        let followed = Followed { source, lines };
        followed.wait_for("the first look", |state| state.down != Some(Down::NotYet));
        followed
    }

    fn state(&self) -> FileState {
        self.source.state()
    }

    fn delivered(&self) -> Vec<Delivered> {
        self.lines.lock().unwrap().clone()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, mut is_so: impl FnMut(&FileState) -> bool) {
        let start = Instant::now();
        while !is_so(&self.state()) {
            assert!(start.elapsed() < LONG, "{what}: {:?}", self.state());
            sleep(Duration::from_millis(1));
        }
    }

    #[track_caller]
    fn wait_for_lines(&self, expected: &[&[u8]]) {
        self.wait_for("lines", |state| state.lines >= expected.len() as u64);
        let delivered = self.delivered();
        let delivered: Vec<&[u8]> = delivered.iter().map(|(line, _)| line.as_slice()).collect();
        assert_eq!(delivered, expected);
    }

    #[track_caller]
    fn stop(self) {
        assert!(self.source.stop(), "the threads do not end");
        // notify's end a little later.
        let start = Instant::now();
        while our_tasks().next().is_some() {
            assert!(start.elapsed() < LONG, "threads are left");
            sleep(Duration::from_millis(1));
        }
    }
}

fn often() -> Settings {
    Settings {
        check: Duration::from_millis(20),
        ..Settings::default()
    }
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    file.write_all(bytes).unwrap();
}

/// A log with one writer, and what a correct follower delivers of it.
struct Model {
    directory: PathBuf,
    path: PathBuf,
    writer: Writer,
    /// Still written to although another file has taken its place.
    late: bool,
    expected: Vec<Delivered>,
    random: Random,
    next_line: u64,
    next_name: u64,
    /// What was done last, for the report of a failure.
    history: VecDeque<String>,
}

struct Writer {
    file: File,
    unfinished: Vec<u8>,
    /// Everything in the file.
    content: Vec<u8>,
}

impl Writer {
    fn open(path: &Path) -> Writer {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        let content = fs::read(path).unwrap();
        let finished = content
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        Writer {
            file,
            unfinished: content[finished..].to_vec(),
            content,
        }
    }
}

impl Model {
    fn new(directory: &Path, seed: u64) -> Model {
        fs::create_dir_all(directory).unwrap();
        let path = directory.join("kern.log");
        let mut random = Random::new(seed);
        if random.below(2) == 0 {
            // Old lines, and one that is not finished when the source starts.
            append(&path, b"old line\nold line\nbegun before");
        }
        Model {
            directory: directory.to_owned(),
            writer: Writer::open(&path),
            path,
            late: false,
            expected: Vec::new(),
            random,
            next_line: 0,
            next_name: 0,
            history: VecDeque::new(),
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.writer.file.write_all(bytes).unwrap();
        self.writer.content.extend_from_slice(bytes);
        for byte in bytes {
            if *byte != b'\n' {
                self.writer.unfinished.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.writer.unfinished);
            let nuls = line.iter().take_while(|byte| **byte == 0).count();
            let mut line = line[nuls..].to_vec();
            let cut = line.len() > MAX_LINE;
            line.truncate(MAX_LINE);
            self.expected.push((line, cut));
        }
    }

    /// A line that there is only once, without its end.
    fn a_line(&mut self) -> Vec<u8> {
        self.next_line += 1;
        let mut line = format!("{} Nov 20 host kernel: XFS: ", self.next_line).into_bytes();
        let length = match self.random.below(40) {
            0 => MAX_LINE as u64 - line.len() as u64 + self.random.below(3),
            1 => 10_000 + self.random.below(100_000),
            _ => self.random.below(120),
        };
        for _ in 0..length {
            let byte = self.random.next().to_le_bytes()[0];
            line.push(if byte == b'\n' { b'!' } else { byte });
        }
        line
    }

    fn write_lines(&mut self, most: u64) {
        let mut bytes = Vec::new();
        for _ in 0..=self.random.below(most) {
            bytes.extend(self.a_line());
            bytes.push(b'\n');
        }
        // In writes that end anywhere.
        let pieces = 1 + self.random.below(4);
        let length = bytes.len().div_ceil(pieces as usize);
        for piece in bytes.chunks(length) {
            self.write(piece);
        }
    }

    fn inode(&self) -> u64 {
        self.writer.file.metadata().unwrap().ino()
    }

    /// Waits until the follower has the file open.
    fn until_opened(&self, follower: &Followed) {
        let inode = self.inode();
        follower.wait_for("open", |state| {
            state.position.is_some_and(|(open, _)| open == inode)
        });
    }

    /// Waits until the follower has read everything.
    fn until_read(&self, follower: &Followed) {
        let end = (self.inode(), self.writer.file.metadata().unwrap().len());
        let expected = self.expected.len() as u64;
        follower.wait_for("everything read", |state| {
            state.lines >= expected && state.position == Some(end)
        });
    }

    fn new_name(&mut self) -> PathBuf {
        self.next_name += 1;
        self.directory.join(format!("kern.log.{}", self.next_name))
    }

    fn move_away(&mut self) {
        let name = self.new_name();
        fs::rename(&self.path, name).unwrap();
    }

    /// A writer that was told: it opens what is at the path now.
    fn reopen(&mut self) {
        self.writer = Writer::open(&self.path);
        self.late = false;
    }

    /// One random action.
    fn act(&mut self, follower: &Followed) {
        let action = self.random.below(26);
        if self.late && action >= 12 {
            self.reopen();
        }
        let name = match action {
            0..6 => {
                self.write_lines(5);
                "lines"
            }
            6..8 => {
                let line = self.a_line();
                self.write(&line);
                "half a line"
            }
            8 => {
                self.write_lines(500);
                "many lines"
            }
            9 => {
                self.write(b"\n\0\0\n");
                "empty lines"
            }
            10..12 => {
                sleep(Duration::from_millis(self.random.below(60)));
                "pause"
            }
            12..15 => {
                self.until_opened(follower);
                self.write_lines(50);
                self.move_away();
                self.pause();
                self.reopen();
                "rename, create"
            }
            15..17 => {
                self.until_opened(follower);
                self.move_away();
                self.pause();
                File::create(&self.path).unwrap();
                // What is written until the writer is told goes to the old file.
                self.late = true;
                "rename, create, writer late"
            }
            17 => {
                self.until_opened(follower);
                let name = self.new_name();
                fs::hard_link(&self.path, name).unwrap();
                fs::remove_file(&self.path).unwrap();
                self.reopen();
                "link, delete, create"
            }
            18..20 => {
                self.until_read(follower);
                let name = self.new_name();
                fs::copy(&self.path, name).unwrap();
                self.writer.file.set_len(0).unwrap();
                self.writer.unfinished.clear();
                self.writer.content.clear();
                self.pause();
                // Often more than was there before.
                self.write_lines(20);
                "copy, truncate"
            }
            20 => {
                self.until_read(follower);
                self.writer.file.set_len(0).unwrap();
                // A writer that goes on at its old place.
                let mut file = OpenOptions::new().write(true).open(&self.path).unwrap();
                let hole = 100_000 + self.random.below(1 << 40);
                file.seek(SeekFrom::Start(hole)).unwrap();
                let mut line = self.a_line();
                line.truncate(1000);
                file.write_all(&line).unwrap();
                file.write_all(b"\n").unwrap();
                self.expected.push((line, false));
                self.until_lines(follower);
                // Nobody wants to read this one back.
                fs::remove_file(&self.path).unwrap();
                self.reopen();
                "truncate, hole"
            }
            21 => {
                self.until_read(follower);
                let length = self.writer.content.len() as u64;
                let mut left = self.random.below(length + 1);
                let kept = &self.writer.content[..left as usize];
                let newline = kept.iter().rposition(|byte| *byte == b'\n');
                let finished = newline.map_or(0, |at| at as u64 + 1);
                if left - finished >= MAX_LINE as u64 {
                    // The beginning of such a line is not looked for.
                    left = finished;
                }
                self.writer.file.set_len(left).unwrap();
                self.reopen();
                self.until_shorter(follower, left);
                "cut shorter"
            }
            22..24 => {
                self.until_opened(follower);
                self.write_lines(50);
                fs::remove_file(&self.path).unwrap();
                self.pause();
                self.reopen();
                "delete, create"
            }
            24 => {
                self.until_opened(follower);
                self.write_lines(50);
                fs::remove_dir_all(&self.directory).unwrap();
                self.pause();
                fs::create_dir(&self.directory).unwrap();
                self.pause();
                self.reopen();
                "directory removed, created"
            }
            _ => {
                self.until_opened(follower);
                self.write_lines(5);
                self.move_away();
                match self.random.below(3) {
                    0 => fs::create_dir(&self.path).unwrap(),
                    1 => symlink("/proc/version", &self.path).unwrap(),
                    _ => fifo(&self.path),
                }
                self.pause();
                fs::remove_file(&self.path)
                    .or_else(|_| fs::remove_dir(&self.path))
                    .unwrap();
                self.reopen();
                "something else for a while"
            }
        };
        self.history.push_back(name.to_owned());
        if self.history.len() > 12 {
            self.history.pop_front();
        }
    }

    fn until_lines(&self, follower: &Followed) {
        let expected = self.expected.len() as u64;
        follower.wait_for("lines", |state| state.lines >= expected);
    }

    /// Waits until the follower has noticed that the file is shorter. What is left of an emptied
    /// one is nothing, and what is left otherwise was read.
    fn until_shorter(&self, follower: &Followed, left: u64) {
        let end = Some((self.inode(), left));
        follower.wait_for("cut shorter", |state| state.position == end);
    }

    /// Sometimes none, sometimes long enough to be noticed.
    fn pause(&mut self) {
        match self.random.below(3) {
            0 => {}
            1 => sleep(Duration::from_millis(1 + self.random.below(5))),
            _ => sleep(Duration::from_millis(30)),
        }
    }

    fn check(&self, follower: &Followed, seed: u64) {
        let delivered = follower.delivered();
        let differ = (0..delivered.len().max(self.expected.len()))
            .find(|at| delivered.get(*at) != self.expected.get(*at));
        if let Some(at) = differ {
            let shown = |lines: &[Delivered]| {
                let around = lines.iter().skip(at.saturating_sub(1)).take(4);
                let start = |line: &Delivered| line.0[..line.0.len().min(40)].to_vec();
                around
                    .map(|line| String::from_utf8_lossy(&start(line)).into_owned())
                    .collect::<Vec<_>>()
            };
            panic!(
                "seed {seed}, line {at} of {} (delivered {}) after {:?}:\nexpected  {:?}\ndelivered {:?}",
                self.expected.len(),
                delivered.len(),
                self.history,
                shown(&self.expected),
                shown(&delivered),
            );
        }
    }
}

fn fifo(path: &Path) {
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
}

/// So many random actions; how many lines came of them.
fn play(settings: Settings, seed: u64, actions: u32) -> usize {
    let scratch = tempfile::tempdir().unwrap();
    let mut model = Model::new(&scratch.path().join("log"), seed);
    let follower = Followed::start(settings, &model.path);
    for _ in 0..actions {
        model.act(&follower);
        model.check_beginning(&follower, seed);
    }
    if model.late {
        model.reopen();
    }
    model.write(b"\nthe last line\n");
    model.until_read(&follower);
    model.check(&follower, seed);
    let lines = model.expected.len();
    follower.stop();
    lines
}

impl Model {
    /// What has come so far is the beginning of what is to come.
    fn check_beginning(&self, follower: &Followed, seed: u64) {
        let come = follower.state().lines as usize;
        let last = self.expected.get(come.saturating_sub(1));
        let is_beginning = come <= self.expected.len()
            && (come == 0 || follower.delivered().get(come - 1) == last);
        if !is_beginning {
            self.check(follower, seed);
        }
    }
}

#[test]
fn random_actions_lose_and_double_nothing() {
    let _alone = alone();
    let (start, mut lines) = (Instant::now(), 0);
    for seed in 0..5 {
        lines += play(often(), seed, 120);
    }
    println!("{lines} lines in {:?}", start.elapsed());
}

#[test]
fn linemux_is_not_needed() {
    let _alone = alone();
    let settings = Settings {
        watch: false,
        ..often()
    };
    for seed in 100..103 {
        play(settings, seed, 120);
    }
}

#[test]
fn random_actions_at_the_usual_pace() {
    let _alone = alone();
    play(Settings::default(), 200, 40);
}

#[test]
fn old_lines_are_passed_over() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("log");
    append(&path, b"old\nXFS: poss");
    let followed = Followed::start(often(), &path);
    append(&path, b"ible\n");
    followed.wait_for_lines(&[b"XFS: possible"]);
    followed.stop();

    // The beginning of this one is too far back.
    append(&path, &[b'x'; 2 * MAX_LINE]);
    let followed = Followed::start(often(), &path);
    append(&path, b"end\nnext\n");
    followed.wait_for_lines(&[b"next"]);
    followed.stop();
}

#[test]
fn a_file_that_comes_later_is_read_from_its_beginning() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("not/yet/log");
    let followed = Followed::start(often(), &path);
    assert_eq!(followed.state().down, Some(Down::Missing));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    append(&path, b"first\n");
    followed.wait_for_lines(&[b"first"]);
    assert_eq!(followed.state().down, None);
    fs::remove_file(&path).unwrap();
    followed.wait_for("gone", |state| state.down == Some(Down::Missing));
    followed.stop();
}

#[test]
fn a_rotated_file_is_closed_in_the_end() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("log");
    append(&path, b"");
    let settings = Settings {
        keep: Duration::from_millis(300),
        ..often()
    };
    let followed = Followed::start(settings, &path);
    let open = || {
        let files = fs::read_dir("/proc/self/fd").unwrap();
        let files = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
        files
            .filter(|file| file.starts_with(scratch.path()))
            .count()
    };
    assert_eq!(open(), 1);
    // While nothing has taken its place it is kept: it may come back.
    fs::rename(&path, scratch.path().join("log.1")).unwrap();
    sleep(Duration::from_millis(500));
    assert_eq!(open(), 1);
    append(&path, b"new\n");
    followed.wait_for_lines(&[b"new"]);
    let start = Instant::now();
    while open() > 1 {
        assert!(start.elapsed() < LONG);
        sleep(Duration::from_millis(1));
    }
    // Deleted, it takes space for nothing.
    fs::remove_file(&path).unwrap();
    while open() > 0 {
        assert!(start.elapsed() < LONG);
        sleep(Duration::from_millis(1));
    }
    followed.stop();
}

#[test]
fn only_a_regular_file_is_opened() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("log");
    let target = scratch.path().join("target");
    append(&target, b"secret\n");

    type Make = fn(&Path, &Path);
    let others: [(Make, Down); 4] = [
        (|path, _| fifo(path), Down::NotRegular("a FIFO")),
        (
            |path, _| fs::create_dir(path).unwrap(),
            Down::NotRegular("a directory"),
        ),
        (
            |path, _| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
            Down::NotRegular("a socket"),
        ),
        (|path, target| symlink(target, path).unwrap(), Down::Link),
    ];
    for (make, down) in others {
        make(&path, &target);
        let followed = Followed::start(often(), &path);
        assert_eq!(followed.state().down, Some(down));
        append(&target, b"secret\n");
        sleep(Duration::from_millis(100));
        assert_eq!(followed.delivered(), []);

        // Whatever comes in its place is new.
        let new = scratch.path().join("new");
        append(&new, b"new\n");
        let _ = fs::remove_dir(&path);
        fs::rename(&new, &path).unwrap();
        followed.wait_for_lines(&[b"new"]);
        followed.stop();
        fs::remove_file(&path).unwrap();
    }
}

/// A writer between two files: whatever it wrote to the old one before a line of the new one comes
/// before that line.
#[test]
fn order_is_kept_across_a_rotation() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("log");
    append(&path, b"");
    // As fast as it can, to look at every possible moment.
    let settings = Settings {
        check: Duration::ZERO,
        watch: false,
        ..Settings::default()
    };
    let followed = Followed::start(settings, &path);
    let mut old = OpenOptions::new().append(true).open(&path).unwrap();
    fs::rename(&path, scratch.path().join("log.1")).unwrap();
    let mut new = File::create(&path).unwrap();
    let lines = 100_000_u64;
    for number in 0..lines {
        let file = if number.is_multiple_of(2) {
            &mut old
        } else {
            &mut new
        };
        file.write_all(format!("{number}\n").as_bytes()).unwrap();
    }
    followed.wait_for("all lines", |state| state.lines >= lines);
    let mut of_old = 0;
    for (line, _) in followed.delivered() {
        let number: u64 = std::str::from_utf8(&line).unwrap().parse().unwrap();
        if number.is_multiple_of(2) {
            assert_eq!(number, of_old);
            of_old += 2;
        } else {
            assert!(of_old > number, "{number} came when {of_old} had not");
        }
    }
    followed.stop();
}

#[test]
fn linemux_brings_lines_before_the_check() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("log");
    append(&path, b"");
    let settings = Settings {
        check: 4 * LONG,
        ..Settings::default()
    };
    let followed = Followed::start(settings, &path);
    let mut expected: Vec<Vec<u8>> = Vec::new();
    let mut times = Vec::new();
    for number in 0..20_u32 {
        if number % 5 == 4 {
            fs::rename(&path, scratch.path().join(format!("log.{number}"))).unwrap();
        }
        let line = format!("line {number}");
        let start = Instant::now();
        append(&path, format!("{line}\n").as_bytes());
        expected.push(line.into_bytes());
        let all: Vec<&[u8]> = expected.iter().map(Vec::as_slice).collect();
        followed.wait_for_lines(&all);
        times.push(start.elapsed());
    }
    times.sort();
    println!("a line after {:?}, at worst {:?}", times[10], times[19]);
    followed.stop();
}

/// /proc/self/task/*/stat from the third field on, of the source's threads and those of notify.
fn our_tasks() -> impl Iterator<Item = String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| {
        let stat = fs::read_to_string(task.unwrap().path().join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let ours = name.starts_with("klog-") || name.starts_with("notify-rs");
        ours.then(|| rest.to_owned())
    })
}

/// Their processor time, in ticks of 10 ms.
fn ticks() -> u64 {
    our_tasks()
        .map(|stat| {
            let mut times = stat.split(' ').skip(11).take(2);
            let mut time = || times.next().unwrap().parse::<u64>().unwrap();
            time() + time()
        })
        .sum()
}

#[test]
fn it_does_not_spin_when_the_directory_vanishes() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("log");
    let path = directory.join("kern.log");
    fs::create_dir(&directory).unwrap();
    append(&path, b"");
    let followed = Followed::start(Settings::default(), &path);
    append(&path, b"before\n");
    followed.wait_for_lines(&[b"before"]);

    for line in [b"after", b"again"] {
        // This one keeps linemux busy until the directory is gone: then it finds nothing left that
        // it could watch, and its own reader would spin.
        append(&path, b"last\n");
        fs::remove_dir_all(&directory).unwrap();
        followed.wait_for("gone", |state| state.down == Some(Down::Missing));
        let before = ticks();
        sleep(Duration::from_secs(3));
        let used = ticks() - before;
        println!("{used} ticks in 3 s");
        // A thread that spins takes 300; at least 30 even if ten others want the processors.
        assert!(used < 15, "{used} ticks in 3 s");

        fs::create_dir(&directory).unwrap();
        append(&path, &[line.as_slice(), b"\n"].concat());
        followed.wait_for("the new file", |state| state.down.is_none());
    }
    followed.wait_for_lines(&[b"before", b"last", b"after", b"last", b"again"]);
    followed.stop();
}

#[test]
fn a_flood_is_read_without_linemux() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("log");
    append(&path, b"");
    let followed = Followed::start(Settings::default(), &path);
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    let (start, mut lines) = (Instant::now(), 0_u64);
    while start.elapsed() < Duration::from_secs(2) {
        file.write_all(b"n\n").unwrap();
        lines += 1;
    }
    let used = ticks();
    followed.wait_for("all of it", |state| state.lines == lines);
    println!("{lines} lines, {used} ticks");
    followed.stop();
}
