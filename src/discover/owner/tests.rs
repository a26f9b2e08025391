//! Tests of [`owner`](super).

use super::*;
use crate::model::{Bytes, ExtentCount, Format, ImageId, ImageKey};
use std::os::unix::fs::symlink;

const DEVICE: DeviceNumber = DeviceNumber { major: 7, minor: 3 };

/// A made-up /proc and /run. Mount 30 is the file system 7:3.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Host {
        let host = Host(tempfile::tempdir().unwrap());
        let mounts = "30 1 7:3 / /srv rw - xfs /dev/loop3 rw\n31 1 7:4 / /b rw - xfs /dev/x rw\n";
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

    fn search(&self) -> OwnerSearch {
        OwnerSearch::new(&self.path("proc"), &self.path("run"))
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
