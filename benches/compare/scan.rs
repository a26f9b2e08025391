//! `fragwatch scan` of many images.

use super::run::{FRAGWATCH, command, time};
use super::samples::{Unit, in_turns};
use super::support::{Bed, Here, guest, tools};
use super::table::Row;

const IMAGES: u64 = 10_000;

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    tools::have("xfs_io")?;
    let bed = Bed::xfs()?;
    for n in 0..IMAGES {
        guest::alternate_blocks(&bed.path().join(format!("vm-{n}.raw")), 1 + n % 8);
    }
    let images = bed.path();
    let shell = "for image in \"$0\"/*.raw; do xfs_io -r -c stat \"$image\"; done";
    let [ours, theirs] = in_turns(
        Unit::Seconds,
        repetitions,
        [
            &mut || {
                time(&mut command(
                    FRAGWATCH,
                    [&"scan", &"--min-size", &"0B", &images],
                ))
            },
            &mut || time(&mut command("sh", [&"-c", &shell, &images])),
        ],
    );
    Ok(vec![Row::ratio(
        "`scan` of 10,000 images",
        &ours,
        "a shell loop over xfs_io -r -c stat",
        &theirs,
        1.0 / 20.0,
    )])
}
