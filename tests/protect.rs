//! `fragwatch protect`: verdicts on images as they are really made, hints on a real XFS, and what must
//! not be touched.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fragwatch::internals::defrag::HostInterfaces;
use fragwatch::internals::model::{Bytes, ImageId};
use fragwatch::internals::protect::{Applied, Change, Hint, Journal, apply};
use rustix::fs::{FallocateFlags, fallocate};
use serde_json::Value;
use tempfile::TempDir;

use support::expect::{Said, copy_program};
use support::stall::Stall;
use support::{Bed, MIB, RunningDaemon, daemon, free_address, guest, http_get, qemu, tools};

support::stall_server!();

/// The program with a state of its own.
struct Protect(TempDir);

impl Protect {
    fn new() -> Protect {
        let protect = Protect(tempfile::tempdir().unwrap());
        protect.configure("");
        protect
    }

    fn configure(&self, more: &str) {
        let state = self.0.path().join("state/history.db");
        let text = format!(
            "[images]\nmin_size = \"0B\"\n[history]\npath = \"{}\"\n{more}",
            state.display()
        );
        fs::write(self.config(), text).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.0.path().join("c.toml")
    }

    fn journal(&self) -> PathBuf {
        self.0.path().join("state/protect/hints.json")
    }

    fn run(&self, arguments: &[&str], path: Option<&Path>) -> Said {
        let mut command = daemon::fragwatch();
        command.arg("--config").arg(self.config()).arg("protect");
        Said::by(command.args(arguments).args(path))
    }

    /// What is reported in JSON, with this exit status.
    #[track_caller]
    fn json(&self, arguments: &[&str], path: Option<&Path>, code: i32) -> Value {
        let said = self.run(&[&["--json"], arguments].concat(), path);
        assert_eq!(said.code, Some(code), "{said:?}");
        serde_json::from_str(&said.out).unwrap()
    }

    #[track_caller]
    fn audit(&self, path: &Path) -> Value {
        self.json(&[], Some(path), 0)
    }
}

#[track_caller]
fn image<'a>(report: &'a Value, path: &Path) -> &'a Value {
    let images = report["images"].as_array().unwrap();
    let mut images = images.iter();
    let image = images.find(|image| image["path"] == path.to_str().unwrap());
    image.unwrap_or_else(|| panic!("{}: {report:#}", path.display()))
}

/// The hint that xfs_io shows: `extsize` or `cowextsize`.
fn hint(which: &str, path: &Path) -> u64 {
    let said = Said::by(Command::new("xfs_io").args(["-r", "-c", which]).arg(path));
    let number = said.out.strip_prefix('[').unwrap().split(']').next();
    number.unwrap().parse().unwrap()
}

fn set_cow_hint(path: &Path, bytes: u64) {
    let command = format!("cowextsize {bytes}");
    let said = Said::by(Command::new("xfs_io").arg("-c").arg(command).arg(path));
    assert_eq!(said.err, "");
}

fn qemu_img(arguments: &[&str], path: &Path, size: &str) {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q"]).args(arguments);
    let said = Said::by(command.arg(path).arg(size));
    assert_eq!(said.code, Some(0), "{said:?}");
}

/// As libvirt makes a volume that is not to be allocated.
fn libvirt_volume(path: &Path, size: u64) {
    File::create(path).unwrap().set_len(size).unwrap();
}

fn pool(bed: &Bed) -> PathBuf {
    let pool = bed.path().join("pool");
    fs::create_dir(&pool).unwrap();
    pool
}

#[test]
fn images_are_judged_as_they_are_made() {
    support::require!(tools::have("qemu-img"));
    let bed = support::require!(Bed::xfs());
    let pool = pool(&bed);
    let at = |name: &str| pool.join(name);
    qemu_img(&["-f", "raw"], &at("default.raw"), "256M");
    let falloc = ["-f", "raw", "-o", "preallocation=falloc"];
    qemu_img(&falloc, &at("falloc.raw"), "256M");
    let full = ["-f", "raw", "-o", "preallocation=full"];
    qemu_img(&full, &at("full.raw"), "64M");
    qemu_img(&["-f", "qcow2"], &at("default.qcow2"), "20G");
    let metadata = [
        "-f",
        "qcow2",
        "-o",
        "preallocation=metadata,extent_size_hint=0",
    ];
    qemu_img(&metadata, &at("metadata.qcow2"), "256M");
    libvirt_volume(&at("libvirt.img"), 256 * MIB);
    let mut copy = Command::new("cp");
    copy.args(["--reflink=never", "--sparse=always"]);
    let copied = Said::by(copy.args([at("default.raw"), at("copy.raw")]));
    assert_eq!(copied.code, Some(0));
    guest::reflink_copy(&at("full.raw"), &at("clone.raw"));
    bed.sync();

    let report = Protect::new().audit(bed.path());
    for (name, risk, text) in [
        (
            "default.raw",
            "safe",
            "for each 1.0 MiB: sparse, hint of 1.0 MiB",
        ),
        (
            "falloc.raw",
            "safe",
            "cannot shatter: preallocated, one fragment, 25",
        ),
        (
            "full.raw",
            "safe",
            "shares 64.0 MiB with other files, copy-on-write hint of 1.0 MiB",
        ),
        (
            "default.qcow2",
            "shatters",
            "for each cluster of 64.0 KiB: qcow2, 19.9 GiB to grow",
        ),
        (
            "metadata.qcow2",
            "shatters",
            "nearly every new block: sparse, no hint, 99 % holes",
        ),
        (
            "libvirt.img",
            "shatters",
            "nearly every new block: sparse, no hint, 100 % holes",
        ),
        (
            "copy.raw",
            "shatters",
            "nearly every new block: sparse, no hint, 100 % holes",
        ),
        (
            "clone.raw",
            "safe",
            "for each 128 KiB: shares 64.0 MiB with other files, no copy-on-write",
        ),
    ] {
        let image = image(&report, &at(name));
        assert_eq!(image["risk"], risk, "{image:#}");
        let said = image["text"].as_str().unwrap();
        assert!(said.contains(text), "{name}: {said}");
    }
    // The worst come first.
    let risks = report["images"].as_array().unwrap().iter();
    let risks: Vec<_> = risks.map(|image| image["risk"].as_str().unwrap()).collect();
    assert_eq!(risks[..3], ["shatters"; 3], "{risks:?}");
}

/// Writes each block of an image once, in random order, and returns how many fragments it has.
fn fragments_when_full(path: &Path, size: u64) -> u64 {
    fs::remove_file(path).unwrap();
    guest::random_direct_writes(path, size, size / guest::BLOCK);
    let extents = tools::filefrag_extents(path);
    let joins = |two: &&[tools::Extent]| two[0].physical + two[0].length == two[1].physical;
    extents.len() as u64 - extents.windows(2).filter(joins).count() as u64
}

#[test]
fn the_worst_is_what_a_random_writer_makes() {
    let bed = support::require!(Bed::xfs());
    let pool = pool(&bed);
    let path = pool.join("a.img");
    let size = 64 * MIB;
    libvirt_volume(&path, size);
    let protect = Protect::new();
    let predicted = |what: &str| {
        let report = protect.audit(&path);
        image(&report, &path)[what].as_u64().unwrap()
    };
    let at_worst = predicted("at_worst_extents");
    let unprotected = fragments_when_full(&path, size);
    assert!(
        (at_worst * 9 / 10..=at_worst).contains(&unprotected),
        "{unprotected} of {at_worst}"
    );

    fs::remove_file(&path).unwrap();
    let report = protect.json(&["--apply"], Some(&pool), 0);
    assert_eq!(report["filesystems"][0]["changes"][0]["result"], "set");
    libvirt_volume(&path, size);
    let at_worst = predicted("at_worst_extents");
    let protected = fragments_when_full(&path, size);
    assert!(protected <= at_worst, "{protected} of {at_worst}");
    assert!(
        protected <= unprotected / 100,
        "{protected} and {unprotected}"
    );
}

#[test]
fn hints_are_set_and_restored() {
    let bed = support::require!(Bed::xfs());
    let pool = pool(&bed);
    let (used, empty) = (pool.join("used.img"), pool.join("empty.img"));
    guest::random_direct_writes(&used, MIB, 10);
    libvirt_volume(&empty, MIB);
    let had = pool.join("had");
    fs::create_dir(&had).unwrap();
    tools::set_extent_size_hint(&had, 64 << 10);
    guest::random_direct_writes(&had.join("a.img"), MIB, 10);
    let protect = Protect::new();
    let hints = || {
        let a = hint("cowextsize", &had.join("a.img"));
        [
            hint("extsize", &pool),
            hint("extsize", &had),
            hint("cowextsize", &used),
            hint("extsize", &empty),
            a,
        ]
    };
    let before = hints();
    assert_eq!(before, [0, 64 << 10, 0, 0, 0]);
    // Looking changes nothing.
    let said = protect.run(&[], Some(&pool));
    assert!(said.out.contains("--apply SETS"), "{}", said.out);
    assert_eq!((hints(), protect.journal().exists()), (before, false));

    let said = protect.run(&["--apply"], Some(&pool));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    assert!(said.out.contains("5 hints set"), "{}", said.out);
    assert!(
        said.out.contains("takes up more of its size"),
        "{}",
        said.out
    );
    assert_eq!(hints(), [MIB; 5]);
    // Once more, there is nothing to do, and what was there first is still known.
    assert!(
        protect
            .run(&["--apply"], Some(&pool))
            .out
            .contains("no hint is missing")
    );
    libvirt_volume(&pool.join("new.img"), MIB);
    assert_eq!(hint("extsize", &pool.join("new.img")), MIB);

    let report = protect.json(&["--undo"], None, 0);
    let undone = report["undone"].as_array().unwrap();
    assert_eq!(undone.len(), 5);
    assert!(
        undone.iter().all(|entry| entry["result"] == "restored"),
        "{report:#}"
    );
    assert_eq!(hints(), before);
    assert!(
        protect
            .run(&["--undo"], None)
            .out
            .contains("nothing to undo")
    );
}

#[test]
fn what_others_changed_meanwhile_is_left_and_named() {
    let bed = support::require!(Bed::xfs());
    let pool = pool(&bed);
    let images = ["changed", "reset", "removed", "moved"].map(|name| {
        let path = pool.join(name).with_extension("img");
        guest::random_direct_writes(&path, MIB, 10);
        path
    });
    let empty = pool.join("empty.img");
    libvirt_volume(&empty, MIB);
    let protect = Protect::new();
    protect.json(&["--apply"], Some(&pool), 0);
    let [changed, reset, removed, moved] = &images;
    set_cow_hint(changed, 64 << 10);
    set_cow_hint(reset, 0);
    fs::remove_file(removed).unwrap();
    fs::write(removed, "another").unwrap();
    let away = bed.path().join("away.img");
    fs::rename(moved, &away).unwrap();
    symlink(changed, moved).unwrap();
    // A new file under that name, and extents where none were.
    fs::write(&empty, [1; 8192]).unwrap();
    bed.sync();
    // The directory gives way to a link.
    let elsewhere = bed.path().join("elsewhere");
    fs::rename(&pool, &elsewhere).unwrap();
    symlink("/", &pool).unwrap();

    let report = protect.json(&["--undo"], None, 0);
    let result = |path: &Path| {
        let undone = report["undone"].as_array().unwrap();
        let entry = undone
            .iter()
            .find(|entry| entry["path"] == path.to_str().unwrap());
        entry.unwrap()["result"].as_str().unwrap().to_owned()
    };
    assert_eq!(result(changed), "changed_meanwhile");
    assert_eq!(result(reset), "as_before");
    assert_eq!(result(removed), "gone");
    assert_eq!(result(moved), "restored");
    assert_eq!(result(&empty), "has_extents");
    assert_eq!(result(&pool), "restored");
    assert_eq!(hint("cowextsize", &elsewhere.join("changed.img")), 64 << 10);
    assert_eq!(hint("cowextsize", &away), 0);
    assert_eq!(hint("extsize", &elsewhere), 0);
}

#[test]
fn what_others_set_between_two_calls_is_restored() {
    let bed = support::require!(Bed::xfs());
    let pool = pool(&bed);
    let [ours, theirs] = ["ours", "theirs"].map(|name| {
        let path = pool.join(name).with_extension("img");
        guest::random_direct_writes(&path, MIB, 10);
        path
    });
    bed.sync();
    let protect = Protect::new();
    protect.json(&["--apply"], Some(&pool), 0);
    set_cow_hint(&theirs, 512 << 10);
    protect.json(&["--apply"], Some(&pool), 0);
    assert_eq!([&ours, &theirs].map(|it| hint("cowextsize", it)), [MIB; 2]);
    protect.json(&["--undo"], None, 0);
    assert_eq!(hint("cowextsize", &ours), 0);
    assert_eq!(hint("cowextsize", &theirs), 512 << 10);
}

#[test]
fn an_image_is_protected_under_its_vm() {
    let bed = support::require!(Bed::xfs());
    let pool = pool(&bed);
    let path = pool.join("db-1.img");
    guest::random_direct_writes(&path, 64 * MIB, 100);
    let vm = support::require!(qemu::Vm::named("db-1").start(&path));
    let protect = Protect::new();
    let report = protect.json(&["--apply"], Some(&pool), 0);
    let image = image(&report, &path);
    assert_eq!(image["vm"]["name"], "db-1");
    assert_eq!(
        (&image["direct"], &image["discards"]),
        (&true.into(), &false.into())
    );
    assert_eq!(
        (hint("extsize", &pool), hint("cowextsize", &path)),
        (MIB, MIB)
    );
    let said = protect.run(&[], Some(&pool));
    assert!(
        said.out
            .contains("VM db-1, past the page cache, discard ignore"),
        "{}",
        said.out
    );
    protect.json(&["--undo"], None, 0);
    assert_eq!((hint("extsize", &pool), hint("cowextsize", &path)), (0, 0));
    drop(vm);
}

#[test]
fn a_link_in_place_of_a_directory_is_not_followed() {
    let bed = support::require!(Bed::xfs());
    let (pool, victim) = (pool(&bed), bed.path().join("victim"));
    fs::create_dir(&victim).unwrap();
    let path = victim.join("a.img");
    guest::random_direct_writes(&path, MIB, 10);
    // What was examined, and what lies there by the time that it is to be changed.
    let change = |path: &Path, hint, id| Change {
        path: path.to_owned(),
        hint,
        id,
        has: Bytes(0),
        wanted: Bytes(MIB),
        cost: None,
    };
    let id = Some(ImageId {
        device: 1,
        inode: 1,
    });
    let changes = [
        change(&pool, Hint::Inherited, None),
        change(&pool.join("a.img"), Hint::CopyOnWrite, id),
        change(&path, Hint::CopyOnWrite, id),
    ];
    fs::remove_dir(&pool).unwrap();
    symlink(&victim, &pool).unwrap();
    let state = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(state.path()).unwrap();
    let mut texts = Vec::new();
    let host = HostInterfaces::new(state.path().join("hints"));
    apply(&changes, &mut journal, &host, |_, done| match done {
        Applied::Refused(refusal) => texts.push(refusal.to_string()),
        done => panic!("{done:?}"),
    })
    .unwrap();
    assert!(texts[0].contains("symbolic link"), "{texts:?}");
    assert!(texts[1].contains("symbolic link"), "{texts:?}");
    assert!(
        texts[2].contains("another file has taken its name"),
        "{texts:?}"
    );
    assert_eq!(
        (hint("extsize", &victim), hint("cowextsize", &path)),
        (0, 0)
    );
    assert!(journal.entries().is_empty());
    // What a crash has left of a replacement.
    drop(journal);
    let left_over = state.path().join(".fragwatch-x.tmp");
    fs::write(&left_over, "").unwrap();
    let journal = Journal::open(state.path()).unwrap();
    assert!(!left_over.exists() && journal.entries().is_empty());
    // Two at a time would lose what the other notes.
    assert!(
        Journal::open(state.path())
            .unwrap_err()
            .to_string()
            .contains("at work")
    );
}

#[test]
fn a_named_link_leads_to_the_real_directory() {
    let bed = support::require!(Bed::xfs());
    let (pool, link) = (pool(&bed), bed.path().join("link"));
    symlink(&pool, &link).unwrap();
    let report = Protect::new().json(&["--apply"], Some(&link), 0);
    let change = &report["filesystems"][0]["changes"][0];
    assert_eq!(change["path"], pool.to_str().unwrap());
    assert!(hint("extsize", &pool) >= MIB);
}

#[test]
fn where_nothing_can_be_set_that_is_told() {
    let read_only = support::require!(Bed::xfs());
    let path = pool(&read_only).join("a.img");
    guest::random_direct_writes(&path, MIB, 10);
    read_only.remount_ro();
    let protect = Protect::new();
    let report = protect.json(&["--apply"], Some(read_only.path()), 1);
    for change in report["filesystems"][0]["changes"].as_array().unwrap() {
        assert_eq!(change["result"], "refused");
        assert_eq!(change["error"], "its file system is mounted read-only");
    }
    assert!(
        protect
            .run(&["--undo"], None)
            .out
            .contains("nothing to undo")
    );
    for (bed, kind) in [(Bed::ext4(), "ext4"), (Bed::btrfs(), "btrfs")] {
        let bed = support::require!(bed);
        let path = bed.path().join("a.img");
        guest::sequential(&path, MIB);
        bed.sync();
        let report = protect.json(&["--apply", "--force"], Some(bed.path()), 1);
        let place = &report["filesystems"][0];
        let why = format!("it is {kind}, which has no extent-size hints");
        assert_eq!(
            (&place["obstacle"], &place["can_be_forced"]),
            (&why.into(), &false.into())
        );
        assert_eq!(image(&report, &path)["risk"], Value::Null);
    }
}

#[test]
fn a_nearly_full_file_system_is_refused_unless_forced() {
    let bed = support::require!(Bed::xfs());
    let path = pool(&bed).join("a.img");
    guest::random_direct_writes(&path, MIB, 10);
    let filler = File::create(bed.path().join("filler")).unwrap();
    let size = rustix::fs::statvfs(bed.path()).unwrap();
    let room = (size.f_bavail - size.f_blocks / 20) * size.f_frsize - 500 * MIB;
    fallocate(&filler, FallocateFlags::empty(), 0, room).unwrap();
    bed.sync();
    let protect = Protect::new();
    let said = protect.run(&["--apply"], Some(&path));
    assert_eq!(said.code, Some(1), "{said:?}");
    for part in [
        "defrag.keep_free",
        "--force overrules that",
        "No hint was set",
    ] {
        assert!(said.out.contains(part), "{}", said.out);
    }
    assert_eq!(hint("cowextsize", &path), 0);
    protect.json(&["--apply", "--force"], Some(&path), 0);
    assert_eq!(hint("cowextsize", &path), MIB);
}

#[test]
fn a_damaged_journal_stops_it() {
    let bed = support::require!(Bed::xfs());
    let path = pool(&bed).join("a.img");
    guest::random_direct_writes(&path, MIB, 10);
    let protect = Protect::new();
    fs::create_dir_all(protect.journal().parent().unwrap()).unwrap();
    for damaged in ["{", "{\"schema\":2,\"entries\":[]}"] {
        fs::write(protect.journal(), damaged).unwrap();
        for arguments in [&["--apply", path.to_str().unwrap()] as &[&str], &["--undo"]] {
            let said = protect.run(arguments, None);
            assert_eq!(said.code, Some(2), "{said:?}");
            assert!(said.err.contains("hints.json"), "{said:?}");
        }
        assert_eq!(fs::read_to_string(protect.journal()).unwrap(), damaged);
    }
    assert_eq!(hint("cowextsize", &path), 0);
}

#[test]
fn without_root_it_looks_and_does_no_more() {
    support::require!(tools::have("setpriv"));
    let bed = support::require!(Bed::xfs());
    let path = pool(&bed).join("a.img");
    guest::random_direct_writes(&path, 64 * MIB, 10);
    let program = bed.path().join("fragwatch");
    copy_program(env!("CARGO_BIN_EXE_fragwatch"), &program);
    let nobody = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        Said::by(command.arg(&program).arg("protect").args(arguments))
    };
    let said = nobody(&[path.to_str().unwrap()]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("nearly every new block"), "{}", said.out);
    for arguments in [&["--undo"] as &[&str], &["--apply", path.to_str().unwrap()]] {
        let said = nobody(arguments);
        assert_eq!((said.code, said.out.as_str()), (Some(2), ""));
        assert!(said.err.contains("needs root"), "{said:?}");
    }
}

#[test]
fn a_long_map_is_not_read() {
    let bed = support::require!(Bed::xfs());
    let path = bed.path().join("a.img");
    guest::random_direct_writes(&path, 64 * MIB, 1000);
    let protect = Protect::new();
    protect.configure("[sampling]\nmap_max_extents = 100\n");
    let report = protect.audit(&path);
    let image = image(&report, &path);
    assert_eq!(
        (&image["fragments"], &image["risk"]),
        (&Value::Null, &"shatters".into())
    );
    assert!(
        image["text"]
            .as_str()
            .unwrap()
            .contains("its map was not read")
    );
}

#[test]
fn a_file_system_that_hangs_is_waited_for_no_longer_than_configured() {
    let mut stall = support::require!(Stall::new());
    let path = stall.path().join("a.img");
    guest::random_direct_writes(&path, MIB, 10);
    let protect = Protect::new();
    protect.configure("[sampling]\nprobe_timeout = \"1s\"\n");
    stall.cold();
    stall.stop();
    let said = protect.run(&[], Some(&path));
    stall.resume();
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(!said.err.is_empty(), "{said:?}");
}

#[test]
fn the_daemon_counts_what_can_shatter() {
    let bed = support::require!(Bed::xfs());
    let pool = pool(&bed);
    libvirt_volume(&pool.join("sparse.img"), 256 * MIB);
    guest::sequential(&pool.join("whole.img"), MIB);
    let protect = Protect::new();
    let address = free_address();
    let text = format!(
        "[images]\npaths = [{:?}]\nmin_size = \"0B\"\n[metrics]\nlisten = \"{address}\"\n[rescue]\nenabled = false\n",
        pool.display()
    );
    fs::write(protect.config(), text).unwrap();
    let daemon = RunningDaemon::start(&protect.config(), address);
    let deadline = Instant::now() + Duration::from_secs(30);
    let counted = "\nfragwatch_images_unprotected 1\n";
    while !http_get(address, "/metrics")
        .unwrap()
        .body
        .contains(counted)
    {
        assert!(Instant::now() < deadline, "{}", daemon.stderr());
        std::thread::sleep(Duration::from_millis(100));
    }
    let status = Said::by(daemon.ask("status").arg("--json"));
    let status: Value = serde_json::from_str(&status.out).unwrap();
    assert_eq!(status["images"]["unprotected"], 1);
    let status = Said::by(&mut daemon.ask("status"));
    assert!(
        status
            .out
            .contains("1 image can shatter: see `fragwatch protect`.")
    );
    assert!(
        http_get(address, "/")
            .unwrap()
            .body
            .contains("1 image can shatter")
    );
}
