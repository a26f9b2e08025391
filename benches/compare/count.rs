//! The count of one image: how long it takes, that it takes no longer for more extents, and that it
//! leaves nothing behind in the kernel.

use std::fs::{self, File};
use std::hint::black_box;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fragwatch::internals::model::{ExtentCount, FilesystemKind};
use fragwatch::internals::probe;

use super::run::{FRAGWATCH, command, time};
use super::samples::{Samples, Unit, each_of, in_turns};
use super::support::{Bed, Here, guest, tools};
use super::table::Row;

/// Calls whose mean is one sample.
const CALLS: u32 = 5000;

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    tools::have("filefrag")?;
    tools::have("xfs_io")?;
    let mut rows = Vec::new();
    let sizes = [1_000, 100_000, 1_000_000];
    let mut bed = Bed::xfs_sized(guest::room_for(sizes.iter().sum()))?;
    let images = sizes.map(|extents| bed.path().join(format!("{extents}.img")));
    for (extents, image) in sizes.iter().zip(&images) {
        guest::alternate_blocks(image, *extents);
    }
    let million = &images[2];
    rows.extend(against_others(million, sizes[2], repetitions));
    rows.push(slab(&mut bed, million, repetitions));

    let mut growth = sizes.to_vec();
    let mut images = images.to_vec();
    let headline = Bed::headline();
    match &headline {
        Ok(headline) => {
            let image = headline.path().join("ffc63a70.disk");
            growth.push(tools::xfs_io_stat_nextents(&image));
            images.push(image);
        }
        Err(why) => eprintln!("without the image of 34.7 million extents: {why}"),
    }
    rows.push(no_growth(&growth, &images, repetitions));
    if let (Ok(_), [.., extents], [.., image]) = (&headline, &growth[..], &images[..]) {
        // The other tools take 10 s and 25 s each time.
        rows.extend(against_others(image, *extents, repetitions.div_ceil(3)));
    }
    Ok(rows)
}

/// The count in this process and the whole command, each against the whole commands of the others:
/// these spend all but a thousandth of their time on what is measured here.
fn against_others(image: &Path, extents: u64, repetitions: usize) -> Vec<Row> {
    let extents = ExtentCount(extents);
    let [count, scan, filefrag, fiemap] = in_turns(
        Unit::Seconds,
        repetitions,
        [
            &mut || time_of_count(image),
            &mut || time(&mut scan(image)),
            &mut || time(&mut command("filefrag", [&image])),
            &mut || time(&mut command("xfs_io", [&"-r", &"-c", &"fiemap", &image])),
        ],
    );
    let itself = format!("count of an image of {extents} extents: the probe alone");
    let whole = format!("count of an image of {extents} extents: `fragwatch scan`");
    let wanted = 1.0 / 1000.0;
    vec![
        Row::ratio(&itself, &count, "filefrag", &filefrag, wanted),
        Row::ratio(&itself, &count, "xfs_io -c fiemap", &fiemap, wanted),
        Row::for_information(&whole, &scan, "filefrag", &filefrag),
        Row::for_information(&whole, &scan, "xfs_io -c fiemap", &fiemap),
    ]
}

fn scan(image: &Path) -> Command {
    command(FRAGWATCH, [&"scan", &image])
}

/// What the probe does for one image of a sweep: open it without touching what it might be
/// instead, ask for its attributes and those of its directory, close it.
fn count(image: &Path) -> ExtentCount {
    let directory = File::open(image.parent().unwrap()).unwrap();
    let name = image.file_name().unwrap();
    let (file, _) = probe::open::regular_file(directory.as_fd(), name).unwrap();
    let mut probe = probe::Probe::new(FilesystemKind::Xfs);
    let count = probe.count(&file, directory.as_fd(), &mut || {});
    count.unwrap().extents
}

fn time_of_count(image: &Path) -> f64 {
    each_of(CALLS, || {
        black_box(count(image));
    })
}

/// The same count of images of different sizes.
fn no_growth(sizes: &[u64], images: &[impl AsRef<Path>], repetitions: usize) -> Row {
    let mut times = vec![Vec::new(); images.len()];
    for round in 0..=repetitions {
        for (image, times) in images.iter().zip(&mut times) {
            let time = time_of_count(image.as_ref());
            if round > 0 {
                times.push(time);
            }
        }
    }
    let times: Vec<_> = times
        .into_iter()
        .map(|times| Samples::new(Unit::Seconds, times))
        .collect();
    let shown: Vec<_> = sizes
        .iter()
        .zip(&times)
        .map(|(extents, time)| format!("{}: {time}", ExtentCount(*extents).short()))
        .collect();
    let (Some(first), Some(last)) = (times.first(), times.last()) else {
        unreachable!("there are images");
    };
    let growth = last.median() / first.median();
    Row::plain(
        "count of an image, the probe alone, by its extents",
        shown.join("; "),
        format!("the most to the fewest: {growth:.2}"),
        "none (noise: 1.2)",
        growth <= 1.2,
    )
}

/// What a count leaves in the kernel's memory that cannot be given back, beside filefrag and beside
/// doing nothing. Each time with nothing of the file system in memory before, and the image held
/// open by someone, as QEMU does.
fn slab(bed: &mut Bed, image: &Path, repetitions: usize) -> Row {
    let extents = ExtentCount(tools::xfs_io_stat_nextents(image));
    let mut left = [const { Vec::new() }; 3];
    for _ in 0..repetitions {
        for (who, left) in left.iter_mut().enumerate() {
            bed.cold();
            let held = File::open(image).unwrap();
            let before = settled_slab();
            match who {
                0 => time(&mut scan(image)),
                1 => time(&mut command("true", [])),
                _ => time(&mut command("filefrag", [&image])),
            };
            left.push(settled_slab() - before);
            drop(held);
        }
    }
    let [ours, nothing, filefrag] = left.map(|left| Samples::new(Unit::Bytes, left));
    let wanted = filefrag.median() / 100.0;
    Row::plain(
        format!("count of an image of {extents} extents: change of SUnreclaim, cold"),
        &ours,
        format!("`filefrag` {filefrag}; `true` {nothing}"),
        "none (noise: 1/100 of filefrag's)",
        ours.median() - nothing.median().max(0.0) <= wanted,
    )
}

/// SUnreclaim in bytes, when what has ended a moment ago is freed and counted.
fn settled_slab() -> f64 {
    std::thread::sleep(Duration::from_millis(300));
    // Each processor keeps a part of the count to itself; this collects them
    // (Documentation/admin-guide/sysctl/vm.rst).
    let _ = fs::read("/proc/sys/vm/stat_refresh");
    tools::slab_unreclaimable() as f64
}
