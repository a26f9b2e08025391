//! The free space of a file system: the time beside xfs_spaceman, and what a guest that writes there
//! meanwhile notices of it.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};

use super::run::{FRAGWATCH, command, over_and_over, time};
use super::samples::{Unit, in_turns};
use super::support::bed::Plan;
use super::support::prepared::IMAGE;
use super::support::{Bed, GIB, Here, Writer, guest, tools};
use super::table::Row;

const MAPPINGS: u64 = 1_000_000;
const FREE_EXTENTS: u64 = 1_000_000;
/// How long the guest writes in each turn.
const TURN: Duration = Duration::from_secs(6);
/// What it writes: 4 KiB each, as a busy database does. Every second one allocates a block.
const WRITES_PER_SECOND: u32 = 1000;

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    tools::have("xfs_spaceman")?;
    tools::have("setpriv")?;
    Ok(vec![
        reverse_mappings(repetitions)?,
        writer(&Bed::fragmented(FREE_EXTENTS)?, repetitions),
    ])
}

fn space(place: &Path) -> Command {
    command(FRAGWATCH, [&"space", &place])
}

fn spaceman(place: &Path) -> Command {
    command("xfs_spaceman", [&"-c", &"freesp -s", &place])
}

fn without_capability(place: &Path) -> Command {
    let mut command = command("setpriv", [&"--bounding-set=-sys_admin", &"xfs_spaceman"]);
    command.args(["-c", "freesp -s"]).arg(place);
    command
}

fn reverse_mappings(repetitions: usize) -> Here<Row> {
    let bed = Plan::of("xfs")
        .size(16 * GIB)
        .mkfs(&["-m", "rmapbt=1"])
        .make()?;
    interleave(bed.path(), MAPPINGS / 2);
    bed.sync();
    let [ours, theirs, unprivileged] = in_turns(
        Unit::Seconds,
        repetitions,
        [
            &mut || time(&mut space(bed.path())),
            &mut || time(&mut spaceman(bed.path())),
            &mut || time(&mut without_capability(bed.path())),
        ],
    );
    let work = "free space of an XFS with 1,000,000 reverse mappings: time";
    let row = Row::ratio(work, &ours, "xfs_spaceman -c \"freesp -s\"", &theirs, 0.1);
    Ok(row.beside(format!("without CAP_SYS_ADMIN: {unprivileged}")))
}

/// Two files whose blocks lie by turns, so that each block has a reverse mapping of its own.
fn interleave(dir: &Path, blocks: u64) {
    let files = ["a.img", "b.img"].map(|name| File::create(dir.join(name)).expect("it is made"));
    for block in 0..blocks {
        for file in &files {
            let at = block * guest::BLOCK;
            fallocate(file, FallocateFlags::empty(), at, guest::BLOCK).expect("there is room");
        }
    }
    drop(files);
    for name in ["a.img", "b.img"] {
        let extents = tools::xfs_io_stat_nextents(&dir.join(name));
        assert!(extents > blocks / 100 * 99, "{name}: {extents}");
    }
}

/// The p99 of a guest's writes while the free space is read without a break.
fn writer(bed: &Bed, repetitions: usize) -> Row {
    let image = bed.path().join(IMAGE);
    let [alone, ours, theirs] = in_turns(
        Unit::Seconds,
        repetitions,
        [
            &mut || p99(&image, || std::thread::sleep(TURN)),
            &mut || p99(&image, || over_and_over(&mut space(bed.path()), TURN)),
            &mut || p99(&image, || over_and_over(&mut spaceman(bed.path()), TURN)),
        ],
    );
    let work = format!(
        "p99 of a guest's {WRITES_PER_SECOND} writes a second while `space` reads 1,000,000 free extents over and over"
    );
    Row::ratio(work, &ours, "the same without", &alone, 1.2)
        .beside(format!("while `xfs_spaceman` does: {theirs}"))
}

fn p99(image: &Path, meanwhile: impl FnOnce()) -> f64 {
    let writer = Writer::start(image, Some(WRITES_PER_SECOND));
    meanwhile();
    writer.stop().latencies.percentile(99.0).as_secs_f64()
}
