//! Gives the names of an image to its copy, takes them back, and removes those that are left: each step
//! durable, by descriptors of the directories.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{
    AtFlags, Gid, RenameFlags, Uid, XattrFlags, fchown, fgetxattr, fsetxattr, fsync, linkat,
    renameat, renameat_with, unlinkat,
};

use super::decide::Name;
use super::note::{Note, Places, basename};
use crate::defrag::metadata::LABEL;
use crate::model::Refusal;

/// Gives the copy all names of the old file, durably: the path of the image, and that of the copy
/// before. Where no VM has the copy open (`in_use`), one may just be started with the old file, which
/// then keeps its path.
pub(super) fn link(note: &Note, in_use: bool) -> Result<(), Refusal> {
    let places = note.places()?;
    let copy = basename(&note.copy);
    let (found, file) = note.find(&places.copy, copy)?;
    let Some(file) = file.filter(|_| found == Name::New) else {
        return Err(io::Error::other("the copy has lost its name").into());
    };
    file.sync_all()?;
    let image = basename(&note.image);
    let (found, _) = note.find(&places.image, image)?;
    match in_use {
        _ if found == Name::New => {}
        true => replace(note, &places, &places.image, image)?,
        false => exchange(note, &places, image)?,
    }
    if let Some((at, name)) = former(note, &places)
        && note.find(at, name)?.0 == Name::Old
    {
        replace(note, &places, at, name)?;
    }
    Ok(())
}

/// The path of the copy before: its directory, and its name in it.
pub(super) fn former<'n>(note: &'n Note, places: &'n Places) -> Option<(&'n OwnedFd, &'n OsStr)> {
    places.former.as_ref().zip(note.former()?.file_name())
}

/// Gives the owner and the label of the image to the copy, which has its path: where libvirt took the
/// pivot for an abort, it has withdrawn them.
pub(super) fn give_access(note: &Note) -> Result<(), Refusal> {
    let image = basename(&note.image);
    let (found, file) = note.find(&note.places()?.image, image)?;
    let Some(copy) = file.filter(|_| found == Name::New) else {
        return Ok(());
    };
    let (user, group) = note.owner;
    let owner = copy.metadata()?;
    if (owner.uid(), owner.gid()) != note.owner {
        fchown(&copy, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    let label = note.label.as_slice();
    let mut found = vec![0; label.len()];
    let has_label = fgetxattr(&copy, LABEL, found.as_mut_slice()).is_ok_and(|_| found == label);
    if !label.is_empty() && !has_label {
        fsetxattr(&copy, LABEL, label, XattrFlags::empty())?;
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
    let [writes_old, _] = note.written(places);
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
    let copy = basename(&note.copy);
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
pub(super) fn restore(note: &Note) -> Result<(), Refusal> {
    let at = note.places()?.image;
    let image = basename(&note.image);
    renameat_with(&at, note.temporary(), &at, image, RenameFlags::EXCHANGE)?;
    Ok(fsync(&at)?)
}

/// Removes the name of the copy.
pub(super) fn remove_copy(note: &Note) -> Result<(), Refusal> {
    remove(&note.places()?.copy, basename(&note.copy))
}

/// Removes the temporary name, also where [`Note::try_link`] has moved it.
pub(super) fn remove_temporary(note: &Note) -> Result<(), Refusal> {
    let places = note.places()?;
    let temporary = note.temporary();
    for at in places.of_links() {
        if matches!(note.find(at, temporary.as_ref())?.0, Name::Old | Name::New) {
            remove(at, temporary.as_ref())?;
        }
    }
    Ok(())
}

/// Removes the path of the copy before, if that is one of the copy.
pub(super) fn remove_former(note: &Note) -> Result<(), Refusal> {
    let places = note.places()?;
    match former(note, &places) {
        Some((at, name)) if note.find(at, name)?.0 == Name::New => remove(at, name),
        _ => Ok(()),
    }
}

fn remove(at: &OwnedFd, name: &OsStr) -> Result<(), Refusal> {
    unlinkat(at, name, AtFlags::empty())?;
    Ok(fsync(at)?)
}

#[cfg(test)]
mod tests;
