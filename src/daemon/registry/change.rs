//! Changes from one sweep to the next that are worth a line in the log.

use std::path::PathBuf;

use crate::assess::Reason;
use crate::model::{Bytes, ExtentCount, Forecast, Growth, ImageRef, Owner, Severity};
use crate::probe::protocol::Fault;

#[derive(Debug, PartialEq)]
pub(in crate::daemon) enum Change {
    Appeared(PathBuf, ExtentCount),
    /// From the first path to the second.
    Renamed(PathBuf, PathBuf),
    Vanished(PathBuf),
    Severity(Box<SeverityChange>),
    /// Some openers use the page cache, some do not, and the image is written to.
    MixedOpeners(PathBuf, Owner),
    Fault(Fault),
    /// A fault of the previous sweep is gone.
    Mended(PathBuf),
}

#[derive(Debug, PartialEq)]
pub(in crate::daemon) struct SeverityChange {
    pub(in crate::daemon) subject: Subject,
    pub(in crate::daemon) from: Severity,
    pub(in crate::daemon) to: Severity,
    /// The reason for the new severity.
    pub(in crate::daemon) reason: Reason,
}

#[derive(Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "it is in a box")]
pub(in crate::daemon) enum Subject {
    Image {
        image: ImageRef,
        /// The name of the VM that has the image open.
        vm: Option<String>,
        extents: ExtentCount,
        growth: Growth,
        forecast: Forecast,
    },
    /// All extent maps together.
    Host { memory: Bytes },
}

impl SeverityChange {
    /// `None` if the severities are equal.
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
}
