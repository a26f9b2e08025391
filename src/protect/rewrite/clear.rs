//! The guards of a rewrite, and the map that it is planned by.

use std::cell::RefCell;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{AtFlags, statat};
use rustix::io::Errno;

use super::plan::{self, Plan, Planner};
use crate::defrag::HostInterfaces;
use crate::defrag::awake::Awake;
use crate::defrag::engine::{Controls, count, lock_filesystem, raise_gate};
use crate::defrag::gate::Gate;
use crate::defrag::guard::{self, Target};
use crate::model::image::{kept_name, kept_path};
use crate::model::path::shown;
use crate::model::{Bytes, Extent, ExtentCount, ReasonCode, Refusal, RunOutcome};
use crate::probe::extents::{MapReader, ReadPace};
use crate::protect::kernel;
use crate::sys::fsxattr::{self, Hint};
use crate::sys::geometry;

/// An image behind a raised gate, which no guard refuses.
pub(super) struct Cleared {
    pub(super) from: ExtentCount,
    pub(super) plan: Plan,
    // In this order: openers must not wait for a process that can be stopped.
    pub(super) gate: Gate,
    pub(super) awake: Awake,
    pub(super) turn: File,
}

/// Checks all guards, raises the gate and plans.
pub(super) fn clear(controls: &mut Controls<'_, '_>, unshare: bool) -> Result<Cleared, RunOutcome> {
    let target = controls.target;
    let (host, limits) = (controls.request.host, controls.request.limits);
    check_kernel(target, host, &limits.trusted_kernels)?;
    let turn = lock_filesystem(target)?;
    check_fit(target, host)?;
    controls.check_pressure(false)?;
    // The map has the truth about what is on disk. Most of the work before openers have to wait.
    target.file.sync_all()?;
    let awake = Awake::start();
    let mut gate = raise_gate(&target.file, host)?;
    guard::check_unused(target, &mut gate, host)?;
    guard::check_settled(target, &mut gate)?;
    target.file.sync_all()?;
    let hint = choose_hint(target)?;
    let plan = plan(controls, &mut gate, hint, unshare)?;
    // Checked again behind the gate: before it was raised, everything could change.
    check_fit(target, host)?;
    let from = count(target)?;
    if plan.is_ideal(from) {
        return Err(guard::near_ideal(from).into());
    }
    guard::check_space(target, plan.needs(), limits.keep_free)?;
    controls.check_pressure(true)?;
    Ok(Cleared {
        from,
        plan,
        gate,
        awake,
        turn,
    })
}

/// Checks that an extent-size hint does no harm on this file system.
fn check_kernel(target: &Target, host: &HostInterfaces, trusted: &[String]) -> Result<(), Refusal> {
    if geometry::geometry(&target.file)?.flags & geometry::FLAG_REFLINK == 0 {
        return Ok(());
    }
    match kernel::obstacle(&host.proc, trusted) {
        Some(why) => Err(Refusal::new(ReasonCode::Kernel, why)),
        None => Ok(()),
    }
}

/// Checks the conditions that can be checked at any time.
pub(super) fn check_fit(target: &Target, host: &HostInterfaces) -> Result<(), Refusal> {
    let attributes = guard::check_marks(target, host)?;
    if attributes.flags & guard::DAX != 0 {
        return Err(ReasonCode::Dax.into());
    }
    let metadata = target.file.metadata()?;
    if metadata.nlink() != 1 {
        let text = format!(
            "has {} names (hard links), and only one of them would lead to the new file",
            metadata.nlink()
        );
        return Err(Refusal::new(ReasonCode::HardLinks, text));
    }
    if metadata.len() == 0 {
        return Err(guard::near_ideal(ExtentCount(0)));
    }
    match statat(
        &target.directory,
        kept_name(&target.path),
        AtFlags::SYMLINK_NOFOLLOW,
    ) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => {
            let kept = shown(&kept_path(&target.path));
            let text = format!(
                "{kept} exists: if it was kept by an earlier rewrite, `fragwatch protect \
                 --rewrite-finish` removes it"
            );
            Err(Refusal::new(ReasonCode::KeptFile, text))
        }
    }
}

/// The largest of the hints of the image and of its directory, and [`plan::default_hint`], as the kernel
/// accepts it.
fn choose_hint(target: &Target) -> Result<Bytes, Refusal> {
    let geometry = geometry::geometry(&target.file)?;
    let own = fsxattr::attributes(&target.file)?;
    let directory = fsxattr::attributes(&target.directory)?;
    let in_force = |attributes: fsxattr::Attributes, hint| {
        let size = attributes.hint(hint);
        Bytes(size.unwrap_or(0).into())
    };
    let size = Bytes(target.file.metadata()?.len());
    let found = in_force(own, Hint::Own)
        .max(in_force(directory, Hint::Inherited))
        .max(plan::default_hint(size));
    let block = u64::from(geometry.block_size);
    let group = block.saturating_mul(geometry.group_blocks.into());
    Ok(plan::fitting_hint(found, block, group))
}

/// Reads the map, serving the gate. Nothing is begun yet: whoever opens the image gets it.
fn plan(
    controls: &mut Controls<'_, '_>,
    gate: &mut Gate,
    hint: Bytes,
    unshare: bool,
) -> Result<Plan, RunOutcome> {
    let file = &controls.target.file;
    let mut planner = Planner::new(Bytes(file.metadata()?.len()), hint);
    let checked: RefCell<Result<(), RunOutcome>> = RefCell::new(Ok(()));
    let mut beat = || {
        let mut checked = checked.borrow_mut();
        if let Some(why) = controls.stop() {
            *checked = Err(RunOutcome::Stopped { why });
        } else if let Err(used) = guard::let_in(gate) {
            *checked = Err(used.into());
        }
    };
    let visit = |extent: Extent| {
        planner.push(&extent);
        let goes_on = checked.borrow().is_ok() && (unshare || !extent.flags.shared);
        match goes_on {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    };
    MapReader::default().read(file, Bytes(0), ReadPace::QUICK, visit, &mut beat)?;
    checked.into_inner()?;
    if planner.shares() && !unshare {
        let text = "shares blocks with a reflink copy, which would take their space twice; --force \
                    rewrites it all the same";
        return Err(Refusal::new(ReasonCode::SharesBlocks, text).into());
    }
    Ok(planner.finish())
}
