//! Asks libvirt and the kernel what decides about a copy.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{fstat, fstatvfs};

use super::content;
use super::domain::Domain;
use super::open_files::{self, Opened};
use super::output::{self, BlockJob, Versions};
use super::refusal::{self, Answers, Facts, FileId};
use super::target::Place;
use super::virsh::{Virsh, VirshError};
use crate::defrag::guard::{self, Target};
use crate::defrag::{HostInterfaces, holders};
use crate::discover::format::HEADER;
use crate::model::path::shown;
use crate::model::{Bytes, ReasonCode, Refusal, Share};

/// Where libvirt's driver for QEMU notes the process IDs of its domains, as `NAME.pid`.
const DRIVER: &str = "/run/libvirt/qemu";

/// What is known of an image's VM.
pub(super) struct Asked {
    pub(super) facts: Facts,
    /// The process of the VM.
    pub(super) pid: u32,
}

/// Asks libvirt about the domain of this name.
fn answers(virsh: &Virsh, name: &str) -> Result<Answers, Refusal> {
    let versions = Versions::parse(&virsh.run("version", &[&"--daemon"])?).map_err(failed)?;
    refusal::check_versions(&versions)?;
    let live = domain(virsh, name, &[])?;
    let of_it = |command| virsh.run(command, &[&"--domain", &live.uuid]);
    let names = |command| -> Result<_, Refusal> {
        let printed = virsh.run(command, &[&"--domain", &live.uuid, &"--name"])?;
        Ok(output::names(&printed))
    };
    let info = output::domain_info(&of_it("dominfo")?).map_err(failed)?;
    Ok(Answers {
        defined: match info.persistent {
            true => Some(domain(virsh, &live.uuid, &["--inactive"])?),
            false => None,
        },
        state: info.state,
        versions,
        job: output::domain_job(&of_it("domjobinfo")?).map_err(failed)?,
        block_job: any_block_job(virsh, &live)?,
        snapshots: names("snapshot-list")?,
        checkpoints: names("checkpoint-list")?,
        live,
    })
}

/// Asks all that [`check`](super::refusal::check) needs. `former` is the path of the copy before, by
/// which the VM knows the image. Refused if no VM of libvirt has it open.
pub(super) fn ask(
    virsh: &Virsh,
    target: &Target,
    former: Option<&Path>,
    place: &Place,
    keep_free: Share,
    host: &HostInterfaces,
) -> Result<Asked, Refusal> {
    let image = target.file.metadata()?;
    let file = FileId {
        device: image.dev(),
        inode: image.ino(),
    };
    let opened = opened(target, former, host);
    let of_image = || opened.iter().filter(|it| it.file == file);
    let mut writers = of_image().filter(|it| it.writes);
    let found = writers.find_map(|it| Some((it.pid, domain_of(it.pid)?)));
    let (pid, name) = found.ok_or(Refusal::from(ReasonCode::NotLibvirt))?;
    let others = of_image().map(|it| it.pid).filter(|it| *it != pid);
    let own = of_image().filter(|it| it.pid == pid && it.writes);
    known_as(former.unwrap_or(&target.path), own)?;
    let answers = answers(virsh, &name)?;
    let size = fstatvfs(&place.directory)?;
    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(size.f_frsize));
    Ok(Asked {
        facts: Facts {
            image: target.path.clone(),
            file,
            former: former.map(Path::to_owned),
            links: image.nlink(),
            answers,
            open: opened
                .iter()
                .filter(|it| it.pid == pid && it.writes)
                .map(|it| it.file)
                .collect(),
            others: others.collect::<BTreeSet<u32>>().len(),
            needs: guard::allocated(&target.file)?,
            has: bytes(size.f_bavail),
            keeps: keep_free.of_bytes(bytes(size.f_blocks)),
            copy_on: fstat(&place.directory)?.st_dev,
            header: content::read(&target.file, 0, HEADER)?,
        },
        pid,
    })
}

/// The files in the directories of the image and of the copy before that processes have open, without
/// what other runs of ours only look at.
fn opened(target: &Target, former: Option<&Path>, host: &HostInterfaces) -> Vec<Opened> {
    let names = [Some(target.path.as_path()), former];
    let directories = names.iter().flatten().filter_map(|it| it.parent());
    let mut opened = open_files::opened(&host.proc, &directories.collect::<Vec<_>>());
    opened.retain(|it| it.writes || !holders::is_ours(&host.proc, it.pid));
    opened
}

/// Whether a process other than the VM's has the image open, be it for reading.
pub(super) fn has_others(
    target: &Target,
    former: Option<&Path>,
    pid: u32,
    host: &HostInterfaces,
) -> io::Result<bool> {
    let image = target.file.metadata()?;
    let (device, inode) = (image.dev(), image.ino());
    let opened = opened(target, former, host);
    let mut others = opened.iter().filter(|it| it.pid != pid);
    Ok(others.any(|it| it.file == FileId { device, inode }))
}

/// QEMU opens the image again by the name that it was opened by: after a pivot that libvirt took for an
/// abort, that name is removed.
fn known_as<'o>(name: &Path, mut own: impl Iterator<Item = &'o Opened>) -> Result<(), Refusal> {
    match own.find(|it| it.name != name) {
        Some(other) => Err(Refusal::new(
            ReasonCode::Hypervisor,
            format!(
                "QEMU knows it by another name ({}): shut its VM down and start it again",
                shown(&other.name)
            ),
        )),
        None => Ok(()),
    }
}

fn failed(error: output::UnknownOutput) -> Refusal {
    VirshError::from(error).into()
}

/// The definition of a domain, named or by its UUID; `options` of `virsh dumpxml`.
pub(super) fn domain(virsh: &Virsh, name: &str, options: &[&str]) -> Result<Domain, VirshError> {
    let mut arguments: Vec<&dyn AsRef<OsStr>> = vec![&"--domain", &name];
    arguments.extend(options.iter().map(|option| option as &dyn AsRef<OsStr>));
    Ok(Domain::parse(&virsh.run("dumpxml", &arguments)?)?)
}

/// The copy job of a disk.
pub(super) fn block_job(
    virsh: &Virsh,
    domain: &str,
    disk: &str,
) -> Result<Option<BlockJob>, VirshError> {
    let printed = virsh.run(
        "blockjob",
        &[&"--domain", &domain, &"--path", &disk, &"--raw"],
    )?;
    Ok(output::block_job(&printed)?)
}

fn any_block_job(virsh: &Virsh, live: &Domain) -> Result<Option<(String, String)>, Refusal> {
    for disk in live.disks.iter().filter(|disk| disk.source.is_some()) {
        if let Some(job) = block_job(virsh, &live.uuid, &disk.target)? {
            return Ok(Some((job.kind, disk.target.clone())));
        }
    }
    Ok(None)
}

/// The name of the domain with this process.
fn domain_of(pid: u32) -> Option<String> {
    let files = fs::read_dir(DRIVER).ok()?.flatten();
    let mut files = files.map(|entry| entry.path());
    let is_it = |file: &std::path::PathBuf| {
        let text = fs::read_to_string(file).unwrap_or_default();
        file.extension().is_some_and(|its| its == "pid") && text.trim().parse() == Ok(pid)
    };
    let file = files.find(is_it)?;
    Some(file.file_stem()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests;
