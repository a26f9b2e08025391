//! Finds the processes that have images open, in one pass over /proc for all images.
//!
//! The pass accesses no other file system ([`processes`](crate::sys::processes) explains how), so
//! it cannot hang with one. It yields the inode and the mount of each open file. The mount gives
//! the file system; both together identify the image, regardless of renames and hard links. Before
//! kernel 5.14 the inode is not available and the name is compared instead.
//!
//! A process in a container sees files under other paths. Paths are therefore compared inside their
//! file system, where they are the same in every mount namespace ([`Place`]).
//!
//! Not visible: descriptors already closed, images that a VM only has mapped, and readers over the
//! network. Where that matters, [`locks`](crate::sys::locks) queries the kernel.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::command_lines::{CommandLines, Key};
use super::mounts::{Mount, MountTable, Place};
use super::vm::{Discard, Drive, Program, VmFacts};
use crate::model::{DeviceNumber, Opener, Owner, Sample, Vm};
use crate::sys::mounts;
use crate::sys::proc::start_time;
use crate::sys::processes::{OpenFile, Process, with_open_files};

/// Size limit for libvirt's status files, in bytes; none is that large.
const MOST_XML: u64 = 4 << 20;

/// Searches for owners and caches what does not change between passes.
#[derive(Debug)]
pub struct OwnerSearch {
    proc: PathBuf,
    run: PathBuf,
    command_lines: CommandLines,
    vms: HashMap<Key, VmFacts>,
}

impl OwnerSearch {
    /// `proc` is the mount point of procfs, `run` is `/run`.
    pub fn new(proc: &Path, run: &Path) -> Self {
        OwnerSearch {
            proc: proc.to_owned(),
            run: run.to_owned(),
            command_lines: CommandLines::new(proc.to_owned()),
            vms: HashMap::new(),
        }
    }

    /// Determines which process has which files open. Fails if procfs cannot be read.
    pub fn look(&mut self) -> io::Result<Holders> {
        let own = fs::read_link(self.proc.join("self/exe")).ok();
        let mut processes = with_open_files(&self.proc)?;
        // Probe helpers also have images open, but belong to fragwatch.
        processes.retain(|process| own.is_none() || process.program != own);
        let programs: Vec<_> = processes.iter().map(program).collect();
        let key = |process: &Process| Some((process.pid, start_time(&self.proc, process.pid)?));
        let all = processes.iter().zip(&programs);
        let vms = all.filter(|(_, program)| program.is_vm());
        let vms = vms.filter_map(|(process, program)| Some((key(process)?, *program)));
        let vms: HashMap<Key, Program> = vms.collect();
        self.learn_of(&vms);
        let facts: HashMap<u32, &VmFacts> =
            self.vms.iter().map(|(key, facts)| (key.0, facts)).collect();

        let mut holders = Holders {
            mounts: MountTable::new(mounts::read(&self.proc)?),
            ..Holders::default()
        };
        let mut places = Places::new(&self.proc, &holders.mounts);
        for (process, program) in processes.into_iter().zip(programs) {
            let facts = facts.get(&process.pid).copied();
            holders.add(process, program, facts, &mut places);
        }
        Ok(holders)
    }

    /// Identifies the VMs among these processes and drops all others from the cache.
    fn learn_of(&mut self, vms: &HashMap<Key, Program>) {
        self.vms.retain(|key, _| vms.contains_key(key));
        let is_new =
            |key: &&Key| !self.vms.contains_key(*key) && !self.command_lines.is_pending(**key);
        let new: Vec<Key> = vms.keys().filter(is_new).copied().collect();
        let answers = self.command_lines.read(&new);
        if answers.is_empty() && new.is_empty() {
            return;
        }
        for (key, line) in answers {
            if let Some(program) = vms.get(&key) {
                let facts = VmFacts::of_command_line(*program, &line.unwrap_or_default());
                let before = self.vms.remove(&key).unwrap_or_default();
                self.vms.insert(key, facts.or(before));
            }
        }
        let nameless = |key: &&Key| self.vms.get(*key).is_none_or(|facts| facts.name.is_none());
        let nameless: Vec<Key> = vms.keys().filter(nameless).copied().collect();
        if nameless.is_empty() {
            return;
        }
        let mut libvirt = libvirt(&self.run);
        for key in nameless {
            if let Some(facts) = libvirt.remove(&key.0) {
                let before = self.vms.remove(&key).unwrap_or_default();
                self.vms.insert(key, before.or(facts));
            }
        }
    }
}

fn program(process: &Process) -> Program {
    Program::of(&process.name, process.program.as_deref(), process.has_kvm)
}

/// Where the open files of processes lie, by the mounts of their mount namespaces. Made anew for
/// each pass, because the kernel uses mount IDs again.
struct Places<'a> {
    proc: &'a Path,
    ours: HashMap<u32, Mount>,
    /// By `/proc/PID/ns/mnt` of the first process met in a mount namespace, and by `PID` for one
    /// that sees other mounts there, because its root directory is another.
    others: HashMap<PathBuf, HashMap<u32, Mount>>,
}

impl Places<'_> {
    fn new<'a>(proc: &'a Path, ours: &MountTable) -> Places<'a> {
        Places {
            proc,
            ours: ours.by_id(),
            others: HashMap::new(),
        }
    }

    /// The place of an open file, or its device alone if its path does not go through its mount.
    fn of(&mut self, pid: u32, file: &OpenFile) -> (Option<DeviceNumber>, Option<Place>) {
        if let Some(mount) = self.ours.get(&file.mount) {
            return (Some(mount.device), mount.place(&file.path));
        }
        let process = PathBuf::from(pid.to_string());
        let namespace = fs::read_link(self.proc.join(&process).join("ns/mnt")).ok();
        let mut device = None;
        for tables in namespace.into_iter().chain([process]) {
            let read = || mounts_of(self.proc, pid);
            let mounts = self.others.entry(tables).or_insert_with(read);
            let Some(mount) = mounts.get(&file.mount) else {
                continue;
            };
            device = Some(mount.device);
            if let Some(place) = mount.place(&file.path) {
                return (device, Some(place));
            }
        }
        (device, None)
    }
}

/// The mounts of a process. The kernel lists their points below the root directory of the process,
/// but the paths of its open files from the root of its mount namespace (d_path, fs/d_path.c).
fn mounts_of(proc: &Path, pid: u32) -> HashMap<u32, Mount> {
    let root = fs::read_link(proc.join(pid.to_string()).join("root")).unwrap_or_default();
    let mounts = mounts::read_of(proc, pid).unwrap_or_default();
    let mut mounts = MountTable::new(mounts).by_id();
    for mount in mounts.values_mut() {
        let below = mount.point.strip_prefix("/").unwrap_or(&mount.point);
        let point = Path::new("/").join(&root).join(below);
        mount.point = point.components().collect();
    }
    mounts
}

/// A flag in the representation of /proc/PID/fdinfo.
fn flag(flag: i32) -> u32 {
    flag.cast_unsigned()
}

/// The VMs of libvirt's drivers for QEMU and Cloud Hypervisor, by process ID.
fn libvirt(run: &Path) -> HashMap<u32, VmFacts> {
    let drivers = ["libvirt/qemu", "libvirt/ch"].map(|driver| fs::read_dir(run.join(driver)));
    let is_xml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "xml");
    let is_small = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.len() <= MOST_XML);
    drivers
        .into_iter()
        .flatten()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(is_xml)
        .filter(is_small)
        .filter_map(|path| VmFacts::of_libvirt(&fs::read_to_string(path).ok()?))
        .collect()
}

/// Which process has which files open, as of one pass.
#[derive(Debug, Default)]
pub struct Holders {
    /// Our own mounts.
    mounts: MountTable,
    processes: Vec<Holder>,
    files: Vec<Held>,
    /// Indices into `files`: by inode, or by place or name if the inode is unknown.
    by_inode: HashMap<u64, Vec<usize>>,
    by_path: HashMap<PathBuf, Vec<usize>>,
}

#[derive(Debug)]
struct Holder {
    pid: u32,
    name: String,
    vm: Option<Vm>,
    drives: Vec<Drive>,
    opens_images: bool,
}

impl Holder {
    /// The drive with the file of this name, if its command line names it: one that passes discards
    /// on, if there are several.
    fn drive(&self, name: &Path) -> Option<&Drive> {
        let its = self.drives.iter().filter(|drive| drive.file == name);
        its.max_by_key(|drive| drive.discard)
    }
}

#[derive(Debug)]
struct Held {
    /// Index into `processes`.
    holder: usize,
    /// Its path as we see it. For one that opens no images, as the process sees it.
    name: PathBuf,
    inode: Option<u64>,
    device: Option<DeviceNumber>,
    /// Its path inside its file system, if known.
    inside: Option<PathBuf>,
    writes: bool,
    direct: bool,
}

impl Holders {
    fn add(
        &mut self,
        process: Process,
        program: Program,
        facts: Option<&VmFacts>,
        places: &mut Places<'_>,
    ) {
        let facts = facts.cloned().unwrap_or_default();
        let holder = self.processes.len();
        for file in process.files {
            // O_PATH gives no access to the contents, it only refers to the file (open(2)).
            if file.flags & flag(libc::O_PATH) == 0 {
                let (device, place) = places.of(process.pid, &file);
                self.push(holder, program, file, device, place);
            }
        }
        let (pid, is_vm) = (process.pid, program.is_vm() && !facts.serves_only);
        let VmFacts {
            name,
            uuid,
            drives,
            manager,
            ..
        } = facts;
        self.processes.push(Holder {
            pid,
            name: process.name,
            vm: is_vm.then_some(Vm {
                name,
                uuid,
                pid,
                manager,
            }),
            drives,
            opens_images: program.opens_images(),
        });
    }

    fn push(
        &mut self,
        holder: usize,
        program: Program,
        file: OpenFile,
        device: Option<DeviceNumber>,
        place: Option<Place>,
    ) {
        let index = self.files.len();
        let translated = place.as_ref().filter(|_| program.opens_images());
        let translated = translated.and_then(|place| self.mounts.path_to(place));
        let inside = place.map(|(_, inside)| inside);
        match (file.inode, &inside) {
            (Some(inode), _) => self.by_inode.entry(inode).or_default().push(index),
            (None, path) => {
                let path = path.as_ref().unwrap_or(&file.path).clone();
                self.by_path.entry(path).or_default().push(index);
            }
        }
        self.files.push(Held {
            holder,
            name: translated.unwrap_or(file.path),
            inode: file.inode,
            device,
            inside,
            writes: file.flags & flag(libc::O_ACCMODE) != flag(libc::O_RDONLY),
            direct: file.flags & flag(libc::O_DIRECT) != 0,
        });
    }

    /// The number of open files; one that is open twice counts twice.
    pub fn open_files(&self) -> usize {
        self.files.len()
    }

    /// The files that QEMU or another program for VMs has open, by their paths as we see them. They
    /// are images regardless of their format.
    fn held(&self) -> impl Iterator<Item = &Held> {
        let files = self.files.iter();
        files.filter(|file| self.processes[file.holder].opens_images)
    }

    /// Of these files, those that lie on the file system `device`, with their inode numbers, as far
    /// as that is known.
    pub fn held_on(&self, device: DeviceNumber) -> impl Iterator<Item = (&Path, Option<u64>)> {
        let is_here = move |path: &Path| self.mounts.of(path).is_some_and(|it| it.device == device);
        let here = self.held().filter(move |file| match file.device {
            Some(its) => its == device,
            None => is_here(&file.name),
        });
        here.map(|file| (file.name.as_path(), file.device.and(file.inode)))
    }

    /// The name of a process that has files open, and its VM.
    pub fn process(&self, pid: u32) -> Option<(&str, Option<&Vm>)> {
        let holder = self.processes.iter().find(|holder| holder.pid == pid)?;
        Some((&holder.name, holder.vm.as_ref()))
    }

    /// The images that are written to while they are open both with and without O_DIRECT
    /// ([`Owner::is_mixed`]), by their paths. Only those whose inode and file system are known.
    pub fn mixed(&self) -> BTreeMap<PathBuf, Owner> {
        let images = self.held().filter(|image| image.direct);
        let files = images.filter_map(|image| {
            let same = self.by_inode.get(&image.inode?)?.iter();
            let same = same.map(|index| &self.files[*index]);
            let mut owner = Owner::default();
            for file in same.filter(|file| file.device.is_some() && file.device == image.device) {
                self.add_to(&mut owner, file);
            }
            owner.openers.sort_unstable_by_key(|opener| opener.pid);
            owner.is_mixed().then(|| (image.name.clone(), owner))
        });
        files.collect()
    }

    /// The qcow2 images whose VMs discard without `discard-no-unref`, by their command lines.
    pub fn growing_by_discards(&self) -> Vec<(PathBuf, &Vm)> {
        let processes = self.processes.iter();
        let vms = processes.filter_map(|it| Some((it.vm.as_ref()?, &it.drives)));
        let images = vms.flat_map(|(vm, drives)| {
            let growing = drives.iter();
            let growing = growing.filter(|drive| drive.discard == Discard::Unreferenced);
            growing.map(move |drive| (drive.file.clone(), vm))
        });
        images.collect()
    }

    /// The processes that have `image`, on the file system `device`, open.
    pub fn owner(&self, image: &Sample, device: DeviceNumber) -> Owner {
        // Each btrfs subvolume has its own inode numbers, so the path must match there as well.
        let st_dev = image.id.device;
        let one_space =
            rustix::fs::major(st_dev) == device.major && rustix::fs::minor(st_dev) == device.minor;
        let inside = self.mounts.place(&image.path).map(|(_, inside)| inside);
        let same_path = |file: &Held| match (&file.inside, &inside) {
            (Some(its), Some(ours)) => its == ours,
            // The path of a file on a mount that was lazily unmounted begins at the mount.
            (None, Some(ours)) if file.device.is_none() && file.name == *ours => true,
            _ => file.name == image.path,
        };
        let by_inode = self.by_inode.get(&image.id.inode).into_iter().flatten();
        let is_it = |file: &&Held| match file.device {
            Some(its) => its == device && (one_space || same_path(file)),
            None => same_path(file),
        };
        let by_path = inside.iter().chain([&image.path]);
        let by_path = by_path.filter_map(|path| self.by_path.get(path)).flatten();
        let is_there =
            |file: &&Held| file.device.is_none_or(|its| its == device) && same_path(file);
        let file = |index: &usize| &self.files[*index];
        let files = by_inode
            .map(file)
            .filter(is_it)
            .chain(by_path.map(file).filter(is_there));
        let mut owner = Owner::default();
        for file in files {
            self.add_to(&mut owner, file);
        }
        owner.openers.sort_unstable_by_key(|opener| opener.pid);
        owner
    }

    fn add_to(&self, owner: &mut Owner, file: &Held) {
        let holder = &self.processes[file.holder];
        let known = owner
            .openers
            .iter_mut()
            .find(|opener| opener.pid == holder.pid);
        if let Some(opener) = known {
            opener.writes |= file.writes;
            opener.direct |= file.direct;
            opener.buffered |= !file.direct;
            return;
        }
        let drive = holder.drive(&file.name);
        owner.openers.push(Opener {
            pid: holder.pid,
            name: holder.name.clone(),
            vm: holder.vm.clone(),
            writes: file.writes,
            direct: file.direct,
            buffered: !file.direct,
            discards: drive.map(|drive| drive.discard > Discard::Ignored),
            node: drive.and_then(|drive| drive.node.clone()),
        });
    }
}

#[cfg(test)]
mod tests;
