//! Formats a plan for `fragwatch plan` and for `/v1/plan`: what is defragmented next, why
//! everything else is left alone, and when the windows are.

use std::fmt::Write as _;
use std::path::Path;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};
use serde::Serialize;

use super::status;
use crate::maintenance::{Basis, Calendar, Decision, Opening, Plan, Planned, PlannedRun};
use crate::model::path::{hex_unless_exact, shown};
use crate::model::{
    Between, Bytes, BytesPerSecond, Engine, EngineState, ExtentCount, Outlook, ReasonCode, Refusal,
    Roughly, Severity,
};
use crate::table::TextTable;

const WINDOWS: usize = 7;

/// The plan as text for people; `width` is that of their terminal.
pub fn render(
    plan: &Plan,
    engines: &[EngineState],
    calendar: &Calendar,
    now: Timestamp,
    width: Option<u16>,
) -> String {
    let mut text = runs(plan, calendar, now, width);
    text.push_str(&left_alone(plan, width));
    text.push('\n');
    text.push_str(&windows(calendar, now));
    text.push_str(&unusable_engines(engines));
    text
}

/// The engines that cannot be used on this host, and what to do; empty if all can.
fn unusable_engines(engines: &[EngineState]) -> String {
    let line = |state: &EngineState| {
        let unusable = state.unusable.as_ref()?;
        Some(format!(
            "\n! {} is not used: {}.\n",
            state.engine, unusable.text
        ))
    };
    engines.iter().filter_map(line).collect()
}

fn runs(plan: &Plan, calendar: &Calendar, now: Timestamp, width: Option<u16>) -> String {
    let runs: Vec<(&Planned, PlannedRun)> = plan.images.iter().filter_map(run).collect();
    if runs.is_empty() {
        return "Nothing is to be defragmented.\n".to_owned();
    }
    let when = match calendar.open_until(now) {
        Some(_) => "In the window that is open",
        None if calendar.has_windows() => "In the window that opens next",
        None => "Without a window",
    };
    let headers = [
        "IMAGE", ">EXTENTS", ">GAIN", "ENGINE", "BEGINS", ">ABOUT", ">NEEDS",
    ];
    let mut table = TextTable::new(&headers).wrapped(width);
    for (planned, run) in &runs {
        let mark = if is_assumed(run) { "*" } else { "" };
        table.row([
            shown(&planned.path),
            planned.extents.to_string(),
            gain(planned, *run),
            run.engine.to_string(),
            begins(*run, calendar.zone(), now),
            format!("{}{mark}", Roughly(run.estimate.about)),
            run.estimate.needs.to_string(),
        ]);
    }
    let mut text = format!("{when}:\n{}", table.render());
    if runs.iter().any(|(_, run)| is_assumed(run)) {
        text.push_str("* assumed: nothing was measured on its file system yet\n");
    }
    text
}

fn gain(planned: &Planned, run: PlannedRun) -> String {
    let outlook = planned.outlook.as_ref();
    outlook.map_or("not looked at".to_owned(), |outlook| {
        outlook.gain(run.engine).to_string()
    })
}

fn run(planned: &Planned) -> Option<(&Planned, PlannedRun)> {
    match planned.decision {
        Decision::Runs(run) => Some((planned, run)),
        Decision::Not(_) => None,
    }
}

fn is_assumed(run: &PlannedRun) -> bool {
    run.estimate.basis == Basis::Assumed
}

fn begins(run: PlannedRun, zone: &TimeZone, now: Timestamp) -> String {
    if run.begins <= now {
        return "now".to_owned();
    }
    let is_this_week = run.begins.duration_since(now) < SignedDuration::from_hours(6 * 24);
    let form = if same_day(run.begins, now, zone) {
        "%H:%M"
    } else if is_this_week {
        "%a %H:%M"
    } else {
        "%a %F %H:%M"
    };
    zone.to_datetime(run.begins).strftime(form).to_string()
}

fn same_day(one: Timestamp, other: Timestamp, zone: &TimeZone) -> bool {
    zone.to_datetime(one).date() == zone.to_datetime(other).date()
}

/// The images left alone, and why. The many that are not bad enough are only counted.
fn left_alone(plan: &Plan, width: Option<u16>) -> String {
    let mut fine = 0_usize;
    let mut table = TextTable::new(&["IMAGE", ">EXTENTS", "WHY NOT"]).wrapped(width);
    for planned in &plan.images {
        match &planned.decision {
            Decision::Runs(_) => {}
            Decision::Not(reason) if reason.code == ReasonCode::BelowSeverity => fine += 1,
            Decision::Not(reason) => {
                table.row([
                    shown(&planned.path),
                    planned.extents.to_string(),
                    reason.to_string(),
                ]);
            }
        }
    }
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    if !table.is_empty() {
        let _ = write!(text, "\nLeft alone:\n{}", table.render());
    }
    if fine > 0 {
        let plural = if fine == 1 { " is" } else { "s are" };
        let _ = writeln!(text, "\n{fine} image{plural} not bad enough.");
    }
    text
}

fn windows(calendar: &Calendar, now: Timestamp) -> String {
    if !calendar.has_windows() {
        return "No window is configured, so nothing is defragmented by itself: see \
                [[maintenance.window]] in the configuration.\n"
            .to_owned();
    }
    let openings = calendar.next(now, WINDOWS);
    if openings.is_empty() {
        return "No window opens within a year: blackouts.\n".to_owned();
    }
    let mut text = "Windows:\n".to_owned();
    for opening in openings {
        let length = Roughly(opening.length());
        let span = span(opening, calendar.zone());
        let now = if opening.is_open(now) {
            ", open now"
        } else {
            ""
        };
        let _ = writeln!(text, "{span}  {length}{now}");
    }
    text
}

/// `Sat 2026-11-28 01:00 – 05:00 CET`
fn span(opening: Opening, zone: &TimeZone) -> String {
    let local = |at: Timestamp| at.to_zoned(zone.clone());
    let (opens, closes) = (local(opening.opens), local(opening.closes));
    // Both zone abbreviations are shown on the night of a clock change.
    let changes = opens.offset() != closes.offset();
    let first = if changes {
        "%a %F %H:%M %Z"
    } else {
        "%a %F %H:%M"
    };
    let second = match closes.date().duration_since(opens.date()).as_hours() {
        0 => "%H:%M %Z",
        // A week later the weekday alone would be ambiguous.
        hours if hours < 7 * 24 => "%a %H:%M %Z",
        _ => "%a %F %H:%M %Z",
    };
    format!("{} – {}", opens.strftime(first), closes.strftime(second))
}

/// The plan as JSON. Keys are only ever added. Times are in seconds since 1970; local times are
/// beside them.
pub fn render_json(
    plan: &Plan,
    engines: &[EngineState],
    calendar: &Calendar,
    now: Timestamp,
    judged_by: JudgedBy,
) -> serde_json::Result<String> {
    let windows = calendar.next(now, WINDOWS);
    let document = Document {
        schema: 1,
        judged_by,
        now: now.as_second(),
        open_until: calendar.open_until(now).map(Timestamp::as_second),
        windows: windows
            .into_iter()
            .map(|opening| WindowObject::new(opening, calendar.zone()))
            .collect(),
        engines: engines.iter().map(status::EngineState::from).collect(),
        images: plan.images.iter().map(ImageObject::new).collect(),
    };
    Ok(serde_json::to_string(&document)? + "\n")
}

/// The basis of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JudgedBy {
    /// All data of the daemon: counts, growth, forecasts and past severities.
    Daemon,
    /// The current counts alone.
    Counts,
}

#[derive(Serialize)]
struct Document {
    schema: u32,
    judged_by: JudgedBy,
    now: i64,
    open_until: Option<i64>,
    windows: Vec<WindowObject>,
    engines: Vec<status::EngineState>,
    images: Vec<ImageObject>,
}

#[derive(Serialize)]
struct WindowObject {
    opens: i64,
    closes: i64,
    seconds: u64,
    opens_local: String,
    closes_local: String,
}

impl WindowObject {
    fn new(opening: Opening, zone: &TimeZone) -> WindowObject {
        // RFC 3339, which has an offset but no zone name.
        let local = |at: Timestamp| {
            let at: Zoned = at.to_zoned(zone.clone());
            at.strftime("%FT%T%:z").to_string()
        };
        WindowObject {
            opens: opening.opens.as_second(),
            closes: opening.closes.as_second(),
            seconds: opening.length().as_secs(),
            opens_local: local(opening.opens),
            closes_local: local(opening.closes),
        }
    }
}

#[derive(Serialize)]
struct ImageObject {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    filesystem: Option<String>,
    severity: Severity,
    extents: ExtentCount,
    ideal_extents: ExtentCount,
    /// The possible gain; `None` if the map was not read.
    outlook: Option<Outlook>,
    run: Option<RunObject>,
    why_not: Option<WhyNotObject>,
}

#[derive(Serialize)]
struct RunObject {
    engine: Engine,
    order: usize,
    begins: i64,
    ends: i64,
    about_seconds: u64,
    needs_bytes: Bytes,
    bytes_per_second: BytesPerSecond,
    /// Past runs that the speed is based on; 0 if it is assumed.
    measured_runs: u32,
    stall_seconds: f64,
    /// Extents removed; `None` if the map was not read.
    gain_extents: Option<Between>,
}

#[derive(Serialize)]
struct WhyNotObject {
    code: ReasonCode,
    text: String,
    /// For an image in use: why `online` leaves it alone too.
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<Box<WhyNotObject>>,
}

impl ImageObject {
    fn new(planned: &Planned) -> ImageObject {
        let path: &Path = &planned.path;
        let (run, why_not) = match &planned.decision {
            Decision::Runs(run) => (Some(RunObject::new(planned, run)), None),
            Decision::Not(reason) => (None, Some(WhyNotObject::new(reason))),
        };
        ImageObject {
            path: shown(path),
            path_hex: hex_unless_exact(path),
            filesystem: planned.mount.as_deref().map(shown),
            severity: planned.severity,
            extents: planned.extents,
            ideal_extents: planned.ideal,
            outlook: planned.outlook,
            run,
            why_not,
        }
    }
}

impl RunObject {
    fn new(planned: &Planned, run: &PlannedRun) -> RunObject {
        let estimate = run.estimate;
        RunObject {
            gain_extents: planned.outlook.map(|outlook| outlook.gain(run.engine)),
            engine: run.engine,
            order: run.order,
            begins: run.begins.as_second(),
            ends: run.ends.as_second(),
            about_seconds: estimate.about.as_secs(),
            needs_bytes: estimate.needs,
            bytes_per_second: estimate.speed,
            measured_runs: match estimate.basis {
                Basis::Measured { runs } => runs,
                Basis::Assumed => 0,
            },
            stall_seconds: estimate.stall.as_secs_f64(),
        }
    }
}

impl WhyNotObject {
    fn new(reason: &Refusal) -> WhyNotObject {
        let online = reason.online.as_deref();
        WhyNotObject {
            code: reason.code,
            text: reason.text.clone(),
            online: online.map(|why| Box::new(WhyNotObject::new(why))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use jiff::civil::{Weekday, time};

    use super::*;
    use crate::config::settings::{Maintenance, Window, Zone};
    use crate::maintenance::estimate::Estimate;
    use crate::maintenance::reason::{self, in_use};
    use crate::maintenance::{JitterSeed, User};
    use crate::model::{Borders, Unusable, UnusableReason};

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
            path: PathBuf::from(path),
            mount: Some(PathBuf::from("/srv")),
            severity: Severity::Warning,
            extents: ExtentCount(extents),
            ideal: ExtentCount(13),
            outlook: None,
            decision,
        }
    }

    fn run(begins: &str, minutes: u64, basis: Basis) -> Decision {
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
                basis,
                stall: Duration::from_millis(500),
            },
        })
    }

    fn plan() -> Plan {
        let user = User::Vm {
            name: Some("db-1".to_owned()),
            pid: 4711,
        };
        let below = || {
            let text = "severity ok, below warning";
            Decision::Not(Refusal::new(ReasonCode::BelowSeverity, text))
        };
        let in_use = in_use(&user, None);
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
                planned(
                    "/srv/a.img",
                    6_000_000,
                    run("2026-03-28T01:00Z", 22, Basis::Assumed),
                ),
                Planned {
                    outlook: Some(outlook),
                    ..planned(
                        "/srv/b\n.img",
                        900_000,
                        run("2026-03-28T01:22Z", 7, Basis::Measured { runs: 3 }),
                    )
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
        )
        .unwrap();
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
        let mut plan = plan();
        let user = User::Unknown;
        let online = Some(reason::unusable(&unusable));
        plan.images[2].decision = Decision::Not(in_use(&user, online));
        let now = at("2026-03-28T01:00Z");
        let line = render_json(&plan, &states, &calendar(1, 4), now, JudgedBy::Daemon).unwrap();
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
}
