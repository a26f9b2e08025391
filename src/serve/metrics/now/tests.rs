use super::*;
use crate::assess::Reason;
use crate::model::free_space::Summary;
use crate::model::{
    Bytes, Engine, ExtentCount, ExtentsPerDay, Filesystem, FilesystemKind, Forecast, Format,
    Growth, ImageId, ImageKey, Opener, Owner, Pace, Sample, Trend, UnixTime, Unknown, Vm,
};
use crate::serve::metrics::ImageMetrics;
use crate::serve::view::ImageView;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

fn sample(path: &[u8]) -> Sample {
    Sample {
        id: ImageId {
            device: 1,
            inode: 2,
        },
        key: Ok(ImageKey {
            filesystem: "1234".to_owned(),
            inode: 2,
            generation: 0,
        }),
        path: PathBuf::from(OsStr::from_bytes(path)),
        format: Format::Qcow2,
        extents: ExtentCount(34_694_398),
        size: Bytes(1 << 40),
        allocated: Bytes(4096),
        extent_size_hint: Bytes(0),
        directory_hint: Bytes(0),
        cow_hint: Bytes(0),
        qcow2: None,
    }
}

const UNKNOWN: Growth = Growth {
    trend: Err(Unknown::TooFewSamples),
    at_most: None,
    samples: 0,
    since: UnixTime(0),
    watched: Duration::ZERO,
    reach: Duration::ZERO,
};

/// An image that is ok, of which nothing but its sample and owner is known.
fn view<'a>(sample: &'a Sample, owner: &'a Owner) -> ImageView<'a> {
    ImageView {
        sample,
        owner,
        map: None,
        growth: &UNKNOWN,
        forecast: Forecast::Never,
        severity: Severity::Ok,
        reason: Reason::BelowAll,
        filesystem: None,
    }
}

/// The whole text of a sweep.
fn render_sweep(
    images: &[ImageView<'_>],
    filesystems: &[FilesystemView<'_>],
    host: &HostView,
    swept: Option<f64>,
) -> String {
    let (metrics, mut place) = (ImageMetrics::new(images), 0);
    let chunks = std::iter::from_fn(|| metrics.chunk(&mut place));
    chunks.collect::<String>() + &super::render_sweep(images, filesystems, host, swept)
}

fn lines(text: &str, name: &str) -> Vec<String> {
    let is = |line: &&str| {
        line.split(['{', ' '])
            .next()
            .and_then(|it| it.strip_prefix("fragwatch_"))
            == Some(name)
    };
    text.lines().filter(is).map(str::to_owned).collect()
}

#[test]
fn an_image_is_labelled_with_its_path() {
    let sample = sample(b"/srv/a.qcow2");
    let opener = Opener {
        vm: Some(Vm {
            name: Some("db\n1".to_owned()),
            ..Vm::default()
        }),
        ..Opener::default()
    };
    let owner = Owner {
        openers: vec![opener],
    };
    let filesystem = Filesystem {
        mount: PathBuf::from("/srv"),
        type_name: "xfs".to_owned(),
        kind: FilesystemKind::Xfs,
        uuid: None,
        features: None,
        size: Bytes(10),
        free: Bytes(5),
        block_size: Bytes(4096),
    };
    let rate = ExtentsPerDay(86_400.0);
    let growth = Growth {
        trend: Ok(Trend {
            rate,
            low: rate,
            high: rate,
            pace: Pace::Steady,
        }),
        ..UNKNOWN
    };
    let now = ImageView {
        sample: &sample,
        owner: &owner,
        map: None,
        growth: &growth,
        forecast: Forecast::Never,
        severity: Severity::Critical,
        reason: Reason::BelowAll,
        filesystem: Some(&filesystem),
    };
    let mut space = Summary::new(Bytes(1 << 20), Bytes(4096), Bytes(1 << 20));
    space.add(0, 4096);
    space.add(8192, 65_536);
    let space = space.finish();
    let filesystem = FilesystemView {
        filesystem: &filesystem,
        extents: ExtentCount(7),
        space: Some(&space),
    };
    let text = render_sweep(&[now], &[filesystem], &HostView::default(), Some(12.5));
    assert_eq!(
        lines(&text, "image_extents"),
        ["fragwatch_image_extents{image=\"/srv/a.qcow2\"} 34694398"]
    );
    assert_eq!(
        lines(&text, "image_severity"),
        ["fragwatch_image_severity{image=\"/srv/a.qcow2\"} 2"]
    );
    assert_eq!(
        lines(&text, "image_in_use"),
        ["fragwatch_image_in_use{image=\"/srv/a.qcow2\"} 1"]
    );
    assert_eq!(lines(&text, "image_fragments"), [""; 0]);
    assert_eq!(
        lines(&text, "image_extents_growth_per_second"),
        ["fragwatch_image_extents_growth_per_second{image=\"/srv/a.qcow2\"} 1"]
    );
    assert_eq!(lines(&text, "image_seconds_to_critical"), [""; 0]);
    assert_eq!(lines(&text, "host_severity"), ["fragwatch_host_severity 0"]);
    assert_eq!(
        lines(&text, "image_info"),
        [
            "fragwatch_image_info{image=\"/srv/a.qcow2\",vm=\"db\\\\x0a1\",filesystem=\"/srv\",format=\"qcow2\"} 1"
        ]
    );
    assert_eq!(
        lines(&text, "bad_image_severity"),
        ["fragwatch_bad_image_severity{image=\"/srv/a.qcow2\",vm=\"db\\\\x0a1\",in_use=\"1\"} 2"]
    );
    assert_eq!(
        lines(&text, "images"),
        [
            "fragwatch_images{severity=\"0\"} 0",
            "fragwatch_images{severity=\"1\"} 0",
            "fragwatch_images{severity=\"2\"} 1",
        ]
    );
    assert_eq!(
        lines(&text, "vm_extents"),
        ["fragwatch_vm_extents{vm=\"db\\\\x0a1\"} 34694398"]
    );
    assert_eq!(
        lines(&text, "extents_growth_per_second"),
        ["fragwatch_extents_growth_per_second 1"]
    );
    assert_eq!(
        lines(&text, "filesystem_extents"),
        ["fragwatch_filesystem_extents{filesystem=\"/srv\"} 7"]
    );
    assert_eq!(
        lines(&text, "filesystem_largest_free_extent_bytes"),
        ["fragwatch_filesystem_largest_free_extent_bytes{filesystem=\"/srv\"} 65536"]
    );
    let buckets = lines(&text, "filesystem_free_extents_bucket");
    assert_eq!(buckets.len(), 11);
    for (bucket, end, count) in [
        (0, "4095", 0),
        (1, "16383", 1),
        (2, "65535", 1),
        (3, "262143", 2),
    ] {
        let labels = format!("{{filesystem=\"/srv\",le=\"{end}\"}}");
        let expected = format!("fragwatch_filesystem_free_extents_bucket{labels} {count}");
        assert_eq!(buckets[bucket], expected);
    }
    assert_eq!(
        lines(&text, "filesystem_free_extents_sum"),
        ["fragwatch_filesystem_free_extents_sum{filesystem=\"/srv\"} 69632"]
    );
    assert_eq!(
        lines(&text, "sweep_timestamp_seconds"),
        ["fragwatch_sweep_timestamp_seconds 12.5"]
    );
}

#[test]
fn an_image_that_is_ok_and_one_that_is_not_among_the_worst_are_not_chosen() {
    let owner = Owner::default();
    let samples: Vec<_> = (0..25_u64)
        .map(|n| Sample {
            extents: ExtentCount(1000 - n),
            ..sample(format!("/srv/{n:02}").as_bytes())
        })
        .collect();
    let mut images: Vec<_> = samples.iter().map(|sample| view(sample, &owner)).collect();
    images[24].severity = Severity::Warning;
    let text = render_sweep(&images, &[], &HostView::default(), None);
    assert_eq!(
        lines(&text, "bad_image_severity"),
        ["fragwatch_bad_image_severity{image=\"/srv/24\",vm=\"\",in_use=\"0\"} 1"]
    );
    let worst = lines(&text, "worst_image_extents");
    let series = |n: u64| format!("fragwatch_worst_image_extents{{image=\"/srv/{n:02}\",vm=\"\"}}");
    let expected: Vec<_> = (0..20)
        .map(|n| format!("{} {}", series(n), 1000 - n))
        .collect();
    assert_eq!(worst, expected);
}

#[test]
fn an_engine_has_its_reason_as_a_label() {
    let state = |engine, reason: Option<&str>| status::EngineState {
        engine,
        usable: reason.is_none(),
        reason: reason.map(str::to_owned),
        text: reason.map(str::to_owned),
    };
    let text = render_engines(&[
        state(Engine::XfsFsr, None),
        state(Engine::Online, Some("kernel_known_bad")),
    ]);
    let mut lines = lines(&text, "engine_usable");
    lines.sort();
    assert_eq!(
        lines,
        [
            "fragwatch_engine_usable{engine=\"online\",reason=\"kernel_known_bad\"} 0",
            "fragwatch_engine_usable{engine=\"xfs_fsr\",reason=\"\"} 1",
        ]
    );
}

#[test]
fn any_name_gives_a_right_label() {
    // What Prometheus must read back: one backslash before each escape of ours.
    for (path, expected) in [
        (&b"/a\"b"[..], r#"/a\"b"#),
        (b"/a\\b", r"/a\\b"),
        (b"/a\\\\\"", r#"/a\\\\\""#),
        (b"/a\nb\xff", r"/a\\x0ab\\xff"),
        (b"/a\\", r"/a\\"),
    ] {
        let (sample, owner) = (sample(path), Owner::default());
        let now = view(&sample, &owner);
        let text = render_sweep(&[now], &[], &HostView::default(), None);
        let line = format!("fragwatch_image_extents{{image=\"{expected}\"}} 34694398");
        assert_eq!(lines(&text, "image_extents"), [line]);
    }
}

#[test]
fn images_that_are_shown_alike_have_a_series_each() {
    let (first, mut second) = (sample(b"/srv/a\nb"), sample(br"/srv/a\x0ab"));
    second.extents = ExtentCount(7);
    assert_eq!(
        crate::model::path::shown(&first.path),
        crate::model::path::shown(&second.path)
    );
    // An image that was replaced while its file system hangs.
    let mut third = second.clone();
    third.extents = ExtentCount(8);
    let owner = Owner::default();
    let images = [&first, &second, &third].map(|sample| view(sample, &owner));
    let text = render_sweep(&images, &[], &HostView::default(), None);
    let expected = [
        r#"fragwatch_image_extents{image="/srv/a\\x0ab"} 34694398"#,
        r#"fragwatch_image_extents{image="/srv/a\\x5cx0ab"} 8"#,
    ];
    assert_eq!(lines(&text, "image_extents"), expected);
    assert_eq!(lines(&text, "image_info").len(), 2, "{text}");
    let text = render_stalls(
        [false, true]
            .map(|stalled| (Path::new("/srv"), stalled))
            .into_iter(),
    );
    assert_eq!(
        lines(&text, "probe_stalled"),
        ["fragwatch_probe_stalled{filesystem=\"/srv\"} 1"]
    );
}

#[test]
fn a_long_text_comes_in_chunks_with_one_header_for_each_metric() {
    let owner = Owner::default();
    let samples: Vec<_> = (0..2000)
        .map(|n| sample(format!("/srv/{n:04}.img").as_bytes()))
        .collect();
    let images: Vec<_> = samples.iter().map(|sample| view(sample, &owner)).collect();
    let (metrics, mut place) = (ImageMetrics::new(&images), 0);
    let chunks: Vec<_> = std::iter::from_fn(|| metrics.chunk(&mut place)).collect();
    assert!(chunks.len() > 5, "{}", chunks.len());
    let text = chunks.concat();
    // Extents, size, allocated, severity, in use, info.
    assert_eq!(text.matches("# TYPE ").count(), 6);
    for name in ["image_extents", "image_in_use", "image_info"] {
        assert_eq!(lines(&text, name).len(), 2000, "{name}");
    }
}
