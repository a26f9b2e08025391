//! Somebody is killed in the middle of it: the contents are as before, whoever wants the image gets
//! it, and after the next start nothing is left of the first.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::support::child::Child;
use super::support::random::Random;
use super::support::{self, Bed, MIB, guest, tools};
use super::{bed, config, defrag, finish, leftovers, processes_with, said, stand_in};

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

/// From now on it is looked for that long whether something has come.
const SOON: Duration = Duration::from_secs(15);

fn is_copied_by_fsr(path: &Path) -> bool {
    let copies = |pid: i32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten();
        let mut files = descriptors
            .flatten()
            .map(|entry| fs::read_link(entry.path()));
        files.any(|file| file.is_ok_and(|file| file.to_string_lossy().contains("/.fsr")))
    };
    let mut processes = processes_with(path).into_iter();
    processes.any(|(pid, name)| name == "xfs_fsr" && copies(pid))
}

/// In the place of xfs_fsr, which a fast disk lets end before a signal arrives: opens the image and a
/// temporary file as it does, and waits for a line on the terminal, which never comes.
const WAITING: &str = r#"temporary=${2%/*}/.fsr$$
exec 3<"$2" 4>"$temporary"
rm "$temporary"
head --bytes=1048576 /dev/zero >&4
read line"#;

/// A run whose xfs_fsr copies the image until it is ended.
fn at_work(bed: &Bed, path: &Path) -> Child {
    guest::random_direct_writes(path, 20 * MIB, 5120);
    bed.sync();
    let mut command = defrag(path, &config(bed, ""));
    stand_in(bed, &mut command, WAITING);
    let run = Child::spawn(&mut command).unwrap();
    let deadline = Instant::now() + SOON;
    while !is_copied_by_fsr(path) {
        assert!(Instant::now() < deadline, "no xfs_fsr");
        thread::sleep(Duration::from_millis(5));
    }
    run
}

#[test]
fn an_image_that_is_removed_ends_its_run_and_gives_its_space_back() {
    let bed = support::require!(bed(&["-m", "rmapbt=0"]));
    let free = || rustix::fs::statvfs(bed.path()).unwrap().f_bfree;
    let before = free();
    let path = bed.path().join("vm.img");
    let mut run = at_work(&bed, &path);
    fs::remove_file(&path).unwrap();
    let removed = Instant::now();
    let said = finish(&mut run);
    assert!(removed.elapsed() < SOON, "{:?}: {said}", removed.elapsed());
    assert_eq!(
        (&said["outcome"], &said["reason"]),
        (&"stopped".into(), &"gone".into()),
        "{said}"
    );
    let deadline = Instant::now() + SOON;
    while free() + 64 < before {
        assert!(
            Instant::now() < deadline,
            "{} of {before} blocks are free",
            free()
        );
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_file_system_that_is_unmounted_lazily_is_let_go() {
    let mut bed = support::require!(bed(&["-m", "rmapbt=0"]));
    let path = bed.path().join("vm.img");
    let mut run = at_work(&bed, &path);
    bed.umount_lazily();
    let unmounted = Instant::now();
    let said = finish(&mut run);
    assert!(unmounted.elapsed() < SOON, "{said}");
    assert_eq!(said["reason"], "gone", "{said}");
    let deadline = Instant::now() + SOON;
    while bed.is_alive() {
        assert!(Instant::now() < deadline, "its device is still held");
        thread::sleep(Duration::from_millis(20));
    }
    bed.mount();
}

/// Whoever opens the image is not kept waiting.
fn opens(path: &Path) {
    let (path, (done, is_open)) = (path.to_owned(), std::sync::mpsc::channel());
    thread::spawn(move || done.send(fs::File::open(path).map(drop)));
    is_open.recv_timeout(SOON).expect("it opens").unwrap();
}

#[test]
fn a_run_that_is_stopped_keeps_nobody_waiting() {
    let bed = support::require!(bed(&["-m", "rmapbt=0"]));
    for (name, signal) in [("tstp.img", Signal::TSTP), ("stop.img", Signal::STOP)] {
        let path = bed.path().join(name);
        let mut run = at_work(&bed, &path);
        run.signal(signal);
        opens(&path);
        // Without a terminal it ends.
        let said = finish(&mut run);
        let reason = said["reason"].as_str().unwrap_or_default();
        let is_right = reason == "suspended" || said["outcome"] == "busy";
        assert!(is_right, "{name}: {said}");
    }
}
