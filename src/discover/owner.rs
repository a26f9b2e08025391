//! Who has which image open: one pass over /proc for all images.
//!
//! The pass asks no file system anything ([`processes`](crate::sys::processes) says how), so it
//! does not hang with one. It says of each open file its inode's number and its mount's; the mount
//! tells the file system, and both together the image, whatever the file is called by now and
//! whichever hard link was opened. Kernels before 5.14 do not tell the inode; there the name must
//! do.
//!
//! A descriptor that was closed again, an image that lies in a VM's memory only as a mapping, and
//! who reads it over the network do not show. [`locks`](crate::sys::locks) asks the kernel where
//! that matters.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::command_lines::{CommandLines, Key};
use super::vm::{Facts, Program};
use crate::model::{DeviceNumber, Opener, Owner, Sample, Vm};
use crate::sys::mounts;
use crate::sys::proc::start_time;
use crate::sys::processes::{OpenFile, Process, with_open_files};

/// Longer than any file of libvirt on a domain.
const MOST_XML: u64 = 4 << 20;

/// Looks for owners, and remembers what is the same the next time.
pub struct Search {
    proc: PathBuf,
    run: PathBuf,
    command_lines: CommandLines,
    vms: HashMap<Key, Facts>,
    /// The mounts of processes that live in a mount namespace of their own, as libvirt's VMs do:
    /// mount numbers and file systems, nothing for a mount that is listed nowhere any more.
    foreign: HashMap<Key, HashMap<u32, Option<DeviceNumber>>>,
}

impl Search {
    /// `proc` is where procfs is mounted, `run` is `/run`.
    #[must_use]
    pub fn new(proc: &Path, run: &Path) -> Self {
        Search {
            proc: proc.to_owned(),
            run: run.to_owned(),
            command_lines: CommandLines::new(proc.to_owned()),
            vms: HashMap::new(),
            foreign: HashMap::new(),
        }
    }

    /// Who has which files open now.
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

    /// Who a process is for good, where that is needed.
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
            |key: &&Key| !self.vms.contains_key(*key) && !self.command_lines.is_asked(**key);
        let new: Vec<Key> = vms.iter().filter(is_new).copied().collect();
        let answers = self.command_lines.read(&new);
        if answers.is_empty() && new.is_empty() {
            return;
        }
        for (key, line) in answers {
            if vms.contains(&key) {
                let facts = Facts::of_command_line(&line.unwrap_or_default());
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
            let Facts { name, uuid } = facts.unwrap_or_default();
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
fn libvirt(run: &Path) -> HashMap<u32, Facts> {
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
        .filter_map(|path| Facts::of_libvirt(&fs::read_to_string(path).ok()?))
        .collect()
}

/// Who has which files open, as one pass has seen it.
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
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether no file is open at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The files that QEMU has open, by name. Images, whatever they look like.
    pub fn held_by_qemu(&self) -> impl Iterator<Item = &Path> {
        let by_qemu = |file: &&Held| self.processes[file.holder].is_qemu;
        let files = self.files.iter().filter(by_qemu);
        files.map(|file| file.path.as_path())
    }

    /// Who has an image open that lies on the file system `device`.
    #[must_use]
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
mod tests {
    use super::*;
    use crate::model::{Bytes, ExtentCount, Format, ImageId, ImageKey};
    use std::os::unix::fs::symlink;

    const DEVICE: DeviceNumber = DeviceNumber { major: 7, minor: 3 };

    /// A made-up /proc and /run. Mount 30 is the file system 7:3.
    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Host {
            let host = Host(tempfile::tempdir().unwrap());
            let mounts =
                "30 1 7:3 / /srv rw - xfs /dev/loop3 rw\n31 1 7:4 / /b rw - xfs /dev/x rw\n";
            host.write("proc/self/mountinfo", mounts);
            host
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn process(&self, pid: u32, program: &str, command_line: &str) {
            let name = Path::new(program).file_name().unwrap().to_str().unwrap();
            self.write(&format!("proc/{pid}/comm"), &format!("{name}\n"));
            self.write(
                &format!("proc/{pid}/cmdline"),
                &command_line.replace(' ', "\0"),
            );
            let fields = (4..=22).map(|field| format!(" {}", field + pid));
            let stat = format!("{pid} ({name}) S{}", fields.collect::<String>());
            self.write(&format!("proc/{pid}/stat"), &stat);
            symlink(program, self.path(&format!("proc/{pid}/exe"))).unwrap();
        }

        fn open(&self, pid: u32, fd: u32, path: &str, flags: i32, mount: u32, inode: Option<u64>) {
            let inode = inode
                .map(|inode| format!("ino:\t{inode}\n"))
                .unwrap_or_default();
            let info = format!("pos:\t0\nflags:\t0{flags:o}\nmnt_id:\t{mount}\n{inode}");
            self.write(&format!("proc/{pid}/fdinfo/{fd}"), &info);
            fs::create_dir_all(self.path(&format!("proc/{pid}/fd"))).unwrap();
            symlink(path, self.path(&format!("proc/{pid}/fd/{fd}"))).unwrap();
        }

        fn end(&self, pid: u32) {
            fs::remove_dir_all(self.path(&format!("proc/{pid}"))).unwrap();
        }

        fn search(&self) -> Search {
            Search::new(&self.path("proc"), &self.path("run"))
        }
    }

    fn image(path: &str, inode: u64) -> Sample {
        Sample {
            id: ImageId {
                device: rustix::fs::makedev(DEVICE.major, DEVICE.minor),
                inode,
            },
            key: Ok(ImageKey {
                filesystem: "1234".to_owned(),
                inode,
                generation: 0,
            }),
            path: PathBuf::from(path),
            format: Format::Raw,
            extents: ExtentCount(1),
            size: Bytes(1),
            allocated: Bytes(1),
            extent_size_hint: Bytes(0),
            directory_hint: Bytes(0),
        }
    }

    const DIRECT: i32 = libc::O_RDWR | libc::O_DIRECT;

    #[test]
    fn a_vm_owns_its_image() {
        let host = Host::new();
        host.process(
            100,
            "/usr/bin/qemu-system-x86_64",
            "kvm -name guest=db-1 -uuid u-1",
        );
        host.open(100, 9, "/srv/db.raw", DIRECT, 30, Some(131));
        host.process(200, "/usr/bin/rsync", "rsync");
        host.open(200, 3, "/srv/db.raw", libc::O_RDONLY, 30, Some(131));
        host.open(200, 4, "/srv/other.raw", libc::O_RDONLY, 30, Some(132));
        let holders = host.search().look().unwrap();
        let owner = holders.owner(&image("/srv/db.raw", 131), DEVICE);
        let vm = Vm {
            name: Some("db-1".to_owned()),
            uuid: Some("u-1".to_owned()),
            pid: 100,
        };
        assert_eq!(owner.vm(), Some(&vm));
        let rsync = &owner.openers[1];
        assert_eq!((rsync.pid, rsync.name.as_str()), (200, "rsync"));
        assert!(!rsync.writes && rsync.buffered && !rsync.direct);
        assert!(owner.openers[0].writes && owner.openers[0].direct);
        assert!(owner.is_mixed());
        let held: Vec<_> = holders.held_by_qemu().collect();
        assert_eq!(held, [Path::new("/srv/db.raw")]);
        assert!(!holders.owner(&image("/srv/x", 133), DEVICE).in_use());
    }

    #[test]
    fn an_image_is_known_by_its_inode_and_its_mount() {
        let host = Host::new();
        host.process(1, "/x/a", "");
        // Opened by another name, and removed since.
        host.open(
            1,
            1,
            "/srv/link.raw (deleted)",
            libc::O_RDONLY,
            30,
            Some(131),
        );
        // The same number on another file system, and a name without access.
        host.open(1, 2, "/b/db.raw", libc::O_RDWR, 31, Some(131));
        host.process(2, "/x/b", "");
        host.open(2, 2, "/srv/db.raw", libc::O_PATH, 30, Some(131));
        // A kernel that does not tell inodes.
        host.process(3, "/x/c", "");
        host.open(3, 3, "/srv/db.raw", libc::O_RDWR, 30, None);
        // Another image had the name when it was opened.
        host.process(4, "/x/d", "");
        host.open(4, 3, "/srv/db.raw", libc::O_RDWR, 30, Some(7));
        let holders = host.search().look().unwrap();
        let owner = holders.owner(&image("/srv/db.raw", 131), DEVICE);
        let openers: Vec<_> = owner.openers.iter().map(|o| (o.pid, o.writes)).collect();
        assert_eq!(openers, [(1, false), (3, true)]);
        // In a subvolume of btrfs the number is not enough.
        let mut image = image("/srv/db.raw", 131);
        image.id.device = rustix::fs::makedev(0, 55);
        let openers = holders.owner(&image, DEVICE).openers;
        assert_eq!(openers.iter().map(|o| o.pid).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn mounts_of_another_namespace_are_known() {
        let host = Host::new();
        host.process(5, "/usr/libexec/qemu-kvm", "qemu-kvm -name a");
        host.open(5, 1, "/images/db.raw", DIRECT, 77, Some(131));
        host.open(5, 2, "/images/no.raw", DIRECT, 78, Some(131));
        host.write(
            "proc/5/mountinfo",
            "77 1 7:3 /vm /images rw - xfs /dev/loop3 rw\n",
        );
        let mut search = host.search();
        for _ in 0..2 {
            let owner = search
                .look()
                .unwrap()
                .owner(&image("/srv/vm/db.raw", 131), DEVICE);
            assert_eq!(owner.vm().and_then(|vm| vm.name.as_deref()), Some("a"));
            assert_eq!(owner.openers.len(), 1);
        }
    }

    #[test]
    fn libvirt_names_what_the_command_line_does_not() {
        let host = Host::new();
        let xml = "<domstatus pid='6'><domain type='kvm'><name>web</name><uuid>u-6</uuid>";
        host.write("run/libvirt/qemu/web.xml", xml);
        host.write("run/libvirt/qemu/web.pid", "6");
        host.process(6, "/usr/bin/kvm", "kvm -uuid from-qemu");
        host.open(6, 1, "/srv/a", DIRECT, 30, Some(1));
        let owner = host
            .search()
            .look()
            .unwrap()
            .owner(&image("/srv/a", 1), DEVICE);
        let vm = owner.vm().unwrap();
        assert_eq!(vm.name.as_deref(), Some("web"));
        assert_eq!(vm.uuid.as_deref(), Some("from-qemu"));
    }

    #[test]
    fn a_vm_that_goes_in_the_middle_of_it_is_gone() {
        let host = Host::new();
        // As it looks when it ends after it was listed: nothing left of it but its directory.
        fs::create_dir_all(host.path("proc/9")).unwrap();
        host.process(7, "/usr/bin/kvm", "kvm -name a");
        host.open(7, 1, "/srv/a", DIRECT, 30, Some(1));
        host.process(8, "/usr/bin/kvm", "kvm -name b");
        host.open(8, 1, "/srv/a", DIRECT, 30, Some(1));
        // It ends before its start time is read: it still counts as what it was, a VM.
        fs::remove_file(host.path("proc/8/stat")).unwrap();
        let mut search = host.search();
        let owner = search.look().unwrap().owner(&image("/srv/a", 1), DEVICE);
        let names: Vec<_> = owner
            .openers
            .iter()
            .map(|o| o.vm.clone().unwrap().name)
            .collect();
        assert_eq!(names, [Some("a".to_owned()), None]);
        host.end(7);
        host.end(8);
        let owner = search.look().unwrap().owner(&image("/srv/a", 1), DEVICE);
        assert!(!owner.in_use());
        assert!(search.vms.is_empty());
    }

    #[test]
    fn a_number_that_another_process_has_by_now_is_another_vm() {
        let host = Host::new();
        let mut search = host.search();
        let mut name = |program: &str, line: &str, start: &str| {
            host.process(7, program, line);
            host.write("proc/7/stat", &format!("7 (x) S{start}"));
            host.open(7, 1, "/srv/a", DIRECT, 30, Some(1));
            let owner = search.look().unwrap().owner(&image("/srv/a", 1), DEVICE);
            host.end(7);
            owner.vm().and_then(|vm| vm.name.clone())
        };
        let start = |last: &str| format!("{} {last}", " 1".repeat(18));
        assert_eq!(
            name("/bin/kvm", "kvm -name a", &start("5")).as_deref(),
            Some("a")
        );
        // Read once: what the process does with its command line later is not looked at.
        assert_eq!(
            name("/bin/kvm", "kvm -name x", &start("5")).as_deref(),
            Some("a")
        );
        assert_eq!(
            name("/bin/kvm", "kvm -name b", &start("6")).as_deref(),
            Some("b")
        );
    }
}
