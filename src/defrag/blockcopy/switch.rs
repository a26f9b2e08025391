//! Takes the finished copy into use, while the guest stands still.
//!
//! What can take long is done before: the copy is flushed, and the note written. In between, the
//! order is that of the table in [`super`]: what was done last decides what the next start does.

use std::time::Instant;

use super::decide::Step;
use super::mark::Mark;
use super::names;
use super::open_files;
use super::recover::{self, Ended};
use super::session::{COMPARE_TIME, Session, failed};
use super::virsh::Virsh;
use super::watchdog::Watchdog;
use crate::defrag::engine::{Event, cannot};
use crate::model::{Briefly, GuestWrites, ReasonCode, Refusal, RunOutcome, Stalls, Stop};

/// The pause of the guest is added to `stalls`, also if the switch fails.
pub(super) fn switch(
    session: &mut Session<'_, '_, '_>,
    stalls: &mut Stalls,
) -> Result<(), RunOutcome> {
    session.check()?;
    let different = session.differences(session.pieces(), None)?;
    let flushed = cannot("the copy cannot be flushed");
    session.file.sync_all().map_err(flushed)?;
    if let Some(why) = session.controls.stop() {
        return Err(RunOutcome::Stopped { why });
    }
    if used(session)? != [true; 2] {
        return Err(RunOutcome::Failed {
            reason:
                "QEMU does not write to the image and the copy: somebody else renames files in \
                     their directories"
                    .to_owned(),
        });
    }
    let suspends = is_running(session)?;
    if let Err(error) = session.noted.note.history_forth() {
        let text = format!("its history begins anew: {error}");
        session.controls.send(Event::Notice(text));
    }
    // As late as possible, as it would keep the old file.
    if session.has_others()? {
        let text = "another process has just opened it, and would keep the old file: end it";
        return Err(Refusal::new(ReasonCode::Hypervisor, text).into());
    }
    let noted = session
        .noted
        .change(|note| note.step = Step::Switching { suspends });
    noted.map_err(cannot("the step cannot be noted in the state directory"))?;
    let watchdog = Watchdog::start(&session.noted.file);
    let watchdog = watchdog.map_err(cannot("the watchdog cannot be started"))?;
    let mut suspended = None;
    let switched = while_suspended(session, suspends, different, &mut suspended);
    // What has failed is ended here as well, while the watchdog lives.
    let mut is_over = false;
    if switched.is_err() {
        let mut report = |text| (session.controls.request.watch)(Event::Notice(text));
        let patience = recover::PATIENCE;
        let ended = recover::end(&session.virsh, &mut session.noted, patience, &mut report);
        is_over = matches!(ended, Ok(Ended::Done | Ended::Kept));
    }
    if let Some(since) = suspended {
        // At least until now if it has not been resumed: then the watchdog does it later.
        let until = session.noted.resumed.unwrap_or_else(Instant::now);
        stalls.add(until.saturating_duration_since(since));
    }
    if is_over || !session.noted.note.suspends() {
        watchdog.end();
    }
    switched?;
    if suspends {
        let mut text = format!("its guest stood still for {}", Briefly(stalls.longest));
        if let Some(GuestWrites { before, meanwhile }) = session.writes {
            let (before, meanwhile) = (Briefly(before), Briefly(meanwhile));
            text += &format!(
                "; its writes took {meanwhile} on average while it was copied, {before} since its start"
            );
        }
        session.controls.send(Event::Notice(text));
    }
    Ok(())
}

/// Whether the guest runs; one that was paused stays so.
fn is_running(session: &Session<'_, '_, '_>) -> Result<bool, RunOutcome> {
    let domain = &session.noted.note.domain;
    let printed = session.virsh.run("domstate", &[&"--domain", domain]);
    Ok(printed.map_err(|error| failed(&error))?.trim() == "running")
}

fn while_suspended(
    session: &mut Session<'_, '_, '_>,
    suspends: bool,
    different: Vec<u64>,
    suspended: &mut Option<Instant>,
) -> Result<(), RunOutcome> {
    let note = &session.noted.note;
    let (domain, disk) = (note.domain.clone(), note.disk.clone());
    let run = |virsh: &Virsh, command, arguments: &[&dyn AsRef<std::ffi::OsStr>]| {
        virsh
            .run(command, arguments)
            .map_err(|error| failed(&error))
    };
    if suspends {
        run(&session.virsh, "suspend", &[&"--domain", &domain])?;
    }
    let began = Instant::now();
    *suspended = suspends.then_some(began);
    // Nothing writes to either of them now.
    let deadline = Some(began + COMPARE_TIME);
    if !session.differences(different, deadline)?.is_empty() {
        return Err(RunOutcome::Failed {
            reason: "the copy differs from the image, which stays in use: tell the makers of QEMU"
                .to_owned(),
        });
    }
    let mark = Mark::now();
    let marked = mark
        .set(&session.controls.target.file)
        .and_then(|()| mark.set(&session.file))
        .and_then(|()| session.noted.change(|note| note.mark = Some(mark)));
    marked.map_err(cannot(
        "the image and its copy cannot be flushed and marked",
    ))?;
    let path: [&dyn AsRef<std::ffi::OsStr>; 5] =
        [&"--domain", &domain, &"--path", &disk, &"--pivot"];
    let pivoted = run(&session.virsh, "blockjob", &path);
    // Whatever libvirt reports, QEMU's descriptors and locks show which file it uses.
    if used(session)? != [false, true] {
        return Err(pivoted
            .err()
            .unwrap_or(RunOutcome::Stopped { why: Stop::Stuck }));
    }
    names::link(&session.noted.note, true)?;
    if suspends {
        run(&session.virsh, "resume", &[&"--domain", &domain])?;
        recover::resumed(&mut session.noted).map_err(cannot("the step cannot be noted"))?;
    }
    Ok(())
}

/// Whether QEMU writes to the old file and to the copy.
fn used(session: &Session<'_, '_, '_>) -> Result<[bool; 2], Refusal> {
    let note = &session.noted.note;
    let places = note.places()?;
    let proc = &session.controls.request.host.proc;
    let opened = open_files::opened_by(proc, session.pid, &note.directories());
    Ok(places.written(note, &opened))
}
