//! Whoever writes, however he does it: every byte is what was last written.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::process::{Pid, Signal, kill_process};

use super::engine::noted;
use super::support::child::Child;
use super::support::guest::{Aligned, BLOCK};
use super::support::mapped::Mapped;
use super::support::random::Random;
use super::support::skip::Here;
use super::support::{self, Bed, MIB, guest, tools};
use super::{KINDS, bed, command, defrag, finish, repair_finds_nothing, shared};

/// Rounds of random writing, for each kind of file system.
const SEEDS: u64 = 25;
/// After so much of a guest's doing the run is stopped: where processors are scarce, its calls are slow
/// and it would take its time.
const MOST_DEEDS: u64 = 2000;
/// What fio writes: each block once, in random order.
const FIO_SIZE: u64 = 64 * MIB;

/// What the image has to contain.
struct Model {
    bytes: Vec<u8>,
    random: Random,
    version: u64,
}

/// Ways to an image.
struct Ways {
    direct: File,
    buffered: File,
    mapped: Mapped,
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Direct,
    Buffered,
    Mapped,
}

impl Ways {
    fn to(path: &Path) -> Ways {
        let buffered = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        Ways {
            direct: guest::open_direct(path).unwrap(),
            mapped: Mapped::new(&buffered, LARGEST).unwrap(),
            buffered,
        }
    }

    fn write(&self, way: Way, bytes: &[u8], at: u64) {
        match way {
            Way::Direct => self.direct.write_all_at(bytes, at).unwrap(),
            Way::Buffered => self.buffered.write_all_at(bytes, at).unwrap(),
            Way::Mapped => self.mapped.write(at, bytes),
        }
    }

    fn read(&self, way: Way, bytes: &mut [u8], at: u64) {
        match way {
            Way::Direct => self.direct.read_exact_at(bytes, at).unwrap(),
            Way::Buffered => self.buffered.read_exact_at(bytes, at).unwrap(),
            Way::Mapped => self.mapped.read(at, bytes),
        }
    }
}

/// How often a guest and its host did something with an image.
#[derive(Debug, Default)]
struct Deeds {
    writes: [u64; 3],
    reads: [u64; 3],
    discards: u64,
    growths: u64,
    cuts: u64,
}

impl Deeds {
    /// Of that which was done least.
    fn fewest(&self) -> u64 {
        let rest = [self.discards, self.growths, self.cuts];
        let all = self.writes.iter().chain(&self.reads).chain(&rest);
        all.copied().min().unwrap_or(0)
    }
}

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

    fn act(&mut self, ways: &Ways, deeds: &mut Deeds) {
        match self.random.below(100) {
            0..30 => self.write(ways, Way::Direct, deeds),
            30..48 => self.write(ways, Way::Buffered, deeds),
            48..65 => self.write(ways, Way::Mapped, deeds),
            65..73 => self.read(ways, Way::Direct, deeds),
            73..79 => self.read(ways, Way::Buffered, deeds),
            79..85 => self.read(ways, Way::Mapped, deeds),
            85..95 => self.discard(ways, deeds),
            95..98 => self.grow(ways, deeds),
            _ => self.cut(ways, deeds),
        }
    }

    fn write(&mut self, ways: &Ways, way: Way, deeds: &mut Deeds) {
        let (at, length) = match way {
            Way::Direct => self.range(BLOCK, 64 * 1024),
            Way::Buffered | Way::Mapped => self.range(8, 40_000),
        };
        let buffer = self.fresh(length);
        ways.write(way, &buffer, at);
        self.bytes[at as usize..][..length].copy_from_slice(&buffer);
        deeds.writes[way as usize] += 1;
    }

    fn read(&mut self, ways: &Ways, way: Way, deeds: &mut Deeds) {
        let unit = match way {
            Way::Direct => BLOCK,
            Way::Buffered | Way::Mapped => 1,
        };
        let (at, length) = self.range(unit, 64 * 1024);
        let mut buffer = Aligned::zeroed(length);
        ways.read(way, &mut buffer, at);
        let same = self.bytes[at as usize..][..length] == *buffer;
        assert!(same, "a reader ({way:?}) at {at} for {length}");
        deeds.reads[way as usize] += 1;
    }

    fn discard(&mut self, ways: &Ways, deeds: &mut Deeds) {
        let (at, length) = self.range(512, 100_000);
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&ways.direct, hole, at, length as u64).unwrap();
        self.bytes[at as usize..][..length].fill(0);
        deeds.discards += 1;
    }

    fn grow(&mut self, ways: &Ways, deeds: &mut Deeds) {
        let more = self.random.below(512) * BLOCK;
        let size = (self.bytes.len() as u64 + more).min(LARGEST);
        ways.direct.set_len(size).unwrap();
        self.bytes.resize(size as usize, 0);
        deeds.growths += 1;
    }

    fn cut(&mut self, ways: &Ways, deeds: &mut Deeds) {
        let size = BEGINNING / 2 + self.random.below(BEGINNING / 2 / BLOCK) * BLOCK;
        let size = size.min(self.bytes.len() as u64);
        ways.direct.set_len(size).unwrap();
        self.bytes.truncate(size as usize);
        deeds.cuts += 1;
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
    let ways = Ways::to(&path);
    let ended = Arc::new(AtomicBool::new(false));
    let mut run = command(bed, &path, "stall_target = \"2ms\"\n");
    let child = Child::spawn(&mut run).unwrap();
    let engine = Pid::from_raw(child.id().cast_signed()).unwrap();
    let waiter = {
        let ended = Arc::clone(&ended);
        thread::spawn(move || {
            let said = finish(child);
            ended.store(true, Ordering::Relaxed);
            said
        })
    };
    for deed in 1_u64.. {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        // Not before it is at work: it would die of it without a word.
        if deed.is_multiple_of(MOST_DEEDS) && noted(bed) > 0 {
            let _ = kill_process(engine, Signal::TERM);
        }
        model.act(&ways, deeds);
        if model.random.below(4) == 0 {
            thread::sleep(Duration::from_micros(model.random.below(2000)));
        }
    }
    let said = waiter.join().unwrap();
    let outcome = said["outcome"].as_str().unwrap();
    assert!(
        ["improved", "unchanged", "stopped"].contains(&outcome),
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
    assert!(deeds.fewest() > 0, "{deeds:?}");
    Ok(())
}

#[test]
fn every_byte_is_what_was_last_written() {
    let threads = [0, 1, 2, 3].map(|kind| thread::spawn(move || rounds(kind)));
    for thread in threads {
        support::require!(thread.join().unwrap());
    }
}

/// fio writes every block of a fragmented image and reads it again, soon after and at its end, while
/// the image is defragmented over and over.
#[test]
fn fio_finds_what_it_wrote() {
    support::require!(fio(KINDS[0]));
    support::require!(fio(KINDS[3]));
}

fn fio(mkfs: &[&str]) -> Here<()> {
    let mut bed = bed(mkfs)?;
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, FIO_SIZE, FIO_SIZE / BLOCK);
    let mut command = fio_command(&path)?;
    let mut guest =
        Child::spawn(command.args(["--verify_backlog=256", "--rate_iops=2500"])).unwrap();
    let (mut segments, mut improved) = (0, 0);
    while guest.wait(Duration::ZERO).is_none() {
        let said = defrag(&bed, &path);
        segments += said["segments"].as_u64().unwrap_or(0);
        improved += u64::from(said["outcome"] == "improved");
    }
    assert!(
        guest.end().success(),
        "{mkfs:?}: fio found something else than it wrote"
    );
    eprintln!("{mkfs:?}: {segments} segments under fio, {improved} runs");
    assert!(segments > 20 && improved > 0, "{segments} {improved}");
    bed.cold();
    let mut again = Child::spawn(fio_command(&path)?.arg("--verify_only")).unwrap();
    assert!(
        again.end().success(),
        "{mkfs:?}: it is something else later"
    );
    repair_finds_nothing(&mut bed);
    Ok(())
}

fn fio_command(path: &Path) -> Here<Command> {
    let mut command = Command::new(tools::have("fio")?);
    command
        .args([
            "--name=guest",
            "--thread",
            "--rw=randwrite",
            "--bs=4k",
            "--direct=1",
        ])
        .args([
            "--ioengine=psync",
            "--randseed=4711",
            "--allow_file_create=0",
        ])
        .args([
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ])
        .arg(format!("--size={FIO_SIZE}"))
        .arg(format!("--filename={}", path.display()))
        .stdout(Stdio::null());
    Ok(command)
}
