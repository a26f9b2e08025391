//! `fragwatch defrag --engine online`: what is seen of it, and what is said of it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::defrag::{Signals, account};
use super::output::{self, SUCCESS};
use super::progress::Progress;
use crate::config::settings::Defrag;
use crate::defrag::Host;
use crate::defrag::engine::Request;
use crate::defrag::guard::Refusal;
use crate::defrag::job::run_json;
use crate::defrag::online::{self, Event, Report, Summary};
use crate::defrag::run::Hold;
use crate::model::path::shown;
use crate::model::{Engine, RunOutcome};

/// What there is to say of an image.
pub(super) enum Said {
    /// Nothing was done.
    Rehearsed(Result<Summary, Refusal>),
    /// It was.
    Run(Box<Report>),
}

pub(super) fn rehearse(path: &Path, limits: &Defrag, host: &Host) -> Said {
    let request = Request {
        path,
        limits,
        until: None,
    };
    Said::Rehearsed(online::dry_run(&request, host))
}

pub(super) fn defragment(
    path: &Path,
    limits: &Defrag,
    host: &Host,
    until: Option<Instant>,
    signals: &Signals,
    quiet: bool,
) -> Said {
    let request = Request {
        path,
        limits,
        until,
    };
    let mut orders = || signals.order();
    let mut view = View::new(path, quiet);
    let mut watch = |event| view.show(event);
    let report = online::run(&request, host, &mut orders, &mut watch);
    Said::Run(Box::new(report))
}

/// Puts back what runs that were killed have left. Said on standard error, line by line; what cannot
/// be put back is no reason to fail: it stays noted.
pub(super) fn restore(hints: &Path) -> u8 {
    let mut watch = |event| match event {
        Event::HintRestored(path) => output::eprint_error(&format!(
            "restored the extent-size hint of {}, whose run was killed",
            shown(&path)
        )),
        Event::HintLost(path, why) => output::eprint_error(&format!(
            "the extent-size hint noted in {} cannot be restored: {why}",
            shown(&path)
        )),
        _ => {}
    };
    online::restore_hints(hints, &mut watch);
    SUCCESS
}

/// What is seen while it works.
struct View {
    name: String,
    quiet: bool,
    progress: Option<Progress>,
    gain: u64,
    extents: u64,
}

impl View {
    fn new(path: &Path, quiet: bool) -> View {
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        View {
            name: shown(&name),
            quiet,
            progress: None,
            gain: 0,
            extents: 0,
        }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::HintRestored(path) => self.tell(&format!(
                "restored the extent-size hint of {}, whose run was killed",
                shown(&path)
            )),
            Event::HintLost(path, why) => self.tell(&format!(
                "an extent-size hint that a killed run left could not be restored: {why}; what it \
                 was stands in {}",
                shown(&path)
            )),
            Event::Cleared(summary) => {
                (self.gain, self.extents) = (summary.gain.0, summary.extents.0);
                self.progress = Some(Progress::bar(self.gain));
            }
            Event::WithoutIo(pressure) => self.tell(&pressure.to_string()),
            Event::Progress { .. } => self.progress(&event),
        }
    }

    fn progress(&mut self, event: &Event) {
        let (
            Some(progress),
            Event::Progress {
                done,
                segments,
                worst,
                median,
                held,
            },
        ) = (&mut self.progress, event)
        else {
            return;
        };
        let state = match held {
            Some(Hold::Pressure) => ", waits: others need the disks",
            Some(Hold::Bandwidth) => ", waits: bandwidth",
            None => "",
        };
        let done = done.0.min(self.gain);
        let message = format!(
            "{}: {} extents left, {segments} segments, calls {:.1} ms (worst {:.1} ms){state}",
            self.name,
            self.extents.saturating_sub(done),
            median.as_secs_f64() * 1e3,
            worst.as_secs_f64() * 1e3,
        );
        progress.at(done, message);
    }

    fn tell(&self, what: &str) {
        if !self.quiet {
            output::eprint_error(&format!("{}: {what}", self.name));
        }
    }
}

impl Said {
    /// For people.
    pub(super) fn words(&self) -> String {
        match self {
            Said::Rehearsed(Ok(summary)) => format!(
                "would be defragmented by online: {} extents, {} can go away",
                summary.extents, summary.gain
            ),
            Said::Rehearsed(Err(refusal)) => format!("would be left alone: {refusal}"),
            Said::Run(report) => in_words(report),
        }
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        match self {
            Said::Rehearsed(Ok(summary)) => json!({
                "outcome": "would_run",
                "engine": Engine::Online,
                "from": summary.extents,
                "gain": summary.gain,
                "shared_bytes": summary.shared,
            }),
            Said::Rehearsed(Err(refusal)) => json!({
                "outcome": "refused",
                "engine": Engine::Online,
                "guard": refusal.name(),
                "reason": refusal.to_string(),
            }),
            Said::Run(report) => {
                let mut json = run_json(&report.run);
                let work = &report.work;
                json["segments"] = json!(work.segments);
                json["busy_seconds"] = json!(work.busy.as_secs_f64());
                json["worst_call_seconds"] = json!(work.calls.worst().as_secs_f64());
                json["median_call_seconds"] = json!(work.calls.median().as_secs_f64());
                json["shared_bytes"] = json!(work.shared);
                json
            }
        }
    }
}

fn in_words(report: &Report) -> String {
    let run = &report.run;
    let (from, to) = (run.from.unwrap_or_default(), run.to.unwrap_or_default());
    let work = &report.work;
    let came = format!(
        "{from} → {to} extents by online, {} segments in {:.1} s, calls {:.1} ms (worst {:.1} ms){}",
        work.segments,
        run.took.as_secs_f64(),
        work.calls.median().as_secs_f64() * 1e3,
        work.calls.worst().as_secs_f64() * 1e3,
        account(run),
    );
    match &run.outcome {
        RunOutcome::Improved => came,
        RunOutcome::Unchanged { .. } => {
            format!("no fewer extents, the guest makes new ones: {came}")
        }
        RunOutcome::NoSpace => format!("ended, because free space came to its limit: {came}"),
        RunOutcome::Stopped { why } if run.from.is_none() => format!("not begun, because {why}"),
        RunOutcome::Stopped { why } => format!("stopped, because {why}: {came}"),
        RunOutcome::Refused { reason, .. } => format!("left alone: {reason}"),
        RunOutcome::Failed { reason } | RunOutcome::NoReport { reason } if run.from.is_none() => {
            format!("failed: {reason}")
        }
        RunOutcome::Failed { reason } | RunOutcome::NoReport { reason } => {
            format!("failed: {reason}; {came}")
        }
        RunOutcome::Busy { .. } => format!("somebody needed it: {came}"),
    }
}
