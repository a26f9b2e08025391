//! The census of a whole file system.

use std::cell::RefCell;
use std::fs;
use std::process::Command;

use fragwatch::internals::model::ExtentCount;

use super::run::{FRAGWATCH, command, peak_memory, time};
use super::samples::{Unit, in_turns};
use super::support::bed::Plan;
use super::support::{Bed, GIB, Here, guest, tools};
use super::table::Row;

const DIRECTORIES: u64 = 200;
const FILES_EACH: u64 = 1000;

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    tools::have("xfs_db")?;
    // Bulkstat takes as long for one as for the other; who reads the maps does not.
    let mut rows = of_files_with(1, repetitions)?;
    rows.extend(of_files_with(5, repetitions)?);
    Ok(rows)
}

fn of_files_with(extents_each: u64, repetitions: usize) -> Here<Vec<Row>> {
    let mut bed = Plan::of("xfs").size(32 * GIB).make()?;
    fill(&bed, extents_each);
    // xfs_db reads the device past the mounted file system: now all is written there, and nothing
    // changes from here on.
    bed.cold();

    let mount = bed.path().to_owned();
    let device = bed.device().to_owned();
    let ours = || command(FRAGWATCH, [&"scan", &"--census", &mount]);
    let theirs = || command("xfs_db", [&"-r", &"-c", &"frag -f", &device]);
    let [our_time, their_time] = in_turns(
        Unit::Seconds,
        repetitions,
        [&mut || time(&mut ours()), &mut || time(&mut theirs())],
    );
    let [our_memory, their_memory] = in_turns(
        Unit::Bytes,
        repetitions,
        [&mut || peak_memory(&mut ours()), &mut || {
            peak_memory(&mut theirs())
        }],
    );
    let bed = RefCell::new(bed);
    let after_mounting = |command: &mut Command| {
        bed.borrow_mut().cold();
        time(command)
    };
    let [our_cold, their_cold] = in_turns(
        Unit::Seconds,
        repetitions,
        [&mut || after_mounting(&mut ours()), &mut || {
            after_mounting(&mut theirs())
        }],
    );
    let xfs_db = "xfs_db -r -c \"frag -f\"";
    let files = ExtentCount(DIRECTORIES * FILES_EACH);
    let extents = ExtentCount(files.0 * extents_each);
    let work = format!("census of {files} files with {extents} extents");
    let row = |what, ours, theirs, at_most| {
        Row::ratio(format!("{work}: {what}"), ours, xfs_db, theirs, at_most)
    };
    Ok(vec![
        row("time, inodes in memory", &our_time, &their_time, 1.0 / 5.0),
        row("time, cold", &our_cold, &their_cold, 1.0 / 5.0),
        row("peak memory", &our_memory, &their_memory, 1.0 / 10.0),
    ])
}

fn fill(bed: &Bed, extents_each: u64) {
    for n in 0..DIRECTORIES {
        let directory = bed.path().join(format!("directory-{n}"));
        fs::create_dir(&directory).unwrap();
        for n in 0..FILES_EACH {
            guest::alternate_blocks(&directory.join(format!("file-{n}")), extents_each);
        }
    }
}
