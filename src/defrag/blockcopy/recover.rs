//! Ends a copy that has begun: looks at what there is, takes the step that [`decide`] names, and looks
//! again. The end of a run, the watchdog, and the next start all do it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Gid, Uid, fchown, fsync, linkat, renameat, unlinkat};

use super::ask;
use super::decide::{self, Act, Found, Name, Named, Step, Vm};
use super::domain::Domain;
use super::note::{self, Note, Noted};
use super::open_files;
use super::output;
use super::virsh::{Virsh, VirshError};
use super::xml;
use crate::defrag::notes;
use crate::model::path::shown;
use crate::model::{ReasonCode, Refusal};

/// How long libvirt may take to come back, or to end a job.
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(100);
const PROC: &str = "/proc";

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

/// Ends all copies that killed runs have begun, and reports what was done.
pub fn recover_all(directory: &Path, mut notice: impl FnMut(String)) {
    for file in notes::all(directory, note::SUFFIX) {
        if let Err(error) = recover(&file, &mut notice) {
            notice(format!(
                "the copy noted in {} cannot be ended: {error}",
                shown(&file)
            ));
        }
    }
}

/// Ends one, unless its run is alive.
pub(super) fn recover(file: &Path, notice: &mut dyn FnMut(String)) -> Result<Ended, Refusal> {
    match Noted::left(file)? {
        Some(mut noted) => end(&Virsh::find()?, &mut noted, notice),
        None => Ok(Ended::Done),
    }
}

/// Takes all steps that are left. Waits a minute for libvirt.
pub(super) fn end(
    virsh: &Virsh,
    noted: &mut Noted,
    notice: &mut dyn FnMut(String),
) -> Result<Ended, Refusal> {
    let mut deadline = Instant::now() + PATIENCE;
    loop {
        let found = find(virsh, &noted.note);
        let act = found.as_ref().map_or(Act::Wait, decide::next);
        let taken = match act {
            Act::Forget => {
                noted.remove()?;
                return Ok(Ended::Done);
            }
            Act::Keep => return Ok(Ended::Kept),
            Act::Leave => return Err(left(&noted.note, found)),
            Act::Wait => found.map(|_| None),
            _ => take(act, virsh, noted).map(Some),
        };
        match taken {
            Ok(Some(text)) => {
                text.into_iter().for_each(&mut *notice);
                deadline = Instant::now() + PATIENCE;
                continue;
            }
            Ok(None) if Instant::now() > deadline => return Ok(Ended::Open),
            Err(error) if Instant::now() > deadline => return Err(error),
            _ => thread::sleep(INTERVAL),
        }
    }
}

fn left(note: &Note, found: Result<Found, Refusal>) -> Refusal {
    let (image, copy) = (shown(&note.image), shown(&note.copy));
    let text = format!(
        "{image} or {copy} was moved or redefined by somebody: compare both with what `virsh dumpxml` \
         names and the VM has open ({found:?}), then remove the note"
    );
    Refusal::new(ReasonCode::Hypervisor, text)
}

/// Looks at the names, the open files, and what libvirt knows.
fn find(virsh: &Virsh, note: &Note) -> Result<Found, Refusal> {
    let places = note.places()?;
    let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
    let (image, image_file) = note.find(&places.image, &name(&note.image))?;
    let (copy, copy_file) = note.find(&places.copy, &name(&note.copy))?;
    let directories = [&note.image, &note.copy].map(|path| path.parent().unwrap_or(path));
    let writers = open_files::writers(Path::new(PROC), &directories);
    let writes = |id| writers.iter().any(|writer| writer.file == id);
    let modified = |file: Option<File>| -> io::Result<i64> {
        Ok(file
            .map(|file| file.metadata())
            .transpose()?
            .map_or(0, |it| it.mtime()))
    };
    let is_newer = modified(copy_file)? > modified(image_file)?.saturating_add(1);
    let asked = ask_libvirt(virsh, note)?;
    Ok(Found {
        step: note.step,
        image,
        copy,
        writes_old: writes(places.id(&note.old)),
        writes_new: writes(places.id(&note.new)),
        is_newer,
        ..asked
    })
}

/// Fills in what libvirt knows; the rest is that of a copy whose files are missing.
fn ask_libvirt(virsh: &Virsh, note: &Note) -> Result<Found, Refusal> {
    let mut found = Found {
        step: note.step,
        image: Name::Missing,
        copy: Name::Missing,
        writes_old: false,
        writes_new: false,
        is_newer: false,
        vm: Vm::Unknown,
        job: false,
        live: Named::Neither,
        defined: Named::Neither,
    };
    let id = note.domain.as_str();
    let state = match virsh.run("domstate", &[&"--domain", &id]) {
        Err(VirshError::Unreachable(_) | VirshError::TimedOut(_)) => return Ok(found),
        Err(VirshError::NoDomain) => {
            found.vm = Vm::Undefined;
            return Ok(found);
        }
        other => output::state(&other?).map_err(VirshError::from)?.0,
    };
    found.vm = match state.as_str() {
        "paused" => Vm::Paused,
        "shut off" | "crashed" => Vm::Off,
        _ => Vm::Running,
    };
    let info = virsh.run("dominfo", &[&"--domain", &id])?;
    let info = output::domain_info(&info).map_err(VirshError::from)?;
    if found.vm != Vm::Off {
        let live = ask::domain(virsh, id, &[])?;
        found.live = named(&live, note);
        let mirror = live.disk(&note.disk).and_then(|disk| disk.mirror.as_ref());
        found.job = mirror.is_some();
    }
    if info.persistent {
        found.defined = named(&ask::domain(virsh, id, &["--inactive"])?, note);
    }
    Ok(found)
}

fn named(domain: &Domain, note: &Note) -> Named {
    match domain
        .disk(&note.disk)
        .and_then(|disk| disk.source.as_deref())
    {
        Some(path) if path == note.image => Named::Image,
        Some(path) if path == note.copy => Named::Copy,
        _ => Named::Neither,
    }
}

/// Takes one step. Returns what is worth reporting.
fn take(act: Act, virsh: &Virsh, noted: &mut Noted) -> Result<Option<String>, Refusal> {
    let note = &noted.note;
    let (id, image) = (note.domain.clone(), shown(&note.image));
    match act {
        Act::Link => {
            link(note)?;
            return Ok(Some(format!("{image} is the copy now, which its VM uses")));
        }
        Act::Abort => {
            let disk = note.disk.as_str();
            virsh.run(
                "blockjob",
                &[&"--domain", &id, &"--path", &disk, &"--abort"],
            )?;
        }
        Act::Resume => {
            virsh.run("resume", &[&"--domain", &id])?;
            resumed(noted)?;
            return Ok(Some(format!("resumed the VM of {image}")));
        }
        Act::Define => define(virsh, note)?,
        Act::Remove => {
            remove(note)?;
            let image_name = note.image.file_name().unwrap_or_default();
            let (found, _) = note.find(&note.places()?.image, image_name)?;
            if found == Name::Old
                && let Err(error) = note.history_back()
            {
                return Ok(Some(format!("the history of {image} begins anew: {error}")));
            }
        }
        Act::Forget | Act::Keep | Act::Wait | Act::Leave => {}
    }
    Ok(None)
}

/// Notes that the guest goes on: later it may stand still for another reason.
pub(super) fn resumed(noted: &mut Noted) -> io::Result<()> {
    noted.step(Step::Switching { suspends: false })
}

/// Gives the copy the path of the image, durably, in place of the old file.
pub(super) fn link(note: &Note) -> Result<(), Refusal> {
    let places = note.places()?;
    let name = note.image.file_name().unwrap_or_default();
    let copy = note.copy.file_name().unwrap_or_default();
    let temporary = note.temporary();
    let (found, file) = note.find(&places.copy, copy)?;
    let Some(file) = file.filter(|_| found == Name::New) else {
        return Err(io::Error::other("the copy has lost its name").into());
    };
    // Where libvirt took the pivot for an abort, it has withdrawn the access to the copy.
    let (user, group) = note.owner;
    let owner = file.metadata()?;
    if (owner.uid(), owner.gid()) != note.owner {
        fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    let _ = unlinkat(&places.image, temporary.as_str(), AtFlags::empty());
    let (at, to) = (&places.copy, &places.image);
    linkat(at, copy, to, temporary.as_str(), AtFlags::empty())?;
    let (linked, _) = note.find(&places.image, temporary.as_ref())?;
    let (old, _) = note.find(&places.image, name)?;
    if (linked, old) != (Name::New, Name::Old) {
        let _ = unlinkat(&places.image, temporary.as_str(), AtFlags::empty());
        return Err(io::Error::other("somebody else renames files in its directory").into());
    }
    renameat(to, temporary.as_str(), to, name)?;
    Ok(fsync(&places.image)?)
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

/// Removes the name of the copy.
fn remove(note: &Note) -> Result<(), Refusal> {
    let places = note.places()?;
    let name = note.copy.file_name().unwrap_or_default();
    let _ = unlinkat(&places.image, note.temporary().as_str(), AtFlags::empty());
    unlinkat(places.copy.as_fd(), name, AtFlags::empty())?;
    Ok(fsync(&places.copy)?)
}
