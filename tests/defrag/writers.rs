//! Somebody opens the image in the middle of it: no write is lost, and the image is either as
//! before or defragmented.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::support::child::Child;
use super::support::random::Random;
use super::support::{self, MIB, guest, tools};
use super::{bed, config, defrag, finish, leftovers, processes_with};

/// Most are small, so that there can be many rounds.
const SIZE: u64 = 8 * MIB;
/// With a bandwidth, whoever comes finds xfs_fsr standing still.
const LARGE: u64 = 20 * MIB;
/// Blocks that a writer writes.
const WRITES: u64 = 40;

/// What has to be in the image: the version of each block.
struct Model(Vec<u64>);

impl Model {
    /// Writes as a guest does, by one of several ways.
    fn write(&mut self, path: &Path, random: &mut Random) {
        let direct = random.below(2) == 0;
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(flags)
                .open(path)
        };
        let file = open().unwrap();
        // The dead have no arguments any more.
        let works = processes_with(path)
            .iter()
            .any(|(_, name)| name == "xfs_fsr");
        assert!(!works, "he is in, and xfs_fsr works");
        let mut block = guest::Aligned::block();
        for number in random.distinct(self.0.len() as u64, WRITES) {
            self.0[number as usize] += 1;
            guest::stamp(&mut block, number, self.0[number as usize]);
            file.write_all_at(&block, number * guest::BLOCK).unwrap();
        }
        if random.below(2) == 0 {
            file.sync_all().unwrap();
        }
        if random.below(2) == 0 {
            // He stays for a while.
            thread::sleep(Duration::from_millis(random.below(20)));
        }
    }

    fn check(&self, path: &Path, seed: u64) {
        let mut bytes = Vec::new();
        File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), self.0.len() * guest::BLOCK as usize);
        let mut expected = vec![0; guest::BLOCK as usize];
        for (number, version) in self.0.iter().enumerate() {
            guest::stamp(&mut expected, number as u64, *version);
            let at = number * guest::BLOCK as usize;
            let is_there = bytes[at..at + expected.len()] == expected;
            assert!(
                is_there,
                "seed {seed}: block {number} has not version {version}"
            );
        }
    }
}

/// What came of all the runs.
#[derive(Debug, Default)]
struct Tally {
    improved: u32,
    busy: u32,
    refused: u32,
    other: Vec<String>,
}

fn rounds(seeds: std::ops::Range<u64>, mkfs: &[&str]) -> support::Here<Tally> {
    let bed = bed(mkfs)?;
    let quick = config(&bed, "");
    let slow = config(&bed, "bandwidth = \"1MiB/s\"");
    let path = bed.path().join("vm.img");
    let mut tally = Tally::default();
    let mut usual = Duration::from_millis(100);
    for seed in seeds {
        let mut random = Random::new(seed);
        let _ = std::fs::remove_file(&path);
        let is_slow = random.below(6) == 0;
        let (size, config) = if is_slow {
            (LARGE, &slow)
        } else {
            (SIZE, &quick)
        };
        let blocks = size / guest::BLOCK;
        guest::random_direct_writes(&path, size, blocks);
        let before = tools::xfs_io_stat_nextents(&path);
        let mut model = Model(vec![0; blocks as usize]);

        let mut run = Child::spawn(&mut defrag(&path, config)).unwrap();
        // Mostly while xfs_fsr works: before that come the start of the program and the guards.
        if random.below(6) > 0 {
            wait_for_fsr(&path, &mut run);
        }
        thread::sleep(usual.mul_f64(random.below(1000) as f64 / 1000.0));
        model.write(&path, &mut random);
        let said = finish(&mut run);

        model.check(&path, seed);
        let after = tools::xfs_io_stat_nextents(&path);
        let outcome = said["outcome"].as_str().unwrap().to_owned();
        match outcome.as_str() {
            "improved" => {
                // Without what the guards take.
                let seconds = said["seconds"].as_f64().unwrap() - 0.1;
                usual = (usual + Duration::from_secs_f64(seconds.max(0.02))) / 2;
                tally.improved += 1;
                assert!(after < 100, "seed {seed}: {after}");
            }
            "busy" | "refused" => {
                let busy = outcome == "busy";
                *(if busy {
                    &mut tally.busy
                } else {
                    &mut tally.refused
                }) += 1;
                let reason = said["guard"].as_str().unwrap_or_default();
                assert!(busy || ["in_use", "changing"].contains(&reason), "{said}");
                assert!(after.abs_diff(before) <= 2 * WRITES, "seed {seed}: {after}");
            }
            _ => tally.other.push(said.to_string()),
        }
        assert!(leftovers(bed.path()).is_empty());
    }
    Ok(tally)
}

/// Until xfs_fsr works, or all is over.
fn wait_for_fsr(path: &Path, run: &mut Child) {
    let works = || {
        processes_with(path)
            .iter()
            .any(|(_, name)| name == "xfs_fsr")
    };
    while !works() && run.wait(Duration::ZERO).is_none() {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn no_write_is_lost() {
    let plans: [(_, &[&str]); 2] = [
        (0..100, &["-m", "rmapbt=0,reflink=1"]),
        (100..200, &["-m", "rmapbt=1,reflink=0"]),
    ];
    let threads = plans.map(|(seeds, mkfs)| thread::spawn(move || rounds(seeds, mkfs)));
    let tallies = threads.map(|thread| thread.join().unwrap());
    let mut busy = 0;
    for tally in tallies {
        let tally = support::require!(tally);
        eprintln!("{tally:?}");
        assert!(tally.other.is_empty(), "{tally:?}");
        busy += tally.busy;
    }
    // Else the moments were not those that matter.
    assert!(busy >= 50, "only {busy} came while it worked");
}

/// A loop device and a re-opened O_PATH descriptor come through the same gate.
#[test]
fn all_ways_lead_through_the_gate() {
    let bed = support::require!(bed(&[]));
    let config = config(&bed, "bandwidth = \"1MiB/s\"");
    let path = bed.path().join("vm.img");
    let ways: [fn(&Path); 4] = [
        |path| drop(File::open(path).unwrap()),
        |path| {
            let link = path.with_extension("link");
            std::fs::hard_link(path, &link).unwrap();
            drop(OpenOptions::new().write(true).open(&link).unwrap());
            std::fs::remove_file(link).unwrap();
        },
        |path| {
            let flags = rustix::fs::OFlags::PATH;
            let held = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&held);
            let again = format!("/proc/self/fd/{fd}");
            drop(OpenOptions::new().write(true).open(again).unwrap());
        },
        |path| {
            let mut losetup = std::process::Command::new("losetup");
            let output = losetup
                .args(["--find", "--show"])
                .arg(path)
                .output()
                .unwrap();
            let device = String::from_utf8(output.stdout).unwrap();
            let mut losetup = std::process::Command::new("losetup");
            assert!(
                losetup
                    .args(["--detach", device.trim()])
                    .status()
                    .unwrap()
                    .success()
            );
        },
    ];
    for way in ways {
        let _ = std::fs::remove_file(&path);
        // More than xfs_fsr can copy between two looks at it.
        guest::random_direct_writes(&path, 96 * MIB, 24_576);
        let mut run = Child::spawn(&mut defrag(&path, &config)).unwrap();
        wait_until_it_works(&path).unwrap();
        way(&path);
        let said = finish(&mut run);
        assert_eq!(said["outcome"], "busy", "{said}");
        assert!(said["by"]["pid"].as_i64().unwrap() > 0);
    }
}

/// Until xfs_fsr stands still, as its bandwidth makes it soon.
fn wait_until_it_works(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        for (pid, name) in processes_with(path) {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if name == "xfs_fsr" && stat.contains(") T ") {
                return Ok(());
            }
        }
        if Instant::now() > deadline {
            return Err(io::Error::other("it never stood still"));
        }
        thread::sleep(Duration::from_millis(5));
    }
}
