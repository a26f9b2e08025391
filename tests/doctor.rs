//! `fragwatch doctor` on this host: what is brought about is found, and gone when it is gone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows the tests, but not what they call"
)]
#![allow(clippy::print_stdout, reason = "it is the guest's serial line")]

mod support;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mount::{MountFlags, mount};
use serde_json::Value;

use support::bed::Plan;
use support::boot::{self, Kernel, Machine};
use support::child::Child;
use support::expect::Said;
use support::qemu::Vm;
use support::{Bed, MIB, daemon, tools};

/// Until a child has done what it was started for.
const PATIENCE: Duration = Duration::from_secs(60);

fn doctor(arguments: &[&str]) -> Said {
    of_images(Path::new("/nowhere"), arguments)
}

/// With these images in the configuration.
fn of_images(images: &Path, arguments: &[&str]) -> Said {
    let mut config = tempfile::NamedTempFile::new().unwrap();
    let text =
        format!("[control]\nsocket = '/nowhere/fragwatch.sock'\n[images]\npaths = [{images:?}]\n");
    config.write_all(text.as_bytes()).unwrap();
    let mut command = daemon::fragwatch();
    command.arg("--config").arg(config.path()).arg("doctor");
    Said::by(command.args(arguments))
}

/// The findings of a check.
fn found(id: &str) -> Vec<Value> {
    found_of(Path::new("/nowhere"), id)
}

fn found_of(images: &Path, id: &str) -> Vec<Value> {
    let said = of_images(images, &["--json"]);
    let document: Value = serde_json::from_str(&said.out).expect(&said.err);
    assert_eq!(document["schema"], 1);
    let findings = document["findings"].as_array().unwrap().iter();
    findings.filter(|it| it["id"] == id).cloned().collect()
}

/// Whether a finding of a check has this in its sentence.
fn is_found(id: &str, part: &str) -> bool {
    let sentences = found(id).into_iter();
    let mut sentences = sentences.map(|it| it["what"].as_str().unwrap().to_owned());
    sentences.any(|sentence| sentence.contains(part))
}

/// Waits for it.
fn eventually(id: &str, part: &str) {
    eventually_of(Path::new("/nowhere"), id, part);
}

/// Waits for findings of a check that have this in their sentences: what was late is unchecked.
fn eventually_of(images: &Path, id: &str, part: &str) -> Vec<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut findings = found_of(images, id);
        findings.retain(|it| it["what"].as_str().unwrap().contains(part));
        if !findings.is_empty() {
            return findings;
        }
        assert!(
            Instant::now() < deadline,
            "{id}: {part}: {:?}",
            found_of(images, id)
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn ext4_with_data_writeback_by_option_and_by_superblock() {
    let tune2fs = support::require!(tools::have("tune2fs"));
    let plan = Plan::of("ext4").size(64 * MIB);
    let by_option = support::require!(plan.clone().options("data=writeback").make());
    let mut by_default = support::require!(plan.make());
    let place = |bed: &Bed| format!("({}) has data=writeback.", bed.path().display());
    eventually("FW201", &place(&by_option));
    assert!(!is_found("FW201", &place(&by_default)));
    by_default.umount();
    let mut command = Command::new(tune2fs);
    let command = command.args(["-o", "journal_data_writeback"]);
    // Not its image: the device has the superblock in its cache.
    support::require!(tools::run(command.arg(by_default.device())));
    by_default.mount();
    eventually("FW201", &place(&by_default));
}

#[test]
fn ext4_without_a_journal() {
    let plan = Plan::of("ext4").size(64 * MIB);
    let without = support::require!(plan.clone().mkfs(&["-O", "^has_journal"]).make());
    let with = support::require!(plan.make());
    let place = |bed: &Bed| format!("({}) has no journal.", bed.path().display());
    eventually("FW202", &place(&without));
    assert!(!is_found("FW202", &place(&with)));
}

#[test]
fn a_reader_through_the_cache_of_an_image_that_is_open_with_o_direct() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("db-1.raw");
    File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    let _vm = support::require!(Vm::named("db-1").start(&image));
    let reader = File::open(&image).unwrap();
    let who = format!("{} is open with O_DIRECT by the VM db-1", image.display());
    eventually("FW301", &who);
    drop(reader);
    assert!(!is_found("FW301", &who));
}

#[test]
fn an_xfs_without_reflink_that_is_nearly_full() {
    let plan = Plan::of("xfs").mkfs(&["-m", "reflink=0"]);
    let bed = support::require!(plan.size(512 * MIB).make());
    let place = format!("The XFS at {} has no reflink", bed.path().display());
    // Other tests may have an XFS of that kind as well.
    let note = eventually_of(bed.path(), "FW208", &place);
    let what = note[0]["what"].as_str().unwrap();
    assert!(what.starts_with(&place), "{what}");
    let read = note[0]["read"][0].as_str().unwrap();
    assert!(read.starts_with("XFS_IOC_FSGEOMETRY: reflink=0 "), "{read}");
    assert_eq!(found_of(bed.path(), "FW205"), Vec::<Value>::new());
    let numbers = rustix::fs::statvfs(bed.path()).unwrap();
    let filler = File::create(bed.path().join("filler")).unwrap();
    let all = numbers.f_bavail * numbers.f_frsize;
    let all_but_some = all - numbers.f_blocks * numbers.f_frsize / 50;
    fallocate(&filler, FallocateFlags::empty(), 0, all_but_some).unwrap();
    let place = format!("are free on {}.", bed.path().display());
    let full = eventually_of(bed.path(), "FW205", &place);
    let what = full[0]["what"].as_str().unwrap();
    assert!(what.ends_with(&place), "{what}");
    // The process that reads it, by itself.
    let mut helper = daemon::fragwatch();
    helper.arg("doctor-helper").stdin(Stdio::piped());
    let mut helper = helper.stdout(Stdio::piped()).spawn().unwrap();
    // It ends when its standard input ends.
    let input = helper.stdin.take();
    let answer = helper.wait_with_output().unwrap();
    drop(input);
    let lines = String::from_utf8(answer.stdout).unwrap();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mount = bed.path().to_str().unwrap();
    let here: Vec<_> = lines.filter(|it| it["mount"] == mount).collect();
    // First what is in memory, then with what is read from the groups.
    assert_eq!(here.len(), 2, "{here:?}");
    assert_eq!(here[0]["full_groups"], Value::Null);
    let [groups, full] = ["groups", "full_groups"].map(|key| here[1][key].as_u64().unwrap());
    assert!(groups > 1 && full >= groups / 2, "{here:?}");
    assert!(here[1]["free"].as_u64().unwrap() < here[1]["size"].as_u64().unwrap() / 20);
}

#[test]
fn an_xfs_that_discards_at_once() {
    let plan = Plan::of("xfs").size(300 * MIB);
    let discards = support::require!(plan.clone().options("discard").make());
    let what = format!(
        "The XFS at {} is mounted with discard.",
        discards.path().display()
    );
    let found = eventually_of(discards.path(), "FW210", &what);
    assert_eq!(found[0]["what"], what.as_str());
    let other = support::require!(plan.make());
    assert_eq!(found_of(other.path(), "FW210"), Vec::<Value>::new());
}

/// In a VM with the settings of long ago, where they harm nobody else.
#[test]
fn an_old_kernel_with_old_settings() {
    let tools = ["mkfs.xfs", "xfs_quota"].map(tools::have);
    let [mkfs, quota] = tools;
    let program = PathBuf::from(env!("CARGO_BIN_EXE_fragwatch"));
    let files = [support::require!(mkfs), support::require!(quota), program];
    let machine = Machine {
        test: "guest_with_old_settings",
        disk: None,
        files: &files,
        memory: 2048,
        kernel: Kernel::Unpacked("6.1.0-47"),
        processors: 2,
    };
    let mut vm = support::require!(machine.start());
    eprintln!("{}", vm.wait_for("guest: found"));
    vm.end();
}

#[test]
#[ignore = "not a test: what the virtual machine does"]
fn guest_with_old_settings() {
    if !boot::is_guest() {
        return;
    }
    boot::arrive();
    let mnt = Path::new("/mnt");
    let run = |program: &str, arguments: &[&str]| {
        let done = Command::new(program).args(arguments).output().unwrap();
        assert!(done.status.success(), "{program}: {done:?}");
    };
    run("mkfs.xfs", &["-q", "-f", "/dev/ram0"]);
    fs::create_dir_all(mnt).unwrap();
    mount(
        "/dev/ram0",
        mnt,
        "xfs",
        MountFlags::empty(),
        Some(c"prjquota"),
    )
    .unwrap();
    // A tenant at its limit.
    let tenant = mnt.join("tenant");
    fs::create_dir_all(&tenant).unwrap();
    let project = format!("project -s -p {} 42", tenant.display());
    run("xfs_quota", &["-x", "-c", &project, "/mnt"]);
    run("xfs_quota", &["-x", "-c", "limit -p bhard=16m 42", "/mnt"]);
    let file = File::create(tenant.join("file")).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, 31 * MIB / 2).unwrap();
    for (name, value) in [
        ("/proc/sys/kernel/hung_task_warnings", "0"),
        ("/proc/sys/vm/compaction_proactiveness", "0"),
        ("/proc/sys/vm/zone_reclaim_mode", "1"),
        ("/sys/kernel/mm/transparent_hugepage/enabled", "always"),
        ("/sys/kernel/mm/transparent_hugepage/defrag", "always"),
    ] {
        fs::write(name, value).expect(name);
    }
    for id in ["FW102", "FW105", "FW113", "FW114", "FW115"] {
        assert_eq!(eventually_of(mnt, id, "").len(), 1, "{id}");
    }
    let quota = "the fullest is 42, with 15.5 MiB of 16.0 MiB";
    let found = eventually_of(mnt, "FW212", quota);
    println!("guest: found all, {}", found[0]["what"]);
    boot::leave();
}

#[test]
fn a_program_that_alone_could_read_what_it_writes() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new("cat");
    command.arg("/dev/zero").stdin(reader).stdout(writer);
    let child = Child::spawn(command.stderr(Stdio::null())).unwrap();
    // The command still has the ends that it gave away.
    drop(command);
    let pid = child.id();
    eventually("FW018", &format!("cat (PID {pid}) for PID {pid}"));
    drop(child);
    assert!(!is_found("FW018", &format!("cat (PID {pid})")));
}

#[test]
fn the_exit_status_is_that_of_the_worst_finding() {
    let said = doctor(&["--json"]);
    let document: Value = serde_json::from_str(&said.out).unwrap();
    // No daemon answers.
    assert!(is_found(
        "FW402",
        "No daemon answers at /nowhere/fragwatch.sock."
    ));
    let expected = match document["severity"].as_str() {
        Some("critical") => 2,
        _ => 1,
    };
    assert_eq!(said.code, Some(expected), "{said:?}");
    let text = doctor(&[]);
    assert_eq!(text.code, Some(expected), "{text:?}");
    let line =
        "WARNING FW402: The daemon does not run\n    No daemon answers at /nowhere/fragwatch.sock.";
    assert!(text.out.contains(line), "{}", text.out);
}

#[test]
fn checks_are_explained_and_listed_in_the_manual() {
    let said = doctor(&["--explain", "fw202"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(
        said.out
            .starts_with("FW202: ext4 without a journal (warning)\n"),
        "{}",
        said.out
    );
    let said = doctor(&["--explain", "FW999"]);
    assert_eq!((said.code, said.out.as_str()), (Some(2), ""));
    let all = said
        .err
        .split_once("there are ")
        .expect(&said.err)
        .1
        .trim()
        .to_owned();
    let dir = tempfile::tempdir().unwrap();
    let done = daemon::fragwatch()
        .arg("man")
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let page = fs::read_to_string(dir.path().join("fragwatch-doctor.1")).unwrap();
    let ids: Vec<_> = all.split(", ").collect();
    assert!(ids.len() > 30, "{all}");
    for id in ids {
        assert!(page.contains(&format!(".SS {id} ")), "{id}");
        assert_eq!(doctor(&["--explain", id]).code, Some(0), "{id}");
    }
    assert!(!Path::new("/nowhere").exists());
}

#[test]
fn a_silenced_check_of_the_configuration() {
    let run = |silence: &str| {
        let mut config = tempfile::NamedTempFile::new().unwrap();
        config.write_all(silence.as_bytes()).unwrap();
        let mut command = daemon::fragwatch();
        Said::by(command.arg("check-config").arg(config.path()))
    };
    let inline = "[doctor]\nsilence = [{ id = 'FW202', reason = 'scratch' }]\n";
    let sections = "[[doctor.silence]]\nid = 'FW202'\nreason = 'scratch'\n";
    for right in [inline, sections] {
        assert_eq!(run(right).code, Some(0), "{:?}", run(right));
    }
    let said = run("[[doctor.silence]]\nid = 'FW999'\nreason = ' '\n");
    assert_eq!(said.code, Some(2), "{said:?}");
    for wrong in [
        ":2:6: doctor.silence.id: there is no check FW999",
        ":3:10: doctor.silence.reason: is empty",
    ] {
        assert!(
            format!("{}{}", said.out, said.err).contains(wrong),
            "{said:?}"
        );
    }
}
