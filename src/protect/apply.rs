//! Sets hints, and takes them back.
//!
//! Each file or directory is opened without following a link, and noted, changed and verified
//! through that descriptor: what takes its name meanwhile is not touched.

use std::fs::File;

use super::journal::{Entry, Journal};
use super::plan::Change;
use crate::defrag::{HostInterfaces, guard, hint};
use crate::model::{Bytes, ImageId, ReasonCode, Refusal};
use crate::probe::located::Located;
use crate::sys::fsxattr::{self, Hint};

/// So many are open at once, and noted by one replacement of the journal.
const BATCH: usize = 64;

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// It was set.
    Set,
    /// A hint of that size or a longer one is in force.
    Already(Bytes),
    /// Nothing was changed.
    Refused(Refusal),
}

/// Makes changes, each noted before. `report` is called once for each.
///
/// # Errors
/// If the journal cannot be written; what was not noted is not changed.
pub fn apply(
    changes: &[Change],
    journal: &mut Journal,
    host: &HostInterfaces,
    mut report: impl FnMut(&Change, Applied),
) -> std::io::Result<()> {
    for batch in changes.chunks(BATCH) {
        let mut prepared: Vec<_> = batch.iter().map(|it| prepare(it, host)).collect();
        for prepared in prepared.iter_mut().flatten() {
            prepared.former = journal.note(prepared.entry.clone());
        }
        journal.save()?;
        let mut failed = false;
        for (change, prepared) in batch.iter().zip(prepared) {
            let done = prepared.and_then(|prepared| {
                set(&prepared).map_err(|refusal| {
                    failed = true;
                    journal.forget(&prepared.entry);
                    prepared.former.map(|former| journal.note(former));
                    Applied::Refused(refusal)
                })
            });
            report(change, done.unwrap_or_else(|not_done| not_done));
        }
        if failed {
            journal.save()?;
        }
    }
    Ok(())
}

/// A change that can be made.
struct Prepared {
    file: File,
    entry: Entry,
    /// What the journal had of it.
    former: Option<Entry>,
}

fn prepare(change: &Change, host: &HostInterfaces) -> Result<Prepared, Applied> {
    let (file, at) = opened(change, host).map_err(Applied::Refused)?;
    let refused = |error: std::io::Error| Applied::Refused(error.into());
    let before = fsxattr::attributes(&file)
        .map_err(refused)?
        .hint(change.hint);
    let set = u32::try_from(change.wanted.0).unwrap_or(u32::MAX);
    match before {
        Some(before) if before >= set => Err(Applied::Already(Bytes(before.into()))),
        _ => Ok(Prepared {
            file,
            entry: Entry {
                at,
                hint: change.hint,
                before,
                set,
                earlier: Vec::new(),
            },
            former: None,
        }),
    }
}

/// Opens what is to be changed, unless it is another file by now or a run has its hint.
fn opened(change: &Change, host: &HostInterfaces) -> Result<(File, Located), Refusal> {
    let (file, mount) = match change.id {
        None => guard::open_directory(&change.path, host)?,
        Some(id) => {
            let target = guard::open(&change.path, host)?;
            let stat = rustix::fs::fstat(&target.file)?;
            let held = ImageId {
                device: stat.st_dev,
                inode: stat.st_ino,
            };
            if held != id {
                let text = "another file has taken its name meanwhile";
                return Err(Refusal::new(ReasonCode::Elsewhere, text));
            }
            (target.file, target.mount)
        }
    };
    let at = Located::of(&change.path, &mount.point, &file)?;
    if hint::is_kept(&host.hints, &at) {
        let text = "a defragmentation of it uses the hint; try again when that has ended";
        return Err(Refusal::new(ReasonCode::RunningNow, text));
    }
    Ok((file, at))
}

fn set(prepared: &Prepared) -> Result<Applied, Refusal> {
    let Prepared { file, entry, .. } = prepared;
    let mut attributes = fsxattr::attributes(file)?;
    attributes.set_hint(entry.hint, Some(entry.set));
    fsxattr::set_attributes(file, attributes).map_err(|error| explained(error, entry.hint))?;
    Ok(Applied::Set)
}

fn explained(error: std::io::Error, hint: Hint) -> Refusal {
    let text = match (error.raw_os_error(), hint) {
        (Some(libc::EINVAL), Hint::Own) => {
            "the kernel refuses it: the image has extents by now, or the hint is longer than half of \
             an allocation group"
        }
        (Some(libc::EINVAL), _) => {
            "the kernel refuses it: the hint is longer than half of an allocation group"
        }
        _ => return error.into(),
    };
    Refusal::new(ReasonCode::Unreadable, text)
}

/// What became of an entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undone {
    /// The former hint, if any, is in force again.
    Restored(Option<Bytes>),
    /// It was in force already.
    AsBefore,
    /// Another hint was set since, which stays.
    ChangedMeanwhile(Option<Bytes>),
    /// It has extents by now, and the kernel changes no hint of its own of such an image.
    HasExtents,
    /// There is no such file any more.
    Gone,
    /// It stays as it is, and in the journal.
    Failed(Refusal),
}

/// Takes all noted changes back, the newest first. `report` is called once for each.
///
/// # Errors
/// If the journal cannot be written.
pub fn undo(
    journal: &mut Journal,
    host: &HostInterfaces,
    mut report: impl FnMut(&Entry, Undone),
) -> std::io::Result<()> {
    for entry in journal.entries().to_vec().iter().rev() {
        let undone = restore(entry, host).unwrap_or_else(Undone::Failed);
        if !matches!(undone, Undone::Failed(_)) {
            journal.forget(entry);
        }
        report(entry, undone);
    }
    journal.save()
}

fn restore(entry: &Entry, host: &HostInterfaces) -> Result<Undone, Refusal> {
    let Some(file) = entry.at.find()? else {
        return Ok(Undone::Gone);
    };
    if hint::is_kept(&host.hints, &entry.at) {
        let text = "a defragmentation of it uses the hint; try again when that has ended";
        return Err(Refusal::new(ReasonCode::RunningNow, text));
    }
    let mut attributes = fsxattr::attributes(&file)?;
    let is = attributes.hint(entry.hint);
    let bytes = |hint: Option<u32>| hint.map(|hint| Bytes(hint.into()));
    if is == entry.before {
        return Ok(Undone::AsBefore);
    }
    if !is.is_some_and(|is| entry.has_set(is)) {
        return Ok(Undone::ChangedMeanwhile(bytes(is)));
    }
    if entry.hint == Hint::Own && attributes.extents > 0 {
        return Ok(Undone::HasExtents);
    }
    attributes.set_hint(entry.hint, entry.before);
    fsxattr::set_attributes(&file, attributes).map_err(|error| explained(error, entry.hint))?;
    // The entry is forgotten next, and must not be before the change is on disk.
    file.sync_all()?;
    Ok(Undone::Restored(bytes(entry.before)))
}
