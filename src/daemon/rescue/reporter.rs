//! Reports of the fast side to the log, the metrics and the status; and the daemon's drills.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info, warn};

use crate::klog::kmsg::KMSG;
use crate::model::{Monotonic, Outcome};
use crate::rescue::clock::now;
use crate::rescue::entry::{Line, Notice, Report};
use crate::rescue::thread::FastSide;
use crate::rescue::{Limit, drill};
use crate::serve::metrics;
use crate::serve::parts::State;
use crate::serve::shared_status::SharedStatus;

/// A drill that takes longer has failed.
const DRILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Reports of the fast side, and the drill under way.
pub(super) struct Reporter {
    drill: Option<Drill>,
    /// Whether the hourly limit is reached.
    pub(super) limited: bool,
    /// Why the kernel log is no longer readable.
    pub(super) kmsg_error: Option<State>,
    board: Arc<SharedStatus>,
}

struct Drill {
    nonce: u64,
    began: Monotonic,
    seen: bool,
}

impl Reporter {
    pub(super) fn new(board: Arc<SharedStatus>) -> Self {
        Reporter {
            drill: None,
            limited: false,
            kmsg_error: None,
            board,
        }
    }

    fn set_incident(&self, incident: bool) {
        self.board
            .update(|status| status.rescue.incident = incident);
    }

    /// Publishes the duration of a drill, or `None` if it failed.
    fn set_roundtrip(&self, took: Option<Duration>) {
        self.board.update(|status| {
            status.rescue.drilled = Some(crate::daemon::clock::wall());
            status.rescue.roundtrip_seconds = took.map(|took| took.as_secs_f64());
        });
    }

    /// Discards drill and error once the kernel log is no longer read.
    pub(super) fn forget_drills(&mut self) {
        self.drill = None;
        self.kmsg_error = None;
        self.board.update(|status| {
            status.rescue.drilled = None;
            status.rescue.roundtrip_seconds = None;
        });
    }

    pub(super) fn notice(&mut self, notice: &Notice) {
        match notice {
            Notice::Matched { .. } => {}
            Notice::Began(began, _) => {
                self.set_incident(true);
                metrics::incident_began(began.trigger);
                error!(
                    "incident {} started: XFS is waiting for memory (trigger: {})",
                    began.incident, began.trigger
                );
            }
            Notice::Ended(ended, at) => {
                self.set_incident(false);
                metrics::incident_ended();
                warn!(
                    "incident {} ended after {} s: {} signs ({} of them held back by rescue.max_actions_per_hour), {} actions, {} of them failed",
                    ended.incident,
                    at.since(ended.began).as_secs(),
                    ended.matches,
                    ended.held_back,
                    ended.actions,
                    ended.failed
                );
            }
            Notice::Limit(Limit::Reached, _) => {
                self.limited = true;
                error!(
                    "rescue action held back: rescue.max_actions_per_hour is reached; XFS is still waiting for memory"
                );
            }
            Notice::Limit(Limit::Over { held_back }, _) => {
                self.limited = false;
                warn!(
                    "rescue.max_actions_per_hour allows actions again; {held_back} signs went without one"
                );
            }
            Notice::DrillSeen { nonce, at } => {
                if let Some(drill) = self.drill.as_mut().filter(|drill| drill.nonce == *nonce) {
                    drill.seen = true;
                    let took = at.since(drill.began);
                    self.set_roundtrip(Some(took));
                }
            }
            Notice::Source(0) => {
                self.kmsg_error = None;
                info!("{KMSG} can be read again");
            }
            Notice::Source(number) => {
                let reason = io::Error::from_raw_os_error(number.cast_signed());
                error!("cannot read {KMSG}: {reason}");
                self.kmsg_error = Some(State::Down(format!("cannot read {KMSG}: {reason}")));
            }
        }
    }

    /// Counts and logs a line that matched a rule and was logged that many times.
    pub(super) fn matched(&self, source: &str, rule: &str, line: &Line, times: u32) {
        metrics::klog_matched(rule, times);
        warn!(
            "{source}: rule {rule} matched: {}",
            String::from_utf8_lossy(line.bytes())
        );
    }

    pub(super) fn report(&mut self, report: &Report) {
        if report.drill {
            return self.end_drill(report);
        }
        let step = report.order.step;
        metrics::rescue_acted(step, report.outcome, report.began.since(report.read));
        let effect = report.after.compared_with(&report.before);
        let took = report.ended.since(report.began).as_millis();
        match report.outcome {
            Outcome::Done => warn!("rescue {step} done in {took} ms: {effect}"),
            Outcome::DryRun => warn!("rescue {step} not done: rescue.dry_run = true"),
            Outcome::Failed if report.error != 0 => {
                let reason = io::Error::from_raw_os_error(report.error.cast_signed());
                error!("rescue {step} failed: {reason}");
            }
            Outcome::Failed => {
                error!("rescue {step} failed: the kernel's counter did not move; {effect}");
            }
        }
    }

    pub(super) fn begin_drill(&mut self, fast: &FastSide) {
        let began = now();
        let nonce = began.0.max(1);
        fast.exchange.expect_drill(nonce, false);
        // A drill that could not be written times out like a lost one.
        if let Err(reason) = drill::write(Path::new(KMSG), nonce) {
            error!("cannot write to {KMSG}: {reason}");
        }
        self.drill = Some(Drill {
            nonce,
            began,
            seen: false,
        });
    }

    fn end_drill(&mut self, report: &Report) {
        let Some(drill) = self.drill.take_if(|drill| drill.seen) else {
            return;
        };
        let took = report.ended.since(drill.began);
        self.set_roundtrip(Some(took));
        info!(
            "drill passed: {} µs from the kernel's log to the actor",
            took.as_micros()
        );
    }

    /// Whether a drill has timed out. One that was read back does not fail during an incident,
    /// which keeps the actor busy and proves the rest better than a drill.
    pub(super) fn drill_has_failed(&mut self) -> bool {
        let late = |drill: &mut Drill| now().since(drill.began) >= DRILL_TIMEOUT;
        let Some(drill) = self.drill.take_if(late) else {
            return false;
        };
        if drill.seen && self.board.incident() {
            return false;
        }
        self.set_roundtrip(None);
        let end = match drill.seen {
            true => "was not carried out",
            false => "was not read back",
        };
        error!("drill failed: its record {end}; run `fragwatch drill`");
        true
    }
}
