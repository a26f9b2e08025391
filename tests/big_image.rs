//! The images for which fragwatch was made: counted without their maps.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::fs::{self, File};
use std::path::Path;

use serde_json::Value;

use support::bed::drop_caches;
use support::daemon::fragwatch;
use support::expect::{
    Report, Said, Shape, config, map_nodes, metadata_buffers, rcu_barrier, report, scan, traced,
    whole,
};
use support::{Bed, MIB, guest, prepared, tools};

/// By how much the memory grows that the kernel cannot give back, and the nodes of extent maps in
/// it, when `act` runs on a bed of which nothing is in memory. The least of a few times: others use
/// that memory too.
fn growth(bed: &mut Bed, act: impl Fn()) -> (u64, u64) {
    let measures = [tools::slab_unreclaimable, map_nodes];
    let mut least = [u64::MAX; 2];
    for _ in 0..5 {
        bed.cold();
        drop_caches(2);
        rcu_barrier();
        let before = measures.map(|measure| measure());
        act();
        for (n, measure) in measures.iter().enumerate() {
            least[n] = least[n].min(measure().saturating_sub(before[n]));
        }
    }
    (least[0], least[1])
}

/// Buffers of metadata that a bed, of which nothing is in memory, looks for when `act` runs.
fn buffers<T>(bed: &mut Bed, act: impl Fn() -> T) -> (u64, T) {
    bed.cold();
    let before = metadata_buffers(bed.loop_device());
    let result = act();
    (metadata_buffers(bed.loop_device()) - before, result)
}

/// A plain scan of the image finds `extents` and loads nothing.
fn count_loads_nothing(bed: &mut Bed, path: &Path, extents: u64) -> Report {
    let (memory, nodes) = growth(bed, || {
        // A VM has it open, so that what was loaded would stay.
        let _open = File::open(path).unwrap();
        assert_eq!(report([path]).image(path)["extents"], extents);
    });
    assert!(memory < MIB, "{memory}");
    assert!(nodes < extents / 15 / 4, "{nodes}");

    let dir = bed.path().to_owned();
    let (buffers, found) = buffers(bed, || report([&dir]));
    assert_eq!(found.image(path)["extents"], extents);
    assert!(buffers < 50, "{buffers}");

    let log = bed.path().parent().unwrap().join("strace.log");
    let scan = scan(["--json", "--min-size", "0B", bed.path().to_str().unwrap()]);
    assert_eq!(traced(&scan, path, &log), ["FS_IOC_FSGETXATTR"]);
    found
}

#[test]
fn a_million_extents() {
    let extents = 1_000_000;
    let mut bed = support::require!(Bed::fragmented(extents));
    support::require!(tools::have("strace"));
    let path = bed.path().join("vm");
    fs::rename(bed.path().join(prepared::IMAGE), &path).unwrap();
    assert_eq!(tools::xfs_io_stat_nextents(&path), extents);

    let found = count_loads_nothing(&mut bed, &path, extents);
    // Neither its name nor its header makes it an image, but so many extents are worth a line.
    assert_eq!(found.image(&path)["format"], "unknown");
    assert_eq!(found.image(&path)["severity"], "warning");

    // With --map it is left out if it is too large, and nothing is loaded.
    let small = "[sampling]\nmap_max_extents = 999_999";
    let config = config(bed.path().parent().unwrap(), small);
    let map = || {
        let mut command = fragwatch();
        command.args(["scan", "--map", "--config"]).arg(&config);
        Said::by(command.arg(&path))
    };
    let (few, said) = buffers(&mut bed, map);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(said.out.contains("--map --force reads it"), "{}", said.out);
    assert!(few < 50, "{few}");

    // A census of it is no different from a count.
    let dir = bed.path().to_owned();
    let census = || Said::by(scan(["--json", "--census"]).arg(&dir));
    let (few, said) = buffers(&mut bed, census);
    let census: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(census["extents"], extents);
    assert_eq!(census["worst"][0]["path"], path.to_str().unwrap());
    assert!(few < 50, "{few}");

    // When it is read, the measures above see it.
    let map = || whole(scan(["--json", "--map"]).arg(&path));
    let (_, nodes) = growth(&mut bed, || {
        let _open = File::open(&path).unwrap();
        map();
    });
    assert!(nodes > extents / 15 * 9 / 10, "{nodes}");
    let (many, report) = buffers(&mut bed, map);
    assert!(many > 3000, "{many}");
    let shape = Shape::reported(report.image(&path));
    assert_eq!((shape.extents, shape.fragments), (extents, extents));
    assert_eq!((shape.holes, shape.longest), (extents - 1, guest::BLOCK));
    assert_eq!(shape, Shape::of(&path));
    assert_eq!(tools::xfs_io_fiemap_count(&path), extents);
}

#[test]
fn the_headline_image() {
    let mut bed = support::optional!(Bed::headline());
    support::require!(tools::have("strace"));
    let extents = 34_694_398;
    let path = bed.path().join("ffc63a70.disk");
    let found = count_loads_nothing(&mut bed, &path, extents);
    let image = found.image(&path);
    assert_eq!(image["severity"], "critical");
    assert_eq!(image["format"], "raw");
    // Measured: 585 MB when the map is loaded.
    let memory = image["extent_map_memory_bytes"].as_u64().unwrap();
    assert!((580_000_000..=650_000_000).contains(&memory), "{memory}");
    assert_eq!(image["map"], Value::Null);

    let (few, said) = buffers(&mut bed, || Said::by(scan(["--map"]).arg(&path)));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(
        said.out
            .contains("The map was not read: 34,694,398 extents"),
        "{}",
        said.out
    );
    assert!(said.out.contains("Reading it loads about"), "{}", said.out);
    assert!(few < 50, "{few}");
}
