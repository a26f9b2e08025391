//! The images for which fragwatch was made: counted without their maps.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use support::bed::drop_caches;
use support::daemon::fragwatch;
use support::expect::{
    Report, Said, Shape, config, map_nodes, metadata_buffers, rcu_barrier, report, scan, traced,
    whole,
};
use support::{Bed, MIB, guest, prepared, tools};

/// By how much the memory grows that the kernel cannot give back, and the nodes of extent maps in
/// it, when `act` runs on a bed of which nothing is in memory and somebody, as a VM, has the image
/// open, so that what is loaded stays. A few times: others use that memory too.
fn growth(bed: &mut Bed, image: &Path, act: impl Fn()) -> Vec<(u64, u64)> {
    let once = |bed: &mut Bed| {
        bed.cold();
        drop_caches(2);
        rcu_barrier();
        let _open = File::open(image).unwrap();
        let (memory, nodes) = (tools::slab_unreclaimable(), map_nodes());
        act();
        let grown = |now: u64, before| now.saturating_sub(before);
        (
            grown(tools::slab_unreclaimable(), memory),
            grown(map_nodes(), nodes),
        )
    };
    (0..5).map(|_| once(bed)).collect()
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
    let growth = growth(bed, path, || {
        assert_eq!(report([path]).image(path)["extents"], extents);
    });
    assert!(growth.iter().any(|(memory, _)| *memory < MIB), "{growth:?}");
    let few = extents / 15 / 4;
    assert!(growth.iter().any(|(_, nodes)| *nodes < few), "{growth:?}");

    let dir = bed.path().to_owned();
    let (buffers, found) = buffers(bed, || report([&dir]));
    assert_eq!(found.image(path)["extents"], extents);
    assert!(buffers < 50, "{buffers}");

    let log = bed.path().parent().unwrap().join("strace.log");
    let scan = scan(["--json", "--min-size", "0B", bed.path().to_str().unwrap()]);
    // The others identify the file. XFS_IOC_FSGEOMETRY, which strace shows by its number, reads the
    // superblock in memory (xfs_fs_geometry, fs/xfs/libxfs/xfs_sb.c); the rest, the inode.
    let asked = ["FS_IOC_FSGETXATTR", "_IOC(_IOC_READ", "FS_IOC_GETVERSION"];
    assert_eq!(traced(&scan, path, &log), asked);
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
    let growth = growth(&mut bed, &path, || drop(map()));
    let all = extents / 15;
    let most = growth.iter().map(|(_, nodes)| *nodes).max();
    assert!(most > Some(all * 9 / 10), "{growth:?}");
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
    nothing_to_gain(&bed, &path);
}

/// Its extents lie between holes: neither plan nor run promises anything, and where a VM has its map
/// loaded, that is known at once.
fn nothing_to_gain(bed: &Bed, path: &Path) {
    let keys = "[thresholds]\nwarning = { extents = 1000 }\n[defrag]\nmax_io_pressure = 100\n\
        keep_free = \"0%\"\n[[maintenance.window]]\nstart = \"00:00\"\nduration = \"24h\"\n\
        days = [\"Mon\", \"Tue\", \"Wed\", \"Thu\", \"Fri\", \"Sat\", \"Sun\"]\n";
    let images = format!("[images]\npaths = [{:?}]\n{keys}", bed.path());
    let config = bed.path().parent().unwrap().join("plan.toml");
    fs::write(&config, images).unwrap();
    let answer = |mut command: Command| {
        let said = Said::by(command.env("STATE_DIRECTORY", config.parent().unwrap()));
        serde_json::from_str::<Value>(&said.out).expect(&said.err)
    };
    let plan = || {
        let mut command = fragwatch();
        command.args(["plan", "--json", "--config"]).arg(&config);
        command
    };
    let planned = answer(plan());
    assert_eq!(planned["images"][0]["outlook"], Value::Null, "{planned}");
    let open = File::open(path).unwrap();
    // As a VM does, the first read loads the map.
    (&open).read_exact(&mut [0]).unwrap();
    let memory = tools::slab_unreclaimable();
    let planned = answer(plan());
    let why = &planned["images"][0]["why_not"];
    assert_eq!(why["code"], "little_gain", "{planned}");
    assert!(
        why["text"].as_str().unwrap().contains("behind holes"),
        "{why}"
    );
    let mut defrag = fragwatch();
    defrag.args(["defrag", "--json", "--force-window", "--config"]);
    defrag.arg(&config).arg(path);
    let run = answer(defrag);
    assert_eq!(run["runs"][0]["guard"], "little_gain", "{run}");
    let grown = tools::slab_unreclaimable().saturating_sub(memory);
    assert!(grown < 100 * MIB, "{grown}");
    drop(open);
}
