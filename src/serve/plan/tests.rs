use std::path::PathBuf;
use std::time::Duration;

use jiff::civil::{Weekday, time};

use super::*;
use crate::config::settings::{Maintenance, Window};
use crate::maintenance::by_hand::ByHand;
use crate::maintenance::estimate::Estimate;
use crate::maintenance::reason::{self, in_use};
use crate::maintenance::{JitterSeed, User};
use crate::model::{
    Between, Borders, Bytes, BytesPerSecond, Engine, ExtentCount, Outlook, Severity, Unusable,
    UnusableReason,
};
use crate::sys::zone::Zone;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn calendar(start: i8, hours: u64) -> Calendar {
    let window = Window {
        days: vec![Weekday::Saturday, Weekday::Sunday],
        start: time(start, 0, 0, 0),
        duration: Duration::from_secs(hours * 3600),
    };
    let settings = Maintenance {
        timezone: Zone::named("Europe/Berlin").unwrap(),
        windows: vec![window],
        ..Maintenance::default()
    };
    Calendar::new(&settings, JitterSeed::default())
}

fn planned(path: &str, extents: u64, decision: Decision) -> Planned {
    Planned {
        by_hand: None,
        path: PathBuf::from(path),
        mount: Some(PathBuf::from("/srv")),
        severity: Severity::Warning,
        extents: ExtentCount(extents),
        ideal: ExtentCount(13),
        outlook: None,
        decision,
    }
}

fn run(begins: &str, minutes: u64, measured_runs: u32) -> Decision {
    let about = Duration::from_secs(minutes * 60);
    Decision::Runs(PlannedRun {
        engine: Engine::XfsFsr,
        order: 1,
        begins: at(begins),
        ends: at(begins) + about,
        estimate: Estimate {
            about,
            needs: Bytes(118 << 30),
            speed: BytesPerSecond(100 << 20),
            measured_runs,
            stall: Duration::from_millis(500),
        },
    })
}

fn plan() -> Plan {
    let user = User::Vm {
        manager: None,
        node: None,
        name: Some("db-1".to_owned()),
        pid: 4711,
    };
    let below = || {
        let text = "severity ok, below warning";
        Decision::Not(Refusal::new(ReasonCode::BelowSeverity, text))
    };
    let in_use = in_use(&user, None, None);
    let holes = Between {
        low: ExtentCount(81_000),
        likely: ExtentCount(90_000),
        high: ExtentCount(99_000),
    };
    let mut outlook = Outlook::of_map(&Borders {
        joins: 900_000,
        ..Borders::default()
    });
    outlook.borders.holes = holes;
    Plan {
        images: vec![
            planned("/srv/a.img", 6_000_000, run("2026-03-28T01:00Z", 22, 0)),
            Planned {
                outlook: Some(outlook),
                ..planned("/srv/b\n.img", 900_000, run("2026-03-28T01:22Z", 7, 3))
            },
            planned("/srv/db-1.img", 700_000, Decision::Not(in_use)),
            planned("/srv/c.img", 10, below()),
            planned("/srv/d.img", 9, below()),
        ],
    }
}

#[test]
fn it_reads_as_tables_and_windows() {
    let text = render(&plan(), &[], &calendar(1, 4), at("2026-03-28T01:00Z"), None);
    assert_eq!(
        text,
        "\
In the window that is open:
IMAGE             EXTENTS            GAIN  ENGINE   BEGINS    ABOUT    NEEDS
/srv/a.img      6,000,000   not looked at  xfs_fsr  now     22 min*  118 GiB
/srv/b\\x0a.img    900,000  810,000 ±9,000  xfs_fsr  02:22     7 min  118 GiB
* assumed: nothing was measured on its file system yet

Left alone:
IMAGE          EXTENTS  WHY NOT
/srv/db-1.img  700,000  in use by VM db-1 (pid 4711)

2 images are not bad enough.

Windows:
Sat 2026-03-28 01:00 – 05:00 CET  4 h, open now
Sun 2026-03-29 01:00 CET – 06:00 CEST  4 h
Sat 2026-04-04 01:00 – 05:00 CEST  4 h
Sun 2026-04-05 01:00 – 05:00 CEST  4 h
Sat 2026-04-11 01:00 – 05:00 CEST  4 h
Sun 2026-04-12 01:00 – 05:00 CEST  4 h
Sat 2026-04-18 01:00 – 05:00 CEST  4 h
"
    );
}

#[test]
fn a_reason_stands_once_on_a_terminal_and_in_each_line_elsewhere() {
    let not = |path: &str, extents, text: &str| {
        let reason = Refusal::new(ReasonCode::NoTurn, text);
        planned(path, extents, Decision::Not(reason))
    };
    let plan = Plan {
        images: vec![
            not("/srv/a.img", 4, "paused"),
            not("/srv/b.img", 3, "paused (1)"),
            not("/srv/c.img", 2, "paused"),
            not("/srv/d.img", 1, "paused (1)"),
        ],
    };
    let text = |again: [&str; 2]| {
        format!(
            "\nLeft alone:\nIMAGE       EXTENTS  WHY NOT\n\
             /srv/a.img        4  paused\n/srv/c.img        2  {}\n\
             /srv/b.img        3  paused (1)\n/srv/d.img        1  {}\n",
            again[0], again[1]
        )
    };
    let (terminal, file) = (["as above"; 2], ["paused", "paused (1)"]);
    assert_eq!(left_alone_text(&plan, Some(80)), text(terminal));
    assert_eq!(left_alone_text(&plan, None), text(file));
}

#[test]
fn what_operators_can_do_follows_what_is_left_alone() {
    let mut plan = plan();
    plan.images.drain(..2);
    plan.images[0].by_hand = Some(ByHand {
        commands: vec!["one".to_owned(), "another".to_owned()],
        lacks: "It lacks a limit.",
    });
    let now = at("2026-03-28T01:00Z");
    let text = render(&plan, &[], &calendar(1, 4), now, None);
    let part = "bad enough.\n\nBy hand, /srv/db-1.img:\n    one\n    another\n  It lacks a limit.\n\nWindows";
    assert!(text.contains(part), "{text}");
    let json = render_json(&plan, &[], &calendar(1, 4), now, JudgedBy::Counts);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        json["images"][0]["by_hand"],
        serde_json::json!({ "commands": ["one", "another"], "lacks": "It lacks a limit." })
    );
}

#[test]
fn what_lies_ahead_has_its_day() {
    let text = render(
        &plan(),
        &[],
        &calendar(22, 4),
        at("2026-03-26T01:00Z"),
        None,
    );
    assert!(
        text.starts_with("In the window that opens next:\n"),
        "{text}"
    );
    assert!(text.contains("  Sat 02:00  "), "{text}");
    assert!(
        text.contains("\nSat 2026-04-04 22:00 – Sun 02:00 CEST  4 h\n"),
        "{text}"
    );
}

#[test]
fn nothing_to_do_is_said() {
    let calendar = Calendar::new(&Maintenance::default(), JitterSeed::default());
    let plan = Plan { images: Vec::new() };
    assert_eq!(
        render(&plan, &[], &calendar, at("2026-03-28T01:00Z"), None),
        "Nothing is to be defragmented.\n\nNo window is configured, so nothing is defragmented \
             by itself: see [[maintenance.window]] in the configuration.\n"
    );
}

#[test]
fn programs_get_every_image() {
    let line = render_json(
        &plan(),
        &[],
        &calendar(1, 4),
        at("2026-03-28T01:00Z"),
        JudgedBy::Counts,
    );
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["judged_by"], "counts");
    assert_eq!(json["open_until"], 1_774_670_400);
    assert_eq!(json["images"].as_array().unwrap().len(), 5);
    assert_eq!(
        json["windows"][1],
        serde_json::json!({
            "opens": 1_774_742_400, "closes": 1_774_756_800, "seconds": 14_400,
            "opens_local": "2026-03-29T01:00:00+01:00",
            "closes_local": "2026-03-29T06:00:00+02:00",
        })
    );
    assert_eq!(
        json["images"][1],
        serde_json::json!({
            "path": "/srv/b\\x0a.img", "path_hex": "2f7372762f620a2e696d67",
            "filesystem": "/srv", "severity": "warning",
            "extents": 900_000, "ideal_extents": 13,
            "outlook": {
                "extents": 900_000, "looked_at": 900_000,
                "joins": { "low": 900_000, "likely": 900_000, "high": 900_000 },
                "holes": { "low": 81_000, "likely": 90_000, "high": 99_000 },
                "shared": { "low": 0, "likely": 0, "high": 0 },
                "unwritten": { "low": 0, "likely": 0, "high": 0 },
                "long": { "low": 0, "likely": 0, "high": 0 },
            },
            "run": {
                "engine": "xfs_fsr", "order": 1, "begins": 1_774_660_920, "ends": 1_774_661_340,
                "about_seconds": 420, "needs_bytes": 126_701_535_232_u64,
                "bytes_per_second": 104_857_600, "measured_runs": 3, "stall_seconds": 0.5,
                "gain_extents": { "low": 801_000, "likely": 810_000, "high": 819_000 },
            },
            "why_not": null,
            "by_hand": null,
        })
    );
    assert_eq!(
        json["images"][2]["why_not"],
        serde_json::json!({ "code": "in_use", "text": "in use by VM db-1 (pid 4711)" })
    );
}

#[test]
fn an_engine_that_cannot_be_used_is_told_once() {
    let unusable = Unusable {
        reason: UnusableReason::KernelUnknown,
        brief: "kernel 5.14 is not proven".to_owned(),
        text: "kernel 5.14 is not proven, and so on".to_owned(),
    };
    let states = [
        EngineState {
            engine: Engine::XfsFsr,
            unusable: None,
        },
        EngineState {
            engine: Engine::Online,
            unusable: Some(unusable.clone()),
        },
    ];
    assert_eq!(
        unusable_engines(&states),
        "\n! online is not used: kernel 5.14 is not proven, and so on.\n"
    );
    assert_eq!(unusable_engines(&states[..1]), "");
    let off = EngineState {
        engine: Engine::BlockCopy,
        unusable: Some(Unusable {
            reason: UnusableReason::NotConfigured,
            ..unusable.clone()
        }),
    };
    assert_eq!(unusable_engines(&[off]), "");
    let mut plan = plan();
    let user = User::Process {
        name: "rsync".to_owned(),
        pid: 7,
    };
    let online = Some(reason::unusable(&unusable));
    plan.images[2].decision = Decision::Not(in_use(&user, online, None));
    let now = at("2026-03-28T01:00Z");
    let line = render_json(&plan, &states, &calendar(1, 4), now, JudgedBy::Daemon);
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        json["engines"],
        serde_json::json!([
            { "engine": "xfs_fsr", "usable": true, "reason": null, "text": null },
            { "engine": "online", "usable": false, "reason": "kernel_unknown",
              "text": "kernel 5.14 is not proven, and so on" },
        ])
    );
    let why_not = &json["images"][2]["why_not"];
    assert_eq!(why_not["code"], "in_use");
    assert_eq!(
        why_not["online"],
        serde_json::json!({ "code": "kernel", "text": "kernel 5.14 is not proven" })
    );
}
