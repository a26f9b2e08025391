//! Whether a disk can be copied under its running domain: the first reason why not. Pure.
//!
//! # Versions
//!
//! The copy needs synchronous writes: without them the copy lacks the last writes when it is ready,
//! and need not converge (`MirrorCopyMode`, qapi/block-core.json of QEMU, since 3.0). libvirt offers
//! them since 8.0.0 ("Synchronous write mode for disk copy operations", NEWS.rst). libvirt 8.0 runs
//! QEMU from 2.11 on (`QEMU_MIN_MAJOR`, src/qemu/qemu_capabilities.c), but uses `-blockdev`, and with it
//! `blockdev-mirror`, only if QEMU has the feature `savevm-monitor-nodes`
//! (`virQEMUCapsInitProcessCaps`, the same file), which is "since 4.2" (qapi/misc.json of QEMU 4.2).

use std::path::PathBuf;

use super::domain::{Backing, Disk, Domain};
use super::output::{Version, Versions};
use super::qcow2::Layout;
use crate::model::path::shown;
use crate::model::{Bytes, ReasonCode, Refusal};

const LEAST_LIBVIRT: Version = Version(8, 0, 0);
const LEAST_QEMU: Version = Version(4, 2, 0);

/// What identifies a file: `st_dev` and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// What libvirt answers about a domain.
#[derive(Debug, Clone)]
pub struct Answers {
    /// The running domain.
    pub live: Domain,
    /// Its persistent definition, if it has one.
    pub defined: Option<Domain>,
    /// Its state, as `virsh domstate` names it.
    pub state: String,
    /// The versions of libvirt and QEMU.
    pub versions: Versions,
    /// The job that the whole domain is in, such as a migration.
    pub job: Option<String>,
    /// The block job on one of its disks, as `virsh blockjob` names it, and the target of the disk.
    pub block_job: Option<(String, String)>,
    /// Names of its snapshots.
    pub snapshots: Vec<String>,
    /// Names of its checkpoints.
    pub checkpoints: Vec<String>,
}

/// Everything that is asked before a copy, and again before it is taken into use.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The path of the image.
    pub image: PathBuf,
    /// The file that the path leads to.
    pub file: FileId,
    /// The path of the copy before, another name of the image, which its VM was not shut down since.
    pub former: Option<PathBuf>,
    /// Its number of names.
    pub links: u64,
    /// What libvirt answers about the domain that has it open.
    pub answers: Answers,
    /// The files that the domain's process has open.
    pub open: Vec<FileId>,
    /// Number of other processes that have the image open.
    pub others: usize,
    /// What the copy can take up at most.
    pub needs: Bytes,
    /// Free space where the copy is made.
    pub has: Bytes,
    /// What stays free of it.
    pub keeps: Bytes,
    /// `st_dev` of the directory in which the copy is made.
    pub copy_on: u64,
    /// The beginning of the image: the header, if its format has one.
    pub header: Vec<u8>,
}

/// The disk that is to be copied, or why it is left alone.
pub fn check(facts: &Facts) -> Result<&Disk, Refusal> {
    check_versions(&facts.answers.versions)?;
    domain(facts)?;
    let disk = only_disk(facts)?;
    plain(disk, Stated::Running)?;
    if disk.format() == "qcow2" {
        let refused = |why| refused(format!("disk {}: {why}", disk.target));
        Layout::of(&facts.header).map_err(refused)?;
    }
    same_when_started(facts, disk)?;
    file(facts)?;
    Ok(disk)
}

fn refused(text: impl Into<String>) -> Refusal {
    Refusal::new(ReasonCode::Hypervisor, text)
}

fn refuse_if(is_so: bool, text: impl FnOnce() -> String) -> Result<(), Refusal> {
    match is_so {
        true => Err(refused(text())),
        false => Ok(()),
    }
}

/// Checks the versions, before commands are used that old ones lack.
pub(super) fn check_versions(versions: &Versions) -> Result<(), Refusal> {
    let libvirt = versions.libvirt;
    refuse_if(libvirt < LEAST_LIBVIRT, || {
        format!(
            "libvirt {libvirt} cannot copy with synchronous writes: update it to {LEAST_LIBVIRT}, \
             or shut the VM down in a window, for xfs_fsr"
        )
    })?;
    let Some(qemu) = versions.qemu else {
        return Err(refused(
            "libvirt cannot find out the version of QEMU: see `virsh version`",
        ));
    };
    refuse_if(qemu < LEAST_QEMU, || {
        format!("QEMU {qemu} is too old for such a copy: update it to {LEAST_QEMU}")
    })
}

/// Checks the domain as a whole.
fn domain(facts: &Facts) -> Result<(), Refusal> {
    let name = &facts.answers.live.name;
    let list = |names: &[String]| names.join(", ");
    refuse_if(facts.answers.state != "running", || {
        format!(
            "its VM {name} is {}: resume it, or wait",
            facts.answers.state
        )
    })?;
    refuse_if(facts.answers.defined.is_none(), || {
        format!(
            "its VM {name} is transient, and libvirt would forget it with its process: define it \
             (`virsh dumpxml`, `virsh define`)"
        )
    })?;
    if let Some(job) = &facts.answers.job {
        let text = format!("its VM {name} is busy ({job}): it is tried again later");
        return Err(refused(text));
    }
    if let Some((job, disk)) = &facts.answers.block_job {
        let text = format!(
            "a job of another program is at work on disk {disk} ({job}): wait for it, or end it \
             with `virsh blockjob {name} {disk} --abort`"
        );
        return Err(refused(text));
    }
    let Answers {
        snapshots,
        checkpoints,
        ..
    } = &facts.answers;
    refuse_if(!snapshots.is_empty(), || {
        format!(
            "its VM has snapshots ({}), which name the present file: delete them",
            list(snapshots)
        )
    })?;
    refuse_if(!checkpoints.is_empty(), || {
        format!(
            "its VM has checkpoints ({}), whose bitmaps a copy lacks: delete them, and the next \
             backup is a full one",
            list(checkpoints)
        )
    })?;
    refuse_if(facts.answers.live.host_devices, || {
        format!(
            "devices of the host are passed through to its VM {name}, and do not stop with it: \
             shut it down in a window, for xfs_fsr"
        )
    })
}

/// The disk with this file; more than one, or none, is refused.
fn only_disk(facts: &Facts) -> Result<&Disk, Refusal> {
    let domain = &facts.answers.live;
    let (image, former) = (facts.image.as_path(), facts.former.as_deref());
    let names = [Some(image), former].into_iter().flatten();
    let disks: Vec<&Disk> = names.flat_map(|name| domain.disks_of(name)).collect();
    let named = former.unwrap_or(image);
    match disks[..] {
        [disk] if disk.source.as_deref() == Some(named) => Ok(disk),
        [_, _, ..] => Err(refused("two disks of its VM are this file: remove one")),
        [_] => Err(refused(format!(
            "VM {} does not run with {}, the name of its last copy: shut it down and start it again",
            domain.name,
            shown(named)
        ))),
        [] => Err(refused(format!(
            "no disk of VM {} names it: it is open as something else, such as a kernel, firmware \
             or a backing file",
            domain.name
        ))),
    }
}

/// Where something is stated of a disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stated {
    Running,
    Defined,
}

/// Checks that a disk is a whole, plain, writable file of its VM alone.
fn plain(disk: &Disk, stated: Stated) -> Result<(), Refusal> {
    let target = &disk.target;
    let format = disk.format();
    let against = [
        (
            disk.device != "disk",
            format!("it is a {}, not a disk", disk.device),
        ),
        (
            disk.read_only,
            "the guest can only read it, so it gets no more extents: it is left alone".to_owned(),
        ),
        (
            disk.shareable,
            "other VMs share it, and their writes would miss the copy: shut them all down in a \
             window, for xfs_fsr"
                .to_owned(),
        ),
        (
            disk.transient,
            "its changes are discarded when the VM ends: it is left alone".to_owned(),
        ),
        (
            disk.encrypted,
            "QEMU encrypts it, and the secrets for a copy are with libvirt: shut the VM down in a \
             window, for xfs_fsr"
                .to_owned(),
        ),
        (
            disk.sliced,
            "only a part of the file is the disk: shut the VM down in a window, for xfs_fsr"
                .to_owned(),
        ),
        (
            !["raw", "qcow2"].contains(&format),
            format!(
                "its format is {}, and only raw and qcow2 images are copied: shut the VM down in a \
                 window, for xfs_fsr",
                if format.is_empty() {
                    "not stated"
                } else {
                    format
                }
            ),
        ),
    ];
    if let Some((_, text)) = against.into_iter().find(|(is_so, _)| *is_so) {
        return Err(refused(format!("disk {target}: {text}")));
    }
    match (&disk.backing, stated) {
        (Backing::None, _) | (Backing::NotStated, Stated::Defined) => {}
        (Backing::Image(below), _) => {
            let text = format!(
                "disk {target} is based on {below}: merge them first (`virsh blockcommit`, \
                 `virsh blockpull`)"
            );
            return Err(refused(text));
        }
        (Backing::NotStated, Stated::Running) => {
            let text = format!(
                "libvirt does not state what disk {target} is based on: see `virsh dumpxml`"
            );
            return Err(refused(text));
        }
    }
    refuse_if(disk.mirror.is_some(), || {
        format!("disk {target} is being copied already: wait, or `virsh blockjob --abort`")
    })
}

/// Checks that the domain would be started with the same disk.
fn same_when_started(facts: &Facts, live: &Disk) -> Result<(), Refusal> {
    let Some(defined) = &facts.answers.defined else {
        return Err(refused("its VM is not defined"));
    };
    let disk = defined.disk(&live.target);
    let same =
        disk.is_some_and(|it| it.source.as_ref() == Some(&facts.image) && it.format == live.format);
    refuse_if(!same, || {
        format!(
            "VM {} would be started with another disk {} than it runs with: compare `virsh \
             dumpxml` with `virsh dumpxml --inactive`",
            defined.name, live.target
        )
    })?;
    disk.map_or(Ok(()), |disk| plain(disk, Stated::Defined))
}

/// Refuses a copy that takes far more than the image `takes` now: a disk that is thin is not to become thick.
/// `copied` is what QEMU writes as data.
pub(super) fn check_growth(takes: Bytes, copied: Bytes) -> Result<(), Refusal> {
    refuse_if(copied.0 > takes.0.saturating_add(takes.0 / 8), || {
        format!(
            "it takes up {takes}, and its copy would take {copied}: QEMU copies holes in its clusters \
             (preallocation=metadata, `fallocate --dig-holes`) as zeros and compressed clusters \
             uncompressed; shut the VM down in a window, for xfs_fsr or `qemu-img convert`"
        )
    })
}

/// Checks the file, and the place of its copy.
fn file(facts: &Facts) -> Result<(), Refusal> {
    let image = shown(&facts.image);
    refuse_if(!facts.open.contains(&facts.file), || {
        format!(
            "the process of VM {} has another file open than {image} is now: shut the VM down, see \
             which one is current, and start it again",
            facts.answers.live.name
        )
    })?;
    if facts.others > 0 {
        let text = "other processes have it open as well, be it for reading, and would keep the old \
                    file: end them";
        return Err(refused(text));
    }
    if facts.links != 1 + u64::from(facts.former.is_some()) {
        let text = format!(
            "has {} names, and the others would keep the old file: remove them",
            facts.links
        );
        return Err(Refusal::new(ReasonCode::HardLinks, text));
    }
    refuse_if(facts.copy_on != facts.file.device, || {
        "defrag.blockcopy.directory is on another file system than the image, whose path would lead \
         to the old file: choose one on the same, or \"\""
            .to_owned()
    })?;
    room(facts)
}

/// Checks the free space alone.
pub(super) fn room(facts: &Facts) -> Result<(), Refusal> {
    let Facts {
        needs, has, keeps, ..
    } = facts;
    if needs.saturating_add(*keeps) > *has {
        let text = format!("not enough free space: needs {needs}, has {has}, keeps {keeps}");
        return Err(Refusal::new(ReasonCode::NoSpace, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
