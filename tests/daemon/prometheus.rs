//! promtool and a real Prometheus.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::prometheus::{Prometheus, tool};
use crate::support::{self, Bed, guest, tools};
use crate::watch::{Etc, OFTEN, Watch, until};

#[test]
fn promtool_finds_nothing_to_complain_about() {
    let promtool = support::require!(tool("promtool"));
    let bed = support::require!(Bed::xfs());
    let long = "x".repeat(196) + ".raw";
    let names: [&[u8]; 9] = [
        b"plain.raw",
        b"quo\"te.raw",
        br"back\slash.raw",
        br#"both\".raw"#,
        b"new\nline.raw",
        b"\xff\xfeno utf-8.raw",
        "umläut 🦀.raw".as_bytes(),
        b"{brace=\"x\"} 1.raw",
        long.as_bytes(),
    ];
    for name in names {
        guest::alternate_blocks(&bed.path().join(OsStr::from_bytes(name)), 10);
    }
    let more = "[sampling]\ninterval = \"1s\"\nprobe_timeout = \"1s\"\nmap_interval = \"1s\"\n";
    let watch = Watch::start(&[bed.path()], more);
    let now = watch.until("all maps", |now| {
        now.named("fragwatch_image_fragments").count() == names.len()
    });
    let text = watch.etc.join("metrics");
    fs::write(&text, &now.text).unwrap();
    let checked = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(File::open(&text).unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(
        checked.status.success() && said.is_empty(),
        "{said}\n{}",
        now.text
    );

    // As they are read back: the name, but for what a line cannot hold.
    for shown in [
        "plain.raw",
        "quo\"te.raw",
        r"back\slash.raw",
        r#"both\".raw"#,
        r"new\x0aline.raw",
        r"\xff\xfeno utf-8.raw",
        "umläut 🦀.raw",
        "{brace=\"x\"} 1.raw",
        &long,
    ] {
        let image = bed.path().join(shown);
        assert_eq!(now.extents(&image), Some(10.0), "{shown}\n{}", now.text);
    }
}

#[test]
fn promtool_has_something_to_find() {
    let promtool = support::require!(tool("promtool"));
    let etc = Etc::new();
    etc.write("# TYPE a gauge\na{b=\"\\x\"} 1\n");
    let checked = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(File::open(etc.file()).unwrap())
        .output()
        .unwrap();
    assert!(!checked.status.success());
}

/// Waits until an instant query finds exactly one value.
pub fn found(prometheus: &Prometheus, metric: &str, label: &str, labelled: &Path, value: &str) {
    let ours = |labels: &Value| labels[label] == *labelled.to_str().unwrap();
    until(&format!("{metric} {value}"), || {
        let result = prometheus.query(metric)?;
        let mut ours = result.iter().filter(|(labels, _)| ours(labels));
        (ours.next()?.1 == value && ours.next().is_none()).then_some(())
    });
}

#[test]
fn prometheus_scrapes_it() {
    let program = support::require!(tool("prometheus"));
    let bed = support::require!(Bed::xfs());
    let [goes, stays, odd] =
        ["goes.raw", "stays.raw", "o\"d\\d.raw"].map(|name| bed.path().join(name));
    guest::alternate_blocks(&goes, 10);
    guest::random_direct_writes(&stays, 16 << 20, 1000);
    guest::alternate_blocks(&odd, 30);
    let watch = Watch::start(&[bed.path()], OFTEN);
    let prometheus = Prometheus::start(&program, watch.etc.address);
    let count = tools::xfs_io_stat_nextents(&stays).to_string();
    for (image, extents) in [(&goes, "10"), (&stays, count.as_str()), (&odd, "30")] {
        found(
            &prometheus,
            "fragwatch_image_extents",
            "image",
            image,
            extents,
        );
    }
    let is_up = || {
        let up = prometheus.query("up")?;
        (up.len() == 1 && up[0].1 == "1").then_some(())
    };
    until("that it is up", is_up);
    found(
        &prometheus,
        "fragwatch_probe_stalled",
        "filesystem",
        bed.path(),
        "0",
    );

    // Not after the five minutes for which Prometheus looks back, but with the next scrape.
    fs::remove_file(&goes).unwrap();
    until("its end", || {
        let images = prometheus.query("fragwatch_image_extents")?;
        let is = |(labels, _): &(Value, String)| labels["image"] == *goes.to_str().unwrap();
        (!images.iter().any(is)).then_some(())
    });
    found(
        &prometheus,
        "fragwatch_image_extents",
        "image",
        &stays,
        &count,
    );
    until("that it is up", is_up);
    drop(watch);
    until("that it is down", || {
        (prometheus.query("up")?.first()?.1 == "0").then_some(())
    });
}
