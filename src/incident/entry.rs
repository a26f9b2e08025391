//! An incident held in memory while it is recorded.

use std::collections::VecDeque;
use std::time::{Instant, SystemTime};

use tracing::error;

use super::archive::file_name;
use super::format::{Action, Event, EventKind, Incident, IncidentState, SCHEMA, millis};
use super::writer::Writer;
use crate::model::path::printable;
use crate::model::units::signed;
use crate::model::{IncidentId, Monotonic, Outcome, Trigger, utc};
use crate::rescue::Ended;
use crate::rescue::clock::now;

/// Events kept from the beginning and from the end of an incident.
const FIRST_EVENTS: usize = 1000;
const LAST_EVENTS: usize = 500;

/// Called with an incident and its start time.
type OnChange<'a> = &'a dyn Fn(&Incident, SystemTime);

pub(super) struct Entry {
    pub(super) number: IncidentId,
    began: Monotonic,
    pub(super) began_at: SystemTime,
    /// Everything except the events.
    pub(super) incident: Incident,
    first: Vec<(Monotonic, EventKind)>,
    last: VecDeque<(Monotonic, EventKind)>,
    /// Changed since it was last queued for writing.
    pub(super) stale: bool,
    /// When it was last queued for writing.
    pub(super) put_at: Option<Instant>,
}

impl Entry {
    pub(super) fn new(number: IncidentId, trigger: Option<Trigger>, began: Monotonic) -> Entry {
        let began_at = SystemTime::now()
            .checked_sub(now().since(began))
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let uname = rustix::system::uname();
        Entry {
            number,
            began,
            began_at,
            incident: Incident {
                schema: SCHEMA,
                id: format!("{}-{number}", utc::compact(began_at)),
                number: number.0,
                trigger,
                began: utc::rfc3339(began_at),
                kernel: printable(uname.release().to_bytes()),
                host: printable(uname.nodename().to_bytes()),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..Incident::default()
            },
            first: Vec::new(),
            last: VecDeque::new(),
            stale: false,
            put_at: None,
        }
    }

    /// Queues its state for writing; it stays stale if the queue is full.
    pub(super) fn put(&mut self, writer: &Writer, on_change: OnChange<'_>) {
        self.put_at = Some(Instant::now());
        let incident = self.document();
        let taken = |json| writer.put(file_name(&incident.id), json);
        self.stale = !to_json(&incident).is_none_or(taken);
        on_change(&incident, self.began_at);
    }

    /// Queues pending changes a last time; counts the file as dropped on failure.
    pub(super) fn let_go(mut self, writer: &Writer, on_change: OnChange<'_>) {
        if self.stale {
            self.put(writer, on_change);
        }
        if self.stale {
            writer.give_up();
        }
    }

    pub(super) fn add(&mut self, at: Monotonic, what: EventKind) {
        self.stale = true;
        if matches!(what, EventKind::Line { .. } | EventKind::Stall { .. }) && at >= self.began {
            self.incident.matches += 1;
        }
        if let EventKind::Limited { times } = what
            && let Some(noted) = self.noted_limit()
        {
            *noted = times.max(*noted);
        } else if self.first.len() < FIRST_EVENTS {
            self.first.push((at, what));
        } else {
            self.last.push_back((at, what));
            if self.last.len() > LAST_EVENTS {
                self.last.pop_front();
                self.incident.events_left_out += 1;
            }
        }
    }

    /// The count in the latest `Limited` event, if any; an incident of hours can have several.
    fn noted_limit(&mut self) -> Option<&mut u64> {
        let mut events = self.first.iter_mut().chain(&mut self.last).rev();
        events.find_map(|(_, what)| match what {
            EventKind::Limited { times } => Some(times),
            _ => None,
        })
    }

    pub(super) fn act(&mut self, at: Monotonic, action: Box<Action>) {
        self.incident.actions = self.incident.actions.max(action.number);
        self.incident.failed += u32::from(action.outcome == Outcome::Failed);
        self.incident.slab_freed_kib += action.slab_freed_kib();
        self.add(at, EventKind::Action(action));
    }

    pub(super) fn end(&mut self, ended: &Ended, at: Monotonic) {
        let incident = &mut self.incident;
        incident.state = IncidentState::Ended;
        incident.ended = Some(utc::rfc3339(self.began_at + at.since(self.began)));
        incident.duration_ms = Some(millis(at.since(self.began)));
        incident.last_match_ms = Some(millis(ended.last_match.since(self.began)));
        // The ladder has counted all matches and actions.
        incident.matches = ended.matches;
        incident.matches_in_flight = ended.matches_in_flight;
        incident.actions = ended.actions;
        incident.failed = ended.failed;
        self.stale = true;
        if ended.held_back > 0 {
            let times = ended.held_back;
            self.add(at, EventKind::Limited { times });
        }
    }

    /// The incident in its file format.
    pub(super) fn document(&self) -> Incident {
        let mut events: Vec<&(Monotonic, EventKind)> =
            self.first.iter().chain(&self.last).collect();
        // The rings of reader and actor are drained one after the other.
        events.sort_by_key(|(at, _)| *at);
        let event = |(at, what): &(Monotonic, EventKind)| {
            let (after, before) = (at.since(self.began), self.began.since(*at));
            let time = self.began_at + after;
            Event {
                at: utc::rfc3339(time.checked_sub(before).unwrap_or(time)),
                after_ms: signed(millis(after)) - signed(millis(before)),
                what: what.clone(),
            }
        };
        Incident {
            events: events.into_iter().map(event).collect(),
            ..self.incident.clone()
        }
    }
}

/// The incident as JSON. An error, a bug in its type, is logged.
pub(super) fn to_json(incident: &Incident) -> Option<Vec<u8>> {
    let json = serde_json::to_vec(incident);
    json.inspect_err(|error| error!("incident {}: no JSON: {error}", incident.id))
        .ok()
}
