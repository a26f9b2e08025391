//! `fragwatch doctor`: what is wrong with this host, in words.
//!
//! ```text
//! files, tasks ─► readings ─► checks (pure) ─► diagnosis ─► report: text, JSON
//!                                 ▲
//!                  table: identifiers and their texts ─► manual page, --explain
//! ```
//!
//! A check never opens an image, and never waits for a disk: [`readings`] reads /proc, /sys and a few
//! files of /etc once, with one deadline, and a process of its own the geometry of each XFS ([`xfs`]); the
//! checks decide from that alone.
//!
//! # How to add a check
//!
//! 1. [`table`]: a row with the next free identifier and all its texts. Identifiers are never
//!    changed and never used again. 001 to 099: what hurts now; 101 to 199: kernel and memory
//!    settings; 201 to 299: file systems; 301 to 399: images; 401 to 499: fragwatch itself.
//! 2. [`checks`]: a function from [`Readings`] to [`Found`]s, in the file of its family, and a line in
//!    [`checks::CHECKS`]. It returns an error if it cannot be made, and nothing if the kernel does not
//!    have what it is about. What it reads from a file is listed in [`readings`], a line a file.
//! 3. `tests.rs`: a made-up tree that fires it, with the exact sentence, one that does not,
//!    one that cannot be read. The manual page and `--explain` follow from the table.

pub mod checks;
pub mod files;
pub mod outcome;
pub mod pipes;
pub mod readings;
pub mod report;
pub mod table;
pub mod tasks;
#[cfg(test)]
mod tests;
pub mod writers;
pub mod xfs;

use crate::config::settings::Silence;
use crate::model::{CheckId, Diagnosis, Finding, Severity, Unchecked};
use outcome::{Found, NotChecked};
use readings::Readings;

/// Makes all checks.
pub fn examine(readings: &Readings) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    for (number, check) in checks::CHECKS {
        let id = CheckId(*number);
        match check(readings) {
            Ok(found) => {
                diagnosis.checked += 1;
                let silence = &readings.own.settings.doctor.silence;
                let findings = found.into_iter().map(|it| finding(id, it, silence));
                diagnosis.findings.extend(findings);
            }
            Err(NotChecked::NeedsWatch) => diagnosis.need_watch.push(id),
            Err(NotChecked::Because(reason)) => diagnosis.unchecked.push(Unchecked { id, reason }),
        }
    }
    let order = |it: &Finding| (it.silenced.is_some(), std::cmp::Reverse(it.severity), it.id);
    diagnosis.findings.sort_by_key(order);
    diagnosis
}

fn finding(id: CheckId, found: Found, silence: &[Silence]) -> Finding {
    let severity = table::entry(id).map_or(Severity::Warning, |entry| entry.severity);
    let silenced = silence.iter().find(|silence| silence.id == id);
    Finding {
        id,
        severity: found.severity.unwrap_or(severity),
        what: found.what,
        read: found.read,
        silenced: silenced.map(|silence| silence.reason.clone()),
    }
}
