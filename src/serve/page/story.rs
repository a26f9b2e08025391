//! One incident as a time line, for its page and for the report. Pure.

use jiff::Timestamp;

use super::chart::{Bar, Line, lines, strip};
use crate::incident::evidence::BlockedTask;
use crate::incident::format::{EventKind, Incident};
use crate::incident::words::{clean, duration, event_text, kib, outcome, trigger};
use crate::model::{Bytes, ExtentCount, Outcome};
use crate::rescue::proof::{Counters, large_blocks};
use crate::sys::proc::page_bytes;
use crate::table::counted;

/// Events and tasks that are shown.
const MOST_EVENTS: usize = 200;
const MOST_TASKS: usize = 20;

/// An incident in a list.
#[derive(Debug)]
pub struct Brief {
    pub link: String,
    pub began: String,
    pub lasted: String,
    pub trigger: &'static str,
    pub matches: ExtentCount,
    pub actions: u32,
    pub freed: Bytes,
    pub outcome: String,
}

impl From<&Incident> for Brief {
    fn from(incident: &Incident) -> Brief {
        let id = clean(&incident.id);
        let began = incident.began.get(..19).unwrap_or(&incident.began);
        // Texts are always encoded.
        let query = serde_urlencoded::to_string([("id", &id)]).unwrap_or_default();
        Brief {
            link: format!("/incident?{query}"),
            began: format!("{} UTC", clean(began).replace('T', " ")),
            lasted: incident
                .duration_ms
                .map_or_else(|| "–".to_owned(), duration),
            trigger: trigger(incident),
            matches: ExtentCount(incident.matches),
            actions: incident.actions,
            freed: kib(incident.slab_freed_kib),
            outcome: outcome(incident),
        }
    }
}

/// An incident from its first record to quiet.
#[derive(Debug)]
pub struct Story {
    pub brief: Brief,
    pub strip: String,
    /// Memory beside it; empty if none was read.
    pub chart: String,
    pub memory: Vec<MemoryRow>,
    /// Time since the begin, kind, and text.
    pub events: Vec<(String, &'static str, String)>,
    pub left_out: u64,
    pub actions: Vec<ActionRow>,
    /// What is known of the host, by name.
    pub facts: Vec<(&'static str, String)>,
    pub tasks: Vec<String>,
}

/// Memory at a moment of an incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryRow {
    /// Milliseconds after the begin.
    pub after_ms: i64,
    pub moment: String,
    pub slab: Option<Bytes>,
    /// For new work, without swapping.
    pub available: Option<Bytes>,
}

impl MemoryRow {
    /// `+12.3 s`
    pub fn after(&self) -> String {
        signed(self.after_ms)
    }
}

/// An action and what it brought.
#[derive(Debug)]
pub struct ActionRow {
    pub number: u32,
    pub step: &'static str,
    pub outcome: &'static str,
    pub slab: [Bytes; 2],
    /// Free blocks of 64 KiB and more.
    pub blocks: [ExtentCount; 2],
}

impl From<&Incident> for Story {
    fn from(incident: &Incident) -> Story {
        let shown = incident.events.iter().take(MOST_EVENTS);
        let further = incident.events.len().saturating_sub(MOST_EVENTS) as u64;
        let events =
            shown.map(|event| (signed(event.after_ms), kind(&event.what), event_text(event)));
        let row = |action: &crate::incident::format::Action| {
            let ends = [&action.before, &action.after];
            ActionRow {
                number: action.number,
                step: action.step.as_str(),
                outcome: match action.outcome {
                    Outcome::Done => "done",
                    Outcome::Failed => "failed",
                    Outcome::DryRun => "dry run",
                },
                slab: ends.map(|it| kib(it.slab_kib())),
                blocks: ends.map(|it| ExtentCount(large_blocks(&it.free_blocks, page_bytes()))),
            }
        };
        let memory = memory(incident);
        Story {
            brief: Brief::from(incident),
            strip: times(incident),
            chart: chart(incident, &memory),
            memory,
            events: events.collect(),
            left_out: further + incident.events_left_out,
            actions: incident.actions().map(row).collect(),
            facts: facts(incident),
            tasks: tasks(incident),
        }
    }
}

fn kind(event: &EventKind) -> &'static str {
    match event {
        EventKind::Line { .. } => "record",
        EventKind::Stall { .. } => "stall",
        EventKind::Action(_) => "action",
        EventKind::Limited { .. } => "limit",
        EventKind::Unknown => "other",
    }
}

/// A time after the begin.
fn signed(after_ms: i64) -> String {
    let sign = if after_ms < 0 { "−" } else { "+" };
    format!("{sign}{}", duration(after_ms.unsigned_abs()))
}

/// What was read of the memory: with the evidence, and before and after each action.
fn memory(incident: &Incident) -> Vec<MemoryRow> {
    let size = |size: Option<u64>| size.filter(|kib| *kib > 0).map(kib);
    let began: Option<Timestamp> = incident.began.parse().ok();
    let evidence = incident.evidence.iter().filter_map(|taken| {
        let at: Timestamp = taken.evidence.at.parse().ok()?;
        let of = |name| size(taken.evidence.meminfo_kib.get(name).copied());
        let after = i64::try_from(at.duration_since(began?).as_millis());
        Some(MemoryRow {
            after_ms: after.ok()?,
            moment: taken.moment.as_str().to_owned(),
            slab: of("Slab"),
            available: of("MemAvailable"),
        })
    });
    let shown = incident.events.iter().take(MOST_EVENTS);
    let actions = shown.flat_map(|event| {
        let EventKind::Action(action) = &event.what else {
            return Vec::new();
        };
        let row = |word, after_ms, counters: &Counters| MemoryRow {
            after_ms,
            moment: format!("{word} action {}", action.number),
            slab: size(Some(counters.slab_kib())),
            available: size(Some(counters.available_kib)),
        };
        let before = event.after_ms.saturating_sub_unsigned(action.before_age_ms);
        let after = event
            .after_ms
            .saturating_add_unsigned(action.duration_us / 1000);
        vec![
            row("before", before, &action.before),
            row("after", after, &action.after),
        ]
    });
    let mut rows: Vec<_> = evidence.chain(actions).collect();
    rows.retain(|row| row.slab.is_some() || row.available.is_some());
    rows.sort_by_key(|row| row.after_ms);
    rows
}

fn chart(incident: &Incident, memory: &[MemoryRow]) -> String {
    if memory.is_empty() {
        return String::new();
    }
    let line = |class, size: fn(&MemoryRow) -> Option<Bytes>| Line {
        class,
        points: memory
            .iter()
            .filter_map(|row| Some((row.after_ms, size(row)?)))
            .collect(),
    };
    let (span, ticks) = scale(incident);
    let of_kinds = [
        line("slab", |row| row.slab),
        line("available", |row| row.available),
    ];
    lines(span, &ticks, &of_kinds)
}

/// From the first event to the end, and the texts of some times in between.
fn scale(incident: &Incident) -> ((i64, i64), Vec<(i64, String)>) {
    let last = incident
        .events
        .iter()
        .map(|event| event.after_ms)
        .max()
        .unwrap_or(0);
    let end = incident
        .duration_ms
        .and_then(|ms| i64::try_from(ms).ok())
        .unwrap_or(last);
    let first = incident
        .events
        .iter()
        .map(|event| event.after_ms)
        .min()
        .unwrap_or(0)
        .min(0);
    let end = end.max(last).max(first + 1);
    let ticks = (0..=4_i64).map(|step| {
        let at = first + (end - first) / 4 * step;
        (at, duration(at.unsigned_abs()))
    });
    ((first, end), ticks.collect())
}

fn times(incident: &Incident) -> String {
    let (span, ticks) = scale(incident);
    let lanes = ["record", "stall", "action"];
    let bars = incident
        .events
        .iter()
        .take(MOST_EVENTS)
        .filter_map(|event| {
            let kind = kind(&event.what);
            let lane = lanes.iter().position(|lane| *lane == kind)?;
            let took = match &event.what {
                EventKind::Action(action) => i64::try_from(action.duration_us / 1000).unwrap_or(0),
                _ => 0,
            };
            let (from, to) = (event.after_ms, event.after_ms.saturating_add(took));
            Some(Bar {
                from,
                to,
                lane,
                class: kind,
                text: String::new(),
            })
        });
    strip(span, &ticks, &bars.collect::<Vec<_>>())
}

fn facts(incident: &Incident) -> Vec<(&'static str, String)> {
    let mut facts = vec![(
        "Host",
        format!(
            "{}, kernel {}",
            clean(&incident.host),
            clean(&incident.kernel)
        ),
    )];
    for taken in &incident.evidence {
        let (moment, evidence) = (taken.moment.as_str(), &taken.evidence);
        let mut parts = vec![format!(
            "{} in state D",
            counted(evidence.tasks_blocked, "task")
        )];
        if let Some(free) = evidence.meminfo_kib.get("MemAvailable") {
            parts.push(format!("{} of memory available", kib(*free)));
        }
        let slabs = evidence.slabs.iter().take(3);
        parts.extend(slabs.map(|slab| format!("slab {} {}", clean(&slab.name), Bytes(slab.bytes))));
        let images = evidence.images.iter().take(3);
        parts.extend(images.map(|image| {
            format!(
                "{} with {} extents",
                clean(&image.path),
                ExtentCount(image.extents)
            )
        }));
        let name = if moment == "begin" {
            "At the begin"
        } else {
            "At the end"
        };
        facts.push((name, parts.join("; ")));
    }
    facts
}

fn tasks(incident: &Incident) -> Vec<String> {
    let evidence = incident.evidence.first();
    let tasks = evidence.into_iter().flat_map(|taken| &taken.evidence.tasks);
    let text = |task: &BlockedTask| {
        let waits = task.wchan.as_deref().unwrap_or("–");
        let stack: Vec<_> = task
            .stack
            .iter()
            .take(6)
            .map(|frame| clean(frame))
            .collect();
        format!(
            "{} ({}) in {}: {}",
            clean(&task.comm),
            task.tid,
            clean(waits),
            stack.join(" ← ")
        )
    };
    tasks.take(MOST_TASKS).map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shown_at_both_ends_and_around_each_action() {
        let counters = |slab: u64, available: u64| serde_json::json!({ "slab_unreclaimable_kib": slab, "available_kib": available });
        let evidence = |moment, at, slab: u64| {
            serde_json::json!({ "moment": moment, "at": at,
                "meminfo_kib": { "Slab": slab, "MemAvailable": 5 } })
        };
        let incident = serde_json::json!({
            "began": "2026-11-30T10:00:00.000Z", "duration_ms": 60_000,
            "events": [{ "at": "", "after_ms": 2000, "kind": "action", "step": "drop_slab", "number": 1,
                "outcome": "done", "reaction_us": 1, "duration_us": 800_000, "before_age_ms": 500,
                "before": counters(900, 0), "after": counters(300, 700) }],
            "evidence": [evidence("end", "2026-11-30T10:01:01.000Z", 200),
                evidence("begin", "2026-11-30T10:00:00.250Z", 800)],
        });
        let incident: Incident = serde_json::from_value(incident).unwrap();
        let rows = memory(&incident);
        let row = |row: &MemoryRow| (row.after_ms, row.moment.clone(), row.slab, row.available);
        let found: Vec<_> = rows.iter().map(row).collect();
        let size = |size| Some(kib(size));
        let expected = [
            (250, "begin".to_owned(), size(800), size(5)),
            // A file of 0.1.0 has no memory that is available.
            (1500, "before action 1".to_owned(), size(900), None),
            (2800, "after action 1".to_owned(), size(300), size(700)),
            (61_000, "end".to_owned(), size(200), size(5)),
        ];
        assert_eq!(found, expected);
        let svg = chart(&incident, &rows);
        assert_eq!(svg.matches("<circle class=\"slab\"").count(), 4, "{svg}");
        assert_eq!(
            svg.matches("<circle class=\"available\"").count(),
            3,
            "{svg}"
        );
        // The largest is at the top, and what is behind the end at the right edge.
        assert!(
            svg.contains("cy=\"34.0\" r=\"3\"><title>slab 900 KiB<"),
            "{svg}"
        );
        assert!(svg.contains("cx=\"800.0\""), "{svg}");
        assert_eq!(chart(&incident, &[]), "");
    }
}
