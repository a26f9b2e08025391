//! What the pages and the report show of an image, a run, a file system and the host. Pure.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use crate::assess::Reason;
use crate::incident::words::clean;
use crate::maintenance::{Decision, Planned};
use crate::model::path::shown;
use crate::model::utc::rfc3339_seconds;
use crate::model::{
    Briefly, Bytes, ExtentCount, ExtentsPerDay, ImageKey, Point, Roughly, RunRecord, Severity,
    Stalls, UnixTime,
};
use crate::serve::plan::{PlanInForce, begins};
use crate::serve::status::Status;
use crate::serve::view::{FilesystemView, ImageView};
use crate::table::counted;

/// An image in a table.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// Its lasting identity; `None` if that could not be read.
    pub key: Option<ImageKey>,
    /// Where its name leads; empty for nowhere.
    pub link: String,
    /// On one line, as all text here.
    pub path: String,
    pub vm: Option<String>,
    /// Mount point of its file system; empty if unknown.
    pub mount: String,
    pub severity: Severity,
    /// The threshold reached; `None` if ok.
    pub reason: Option<String>,
    pub extents: ExtentCount,
    pub size: Bytes,
    pub growth: Option<ExtentsPerDay>,
    /// The time until it is critical, if that is to be expected.
    pub left: Option<Duration>,
    /// When its severity last changed.
    pub since: Option<UnixTime>,
    /// What will be done about it; empty if unknown.
    pub next: String,
    /// Counts of the last week, oldest first.
    pub week: Vec<Point>,
    /// Of an image that was no longer counted at the end.
    pub uncounted: Option<Uncounted>,
}

/// Since when an image was not counted, while others were.
#[derive(Debug, Clone, Copy)]
pub struct Uncounted {
    /// Its last count.
    pub since: UnixTime,
    /// Whether no other image of its file system was counted later.
    pub with_filesystem: bool,
}

impl fmt::Display for Uncounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = when(self.since);
        match self.with_filesystem {
            true => write!(
                f,
                "not counted since {at}, nor was any image of its file system, which may hang or be \
                 unmounted"
            ),
            false => write!(f, "no longer counted since {at}"),
        }
    }
}

/// What the history knows of an image in a table.
#[derive(Debug, Clone, Default)]
pub struct Week {
    pub since: Option<UnixTime>,
    pub points: Vec<Point>,
}

impl Row {
    /// An image as the daemon knows it.
    pub fn of(view: &ImageView<'_>) -> Row {
        let mount = view.filesystem.map(|it| shown(&it.mount));
        let key = view.sample.key.as_ref().ok();
        let bad = view.severity > Severity::Ok && view.reason != Reason::BelowAll;
        Row {
            key: key.cloned(),
            link: key.map(link).unwrap_or_default(),
            path: shown(&view.sample.path),
            vm: view.vm(),
            mount: mount.unwrap_or_default(),
            severity: view.severity,
            reason: bad.then(|| view.reason.to_string()),
            extents: view.sample.extents,
            size: view.sample.size,
            growth: view.growth.rate(),
            left: view.forecast.time_left(),
            ..Row::default()
        }
    }

    /// Whether it alone was no longer counted: removed, moved or excluded.
    pub fn is_gone(&self) -> bool {
        self.uncounted.is_some_and(|it| !it.with_filesystem)
    }

    /// The last part of its path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// The path without [`name`](Row::name).
    pub fn directory(&self) -> &str {
        self.path.strip_suffix(self.name()).unwrap_or_default()
    }

    /// `critical now`, `in 3 d 4 h`, or empty.
    pub fn critical(&self) -> String {
        match self.left {
            _ if self.severity == Severity::Critical => "now".to_owned(),
            Some(left) if !left.is_zero() => format!("in {}", Roughly(left)),
            _ => String::new(),
        }
    }

    /// `db.img of VM db`
    fn called(&self) -> String {
        let vm = self.vm.as_ref();
        let vm = vm.map(|vm| format!(" of VM {vm}")).unwrap_or_default();
        format!("{}{vm}", self.name())
    }
}

/// The page of an image.
pub fn link(key: &ImageKey) -> String {
    let query = [
        ("fs", key.filesystem.clone()),
        ("ino", key.inode.to_string()),
        ("gen", key.generation.to_string()),
    ];
    // Text and numbers are always encoded.
    let query = serde_urlencoded::to_string(query).unwrap_or_default();
    format!("/image?{query}")
}

/// Adds to rows, which become the worst first, what the history and the plan know.
pub fn complete(rows: &mut [Row], mut weeks: HashMap<ImageKey, Week>, plan: Option<&PlanInForce>) {
    let planned = plan.iter().flat_map(|it| it.plan.images.iter());
    let planned: HashMap<String, &Planned> = planned.map(|it| (shown(&it.path), it)).collect();
    for row in rows.iter_mut() {
        let week = row.key.as_ref().and_then(|key| weeks.remove(key));
        let week = week.unwrap_or_default();
        (row.since, row.week) = (week.since, week.points);
        if let (Some(plan), Some(planned)) = (plan, planned.get(&row.path)) {
            row.next = next(&planned.decision, plan);
        }
    }
    rows.sort_by(|a, b| {
        let rank = |row: &Row| std::cmp::Reverse((row.severity, row.extents));
        rank(a).cmp(&rank(b)).then_with(|| a.path.cmp(&b.path))
    });
}

fn next(decision: &Decision, plan: &PlanInForce) -> String {
    match decision {
        Decision::Runs(run) => {
            let at = begins(run.begins, plan.calendar.zone(), plan.now);
            let (engine, about) = (run.engine, Roughly(run.estimate.about));
            format!("defragmented by {engine} ({at}, for about {about})")
        }
        Decision::Not(reason) => format!("left alone: {reason}"),
    }
}

/// A file system and how full it is.
#[derive(Debug, Clone)]
pub struct Disk {
    pub mount: String,
    pub kind: String,
    pub size: Bytes,
    pub free: Bytes,
    /// Extents of all images on it.
    pub extents: ExtentCount,
    /// The longest free extent, if free space was read.
    pub longest: Option<Bytes>,
}

impl Disk {
    /// A file system as the daemon knows it.
    pub fn of(view: &FilesystemView<'_>) -> Disk {
        Disk {
            mount: shown(&view.filesystem.mount),
            kind: view.filesystem.type_name.clone(),
            size: view.filesystem.size,
            free: view.filesystem.free,
            extents: view.extents,
            longest: view.space.map(|space| space.longest()),
        }
    }

    /// How much of it is used, in percent.
    pub fn used(&self) -> u64 {
        let used = u128::from(self.size.0.saturating_sub(self.free.0)) * 100;
        let share = used.checked_div(self.size.0.into());
        u64::try_from(share.unwrap_or(0)).unwrap_or(100).min(100)
    }
}

/// A defragmentation in a table.
#[derive(Debug, Clone)]
pub struct RunRow {
    pub at: UnixTime,
    pub link: String,
    pub path: String,
    pub engine: &'static str,
    pub outcome: &'static str,
    pub reason: String,
    pub from: ExtentCount,
    pub to: ExtentCount,
    pub bytes: Bytes,
    pub took: Duration,
    /// What its guest may have waited for, if known.
    pub stalls: Option<Stalls>,
}

impl From<RunRecord> for RunRow {
    fn from(run: RunRecord) -> RunRow {
        RunRow {
            at: run.at,
            link: link(&run.image.key),
            path: shown(&run.image.path),
            engine: run.engine.as_str(),
            outcome: run.outcome.as_str(),
            reason: clean(&run.reason),
            from: run.from,
            to: run.to,
            bytes: run.bytes,
            took: run.took,
            stalls: run.stalls,
        }
    }
}

impl RunRow {
    /// The last part of the image's path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// `12 min`
    pub fn lasted(&self) -> Roughly {
        Roughly(self.took)
    }

    /// Number of calls that may have stalled the guest, the longest, and all together.
    pub fn stalled(&self) -> [String; 3] {
        self.stalls.map_or_else(
            || ["–"; 3].map(str::to_owned),
            |it| {
                let [longest, total] = [it.longest, it.total].map(|time| Briefly(time).to_string());
                [ExtentCount(it.calls).to_string(), longest, total]
            },
        )
    }
}

/// The state of the host in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub severity: Severity,
    pub text: String,
}

/// Whether this host is well. `rows` begin with the worst image.
pub fn verdict(status: &Status, rows: &[Row], now: UnixTime) -> Verdict {
    let critical = |text: String| (Severity::Critical, text);
    let warning = |text: String| (Severity::Warning, text);
    let worst = rows.first().filter(|row| row.severity > Severity::Ok);
    let diagnosis = &status.doctor.diagnosis;
    let (found, number) = (diagnosis.severity(), diagnosis.open().count() as u64);
    let to_mend = format!(
        "No image endangers this host, but doctor has found {} to mend.",
        counted(number, "setting or state")
    );
    let (severity, text) = if status.rescue.incident {
        let acts = match status.rescue.dry_run {
            true => "only logs what it would do",
            false => "acts",
        };
        critical(format!(
            "XFS waits for memory now, and the rescue {acts}: see the incidents."
        ))
    } else if let Some(stalled) = status.stalled.first() {
        let time = Roughly(Duration::from_secs(stalled.seconds));
        let mount = &stalled.mount;
        critical(format!(
            "The file system {mount} has not answered for {time}."
        ))
    } else if let Some(row) = worst.filter(|row| row.severity == Severity::Critical) {
        critical(endangers(row, status, now))
    } else if status.host.severity == Severity::Critical {
        critical("The extent maps of all images together endanger this host.".to_owned())
    } else if let Some(part) = status
        .parts
        .iter()
        .find(|it| it.severity == Severity::Critical)
    {
        critical(format!("An emergency may go unnoticed: {part}."))
    } else if found == Severity::Critical {
        critical(to_mend)
    } else if let Some(row) = worst {
        warning(watch(row, status))
    } else if status.host.severity > Severity::Ok {
        warning("No image endangers this host, but all extent maps together may soon.".to_owned())
    } else if found > Severity::Ok {
        warning(to_mend)
    } else if !status.rescue.armed {
        warning("No image endangers this host, but the rescue is not armed.".to_owned())
    } else if status.rescue.drilled.is_some() && status.rescue.roundtrip_seconds.is_none() {
        warning("No image endangers this host, but the last drill of the rescue failed.".to_owned())
    } else if status.parts.iter().any(|it| it.severity > Severity::Ok) {
        warning("No image endangers this host, but not all of fragwatch works.".to_owned())
    } else if status.daemon.swept.is_none() {
        (
            Severity::Ok,
            "The images are being counted for the first time.".to_owned(),
        )
    } else {
        let images = counted(status.images.total as u64, "image");
        (
            Severity::Ok,
            format!("This host is well: {images}, none near a threshold."),
        )
    };
    Verdict { severity, text }
}

fn endangers(row: &Row, status: &Status, now: UnixTime) -> String {
    let (name, extents) = (row.called(), row.extents);
    let since = row
        .since
        .map(|at| format!(", for {}", Roughly(now.since(at))));
    let others = (status.images.critical as u64).saturating_sub(1);
    let others = match others {
        0 => String::new(),
        1 => " One other does too.".to_owned(),
        _ => format!(" {} others do too.", ExtentCount(others)),
    };
    let since = since.unwrap_or_default();
    format!("{name} endangers this host with {extents} extents{since}.{others}")
}

fn watch(row: &Row, status: &Status) -> String {
    let images = counted(status.images.warning as u64, "image");
    let soon = row.critical();
    let soon = match soon.is_empty() {
        true => format!("{} extents", row.extents),
        false => format!("critical {soon}"),
    };
    format!(
        "No image endangers this host yet; {images} must be watched. Worst: {}, {soon}.",
        row.called()
    )
}

/// `2026-11-30 07:02 UTC`
pub fn when(at: UnixTime) -> String {
    let text = rfc3339_seconds(at);
    format!("{} UTC", text.get(..16).unwrap_or(&text).replace('T', " "))
}

/// Seconds since 1970.
pub fn unix(at: Timestamp) -> UnixTime {
    UnixTime(at.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(severity: Severity, left: Option<u64>) -> Row {
        Row {
            path: "/srv/db.img".to_owned(),
            vm: Some("db".to_owned()),
            severity,
            extents: ExtentCount(5_200_000),
            since: Some(UnixTime(0)),
            left: left.map(Duration::from_secs),
            ..Row::default()
        }
    }

    #[test]
    fn the_sentence_names_the_worst_first() {
        let mut status = Status::default();
        status.rescue.armed = true;
        status.daemon.swept = Some(UnixTime(0));
        (
            status.images.total,
            status.images.critical,
            status.images.warning,
        ) = (9, 3, 1);
        let sentence = |status: &Status, rows: &[Row]| {
            let verdict = verdict(status, rows, UnixTime(90_000));
            (verdict.severity, verdict.text)
        };
        let (severity, text) = sentence(&status, &[row(Severity::Critical, Some(0))]);
        assert_eq!(severity, Severity::Critical);
        assert_eq!(
            text,
            "db.img of VM db endangers this host with 5,200,000 extents, for 1 d 1 h. \
             2 others do too."
        );
        let (severity, text) = sentence(&status, &[row(Severity::Warning, Some(7200))]);
        assert_eq!(severity, Severity::Warning);
        assert!(
            text.ends_with("Worst: db.img of VM db, critical in 2 h."),
            "{text}"
        );
        let (severity, text) = sentence(&status, &[row(Severity::Ok, None)]);
        assert_eq!(
            (severity, text.contains("well: 9 images")),
            (Severity::Ok, true)
        );
        status.rescue.drilled = Some(UnixTime(0));
        let (severity, text) = sentence(&status, &[]);
        assert!(
            severity == Severity::Warning && text.contains("drill"),
            "{text}"
        );
        status.rescue.armed = false;
        assert_eq!(sentence(&status, &[]).0, Severity::Warning);
        status.host.severity = Severity::Warning;
        let (severity, text) = sentence(&status, &[]);
        assert!(
            severity == Severity::Warning && text.contains("together"),
            "{text}"
        );
        status.doctor.diagnosis.findings = vec![crate::model::Finding {
            id: crate::model::CheckId(1),
            severity: Severity::Critical,
            what: String::new(),
            read: Vec::new(),
            silenced: None,
        }];
        let (severity, text) = sentence(&status, &[row(Severity::Warning, None)]);
        assert!(
            severity == Severity::Critical && text.contains("doctor"),
            "{text}"
        );
        status.rescue.incident = true;
        assert!(
            sentence(&status, &[row(Severity::Critical, None)])
                .1
                .contains("rescue acts")
        );
        status.rescue.dry_run = true;
        assert!(sentence(&status, &[]).1.contains("rescue only logs"));
    }
}
