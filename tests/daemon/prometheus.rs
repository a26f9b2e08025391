//! promtool and a real Prometheus.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::child::Child;
use crate::support::{self, Bed, Here, free_address, guest, http_get, tools};
use crate::watch::{Etc, OFTEN, Watch, until};

/// Where `tests/run` puts it, or the machine has it.
pub fn tool(name: &str) -> Here<PathBuf> {
    tools::have(name).or_else(|missing| {
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/usr/bin");
        let tool = unpacked.join(name);
        tool.is_file().then_some(tool).ok_or(missing)
    })
}

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

/// A Prometheus that scrapes one daemon each second.
pub struct Prometheus {
    address: SocketAddr,
    // Ends before its directory goes.
    _process: Child,
    _dir: Etc,
}

impl Prometheus {
    pub fn start(program: &Path, daemon: SocketAddr) -> Prometheus {
        let dir = Etc::new();
        let address = free_address();
        fs::write(
            dir.join("prometheus.yml"),
            format!(
                "global: {{scrape_interval: 1s}}\nscrape_configs:\n\
                 - {{job_name: fragwatch, static_configs: [{{targets: [\"{daemon}\"]}}]}}\n"
            ),
        )
        .unwrap();
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
        let process = Child::spawn(
            Command::new(program)
                .arg(flag("config.file", &dir.join("prometheus.yml")))
                .arg(flag("storage.tsdb.path", &dir.join("data")))
                .arg(format!("--web.listen-address={address}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::create(dir.join("log")).unwrap()),
        )
        .unwrap();
        Prometheus {
            address,
            _process: process,
            _dir: dir,
        }
    }

    /// What an instant query of a metric finds: labels and values.
    pub fn query(&self, metric: &str) -> Option<Vec<(Value, String)>> {
        let path = format!("/api/v1/query?query={metric}");
        let answer = http_get(self.address, &path).ok()?;
        let json: Value = serde_json::from_str(&answer.body).ok()?;
        let result = json["data"]["result"].as_array()?.iter();
        let value =
            |one: &Value| Some((one["metric"].clone(), one["value"][1].as_str()?.to_owned()));
        result.map(value).collect()
    }

    /// Waits until an instant query finds exactly one value.
    pub fn until(&self, metric: &str, label: &str, labelled: &Path, value: &str) {
        let found = |label_value: &Value| label_value[label] == *labelled.to_str().unwrap();
        until(&format!("{metric} {value}"), || {
            let result = self.query(metric)?;
            let mut ours = result.iter().filter(|(labels, _)| found(labels));
            (ours.next()?.1 == value && ours.next().is_none()).then_some(())
        });
    }
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
        prometheus.until("fragwatch_image_extents", "image", image, extents);
    }
    let up = prometheus.query("up").unwrap();
    assert_eq!(up.len(), 1);
    assert_eq!(up[0].1, "1");
    prometheus.until("fragwatch_probe_stalled", "filesystem", bed.path(), "0");

    // Not after the five minutes for which Prometheus looks back, but with the next scrape.
    fs::remove_file(&goes).unwrap();
    until("its end", || {
        let images = prometheus.query("fragwatch_image_extents")?;
        let is = |(labels, _): &(Value, String)| labels["image"] == *goes.to_str().unwrap();
        (!images.iter().any(is)).then_some(())
    });
    prometheus.until("fragwatch_image_extents", "image", &stays, &count);
    assert_eq!(prometheus.query("up").unwrap()[0].1, "1");
    drop(watch);
    until("that it is down", || {
        (prometheus.query("up")?.first()?.1 == "0").then_some(())
    });
}
