//! `fragwatch defrag --engine online` on real XFS, under writers and readers, killed, and short of
//! space.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "images of these tests are small"
)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};
use serde_json::Value;

use support::child::Child;
use support::daemon::fragwatch;
use support::guest::{Aligned, BLOCK};
use support::random::Random;
use support::skip::Here;
use support::{Bed, MIB, Writer, guest, tools};

/// Rounds of random writing, for each kind of file system.
const SEEDS: u64 = 25;
/// Runs that are killed.
const KILLS: u64 = 100;

const KINDS: [&[&str]; 4] = [
    &["-m", "reflink=1,rmapbt=0"],
    &["-m", "reflink=1,rmapbt=1"],
    &["-m", "reflink=1,rmapbt=0", "-b", "size=1024"],
    &["-m", "reflink=1,rmapbt=1", "-b", "size=1024"],
];

/// Beside the bed; a bed that lives in memory knows no slow disk, and the host's other load is none
/// of its business.
fn config(bed: &Bed, keys: &str) -> PathBuf {
    let mut text = String::from("[defrag]\nbandwidth = \"64GiB/s\"\nmax_io_pressure = 100\n");
    text.push_str(keys);
    let name = format!("fragwatch-{}.toml", keys.len());
    let path = bed.path().parent().unwrap().join(name);
    fs::write(&path, text).unwrap();
    path
}

/// Where its hints are written down.
fn state(bed: &Bed) -> PathBuf {
    bed.path().parent().unwrap().join("state")
}

fn command(bed: &Bed, image: &Path, keys: &str) -> Command {
    let mut command = fragwatch();
    command.args([
        "defrag",
        "--force-window",
        "--engine",
        "online",
        "--json",
        "--config",
    ]);
    command.arg(config(bed, keys)).arg(image);
    command.env("STATE_DIRECTORY", state(bed));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn finish(mut child: Child) -> Value {
    let (mut out, mut err) = (String::new(), String::new());
    let pipes = child.pipes();
    let mut stdout = pipes.stdout.take().unwrap();
    let mut stderr = pipes.stderr.take().unwrap();
    stdout.read_to_string(&mut out).unwrap();
    stderr.read_to_string(&mut err).unwrap();
    child.end();
    let said: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out} {err}"));
    said["runs"][0].clone()
}

fn defrag(bed: &Bed, image: &Path) -> Value {
    finish(Child::spawn(&mut command(bed, image, "")).unwrap())
}

fn free(bed: &Bed) -> u64 {
    let size = rustix::fs::statvfs(bed.path()).unwrap();
    size.f_bavail * size.f_frsize
}

/// Bytes that belong to another file too.
fn shared(path: &Path) -> u64 {
    let extents = tools::filefrag_extents(path);
    let is_shared = |flags: &[String]| flags.iter().any(|flag| flag == "shared");
    extents
        .iter()
        .filter(|extent| is_shared(&extent.flags))
        .map(|extent| extent.length)
        .sum()
}

/// `fsxattr.cowextsize` as xfs_io says it.
fn cow_hint(path: &Path) -> u64 {
    let output = Command::new("xfs_io")
        .args(["-r", "-c", "cowextsize"])
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let number = text.trim_start_matches('[').split(']').next().unwrap();
    number.parse().unwrap()
}

fn set_cow_hint(path: &Path, bytes: u64) {
    let set = format!("cowextsize {bytes}");
    let status = Command::new("xfs_io").args(["-c", &set]).arg(path).status();
    assert!(status.unwrap().success());
}

/// Checks it unmounted, and mounts it again.
fn repair_finds_nothing(bed: &mut Bed) {
    bed.umount();
    let output = Command::new("xfs_repair")
        .arg("-n")
        .arg(bed.device())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    bed.mount();
}

fn bed(mkfs: &[&str]) -> Here<Bed> {
    tools::have("xfs_io")?;
    tools::have("xfs_repair")?;
    Bed::xfs_with(mkfs)
}

/// What the image has to contain.
struct Model {
    bytes: Vec<u8>,
    random: Random,
    version: u64,
}

/// What a guest and its host do with an image.
#[derive(Debug, Default)]
struct Deeds([u64; 6]);

const LARGEST: u64 = 24 * MIB;
const BEGINNING: u64 = 16 * MIB;

impl Model {
    fn new(seed: u64) -> Model {
        let mut bytes = vec![0; BEGINNING as usize];
        for block in 0..BEGINNING / BLOCK {
            let at = (block * BLOCK) as usize;
            guest::stamp(&mut bytes[at..at + BLOCK as usize], block, 0);
        }
        Model {
            bytes,
            random: Random::new(seed),
            version: 0,
        }
    }

    /// A range within the image, its bounds multiples of `unit`.
    fn range(&mut self, unit: u64, longest: u64) -> (u64, usize) {
        let size = self.bytes.len() as u64;
        let at = self.random.below(size / unit) * unit;
        let length = (1 + self.random.below(longest / unit)) * unit;
        (at, length.min(size / unit * unit - at) as usize)
    }

    fn fresh(&mut self, length: usize) -> Aligned {
        self.version += 1;
        let mut buffer = Aligned::zeroed(length);
        for (n, part) in buffer.chunks_mut(512).enumerate() {
            let whole = part.len() / 8 * 8;
            guest::stamp(&mut part[..whole], n as u64, self.version << 20);
        }
        buffer
    }

    fn act(&mut self, direct: &File, buffered: &File, deeds: &mut Deeds) {
        let deed = self.random.below(100);
        let which = match deed {
            0..40 => {
                let (at, length) = self.range(BLOCK, 64 * 1024);
                let buffer = self.fresh(length);
                direct.write_all_at(&buffer, at).unwrap();
                self.bytes[at as usize..][..length].copy_from_slice(&buffer);
                0
            }
            40..65 => {
                let (at, length) = self.range(8, 40_000);
                let buffer = self.fresh(length);
                buffered.write_all_at(&buffer, at).unwrap();
                self.bytes[at as usize..][..length].copy_from_slice(&buffer);
                1
            }
            65..85 => {
                let is_direct = deed < 75;
                let (at, length) = self.range(if is_direct { BLOCK } else { 1 }, 64 * 1024);
                let mut buffer = Aligned::zeroed(length);
                let file = if is_direct { direct } else { buffered };
                file.read_exact_at(&mut buffer, at).unwrap();
                let same = self.bytes[at as usize..][..length] == *buffer;
                assert!(same, "a reader (direct: {is_direct}) at {at} for {length}");
                2
            }
            85..95 => {
                let (at, length) = self.range(512, 100_000);
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(direct, hole, at, length as u64).unwrap();
                self.bytes[at as usize..][..length].fill(0);
                3
            }
            95..98 => {
                let more = self.random.below(512) * BLOCK;
                let size = (self.bytes.len() as u64 + more).min(LARGEST);
                direct.set_len(size).unwrap();
                self.bytes.resize(size as usize, 0);
                4
            }
            _ => {
                let size = BEGINNING / 2 + self.random.below(BEGINNING / 2 / BLOCK) * BLOCK;
                direct.set_len(size.min(self.bytes.len() as u64)).unwrap();
                self.bytes.truncate(size as usize);
                5
            }
        };
        deeds.0[which] += 1;
    }

    fn check(&self, path: &Path, seed: u64) {
        let found = fs::read(path).unwrap();
        assert_eq!(found.len(), self.bytes.len(), "seed {seed}");
        let differs = found.iter().zip(&self.bytes).position(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}: byte");
    }
}

/// One run against one guest. Gives the segments that were moved.
fn round(bed: &Bed, seed: u64, deeds: &mut Deeds) -> u64 {
    let path = bed.path().join("vm.img");
    let _ = fs::remove_file(&path);
    guest::random_direct_writes(&path, BEGINNING, BEGINNING / BLOCK);
    let mut model = Model::new(seed);
    let direct = guest::open_direct(&path).unwrap();
    let buffered = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let mut run = command(bed, &path, "stall_target = \"2ms\"\n");
    let waiter = {
        let ended = Arc::clone(&ended);
        let child = Child::spawn(&mut run).unwrap();
        thread::spawn(move || {
            let said = finish(child);
            ended.store(true, Ordering::Relaxed);
            said
        })
    };
    while !ended.load(Ordering::Relaxed) {
        model.act(&direct, &buffered, deeds);
        if model.random.below(4) == 0 {
            thread::sleep(Duration::from_micros(model.random.below(2000)));
        }
    }
    let said = waiter.join().unwrap();
    let outcome = said["outcome"].as_str().unwrap();
    assert!(
        ["improved", "unchanged"].contains(&outcome),
        "seed {seed}: {said}"
    );
    model.check(&path, seed);
    assert_eq!(shared(&path), 0, "seed {seed}: something stayed shared");
    said["segments"].as_u64().unwrap()
}

/// All rounds on one kind of file system.
fn rounds(kind: usize) -> Here<()> {
    let mkfs = KINDS[kind];
    let mut bed = bed(mkfs)?;
    let (mut deeds, mut segments) = (Deeds::default(), 0);
    for seed in (0..SEEDS).map(|seed| seed + 1000 * kind as u64) {
        segments += round(&bed, seed, &mut deeds);
    }
    let image = bed.path().join("vm.img");
    let sum = tools::checksum(&image);
    repair_finds_nothing(&mut bed);
    assert_eq!(tools::checksum(&image), sum, "{mkfs:?}");
    eprintln!("{mkfs:?}: {segments} segments against {deeds:?}");
    // Else it was no test.
    assert!(segments > 10 * SEEDS, "{segments}");
    assert!(deeds.0.iter().all(|count| *count > 0), "{deeds:?}");
    Ok(())
}

#[test]
fn every_byte_is_what_was_last_written() {
    let threads = [0, 1, 2, 3].map(|kind| thread::spawn(move || rounds(kind)));
    for thread in threads {
        support::require!(thread.join().unwrap());
    }
}

#[test]
fn a_snapshot_stays_shared() {
    let mut bed = support::require!(bed(&["-m", "reflink=1"]));
    let path = bed.path().join("vm.img");
    let copy = bed.path().join("snapshot.img");
    guest::random_direct_writes(&path, 32 * MIB, 8192);
    guest::reflink_copy(&path, &copy);
    // A part of it was written again since.
    let direct = guest::open_direct(&path).unwrap();
    let mut block = Aligned::block();
    let mut random = Random::new(7);
    for n in random.distinct(2048, 1500) {
        guest::stamp(&mut block, 4096 + n, 1);
        direct.write_all_at(&block, (4096 + n) * BLOCK).unwrap();
    }
    direct.sync_all().unwrap();
    drop(direct);
    bed.sync();
    let sums = [tools::checksum(&path), tools::checksum(&copy)];
    let (before, free_before) = (shared(&path), free(&bed));
    let from = tools::xfs_io_stat_nextents(&path);
    assert!(before > 20 * MIB);

    let said = defrag(&bed, &path);
    // All of it may be one extent of what copy on write had set aside; then there is nothing to do.
    assert!(
        said["outcome"] == "improved" || said["guard"] == "shared",
        "{said}"
    );
    assert_eq!(shared(&path), before, "{said}");
    assert_eq!([tools::checksum(&path), tools::checksum(&copy)], sums);
    assert!(tools::xfs_io_stat_nextents(&path) <= from);
    bed.cold();
    assert!(
        free(&bed) + 2 * MIB >= free_before,
        "{} {free_before}",
        free(&bed)
    );
    // All that is left is shared.
    let whole = bed.path().join("other.img");
    guest::random_direct_writes(&whole, 4 * MIB, 1024);
    guest::reflink_copy(&whole, &bed.path().join("its.img"));
    assert_eq!(defrag(&bed, &whole)["guard"], "shared");
    repair_finds_nothing(&mut bed);
}

#[test]
fn killed_at_any_moment_it_leaves_nothing_behind() {
    let mut bed = support::require!(bed(&["-m", "reflink=1,rmapbt=1"]));
    let path = bed.path().join("vm.img");
    let (mut killed, mut left) = (0, 0);
    for seed in 0..KILLS {
        let mut random = Random::new(seed);
        let _ = fs::remove_file(&path);
        guest::random_direct_writes(&path, 4 * MIB, 1024);
        let hint = [0, 65_536][(seed % 2) as usize];
        set_cow_hint(&path, hint);
        let sum = tools::checksum(&path);
        let mut child =
            Child::spawn(&mut command(&bed, &path, "stall_target = \"1ms\"\n")).unwrap();
        thread::sleep(Duration::from_micros(random.below(60_000)));
        let status = {
            child.signal(rustix::process::Signal::KILL);
            child.end()
        };
        killed += u64::from(!status.success());
        left += u64::from(fs::read_dir(state(&bed).join("defrag")).is_ok_and(|dir| {
            dir.flatten()
                .any(|e| e.file_name().to_string_lossy().ends_with(".hint"))
        }));
        assert_eq!(tools::checksum(&path), sum, "seed {seed}");
        let names: Vec<_> = fs::read_dir(bed.path()).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        // The next start restores the hint, also of an image that was renamed.
        if seed % 5 == 0 {
            let other = bed.path().join("renamed.img");
            fs::rename(&path, &other).unwrap();
            let small = bed.path().join("small.img");
            guest::sequential(&small, 64 * 1024);
            assert_eq!(defrag(&bed, &small)["guard"], "near_ideal");
            assert_eq!(cow_hint(&other), hint, "seed {seed}");
            fs::remove_file(small).unwrap();
            fs::rename(&other, &path).unwrap();
        }
        let said = defrag(&bed, &path);
        let fine = said["outcome"] == "improved" || said["guard"] == "near_ideal";
        assert!(fine, "seed {seed}: {said}");
        assert_eq!(cow_hint(&path), hint, "seed {seed}");
        assert_eq!(tools::checksum(&path), sum, "seed {seed}");
        assert_eq!(shared(&path), 0, "seed {seed}");
    }
    eprintln!("{killed} killed, {left} of them with a hint changed");
    assert!(killed >= KILLS / 4 && left >= KILLS / 10, "{killed} {left}");
    let records = fs::read_dir(state(&bed).join("defrag")).unwrap().flatten();
    assert!(records.count() <= left as usize);
    repair_finds_nothing(&mut bed);
}

#[test]
fn a_disk_that_fills_up_ends_it() {
    let mut bed = support::require!(bed(&["-m", "reflink=1"]));
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, 192 * MIB, 49_152);
    let sum = tools::checksum(&path);
    // A guest that has it open makes the run slower.
    let held = File::open(&path).unwrap();
    let child = Child::spawn(&mut command(
        &bed,
        &path,
        "keep_free = \"20%\"\nstall_target = \"1ms\"\n",
    ));
    let child = child.unwrap();
    thread::sleep(Duration::from_millis(300));
    let filler = File::create(bed.path().join("filler")).unwrap();
    let most = free(&bed) - 100 * MIB;
    fallocate(&filler, FallocateFlags::empty(), 0, most).unwrap();
    let said = finish(child);
    assert_eq!(said["outcome"], "no_space", "{said}");
    assert!(said["to"].as_u64() <= said["from"].as_u64(), "{said}");
    assert_eq!(tools::checksum(&path), sum);
    assert_eq!(shared(&path), 0);
    // Nor does it begin.
    let said = defrag(&bed, &path);
    assert!(
        said["guard"] == "no_space" || said["guard"] == "too_full",
        "{said}"
    );
    drop((held, filler));
    repair_finds_nothing(&mut bed);
}

#[test]
fn an_image_in_use_becomes_whole() {
    for mkfs in &KINDS[..2] {
        let mut bed = support::require!(bed(mkfs));
        let path = bed.path().join("vm.img");
        guest::random_direct_writes(&path, 256 * MIB, 65_536);
        let from = tools::xfs_io_stat_nextents(&path);
        assert!(from > 60_000);
        let writer = Writer::start(&path, Some(500));
        let said = defrag(&bed, &path);
        let written = writer.stop();
        assert_eq!(said["outcome"], "improved", "{said}");
        assert_eq!(said["from"], from);
        let to = tools::xfs_io_stat_nextents(&path);
        eprintln!("{said}\n{:?}", written.latencies.worst());
        assert!(to * 200 < from, "{mkfs:?}: {from} to {to}");
        written.verify();
        assert_eq!(cow_hint(&path), 0);
        assert_eq!(shared(&path), 0);
        // Nobody makes new ones now.
        let again = defrag(&bed, &path);
        assert!(
            again["guard"] == "near_ideal" || again["outcome"] == "improved",
            "{again}"
        );
        repair_finds_nothing(&mut bed);
    }
}

#[test]
fn a_signal_stops_it_and_the_next_run_goes_on() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, 128 * MIB, 32_768);
    let sum = tools::checksum(&path);
    let _held = File::open(&path).unwrap();
    let child = Child::spawn(&mut command(&bed, &path, "stall_target = \"1ms\"\n")).unwrap();
    thread::sleep(Duration::from_millis(700));
    child.signal(rustix::process::Signal::TERM);
    let said = finish(child);
    assert_eq!(said["outcome"], "stopped", "{said}");
    let (from, to) = (said["from"].as_u64().unwrap(), said["to"].as_u64().unwrap());
    assert!(to < from, "{said}");
    assert_eq!(cow_hint(&path), 0);
    let next = defrag(&bed, &path);
    assert_eq!(next["outcome"], "improved", "{next}");
    assert_eq!(next["from"], to);
    assert_eq!(tools::checksum(&path), sum);
}

#[test]
fn what_it_must_not_touch_is_refused() {
    let bed = support::require!(bed(&["-m", "reflink=0"]));
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, MIB, 256);
    assert_eq!(defrag(&bed, &path)["guard"], "no_reflink");
    drop(bed);
    let bed = support::require!(crate::bed(&["-m", "reflink=1"]));
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, MIB, 256);
    for (flag, name) in [("+i", "immutable"), ("+a", "append-only")] {
        let chattr = |how: &str| Command::new("chattr").arg(how).arg(&path).status();
        assert!(chattr(flag).unwrap().success());
        let said = defrag(&bed, &path);
        assert_eq!(said["guard"], "flag", "{said}");
        assert!(said["reason"].as_str().unwrap().contains(name), "{said}");
        assert!(chattr(&flag.replace('+', "-")).unwrap().success());
    }
    let filler = File::create(bed.path().join("filler")).unwrap();
    let size = rustix::fs::statvfs(bed.path()).unwrap();
    let most = free(&bed) - size.f_blocks * size.f_frsize / 25;
    fallocate(&filler, FallocateFlags::empty(), 0, most).unwrap();
    assert_eq!(defrag(&bed, &path)["guard"], "too_full");
    drop(filler);
    fs::remove_file(bed.path().join("filler")).unwrap();
    // Islands in holes: nothing can join them.
    let sparse = bed.path().join("sparse.img");
    guest::random_direct_writes(&sparse, MIB, 1);
    assert_eq!(defrag(&bed, &sparse)["guard"], "near_ideal");
    let open = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    drop(open.unwrap());
    assert_eq!(defrag(&bed, &path)["outcome"], "improved");
}
