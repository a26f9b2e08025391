//! Defects of the running kernel.

use crate::defrag::kernels::release::{Level, Running};
use crate::doctor::outcome::{Checked, Found};
use crate::doctor::readings::Readings;

/// statfs that waits for the background freeing of blocks.
pub fn statfs_hangs(readings: &Readings) -> Checked {
    let kernel = readings.kernel.as_ref().map_err(Clone::clone)?;
    let mounts = readings.mounts.as_ref().map_err(Clone::clone)?;
    let has_xfs = mounts.iter().any(|mount| mount.type_name == "xfs");
    // A distribution may have added the repair to a level without it.
    if !has_xfs || !kernel.exact || !is_between(kernel, "5.14", "5.19-rc5", "5.15.134") {
        return Ok(Vec::new());
    }
    let release = &kernel.release;
    let what = format!("On this kernel ({release}), statfs of an XFS can wait for deleted files.");
    Ok(vec![Found::new(what, vec![level(kernel)])])
}

/// A kernel that has used up its reports of hung tasks.
pub fn no_reports_left(readings: &Readings) -> Checked {
    const WARNINGS: &str = "proc/sys/kernel/hung_task_warnings";
    const TIMEOUT: &str = "proc/sys/kernel/hung_task_timeout_secs";
    let left = readings.now.number(WARNINGS)?;
    // -1 is no limit.
    let is_used_up = left == Some(0) && readings.now.number(TIMEOUT)? != Some(0);
    let what = "The kernel has no report of a hung task left.".to_owned();
    let read = || vec![readings.now.shown(WARNINGS)];
    Ok(Vec::from_iter(is_used_up.then(|| Found::new(what, read()))))
}

/// Whether a kernel is from `first` on, before `repaired`, and not in the series of `also` from that
/// level on.
fn is_between(kernel: &Running, first: &str, repaired: &str, also: &str) -> bool {
    let [first, repaired, also] = [first, repaired, also].map(Level::parse);
    kernel.level.is_some_and(|level| {
        let is_repaired_here =
            also.is_some_and(|also| level.series() == also.series() && level >= also);
        first <= Some(level) && Some(level) < repaired && !is_repaired_here
    })
}

/// What was read of the version.
fn level(kernel: &Running) -> String {
    let level = kernel
        .level
        .map_or("unknown".to_owned(), |it| it.to_string());
    format!("level {level} ({})", kernel.source)
}
