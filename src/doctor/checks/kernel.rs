//! Defects of the running kernel.

use crate::defrag::kernels::release::{Level, Running};
use crate::defrag::kernels::table::{DEFECTS, Defect};
use crate::doctor::files::Reading;
use crate::doctor::outcome::{Checked, Found, NotChecked};
use crate::doctor::readings::Readings;

/// statfs that waits for the background freeing of blocks.
pub fn statfs_hangs(readings: &Readings) -> Checked {
    let affected = exact(readings)?.filter(|it| is_affected(it, "5.14", &["5.15.134", "5.19-rc5"]));
    let Some(kernel) = affected else {
        return Ok(Vec::new());
    };
    let release = &kernel.release;
    let what = format!("On this kernel ({release}), statfs of an XFS can wait for deleted files.");
    Ok(vec![Found::new(what, vec![level(kernel)])])
}

/// The kernel, if an XFS is mounted and it has nothing that its level does not name: a distribution
/// may have added repairs.
fn exact(readings: &Readings) -> Reading<Option<&Running>> {
    Ok(with_xfs(readings)?.filter(|kernel| kernel.exact))
}

/// The kernel, if an XFS is mounted.
pub(super) fn with_xfs(readings: &Readings) -> Reading<Option<&Running>> {
    let kernel = readings.kernel.as_ref().map_err(Clone::clone)?;
    let mounts = readings.mounts.as_ref().map_err(Clone::clone)?;
    let has_xfs = mounts.iter().any(|mount| mount.type_name == "xfs");
    Ok(Some(kernel).filter(|_| has_xfs))
}

/// The defect that needs no engine.
const WRITES_ELSEWHERE: Option<&str> = Some("CVE-2026-64600");

/// Direct writes to shared blocks that land in another file.
pub fn writes_elsewhere(readings: &Readings) -> Checked {
    let harm = "a direct write to blocks that a reflink copy shares can land in another file";
    defects(readings, |defect| defect.cve == WRITES_ELSEWHERE, |_| harm)
}

/// The other defects of the table of the engines.
pub fn engine_defects(readings: &Readings) -> Checked {
    defects(
        readings,
        |defect| defect.cve != WRITES_ELSEWHERE,
        |defect| defect.harm,
    )
}

fn defects(
    readings: &Readings,
    is_meant: impl Fn(&Defect) -> bool,
    harm: impl Fn(&Defect) -> &'static str,
) -> Checked {
    let vouched = &readings.own.settings.defrag.trusted_kernels;
    let kernel = with_xfs(readings)?.filter(|kernel| !vouched.contains(&kernel.release));
    // All of them need shared blocks. An XFS that does not answer may have some.
    let Some(kernel) = kernel.filter(|_| readings.xfs.may_share()) else {
        return Ok(Vec::new());
    };
    let has = |defect: &Defect| kernel.level.is_none_or(|level| defect.is_in(level));
    let defects = DEFECTS.iter();
    let mut defects = defects
        .filter(|defect| is_meant(defect) && has(defect))
        .peekable();
    if !kernel.exact && defects.peek().is_some() {
        return Err(NotChecked::because(
            "the level of this kernel does not show whether its vendor has repaired it; `fragwatch \
             status` has the judgement of its changelog"
                .to_owned(),
        ));
    }
    let found = defects.map(|defect| {
        let (release, commit, title) = (&kernel.release, defect.commit, defect.title());
        let what = format!(
            "This kernel ({release}) lacks {commit} \"{title}\": {}.",
            harm(defect)
        );
        Found::new(what, vec![level(kernel)])
    });
    Ok(found.collect())
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

/// Whether a kernel is from `first` on and not repaired: `repaired` has the first repaired level of each
/// series, mainline's last.
pub(super) fn is_affected(kernel: &Running, first: &str, repaired: &[&str]) -> bool {
    let mut repairs = repaired.iter().filter_map(|level| Level::parse(level));
    kernel.level.is_some_and(|level| {
        let last = repairs.clone().next_back();
        let is_repaired = match repairs.find(|it| it.series() == level.series()) {
            Some(here) => level >= here,
            None => last.is_some_and(|last| level.series() > last.series()),
        };
        Level::parse(first) <= Some(level) && !is_repaired
    })
}

/// What was read of the version.
pub(super) fn level(kernel: &Running) -> String {
    let level = kernel
        .level
        .map_or("unknown".to_owned(), |it| it.to_string());
    format!("level {level} ({})", kernel.source)
}
