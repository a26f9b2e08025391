//! Which process has which image open: one pass over /proc for all images.
//!
//! The pass asks no file system anything ([`processes`](crate::sys::processes) says how), so it
//! does not hang with one. It yields the inode and the mount of each open file; the mount
//! gives the file system, and both together the image, whatever its name is by now and whichever hard
//! link was opened. Before kernel 5.14 there is no inode; there the name is compared.
//!
//! A descriptor that was closed again, an image that lies in a VM's memory only as a mapping, and
//! who reads it over the network do not show. [`locks`](crate::sys::locks) asks the kernel where
//! that matters.

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

/// Longer than any file of libvirt on a domain.
const MOST_XML: u64 = 4 << 20;

/// Looks for owners, and remembers what is the same the next time.
#[derive(Debug)]
pub struct OwnerSearch {
    proc: PathBuf,
    run: PathBuf,
    command_lines: CommandLines,
    vms: HashMap<Key, VmFacts>,
    /// The mounts of processes that live in a mount namespace of their own, as libvirt's VMs do:
    /// mount numbers and file systems, None for a mount that is no longer listed.
    foreign: HashMap<Key, HashMap<u32, Option<DeviceNumber>>>,
}

impl OwnerSearch {
    /// `proc` is where procfs is mounted, `run` is `/run`.
    pub fn new(proc: &Path, run: &Path) -> Self {
        OwnerSearch {
            proc: proc.to_owned(),
            run: run.to_owned(),
            command_lines: CommandLines::new(proc.to_owned()),
            vms: HashMap::new(),
            foreign: HashMap::new(),
        }
    }

    /// Which process has which files open now.
    ///
    /// # Errors
    /// When procfs cannot be read.
    pub fn look(&mut self) -> io::Result<Holders> {
        let own = fs::read_link(self.proc.join("self/exe")).ok();
        let mut processes = with_open_files(&self.proc)?;
        // A probe has images open as well, but that is us.
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

    /// The lasting identity of a process, where that is needed.
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

    /// Finds out which VMs those processes are, and forgets all others.
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
            // Without access: a name that is kept, no more (open(2), O_PATH).
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

    /// The file system of a mount in the namespace of another process.
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

/// A flag as the kernel shows it.
fn flag(flag: i32) -> u32 {
    flag.cast_unsigned()
}

/// What libvirt has written down of the domains that run, by their processes.
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

/// Which process has which files open, as one pass has seen it.
#[derive(Debug, Default)]
pub struct Holders {
    processes: Vec<Holder>,
    files: Vec<Held>,
    /// Places in `files`, by inode, and where that is not known by name.
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
    /// Place in `processes`.
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

    /// How many files are open; one that is open twice counts twice.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether no file is open at all.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The files that QEMU has open, by name. Images, whatever they look like.
    pub fn held_by_qemu(&self) -> impl Iterator<Item = &Path> {
        let by_qemu = |file: &&Held| self.processes[file.holder].is_qemu;
        let files = self.files.iter().filter(by_qemu);
        files.map(|file| file.path.as_path())
    }

    /// The processes that have an image open that lies on the file system `device`.
    pub fn owner(&self, image: &Sample, device: DeviceNumber) -> Owner {
        // A btrfs has an inode of the same number in each of its subvolumes: there the name has to
        // be the same too.
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
