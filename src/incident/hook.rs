//! Runs the operator's command when an incident begins and when it ends: at most one run per moment
//! at a time ([`hook`](mod@crate::hook)).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::hook::{self, Call, Hook};
use crate::model::IncidentId;
use crate::model::words::words;

pub use crate::hook::{HookOutcome, TIMEOUT};

/// Runs per moment that may wait.
const QUEUE: usize = 8;

words! {
    /// When in an incident a hook runs; the value of `FRAGWATCH_EVENT`.
    pub enum Moment {
        Begin = "begin",
        End = "end",
    }
}

/// Result of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookReport {
    /// At which moment of the incident.
    pub moment: Moment,
    /// How the command ended.
    pub outcome: HookOutcome,
    /// Duration in milliseconds.
    pub took_ms: u64,
}

/// The command, with one thread and one queue for each of [`Moment::ALL`].
#[derive(Debug)]
pub struct Hooks([Hook<IncidentId>; Moment::ALL.len()]);

impl Hooks {
    /// Starts both threads. `command` is a program and its arguments, run without a shell.
    /// `on_report` is called on the hook threads.
    pub fn start(
        command: &[String],
        timeout: Duration,
        on_report: impl Fn(IncidentId, HookReport) + Send + Sync + 'static,
    ) -> io::Result<Hooks> {
        let on_report = Arc::new(on_report);
        let start = |name: &str, moment| {
            let on_report = Arc::clone(&on_report);
            let on_end = move |incident, outcome, took: Duration| {
                let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                let report = HookReport {
                    moment,
                    outcome,
                    took_ms,
                };
                on_report(incident, report);
            };
            hook::start(name, command.to_vec(), timeout, QUEUE, on_end)
        };
        Ok(Hooks([
            start("hook-begin", Moment::Begin)?,
            start("hook-end", Moment::End)?,
        ]))
    }

    /// Queues a run without blocking. Returns false and drops it if the queue is full.
    pub fn call(&self, moment: Moment, incident: IncidentId, call: Call) -> bool {
        self.0[moment as usize].push((incident, call))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn begin_and_end_do_not_wait_for_each_other_and_the_queue_is_bounded() {
        // One at the beginning waits for the end of the file, one at the end does not.
        let waits = tempfile::NamedTempFile::new().unwrap();
        let path = waits.path().display();
        let script =
            format!("[ $FRAGWATCH_EVENT = end ] || while [ -e {path} ]; do sleep 0.01; done");
        let command = ["/bin/sh", "-c", &script].map(str::to_owned);
        let (sender, reports) = mpsc::channel();
        let on_report = move |_, report| drop(sender.send(report));
        let hooks = Hooks::start(&command, Duration::from_secs(60), on_report).unwrap();
        let call = |moment: Moment, json| {
            let variables = vec![("FRAGWATCH_EVENT", moment.as_str().to_owned())];
            hooks.call(moment, IncidentId(1), Call { variables, json })
        };
        let taken = (0..QUEUE + 5).filter(|_| call(Moment::Begin, vec![b'x'; 300_000]));
        assert!((QUEUE..=QUEUE + 1).contains(&taken.count()));
        assert!(call(Moment::End, vec![]));
        let first = reports.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(
            (first.moment, first.outcome),
            (Moment::End, HookOutcome::Exited(0))
        );
        drop(waits);
        let second = reports.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(
            (second.moment, second.outcome),
            (Moment::Begin, HookOutcome::Exited(0))
        );
    }
}
