//! The followed log files, each on its own threads, so that a hanging file system does not delay
//! the others. Matches go to the slow side of the rescue.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::klog::Rules;
use crate::klog::dedup::{Dedup, Source};
use crate::klog::file::{self, Down, FileSource};
use crate::klog::syslog::kernel_text;
use crate::klog::tail::Line as FileLine;
use crate::model::path::shown;
use crate::model::{Monotonic, RuleAction};
use crate::rescue::clock::now;
use crate::rescue::entry::Line;
use crate::serve::parts::{Part, State};
use crate::serve::shared_status::SharedStatus;

/// Maximum queued matches. More are a storm, of which one is enough.
const WAITING: usize = 256;
/// Time within which a line in the kernel log and in a file, or in two files, is the same event.
const SAME_EVENT: Duration = Duration::from_secs(10);
/// How long a line of a file waits for its duplicate from the kernel log, which takes precedence.
const KMSG_TIMEOUT: Duration = Duration::from_secs(1);

/// A line of a file that matched a rule.
#[derive(Debug)]
pub(super) struct FileMatch {
    source: u16,
    pub(super) file: Arc<Path>,
    /// The name of the rule.
    pub(super) rule: String,
    pub(super) action: RuleAction,
    pub(super) line: Line,
    at: Monotonic,
}

/// The files that are followed.
pub(super) struct LogFiles {
    files: Vec<PathBuf>,
    sources: Vec<(Arc<Path>, FileSource)>,
    /// The number of the next source; not reused soon.
    next: u16,
    /// The rules for the threads of the sources. Locked only for copying.
    rules: Arc<Mutex<Arc<Rules>>>,
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
            rules: Arc::default(),
            found,
            matches,
            waiting: VecDeque::new(),
            dedup: Dedup::new(SAME_EVENT),
        }
    }

    /// Follows these files, by these rules. Files followed before continue at their position. A
    /// file that cannot be followed is logged and left out.
    pub(super) fn follow(&mut self, files: &[PathBuf], rules: &Arc<Rules>, board: &SharedStatus) {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(rules);
        let (kept, gone) = std::mem::take(&mut self.sources)
            .into_iter()
            .partition(|(path, _)| files.iter().any(|file| **file == **path));
        self.sources = kept;
        for (path, source) in gone {
            info!("no longer following {}", path.display());
            end(source);
        }
        for file in files {
            if !self.sources.iter().any(|(path, _)| **path == **file) {
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
        let (rules, found, name) = (
            Arc::clone(&self.rules),
            self.found.clone(),
            Arc::clone(&path),
        );
        let on_line = move |line: FileLine<'_>| {
            let rules = Arc::clone(&rules.lock().unwrap_or_else(PoisonError::into_inner));
            if let Some(found_line) = matched(&rules, number, &name, line.bytes) {
                // A full queue holds more than enough.
                let _ = found.try_send(found_line);
            }
        };
        match FileSource::start(
            file::Settings::default(),
            file.to_owned(),
            Box::new(on_line),
        ) {
            Ok(source) => {
                info!("following {}", path.display());
                self.sources.push((path, source));
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
            let due = self
                .waiting
                .front()
                .map(|first| KMSG_TIMEOUT.saturating_sub(now().since(first.at)));
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
            let source = self.sources.iter().find(|(path, _)| **path == **file);
            let down = match source {
                Some((_, source)) => source.state().down,
                None => {
                    let reason = "it cannot be followed, see the log".to_owned();
                    board.set_part(Part::LogFile(shown(file)), State::Down(reason));
                    continue;
                }
            };
            let state = match down {
                None => State::Up,
                // Known within a second.
                Some(Down::NotYet) => continue,
                Some(down) => State::Down(down.to_string()),
            };
            board.set_part(Part::LogFile(shown(file)), state);
        }
    }
}

/// Ends a source on another thread, because that may take 2 s; a hanging one is left behind.
fn end(source: FileSource) {
    // Without a thread, dropping it asks its threads to end.
    let _ = std::thread::Builder::new().spawn(move || source.stop());
}

fn matched(rules: &Rules, source: u16, file: &Arc<Path>, line: &[u8]) -> Option<FileMatch> {
    let text = kernel_text(line)?;
    let found = rules.find(text)?;
    Some(FileMatch {
        source,
        file: Arc::clone(file),
        rule: rules.name(found.rule).unwrap_or("unknown").to_owned(),
        action: found.action,
        line: Line::new(text),
        at: now(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_the_end_nothing_that_was_found_is_held_back_and_nothing_comes_twice() {
        let rules = Rules::compile(&[]).unwrap();
        let file: Arc<Path> = Path::new("/var/log/kern.log").into();
        let found = |source, number: u32| {
            let text = format!(
                "XFS: nginx({number}) possible memory allocation deadlock size 65728 in kmem_alloc (mode:0x250)"
            );
            let line = format!("Nov 20 22:58:01 kvm7 kernel: [12345.678901] {text}");
            matched(&rules, source, &file, line.as_bytes()).unwrap()
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
}
