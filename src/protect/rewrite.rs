//! Rewrites an idle image, so that it has few extents and its guest can make few new ones: the
//! remedy where holes or unwritten gaps keep the extents of an image apart, which no engine of
//! [`defrag`](crate::defrag) changes.
//!
//! ```text
//! guards ─► gate raised ─► guards, map ─► plan (pure) ─► copy ─► verify ─► metadata
//!                                                                             │
//!  old file immutable, kept ◄─ exchange ◄─ link ◄─ history ◄─ note ◄─ unchanged?
//! ```
//!
//! - **The copy** has an extent-size hint and no name (O_TMPFILE), so a kill or a power failure
//!   leaves nothing of it, and nobody can open it. Gaps shorter than the hint are written as zeros,
//!   which reads the same: an unwritten gap would remain a record of its own, and the hint
//!   allocates its space anyway. Longer holes stay holes, and longer unwritten gaps unwritten.
//! - **It is verified** by reading both files from disk, by SEEK_DATA and not by the map that was
//!   copied by.
//! - **Openers** wait at the [gate](crate::defrag::gate), as during a run of xfs_fsr. One that comes
//!   before the exchange ends the rewrite, and gets the image as it is. What may come during and
//!   after the exchange is the subject of [`commit`].
//! - **A name for it** exists only between link and exchange: `IMAGE.before-rewrite`, which from the
//!   exchange on is that of the old file. So at every moment the image is whole under its name, and
//!   there is at most one other file, which the [`note`] identifies.
//! - **The old file is kept** until the operator removes it ([`finish`]). It is made immutable:
//!   whoever still has a way to it (an NFS handle, an overlay) gets an error instead of losing
//!   writes, and no VM is started from it by mistake.
//! - **The history** goes on: the row of the image gets the new identity before the exchange.

mod commit;
mod copy;
mod metadata;
mod note;
mod plan;

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, statat};
use rustix::io::Errno;

use crate::defrag::HostInterfaces;
use crate::defrag::awake::Awake;
use crate::defrag::engine::{
    Controls, Event, Request, count, failed, lock_filesystem, monotonic, raise_gate,
};
use crate::defrag::gate::Gate;
use crate::defrag::guard::{self, Target};
use crate::defrag::run::{Input, Machine, RunState};
use crate::model::image::KEPT_SUFFIX;
use crate::model::path::shown;
use crate::model::{
    Bytes, Extent, ExtentCount, ReasonCode, Refusal, RunForecast, RunOutcome, Stop,
};
use crate::probe::extents::{MapReader, ReadPace};
use crate::sys::{fsxattr, geometry};
use copy::Copier;
use metadata::Metadata;
pub use note::{finish, recover};
use plan::{Plan, Planner};

const STUCK_TIMEOUT: Duration = Duration::from_secs(600);
const INTERVAL: Duration = Duration::from_millis(5);

/// A rewrite to be carried out.
pub struct Rewrite<'a> {
    /// The image, the limits in force, and who may stop it. With `dry_run` all guards are checked,
    /// and nothing is changed.
    pub request: Request<'a>,
    /// The extent-size hint; `None`: the largest of those of the image and of its directory, and
    /// [`plan::default_hint`].
    pub hint: Option<Bytes>,
    /// Also if the image shares blocks with another file, which then takes their space twice.
    pub unshare: bool,
    /// The history, which goes on under the new identity.
    pub database: &'a Path,
    /// Receives how many bytes of how many are done.
    pub progress: &'a mut dyn FnMut(Bytes, Bytes),
}

/// A finished rewrite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// Extents before.
    pub from: ExtentCount,
    /// Extents of the copy.
    pub to: ExtentCount,
    /// The extent-size hint of the copy.
    pub hint: Bytes,
    /// What the copy occupies.
    pub allocated: Bytes,
    /// The old file.
    pub kept: PathBuf,
}

/// Rewrites one image. The error is the outcome of a rewrite that left it as it was.
pub fn run(rewrite: Rewrite<'_>) -> Result<Rewritten, RunOutcome> {
    let Rewrite {
        request,
        hint,
        unshare,
        database,
        progress,
    } = rewrite;
    let (host, limits) = (request.host, request.limits);
    if !limits.dry_run {
        recover(&host.hints, |text| {
            (request.watch)(Event::Notice(text));
        });
    }
    let target = guard::open(request.path, host)?;
    let mut controls = Controls::new(request, &target);
    let cleared = clear(&mut controls, hint, unshare)?;
    let (from, plan) = (cleared.from, cleared.plan);
    if limits.dry_run {
        let (copies, stall) = (plan.needs(), Duration::ZERO);
        let forecast = RunForecast::Copy { copies, stall };
        return Err(RunOutcome::WouldRun { forecast });
    }
    let metadata = Metadata::of(&target.file).map_err(cannot("its attributes cannot be read"))?;
    let mut work = Work {
        machine: Machine::new(monotonic(), STUCK_TIMEOUT),
        moved: Bytes(0),
        total: Bytes(plan.data().0.saturating_mul(4)),
        gate: cleared.gate,
        controls: &mut controls,
        progress,
    };
    let mut copier = Copier::new(&target, &metadata, plan.hint)?;
    copier.copy(&mut work, &plan, limits.keep_free)?;
    copier.verify(&mut work)?;
    let copy = copier.finish();
    metadata.carry_over(&copy)?;
    let to = ExtentCount(fsxattr::attributes(&copy)?.extents.into());
    let allocated = Bytes(copy.metadata()?.blocks().saturating_mul(512));
    let kept = commit::exchange(&mut work, &copy, &metadata, database)?;
    let hint = plan.hint;
    Ok(Rewritten {
        from,
        to,
        hint,
        allocated,
        kept,
    })
}

struct Cleared {
    from: ExtentCount,
    plan: Plan,
    // In this order: openers must not wait for a process that can be stopped.
    gate: Gate,
    _awake: Awake,
    _turn: File,
}

fn clear(
    controls: &mut Controls<'_, '_>,
    hint: Option<Bytes>,
    unshare: bool,
) -> Result<Cleared, RunOutcome> {
    let target = controls.target;
    let (host, limits) = (controls.request.host, controls.request.limits);
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
    let hint = choose_hint(target, hint)?;
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
        _awake: awake,
        _turn: turn,
    })
}

/// Checks the conditions that can be checked at any time.
fn check_fit(target: &Target, host: &HostInterfaces) -> Result<(), Refusal> {
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

/// The name under which the old file is kept.
fn kept_name(path: &Path) -> OsString {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(KEPT_SUFFIX);
    name
}

fn kept_path(path: &Path) -> PathBuf {
    path.with_file_name(kept_name(path))
}

fn choose_hint(target: &Target, wanted: Option<Bytes>) -> Result<Bytes, Refusal> {
    let geometry = geometry::geometry(&target.file)?;
    let own = fsxattr::attributes(&target.file)?;
    let directory = fsxattr::attributes(&target.directory)?;
    let in_force = |attributes: fsxattr::Attributes, flag| match attributes.flags & flag {
        0 => Bytes(0),
        _ => Bytes(attributes.extent_size.into()),
    };
    let size = Bytes(target.file.metadata()?.len());
    let found = in_force(own, fsxattr::FLAG_EXTENT_SIZE)
        .max(in_force(directory, fsxattr::FLAG_EXTENT_SIZE_INHERIT))
        .max(plan::default_hint(size));
    let block = u64::from(geometry.block_size);
    let group = block.saturating_mul(geometry.group_blocks.into());
    Ok(plan::fitting_hint(wanted.unwrap_or(found), block, group))
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
    MapReader::new().read(file, Bytes(0), ReadPace::QUICK, visit, &mut beat)?;
    checked.into_inner()?;
    if planner.shares() && !unshare {
        let text = "shares blocks with a reflink copy, which would take their space twice; --force \
                    rewrites it all the same";
        return Err(Refusal::new(ReasonCode::SharesBlocks, text).into());
    }
    Ok(planner.finish())
}

/// A rewrite in progress: what is checked between two of its steps.
struct Work<'w, 't, 'r> {
    // Dropped first: openers must not wait for the rest.
    gate: Gate,
    controls: &'w mut Controls<'t, 'r>,
    machine: Machine,
    moved: Bytes,
    total: Bytes,
    progress: &'w mut dyn FnMut(Bytes, Bytes),
}

impl Work<'_, '_, '_> {
    /// Records that so many bytes were read or written, and waits while the rewrite is held. Fails
    /// if it is to end.
    fn step(&mut self, bytes: u64) -> Result<(), RunOutcome> {
        self.moved.0 = self.moved.0.saturating_add(bytes);
        (self.progress)(self.moved.min(self.total), self.total);
        self.machine.step(monotonic(), Input::Moved);
        loop {
            if let Some(by) = self.gate.let_ours_in()? {
                return Err(RunOutcome::Busy { by: Some(by) });
            }
            for input in self
                .controls
                .inputs(self.moved)
                .into_iter()
                .chain([Input::Tick])
            {
                self.machine.step(monotonic(), input);
            }
            if matches!(self.machine.state(), RunState::Ending | RunState::Ended) {
                let why = self.machine.stopped_by().unwrap_or(Stop::Shutdown);
                return Err(RunOutcome::Stopped { why });
            }
            let is_held = self.machine.held_by().is_some();
            self.controls.note_held(is_held);
            if !is_held {
                return Ok(());
            }
            thread::sleep(INTERVAL);
        }
    }
}

/// The outcome of a rewrite that cannot go on.
fn cannot<E: Into<std::io::Error>>(what: &str) -> impl FnOnce(E) -> RunOutcome {
    move |error| {
        let error = error.into();
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => RunOutcome::NoSpace,
            _ => failed(what, &error),
        }
    }
}
