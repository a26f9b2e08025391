//! Drills: a record in the kernel's log that goes all the way of an emergency, up to the write.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use super::ladder::LadderSettings;
use crate::klog::DRILL_MARKER;
use crate::model::RescueStep;
use crate::sys::proc::number;

/// Writes the record of a drill to the kernel's log, at level 6. Its facility is not the kernel's
/// own, which only the kernel can write.
///
/// # Errors
/// Those of opening and writing.
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

/// The number of a drill in the text of its record; 0 if it is not the record of a drill.
pub(super) fn nonce(text: &[u8]) -> u64 {
    let digits = text.strip_prefix(DRILL_MARKER);
    digits.and_then(number).unwrap_or(0)
}

/// A drill orders one step at once, whatever was drilled before.
pub(super) fn ladder() -> LadderSettings {
    LadderSettings {
        steps: vec![RescueStep::DropSlab],
        min_interval: Duration::ZERO,
        quiet_after: Duration::from_secs(1),
        max_actions_per_hour: 1,
    }
}
