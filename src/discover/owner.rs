//! Finds the processes that have images open, in one pass over /proc for all images.
//!
//! The pass accesses no other file system ([`processes`](crate::sys::processes) explains how), so
//! it cannot hang with one. It yields the inode and the mount of each open file. The mount gives
//! the file system; both together identify the image, regardless of renames and hard links. Before
//! kernel 5.14 the inode is not available and the name is compared instead.
//!
//! Not visible: descriptors already closed, images that a VM only has mapped, and readers over the
//! network. Where that matters, [`locks`](crate::sys::locks) queries the kernel.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::command_lines::{CommandLines, Key};
use super::vm::{Program, VmFacts};
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
    /// Mounts of processes in their own mount namespace, such as libvirt's VMs: mount ID and file
    /// system, `None` for a mount that is no longer listed.
    foreign: HashMap<Key, HashMap<u32, Option<DeviceNumber>>>,
}

impl OwnerSearch {
    /// `proc` is the mount point of procfs, `run` is `/run`.
    pub fn new(proc: &Path, run: &Path) -> Self {
        OwnerSearch {
            proc: proc.to_owned(),
            run: run.to_owned(),
            command_lines: CommandLines::new(proc.to_owned()),
            vms: HashMap::new(),
            foreign: HashMap::new(),
        }
    }

    /// Determines which process has which files open. Fails if procfs cannot be read.
    pub fn look(&mut self) -> io::Result<Holders> {
        let own = fs::read_link(self.proc.join("self/exe")).ok();
        let mut processes = with_open_files(&self.proc)?;
        // Probe helpers also have images open, but belong to fragwatch.
        processes.retain(|process| own.is_none() || process.program != own);
        let mounts = mount_numbers(mounts::read(&self.proc)?);
        let programs: Vec<_> = processes.iter().map(program).collect();
        let keys: Vec<_> = processes
            .iter()
            .zip(&programs)
            .map(|(process, program)| self.key(process, *program, &mounts))
            .collect();
        let vms = keys.iter().zip(&programs);
        let vms = vms.filter(|(_, program)| **program == Program::Vm);
        self.learn_of(vms.filter_map(|(key, _)| *key).collect());
        let known: HashSet<Key> = keys.iter().copied().flatten().collect();
        self.foreign.retain(|key, _| known.contains(key));

        let mut holders = Holders::default();
        for ((process, program), key) in processes.into_iter().zip(programs).zip(keys) {
            self.add(&mut holders, process, program, key, &mounts);
        }
        Ok(holders)
    }

    /// The key of a process, if it is needed (VMs and processes with unknown mounts) and available.
    fn key(
        &self,
        process: &Process,
        program: Program,
        mounts: &HashMap<u32, DeviceNumber>,
    ) -> Option<Key> {
        let is_foreign = |file: &OpenFile| !mounts.contains_key(&file.mount);
        let needed = program == Program::Vm || process.files.iter().any(is_foreign);
        let start = needed.then(|| start_time(&self.proc, process.pid))??;
        Some((process.pid, start))
    }

    /// Identifies the VMs among these processes and drops all others from the cache.
    fn learn_of(&mut self, vms: HashSet<Key>) {
        self.vms.retain(|key, _| vms.contains(key));
        let is_new =
            |key: &&Key| !self.vms.contains_key(*key) && !self.command_lines.is_pending(**key);
        let new: Vec<Key> = vms.iter().filter(is_new).copied().collect();
        let answers = self.command_lines.read(&new);
        if answers.is_empty() && new.is_empty() {
            return;
        }
        for (key, line) in answers {
            if vms.contains(&key) {
                let facts = VmFacts::of_command_line(&line.unwrap_or_default());
                let before = self.vms.remove(&key).unwrap_or_default();
                self.vms.insert(key, facts.or(before));
            }
        }
        let nameless = |key: &&Key| self.vms.get(*key).is_none_or(|facts| facts.name.is_none());
        let nameless: Vec<Key> = vms.iter().filter(nameless).copied().collect();
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

    fn add(
        &mut self,
        holders: &mut Holders,
        process: Process,
        program: Program,
        key: Option<Key>,
        mounts: &HashMap<u32, DeviceNumber>,
    ) {
        let facts = key.and_then(|key| self.vms.get(&key)).cloned();
        let vm = (program == Program::Vm).then(|| {
            let VmFacts { name, uuid } = facts.unwrap_or_default();
            let pid = process.pid;
            Vm { name, uuid, pid }
        });
        let holder = holders.processes.len();
        for file in process.files {
            // O_PATH gives no access to the contents, it only refers to the file (open(2)).
            if file.flags & flag(libc::O_PATH) != 0 {
                continue;
            }
            let device = mounts.get(&file.mount).copied();
            let device = device.or_else(|| self.foreign_mount(key?, file.mount));
            holders.push(holder, file, device);
        }
        holders.processes.push(Holder {
            pid: process.pid,
            name: process.name,
            vm,
            is_qemu: program != Program::Other,
        });
    }

    fn foreign_mount(&mut self, key: Key, mount: u32) -> Option<DeviceNumber> {
        let known = self.foreign.get(&key).and_then(|mounts| mounts.get(&mount));
        if let Some(device) = known {
            return *device;
        }
        let mounts = mount_numbers(mounts::read_of(&self.proc, key.0).ok()?);
        let device = mounts.get(&mount).copied();
        let known = self.foreign.entry(key).or_default();
        known.extend(mounts.into_iter().map(|(id, device)| (id, Some(device))));
        known.insert(mount, device);
        device
    }
}

fn program(process: &Process) -> Program {
    Program::of(&process.name, process.program.as_deref())
}

fn mount_numbers(mounts: Vec<mounts::Mount>) -> HashMap<u32, DeviceNumber> {
    let pair = |mount: mounts::Mount| {
        let (major, minor) = mount.device;
        (mount.id, DeviceNumber { major, minor })
    };
    mounts.into_iter().map(pair).collect()
}

/// A flag in the representation of /proc/PID/fdinfo.
fn flag(flag: i32) -> u32 {
    flag.cast_unsigned()
}

fn libvirt(run: &Path) -> HashMap<u32, VmFacts> {
    let Ok(entries) = fs::read_dir(run.join("libvirt/qemu")) else {
        return HashMap::new();
    };
    let is_xml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "xml");
    let is_small = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.len() <= MOST_XML);
    entries
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
    processes: Vec<Holder>,
    files: Vec<Held>,
    /// Indices into `files`: by inode, or by name if the inode is unknown.
    by_inode: HashMap<u64, Vec<usize>>,
    by_name: HashMap<PathBuf, Vec<usize>>,
}

#[derive(Debug)]
struct Holder {
    pid: u32,
    name: String,
    vm: Option<Vm>,
    is_qemu: bool,
}

#[derive(Debug)]
struct Held {
    /// Index into `processes`.
    holder: usize,
    path: PathBuf,
    device: Option<DeviceNumber>,
    writes: bool,
    direct: bool,
}

impl Holders {
    fn push(&mut self, holder: usize, file: OpenFile, device: Option<DeviceNumber>) {
        let place = self.files.len();
        match file.inode {
            Some(inode) => self.by_inode.entry(inode).or_default().push(place),
            None => {
                let places = self.by_name.entry(file.path.clone()).or_default();
                places.push(place);
            }
        }
        self.files.push(Held {
            holder,
            path: file.path,
            device,
            writes: file.flags & flag(libc::O_ACCMODE) != flag(libc::O_RDONLY),
            direct: file.flags & flag(libc::O_DIRECT) != 0,
        });
    }

    /// The number of open files; one that is open twice counts twice.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether no file is open.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The paths of files that QEMU has open. They are images regardless of their format.
    pub fn held_by_qemu(&self) -> impl Iterator<Item = &Path> {
        let by_qemu = |file: &&Held| self.processes[file.holder].is_qemu;
        let files = self.files.iter().filter(by_qemu);
        files.map(|file| file.path.as_path())
    }

    /// The processes that have `image`, on the file system `device`, open.
    pub fn owner(&self, image: &Sample, device: DeviceNumber) -> Owner {
        // Each btrfs subvolume has its own inode numbers, so the name must match there as well.
        let st_dev = image.id.device;
        let one_space =
            rustix::fs::major(st_dev) == device.major && rustix::fs::minor(st_dev) == device.minor;
        let by_inode = self.by_inode.get(&image.id.inode).into_iter().flatten();
        let is_it = |place: &&usize| {
            let file = &self.files[**place];
            match file.device {
                Some(its) => its == device && (one_space || file.path == image.path),
                None => file.path == image.path,
            }
        };
        let by_name = self.by_name.get(&image.path).into_iter().flatten();
        let is_there = |place: &&usize| self.files[**place].device.is_none_or(|its| its == device);
        let files = by_inode
            .filter(is_it)
            .chain(by_name.filter(is_there))
            .map(|place| &self.files[*place]);
        let mut owner = Owner::default();
        for file in files {
            self.add(&mut owner, file);
        }
        owner.openers.sort_unstable_by_key(|opener| opener.pid);
        owner
    }

    fn add(&self, owner: &mut Owner, file: &Held) {
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
        owner.openers.push(Opener {
            pid: holder.pid,
            name: holder.name.clone(),
            vm: holder.vm.clone(),
            writes: file.writes,
            direct: file.direct,
            buffered: !file.direct,
        });
    }
}

#[cfg(test)]
mod tests;
