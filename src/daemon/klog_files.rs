//! The followed log files, each on its own threads, so that a hanging file system does not delay
//! the others. Matches go to the slow side of the rescue.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::klog::Rules;
use crate::klog::dedup::{Dedup, Source};
use crate::klog::file::{self, Down, FileSource};
use crate::klog::head::{self, Reading};
use crate::klog::tail::Line as FileLine;
use crate::model::path::shown;
use crate::model::{Monotonic, RuleAction};
use crate::rescue::clock::now;
use crate::rescue::entry::Line;
use crate::serve::metrics;
use crate::serve::parts::{Part, State};
use crate::serve::shared_status::SharedStatus;
use crate::sys::mutex::lock;
use crate::sys::zone::Zone;

/// Maximum queued matches. More are a storm, of which one is enough.
const WAITING: usize = 256;
/// Time within which a line in the kernel log and in a file, or in two files, is the same event.
const SAME_EVENT: Duration = Duration::from_secs(10);
/// How long a line of a file waits for its duplicate from the kernel log, which takes precedence.
const KMSG_TIMEOUT: Duration = Duration::from_secs(1);

/// Consecutive lines of no known form after which a file is reported.
const UNKNOWN: u32 = 100;
/// How long after a line its repetitions are still counted: syslogd reports them within minutes.
const REPETITION: Duration = Duration::from_secs(900);

/// A line of a file that matched a rule.
#[derive(Debug, Clone)]
pub(super) struct FileMatch {
    source: u16,
    pub(super) file: Arc<Path>,
    /// The name of the rule.
    pub(super) rule: String,
    pub(super) action: RuleAction,
    pub(super) line: Line,
    /// How many times the line was logged.
    pub(super) times: u32,
    at: Monotonic,
}

/// The settings for the threads of the sources.
#[derive(Default)]
struct Terms {
    rules: Arc<Rules>,
    zone: Zone,
}

/// The files that are followed.
pub(super) struct LogFiles {
    files: Vec<PathBuf>,
    sources: Vec<Followed>,
    /// The number of the next source; not reused soon.
    next: u16,
    /// Locked only for copying.
    terms: Arc<Mutex<Terms>>,
    found: mpsc::Sender<FileMatch>,
    matches: mpsc::Receiver<FileMatch>,
    waiting: VecDeque<FileMatch>,
    dedup: Dedup,
}

impl LogFiles {
    /// Follows no file yet.
    pub(super) fn new() -> Self {
        let (found, matches) = mpsc::channel(WAITING);
        LogFiles {
            files: Vec::new(),
            sources: Vec::new(),
            next: 0,
            terms: Arc::default(),
            found,
            matches,
            waiting: VecDeque::new(),
            dedup: Dedup::new(SAME_EVENT),
        }
    }

    /// Follows these files, by these rules. Files followed before continue at their position. A
    /// file that cannot be followed is logged and left out.
    pub(super) fn follow(&mut self, files: &[PathBuf], rules: &Arc<Rules>, board: &SharedStatus) {
        *lock(&self.terms) = Terms {
            rules: Arc::clone(rules),
            zone: Zone::default(),
        };
        let (kept, gone) = std::mem::take(&mut self.sources)
            .into_iter()
            .partition(|known| files.iter().any(|file| **file == *known.path));
        self.sources = kept;
        for gone in gone {
            info!("no longer following {}", gone.path.display());
            end(gone.source);
        }
        for file in files {
            if !self.sources.iter().any(|known| *known.path == **file) {
                self.start(file);
            }
        }
        let shown: Vec<_> = files.iter().map(|file| shown(file)).collect();
        board.retain_parts(|part| !matches!(part, Part::LogFile(path) if !shown.contains(path)));
        self.files = files.to_vec();
        self.update_states(board);
    }

    fn start(&mut self, file: &Path) {
        let path: Arc<Path> = file.into();
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let mut reader = LineReader::new(Arc::clone(&self.terms), number, Arc::clone(&path));
        let (tally, found) = (Arc::clone(&reader.tally), self.found.clone());
        let on_line = move |line: FileLine<'_>| {
            if let Some(found_line) = reader.read(line.bytes, Timestamp::now()) {
                // A full queue holds more than enough.
                let _ = found.try_send(found_line);
            }
        };
        let settings = file::Settings::default();
        match FileSource::start(settings, file.to_owned(), Box::new(on_line)) {
            Ok(source) => {
                info!("following {}", path.display());
                self.sources.push(Followed {
                    path,
                    source,
                    tally,
                });
            }
            Err(reason) => warn!("cannot follow {}: {reason}", path.display()),
        }
    }

    /// Registers a match in the kernel log, so that the same line in a file is a duplicate.
    pub(super) fn kernel_matched(&mut self, line: &Line, at: Monotonic) {
        // The kernel's record always counts.
        let _ = self.dedup.is_first(Source::Kmsg, line.bytes(), at);
    }

    /// The next event that only a file has shown.
    pub(super) async fn next(&mut self) -> FileMatch {
        loop {
            let due = |first: &FileMatch| KMSG_TIMEOUT.saturating_sub(now().since(first.at));
            let due = self.waiting.front().map(due);
            tokio::select! {
                Some(found) = self.matches.recv() => self.waiting.push_back(found),
                () = tokio::time::sleep(due.unwrap_or(Duration::MAX)), if due.is_some() => {
                    if let Some(first) = self.waiting.pop_front()
                        && self.dedup.is_first(Source::File(first.source), first.line.bytes(), first.at)
                    {
                        return first;
                    }
                }
            }
        }
    }

    /// Matches not yet returned by [`LogFiles::next`], for the end of the daemon.
    pub(super) fn drain(&mut self) -> Vec<FileMatch> {
        while let Ok(found) = self.matches.try_recv() {
            self.waiting.push_back(found);
        }
        let dedup = &mut self.dedup;
        let is_first = |found: &FileMatch| {
            dedup.is_first(Source::File(found.source), found.line.bytes(), found.at)
        };
        self.waiting.drain(..).filter(is_first).collect()
    }

    /// Publishes the state of each file.
    pub(super) fn update_states(&self, board: &SharedStatus) {
        for file in &self.files {
            let part = Part::LogFile(shown(file));
            let Some(followed) = self.sources.iter().find(|known| *known.path == **file) else {
                let reason = "it cannot be followed, see the log".to_owned();
                board.set_part(part, State::Down(reason));
                continue;
            };
            let not_understood = lock(&followed.tally).report(file);
            let state = match followed.source.state().down {
                None => not_understood.map_or(State::Up, State::Impaired),
                // Known within a second.
                Some(Down::NotYet) => continue,
                Some(down) => State::Down(down.to_string()),
            };
            board.set_part(part, state);
        }
    }
}

struct Followed {
    path: Arc<Path>,
    source: FileSource,
    tally: Arc<Mutex<Tally>>,
}

/// What was found in the lines of a file, as far as it is to be reported.
#[derive(Default)]
struct Tally {
    /// Consecutive lines of no known form.
    unknown: u32,
    unknown_reported: bool,
    /// Whether a line that matched a rule was too old.
    old: bool,
    old_reported: bool,
}

impl Tally {
    /// Logs each fault once. Returns the one that lasts.
    fn report(&mut self, file: &Path) -> Option<String> {
        if self.old && !std::mem::replace(&mut self.old_reported, true) {
            warn!(
                "{}: old lines are written again; they start no rescue",
                file.display()
            );
        }
        if self.unknown < UNKNOWN {
            return None;
        }
        let reason = format!(
            "the form of its last {UNKNOWN} lines is not known; see klog.files in fragwatch.toml(5)"
        );
        if !std::mem::replace(&mut self.unknown_reported, true) {
            warn!("{}: {reason}", file.display());
        }
        Some(reason)
    }
}

/// Reads the lines of one file.
struct LineReader {
    terms: Arc<Mutex<Terms>>,
    number: u16,
    file: Arc<Path>,
    /// The line before, if it matched a rule.
    last: Option<FileMatch>,
    /// The name of this host, if a line has named it.
    named: Vec<u8>,
    tally: Arc<Mutex<Tally>>,
    counters: metrics::LineCounters,
}

impl LineReader {
    fn new(terms: Arc<Mutex<Terms>>, number: u16, file: Arc<Path>) -> LineReader {
        LineReader {
            terms,
            number,
            counters: metrics::LineCounters::new(&shown(&file)),
            file,
            last: None,
            named: Vec::new(),
            tally: Arc::default(),
        }
    }

    /// Counts a line. Returns what it reports if it matches a rule and is from `wall`, the present.
    fn read(&mut self, line: &[u8], wall: Timestamp) -> Option<FileMatch> {
        let last = self.last.take();
        let line = &*head::without_colours(line);
        let reading = match self.is_foreign(line) {
            true => Reading::Other,
            false => head::read(line),
        };
        let (found, stamp, counter) = match reading {
            Reading::Kernel { text, times, stamp } => {
                (self.matched(text, times), stamp, &self.counters.kernel)
            }
            Reading::Repeated { times, stamp } => {
                let last = last.filter(|last| now().since(last.at) < REPETITION);
                let found = last.map(|last| FileMatch { times, ..last });
                let counter = match found {
                    Some(_) => &self.counters.kernel,
                    None => &self.counters.other,
                };
                (found, stamp, counter)
            }
            Reading::Other => (None, None, &self.counters.other),
            Reading::Unknown => (None, None, &self.counters.unknown),
        };
        let is_old = found.is_some()
            && stamp.is_some_and(|stamp| {
                let zone = lock(&self.terms).zone.rules().clone();
                stamp.is_old(&wall.to_zoned(zone))
            });
        let mut tally = lock(&self.tally);
        tally.unknown = match reading {
            // An empty line, or one that continues another.
            Reading::Unknown if line.first().is_none_or(u8::is_ascii_whitespace) => tally.unknown,
            Reading::Unknown => tally.unknown.saturating_add(1),
            _ => 0,
        };
        if is_old {
            tally.old = true;
            self.counters.old.increment(1);
            return None;
        }
        counter.increment(1);
        self.last.clone_from(&found);
        found
    }

    /// Whether a line names another host. It may be an alias of this host's, unless the file shows
    /// that the writer knows this host by its name, as where other hosts forward their logs.
    fn is_foreign(&mut self, line: &[u8]) -> bool {
        let Some(host) = head::host(line) else {
            return false;
        };
        let system = rustix::system::uname();
        let ours = short(system.nodename().to_bytes());
        // `source@host/relay` of syslog-ng.
        let mut names = host.split(|byte| b"@/".contains(byte)).map(short);
        if names.any(|name| name.eq_ignore_ascii_case(ours)) {
            self.named.clear();
            self.named.extend(ours);
            return false;
        }
        self.named == ours && !ours.is_empty() && short(host) != b"localhost"
    }

    fn matched(&self, text: &[u8], times: u32) -> Option<FileMatch> {
        let rules = Arc::clone(&lock(&self.terms).rules);
        let found = rules.find(text)?;
        Some(FileMatch {
            source: self.number,
            file: Arc::clone(&self.file),
            rule: found.name.to_owned(),
            action: found.action,
            line: Line::new(text),
            times,
            at: now(),
        })
    }
}

/// The name of a host without its domain.
fn short(host: &[u8]) -> &[u8] {
    host.split(|byte| *byte == b'.').next().unwrap_or_default()
}

/// Ends a source on another thread, because that may take 2 s; a hanging one is left behind.
fn end(source: FileSource) {
    // Without a thread, dropping it asks its threads to end.
    let _ = std::thread::Builder::new().spawn(move || source.stop());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(number: u16) -> LineReader {
        let terms = Terms {
            rules: Arc::new(Rules::compile(&[]).unwrap()),
            zone: Zone::named("Europe/Berlin").unwrap(),
        };
        let file = Path::new("/var/log/kern.log").into();
        LineReader::new(Arc::new(Mutex::new(terms)), number, file)
    }

    fn text(number: u32) -> String {
        format!(
            "XFS: nginx({number}) possible memory allocation deadlock size 65728 in kmem_alloc (mode:0x250)"
        )
    }

    fn wall() -> Timestamp {
        "2026-11-20T22:00:00Z".parse().unwrap()
    }

    #[test]
    fn at_the_end_nothing_that_was_found_is_held_back_and_nothing_comes_twice() {
        let found = |source, number: u32| {
            let line = format!(
                "Nov 20 22:58:01 kvm7 kernel: [12345.678901] {}",
                text(number)
            );
            reader(source).read(line.as_bytes(), wall()).unwrap()
        };
        let mut files = LogFiles::new();
        files.waiting.push_back(found(0, 1));
        files.found.try_send(found(0, 2)).unwrap();
        // The same event in another file, and one that the kernel's log has shown.
        files.found.try_send(found(1, 2)).unwrap();
        files.kernel_matched(&found(0, 3).line, now());
        files.found.try_send(found(0, 3)).unwrap();
        let left: Vec<_> = files.drain().iter().map(|one| one.source).collect();
        assert_eq!(left, [0, 0]);
        assert!(files.drain().is_empty());
    }

    #[test]
    fn repetitions_count_only_after_a_line_that_matched() {
        let mut reader = reader(0);
        let mut times = |line: &str| {
            let found = reader.read(line.as_bytes(), wall());
            found.map_or(0, |found| found.times)
        };
        let xfs = format!("Nov 20 22:58:01 kvm7 kernel: {}", text(1));
        let last = "Nov 20 22:58:31 kvm7 last message repeated 5 times";
        assert_eq!(times(last), 0);
        assert_eq!(times(&xfs), 1);
        assert_eq!(times(last), 5);
        assert_eq!(times(last), 5);
        for between in [
            "Nov 20 22:58:30 kvm7 qemu[9]: a text",
            "Nov 20 22:58:30 kvm7 kernel: eth0: link is down",
            "no form",
        ] {
            assert_eq!(times(&xfs), 1);
            assert_eq!(times(between), 0);
            assert_eq!(times(last), 0, "{between}");
        }
        let in_one = format!(
            "Nov 20 22:58:01 kvm7 kernel: message repeated 7 times: [{}]",
            text(1)
        );
        assert_eq!(times(&in_one), 7);
        let others = "Nov 20 22:58:01 kvm7 kernel: message repeated 7 times: [ eth0: link is down]";
        assert_eq!(times(others), 0);
        // Repetitions of a line from long ago are as old.
        assert_eq!(times(&xfs), 1);
        assert_eq!(
            times("Oct 20 22:58:31 kvm7 last message repeated 5 times"),
            0
        );
        assert_eq!(times(last), 0);
    }

    #[test]
    fn in_a_file_of_several_hosts_only_lines_of_this_one_count() {
        let system = rustix::system::uname();
        let ours = system.nodename().to_str().unwrap();
        let mut reader = reader(0);
        let mut counts = |host: &str, program: &str| {
            let line = format!("Nov 20 22:58:01 {host} {program} {}", text(1));
            reader.read(line.as_bytes(), wall()).is_some()
        };
        // Perhaps this host has another name in its logs.
        assert!(counts("not-this-one", "kernel:"));
        assert!(!counts(ours, "qemu[9]:"));
        for (host, is_ours) in [
            ("not-this-one", false),
            ("kern.err not-this-one", false),
            ("10.0.0.7", false),
            (ours, true),
            (&format!("{ours}.example.org"), true),
            (&format!("s_src@{ours}/relay"), true),
            (&ours.to_uppercase(), true),
            (&format!("kern.err {ours}"), true),
            ("localhost", true),
            ("localhost.localdomain", true),
            ("kern.err", true),
        ] {
            assert_eq!(counts(host, "kernel:"), is_ours, "{host}");
        }
    }

    #[test]
    fn each_fault_of_a_file_is_reported_once_and_a_file_of_others_has_none() {
        let mut reader = reader(0);
        let file = reader.file.clone();
        let tally = Arc::clone(&reader.tally);
        let mut lines = |number: u32, line: &str| {
            for _ in 0..number {
                assert!(reader.read(line.as_bytes(), wall()).is_none());
            }
            let mut tally = lock(&tally);
            let lasts = tally.report(&file).is_some();
            (lasts, tally.unknown_reported, tally.old_reported)
        };
        assert_eq!(
            lines(200, "Nov 20 22:58:01 kvm7 qemu[9]: a text"),
            (false, false, false)
        );
        assert_eq!(
            lines(99, "2026-11-20 | kvm7 | kernel | a text"),
            (false, false, false)
        );
        assert_eq!(lines(500, "   continued"), (false, false, false));
        assert_eq!(lines(500, ""), (false, false, false));
        assert_eq!(lines(1, "{\"MESSAGE\":\"a text\"}"), (true, true, false));
        assert_eq!(
            lines(1, "Nov 20 22:58:01 kvm7 kernel: a text"),
            (false, true, false)
        );
        let old = format!("2026-02-03T01:02:03+00:00 kvm7 kernel: {}", text(1));
        assert_eq!(lines(1, &old), (false, true, true));
    }
}
