//! The pages, every metric, and images and file systems that come and go.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::scrape::Scrape;
use crate::support::guest::{self, BLOCK};
use crate::support::{self, Bed, MIB, Writer, http, tools};
use crate::watch::{OFTEN, PATIENCE, WHEN_ASKED, Watch, until};

#[test]
fn the_pages() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("a <b>.raw");
    guest::alternate_blocks(&image, 1234);
    let watch = Watch::start(&[bed.path()], WHEN_ASKED);

    let metrics = watch.daemon.get("/metrics");
    assert_eq!(
        metrics.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let health = watch.daemon.get("/healthz");
    assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
    let landing = watch.daemon.get("/");
    assert_eq!(landing.status, 200);
    let kind = landing.header("content-type").unwrap();
    assert!(kind.starts_with("text/html"), "{kind}");
    for part in ["1 image<", "/metrics"] {
        assert!(landing.body.contains(part), "no {part:?}: {}", landing.body);
    }
    let images = watch.daemon.get("/images").body;
    for part in ["a &#60;b&#62;.raw<", ">1,234\n"] {
        assert!(images.contains(part), "no {part:?}: {images}");
    }

    let ask = |method, path| http(watch.etc.address, method, path).unwrap();
    assert_eq!(ask("GET", "/metrics/x").status, 404);
    assert_eq!(ask("GET", "/favicon.ico").status, 404);
    assert_eq!(ask("POST", "/metrics").status, 405);
    for path in ["/", "/metrics", "/healthz"] {
        let (head, get) = (ask("HEAD", path), ask("GET", path));
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        assert_eq!(head.header("content-type"), get.header("content-type"));
    }
}

#[test]
fn every_metric_has_the_value_that_other_tools_find() {
    let xfs = support::require!(Bed::xfs());
    let ext4 = support::require!(Bed::ext4());
    fs::create_dir(xfs.path().join("deep")).unwrap();
    let raw = xfs.path().join("deep/a.raw");
    let qcow2 = xfs.path().join("b.qcow2");
    let other = ext4.path().join("c.img");
    guest::random_direct_writes(&raw, 64 * MIB, 3000);
    guest::random_direct_writes(&qcow2, 16 * MIB, 400);
    overwrite(&qcow2, b"QFI\xfb");
    guest::random_direct_writes(&other, 16 * MIB, 300);
    fs::write(xfs.path().join("notes.txt"), "no image").unwrap();
    xfs.sync();
    ext4.sync();
    let more = "[sampling]\ninterval = \"1s\"\nprobe_timeout = \"1s\"\nmap_interval = \"1s\"\n\
                [thresholds]\nwarning = { extents = 350 }\ncritical = { extents = 1000 }\n";
    let watch = Watch::start(&[xfs.path(), ext4.path()], more);
    let all_maps = |now: &Scrape| now.named("fragwatch_image_fragments").count() == 3;
    let now = watch.until("all maps", all_maps);

    let images = [
        (&raw, xfs.path(), "raw", 2.0),
        (&qcow2, xfs.path(), "qcow2", 1.0),
        (&other, ext4.path(), "raw", 0.0),
    ];
    for (image, mount, format, severity) in images {
        let stat = fs::metadata(image).unwrap();
        let value = |name: &str| now.of_image(&format!("fragwatch_image_{name}"), image);
        assert_eq!(value("size_bytes"), Some(stat.size() as f64));
        assert_eq!(value("allocated_bytes"), Some(stat.blocks() as f64 * 512.0));
        assert_eq!(value("severity"), Some(severity), "{image:?}");
        assert_eq!(value("extents"), Some(counted(image, mount == xfs.path())));
        assert_eq!(value("fragments"), Some(fragments(image)), "{image:?}");
        let info = [
            ("image", image.to_str().unwrap()),
            ("filesystem", mount.to_str().unwrap()),
            ("format", format),
            ("vm", ""),
        ];
        assert_eq!(now.value("fragwatch_image_info", &info), Some(1.0));
    }
    for name in ["extents", "fragments", "size_bytes", "severity", "info"] {
        let name = format!("fragwatch_image_{name}");
        assert_eq!(now.named(&name).count(), 3, "{name}");
    }

    let on_xfs = counted(&raw, true) + counted(&qcow2, true);
    for (mount, extents) in [(xfs.path(), on_xfs), (ext4.path(), counted(&other, false))] {
        let stat = rustix::fs::statvfs(mount).unwrap();
        let value = |name: &str| now.of_filesystem(&format!("fragwatch_filesystem_{name}"), mount);
        assert_eq!(value("extents"), Some(extents));
        assert_eq!(
            value("free_bytes"),
            Some((stat.f_bavail * stat.f_frsize) as f64)
        );
        assert_eq!(
            value("size_bytes"),
            Some((stat.f_blocks * stat.f_frsize) as f64)
        );
        assert_eq!(now.stalled(mount), Some(0.0));
    }
    assert_eq!(now.named("fragwatch_probe_stalled").count(), 2);

    // Of XFS only; xfs-facts: 17 to 34 bytes an extent.
    let memory = now.value("fragwatch_extent_map_memory_bytes", &[]).unwrap();
    assert!(
        (17.0 * on_xfs..34.0 * on_xfs).contains(&memory),
        "{memory} for {on_xfs}"
    );
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    let read = now.value("fragwatch_config_reload_timestamp_seconds", &[]);
    for time in [now.swept(), read] {
        assert!(
            (seconds - 60.0..=seconds).contains(&time.unwrap()),
            "{time:?}"
        );
    }
    assert_eq!(now.value("fragwatch_config_reload_success", &[]), Some(1.0));
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(now.value("fragwatch_build_info", &version), Some(1.0));
    assert_eq!(now.errors(), 0.0);
    for (method, least) in [("count", 3.0), ("map", 3.0)] {
        let count = now.value(
            "fragwatch_probe_duration_seconds_count",
            &[("method", method)],
        );
        assert!(count >= Some(least), "{method}: {count:?}");
        let all = [("method", method), ("le", "+Inf")];
        assert_eq!(
            now.value("fragwatch_probe_duration_seconds_bucket", &all),
            count
        );
    }
}

/// Extents as the kernel counts them: XFS all records, others what FIEMAP lists.
fn counted(image: &Path, on_xfs: bool) -> f64 {
    let count = if on_xfs {
        tools::xfs_io_stat_nextents(image)
    } else {
        tools::xfs_io_fiemap_count(image)
    };
    count as f64
}

/// Runs on disk, by the list of filefrag.
fn fragments(image: &Path) -> f64 {
    let extents = tools::filefrag_extents(image);
    let breaks = extents
        .windows(2)
        .filter(|pair| pair[0].physical + pair[0].length != pair[1].physical);
    (breaks.count() + 1) as f64
}

fn overwrite(path: &Path, start: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(start, 0).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn counts_follow_a_guest_that_writes() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("vm.raw");
    fs::File::create(&image)
        .unwrap()
        .set_len(1024 * MIB)
        .unwrap();
    let watch = Watch::start(&[bed.path()], WHEN_ASKED);
    assert_eq!(watch.scrape().extents(&image), Some(0.0));
    let writer = Writer::start(&image, Some(1000));
    let mut last = 100.0;
    for _ in 0..3 {
        let more = || watch.sweep().extents(&image).filter(|now| *now > last);
        last = until("more extents", more);
    }
    writer.stop();
    bed.sync();
    let end = tools::xfs_io_stat_nextents(&image) as f64;
    assert!(last <= end, "{last} of {end}");
    until("the last count", || {
        (watch.sweep().extents(&image) == Some(end)).then_some(())
    });
    assert_eq!(watch.scrape().errors(), 0.0);
}

#[test]
fn images_come_move_and_go() {
    let bed = support::require!(Bed::xfs());
    let [a, b, c, link] = ["a.raw", "b.raw", "c.raw", "z.raw"].map(|name| bed.path().join(name));
    guest::alternate_blocks(&a, 10);
    let watch = Watch::start(&[bed.path()], WHEN_ASKED);
    assert_eq!(watch.scrape().extents(&a), Some(10.0));

    guest::alternate_blocks(&b, 20);
    let now = watch.sweep();
    assert_eq!((now.extents(&a), now.extents(&b)), (Some(10.0), Some(20.0)));

    fs::rename(&b, &c).unwrap();
    let now = watch.sweep();
    assert_eq!((now.extents(&b), now.extents(&c)), (None, Some(20.0)));
    assert!(!now.mentions(&b), "{}", now.text);
    assert_eq!(watch.log("is now").len(), 1);

    // The names are exchanged, and no series gets lost.
    fs::rename(&a, &b).unwrap();
    fs::rename(&c, &a).unwrap();
    fs::rename(&b, &c).unwrap();
    let now = watch.sweep();
    assert_eq!((now.extents(&a), now.extents(&c)), (Some(20.0), Some(10.0)));

    // Another file under the same name.
    guest::alternate_blocks(&b, 30);
    fs::rename(&b, &a).unwrap();
    let now = watch.sweep();
    assert_eq!((now.extents(&a), now.extents(&c)), (Some(30.0), Some(10.0)));
    let size = fs::metadata(&a).unwrap().len() as f64;
    assert_eq!(now.of_image("fragwatch_image_size_bytes", &a), Some(size));

    // One image, whichever name is met first.
    fs::hard_link(&a, &link).unwrap();
    let now = watch.sweep();
    assert_eq!(now.named("fragwatch_image_extents").count(), 2);
    let sum = now.of_filesystem("fragwatch_filesystem_extents", bed.path());
    assert_eq!(sum, Some(40.0));
    fs::remove_file(&link).unwrap();

    fs::remove_file(&a).unwrap();
    let now = watch.sweep();
    assert!(!now.mentions(&a), "{}", now.text);
    assert_eq!(now.extents(&c), Some(10.0));
    let gone = watch.log("is gone");
    assert!(
        gone.last().unwrap().contains(a.to_str().unwrap()),
        "{gone:?}"
    );
    assert_eq!(now.errors(), 0.0);
}

#[test]
fn what_is_unmounted_is_told_no_more() {
    let stays = support::require!(Bed::xfs());
    let mut goes = support::require!(Bed::xfs());
    let [here, there] = [stays.path().join("a.raw"), goes.path().join("b.raw")];
    guest::alternate_blocks(&here, 10);
    guest::alternate_blocks(&there, 20);
    let watch = Watch::start(&[stays.path(), goes.path()], WHEN_ASKED);
    assert_eq!(watch.scrape().extents(&there), Some(20.0));

    // The daemon runs and is not in its way.
    goes.umount();
    let now = watch.sweep();
    assert!(
        !now.mentions(&there) && !now.mentions(goes.path()),
        "{}",
        now.text
    );
    assert_eq!(now.extents(&here), Some(10.0));
    assert_eq!(now.stalled(stays.path()), Some(0.0));
    // That the mount point is an empty directory now is no error.
    assert_eq!(now.errors(), 0.0);

    goes.mount();
    let now = watch.sweep();
    assert_eq!(now.extents(&there), Some(20.0));
    assert_eq!(now.stalled(goes.path()), Some(0.0));
}

#[test]
fn a_path_that_is_missing_is_told_once_and_watched_when_it_appears() {
    let bed = support::require!(Bed::xfs());
    let [dir, file] = ["later", "one.raw"].map(|name| bed.path().join(name));
    let watch = Watch::start(&[&dir, &file], OFTEN);
    let now = watch.sweeps(2);
    assert_eq!(now.named("fragwatch_image_extents").count(), 0);
    assert!(now.errors() >= 6.0, "each sweep counts: {}", now.errors());
    for path in [&dir, &file] {
        let said = watch.log(path.to_str().unwrap());
        let [line] = &said[..] else {
            panic!("{said:?}")
        };
        assert!(
            line.contains("WARN") && line.contains("No such file"),
            "{line}"
        );
    }

    let image = dir.join("a.raw");
    fs::create_dir(&dir).unwrap();
    guest::alternate_blocks(&image, 10);
    guest::alternate_blocks(&file, 20);
    let there =
        |now: &Scrape| now.extents(&image) == Some(10.0) && now.extents(&file) == Some(20.0);
    watch.until("both images", there);
    watch.daemon.wait_for_stderr("can be read again", PATIENCE);

    fs::remove_file(&file).unwrap();
    watch.until("its end", |now| !now.mentions(&file));
    assert_eq!(
        watch.log("one.raw: No such file").len(),
        2,
        "it is told anew"
    );
}

#[test]
fn two_thousand_images_of_one_directory() {
    let bed = support::require!(Bed::xfs());
    for n in 0..2000 {
        guest::alternate_blocks(&bed.path().join(format!("disk-{n}.raw")), 1 + n % 5);
    }
    let watch = Watch::start(&[bed.path()], WHEN_ASKED);
    let now = watch.scrape();
    assert_eq!(now.named("fragwatch_image_extents").count(), 2000);
    for n in 0..2000 {
        let image = bed.path().join(format!("disk-{n}.raw"));
        assert_eq!(now.extents(&image), Some((1 + n % 5) as f64), "{image:?}");
    }
    let sum = now.of_filesystem("fragwatch_filesystem_extents", bed.path());
    assert_eq!(sum, Some(6000.0));
    assert!(watch.daemon.get("/").body.contains("2,000 images"));

    fs::remove_file(bed.path().join("disk-7.raw")).unwrap();
    let now = watch.sweep();
    assert_eq!(now.named("fragwatch_image_extents").count(), 1999);
    assert_eq!(now.errors(), 0.0);
}

#[test]
fn names_that_look_alike_when_they_are_shown_do_not_break_the_page() {
    let bed = support::require!(Bed::xfs());
    let named = |name: &[u8]| bed.path().join(OsStr::from_bytes(name));
    guest::alternate_blocks(&named(b"a\nb.raw"), 10);
    guest::alternate_blocks(&named(br"a\x0ab.raw"), 20);
    guest::alternate_blocks(&named(b"c.raw"), 30);
    let watch = Watch::start(&[bed.path()], WHEN_ASKED);
    // The scrape fails if a series is there twice.
    let now = watch.scrape();
    let alike = now.extents(&named(br"a\x0ab.raw"));
    assert!(alike == Some(10.0) || alike == Some(20.0), "{}", now.text);
    assert_eq!(now.extents(&named(b"c.raw")), Some(30.0));
    // Both count where no name is needed.
    let sum = now.of_filesystem("fragwatch_filesystem_extents", bed.path());
    assert_eq!(sum, Some(60.0));
    assert!(
        now.of_image("fragwatch_image_size_bytes", &named(b"c.raw")) == Some(59.0 * BLOCK as f64)
    );
}
