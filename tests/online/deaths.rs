//! Killed, out of space, or without power: nothing is lost and nothing is left behind.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::process::Signal;

use super::engine::noted;
use super::hints::{at_work, wait_until};
use super::support::child::Child;
use super::support::guest::{Aligned, BLOCK};
use super::support::random::{Random, mix};
use super::support::skip::Here;
use super::support::{self, MIB, Stall, guest, tools};
use super::{
    KINDS, bed, command, cow_hint, defrag, finish, free, repair_finds_nothing, set_cow_hint,
    shared, state,
};

/// Runs that are killed.
const KILLS: u64 = 100;
/// Power cuts, for each kind of file system.
const CUTS: u64 = 12;
/// The image in a power cut.
const IMAGE: u64 = 24 * MIB;

#[test]
fn killed_at_any_moment_it_leaves_nothing_behind() {
    let mut bed = support::require!(bed(&["-m", "reflink=1,rmapbt=1"]));
    let path = bed.path().join("vm.img");
    let (mut killed, mut left) = (0, 0);
    // In microseconds.
    let mut longest = 60_000;
    for seed in 0..KILLS {
        let mut random = Random::new(seed);
        let _ = fs::remove_file(&path);
        guest::random_direct_writes(&path, 4 * MIB, 1024);
        let hint = [0, 65_536][(seed % 2) as usize];
        set_cow_hint(&path, hint);
        let sum = tools::checksum(&path);
        let mut child =
            Child::spawn(&mut command(&bed, &path, "stall_target = \"1ms\"\n")).unwrap();
        thread::sleep(Duration::from_micros(random.below(longest)));
        let status = {
            child.signal(rustix::process::Signal::KILL);
            child.end()
        };
        let is_left = fs::read_dir(state(&bed).join("defrag")).is_ok_and(|dir| {
            dir.flatten()
                .any(|e| e.file_name().to_string_lossy().ends_with(".hint"))
        });
        killed += u64::from(!status.success());
        left += u64::from(is_left);
        // Too late or too early, on this machine, now.
        longest = match (status.success(), is_left) {
            (true, _) => longest * 9 / 10,
            (false, true) => longest,
            (false, false) => longest * 11 / 10,
        };
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
    let from = tools::xfs_io_stat_nextents(&path);
    let sum = tools::checksum(&path);
    // A guest that has it open makes the run slower.
    let held = File::open(&path).unwrap();
    let child = Child::spawn(&mut command(
        &bed,
        &path,
        "keep_free = \"20%\"\nstall_target = \"1ms\"\n",
    ));
    let child = child.unwrap();
    wait_until(|| tools::xfs_io_stat_nextents(&path) < from);
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
        said["guard"] == "no_space" || said["guard"] == "almost_full",
        "{said}"
    );
    drop((held, filler));
    repair_finds_nothing(&mut bed);
}

/// A guest that writes block after block, directly or not, and flushes after every few. It numbers
/// its writes, from 1 on, and writes the number into the block.
struct Journal {
    stop: Arc<AtomicBool>,
    known: Arc<Known>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Known {
    /// The block of each write that was begun.
    begun: Mutex<Vec<u64>>,
    /// How many writes were flushed.
    flushed: AtomicUsize,
}

impl Journal {
    fn start(path: &Path, seed: u64) -> Journal {
        let stop = Arc::new(AtomicBool::new(false));
        let known = Arc::new(Known::default());
        let direct = guest::open_direct(path).unwrap();
        let buffered = OpenOptions::new().write(true).open(path).unwrap();
        let thread = {
            let (stop, known) = (Arc::clone(&stop), Arc::clone(&known));
            thread::spawn(move || known.write([&direct, &buffered], seed, &stop))
        };
        Journal {
            stop,
            known,
            thread: Some(thread),
        }
    }

    /// The number of each block's last write that was flushed by now.
    fn flushed(&self) -> Vec<u64> {
        let flushed = self.known.flushed.load(Ordering::Acquire);
        let begun = self.known.begun.lock().unwrap();
        let mut last = vec![0; (IMAGE / BLOCK) as usize];
        for (number, block) in (1..).zip(&begun[..flushed]) {
            last[*block as usize] = number;
        }
        last
    }

    /// Ends it. The block of each write.
    fn end(mut self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        std::mem::take(&mut self.known.begun.lock().unwrap())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Known {
    fn write(&self, files: [&File; 2], seed: u64, stop: &AtomicBool) {
        let mut random = Random::new(seed);
        let mut buffer = Aligned::block();
        while !stop.load(Ordering::Relaxed) {
            let file = files[random.below(2) as usize];
            let block = random.below(IMAGE / BLOCK);
            let number = {
                let mut begun = self.begun.lock().unwrap();
                begun.push(block);
                begun.len()
            };
            guest::stamp(&mut buffer, block, number as u64);
            file.write_all_at(&buffer, block * BLOCK).unwrap();
            if random.below(8) == 0 {
                file.sync_data().unwrap();
                self.flushed.store(number, Ordering::Release);
            }
            thread::sleep(Duration::from_micros(random.below(1000)));
        }
    }
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing() {
    let threads = [0, 1].map(|kind| thread::spawn(move || power_cuts(kind)));
    for thread in threads {
        support::require!(thread.join().unwrap());
    }
}

fn power_cuts(kind: usize) -> Here<()> {
    tools::have("xfs_repair")?;
    let stall = Stall::with(KINDS[kind])?;
    let path = stall.path().join("vm.img");
    let free_of_all = free(stall.bed());
    let mut at_work = 0;
    for seed in (0..CUTS).map(|cut| 100 * kind as u64 + cut) {
        let _ = fs::remove_file(&path);
        guest::random_direct_writes(&path, IMAGE, IMAGE / BLOCK);
        let from = tools::xfs_io_stat_nextents(&path);
        let journal = Journal::start(&path, seed);
        let keys = "bandwidth = \"16MiB/s\"\nstall_target = \"2ms\"\n";
        let mut child = Child::spawn(&mut command(stall.bed(), &path, keys)).unwrap();
        thread::sleep(Duration::from_millis(Random::new(seed).below(2500)));
        at_work += u64::from(child.wait(Duration::ZERO).is_none());
        let flushed = journal.flushed();
        let mut after = stall.power_cut()?;
        let begun = journal.end();
        child.signal(Signal::KILL);
        child.end();

        let image = after.path().join("images/vm.img");
        survives(&image, &flushed, &begun);
        eprintln!(
            "{kind}, {seed}: {from} extents, {} at the cut, {} writes",
            tools::xfs_io_stat_nextents(&image),
            begun.len()
        );
        // The temporary file had no name: its blocks are nobody's now.
        assert_eq!(shared(&image), 0, "seed {seed}");
        repair_finds_nothing(&mut after);
        fs::remove_file(after.path().join("images/vm.img")).unwrap();
        after.cold();
        let free = free(&after);
        assert!(
            free + MIB >= free_of_all,
            "seed {seed}: {free} {free_of_all}"
        );
        repair_finds_nothing(&mut after);
    }
    // Else it was no test.
    assert!(at_work >= CUTS / 2, "{at_work}");
    Ok(())
}

/// Each block holds one of its writes, and none before the last that was flushed.
fn survives(image: &Path, flushed: &[u64], begun: &[u64]) {
    let file = File::open(image).unwrap();
    let (mut found, mut expected) = (Aligned::block(), Aligned::block());
    for (block, least) in (0..).zip(flushed) {
        file.read_exact_at(&mut found, block * BLOCK).unwrap();
        let word = u64::from_le_bytes(*found.first_chunk().unwrap());
        let number = word.wrapping_sub(mix(block));
        guest::stamp(&mut expected, block, number);
        assert!(*found == *expected, "block {block} is none of a guest's");
        assert!(
            number >= *least,
            "block {block} lost {least}: it has {number}"
        );
        let is_its = number == 0 || begun.get(number as usize - 1) == Some(&block);
        assert!(is_its, "block {block} has {number}");
    }
}

#[test]
fn an_image_that_is_removed_ends_its_run_and_gives_its_space_back() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let before = free(&bed);
    let path = bed.path().join("vm.img");
    let run = at_work(&bed, &path, 65_536);
    fs::remove_file(&path).unwrap();
    let removed = Instant::now();
    let said = finish(run);
    assert!(removed.elapsed() < Duration::from_secs(15), "{said}");
    assert_eq!(
        (&said["outcome"], &said["reason"]),
        (&"stopped".into(), &"gone".into())
    );
    wait_until(|| free(&bed) + (1 << 20) >= before);
    assert_eq!(noted(&bed), 0);
}

#[test]
fn a_file_system_that_is_unmounted_lazily_is_let_go() {
    let mut bed = support::require!(bed(&["-m", "reflink=1"]));
    let path = bed.path().join("vm.img");
    let run = at_work(&bed, &path, 65_536);
    bed.umount_lazily();
    let said = finish(run);
    assert_eq!(said["reason"], "gone", "{said}");
    wait_until(|| !bed.is_alive());
    bed.mount();
    assert_eq!((cow_hint(&path), noted(&bed)), (65_536, 0));
}
