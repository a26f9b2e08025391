//! What the system runs at times.

use crate::defrag::kernels::release::Level;
use crate::doctor::outcome::{Checked, Found, NotChecked};
use crate::doctor::readings::{DISK, Readings};
use crate::model::path::printable;

const PROGRAM: &str = "xfs_fsr";
/// The first kernel with timestamps fine enough: 1cf7e834a6fb.
const SAFE: &str = "6.13";

/// xfs_fsr in cron or in a unit of systemd, on a kernel on which it can lose a write.
pub fn xfs_fsr(readings: &Readings) -> Checked {
    let kernel = readings.kernel.as_ref().map_err(Clone::clone)?;
    // A kernel of a distribution with an older number has not got multigrain timestamps.
    if kernel.level.is_none() {
        let why = "the level of the kernel is unknown";
        return Err(NotChecked::because(why.to_owned()));
    }
    if kernel.level >= Level::parse(SAFE) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in DISK.iter().map(|pattern| readings.now.all(pattern)) {
        for entry in entry? {
            let text = String::from_utf8_lossy(entry.text.as_deref().unwrap_or_default());
            let mut lines = text.lines().map(str::trim);
            let is_it = |line: &&str| line.contains(PROGRAM) && !line.starts_with(['#', ';']);
            if let Some(line) = lines.find(is_it) {
                let what = format!("/{} runs {PROGRAM}.", printable(entry.name.as_bytes()));
                found.push(Found::new(what, vec![printable(line.as_bytes())]));
            }
        }
    }
    Ok(found)
}
