//! Drills: a record in the kernel log that takes the full path of an emergency, up to the write.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use super::ladder::LadderSettings;
use crate::klog::DRILL_MARKER;
use crate::model::RescueStep;
use crate::sys::proc::number;

/// Writes the record of a drill to the kernel log at level 6. Only the kernel itself can write
/// records with its own facility, so the facility of this one differs.
pub fn write(kmsg: &Path, nonce: u64) -> io::Result<()> {
    let mut record = b"<6>".to_vec();
    record.extend(DRILL_MARKER);
    record.extend(nonce.to_string().bytes());
    record.push(b'\n');
    OpenOptions::new()
        .write(true)
        .open(kmsg)?
        .write_all(&record)
}

/// Number of a drill in the text of its record; 0 for other records.
pub(super) fn nonce(text: &[u8]) -> u64 {
    let digits = text.strip_prefix(DRILL_MARKER);
    digits.and_then(number).unwrap_or(0)
}

/// Settings under which each drill orders one step at once, regardless of earlier drills.
pub(super) fn ladder() -> LadderSettings {
    LadderSettings {
        steps: vec![RescueStep::DropSlab],
        min_interval: Duration::ZERO,
        quiet_after: Duration::from_secs(1),
        max_actions_per_hour: 1,
    }
}
