//! What is to be done about a copy that has begun, by what is found of it: the next of the steps that
//! end it. Pure. After each step all is looked at again, until nothing is left to do.
//!
//! Two rules. A file is removed only if it is certain that the other one is current. A guest is
//! resumed only when the path of the image leads to the current file, and the path of the copy
//! before as well: the running definition names that one, and goes on to if libvirt takes the pivot
//! for an abort.

use serde::{Deserialize, Serialize};

/// The step that was noted last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// The copy is made.
    Copying,
    /// It is complete, flushed, and taken into use while the guest stands still.
    Switching {
        /// The guest stands still because of that.
        suspends: bool,
    },
}

/// What a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// The file that was the image at the beginning.
    Old,
    /// The copy.
    New,
    Missing,
    Other,
}

/// The state of the domain, as libvirt reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vm {
    /// Or paused for a reason that a resume does not end.
    Running,
    /// Suspended.
    Paused,
    Off,
    /// libvirt does not know it.
    Undefined,
    /// libvirt does not answer.
    Unknown,
}

/// Which path a definition of the domain names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// That of the image.
    Image,
    /// That of the copy before, which is another name of the image.
    Former,
    /// That of the copy.
    Copy,
    /// That of the copy in another place, such as below a snapshot.
    Elsewhere,
    /// Another, or there is no such definition or disk.
    Neither,
}

/// All that is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) step: Step,
    /// What the path of the image leads to.
    pub(super) image: Name,
    /// What the path of the copy leads to.
    pub(super) copy: Name,
    /// What the path of the copy before leads to; `None` if there was none, or it is removed.
    pub(super) former: Option<Name>,
    /// What the temporary name leads to, by which the copy gets other names.
    pub(super) temporary: Name,
    /// Whether the old file, and the copy, may have been written to since both were the same.
    pub(super) changed_old: bool,
    pub(super) changed_new: bool,
    /// Whether a process writes to the old file, and to the copy: one without QEMU's lock counts only if
    /// neither has one.
    pub(super) writes_old: bool,
    pub(super) writes_new: bool,
    pub(super) vm: Vm,
    /// Whether the domain is to be started from a managed save, which names what ran then.
    pub(super) saved: bool,
    /// Whether libvirt has a copy job for the disk.
    pub(super) job: bool,
    pub(super) live: Named,
    pub(super) defined: Named,
    /// Whether one of them names the path of the copy before anywhere.
    pub(super) former_named: bool,
}

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Give the copy the path of the image, and that of the copy before.
    Link,
    /// Give the path of the image back to the old file.
    Restore,
    /// End the job; the VM keeps the old file.
    Abort,
    /// Let the guest go on.
    Resume,
    /// Have the persistent definition name the path of the image.
    Define,
    /// Remove the name of the copy: a copy that is not used, or its second name.
    Remove,
    /// Remove the temporary name.
    RemoveTemporary,
    /// Remove the path of the copy before, and its note.
    RemoveFormer,
    /// Nothing is left.
    Forget,
    /// Nothing until the VM ends, or is defined otherwise: something still names the copy, or may.
    Keep,
    /// Nothing now: it cannot be known, or libvirt has to do something first.
    Wait,
    /// Nothing: others have moved the files.
    Leave,
}

pub(super) fn next(found: &Found) -> Act {
    let may_be_current = found.writes_new && !found.writes_old;
    match found.image {
        // Also while libvirt does not answer: what is current is certain.
        Name::Old if may_be_current => Act::Link,
        Name::Old if found.writes_new => abort(found),
        Name::Old => with_old(found),
        Name::New if found.writes_old => with_new_in_vain(found),
        Name::New => with_new(found),
        Name::Missing | Name::Other => resume(found).unwrap_or(Act::Leave),
    }
}

/// A guest that stands still because of a copy.
fn resume(found: &Found) -> Option<Act> {
    let suspends = found.step == (Step::Switching { suspends: true });
    (found.vm == Vm::Paused && suspends).then_some(Act::Resume)
}

/// QEMU writes to both, so both are current, but only the old file is complete for certain. If libvirt
/// has noted the pivot, it is somebody else who writes to the old file.
fn abort(found: &Found) -> Act {
    let is_noted = [found.live, found.defined].contains(&Named::Copy);
    match (found.vm, found.job) {
        (Vm::Running | Vm::Paused, true) => Act::Abort,
        _ if is_noted && resume(found).is_some() => Act::Link,
        _ => Act::Wait,
    }
}

/// The path leads to the old file, and nobody writes to the copy. When the pivot was noted nowhere but
/// in QEMU, which has ended, the old file is current, unless the copy was written to since.
fn with_old(found: &Found) -> Act {
    let is_used = found.writes_old;
    let is_newer = found.changed_new || found.defined == Named::Copy;
    match (found.vm, found.copy) {
        (Vm::Unknown, _) => Act::Wait,
        (Vm::Running | Vm::Paused, _) if found.job => {
            resume(found).filter(|_| is_used).unwrap_or(Act::Wait)
        }
        // It is just being started, or its process was missed.
        (Vm::Running | Vm::Paused, _) if !is_used && found.live != Named::Neither => Act::Wait,
        (_, Name::New) if !is_used && is_newer && !found.changed_old => Act::Link,
        _ if resume(found).is_some() => Act::Resume,
        (_, copy) if !is_used && found.defined == Named::Copy && copy != Name::New => Act::Leave,
        // Its VM was started with the old file, and lacks what was written to the copy.
        (_, Name::New) if found.changed_new => Act::Leave,
        _ if [found.live, found.defined].contains(&Named::Elsewhere) => Act::Leave,
        // Without a definition, nothing shows which of the two was used last.
        (Vm::Undefined, Name::New) if !is_used && found.step != Step::Copying => Act::Leave,
        _ if found.defined == Named::Copy => Act::Define,
        _ if is_left(found.temporary) => Act::RemoveTemporary,
        (_, Name::New) => Act::Remove,
        // The note of the copy before knows its path.
        _ => Act::Forget,
    }
}

fn is_left(name: Name) -> bool {
    matches!(name, Name::Old | Name::New)
}

/// The path leads to the copy, but a process writes to the old file: a VM was being started with it
/// while the copy was given the path, and that was interrupted before the old file got it back.
fn with_new_in_vain(found: &Found) -> Act {
    // It is not the VM who does, and its guest is not to wait for that.
    if found.writes_new
        && let Some(resume) = resume(found)
    {
        return match found.former {
            Some(Name::Old) => Act::Link,
            _ => resume,
        };
    }
    let is_unused = !found.writes_new && found.former != Some(Name::New);
    match found.temporary == Name::Old && is_unused {
        true => Act::Restore,
        false => Act::Leave,
    }
}

/// The path leads to the copy.
fn with_new(found: &Found) -> Act {
    // It may just be started with the old file.
    let may_start = !matches!(found.vm, Vm::Off | Vm::Undefined) && !found.writes_new;
    if found.temporary == Name::Old && may_start {
        return Act::Wait;
    }
    // Also while libvirt does not answer.
    if found.former == Some(Name::Old) {
        return Act::Link;
    }
    if let Some(resume) = resume(found) {
        return resume;
    }
    match (found.vm, found.live, found.defined, found.copy) {
        (Vm::Unknown, ..) => Act::Wait,
        _ if is_left(found.temporary) => Act::RemoveTemporary,
        (_, _, Named::Copy | Named::Former, _) => Act::Define,
        _ if found.former.is_some() && !found.former_named && !may_name(found, Named::Copy) => {
            Act::RemoveFormer
        }
        (.., copy) if copy != Name::New && found.former.is_some() => Act::Keep,
        (.., copy) if copy != Name::New => Act::Forget,
        _ if may_name(found, Named::Former) => Act::Keep,
        _ => Act::Remove,
    }
}

/// Whether something may name one of the two copies, or does; a definition that names `other` for the
/// disk does not.
fn may_name(found: &Found, other: Named) -> bool {
    let is_running = matches!(found.vm, Vm::Running | Vm::Paused);
    match (found.live, found.defined) {
        (live, _) if is_running && ![Named::Image, other].contains(&live) => true,
        (_, Named::Elsewhere) => true,
        (_, defined) => found.vm == Vm::Off && (found.saved || defined == Named::Neither),
    }
}

#[cfg(test)]
mod tests;
