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

mod clear;
mod commit;
mod copy;
mod note;
mod plan;
mod work;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::defrag::engine::{Controls, Event, Request, cannot};
use crate::defrag::guard;
use crate::defrag::metadata::Metadata;
use crate::model::{Bytes, ExtentCount, RunForecast, RunOutcome};
use crate::sys::fsxattr;
use clear::{Cleared, clear};
use copy::Copier;
pub use note::{finish, recover};
use work::Work;

/// A rewrite to be carried out.
pub struct Rewrite<'a> {
    /// The image, the limits in force, and who may stop it. With `dry_run` all guards are checked,
    /// and nothing is changed.
    pub request: Request<'a>,
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
    let Cleared {
        turn: _turn,
        awake: _awake,
        from,
        plan,
        gate,
    } = clear(&mut controls, unshare)?;
    if limits.dry_run {
        let (copies, stall) = (plan.needs(), Duration::ZERO);
        let forecast = RunForecast::Copy { copies, stall };
        return Err(RunOutcome::WouldRun { forecast });
    }
    let metadata = Metadata::of(&target.file).map_err(cannot("its attributes cannot be read"))?;
    // Image and copy are each read, or written, and compared.
    let total = Bytes(plan.data().0.saturating_mul(4));
    // Dropped after the gate: to free a copy that is abandoned takes time.
    let copy;
    let mut copier = Copier::new(&target, &metadata, plan.hint)?;
    let mut work = Work::new(gate, &mut controls, total, progress);
    copier.copy(&mut work, &plan, limits.keep_free)?;
    copier.verify(&mut work)?;
    copy = copier.finish();
    metadata.carry_over(&copy)?;
    let to = ExtentCount(fsxattr::attributes(&copy)?.extents.into());
    let allocated = guard::allocated(&copy)?;
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
