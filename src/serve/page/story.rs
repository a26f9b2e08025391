//! One incident as a time line, for its page and for the report. Pure.

use super::chart::{Bar, strip};
use crate::incident::evidence::BlockedTask;
use crate::incident::format::{EventKind, Incident};
use crate::incident::words::{clean, duration, event_text, kib, outcome, trigger};
use crate::model::{Bytes, ExtentCount, Outcome};
use crate::rescue::proof::large_blocks;
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
    /// Time since the begin, kind, and text.
    pub events: Vec<(String, &'static str, String)>,
    pub left_out: u64,
    pub actions: Vec<ActionRow>,
    /// What is known of the host, by name.
    pub facts: Vec<(&'static str, String)>,
    pub tasks: Vec<String>,
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
        let events = shown.map(|event| {
            let sign = if event.after_ms < 0 { "−" } else { "+" };
            let after = duration(event.after_ms.unsigned_abs());
            (
                format!("{sign}{after}"),
                kind(&event.what),
                event_text(event),
            )
        });
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
        Story {
            brief: Brief::from(incident),
            strip: times(incident),
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

fn times(incident: &Incident) -> String {
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
    let (lanes, end) = (["record", "stall", "action"], end.max(last).max(first + 1));
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
    let ticks = (0..=4_i64).map(|step| {
        let at = first + (end - first) / 4 * step;
        (at, duration(at.unsigned_abs()))
    });
    strip(
        (first, end),
        &ticks.collect::<Vec<_>>(),
        &bars.collect::<Vec<_>>(),
    )
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
