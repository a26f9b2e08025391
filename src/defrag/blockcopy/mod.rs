//! The hypervisor copies an image under its running VM, which then uses the copy: for file systems and
//! kernels on which XFS cannot move it. Only VMs of libvirt, through virsh.
//!
//! ```text
//! guards ─► libvirt asked ─► refusal (pure) ─► file ─► note ─► virsh blockcopy ─► ready
//!                                                                 ▲ bandwidth        │
//!  outcome ◄─ count ◄─ name removed ◄─ defined ◄─ guest goes on ◄─ link ◄─ pivot ◄─ flush ◄─ guest stands still
//! ```
//!
//! # At every moment, the VM starts from a complete and current image
//!
//! libvirt names the copy by its own path after the pivot. So the copy is given the path of the image
//! (a second name of the same file) while the guest stands still: whichever path a definition names
//! from then on, it leads to the current file. What was begun is written down before; what was reached
//! is seen by the inodes of the two names and by the files that QEMU has open. The XML of libvirt is
//! not believed: if libvirtd dies between QEMU's pivot and its own note, it takes the pivot for an
//! abort.
//!
//! | moment | current file | running definition | persistent definition | next start, the VM on / off |
//! |---|---|---|---|---|
//! | file created, without a name | old | image | image | nothing is left of it |
//! | note written | old | image | image | note removed |
//! | named, copying | old | image, mirror: copy | image | job aborted / –, copy removed |
//! | ready, `switching` noted | old | image, mirror: copy | image | job aborted / –, copy removed |
//! | guest stands still, flushed | both | image, mirror: copy | image | job aborted / –, guest resumed / –, copy removed |
//! | QEMU has pivoted, libvirt not noted it | both, as the guest stands still | image | image | linked, owner restored, guest resumed, copy's name removed / copy removed |
//! | libvirt has noted it | both, as the guest stands still | copy | copy | linked, guest resumed, redefined / linked, redefined, copy's name removed |
//! | linked: both paths lead to the copy | copy | copy | copy | guest resumed, redefined / redefined, copy's name removed |
//! | guest goes on | copy | copy | copy | redefined / redefined, copy's name removed |
//! | redefined | copy | copy | image | note kept / copy's name removed |
//! | VM ended | copy | – | image | copy's name removed |
//!
//! - The old file loses its only name by the link, which is durable before the guest goes on. From
//!   then on it is stale, and nothing leads to it. The way back is another copy.
//! - The old file is current wherever only QEMU knew of the pivot, and has ended: the guest goes on
//!   after the link only. (Somebody who resumes it by hand between the pivot and the link, which
//!   follow within milliseconds, has it linked by the watchdog while QEMU writes to the copy alone.)
//! - QEMU keeps changed metadata of a qcow2 in memory. It flushes both files when it suspends the guest
//!   (do_vm_stop, system/cpus.c) and the copy again before it pivots (mirror_run, block/mirror.c); in
//!   between nothing is written. So "flushed" holds for qcow2 as well.
//! - Writes are synchronous: from ready on, a write is completed only when it is in both files.
//! - A [`watchdog`] resumes a guest that is left suspended, after linking if the pivot has happened:
//!   it takes the same steps as the next start.
//! - As long as the VM runs, its running definition names the copy's path, which therefore stays; also
//!   while a managed save, a backing chain or another disk leads there. The file of a `virsh save` is
//!   not seen.

mod ask;
pub mod content;
mod decide;
pub mod domain;
mod note;
mod open_files;
pub mod output;
pub mod qcow2;
pub mod recover;
pub mod refusal;
mod session;
mod switch;
mod target;
mod virsh;
pub mod watchdog;
mod xml;

use super::engine::{Controls, Event, Progress, failed, lock_filesystem};
use super::guard;
use crate::model::{
    Bytes, Engine, ExtentCount, ReasonCode, Refusal, RunForecast, RunOutcome, RunReport,
};
use content::Content;
use session::Session;
use std::time::Duration;
use target::{Place, count};
use virsh::Virsh;

/// Copies one image.
pub(super) fn run(
    controls: &mut Controls<'_, '_>,
    report: &mut RunReport,
) -> Result<RunOutcome, RunOutcome> {
    let target = controls.target;
    let (host, limits) = (controls.request.host, controls.request.limits);
    let virsh = Virsh::find()?;
    let _turn = match limits.dry_run {
        true => None,
        false => Some(lock_filesystem(target)?),
    };
    guard::check_marks(target, host)?;
    if note::is_noted(&host.hints, &target.path) {
        let text = "its last copy has not ended: its VM still names the path of the copy, or may, which \
                    is removed when the VM is off without managed save and its definition names the \
                    image; until then it is not copied again";
        return Err(Refusal::new(ReasonCode::Hypervisor, text).into());
    }
    let extents = count(&target.file, target)?;
    if extents <= ExtentCount(1) {
        return Err(guard::near_ideal(extents).into());
    }
    controls.check_pressure(false)?;
    let place = Place::of(target, &limits.blockcopy)?;
    let mut asked = ask::ask(&virsh, target, &place, limits.keep_free, host)?;
    let disk = refusal::check(&asked.facts)?.clone();
    let content = Content::of(&target.file, disk.format())?;
    asked.facts.needs = asked.facts.needs.saturating_add(Bytes(content.growth()?));
    refusal::check(&asked.facts)?;
    report.from = Some(extents);
    let copies = asked.facts.needs;
    if limits.dry_run {
        let stall = Duration::ZERO;
        let forecast = RunForecast::Copy { copies, stall };
        return Ok(RunOutcome::WouldRun { forecast });
    }
    let progress = Progress::new(Engine::BlockCopy, content.size()?, extents);
    controls.send(Event::Cleared(progress));
    let mut session = Session::begin(controls, virsh, &asked, &disk, &place, progress)?;
    let worked = session.copy().and_then(|()| switch::switch(&mut session));
    let ended = session.end();
    let copy = session.file;
    report.held = controls.held();
    ended?;
    worked?;
    (report.read, report.written) = (copies, copies);
    let to = match count(&copy, target) {
        Ok(to) => to,
        Err(error) => return Ok(failed("its extents cannot be counted", &error)),
    };
    report.to = Some(to);
    match to < extents {
        true => Ok(RunOutcome::Improved),
        false => Ok(RunOutcome::Unchanged { message: None }),
    }
}
