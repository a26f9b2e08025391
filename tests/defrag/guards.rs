//! Each reason to leave an image alone, brought about.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, Timespec, Timestamps, UTIME_NOW, flock, mkfifoat, utimensat,
};

use fragwatch::internals::config::settings::Defrag;
use fragwatch::internals::defrag::{self as engines, HostInterfaces, Request};
use fragwatch::internals::model::{Engine, RunOutcome, Stop};
use serde_json::Value;

use super::support::{self, Bed, MIB, guest, tools};
use super::{bed, config, defrag, said};

/// A bed with a fragmented image.
fn fragmented(mkfs: &[&str]) -> support::Here<(Bed, PathBuf)> {
    let bed = bed(mkfs)?;
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, 4 * MIB, 1024);
    Ok((bed, path))
}

/// The image is left alone, by this guard and in these words; by a dry run too.
fn refused(path: &Path, config: &Path, guard: &str, words: &str) {
    for dry_run in [true, false] {
        let mut command = defrag(path, config);
        if dry_run {
            command.arg("--dry-run");
        }
        let said = said(&mut command);
        assert_eq!(said["outcome"], "refused", "{said}");
        assert_eq!(said["guard"], guard, "{said}");
        let reason = said["reason"].as_str().unwrap();
        assert!(reason.contains(words), "{reason}");
    }
}

/// And nothing else is wrong with it.
fn runs(path: &Path, config: &Path) {
    let said = said(&mut defrag(path, config));
    assert_eq!(said["outcome"], "improved", "{said}");
}

#[test]
fn an_image_in_use() {
    let (bed, path) = support::require!(fragmented(&[]));
    let config = config(&bed, "");
    let us = format!("(pid {})", std::process::id());
    for write in [false, true] {
        let open = OpenOptions::new().read(true).write(write).open(&path);
        refused(&path, &config, "in_use", &us);
        drop(open.unwrap());
    }
    // Without a descriptor: a mapping is left of it.
    let mut file = OpenOptions::new().read(true).write(true).open(&path).ok();
    let mapping = Mapping::of(file.as_ref().unwrap());
    file = None;
    refused(&path, &config, "in_use", "in use by");
    drop((mapping, file));
    // And under another name.
    let link = bed.path().join("link.img");
    fs::hard_link(&path, &link).unwrap();
    let open = File::open(&link).unwrap();
    refused(
        &path,
        &config,
        "in_use",
        "in use by somebody that /proc does not show",
    );
    drop(open);
    runs(&path, &config);
}

/// A page of a file, mapped for reading and writing.
struct Mapping(*mut std::ffi::c_void);

impl Mapping {
    #[allow(unsafe_code)]
    fn of(file: &File) -> Mapping {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses the place; nothing of it is touched.
        let at = unsafe {
            let fd = file.as_raw_fd();
            libc::mmap(std::ptr::null_mut(), 4096, both, libc::MAP_SHARED, fd, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        Mapping(at)
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: it was mapped so, and nobody refers to it.
        unsafe { libc::munmap(self.0, 4096) };
    }
}

#[test]
fn an_image_behind_a_loop_device() {
    let (bed, path) = support::require!(fragmented(&[]));
    let config = config(&bed, "");
    let losetup = || Command::new("losetup");
    let output = losetup().args(["--find", "--show"]).arg(&path).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let device = String::from_utf8(output.stdout).unwrap();
    // From here on it goes with its last user, should this test be killed.
    let detach = || losetup().args(["--detach", device.trim()]).status();
    let held = File::open(device.trim());
    let detached = detach();
    refused(
        &path,
        &config,
        "in_use",
        "in use by somebody that /proc does not show",
    );
    drop(held.unwrap());
    assert!(detached.unwrap().success());
    runs(&path, &config);
}

#[test]
fn an_image_that_is_marked() {
    let (bed, path) = support::require!(fragmented(&[]));
    let config = config(&bed, "");
    for (flag, guard, words) in [
        ("i", "immutable", "is immutable"),
        ("a", "append_only", "can only be appended to"),
        ("f", "no_defrag", "is marked as not to be defragmented"),
    ] {
        let chattr = |sign: &str| {
            let command = format!("chattr {sign}{flag}");
            // Opened for writing, an immutable file cannot be unmarked.
            let mut xfs_io = Command::new("xfs_io");
            let status = xfs_io.args(["-r", "-c", &command]).arg(&path).status();
            assert!(status.unwrap().success());
        };
        chattr("+");
        refused(&path, &config, guard, words);
        chattr("-");
    }
    runs(&path, &config);
}

#[test]
fn what_is_no_image() {
    let (bed, path) = support::require!(fragmented(&[]));
    let config = config(&bed, "");
    let at = |name: &str| bed.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    symlink("dir", at("link")).unwrap();
    fs::rename(&path, at("dir/vm.img")).unwrap();
    symlink(at("dir/vm.img"), at("vm.img")).unwrap();
    mkfifoat(CWD, at("fifo"), Mode::RUSR).unwrap();
    refused(&at("vm.img"), &config, "not_a_file", "is a symbolic link");
    refused(
        &at("link/vm.img"),
        &config,
        "link",
        "link is a symbolic link",
    );
    refused(&at("dir"), &config, "not_a_file", "is a directory");
    refused(bed.path(), &config, "not_a_file", "is a directory");
    refused(&at("fifo"), &config, "not_a_file", "is a FIFO");
    refused(&at("dir/../dir/vm.img"), &config, "not_absolute", "..");
    refused(&at("none"), &config, "unreadable", "No such file");
    runs(&at("dir/vm.img"), &config);
}

#[test]
fn another_file_system() {
    let bed = support::require!(Bed::ext4());
    support::require!(tools::have("xfs_fsr"));
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, 4 * MIB, 512);
    refused(&path, &config(&bed, ""), "not_xfs", "lies on ext4");
}

#[test]
fn a_file_system_that_may_not_be_written() {
    let (bed, path) = support::require!(fragmented(&[]));
    bed.remount_ro();
    refused(&path, &config(&bed, ""), "read_only", "read-only");
}

#[test]
fn an_image_with_a_copy() {
    let (bed, path) = support::require!(fragmented(&["-m", "reflink=1"]));
    let config = config(&bed, "");
    let copy = bed.path().join("copy.img");
    guest::reflink_copy(&path, &copy);
    refused(&path, &config, "shares_blocks", "shares blocks");
    fs::remove_file(copy).unwrap();
    // XFS frees the blocks of a removed file some time later (inodegc).
    let deadline = Instant::now() + Duration::from_secs(30);
    while said(defrag(&path, &config).arg("--dry-run"))["outcome"] != "would_run" {
        assert!(Instant::now() < deadline, "the copy does not go");
        bed.sync();
    }
    runs(&path, &config);
}

#[test]
fn an_image_with_nothing_to_gain() {
    let bed = support::require!(bed(&[]));
    let config = config(&bed, "");
    let path = bed.path().join("vm.img");
    guest::sequential(&path, MIB);
    refused(&path, &config, "near_ideal", "1 extent");
    guest::discard_holes(&path, 100);
    refused(&path, &config, "near_ideal", "101 extents");
    File::create(bed.path().join("empty")).unwrap();
    refused(
        &bed.path().join("empty"),
        &config,
        "near_ideal",
        "0 extents",
    );
}

#[test]
fn a_full_file_system() {
    let (bed, path) = support::require!(fragmented(&[]));
    let greedy = config(&bed, "keep_free = \"90%\"");
    let filler = File::create(bed.path().join("filler")).unwrap();
    let free = rustix::fs::statvfs(bed.path()).unwrap();
    let free = free.f_bavail * free.f_frsize;
    let none = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&filler, none, 0, free / 2).unwrap();
    refused(&path, &greedy, "no_space", "needs 4.0 MiB");
    let modest = config(&bed, "keep_free = \"0%\"");
    // As far as it goes; at last in small steps.
    let (mut end, mut step) = (free / 2, 64 * MIB);
    while step >= MIB / 4 {
        match rustix::fs::fallocate(&filler, none, end, step) {
            Ok(()) => end += step,
            Err(_) => step /= 2,
        }
    }
    refused(&path, &modest, "no_space", "keeps 0 B (0%)");
    filler.set_len(0).unwrap();
    runs(&path, &modest);
}

#[test]
fn a_swap_that_would_take_long() {
    let (bed, path) = support::require!(fragmented(&["-m", "rmapbt=1"]));
    let strict = config(&bed, "max_swap_stall = \"10ms\"");
    refused(&path, &strict, "swap_stall", "would stall readers");
    runs(&path, &config(&bed, ""));
}

#[test]
fn another_run_on_the_file_system() {
    let (bed, path) = support::require!(fragmented(&[]));
    let config = config(&bed, "");
    let root = File::open(bed.path()).unwrap();
    flock(&root, FlockOperation::LockExclusive).unwrap();
    refused(&path, &config, "other_run", "another run");
    drop(root);
    runs(&path, &config);
}

/// Sets the flag when it goes.
struct Ended<'f>(&'f AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a command says while the image changes all the time, and the longest time in which it did
/// not.
fn said_of_changing(image: &Path, command: &mut Command) -> (Value, Duration) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when what is asserted does not hold: the scope waits for its threads.
        let ended = Ended(&done);
        let changer = scope.spawn(|| {
            // A tenth of a second without a change is rest, and others may be busy here.
            let _ = rustix::process::setpriority_process(None, -20);
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_NOW,
            };
            let times = Timestamps {
                last_access: now,
                last_modification: now,
            };
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            loop {
                // Without opening it.
                utimensat(CWD, image, &times, AtFlags::empty()).unwrap();
                longest = longest.max(last.elapsed());
                last = Instant::now();
                if done.load(Ordering::Relaxed) {
                    return longest;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let said = said(command);
        drop(ended);
        (said, changer.join().unwrap())
    })
}

#[test]
fn an_image_that_does_not_come_to_rest() {
    let (bed, path) = support::require!(fragmented(&[]));
    let config = config(&bed, "");
    for dry_run in [Some("--dry-run"), None] {
        loop {
            let mut command = defrag(&path, &config);
            let (said, longest) = said_of_changing(&path, command.args(dry_run));
            if said["guard"] == "changing" {
                let reason = said["reason"].as_str().unwrap();
                assert!(reason.contains("modified a moment ago"), "{reason}");
                break;
            }
            // This machine let it come to rest.
            assert!(longest > Duration::from_millis(50), "{longest:?}: {said}");
            fs::remove_file(&path).unwrap();
            guest::random_direct_writes(&path, 4 * MIB, 1024);
        }
    }
    runs(&path, &config);
}

#[test]
fn a_user_who_may_not() {
    support::require!(tools::have("setpriv"));
    let (bed, path) = support::require!(fragmented(&[]));
    let config = config(&bed, "");
    let without = |capability: &str| {
        let program = defrag(&path, &config);
        let mut command = Command::new("setpriv");
        command.arg(format!("--bounding-set=-{capability}"));
        command.arg(program.get_program()).args(program.get_args());
        said(command.stdin(Stdio::null()).stdout(Stdio::piped()))
    };
    assert_eq!(without("sys_admin")["guard"], "no_gate");
    std::os::unix::fs::chown(&path, Some(1), Some(1)).unwrap();
    assert_eq!(without("lease")["guard"], "use_unknown");
    runs(&path, &config);
}

#[test]
fn no_xfs_fsr() {
    let (bed, path) = support::require!(fragmented(&[]));
    let config = config(&bed, "");
    let program = defrag(&path, &config);
    // Where it could be, there is something else, for this process alone.
    let script = r#"
        for dir in /usr/sbin /sbin $(echo "$PATH" | tr : ' '); do
            [ -f "$dir/xfs_fsr" ] && mount --bind /dev/null "$dir/xfs_fsr"
        done
        exec "$0" "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]);
    command.arg(program.get_program()).args(program.get_args());
    let said = said(command.stdin(Stdio::null()).stdout(Stdio::piped()));
    assert_eq!(said["guard"], "no_xfs_fsr", "{said}");
    runs(&path, &config);
}

/// While the guards read the map, which may take a minute, a run can be stopped as well.
#[test]
fn the_guards_stop_when_they_are_told_to() {
    let bed = support::require!(bed(&[]));
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, 8 * MIB, 2048);
    bed.sync();
    let limits = Defrag {
        max_io_pressure: 100,
        max_swap_stall: Duration::from_secs(600),
        ..Defrag::default()
    };
    let mut events = Vec::new();
    let request = Request {
        path: &path,
        limits: &limits,
        host: &HostInterfaces::new(bed.path().join("none")),
        orders: &mut || Some(Stop::Paused),
        watch: &mut |event| events.push(event),
    };
    let report = engines::run(Engine::XfsFsr, request);
    let why = Stop::Paused;
    assert_eq!(report.outcome, RunOutcome::Stopped { why });
    assert_eq!(report.from, None);
    assert_eq!(events, [], "xfs_fsr was started");
}
