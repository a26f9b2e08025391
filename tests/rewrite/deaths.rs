//! Killed, or without power: one whole image under its name, and nothing left behind.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::support::child::Child;
use super::support::random::Random;
use super::support::skip::Here;
use super::support::{self, Bed, MIB, Stall, failing, guest, tools};
use super::{
    bed, duration, finish, inode, is_immutable, kept, names, noted, protect, recover, remove,
    repair_finds_nothing,
};

/// Rewrites that are killed.
const KILLS: u64 = 100;
/// Power cuts, for each kind of file system.
const CUTS: u64 = 12;

/// After the death of a rewrite: the image is whole, and the next start knows what else there is.
/// Returns whether the image is the copy.
fn is_whole_and_known(bed: &Bed, image: &Path, old: u64, sum: &str) -> bool {
    let directory = image.parent().unwrap();
    assert_eq!(tools::checksum(image), sum);
    assert!(names(directory) <= 2);
    recover(bed);
    assert_eq!(tools::checksum(image), sum);
    if inode(image) == old {
        assert_eq!((names(directory), noted(bed)), (1, 0));
        return false;
    }
    assert_eq!((names(directory), noted(bed)), (2, 1));
    assert_eq!(
        (inode(&kept(image)), is_immutable(&kept(image))),
        (old, true)
    );
    assert_eq!(tools::checksum(&kept(image)), sum);
    finish(bed, image);
    assert_eq!((names(directory), noted(bed)), (1, 0));
    true
}

#[test]
fn killed_at_any_moment_it_leaves_one_whole_image() {
    let mut bed = support::require!(bed(&["-m", "reflink=1,rmapbt=1"]));
    let image = bed.path().join("vm.raw");
    let make = |image: &Path| guest::random_direct_writes(image, 4 * MIB, 512);
    let mut took = duration(&bed, bed.path(), make);
    let (mut killed, mut exchanged) = (0, 0);
    for seed in 0..KILLS {
        let mut random = Random::new(seed);
        let _ = fs::remove_file(&image);
        make(&image);
        let (sum, old) = (tools::checksum(&image), inode(&image));
        let mut child = Child::spawn(&mut protect(&bed, "--rewrite", &image, "")).unwrap();
        thread::sleep(took.mul_f64(random.below(1200) as f64 / 1000.0));
        child.signal(Signal::KILL);
        match child.end().success() {
            false => killed += 1,
            // The machine has more to give than when it was timed.
            true => took = took.mul_f64(0.95),
        }
        exchanged += u64::from(is_whole_and_known(&bed, &image, old, &sum));
    }
    eprintln!("{killed} killed, {exchanged} after the exchange");
    assert!(killed >= KILLS / 4, "{killed}");
    repair_finds_nothing(&mut bed);
}

/// The two moments at which there is something to clean up, and both calls that bring it about.
#[test]
fn killed_at_the_worst_moment_it_leaves_one_whole_image() {
    let bed = support::require!(bed(&["-m", "reflink=1,rmapbt=1"]));
    let image = bed.path().join("vm.raw");
    for (call, found) in [(libc::SYS_linkat, 1), (libc::SYS_renameat2, 2)] {
        let _ = fs::remove_file(&image);
        guest::random_direct_writes(&image, 4 * MIB, 512);
        let (sum, old) = (tools::checksum(&image), inode(&image));
        let mut command = protect(&bed, "--rewrite", &image, "");
        failing::kill_at(&mut command, call);
        let status = Child::spawn(&mut command).unwrap().end();
        assert!(status.code().is_none(), "{status}");
        assert_eq!((names(bed.path()), noted(&bed)), (found, 1));
        assert!(!is_whole_and_known(&bed, &image, old, &sum));
    }
    // It is not the copy that is there: it stays, and so does the note.
    guest::random_direct_writes(&bed.path().join("other"), MIB, 16);
    let mut command = protect(&bed, "--rewrite", &image, "");
    failing::kill_at(&mut command, libc::SYS_renameat2);
    assert!(Child::spawn(&mut command).unwrap().end().code().is_none());
    fs::rename(bed.path().join("other"), kept(&image)).unwrap();
    recover(&bed);
    assert_eq!((names(bed.path()), noted(&bed)), (2, 1));
}

#[test]
fn a_power_cut_at_any_moment_leaves_one_whole_image() {
    let kinds: [&'static [&str]; 2] = [&["-m", "rmapbt=0"], &["-m", "rmapbt=1"]];
    let threads = kinds.map(|kind| thread::spawn(|| power_cuts(kind)));
    for thread in threads {
        support::require!(thread.join().unwrap());
    }
}

fn power_cuts(kind: &[&str]) -> Here<()> {
    tools::have("xfs_repair")?;
    let stall = Stall::with(kind)?;
    let image = stall.path().join("vm.raw");
    let make = |image: &Path| {
        guest::random_direct_writes(image, 8 * MIB, 1024);
        stall.bed().sync();
    };
    let mut took = duration(stall.bed(), &stall.path(), make);
    let (mut cut, mut exchanged) = (0, 0);
    for seed in 0..CUTS {
        remove(&kept(&image));
        let _ = fs::remove_file(&image);
        make(&image);
        let (sum, old) = (tools::checksum(&image), inode(&image));
        let mut child = Child::spawn(&mut protect(stall.bed(), "--rewrite", &image, "")).unwrap();
        thread::sleep(took.mul_f64(Random::new(seed).below(1200) as f64 / 1000.0));
        match child.wait(Duration::ZERO) {
            None => cut += 1,
            // The machine has more to give than when it was timed.
            Some(_) => took = took.mul_f64(0.8),
        }
        let mut after = stall.power_cut()?;
        child.signal(Signal::KILL);
        child.end();
        recover(stall.bed());

        let found = after.path().join("images/vm.raw");
        assert_eq!(tools::checksum(&found), sum, "seed {seed}");
        if kept(&found).exists() {
            assert_eq!(tools::checksum(&kept(&found)), sum, "seed {seed}");
        }
        assert!(names(found.parent().unwrap()) <= 2, "seed {seed}");
        exchanged += u64::from(inode(&found) != old);
        repair_finds_nothing(&mut after);
    }
    eprintln!("{kind:?}: {cut} cut, {exchanged} after the exchange");
    assert!(cut > 0);
    Ok(())
}
