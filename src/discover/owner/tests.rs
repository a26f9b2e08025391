//! Tests of [`owner`](super).

use super::*;
use crate::model::{Bytes, ExtentCount, Format, ImageId, ImageKey, Manager};
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

    /// Replaces /proc by that of a case, in which links are files with their targets.
    fn take_case(&self, case: &str) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cases");
        let _ = fs::remove_dir_all(self.path("proc"));
        let mut todo = vec![from.join(case).join("proc")];
        while let Some(path) = todo.pop() {
            let inside = path.strip_prefix(from.join(case)).unwrap();
            let to = self.path(inside.to_str().unwrap());
            if path.is_dir() {
                fs::create_dir_all(&to).unwrap();
                todo.extend(
                    fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            } else if path.ends_with("exe") || path.parent().unwrap().ends_with("fd") {
                symlink(fs::read_to_string(&path).unwrap(), &to).unwrap();
            } else {
                fs::copy(&path, &to).unwrap();
            }
        }
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
        cow_hint: Bytes(0),
        qcow2: None,
    }
}

/// Name and UUID of the VM that has an image on 7:3 open.
fn vm_of(holders: &Holders, path: &str, inode: u64) -> Option<(Option<String>, Option<String>)> {
    let owner = holders.owner(&image(path, inode), DEVICE);
    owner.vm().map(|vm| (vm.name.clone(), vm.uuid.clone()))
}

fn held(holders: &Holders) -> Vec<&str> {
    let mut held: Vec<_> = holders
        .held()
        .map(|file| file.name.to_str().unwrap())
        .collect();
    held.sort_unstable();
    held
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
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
        manager: None,
    };
    assert_eq!(owner.vm(), Some(&vm));
    let rsync = &owner.openers[1];
    assert_eq!((rsync.pid, rsync.name.as_str()), (200, "rsync"));
    assert!(!rsync.writes && rsync.buffered && !rsync.direct);
    assert!(owner.openers[0].writes && owner.openers[0].direct);
    assert!(owner.is_mixed());
    let held: Vec<_> = holders.held().map(|file| &*file.name).collect();
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

/// QEMU behind a wrapper, and diverted.
#[test]
fn case_c01() {
    let host = Host::new();
    host.take_case("C01/input");
    let holders = host.search().look().unwrap();
    assert_eq!(held(&holders), ["/data/files", "/data/mail"]);
    let uuid = some("0a0b0c0d-0000-4000-8000-000000000002");
    assert_eq!(
        vm_of(&holders, "/data/mail", 131),
        Some((some("mail"), uuid))
    );
    assert_eq!(
        vm_of(&holders, "/data/files", 132),
        Some((some("files"), None))
    );
}

/// QEMU in a container that sees a part of the host's file system under another path; one of a
/// kernel without inode numbers.
#[test]
fn case_c04() {
    let host = Host::new();
    host.take_case("C04/input");
    let holders = host.search().look().unwrap();
    let (a, b) = (
        "/pool/volumes/v1/_data/a/disk",
        "/pool/volumes/v1/_data/b/disk",
    );
    assert_eq!(held(&holders), [a, b]);
    assert_eq!(vm_of(&holders, a, 131), Some((some("inst-1"), None)));
    assert_eq!(vm_of(&holders, b, 132), Some((some("inst-2"), None)));
    assert_eq!(vm_of(&holders, "/pool/b/disk", 133), None);
    let here: Vec<_> = holders.held_on(DEVICE).map(|held| held.1).collect();
    assert_eq!(here, [Some(131), None]);
    let elsewhere = DeviceNumber { major: 7, minor: 4 };
    assert_eq!(holders.held_on(elsewhere).count(), 0);
}

/// The number of a mount is used again.
#[test]
fn case_c12() {
    let host = Host::new();
    host.take_case("C12/look1");
    let mut search = host.search();
    let holders = search.look().unwrap();
    assert_eq!(vm_of(&holders, "/srv/new/data.raw", 131), None);
    host.take_case("C12/look2");
    let holders = search.look().unwrap();
    assert_eq!(
        vm_of(&holders, "/srv/new/data.raw", 131),
        Some((some("app-3"), None))
    );
    assert_eq!(held(&holders), ["/srv/new/data.raw", "/srv/one/a.raw"]);
}

#[test]
fn a_path_is_translated_through_every_kind_of_mount() {
    let host = Host::new();
    let ours = "30 1 7:3 / /srv rw - xfs /dev/loop3 rw\n31 30 7:4 / /srv/over rw - xfs /dev/x rw\n\
                32 1 7:3 /vols/v2 /short rw - xfs /dev/loop3 rw\n";
    host.write("proc/self/mountinfo", ours);
    let theirs = "70 1 0:30 / / rw - overlay overlay rw\n\
                  71 70 7:3 /vols/v1 /images rw - xfs /dev/loop3 rw\n\
                  72 70 7:3 /vols/v1/one.img /disk rw - xfs /dev/loop3 rw\n\
                  73 70 7:3 /over/x /hidden rw - xfs /dev/loop3 rw\n\
                  74 70 7:3 /vols/v2 /two rw - xfs /dev/loop3 rw\n";
    for (pid, path, mount) in [
        (5, "/images/a/disk", 71),
        (6, "/disk", 72),
        (7, "/hidden/disk", 73),
        (8, "/two/disk", 74),
        // In the root file system of the container, which is not ours.
        (9, "/srv/disk", 70),
    ] {
        host.process(
            pid,
            "/usr/libexec/qemu-kvm",
            &format!("qemu-kvm -name vm-{pid}"),
        );
        host.open(pid, 1, path, DIRECT, mount, None);
        host.write(&format!("proc/{pid}/mountinfo"), theirs);
        fs::create_dir_all(host.path(&format!("proc/{pid}/ns"))).unwrap();
        symlink("mnt:[4026532]", host.path(&format!("proc/{pid}/ns/mnt"))).unwrap();
    }
    let holders = host.search().look().unwrap();
    let name = |path: &str| vm_of(&holders, path, 1).and_then(|(name, _)| name);
    assert_eq!(name("/srv/vols/v1/a/disk"), some("vm-5"));
    assert_eq!(name("/srv/vols/v1/one.img"), some("vm-6"));
    // One file under two of our names.
    assert_eq!(name("/srv/vols/v2/disk"), some("vm-8"));
    assert_eq!(name("/short/disk"), some("vm-8"));
    assert_eq!(name("/srv/disk"), None);
    let mut here: Vec<_> = holders.held_on(DEVICE).map(|held| held.0).collect();
    here.sort_unstable();
    // Where another file system hides it, it has no name of ours.
    let expected = [
        "/hidden/disk",
        "/srv/vols/v1/a/disk",
        "/srv/vols/v1/one.img",
        "/srv/vols/v2/disk",
    ];
    assert_eq!(here, expected.map(Path::new));
}

#[test]
fn one_that_changed_its_root_directory_is_understood() {
    let host = Host::new();
    for (pid, root, table) in [
        (5, "/", "70 1 7:3 / / rw - xfs /dev/loop3 rw\n"),
        // The kernel leaves out what lies outside.
        (6, "/jail", "71 70 7:3 /sub /img rw - xfs /dev/loop3 rw\n"),
    ] {
        host.process(
            pid,
            "/usr/bin/firecracker",
            &format!("firecracker --id vm-{pid}"),
        );
        host.write(&format!("proc/{pid}/mountinfo"), table);
        fs::create_dir_all(host.path(&format!("proc/{pid}/ns"))).unwrap();
        symlink("mnt:[4026532]", host.path(&format!("proc/{pid}/ns/mnt"))).unwrap();
        symlink(root, host.path(&format!("proc/{pid}/root"))).unwrap();
    }
    host.open(5, 1, "/x/a", DIRECT, 70, Some(5));
    host.open(6, 1, "/jail/img/b", DIRECT, 71, Some(6));
    let holders = host.search().look().unwrap();
    assert_eq!(held(&holders), ["/srv/sub/b", "/srv/x/a"]);
    assert_eq!(vm_of(&holders, "/srv/sub/b", 6), Some((some("vm-6"), None)));
}

#[test]
fn a_vm_that_outlived_its_mount_is_found() {
    let host = Host::new();
    // `umount -l /srv`, and mounted again. The path is what the kernel shows then.
    host.process(7, "/usr/bin/kvm", "kvm -name db-1");
    host.write(
        "proc/7/mountinfo",
        "30 1 7:3 / /srv rw - xfs /dev/loop3 rw\n",
    );
    host.open(7, 9, "/vm/a.raw", libc::O_RDWR, 29, Some(131));
    host.process(8, "/usr/bin/kvm", "kvm -name db-2");
    host.write(
        "proc/8/mountinfo",
        "30 1 7:3 / /srv rw - xfs /dev/loop3 rw\n",
    );
    host.open(8, 9, "/vm/b.raw", libc::O_RDWR, 29, None);
    let holders = host.search().look().unwrap();
    let name = |path, inode| vm_of(&holders, path, inode).and_then(|vm| vm.0);
    assert_eq!(name("/srv/vm/a.raw", 131), some("db-1"));
    assert_eq!(name("/srv/vm/b.raw", 132), some("db-2"));
    assert_eq!(name("/srv/vm/a.raw", 133), None);
    assert_eq!(name("/srv/a.raw", 131), None);
}

#[test]
fn programs_that_run_no_vm_are_openers() {
    let host = Host::new();
    let processes = [
        ("/usr/bin/qemu-nbd", "qemu-nbd /srv/a", true),
        ("/usr/bin/qemu-storage-daemon", "qemu-storage-daemon", true),
        (
            "/usr/bin/crosvm",
            "crosvm device block --block vhost=/s,path=/srv/a",
            true,
        ),
        ("/usr/bin/qemu-ga", "qemu-ga", false),
        (
            "/usr/bin/qemu-x86_64-static",
            "qemu-x86_64-static -name x",
            false,
        ),
    ];
    for (pid, (program, line, _)) in (1..).zip(processes) {
        host.process(pid, program, line);
        host.open(pid, 3, &format!("/srv/{pid}"), DIRECT, 30, Some(pid.into()));
    }
    let holders = host.search().look().unwrap();
    for (pid, (program, _, is_held)) in (1_u32..).zip(processes) {
        let path = format!("/srv/{pid}");
        let owner = holders.owner(&image(&path, pid.into()), DEVICE);
        assert_eq!((owner.openers.len(), owner.vm()), (1, None), "{program}");
        assert_eq!(
            held(&holders).contains(&path.as_str()),
            is_held,
            "{program}"
        );
    }
}

#[test]
fn an_unknown_program_with_kvm_runs_a_vm() {
    let host = Host::new();
    host.process(1, "/opt/vendor/vmm", "vmm --name web --uuid u-1");
    host.open(1, 3, "/srv/a", DIRECT, 30, Some(1));
    host.process(2, "/opt/vendor/vmm", "vmm --name none");
    host.open(2, 3, "/srv/b", DIRECT, 30, Some(2));
    symlink("anon_inode:kvm-vm", host.path("proc/1/fd/4")).unwrap();
    let holders = host.search().look().unwrap();
    assert_eq!(
        vm_of(&holders, "/srv/a", 1),
        Some((some("web"), some("u-1")))
    );
    assert_eq!(vm_of(&holders, "/srv/b", 2), None);
    assert_eq!(held(&holders), ["/srv/a"]);
}

#[test]
fn libvirt_names_vms_of_cloud_hypervisor_too() {
    let host = Host::new();
    let xml =
        "<domstatus state='running' pid='6'><domain type='kvm'><name>web</name><uuid>u-6</uuid>";
    host.write("run/libvirt/ch/web.xml", xml);
    host.process(
        6,
        "/usr/bin/cloud-hypervisor",
        "cloud-hypervisor --api-socket fd=26",
    );
    host.open(6, 1, "/srv/a", DIRECT, 30, Some(1));
    let holders = host.search().look().unwrap();
    assert_eq!(
        vm_of(&holders, "/srv/a", 1),
        Some((some("web"), some("u-6")))
    );
}

#[test]
fn whether_a_vm_discards_is_on_its_command_line() {
    let host = Host::new();
    let line = "kvm -drive file=/srv/a.img,discard=unmap,id=d0 -pidfile /run/qemu-server/7.pid -drive file=/srv/b.img -drive file=/srv/c";
    host.process(7, "/usr/bin/kvm", line);
    for (fd, name) in [(3, "a.img"), (4, "b.img"), (5, "d.img")] {
        let inode = Some(u64::from(fd));
        host.open(7, fd, &format!("/srv/{name}"), libc::O_RDWR, 30, inode);
    }
    let holders = host.search().look().unwrap();
    let discards = |name: &str, inode| holders.owner(&image(name, inode), DEVICE).discards();
    assert_eq!(discards("/srv/a.img", 3), Some(true));
    let owner = holders.owner(&image("/srv/a.img", 3), DEVICE);
    let vm = owner.vm().unwrap();
    assert_eq!(vm.manager, Some(Manager::Proxmox { vmid: 7 }));
    assert_eq!(owner.node_of(vm), Some("d0"));
    assert_eq!(discards("/srv/b.img", 4), Some(false));
    // Attached later.
    assert_eq!(discards("/srv/d.img", 5), None);
}
