//! Ends a copy that has begun: looks at what there is, takes the step that [`decide`] names, and looks
//! again. The end of a run, the watchdog, and the next start all do it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, Gid, RenameFlags, Uid, XattrFlags, fchown, fgetxattr, fsetxattr, fsync, linkat,
    renameat, renameat_with, unlinkat,
};

use super::ask;
use super::decide::{self, Act, Found, Name, Named, Step, Vm};
use super::domain::Domain;
use super::note::{self, Note, Noted, Places};
use super::open_files;
use super::output;
use super::virsh::{Virsh, VirshError};
use super::xml;
use crate::defrag::metadata::LABEL;
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
                "yet: libvirt does not answer, or a job of it goes on".to_owned()
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
    loop {
        let found = find(virsh, &noted.note);
        let act = found.as_ref().map_or(Act::Wait, decide::next);
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
            Act::Leave => return Err(left(&noted.note, found)),
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

fn left(note: &Note, found: Result<Found, Refusal>) -> Refusal {
    let (image, copy) = (shown(&note.image), shown(&note.copy));
    let text = format!(
        "{image} or {copy} was moved, redefined or started by somebody meanwhile: compare both with \
         what `virsh dumpxml` names and the VM has open ({found:?}), then remove the note"
    );
    Refusal::new(ReasonCode::Hypervisor, text)
}

/// Asks libvirt, and then looks at the names and the open files: a VM that libvirt starts in between
/// is seen by its files.
fn find(virsh: &Virsh, note: &Note) -> Result<Found, Refusal> {
    let places = note.places()?;
    let asked = ask_libvirt(virsh, note)?;
    let look = |at: &OwnedFd, path: &Path| note.find(at, path.file_name().unwrap_or_default());
    let (image, image_file) = look(&places.image, &note.image)?;
    let (copy, copy_file) = look(&places.copy, &note.copy)?;
    let former = places.former.as_ref().zip(note.former());
    let former = former.map(|(at, path)| look(at, path)).transpose()?;
    let (temporary, _) = note.find(&places.image, note.temporary().as_ref())?;
    let overtaken = match (&note.mark, image_file, copy_file) {
        (Some(mark), Some(old), Some(new)) if (image, copy) == (Name::Old, Name::New) => {
            mark.is_overtaken(&old, &new)?
        }
        _ => false,
    };
    let [writes_old, writes_new] = written(note, &places);
    Ok(Found {
        image,
        copy,
        former: former.map(|(name, _)| name),
        temporary,
        overtaken,
        writes_old,
        writes_new,
        ..asked
    })
}

/// Whether a process has the old file and the copy open for writing.
fn written(note: &Note, places: &Places) -> [bool; 2] {
    let opened = open_files::opened(Path::new(PROC), &note.directories());
    [&note.old, &note.new].map(|key| places.is_written(key, &opened))
}

/// Fills in what libvirt knows; the rest is that of a copy whose files are missing.
fn ask_libvirt(virsh: &Virsh, note: &Note) -> Result<Found, Refusal> {
    let mut found = Found {
        step: note.step,
        image: Name::Missing,
        copy: Name::Missing,
        former: None,
        temporary: Name::Missing,
        overtaken: false,
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
    found.vm = match (state.as_str(), reason.as_deref()) {
        // What a libvirtd that was restarted does not know is `unknown`.
        ("paused", None | Some("user" | "unknown")) => Vm::Paused,
        ("shut off" | "crashed", _) => Vm::Off,
        _ => Vm::Running,
    };
    let info = virsh.run("dominfo", &[&"--domain", &id])?;
    let info = output::domain_info(&info).map_err(VirshError::from)?;
    found.saved = info.saved;
    if found.vm != Vm::Off {
        let live = ask::domain(virsh, id, &[])?;
        found.live = named(&live, note);
        found.former_named = names_former(&live, note);
        let mirror = live.disk(&note.disk).and_then(|disk| disk.mirror.as_ref());
        found.job = mirror.is_some();
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
            kept(note.history_forth());
            link(note, found.writes_new)?;
            notice(format!("{image} is the copy now, which its VM uses"));
        }
        Act::Restore => restore(note)?,
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
            fsync(&note.places()?.image)?;
            virsh.run("resume", &[&"--domain", &id])?;
            notice(format!("resumed the VM of {image}"));
            resumed(noted)?;
        }
        Act::Define => define(virsh, note)?,
        Act::Remove => {
            remove(note)?;
            if found.image == Name::Old {
                kept(note.history_back());
            }
        }
        Act::RemoveTemporary => {
            let at = note.places()?.image;
            unlinkat(&at, note.temporary(), AtFlags::empty())?;
            fsync(&at)?;
        }
        Act::RemoveFormer => {
            if let Some((at, name)) = note
                .places()?
                .former
                .zip(note.former().and_then(Path::file_name))
                && found.former == Some(Name::New)
            {
                unlinkat(&at, name, AtFlags::empty())?;
                fsync(&at)?;
            }
            noted.forget_former()?;
        }
        Act::Forget | Act::Keep | Act::Wait | Act::Leave => {}
    }
    Ok(())
}

/// Notes that the guest goes on: later it may stand still for another reason.
pub(super) fn resumed(noted: &mut Noted) -> io::Result<()> {
    noted.change(|note| {
        note.step = Step::Switching { suspends: false };
        note.mark = None;
    })
}

/// Gives the copy all names of the old file, durably: the path of the image, and that of the copy
/// before. Where no VM has the copy open (`in_use`), one may just be started with the old file, which
/// then keeps its path.
pub(super) fn link(note: &Note, in_use: bool) -> Result<(), Refusal> {
    let places = note.places()?;
    let copy = note.copy.file_name().unwrap_or_default();
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
    let label = note.label.as_slice();
    let mut found = vec![0; label.len()];
    let has_label = fgetxattr(&file, LABEL, found.as_mut_slice()).is_ok_and(|_| found == label);
    if !label.is_empty() && !has_label {
        fsetxattr(&file, LABEL, label, XattrFlags::empty())?;
    }
    file.sync_all()?;
    let image = note.image.file_name().unwrap_or_default();
    if note.find(&places.image, image)?.0 == Name::Old {
        match in_use {
            true => replace(note, &places, &places.image, image)?,
            false => exchange(note, &places, image)?,
        }
    }
    let former = note.former().and_then(Path::file_name);
    if let Some((at, name)) = places.former.as_ref().zip(former)
        && note.find(at, name)?.0 == Name::Old
    {
        replace(note, &places, at, name)?;
    }
    Ok(())
}

/// Replaces a name of the old file by one of the copy.
fn replace(note: &Note, places: &Places, at: &OwnedFd, name: &OsStr) -> Result<(), Refusal> {
    let temporary = link_temporary(note, places, at, name)?;
    renameat(&places.image, temporary, at, name)?;
    Ok(fsync(at)?)
}

/// Does the same in a way that can be taken back.
fn exchange(note: &Note, places: &Places, name: &OsStr) -> Result<(), Refusal> {
    let at = &places.image;
    let temporary = link_temporary(note, places, at, name)?;
    let unlink = || unlinkat(at, temporary.as_str(), AtFlags::empty());
    let exchange = || {
        renameat_with(at, temporary.as_str(), at, name, RenameFlags::EXCHANGE)
            .and_then(|()| fsync(at))
    };
    exchange()?;
    let [writes_old, _] = written(note, places);
    if writes_old {
        exchange()?;
        let _ = unlink();
        return Err(io::Error::other("its VM is just being started with the old file").into());
    }
    unlink()?;
    Ok(fsync(at)?)
}

/// Gives the copy its temporary name, which is to replace a name of the old file.
fn link_temporary(
    note: &Note,
    places: &Places,
    at: &OwnedFd,
    name: &OsStr,
) -> Result<String, Refusal> {
    let copy = note.copy.file_name().unwrap_or_default();
    let temporary = note.temporary();
    let unlink = || unlinkat(&places.image, temporary.as_str(), AtFlags::empty());
    let _ = unlink();
    linkat(
        &places.copy,
        copy,
        &places.image,
        temporary.as_str(),
        AtFlags::empty(),
    )?;
    let (linked, _) = note.find(&places.image, temporary.as_ref())?;
    let (old, _) = note.find(at, name)?;
    if (linked, old) != (Name::New, Name::Old) {
        let _ = unlink();
        return Err(io::Error::other("somebody else renames files in its directory").into());
    }
    Ok(temporary)
}

/// Gives the path of the image back to the old file, which has the temporary name.
fn restore(note: &Note) -> Result<(), Refusal> {
    let at = note.places()?.image;
    let name = note.image.file_name().unwrap_or_default();
    renameat_with(&at, note.temporary(), &at, name, RenameFlags::EXCHANGE)?;
    Ok(fsync(&at)?)
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
    unlinkat(places.copy.as_fd(), name, AtFlags::empty())?;
    Ok(fsync(&places.copy)?)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt as _;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::model::{FilesystemKind, ImageKey};

    /// An image and its complete copy, in a directory.
    fn copied(directory: &Path) -> Note {
        let path = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).unwrap();
            let file = File::open(&path).unwrap();
            let kind = FilesystemKind::Other;
            (path, note::identify(&file, kind).unwrap(), file)
        };
        let (image, old, file) = path("image", "old");
        let (copy, new, _) = path("copy", "new");
        let owner = file.metadata().unwrap();
        Note {
            image,
            copy,
            former: PathBuf::new(),
            old,
            new,
            owner: (owner.uid(), owner.gid()),
            label: Vec::new(),
            domain: "6695eb01-f6a4-8304-79aa-97f2502e193f".to_owned(),
            disk: "vda".to_owned(),
            step: Step::Switching { suspends: true },
            mark: None,
            database: directory.join("none"),
        }
    }

    /// A process that has a file open.
    fn holder(file: File) -> Child {
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::from(file)).spawn().unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().flatten();
        let mut names: Vec<_> = entries
            .map(|it| it.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_vm_that_was_started_meanwhile_keeps_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let note = copied(&dir);
        note.try_link().unwrap();
        assert_eq!(names(&dir), ["copy", "image"]);
        let image = File::options().write(true).open(&note.image).unwrap();
        let mut vm = holder(image);
        let linked = link(&note, false);
        let found = fs::read_to_string(&note.image).unwrap();
        vm.kill().unwrap();
        vm.wait().unwrap();
        assert!(linked.unwrap_err().text.contains("is just being started"));
        assert_eq!(
            (found.as_str(), names(&dir)),
            ("old", vec!["copy".to_owned(), "image".to_owned()])
        );
        // A process that another test forked meanwhile has it open until it executes its program.
        while written(&note, &note.places().unwrap())[0] {
            thread::sleep(INTERVAL);
        }
        link(&note, false).unwrap();
        assert_eq!(fs::read_to_string(&note.image).unwrap(), "new");
        assert_eq!(names(&dir), ["copy", "image"]);
    }

    #[test]
    fn both_names_of_the_old_file_become_those_of_the_copy() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let former = dir.join("below/former");
        fs::create_dir(dir.join("below")).unwrap();
        let mut note = copied(&dir);
        fs::hard_link(&note.image, &former).unwrap();
        note.former = former.clone();
        note.try_link().unwrap();
        assert_eq!(names(&dir), ["below", "copy", "image"]);
        link(&note, true).unwrap();
        for path in [&note.image, &former] {
            assert_eq!(fs::read_to_string(path).unwrap(), "new");
        }
        assert_eq!(names(&dir), ["below", "copy", "image"]);
        assert_eq!(names(&dir.join("below")), ["former"]);
        // Killed between both.
        let other = dir.join("other");
        fs::create_dir(&other).unwrap();
        let mut note = copied(&other);
        fs::hard_link(&note.image, other.join("former")).unwrap();
        note.former = other.join("former");
        fs::remove_file(&note.image).unwrap();
        fs::hard_link(&note.copy, &note.image).unwrap();
        link(&note, true).unwrap();
        assert_eq!(fs::read_to_string(&note.former).unwrap(), "new");
    }

    #[test]
    fn the_old_file_gets_its_path_back() {
        let dir = tempfile::tempdir().unwrap();
        let note = copied(dir.path());
        let temporary = dir.path().join(note.temporary());
        fs::rename(&note.image, &temporary).unwrap();
        fs::hard_link(&note.copy, &note.image).unwrap();
        restore(&note).unwrap();
        assert_eq!(fs::read_to_string(&note.image).unwrap(), "old");
        assert_eq!(fs::read_to_string(&temporary).unwrap(), "new");
    }

    /// The number of a removed inode is soon that of another file.
    #[test]
    fn a_writer_of_another_file_with_the_same_number_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let mut note = copied(&dir);
        let image = File::options().write(true).open(&note.image).unwrap();
        let mut vm = holder(image);
        let places = note.places().unwrap();
        let is_old = written(&note, &places);
        note.old.generation = note.old.generation.wrapping_add(1);
        let was_old = written(&note, &places);
        vm.kill().unwrap();
        vm.wait().unwrap();
        assert_eq!((is_old, was_old), ([true, false], [false, false]));
    }

    #[test]
    fn a_later_copy_takes_over() {
        let dir = tempfile::tempdir().unwrap();
        let (state, path) = (dir.path().join("state"), dir.path());
        let first = copied(path);
        let note = Note {
            copy: path.join("second"),
            former: first.copy.clone(),
            old: first.new.clone(),
            new: ImageKey {
                inode: first.new.inode + 1,
                ..first.new.clone()
            },
            ..first.clone()
        };
        let first = Noted::write(first, &state).unwrap();
        assert!(!note::is_superseded(&state, &first.file));
        let mut second = Noted::write(note, &state).unwrap();
        assert!(note::is_superseded(&state, &first.file));
        assert!(!note::is_superseded(&state, &second.file));
        second.forget_former().unwrap();
        assert_eq!((first.file.exists(), second.file.exists()), (false, true));
        assert_eq!(note::read(&second.file).unwrap().former(), None);
        // That of another image whose copy has got the same number.
        let other = Noted::write(first.note.clone(), &state).unwrap();
        second.note.former = path.join("another");
        second.forget_former().unwrap();
        assert!(other.file.exists());
    }

    #[test]
    fn a_note_of_the_version_before_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let note = copied(dir.path());
        let mut json = serde_json::to_value(&note).unwrap();
        let members = json.as_object_mut().unwrap();
        for later in ["former", "label", "mark"] {
            members.remove(later).unwrap();
        }
        assert_eq!(serde_json::from_value::<Note>(json).unwrap(), note);
    }

    /// What is a domain's only way to the copy.
    #[test]
    fn every_place_in_a_definition_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut note = copied(dir.path());
        note.former = PathBuf::from("/former");
        let (image, copy) = (note.image.display(), note.copy.display());
        let of = |source: &str, more: &str, target: &str| {
            let disk =
                format!("<disk><source file='{source}'/>{more}<target dev='{target}'/></disk>");
            let xml =
                format!("<domain><name>a</name><uuid>b</uuid><devices>{disk}</devices></domain>");
            named(&Domain::parse(&xml).unwrap(), &note)
        };
        let (image, copy) = (image.to_string(), copy.to_string());
        let below = format!("<backingStore type='file'><source file='{copy}'/></backingStore>");
        let mirror = format!("<mirror><source file='{copy}'/></mirror>");
        assert_eq!(of(&image, "", "vda"), Named::Image);
        assert_eq!(of(&copy, "", "vda"), Named::Copy);
        assert_eq!(of(&image, &mirror, "vda"), Named::Image);
        assert_eq!(of("/overlay", &below, "vda"), Named::Elsewhere);
        assert_eq!(of(&copy, "", "vdb"), Named::Elsewhere);
        assert_eq!(of("/overlay", "", "vda"), Named::Neither);
        assert_eq!(of("/former", "", "vda"), Named::Former);
        assert_eq!(of("/former", &below, "vda"), Named::Elsewhere);
    }
}
