//! Somebody writes to the image in the middle of it: no write is lost.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Timespec, Timestamps, UTIME_NOW, fallocate, utimensat,
};
use rustix::process::Signal;

use super::support::child::Child;
use super::support::random::Random;
use super::support::{self, Bed, MIB, guest, tools};
use super::{bed, duration, inode, kept, names, noted, protect, remove};

/// Whatever is waited for comes within this time.
const SOON: Duration = Duration::from_secs(30);

/// A rewrite that copies until it is ended.
fn at_work(bed: &Bed, image: &Path) -> Child {
    guest::random_direct_writes(image, 32 * MIB, 4096);
    let mut command = protect(bed, "--rewrite", image, "bandwidth = \"1MiB/s\"\n");
    let run = Child::spawn(&mut command).unwrap();
    let descriptors = format!("/proc/{}/fd", run.id());
    let deadline = Instant::now() + SOON;
    let has_copy = || {
        let entries = fs::read_dir(&descriptors).into_iter().flatten().flatten();
        let mut files = entries.map(|entry| fs::read_link(entry.path()));
        files.any(|file| file.is_ok_and(|file| file.to_string_lossy().contains("(deleted)")))
    };
    while !has_copy() {
        assert!(Instant::now() < deadline, "it copies nothing");
        thread::sleep(Duration::from_millis(2));
    }
    run
}

fn ends_saying(mut run: Child, why: &str) {
    let mut text = String::new();
    let mut stdout = run.pipes().stdout.take().unwrap();
    std::io::Read::read_to_string(&mut stdout, &mut text).unwrap();
    assert_eq!(run.end().code(), Some(1), "{text}");
    assert!(text.contains(why), "{text}");
}

#[test]
fn who_opens_it_gets_it_and_ends_the_rewrite() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let image = bed.path().join("vm.raw");
    let run = at_work(&bed, &image);
    let old = inode(&image);
    let file = OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(b"written in between", 5 * MIB).unwrap();
    ends_saying(run, "needed it");
    assert_eq!((inode(&image), names(bed.path()), noted(&bed)), (old, 1, 0));
    let mut found = [0; 18];
    let file = fs::File::open(&image).unwrap();
    file.read_exact_at(&mut found, 5 * MIB).unwrap();
    assert_eq!(&found, b"written in between");
}

#[test]
fn what_bypasses_the_gate_is_noticed() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 8 * MIB, 1024);
    let old = inode(&image);
    let keys = "bandwidth = \"8MiB/s\"\n";
    let run = Child::spawn(&mut protect(&bed, "--rewrite", &image, keys)).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                touch(&image);
                thread::sleep(Duration::from_millis(300));
            }
        });
        ends_saying(run, "changed meanwhile");
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!((inode(&image), names(bed.path()), noted(&bed)), (old, 1, 0));
}

/// What cannot be finished after the exchange is taken back. Without this capability, the old file
/// cannot be made immutable.
#[test]
fn an_exchange_that_is_not_safe_is_taken_back() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    support::require!(tools::have("setpriv"));
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 4 * MIB, 512);
    let (sum, old) = (tools::checksum(&image), inode(&image));
    let rewrite = protect(&bed, "--rewrite", &image, "");
    let mut command = Command::new("setpriv");
    let without = "-linux_immutable";
    command.arg(format!("--bounding-set={without}"));
    command.arg(format!("--inh-caps={without}"));
    command.arg(rewrite.get_program()).args(rewrite.get_args());
    command.env("STATE_DIRECTORY", super::state(&bed));
    let text = super::said(&mut command, false);
    assert!(text.contains("cannot be made immutable"), "{text}");
    assert_eq!((inode(&image), tools::checksum(&image)), (old, sum));
    assert_eq!((names(bed.path()), noted(&bed)), (1, 0));
    OpenOptions::new().write(true).open(&image).unwrap();
}

/// Sets its modification time without opening it, as truncate(2) does.
fn touch(image: &Path) {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    utimensat(CWD, image, &times, AtFlags::empty()).unwrap();
}

/// Who opens it again and again, by its name, finds what he wrote last, whatever becomes of it.
#[test]
fn no_write_is_lost_around_the_exchange() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let image = bed.path().join("vm.raw");
    let is_over = AtomicBool::new(false);
    let make = |image: &Path| guest::random_direct_writes(image, 2 * MIB, 256);
    // Rest enough, mostly.
    let rest = 4 * duration(&bed, bed.path(), make);
    make(&image);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write_often(&image, rest, &is_over));
        let deadline = Instant::now() + Duration::from_secs(120);
        let (mut done, mut left) = (0, 0);
        while (done < 5 || left < 3) && Instant::now() < deadline {
            let output = protect(&bed, "--rewrite", &image, "").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            match output.status.success() {
                true => done += 1,
                // Each rewrite brings a hint, and the guest few new extents.
                false if text.contains("near its ideal") => {}
                false => left += 1,
            }
            remove(&kept(&image));
            super::recover(&bed);
            assert_eq!(noted(&bed), 0, "{text}");
            let file = OpenOptions::new().write(true).open(&image).unwrap();
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file, hole, MIB, MIB / 2).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        let (last, denied) = writer.join().unwrap();
        eprintln!("{done} rewritten, {left} left alone; {denied} opens denied");
        assert!(done >= 1, "{done}");
        let found = fs::read(&image).unwrap();
        for (slot, value) in last.into_iter().enumerate() {
            let at = slot * 4096;
            let is = u64::from_le_bytes(found[at..at + 8].try_into().unwrap());
            assert!(value == 0 || is == value, "slot {slot}: {is}, not {value}");
        }
    });
}

/// Writes ascending numbers into the first blocks, opening it by name for each; returns the last of
/// each block, and how often it was denied.
fn write_often(image: &Path, rest: Duration, is_over: &AtomicBool) -> (Vec<u64>, u64) {
    let mut random = Random::new(11);
    let (mut last, mut denied) = (vec![0; 64], 0);
    let mut number = 0;
    while !is_over.load(Ordering::Relaxed) {
        // Longer than a rewrite takes, or shorter.
        thread::sleep(rest.mul_f64(random.below(1000) as f64 / 1000.0));
        for _ in 0..random.below(20) {
            match OpenOptions::new().write(true).open(image) {
                Ok(file) => {
                    number += 1;
                    let slot = random.below(64);
                    file.write_all_at(&u64::to_le_bytes(number), slot * 4096)
                        .unwrap();
                    last[usize::try_from(slot).unwrap()] = number;
                }
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => denied += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }
    (last, denied)
}

#[test]
fn a_stopped_rewrite_keeps_nobody_waiting() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let image = bed.path().join("vm.raw");
    let run = at_work(&bed, &image);
    let sum = {
        run.signal(Signal::STOP);
        tools::checksum(&image)
    };
    ends_saying(run, "");
    assert_eq!(tools::checksum(&image), sum);
    assert_eq!((names(bed.path()), noted(&bed)), (1, 0));
}
