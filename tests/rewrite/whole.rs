//! An image becomes whole, cannot fragment again, and is the same to everybody.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use serde_json::Value;

use super::support::guest::{Aligned, BLOCK};
use super::support::random::Random;
use super::support::rundir::{self, Place};
use super::support::{self, MIB, RunningDaemon, free_address, guest, tools};
use super::{
    bed, finish, inode, is_immutable, kept, names, noted, picture, protect, repair_finds_nothing,
    rewrite, said, xfs_io,
};

const KINDS: [&[&str]; 3] = [
    &["-m", "reflink=1,rmapbt=1"],
    &["-m", "reflink=0,rmapbt=0"],
    &["-m", "reflink=1,rmapbt=1", "-b", "size=1024"],
];

/// Three quarters of the first 16 MiB are holes; then come a long hole, unwritten space far from any
/// data, and an end within a block.
fn torn(path: &Path) {
    guest::random_direct_writes(path, 16 * MIB, 1024);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(40 * MIB + 123).unwrap();
    let unwritten = FallocateFlags::KEEP_SIZE;
    fallocate(&file, unwritten, 30 * MIB, 2 * MIB).unwrap();
    file.write_all_at(b"the end", 40 * MIB + 116).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn it_becomes_whole_and_stays_itself() {
    for kind in KINDS {
        let mut bed = support::require!(bed(kind));
        let image = bed.path().join("vm.raw");
        torn(&image);
        if kind[1].contains("reflink=0") {
            // Without it, there is no such hint.
            picture::set_times(&image, 1_700_000_000, 1);
            picture::give_default_acl(bed.path());
        } else {
            picture::colour(&image);
        }
        let (before, old) = (picture::of(&image), inode(&image));
        if kind[1].contains("reflink=0") {
            // The picture itself has read it.
            picture::set_times(&image, 1_700_000_000, 1);
        }
        let from = tools::xfs_io_stat_nextents(&image);
        let text = rewrite(&bed, &image);
        assert!(text.contains("the old file is kept"), "{text}");
        assert_eq!(picture::of(&image), before);
        assert_ne!(inode(&image), old);
        assert_eq!(
            (picture::of(&kept(&image)), inode(&kept(&image))),
            (before, old)
        );
        assert!(is_immutable(&kept(&image)));
        assert_eq!((names(bed.path()), noted(&bed)), (2, 1));
        // The first 16 MiB, the unwritten ones, the end.
        let to = tools::xfs_io_stat_nextents(&image);
        assert!(from > 500 && (3..=7).contains(&to), "{from} {to}");
        let mut extents = tools::filefrag_extents(&image).into_iter();
        let unwritten = extents.find(|extent| extent.logical == 30 * MIB).unwrap();
        assert!(unwritten.flags.iter().any(|flag| flag == "unwritten"));
        let allocated = fs::metadata(&image).unwrap().blocks() * 512;
        assert!(allocated < 20 * MIB, "{allocated}");

        written_by_a_guest(&image);
        repair_finds_nothing(&mut bed);
        finish(&bed, &image);
        assert_eq!((names(bed.path()), noted(&bed)), (1, 0));
        repair_finds_nothing(&mut bed);
    }
}

/// Whatever the guest writes, there are few new extents: at most three for each MiB, its hint.
fn written_by_a_guest(image: &Path) {
    let file = guest::open_direct(image).unwrap();
    let mut block = Aligned::block();
    for n in Random::new(7).distinct(40 * MIB / BLOCK, 5000) {
        guest::stamp(&mut block, n, 1);
        file.write_all_at(&block, n * BLOCK).unwrap();
    }
    let fragments = fragments(image);
    assert!(fragments <= 60, "{fragments}");
}

fn fragments(image: &Path) -> usize {
    let extents = tools::filefrag_extents(image);
    let follows = |pair: &[tools::Extent]| pair[0].physical + pair[0].length == pair[1].physical;
    1 + extents.windows(2).filter(|pair| !follows(pair)).count()
}

#[test]
fn a_larger_hint_is_kept_and_an_ideal_image_left_alone() {
    let bed = support::require!(bed(KINDS[0]));
    let directory = bed.path().join("hinted");
    fs::create_dir(&directory).unwrap();
    let image = directory.join("vm.raw");
    guest::random_direct_writes(&image, 16 * MIB, 2048);
    tools::set_extent_size_hint(&directory, 4 * MIB);
    let text = rewrite(&bed, &image);
    assert!(text.contains("hint 4.0 MiB"), "{text}");
    assert!(xfs_io("extsize", &image).contains("[4194304]"));
    finish(&bed, &image);

    let image = directory.join("whole.raw");
    guest::sequential(&image, 8 * MIB);
    let text = said(&mut protect(&bed, "--rewrite", &image, ""), false);
    assert!(text.contains("already near its ideal"), "{text}");

    let image = directory.join("dry.raw");
    guest::random_direct_writes(&image, 8 * MIB, 1024);
    let old = inode(&image);
    let mut dry = protect(&bed, "--rewrite", &image, "");
    let text = said(dry.arg("--dry-run"), true);
    assert!(text.contains("would be rewritten, into 8.0 MiB"), "{text}");
    assert_eq!((inode(&image), noted(&bed)), (old, 0));
}

#[test]
fn the_history_goes_on() {
    let bed = support::require!(bed(KINDS[0]));
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 64 * MIB, 4096);
    let from = tools::xfs_io_stat_nextents(&image);
    let address = free_address();
    let directory = rundir::new_dir(Place::Disk).unwrap();
    let config = directory.join("fragwatch.toml");
    let paths = bed.path().display();
    let text = format!(
        "[images]\npaths = [\"{paths}\"]\nmin_size = \"1MiB\"\n[sampling]\ninterval = \"1s\"\n\
         [metrics]\nlisten = \"{address}\"\n[klog]\nkmsg = false\n[rescue]\nenabled = false\n\
         [defrag]\nmax_io_pressure = 100\nbandwidth = \"64GiB/s\"\n"
    );
    fs::write(&config, text).unwrap();
    let daemon = RunningDaemon::start(&config, address);
    let history = || {
        let mut command = daemon.ask("history");
        let command = command
            .arg(&image)
            .args(["--json", "--config"])
            .arg(&config);
        let json = serde_json::from_slice(&command.output().unwrap().stdout);
        json.unwrap_or(Value::Null)
    };
    let counted = |extents: u64| {
        let text = format!("\"extents\":{extents}");
        history().to_string().contains(&text)
    };
    wait_until(|| counted(from));
    let mut command = daemon.ask("protect");
    said(
        command
            .arg("--rewrite")
            .arg(&image)
            .arg("--config")
            .arg(&config),
        true,
    );
    let to = tools::xfs_io_stat_nextents(&image);
    assert!(to < 10, "{to}");
    wait_until(|| counted(to));
    // Of one and the same image.
    assert!(counted(from), "{}", history());
    rundir::remove(&directory);
}

fn wait_until(is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < deadline, "it does not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}
