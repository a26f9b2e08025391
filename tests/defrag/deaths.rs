//! Somebody is killed in the middle of it: the contents are as before, whoever wants the image gets
//! it, and after the next start nothing is left of the first.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::support::child::Child;
use super::support::random::Random;
use super::support::{self, MIB, guest, tools};
use super::{bed, config, defrag, leftovers, processes_with, said};

/// Whom the blow meets.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Fragwatch,
    Fsr,
    Both,
}

impl Victim {
    fn hits(self, name: &str) -> bool {
        match self {
            Victim::Fragwatch => name != "xfs_fsr",
            Victim::Fsr => name == "xfs_fsr",
            Victim::Both => true,
        }
    }
}

fn rounds(seeds: std::ops::Range<u64>, mkfs: &[&str]) -> support::Here<u32> {
    let bed = bed(mkfs)?;
    let quick = config(&bed, "");
    let slow = config(&bed, "bandwidth = \"1MiB/s\"");
    let path = bed.path().join("vm.img");
    let mut met = 0;
    for seed in seeds {
        let mut random = Random::new(seed);
        let _ = std::fs::remove_file(&path);
        guest::random_direct_writes(&path, 20 * MIB, 5120);
        let checksum = tools::checksum(&path);
        let victim = [Victim::Fragwatch, Victim::Fsr, Victim::Both][(seed % 3) as usize];
        let is_slow = random.below(2) == 0;
        let mut command = defrag(&path, if is_slow { &slow } else { &quick });
        let mut run = Child::spawn(&mut command).unwrap();
        let after = 150 + random.below(if is_slow { 1000 } else { 250 });
        thread::sleep(Duration::from_millis(after));
        for (pid, name) in processes_with(&path) {
            if victim.hits(&name) {
                met += u32::from(name == "xfs_fsr" || !processes_with(&path).is_empty());
                let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
        }
        // Whoever wants it gets it, whatever is left of the run.
        drop(OpenOptions::new().write(true).open(&path).unwrap());
        run.end();
        all_gone(&path, seed);
        assert_eq!(tools::checksum(&path), checksum, "seed {seed}, {victim:?}");
        // As a kill in the worst moment leaves it.
        if random.below(4) == 0 {
            File::create(bed.path().join(".fsr4194305")).unwrap();
        }
        let next = said(&mut defrag(&path, &quick));
        let fine = next["outcome"] == "improved" || next["guard"] == "near_ideal";
        assert!(fine, "seed {seed}: {next}");
        assert!(leftovers(bed.path()).is_empty(), "seed {seed}");
        assert_eq!(tools::checksum(&path), checksum, "seed {seed}, {victim:?}");
    }
    Ok(met)
}

/// No process of the run lives on.
fn all_gone(path: &Path, seed: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !processes_with(path).is_empty() {
        let alive = processes_with(path);
        assert!(Instant::now() < deadline, "seed {seed}: {alive:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nothing_is_lost_and_nothing_is_left() {
    let plans: [(_, &[&str]); 2] = [
        (0..50, &["-m", "rmapbt=0,reflink=1"]),
        (50..100, &["-m", "rmapbt=1,reflink=0"]),
    ];
    let threads = plans.map(|(seeds, mkfs)| thread::spawn(move || rounds(seeds, mkfs)));
    for thread in threads {
        let met = support::require!(thread.join().unwrap());
        // Else the blows went into the void.
        assert!(met >= 20, "only {met} met somebody");
    }
}
