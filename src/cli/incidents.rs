//! `fragwatch incidents [N]`: what happened in an emergency and what the rescue achieved. Reads the
//! incident files; works without the daemon.

use std::fmt::{Display, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::output::{self, INCOMPLETE, SUCCESS, counted};
use crate::incident::archive;
use crate::incident::evidence::{BlockedTask, TaskKind};
use crate::incident::format::{Event, Incident, SCHEMA, TakenEvidence};
use crate::incident::hook::Moment;
use crate::incident::words::{clean, duration, event_text, kib, outcome, trigger};
use crate::model::path::shown;
use crate::model::{Bytes, ExtentCount};
use crate::sys::proc::page_bytes;
use crate::table::{TextTable, or_dash};

const BAR: usize = 12;
/// Limits of lists in the detailed view; `--json` shows everything.
const SHOWN_EVENTS: usize = 200;
const SHOWN_TASKS: usize = 20;
const SHOWN_FRAMES: usize = 8;
const SHOWN_SLABS: usize = 5;

/// Lists the incidents in `directory`, newest first, or shows the `n`th of that list.
pub fn run(n: Option<usize>, json: bool, directory: &Path) -> anyhow::Result<u8> {
    let files = files(directory)?;
    match n {
        Some(n) => show(n, json, &files),
        None => list(json, &files, directory),
    }
}

/// A missing directory holds no incidents.
fn files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    match archive::list(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        files => files.with_context(|| format!("cannot read {}", shown(directory))),
    }
}

fn read(path: &Path) -> anyhow::Result<Incident> {
    let bytes = archive::read(path).with_context(|| format!("cannot read {}", shown(path)))?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is no incident of this version", shown(path)))
}

fn show(n: usize, json: bool, files: &[PathBuf]) -> anyhow::Result<u8> {
    let path = n.checked_sub(1).and_then(|place| files.get(place));
    let path = path.with_context(|| {
        let last = files.len();
        format!("there is no incident {n}: they are numbered from 1, the newest, to {last}")
    })?;
    let text = match json {
        // The file unchanged, including keys of later versions.
        true => String::from_utf8_lossy(&archive::read(path)?).into_owned() + "\n",
        false => detail(&read(path)?),
    };
    output::print(&text)?;
    Ok(SUCCESS)
}

fn list(json: bool, files: &[PathBuf], directory: &Path) -> anyhow::Result<u8> {
    let mut code = SUCCESS;
    let mut incidents = Vec::new();
    for (place, path) in files.iter().enumerate() {
        match read(path) {
            Ok(incident) => incidents.push((place + 1, incident)),
            Err(error) => {
                output::eprint_error(&format!("{error:#}"));
                code = INCOMPLETE;
            }
        }
    }
    if json {
        let objects: Vec<_> = incidents.iter().map(object).collect();
        output::print_json(&json!({ "schema": SCHEMA, "incidents": objects }))?;
    } else if incidents.is_empty() {
        output::print(&format!("No incident in {}.\n", shown(directory)))?;
    } else {
        output::print(&table(&incidents))?;
    }
    Ok(code)
}

/// An incident without its events and evidence.
fn object((n, incident): &(usize, Incident)) -> Value {
    json!({
        "n": n,
        "id": incident.id,
        "state": incident.state,
        "trigger": incident.trigger,
        "began": incident.began,
        "ended": incident.ended,
        "duration_ms": incident.duration_ms,
        "matches": incident.matches,
        "actions": incident.actions,
        "failed": incident.failed,
        "slab_freed_kib": incident.slab_freed_kib,
    })
}

fn table(incidents: &[(usize, Incident)]) -> String {
    let mut table =
        TextTable::headed(">N|BEGAN (UTC)|>DURATION|TRIGGER|>SIGNS|>ACTIONS|>SLAB FREED|OUTCOME");
    for (n, incident) in incidents {
        // `2026-11-20T12:03:05.123Z`, without `T` and what follows the seconds.
        let began = incident.began.get(..19).unwrap_or(&incident.began);
        table.row([
            n.to_string(),
            clean(began).replace('T', " "),
            or_dash(incident.duration_ms.map(duration)),
            trigger(incident).to_owned(),
            ExtentCount(incident.matches).to_string(),
            incident.actions.to_string(),
            kib(incident.slab_freed_kib).to_string(),
            outcome(incident),
        ]);
    }
    table.render()
}

fn detail(incident: &Incident) -> String {
    let mut text = format!(
        "Incident {}: {}\n\n",
        clean(&incident.id),
        outcome(incident)
    );
    // Writing to a String cannot fail, here and below.
    let mut line = |name: &str, value: &dyn Display| {
        let _ = writeln!(text, "  {name:<10} {value}");
    };
    line("began", &clean(&incident.began));
    if let (Some(ended), Some(took)) = (&incident.ended, incident.duration_ms) {
        let (ended, took) = (clean(ended), duration(took));
        let last = or_dash(incident.last_match_ms.map(duration));
        line(
            "ended",
            &format_args!("{ended}, after {took}; last sign after {last}"),
        );
    }
    line("trigger", &trigger(incident));
    let signs = ExtentCount(incident.matches);
    let in_flight = match incident.matches_in_flight {
        0 => String::new(),
        number => format!(", {} while an action was in flight", ExtentCount(number)),
    };
    line("signs", &format_args!("{signs}{in_flight}"));
    let actions = counted(incident.actions.into(), "action");
    let freed = kib(incident.slab_freed_kib);
    line(
        "rescue",
        &format_args!("{actions}, {freed} of slab memory freed"),
    );
    let (host, kernel) = (clean(&incident.host), clean(&incident.kernel));
    line("host", &format_args!("{host}, kernel {kernel}"));
    text.push_str(&timeline(incident));
    text.push_str(&free_blocks(incident));
    for evidence in &incident.evidence {
        text.push_str(&evidence_of(evidence));
    }
    if !incident.hooks.is_empty() {
        text.push_str("\nHook\n");
    }
    for hook in &incident.hooks {
        let (moment, outcome) = (hook.moment.as_str(), clean(&hook.outcome.to_string()));
        let took = duration(hook.took_ms);
        let _ = writeln!(text, "  {moment:<6} {outcome}, after {took}");
    }
    text
}

fn timeline(incident: &Incident) -> String {
    let mut text = "\nTimeline\n".to_owned();
    let shown = incident.events.iter().take(SHOWN_EVENTS);
    text.extend(shown.map(event_line));
    let further = incident.events.len().saturating_sub(SHOWN_EVENTS) as u64;
    if further > 0 {
        let further = counted(further, "event");
        let _ = writeln!(text, "  … {further} more (--json has them)");
    }
    if incident.events_left_out > 0 {
        let left_out = counted(incident.events_left_out, "event");
        let _ = writeln!(text, "  {left_out} in the middle were too many to keep");
    }
    text
}

fn event_line(event: &Event) -> String {
    let sign = if event.after_ms < 0 { '-' } else { '+' };
    let after = event.after_ms.unsigned_abs();
    let (seconds, millis, what) = (after / 1000, after % 1000, event_text(event));
    format!("  {sign}{seconds:>5}.{millis:03} s  {what}\n")
}

/// Free blocks before the first action and after the last one.
fn free_blocks(incident: &Incident) -> String {
    let (Some(first), Some(last)) = (incident.actions().next(), incident.actions().next_back())
    else {
        return String::new();
    };
    let (before, after) = (&first.before, &last.after);
    let counts = before.free_blocks.iter().chain(&after.free_blocks);
    let most = counts.copied().max().unwrap_or(0);
    let mut text = format!(
        "\nFree blocks of memory (bars: logarithmic)\n  {:>9}  {:<BAR$} {:>12}   {:<BAR$} {:>12}\n",
        "size", "before", "", "after", ""
    );
    let pairs = before.free_blocks.iter().zip(&after.free_blocks);
    for (order, (before, after)) in (0..).zip(pairs) {
        let size = Bytes(page_bytes().checked_shl(order).unwrap_or(0));
        let bars = [before, after].map(|blocks| bar(*blocks, most));
        let counts = [before, after].map(|blocks| ExtentCount(*blocks));
        let _ = writeln!(
            text,
            "  {size:>9} │{:<BAR$} {:>12}  │{:<BAR$} {:>12}",
            bars[0], counts[0], bars[1], counts[1],
        );
    }
    text
}

/// Logarithmic, to show the largest blocks, which matter and are a thousand times fewer.
fn bar(value: u64, most: u64) -> String {
    if value == 0 {
        return String::new();
    }
    // In 1/256 of a doubling, plus one doubling, so that a single block is visible.
    let length = |value: u64| {
        let doublings = value.ilog2();
        let rest = (u128::from(value) << 8 >> doublings) - 256;
        u128::from(doublings) * 256 + rest + 256
    };
    let eighths = length(value) * (BAR as u128) * 8 / length(most.max(value));
    output::bar(usize::try_from(eighths).unwrap_or(0).max(1))
}

fn evidence_of(taken: &TakenEvidence) -> String {
    let evidence = &taken.evidence;
    let moment = match taken.moment {
        Moment::Begin => "beginning",
        Moment::End => "end",
    };
    let mut text = format!("\nThe host at the {moment} ({})\n", clean(&evidence.at));
    let pages = |name: &str| {
        let pages = evidence.vmstat.get(name)?;
        Some(Bytes(pages.saturating_mul(page_bytes())))
    };
    if let (Some(dirty), Some(threshold)) = (pages("nr_dirty"), pages("nr_dirty_threshold")) {
        let background = pages("nr_dirty_background_threshold").unwrap_or(Bytes(0));
        let _ = writeln!(
            text,
            "  dirty      {dirty} (written back from {background}, writers wait from {threshold})"
        );
    }
    for (of, lines) in &evidence.pressure {
        let share = |who: &str| lines.get(who).map_or(0.0, |line| line.avg10);
        let (of, some, full) = (clean(of), share("some"), share("full"));
        let _ = writeln!(
            text,
            "  {of} pressure: some {some:.1} %, full {full:.1} % of the last 10 s"
        );
    }
    let slabs = evidence.slabs.iter().take(SHOWN_SLABS);
    let slabs: Vec<String> = slabs
        .map(|slab| format!("{} {}", clean(&slab.name), Bytes(slab.bytes)))
        .collect();
    if !slabs.is_empty() {
        let _ = writeln!(text, "  slabs      {}", slabs.join(", "));
    }
    for image in &evidence.images {
        let (path, extents) = (clean(&image.path), ExtentCount(image.extents));
        let _ = writeln!(text, "  image      {path} with {extents} extents");
    }
    for finding in &evidence.findings {
        let (id, severity, what) = (finding.id, finding.severity, clean(&finding.what));
        let _ = writeln!(text, "  doctor     {id} {severity}: {what}");
    }
    let blocked = counted(evidence.tasks_blocked, "task");
    let _ = writeln!(text, "  {blocked} in state D");
    text.extend(evidence.tasks.iter().take(SHOWN_TASKS).map(task_lines));
    let named = evidence.tasks.len().min(SHOWN_TASKS) as u64;
    if evidence.tasks_blocked > named {
        let more = evidence.tasks_blocked - named;
        let _ = writeln!(text, "    … {more} more (--json has up to 500)");
    }
    for left_out in &evidence.left_out {
        let (collector, reason) = (clean(&left_out.collector), clean(&left_out.reason));
        let _ = writeln!(text, "  left out   {collector}: {reason}");
    }
    text
}

fn task_lines(task: &BlockedTask) -> String {
    let kind = match task.kind {
        TaskKind::Task => "",
        TaskKind::Kworker => ", a kworker",
        TaskKind::Journal => ", of a journal",
    };
    let (comm, tid) = (clean(&task.comm), task.tid);
    let wchan = or_dash(task.wchan.as_deref().map(clean));
    let mut text = format!("    {comm} ({tid}{kind}) in {wchan}\n");
    for frame in task.stack.iter().take(SHOWN_FRAMES) {
        let _ = writeln!(text, "      {}", clean(frame));
    }
    if task.stack.len() > SHOWN_FRAMES {
        text.push_str("      …\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::format::{Action, EventKind, IncidentState};
    use crate::model::{Outcome, RescueStep, Trigger};
    use crate::rescue::proof::Counters;

    fn action(number: u32) -> Action {
        Action {
            step: RescueStep::DropSlab,
            number,
            outcome: Outcome::Done,
            error: None,
            reaction_us: 87,
            duration_us: 812_345,
            before_age_ms: 4000,
            before: Counters {
                slab_reclaimable_kib: 700 << 10,
                free_blocks: [120_000, 3000, 40, 0, 0, 0, 0, 0, 0, 0, 0],
                ..Counters::default()
            },
            after: Counters {
                slab_reclaimable_kib: 80 << 10,
                free_blocks: [90_000, 40_000, 9000, 800, 90, 7, 1, 0, 0, 0, 0],
                ..Counters::default()
            },
        }
    }

    fn event(after_ms: i64, what: EventKind) -> Event {
        Event {
            at: "2026-11-20T12:03:05.123Z".to_owned(),
            after_ms,
            what,
        }
    }

    fn incident() -> Incident {
        let line = EventKind::Line {
            rule: "xfs_deadlock".to_owned(),
            text: "XFS: possible memory allocation deadlock".to_owned(),
            kernel_us: Some(5),
            file: None,
        };
        Incident {
            schema: SCHEMA,
            id: "20261120T120305.123Z-1".to_owned(),
            state: IncidentState::Ended,
            trigger: Some(Trigger::KernelLog),
            began: "2026-11-20T12:03:05.123Z".to_owned(),
            ended: Some("2026-11-20T12:04:17.123Z".to_owned()),
            duration_ms: Some(72_000),
            matches: 12,
            actions: 1,
            slab_freed_kib: 620 << 10,
            events: vec![
                event(-1500, line.clone()),
                event(0, line),
                event(1, EventKind::Action(Box::new(action(1)))),
            ],
            ..Incident::default()
        }
    }

    #[test]
    fn the_table_has_a_line_for_each() {
        let open = Incident {
            state: IncidentState::Interrupted,
            duration_ms: None,
            failed: 1,
            ..incident()
        };
        let text = table(&[(1, open), (2, incident())]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[1].contains("–") && lines[1].contains("interrupted"),
            "{text}"
        );
        assert!(lines[2].contains("2026-11-20 12:03:05"), "{text}");
        assert!(lines[2].contains("1 min 12 s"), "{text}");
        assert!(lines[2].contains("620 MiB"), "{text}");
        assert!(lines[2].ends_with("over"), "{text}");
    }

    #[test]
    fn the_detail_tells_the_story() {
        let text = detail(&incident());
        for part in [
            "-    1.500 s  line    xfs_deadlock: XFS: possible",
            "+    0.001 s  action  1 drop_slab done in 812.3 ms (87 µs after its reason); slab 700 MiB → 80.0 MiB",
            "free blocks of 64 KiB and more 0 → 98",
            "4.0 KiB │████████████      120,000  │███████████",
            "128 KiB │                        0  │██",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn what_came_from_others_does_nothing_to_the_terminal() {
        let mut evil = incident();
        evil.host = "a\x1b[31m".to_owned();
        let text = "b\x1b]0;title\x07\n".to_owned();
        evil.events.push(event(
            2,
            EventKind::Line {
                rule: "c\x1b".to_owned(),
                text,
                kernel_us: None,
                file: Some("d\r".to_owned()),
            },
        ));
        let text = detail(&evil);
        assert!(
            text.chars().all(|c| c == '\n' || !c.is_control()),
            "{text:?}"
        );
    }

    #[test]
    fn bars_grow_with_the_logarithm() {
        assert_eq!(bar(0, 10), "");
        assert_eq!(bar(1000, 1000), "█".repeat(BAR));
        assert_eq!(bar(u64::MAX, u64::MAX), "█".repeat(BAR));
        assert!(!bar(1, u64::MAX).is_empty());
        assert!(bar(10, 1000).chars().count() < bar(100, 1000).chars().count());
    }

    #[test]
    fn events_of_a_later_version_are_no_obstacle() {
        let json = r#"{"at":"x","after_ms":5,"kind":"teleport","where":"there"}"#;
        let event: Event = serde_json::from_str(json).unwrap();
        assert_eq!(event.what, EventKind::Unknown);
        let written = serde_json::to_string(&incident()).unwrap();
        assert_eq!(
            serde_json::from_str::<Incident>(&written).unwrap(),
            incident()
        );
    }
}
