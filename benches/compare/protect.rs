//! A guest that writes all of a sparse image in random order, in a directory whose files inherit an
//! extent-size hint, as `fragwatch protect --apply` sets it, and in one without.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::samples::{Samples, Unit};
use super::support::bed::Plan;
use super::support::random::Random;
use super::support::rundir::Place;
use super::support::{Here, MIB, guest, tools};
use super::table::Row;

const SIZE: u64 = 256 * MIB;
/// For an image of this size.
const HINT: u64 = MIB;

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    tools::have("xfs_io")?;
    let bed = Plan::of("xfs").place(Place::quick()).make()?;
    let [hinted, plain] = ["hinted", "plain"].map(|name| bed.path().join(name));
    for directory in [&hinted, &plain] {
        fs::create_dir(directory).expect("it is made");
    }
    tools::set_extent_size_hint(&hinted, HINT);
    let mut times = [const { Vec::new() }; 2];
    let mut extents = [0, u64::MAX];
    for repetition in 0..repetitions {
        // In turns, in both orders.
        for turn in 0..2 {
            let which = (repetition + turn) % 2;
            let (took, left) = written([&hinted, &plain][which]);
            times[which].push(took.as_secs_f64());
            // Against us: the most of ours, the least of theirs.
            extents[which] = match which {
                0 => extents[0].max(left),
                _ => extents[1].min(left),
            };
        }
    }
    let [ours, theirs] = times.map(|times| Samples::new(Unit::Seconds, times));
    let [protected, unprotected] = extents;
    let what = "256 MiB written by a guest in random order, 4 KiB at a time";
    Ok(vec![
        Row::plain(
            format!("extents of an image in a protected directory, {what}"),
            protected,
            format!("unprotected: {unprotected}"),
            "at most 1/100",
            protected * 100 <= unprotected,
        ),
        Row::ratio(
            "time of the same writes",
            &ours,
            "unprotected",
            &theirs,
            1.1,
        ),
    ])
}

/// The time of all writes, and the extents after them.
fn written(directory: &Path) -> (Duration, u64) {
    let image = directory.join("vm.raw");
    let _ = fs::remove_file(&image);
    guest::random_direct_writes(&image, SIZE, 0);
    let file = guest::open_direct(&image).expect("it opens");
    let blocks = Random::new(1).distinct(SIZE / guest::BLOCK, SIZE / guest::BLOCK);
    let mut block = guest::Aligned::block();
    let began = Instant::now();
    for number in blocks {
        guest::stamp(&mut block, number, 0);
        file.write_all_at(&block, number * guest::BLOCK)
            .expect("it is written");
    }
    file.sync_all().expect("it is flushed");
    (began.elapsed(), tools::xfs_io_stat_nextents(&image))
}
