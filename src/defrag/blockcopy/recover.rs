//! Ends a copy that has begun: looks at what there is, takes the step that [`decide`] names, and looks
//! again. The end of a run, the watchdog, and the next start all do it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{fsync, syncfs};

use super::ask;
use super::decide::{self, Act, Found, Name, Named, Step, Vm};
use super::domain::Domain;
use super::names;
use super::note::{self, Note, Noted, basename};
use super::output::{self, BlockJob};
use super::virsh::{Virsh, VirshError};
use super::xml;
use crate::defrag::notes;
use crate::history::StoreError;
use crate::model::path::shown;
use crate::model::{ReasonCode, Refusal};

/// How long libvirt may take to come back, or to end a job.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// A suspend whose virsh was killed may take effect after the next answer of libvirt.
const LATE_SUSPEND: Duration = Duration::from_secs(1);
/// Time limit of a command of virsh when the patience is at its end.
const LEAST_TIMEOUT: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(100);
/// Where libvirt's driver for QEMU keeps persistent definitions.
const DEFINITIONS: &str = "/etc/libvirt/qemu";

/// How a copy has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nothing is left of it.
    Done,
    /// The VM uses the copy; its running definition still names it.
    Kept,
    /// It has not ended.
    Open,
}

/// Ends all copies that killed runs have begun, and reports what was done. Waits a minute for libvirt.
pub fn recover_all(directory: &Path, notice: impl FnMut(String)) {
    recover_some(directory, |_| true, notice);
}

/// The same for those only whose guest may stand still: without such a note, nothing is asked.
pub fn resume_all(directory: &Path, notice: impl FnMut(String)) {
    recover_some(directory, Note::suspends, notice);
}

fn recover_some(directory: &Path, is_it: fn(&Note) -> bool, mut notice: impl FnMut(String)) {
    let began = Instant::now();
    let mut files: Vec<_> = notes::all(directory, note::SUFFIX)
        .filter(|file| note::read(file).as_ref().is_none_or(is_it))
        .collect();
    // The later copy of an image first: if it is given up, the one before counts again.
    files.sort_by_key(|file| note::read(file).is_none_or(|note| note.former().is_none()));
    for file in files {
        if note::is_superseded(directory, &file) {
            continue;
        }
        let patience = PATIENCE.saturating_sub(began.elapsed());
        let why = match recover(&file, patience, &mut notice) {
            Ok(Some(Ended::Open)) => {
                "yet: libvirt does not answer, a job of it goes on, or it takes a VM that runs for off \
                 (`fuser` names its process)"
                    .to_owned()
            }
            Ok(_) => continue,
            Err(error) => format!("({error})"),
        };
        notice(format!(
            "the copy noted in {} cannot be ended {why}; the next run or start tries again",
            shown(&file)
        ));
    }
}

/// Ends one; `None` if its run is alive.
pub(super) fn recover(
    file: &Path,
    patience: Duration,
    notice: &mut dyn FnMut(String),
) -> Result<Option<Ended>, Refusal> {
    let Some(mut noted) = Noted::left(file)? else {
        return Ok(None);
    };
    let mut virsh = Virsh::find()?;
    virsh.timeout = virsh.timeout.min(patience.max(LEAST_TIMEOUT));
    end(&virsh, &mut noted, patience, notice).map(Some)
}

/// Takes all steps that are left.
pub(super) fn end(
    virsh: &Virsh,
    noted: &mut Noted,
    patience: Duration,
    notice: &mut dyn FnMut(String),
) -> Result<Ended, Refusal> {
    let mut deadline = Instant::now() + patience;
    let mut is_sure = !noted.note.suspends();
    // The image may have another label when its VM was started again.
    let mut is_same_run = noted.is_own;
    loop {
        let found = find(virsh, &noted.note);
        let act = found.as_ref().map_or(Act::Wait, decide::next);
        if let Some(found) = found.as_ref().ok().filter(|found| found.writes_new) {
            let is_unnoted = act == Act::Link && found.live != Named::Copy;
            is_same_run |= is_unnoted || act == Act::Resume;
            if is_same_run && matches!(act, Act::Resume | Act::Keep | Act::Forget) {
                give_access(&noted.note, notice);
            }
        }
        let taken = match act {
            Act::Forget | Act::Keep if !is_sure => {
                is_sure = true;
                thread::sleep(LATE_SUSPEND);
                continue;
            }
            Act::Keep if noted.note.suspends() => resumed(noted).map(Some).map_err(Refusal::from),
            Act::Forget => {
                noted.remove()?;
                return Ok(Ended::Done);
            }
            Act::Keep => return Ok(Ended::Kept),
            Act::Leave => return Err(left(noted, found)),
            Act::Wait => found.map(|_| None),
            _ => found.and_then(|found| take(act, found, virsh, noted, notice).map(Some)),
        };
        match taken {
            Ok(Some(())) => {
                deadline = Instant::now() + PATIENCE;
                continue;
            }
            Ok(None) if Instant::now() > deadline => return Ok(Ended::Open),
            Err(error) if Instant::now() > deadline => return Err(error),
            _ => thread::sleep(INTERVAL),
        }
    }
}

/// A guest does not wait for it: QEMU has the copy open.
fn give_access(note: &Note, notice: &mut dyn FnMut(String)) {
    if let Err(error) = names::give_access(note) {
        let image = shown(&note.image);
        notice(format!(
            "{image} does not get its owner and label back: {error}"
        ));
    }
}

fn left(noted: &Noted, found: Result<Found, Refusal>) -> Refusal {
    let (image, copy) = (shown(&noted.note.image), shown(&noted.note.copy));
    let is_unclear = found.as_ref().is_ok_and(|found| found.changed_new);
    let why = match is_unclear {
        true => "both may have been written to since they were the same: both stay",
        false => "one of them was moved, redefined or started by somebody meanwhile",
    };
    let text = format!(
        "nothing is done to {image} and {copy}, as {why}. Shut the VM down, and compare what \
         `virsh dumpxml` names, the times (`stat`) and the contents (`qemu-img compare`). Move \
         the one to be kept to {image} and the other away, then remove the note {} ({found:?})",
        shown(&noted.file)
    );
    Refusal::new(ReasonCode::Hypervisor, text)
}

/// Asks libvirt, and then looks at the names and the open files: a VM that libvirt starts in between
/// is seen by its files.
fn find(virsh: &Virsh, note: &Note) -> Result<Found, Refusal> {
    let places = note.places()?;
    let asked = ask_libvirt(virsh, note)?;
    let (image, image_file) = note.find(&places.image, basename(&note.image))?;
    let (copy, copy_file) = note.find(&places.copy, basename(&note.copy))?;
    let former = names::former(note, &places);
    let former = former.map(|(at, name)| note.find(at, name)).transpose()?;
    let temporary = |at: &OwnedFd| Ok::<_, io::Error>(note.find(at, note.temporary().as_ref())?.0);
    let temporary = match (temporary(&places.image)?, &places.former) {
        (Name::Missing, Some(at)) => temporary(at)?,
        (found, _) => found,
    };
    let [changed_old, changed_new] = match (&note.mark, image_file, copy_file) {
        (Some(mark), Some(old), Some(new)) if (image, copy) == (Name::Old, Name::New) => {
            [mark.is_changed(&old)?, mark.is_changed(&new)?]
        }
        _ => [false; 2],
    };
    let [writes_old, writes_new] = note.written(&places);
    Ok(Found {
        image,
        copy,
        former: former.map(|(name, _)| name),
        temporary,
        changed_old,
        changed_new,
        writes_old,
        writes_new,
        ..asked
    })
}

/// Fills in what libvirt knows; the rest is that of a copy whose files are missing.
fn ask_libvirt(virsh: &Virsh, note: &Note) -> Result<Found, Refusal> {
    let mut found = Found {
        step: note.step,
        image: Name::Missing,
        copy: Name::Missing,
        former: None,
        temporary: Name::Missing,
        changed_old: false,
        changed_new: false,
        writes_old: false,
        writes_new: false,
        vm: Vm::Unknown,
        saved: false,
        job: false,
        live: Named::Neither,
        defined: Named::Neither,
        former_named: false,
    };
    let id = note.domain.as_str();
    let (state, reason) = match virsh.run("domstate", &[&"--domain", &id, &"--reason"]) {
        Err(VirshError::Unreachable(_) | VirshError::TimedOut(_)) => return Ok(found),
        Err(error @ VirshError::NoDomain(_)) => {
            let all = virsh.run("list", &[&"--all", &"--uuid"])?;
            if output::names(&all).iter().any(|uuid| uuid.trim() == id) {
                return Err(error.into());
            }
            found.vm = Vm::Undefined;
            return Ok(found);
        }
        other => output::state(&other?).map_err(VirshError::from)?,
    };
    let live = ask::domain(virsh, id, &[])?;
    found.vm = match (state.as_str(), reason.as_deref()) {
        // Also if it is `crashed`, unless its process is preserved (on_crash).
        _ if live.id.is_none() => Vm::Off,
        // What a libvirtd that was restarted does not know is `unknown`.
        ("paused", None | Some("user" | "unknown")) => Vm::Paused,
        _ => Vm::Running,
    };
    let info = virsh.run("dominfo", &[&"--domain", &id])?;
    let info = output::domain_info(&info).map_err(VirshError::from)?;
    found.saved = info.saved;
    if found.vm != Vm::Off {
        found.live = named(&live, note);
        found.former_named = names_former(&live, note);
        if let Some(disk) = live.disk(&note.disk) {
            // A libvirtd that was killed as it began the job may know that without its mirror.
            let is_copy = |job: BlockJob| job.kind == "Block Copy";
            let job = ask::block_job(virsh, id, &note.disk)?;
            found.job = disk.mirror.is_some() || job.is_some_and(is_copy);
        }
    }
    if info.persistent {
        let defined = ask::domain(virsh, id, &["--inactive"])?;
        found.defined = named(&defined, note);
        found.former_named |= names_former(&defined, note);
    }
    Ok(found)
}

fn names_former(domain: &Domain, note: &Note) -> bool {
    let mut sources = domain.sources.iter();
    sources.any(|path| note.former() == Some(path))
}

fn named(domain: &Domain, note: &Note) -> Named {
    let disk = domain.disk(&note.disk);
    let is_anywhere = |path| domain.sources.contains(path);
    match disk.and_then(|disk| disk.source.as_ref()) {
        Some(path) if *path == note.copy => Named::Copy,
        _ if is_anywhere(&note.copy) => Named::Elsewhere,
        Some(path) if *path == note.image => Named::Image,
        Some(path) if note.former() == Some(path) => Named::Former,
        _ => Named::Neither,
    }
}

/// Takes one step, and reports what is worth it.
fn take(
    act: Act,
    found: Found,
    virsh: &Virsh,
    noted: &mut Noted,
    notice: &mut dyn FnMut(String),
) -> Result<(), Refusal> {
    let note = &noted.note;
    let (id, image) = (note.domain.clone(), shown(&note.image));
    let mut kept = |history: Result<(), StoreError>| {
        if let Err(error) = history {
            notice(format!("the history of {image} begins anew: {error}"));
        }
    };
    match act {
        Act::Link => {
            names::link(note, found.writes_new)?;
            // A guest that stands still does not wait for a database; its run has done it before.
            if found.vm != Vm::Paused {
                kept(note.history_forth());
            }
            if found.image == Name::Old {
                notice(format!("{image} is the copy now, which its VM uses"));
            }
        }
        Act::Restore => names::restore(note)?,
        Act::Abort => {
            let disk = note.disk.as_str();
            virsh.run(
                "blockjob",
                &[&"--domain", &id, &"--path", &disk, &"--abort"],
            )?;
            // The VM keeps the old file; QEMU may write to the copy when it closes it.
            noted.change(|note| note.mark = None)?;
        }
        Act::Resume => {
            // A link may not be durable yet.
            let places = note.places()?;
            for directory in places.of_links() {
                fsync(directory)?;
            }
            virsh.run("resume", &[&"--domain", &id])?;
            notice(format!("resumed the VM of {image}"));
            resumed(noted)?;
        }
        Act::Define => define(virsh, note)?,
        Act::Remove => {
            if found.image == Name::Old {
                kept(note.history_back());
            }
            flush_definitions()?;
            names::remove_copy(note)?;
        }
        Act::RemoveTemporary => names::remove_temporary(note)?,
        Act::RemoveFormer => {
            flush_definitions()?;
            names::remove_former(note)?;
            noted.forget_former()?;
        }
        Act::Forget | Act::Keep | Act::Wait | Act::Leave => {}
    }
    Ok(())
}

/// Notes that the guest goes on: later it may stand still for another reason.
pub(super) fn resumed(noted: &mut Noted) -> io::Result<()> {
    noted.resumed = Some(Instant::now());
    noted.change(|note| note.step = Step::Switching { suspends: false })
}

/// A definition that names the image again lasts before the name is removed that it had before: libvirt
/// does not flush the directory in which it renames it (virFileRewrite, src/util/virfile.c).
fn flush_definitions() -> io::Result<()> {
    match File::open(DEFINITIONS) {
        Ok(directory) => Ok(syncfs(directory)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Has the persistent definition of the disk name the path of the image; all else of the domain may
/// be changed by others meanwhile.
fn define(virsh: &Virsh, note: &Note) -> Result<(), Refusal> {
    let id = note.domain.as_str();
    let xml = virsh.run("dumpxml", &[&"--domain", &id, &"--inactive"])?;
    let disk = xml::with_source(&xml, &note.disk, &note.image).ok_or_else(|| {
        let text = "the definition of its VM has no such disk any more";
        Refusal::new(ReasonCode::Hypervisor, text)
    })?;
    let arguments: [&dyn AsRef<std::ffi::OsStr>; 5] =
        [&"--domain", &id, &"--file", &"/dev/stdin", &"--config"];
    virsh.run_with("update-device", &arguments, &disk)?;
    Ok(())
}

#[cfg(test)]
mod tests;
