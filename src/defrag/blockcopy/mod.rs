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
//! is seen by the inodes of the two names, and by the files that QEMU has open and locked. The XML of libvirt is
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
//! - The old file loses all its names by the link, which is durable before the guest goes on. From
//!   then on it is stale, and nothing leads to it. The way back is another copy.
//! - The old file is current wherever only QEMU knew of the pivot, and has ended: the guest goes on
//!   after the link only. Somebody who resumes it by hand between the pivot and the link, which
//!   follow within milliseconds, has it linked by the watchdog while QEMU writes to the copy alone; if
//!   QEMU ends before, the [`mark`] on both files shows that the copy is current. From the mark on, a
//!   copy that nobody uses is removed only if it still has it. If both have changed, both stay.
//! - QEMU keeps changed metadata of a qcow2 in memory. It flushes both files when it suspends the guest
//!   (do_vm_stop, system/cpus.c) and the copy again before it pivots (mirror_run, block/mirror.c); in
//!   between nothing is written. So "flushed" holds for qcow2 as well.
//! - Writes are synchronous: from ready on, a write is completed only when it is in both files.
//! - A [`watchdog`] resumes a guest that is left suspended, after linking if the pivot has happened:
//!   it takes the same steps as the next start.
//! - A libvirtd that is killed within milliseconds of a pivot may come back without the VM: it has saved
//!   a state that it refuses to read ("unknown mirror job type ''", measured with libvirt 9.0.0), and takes
//!   the VM for off. The VM's process goes on and keeps QEMU's lock on its disk. What it writes is seen by
//!   its open files and locks: a file that it alone writes to gets the path, and is never removed. Nothing can resume
//!   it by libvirt: an operator ends the process, and starts the VM.
//! - As long as the VM runs, its running definition names the copy's path, which therefore stays; also
//!   while a managed save, a backing chain or another disk leads there. The file of a `virsh save` is
//!   not seen.
//! - A process that only reads the image would go on with the old file: it is waited for, or a reason
//!   to refuse. A loop device, the NFS server, and a container with another path of it are not seen.
//!
//! # A second copy
//!
//! A VM that is not shut down runs with the path of its last copy (`former`), while the persistent
//! definition names the image: two names of the same file. A second copy replaces both by names of
//! the new file. libvirt does not redefine the disk then, as its definitions name different paths.
//!
//! | moment | current file | running definition | persistent definition | next start, the VM on / off |
//! |---|---|---|---|---|
//! | copying, ready | old | former, mirror: copy | image | job aborted, copy removed, first note kept / copy removed, then as of the first note |
//! | QEMU has pivoted, libvirt not noted it | both, as the guest stands still | former | image | both paths linked, guest resumed, copy's name removed / as above |
//! | libvirt has noted it | both, as the guest stands still | copy | image | both paths linked, guest resumed, former removed / as above |
//! | the image's path is linked | both, as the guest stands still | former or copy | image | former linked, guest resumed / former and copy's name removed |
//! | both are linked | copy | former or copy | image | guest resumed, the name that is not used removed / former and copy's name removed |
//! | guest goes on | copy | former or copy | image | note kept / former and copy's name removed |
//!
//! - The note of the first copy stays until `former` is removed. It counts again if the second copy is
//!   given up, and for nothing as long as there is the note of the second.
//! - Where libvirt takes the pivot for an abort, it names `former` as long as the VM runs. That leads
//!   to the current file, and there is no third copy until the VM was shut down. After a first copy,
//!   that name is removed, and a copy is refused as long as QEMU has the image open by it.

mod ask;
pub mod content;
mod decide;
pub mod domain;
mod latency;
mod mark;
mod names;
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

pub use note::copying;

use super::engine::{Controls, Event, Progress, failed, lock_filesystem};
use super::guard;
use crate::model::{Engine, ExtentCount, RunForecast, RunOutcome, RunReport, Stalls};
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
    // Its lock is held until the end of the run.
    let last = note::of_image(&host.hints, &target.path)?;
    let former = last.as_ref().map(|noted| noted.note.copy.as_path());
    let extents = count(&target.file, target)?;
    if extents <= ExtentCount(1) {
        return Err(guard::near_ideal(extents).into());
    }
    controls.check_pressure(false)?;
    let place = Place::of(target, &limits.blockcopy)?;
    let mut asked = ask::ask(&virsh, target, former, &place, limits.keep_free, host)?;
    let disk = refusal::check(&asked.facts)?.clone();
    let content = Content::of(&target.file, disk.format())?;
    // First without the tables, which take long to read.
    asked.facts.needs = asked.facts.needs.saturating_add(content.metadata());
    refusal::room(&asked.facts)?;
    let copied = content.copied(&mut || controls.stop())?;
    // After the tables: what a guest allocates meanwhile is in both numbers, or in this one.
    let takes = guard::allocated(&target.file)?;
    if !content.is_raw() {
        refusal::check_growth(takes, copied)?;
    }
    let allocates = takes.max(copied);
    asked.facts.needs = allocates.saturating_add(content.metadata());
    refusal::room(&asked.facts)?;
    report.from = Some(extents);
    if limits.dry_run {
        let (copies, stall) = (asked.facts.needs, Duration::ZERO);
        let forecast = RunForecast::Copy { copies, stall };
        return Ok(RunOutcome::WouldRun { forecast });
    }
    let progress = Progress::new(Engine::BlockCopy, content.size()?, extents);
    controls.send(Event::Cleared(progress));
    let hint = target::hint(target, &content, allocates)?;
    let mut session = Session::begin(controls, virsh, &asked, &disk, &place, hint, progress)?;
    let stalls = report.stalls.insert(Stalls::default());
    let worked = session
        .copy()
        .and_then(|()| switch::switch(&mut session, stalls));
    let ended = session.end();
    report.guest_writes = session.writes;
    let copy = session.file;
    report.held = controls.held();
    ended?;
    worked?;
    report.read = guard::allocated(&target.file)?;
    report.written = guard::allocated(&copy)?;
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

#[cfg(test)]
mod tests;
