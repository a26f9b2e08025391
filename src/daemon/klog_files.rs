//! The followed log files: each with a thread of its own, so that one on a file system that hangs
//! keeps no other; what they find is handed to the slow side of the rescue.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::config::settings::Klog;
use crate::klog::file::FileSource;
use crate::klog::tail::{Dedup, Source, kernel_text};
use crate::klog::{RuleId, Rules};
use crate::model::{Monotonic, RuleAction};
use crate::rescue::clock::now;
use crate::rescue::entry::Line;
use crate::serve::metrics;

/// Matches that wait to be heard, at most. More are a storm, of which one is enough.
const WAITING: usize = 256;
/// One event comes through the kernel's log and through a file at nearly the same time; within this
/// time the second is not news.
const SAME_EVENT: Duration = Duration::from_secs(10);
/// How long a line of a file waits for its like from the kernel's log, which is to be believed
/// first.
const PATIENCE: Duration = Duration::from_secs(1);

/// A line of a file that matched a rule.
#[derive(Debug)]
pub(super) struct FileMatch {
    file: u16,
    pub(super) rule: RuleId,
    pub(super) action: RuleAction,
    pub(super) line: Line,
    at: Monotonic,
}

/// The files that are followed.
pub(super) struct LogFiles {
    paths: Vec<PathBuf>,
    sources: Vec<(PathBuf, FileSource)>,
    matches: mpsc::Receiver<FileMatch>,
    waiting: VecDeque<FileMatch>,
    dedup: Dedup,
}

impl LogFiles {
    /// Begins to follow them. One that cannot be followed is told and left out.
    pub(super) fn start(settings: &Klog, rules: &Arc<Rules>) -> Self {
        let (found, matches) = mpsc::channel(WAITING);
        let mut sources = Vec::new();
        for (number, path) in (0..).zip(&settings.files) {
            let (rules, found) = (Arc::clone(rules), found.clone());
            let on_line = move |_: &Path, line: crate::klog::tail::Line<'_>| {
                if let Some(found_line) = matched(&rules, number, line.bytes) {
                    // Full: there are more than enough.
                    let _ = found.try_send(found_line);
                }
            };
            match FileSource::start(vec![path.clone()], Box::new(on_line)) {
                Ok(source) => {
                    info!("following {}", path.display());
                    sources.push((path.clone(), source));
                }
                Err(reason) => warn!("cannot follow {}: {reason}", path.display()),
            }
        }
        LogFiles {
            paths: settings.files.clone(),
            sources,
            matches,
            waiting: VecDeque::new(),
            dedup: Dedup::new(SAME_EVENT),
        }
    }

    /// A record of the kernel's own log matched: its like in a file is not news.
    pub(super) fn kernel_said(&mut self, line: &Line, at: Monotonic) {
        // The kernel is always believed.
        let _ = self.dedup.is_news(Source::Kmsg, line.bytes(), at);
    }

    /// The next event that only a file has told.
    pub(super) async fn next(&mut self) -> FileMatch {
        loop {
            let due = self
                .waiting
                .front()
                .map(|first| PATIENCE.saturating_sub(now().since(first.at)));
            tokio::select! {
                Some(found) = self.matches.recv() => self.waiting.push_back(found),
                () = tokio::time::sleep(due.unwrap_or(Duration::MAX)), if due.is_some() => {
                    if let Some(first) = self.waiting.pop_front()
                        && self.dedup.is_news(Source::File(first.file), first.line.bytes(), first.at)
                    {
                        return first;
                    }
                }
                // No source and nothing waiting: there never will be anything.
                else => std::future::pending().await,
            }
        }
    }

    /// The file of a match.
    pub(super) fn path(&self, found: &FileMatch) -> &Path {
        self.paths
            .get(usize::from(found.file))
            .map_or(Path::new(""), PathBuf::as_path)
    }

    /// Tells the metrics which of them can be read.
    pub(super) fn tell_states(&self) {
        for (path, source) in &self.sources {
            let up = source.state().iter().all(|state| state.down.is_none());
            metrics::klog_source(&crate::model::path::shown(path), up);
        }
    }
}

impl Drop for LogFiles {
    /// Follows them no longer. One that hangs is left behind.
    fn drop(&mut self) {
        for (_, source) in self.sources.drain(..) {
            // It waits two seconds at most; not here. Without a thread it is left running.
            let _ = std::thread::Builder::new().spawn(move || source.stop());
        }
    }
}

fn matched(rules: &Rules, file: u16, line: &[u8]) -> Option<FileMatch> {
    let text = kernel_text(line)?;
    let found = rules.find(text)?;
    Some(FileMatch {
        file,
        rule: found.rule,
        action: found.action,
        line: Line::new(text),
        at: now(),
    })
}
