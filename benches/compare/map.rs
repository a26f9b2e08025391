//! The whole extent map of one image: its time, its memory, and what a guest that writes to the
//! image meanwhile notices of it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::run::{FRAGWATCH, command, over_and_over, peak_memory, time};
use super::samples::{Unit, in_turns, show};
use super::support::{Bed, Here, MIB, Writer, guest, tools};
use super::table::Row;

const EXTENTS: u64 = 1_000_000;
/// How long the guest writes in each turn.
const TURN: Duration = Duration::from_secs(6);
/// What it writes: 4 KiB each, as a busy database does.
const WRITES_PER_SECOND: u32 = 1000;

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    tools::have("filefrag")?;
    tools::have("xfs_io")?;
    let bed = Bed::xfs_sized(guest::room_for(EXTENTS))?;
    let image = bed.path().join("vm.img");
    guest::alternate_blocks(&image, EXTENTS);
    bed.sync();

    let [ours, fiemap, filefrag] = in_turns(
        Unit::Seconds,
        repetitions,
        [
            &mut || time(&mut map(&image)),
            &mut || time(&mut command("xfs_io", [&"-r", &"-c", &"fiemap", &image])),
            &mut || time(&mut filefrag_v(&image)),
        ],
    );
    let [memory] = in_turns(
        Unit::Bytes,
        repetitions,
        [&mut || peak_memory(&mut map(&image))],
    );
    let work = "extent map of 1,000,000 extents";
    let limit = 16 * MIB;
    Ok(vec![
        Row::ratio(
            format!("{work}: time"),
            &ours,
            "xfs_io -c fiemap",
            &fiemap,
            1.0,
        ),
        Row::ratio(
            format!("{work}: time"),
            &ours,
            "filefrag -v",
            &filefrag,
            1.0,
        ),
        Row::plain(
            format!("{work}: peak memory"),
            &memory,
            "–",
            format!("less than {}", show(Unit::Bytes, limit as f64)),
            memory.median() < limit as f64,
        ),
        writer(&image, repetitions),
    ])
}

fn map(image: &Path) -> Command {
    command(FRAGWATCH, [&"scan", &"--map", &"--force", &image])
}

fn filefrag_v(image: &Path) -> Command {
    command("filefrag", [&"-v", &image])
}

/// The p99 of a guest's writes while maps of its image are read without a break.
fn writer(image: &Path, repetitions: usize) -> Row {
    let [alone, ours, filefrag] = in_turns(
        Unit::Seconds,
        repetitions,
        [
            &mut || p99(image, || std::thread::sleep(TURN)),
            &mut || p99(image, || over_and_over(&mut map(image), TURN)),
            &mut || p99(image, || over_and_over(&mut filefrag_v(image), TURN)),
        ],
    );
    let work = format!(
        "p99 of a guest's {WRITES_PER_SECOND} writes a second to the image while `scan --map` runs over and over"
    );
    Row::ratio(work, &ours, "the same without", &alone, 1.2)
        .beside(format!("while `filefrag -v` runs: {filefrag}"))
}

fn p99(image: &Path, meanwhile: impl FnOnce()) -> f64 {
    let writer = Writer::start(image, Some(WRITES_PER_SECOND));
    meanwhile();
    writer.stop().latencies.percentile(99.0).as_secs_f64()
}
