//! Incidents in words, for terminal, page and report. All text from the files is put on one line.

use std::path::Path;

use super::format::{Action, Event, EventKind, Incident, IncidentState};
use crate::model::path::shown;
use crate::model::{Bytes, ExtentCount, Outcome, Trigger};
use crate::rescue::proof::{Counters, large_blocks};
use crate::sys::proc::page_bytes;
use crate::table::{counted, or_dash};

/// What began it.
pub fn trigger(incident: &Incident) -> &'static str {
    incident.trigger.map_or("unknown", Trigger::as_str)
}

/// How it ended.
pub fn outcome(incident: &Incident) -> String {
    let failed = match (incident.failed, incident.actions) {
        (0, _) => String::new(),
        (failed, actions) if failed >= actions => ", every action failed".to_owned(),
        (1, _) => ", 1 action failed".to_owned(),
        (failed, _) => format!(", {failed} actions failed"),
    };
    let dry = incident
        .actions()
        .any(|action| action.outcome == Outcome::DryRun);
    let state = match incident.state {
        IncidentState::Open => "goes on",
        IncidentState::Ended if dry => "over, dry run",
        IncidentState::Ended => "over",
        IncidentState::Interrupted => "interrupted: the daemon ended before it",
    };
    format!("{state}{failed}")
}

/// `800 ms`, `12.3 s`, `5 min 3 s`, `2 h 5 min`
pub fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0 => format!("{milliseconds} ms"),
        1..60 => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

fn micros(microseconds: u64) -> String {
    match microseconds {
        0..1000 => format!("{microseconds} µs"),
        1000..1_000_000 => format!("{}.{} ms", microseconds / 1000, microseconds % 1000 / 100),
        _ => duration(microseconds / 1000),
    }
}

/// As bytes.
pub fn kib(kib: u64) -> Bytes {
    Bytes(kib.saturating_mul(1024))
}

/// The files are ours, but contain text from elsewhere.
pub fn clean(text: &str) -> String {
    shown(Path::new(text))
}

/// What happened, in one line.
pub fn event_text(event: &Event) -> String {
    match &event.what {
        EventKind::Line {
            rule, text, file, ..
        } => {
            let file = file.as_ref().map(|file| format!(" ({})", clean(file)));
            let (rule, text, file) = (clean(rule), clean(text), file.unwrap_or_default());
            format!("line    {rule}: {text}{file}")
        }
        EventKind::Stall {
            tid,
            comm,
            for_ms,
            stack,
        } => {
            let inner = or_dash(stack.first().map(|frame| clean(frame)));
            let (comm, took) = (clean(comm), duration(*for_ms));
            format!("stall   {comm} (thread {tid}) for {took}, in {inner}")
        }
        EventKind::Action(action) => format!("action  {}", action_text(action)),
        EventKind::Limited { times } => {
            let times = counted(*times, "time");
            format!("limit   an action was due {times}, but max_actions_per_hour was reached")
        }
        EventKind::Unknown => "an event of a later version".to_owned(),
    }
}

fn action_text(action: &Action) -> String {
    let (number, step) = (action.number, action.step);
    let outcome = match action.outcome {
        Outcome::Done => "done",
        Outcome::Failed => "FAILED",
        Outcome::DryRun => "dry run",
    };
    let (took, reaction) = (micros(action.duration_us), micros(action.reaction_us));
    let error = action.error.as_ref();
    let error = error.map_or_else(String::new, |error| format!(": {}", clean(error)));
    let slab = [&action.before, &action.after].map(|memory| kib(memory.slab_kib()));
    let blocks = |memory: &Counters| ExtentCount(large_blocks(&memory.free_blocks, page_bytes()));
    let blocks = [&action.before, &action.after].map(blocks);
    format!(
        "{number} {step} {outcome} in {took} ({reaction} after its reason){error}; \
         slab {} → {}, free blocks of 64 KiB and more {} → {}",
        slab[0], slab[1], blocks[0], blocks[1]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_one_says_them() {
        let texts = [999, 12_345, 303_000, 7_500_000].map(duration);
        assert_eq!(texts, ["999 ms", "12.3 s", "5 min 3 s", "2 h 5 min"]);
        assert_eq!(
            [7, 1500, 2_000_000].map(micros),
            ["7 µs", "1.5 ms", "2.0 s"]
        );
    }
}
