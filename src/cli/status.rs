//! `fragwatch status`: the images and the state of the running daemon.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr};

use super::args::StatusArguments;
use super::client;
use super::command::load_to_ask;
use super::doctor;
use super::output::{self, SUCCESS};
use crate::config::Settings;
use crate::model::{ExtentsPerDay, Roughly, Severity, UnixTime};
use crate::serve::status::{EngineState, Rescue, Row, Stalled, Status};
use crate::table::{TextTable, counted, or_dash};

/// Minimum columns of a path.
const LEAST_PATH: usize = 12;

pub(super) fn run(arguments: &StatusArguments, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_to_ask(config);
    if let Some(seconds) = arguments.watch {
        return watch(&settings, Duration::from_secs(seconds));
    }
    let status: Status = client::get(&settings, "/v1/status")?;
    match arguments.json {
        true => output::print_json(&status)?,
        false => output::print(&render(&status, now(), output::width()))?,
    }
    Ok(SUCCESS)
}

/// Does not return unless the output cannot be written: Ctrl-C ends the process. The daemon may be
/// restarted meanwhile.
fn watch(settings: &Settings, interval: Duration) -> anyhow::Result<u8> {
    loop {
        let text = match client::get(settings, "/v1/status") {
            Ok(status) => render(&status, now(), output::width()),
            Err(error) => format!("fragwatch: {error:#}\n"),
        };
        output::redraw(&text)?;
        std::thread::sleep(interval);
    }
}

pub(super) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    UnixTime::from_seconds(since.map_or(0.0, |since| since.as_secs_f64()))
}

fn roughly(seconds: u64) -> Roughly {
    Roughly(Duration::from_secs(seconds))
}

fn render(status: &Status, now: UnixTime, width: Option<u16>) -> String {
    let ago = |at| Roughly(now.since(at));
    let daemon = &status.daemon;
    let swept = match daemon.swept {
        Some(swept) => format!("last sweep {} ago", ago(swept)),
        None => "no sweep has ended yet".to_owned(),
    };
    let (version, pid, since) = (&daemon.version, daemon.pid, ago(daemon.started));
    let mut text = format!("fragwatch {version} (pid {pid}), running for {since}; {swept}\n");
    text.push_str(&problems(status));
    text.push('\n');
    text.push_str(&images(status, width));
    text.push('\n');
    text.push_str(&rescue(&status.rescue, now));
    text.push_str(&engines(&status.engines));
    text.push_str(&doctor::status_line(&status.doctor, now));
    // Writing to a String cannot fail, here and below.
    for part in status.parts.iter().filter(|part| part.is_off()) {
        let _ = writeln!(text, "{part}");
    }
    for run in &status.runs {
        let (path, engine, since) = (&run.path, run.engine, ago(run.began));
        let done = run
            .progress
            .map_or_else(String::new, |done| format!(", {:.0} % done", done * 100.0));
        let _ = writeln!(text, "Defragmenting {path} by {engine} for {since}{done}.");
    }
    if status.paused {
        text.push_str("Defragmentation is paused: `fragwatch resume` resumes it.\n");
    }
    text
}

fn problems(status: &Status) -> String {
    let daemon = &status.daemon;
    let stalled = |stalled: &Stalled| {
        let (mount, since) = (&stalled.mount, roughly(stalled.seconds));
        format!("The file system {mount} has not answered for {since}; its counts are old.")
    };
    let mut lines: Vec<_> = status.stalled.iter().map(stalled).collect();
    if let Some(refused) = &daemon.config_refused {
        let (first, rest) = daemon.config_in_force.text().split_at(1);
        lines.push(format!("{}{rest}:\n{refused}", first.to_uppercase()));
    }
    let bad = status.parts.iter().filter(|it| it.severity > Severity::Ok);
    lines.extend(bad.map(ToString::to_string));
    lines.iter().map(|line| format!("! {line}\n")).collect()
}

fn images(status: &Status, width: Option<u16>) -> String {
    let images = &status.images;
    let mut text = format!(
        "{}: {} critical, {} warning, {} ok\n\
         {} extents; their maps take up to {} of kernel memory\n",
        counted(images.total as u64, "image"),
        images.critical,
        images.warning,
        images.ok,
        images.extents,
        images.extent_map_memory
    );
    if images.unprotected > 0 {
        let unprotected = counted(images.unprotected as u64, "image");
        let _ = writeln!(text, "{unprotected} can shatter: see `fragwatch protect`.");
    }
    if let Some(reason) = &status.host.reason {
        let _ = writeln!(text, "! Memory is {}: {reason}.", status.host.severity);
    }
    if status.worst.is_empty() {
        return text;
    }
    text.push('\n');
    text.push_str(&table(&status.worst, width));
    let left = images.total.saturating_sub(status.worst.len());
    if left > 0 {
        let _ = writeln!(text, "… and {left} more");
    }
    text.push_str(&reasons(&status.worst));
    text
}

/// The reasons for severities, below the table, which has no room for sentences.
fn reasons(rows: &[Row]) -> String {
    let line = |row: &Row| {
        let name = row.path.rsplit('/').next()?;
        let (severity, reason) = (row.severity, row.reason.as_ref()?);
        Some(format!("{severity:<8}  {name}: {reason}\n"))
    };
    let text: String = rows.iter().filter_map(line).collect();
    match text.is_empty() {
        true => text,
        false => format!("\n{text}"),
    }
}

/// Paths are shortened at the beginning until each row fits into `width`, down to [`LEAST_PATH`].
fn table(rows: &[Row], width: Option<u16>) -> String {
    let longest = rows.iter().map(|row| row.path.width()).max().unwrap_or(0);
    let text = with_paths(rows, longest);
    let widest = text.lines().map(UnicodeWidthStr::width).max().unwrap_or(0);
    match width.map(|width| widest.saturating_sub(width.into())) {
        None | Some(0) => text,
        Some(excess) => with_paths(rows, longest.saturating_sub(excess).max(LEAST_PATH)),
    }
}

fn with_paths(rows: &[Row], longest: usize) -> String {
    let mut table = TextTable::headed("IMAGE|>EXTENTS|>GROWTH|>CRITICAL IN|>SIZE|VM|SEVERITY");
    for row in rows {
        table.row([
            end_of(&row.path, longest),
            row.extents.to_string(),
            or_dash(row.growth_per_day.map(ExtentsPerDay::short)),
            or_dash(row.seconds_to_critical.map(roughly)),
            row.size.to_string(),
            or_dash(row.vm.as_ref()),
            row.severity.to_string(),
        ]);
    }
    table.render()
}

/// The end of a text, at most `width` columns, with an ellipsis if something was cut off.
fn end_of(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut left = width.saturating_sub(1);
    let fits = |character: &char| {
        let width = character.width().unwrap_or(0);
        let fits = width <= left;
        left = left.saturating_sub(width);
        fits
    };
    let end: Vec<_> = text.chars().rev().take_while(fits).collect();
    std::iter::once('…').chain(end.into_iter().rev()).collect()
}

fn engines(engines: &[EngineState]) -> String {
    let usable = engines.iter().filter(|it| it.usable);
    let usable: Vec<_> = usable.map(|it| it.engine.as_str()).collect();
    let mut text = match (engines.is_empty(), usable.is_empty()) {
        (true, _) => return String::new(),
        (false, true) => "! No engine can be used on this host.\n".to_owned(),
        (false, false) => format!("Engines that can be used: {}.\n", usable.join(", ")),
    };
    for state in engines {
        let wanted = state.reason.as_deref() != Some("not_configured");
        if let Some(why) = state.text.as_ref().filter(|_| wanted) {
            let _ = writeln!(text, "! {} is not used: {why}.", state.engine);
        }
    }
    text
}

fn rescue(rescue: &Rescue, now: UnixTime) -> String {
    if !rescue.armed {
        return "The rescue is not armed: nothing would be done in an emergency.\n".to_owned();
    }
    let mut text = match (rescue.incident, rescue.dry_run) {
        (true, _) => "! There is an INCIDENT now: see `fragwatch incidents`.".to_owned(),
        (false, true) => "The rescue is armed, for a dry run only.".to_owned(),
        (false, false) => "The rescue is armed.".to_owned(),
    };
    let ago = rescue.drilled.map(|at| Roughly(now.since(at)));
    text += &match (ago, rescue.roundtrip_seconds) {
        (Some(ago), Some(took)) => {
            let took = took * 1e6;
            format!(" Last drill {ago} ago: from the kernel's log to the actor in {took:.0} µs.")
        }
        (Some(ago), None) => {
            format!("\n! The last drill, {ago} ago, FAILED: try `fragwatch drill`.")
        }
        (None, _) => " It has not been tried out.".to_owned(),
    };
    text + &format!("\nTrigger: {}.\n", rescue.trigger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Bytes, Engine, ExtentCount};
    use crate::serve::parts::{Part, Parts, State};
    use crate::serve::status::{Daemon, Images, Stalled};

    fn status() -> Status {
        Status {
            daemon: Daemon {
                version: "1.2.3".to_owned(),
                pid: 7,
                started: UnixTime(1_000),
                swept: Some(UnixTime(90_000)),
                ..Daemon::default()
            },
            images: Images {
                total: 3,
                ok: 2,
                critical: 1,
                extents: ExtentCount(6_000_010),
                ..Images::default()
            },
            worst: vec![Row {
                path: "/srv/db-1.img".to_owned(),
                extents: ExtentCount(6_000_000),
                size: Bytes(1 << 30),
                severity: Severity::Critical,
                reason: Some("the threshold is 5,000,000 extents".to_owned()),
                growth_per_day: Some(ExtentsPerDay(1234.0)),
                vm: Some("db-1".to_owned()),
                ..Row::default()
            }],
            ..Status::default()
        }
    }

    #[test]
    fn it_reads_as_sentences_and_a_table() {
        assert_eq!(
            render(&status(), UnixTime(90_030), None),
            "\
fragwatch 1.2.3 (pid 7), running for 1 d; last sweep 30 s ago

3 images: 1 critical, 0 warning, 2 ok
6,000,010 extents; their maps take up to 0 B of kernel memory

IMAGE            EXTENTS   GROWTH  CRITICAL IN     SIZE  VM    SEVERITY
/srv/db-1.img  6,000,000  +1.2k/d            –  1.0 GiB  db-1  critical
… and 2 more

critical  db-1.img: the threshold is 5,000,000 extents

The rescue is not armed: nothing would be done in an emergency.
"
        );
    }

    #[test]
    fn a_long_path_keeps_its_end_and_the_line_its_width() {
        let mut status = status();
        status.worst[0].path = format!("/srv/{}/prod.img", "ü".repeat(50));
        for width in [60, 80, 100, 200] {
            let table = table(&status.worst, Some(width));
            let row = table.lines().nth(1).unwrap();
            assert!(row.width() <= usize::from(width).max(70), "{table}");
            assert!(row.contains("prod.img  "), "{table}");
        }
        assert_eq!(end_of("/a/b.img", 8), "/a/b.img");
        assert_eq!(end_of("/a/b.img", 7), "…/b.img");
        assert_eq!(end_of("/a/日本", 4), "…本");
    }

    #[test]
    fn problems_come_first() {
        let mut status = status();
        status.stalled.push(Stalled {
            mount: "/srv".to_owned(),
            seconds: 75,
        });
        status.daemon.config_refused = Some("f.toml:1:1: no".to_owned());
        let mut parts = Parts::default();
        parts.set(Part::Rescue, State::Down("read-only".to_owned()));
        parts.set(Part::Sampler, State::Down("overdue by 5 s".to_owned()));
        parts.set(Part::KernelLog, State::Off("klog.kmsg = false".to_owned()));
        status.parts = parts.status();
        let text = render(&status, UnixTime(90_030), None);
        let lines: Vec<_> = text.lines().skip(1).take(5).collect();
        assert_eq!(
            lines,
            [
                "! The file system /srv has not answered for 1 min; its counts are old.",
                "! The last new configuration was refused, the former one is in force:",
                "f.toml:1:1: no",
                "! rescue down: read-only",
                "! sampler down: overdue by 5 s"
            ]
        );
        assert!(
            text.ends_with("\nkernel log off: klog.kmsg = false\n"),
            "{text}"
        );
    }

    #[test]
    fn engines_have_their_reason() {
        let state = |engine, reason: Option<&str>| EngineState {
            engine,
            usable: reason.is_none(),
            reason: reason.map(str::to_owned),
            text: reason.map(|_| "kernel 1 is bad: do this".to_owned()),
        };
        let mut states = vec![
            state(Engine::XfsFsr, None),
            state(Engine::Online, Some("kernel_known_bad")),
        ];
        assert_eq!(
            engines(&states),
            "Engines that can be used: xfs_fsr.\n\
             ! online is not used: kernel 1 is bad: do this.\n"
        );
        states[1].reason = Some("not_configured".to_owned());
        assert_eq!(engines(&states), "Engines that can be used: xfs_fsr.\n");
        states.remove(0);
        assert_eq!(engines(&states), "! No engine can be used on this host.\n");
        assert_eq!(engines(&[]), "");
    }

    #[test]
    fn a_failed_drill_stands_out() {
        let mut off = Rescue {
            armed: true,
            drilled: Some(UnixTime(0)),
            trigger: "kernel 1 says".to_owned(),
            ..Rescue::default()
        };
        let text = rescue(&off, UnixTime(120));
        assert!(
            text.contains("! The last drill, 2 min ago, FAILED"),
            "{text}"
        );
        off.roundtrip_seconds = Some(0.000_234);
        let text = rescue(&off, UnixTime(120));
        assert!(text.contains("in 234 µs."), "{text}");
    }
}
