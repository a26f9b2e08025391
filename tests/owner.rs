//! Whose image it is, and whether it is still the same one: with real VMs on real file systems.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fragwatch::internals::generation;
use fragwatch::internals::in_use;
use serde_json::Value;
use support::child::Child;
use support::qemu::Vm;
use support::{Bed, MIB, guest, tools};

fn scan(path: &Path, arguments: &[&str]) -> String {
    let mut scan = support::fragwatch();
    scan.args(["scan", "--min-size", "0B"]).args(arguments);
    let said = scan.arg(path).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    String::from_utf8(said.stdout).unwrap()
}

/// What `scan --json` says of the only image.
fn image(path: &Path) -> Value {
    let report: Value = serde_json::from_str(&scan(path, &["--json"])).unwrap();
    assert_eq!(report["images"].as_array().unwrap().len(), 1, "{report}");
    report["images"][0].clone()
}

fn sleeper(held: &Path) -> Child {
    let sleep = tools::have("sleep").unwrap();
    let mut command = Command::new(sleep);
    command
        .arg("600")
        .stdin(File::open(held).unwrap())
        .stdout(Stdio::null());
    Child::spawn(&mut command).unwrap()
}

#[test]
fn an_image_is_its_vm_s() {
    let bed = support::require!(Bed::xfs());
    let path = bed.path().join("db-1.raw");
    guest::random_direct_writes(&path, MIB, 10);
    assert_eq!(image(bed.path())["vm"], Value::Null);
    assert_eq!(image(bed.path())["openers"], Value::Array(vec![]));

    let vm = Vm::named("db,,1");
    let running = support::require!(vm.start(&path));
    // By another name as well: an image is who it is by its inode.
    let before = bed.path().join("before.raw");
    fs::rename(&path, &before).unwrap();
    let said = image(bed.path());
    assert_eq!(said["path"], before.to_str().unwrap());
    assert_eq!(said["vm"]["name"], "db,1");
    assert_eq!(said["vm"]["uuid"], vm.uuid);
    assert_eq!(said["vm"]["pid"], running.id());
    let opener = &said["openers"][0];
    assert_eq!(
        (&opener["writes"], &opener["direct"], &opener["buffered"]),
        (&Value::Bool(true), &Value::Bool(true), &Value::Bool(false))
    );
    let table = scan(bed.path(), &[]);
    assert!(table.lines().nth(1).unwrap().contains(" db,1 "), "{table}");
    assert!(!table.contains("out of date"), "{table}");

    // A backup reads it through the page cache.
    let backup = sleeper(&before);
    let said = image(bed.path());
    let pids: Vec<_> = said["openers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["pid"].as_u64())
        .collect();
    let mut expected = [running.id(), backup.id()].map(|pid| Some(u64::from(pid)));
    expected.sort();
    assert_eq!(pids, expected);
    assert_eq!(said["vm"]["name"], "db,1");
    let table = scan(bed.path(), &[]);
    let line = table
        .lines()
        .find(|line| line.contains("out of date"))
        .unwrap();
    assert!(line.contains(&format!("{} sleep", backup.id())), "{line}");

    drop(running);
    let said = image(bed.path());
    assert_eq!(said["vm"], Value::Null);
    assert_eq!(said["openers"][0]["name"], "sleep");
}

#[test]
fn who_lives_in_another_mount_namespace_is_known() {
    let bed = support::require!(Bed::xfs());
    let unshare = support::require!(tools::have("unshare"));
    let path = bed.path().join("a.raw");
    guest::random_direct_writes(&path, MIB, 3);
    let elsewhere = bed.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    // As in a container: the mount has another number there, and the image another path.
    let script = "mount --bind \"$0\" \"$1\" && exec sleep 600 <\"$1/a.raw\"";
    let mut command = Command::new(unshare);
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .args([bed.path(), &elsewhere])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let other = Child::spawn(&mut command).unwrap();
    let link = PathBuf::from(format!("/proc/{}/fd/0", other.id()));
    // Between two files the shell has none there.
    let has_it = || fs::read_link(&link).is_ok_and(|target| target.file_name() == path.file_name());
    let deadline = Instant::now() + Duration::from_secs(20);
    while !has_it() {
        assert!(Instant::now() < deadline, "it does not open the image");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_ne!(fs::read_link(&link).unwrap(), path);
    let said = image(bed.path());
    assert_eq!(said["openers"][0]["pid"], other.id(), "{said}");
}

/// Without a suffix, and QEMU knows it by another path: only the inode shows that it is an image.
#[test]
fn the_image_of_a_vm_in_a_container_is_found() {
    let bed = support::require!(Bed::xfs());
    let unshare = support::require!(tools::have("unshare"));
    let qemu = support::require!(tools::have("qemu-system-x86_64"));
    let volume = bed.path().join("volumes/v1/_data");
    fs::create_dir_all(&volume).unwrap();
    let path = volume.join("disk");
    guest::random_direct_writes(&path, MIB, 3);
    let elsewhere = bed.path().parent().unwrap().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let script = "mount --bind \"$0\" \"$1\" && cd / && umount \"$2\" && dir=$1 && shift 2 && exec \"$@\" \
                  -drive \"file=$dir/disk,format=raw,if=virtio,cache=none\"";
    let mut command = Command::new(unshare);
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .args([&volume, &elsewhere, &bed.path().to_owned()])
        .arg(&qemu)
        .args([
            "-accel",
            "tcg",
            "-m",
            "16",
            "-S",
            "-display",
            "none",
            "-nodefaults",
        ])
        .args(["-name", "first", "-name", "guest=inst-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let vm = Child::spawn(&mut command).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let report: Value = serde_json::from_str(&scan(bed.path(), &["--json"])).unwrap();
        if let Some(image) = report["images"].get(0) {
            assert_eq!(image["path"], path.to_str().unwrap());
            if image["vm"]["name"] == "inst-1" {
                assert_eq!(image["vm"]["pid"], vm.id());
                break;
            }
        }
        assert!(Instant::now() < deadline, "{report}");
    }
}

#[test]
fn leases_and_locks_say_that_a_vm_runs() {
    let bed = support::require!(Bed::xfs());
    let path = bed.path().join("a.raw");
    guest::random_direct_writes(&path, MIB, 3);
    let ours = File::open(&path).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    // What another test starts inherits what is open here, until it runs.
    let closed = |is: fn(Option<bool>) -> bool| loop {
        let seen = in_use(&ours).unwrap();
        if is(seen.open) {
            return seen;
        }
        assert!(Instant::now() < deadline, "{seen:?}");
        std::thread::sleep(Duration::from_millis(1));
    };
    assert!(!closed(|open| open == Some(false)).qemu.any());

    let vm = support::require!(Vm::named("a").start(&path));
    let seen = in_use(&ours).unwrap();
    assert_eq!(seen.open, Some(true));
    assert!(
        seen.qemu.used && seen.qemu.written && seen.qemu.guarded,
        "{seen:?}"
    );
    drop(vm);
    let reader = sleeper(&path);
    let seen = in_use(&ours).unwrap();
    assert_eq!((seen.open, seen.qemu.any()), (Some(true), false));
    drop(reader);
    assert!(!closed(|open| open != Some(true)).qemu.any());
}

/// Removes and makes a file until its inode has a number that one had before. True if the
/// generation is another one each time.
fn generations_differ(bed: &Bed) -> bool {
    let path = bed.path().join("vm.raw");
    let mut seen: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    loop {
        let file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .open(&path)
            .unwrap();
        // On btrfs the generation is that of the transaction.
        file.sync_all().unwrap();
        let its = generation(&file).unwrap();
        let before = seen.entry(file.metadata().unwrap().ino()).or_default();
        if !before.is_empty() {
            return !before.contains(&its);
        }
        before.push(its);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_new_file_with_an_old_inode_has_another_generation() {
    for bed in [Bed::xfs(), Bed::ext4()] {
        assert!(generations_differ(&support::require!(bed)));
    }
}

#[test]
fn the_generation_stays_while_a_file_does() {
    for bed in [Bed::xfs(), Bed::ext4(), Bed::btrfs()] {
        let mut bed = support::require!(bed);
        let path = bed.path().join("a");
        guest::random_direct_writes(&path, MIB, 3);
        let of = |path: &Path| generation(File::open(path).unwrap()).unwrap();
        let before = of(&path);
        assert_ne!(before, 0);
        let moved = bed.path().join("b");
        fs::rename(&path, &moved).unwrap();
        guest::discard_holes(&moved, 1);
        bed.cold();
        assert_eq!(of(&moved), before);
    }
}
