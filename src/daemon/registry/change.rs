//! What has changed from one sweep to the next and is worth a line in the log.

use std::path::PathBuf;

use crate::assess::Reason;
use crate::model::{Bytes, ExtentCount, Forecast, Growth, ImageId, Owner, Severity};
use crate::probe::protocol::Fault;

/// A change.
#[derive(Debug, PartialEq)]
pub(in crate::daemon) enum Change {
    Appeared(PathBuf, ExtentCount),
    /// From which path to which.
    Renamed(PathBuf, PathBuf),
    Vanished(PathBuf),
    Severity(Box<SeverityChange>),
    /// Some of its openers use the page cache and some do not, and it is written to.
    MixedOpeners(PathBuf, Owner),
    Fault(Fault),
    /// What was a fault in the sweep before.
    Mended(PathBuf),
}

/// A severity that is another one now.
#[derive(Debug, PartialEq)]
pub(in crate::daemon) struct SeverityChange {
    pub(in crate::daemon) subject: Subject,
    pub(in crate::daemon) from: Severity,
    pub(in crate::daemon) to: Severity,
    /// Why it is what it is.
    pub(in crate::daemon) reason: Reason,
}

/// What has a severity.
#[derive(Debug, PartialEq)]
pub(in crate::daemon) enum Subject {
    Image {
        id: ImageId,
        path: PathBuf,
        /// The name of the VM that has it open.
        vm: Option<String>,
        extents: ExtentCount,
        growth: Growth,
        forecast: Forecast,
    },
    /// All extent maps together take so much.
    Host { memory: Bytes },
}

impl SeverityChange {
    /// The change from one severity to another; `None` if they are the same.
    pub(super) fn between(
        (from, to): (Severity, Severity),
        reason: Reason,
        subject: impl FnOnce() -> Subject,
    ) -> Option<Change> {
        (from != to).then(|| {
            let subject = subject();
            Change::Severity(Box::new(SeverityChange {
                subject,
                from,
                to,
                reason,
            }))
        })
    }

    /// The image that has it; `None` if it is the host's.
    pub(in crate::daemon) fn image(&self) -> Option<ImageId> {
        match self.subject {
            Subject::Image { id, .. } => Some(id),
            Subject::Host { .. } => None,
        }
    }
}
