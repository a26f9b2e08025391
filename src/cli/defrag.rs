//! `fragwatch defrag`: defragments images now, here, without the daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGTSTP, SIGTTOU};

use super::args::DefragArguments;
use super::choice::{Answer, Choice, Passed};
use super::command::load_config;
use super::output::{self, INCOMPLETE, SUCCESS};
use super::progress::Progress;
use super::{online, planning};
use crate::config::Settings;
use crate::config::settings::Defrag;
use crate::defrag::engine::Request;
use crate::defrag::fsr::{self, Event};
use crate::defrag::guard::{Checked, NEAR_IDEAL, leaves_to_another};
use crate::defrag::job;
use crate::defrag::run::Hold;
use crate::defrag::{Host, guard::Refusal};
use crate::model::path::{hex_unless_exact, shown};
use crate::model::{Bytes, Engine, RunOutcome, RunReport, Stop, unknown_reason};
use crate::state_dir::StateDir;
use crate::sys::child::ignore;

pub(super) fn run(arguments: &DefragArguments, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_config(config)?.settings;
    if !arguments.force_window && !arguments.dry_run {
        check_window(&settings)?;
    }
    let until = (!arguments.force_window)
        .then(|| window_end(&settings))
        .flatten();
    let work = Work {
        choice: Choice::new(&arguments.engine, &settings, arguments.force_window),
        limits: &settings.defrag,
        host: Host::new(StateDir::of(&settings.history).hints()),
        dry_run: arguments.dry_run || settings.defrag.dry_run,
        until,
        signals: Signals::handle()?,
        quiet: arguments.json,
    };
    let mut results = Vec::new();
    for image in &arguments.images {
        let path = std::path::absolute(image)
            .with_context(|| format!("{}: no path can be made of it", shown(image)))?;
        let Some(result) = work.on(&path) else { break };
        if !arguments.json {
            output::print(&result.said.line(&path))?;
        }
        results.push((path, result));
        work.signals.stop_if_suspended();
        if work.signals.ended() {
            break;
        }
    }
    if arguments.json {
        output::print(&format!("{:#}\n", as_json(&results)))?;
    }
    let all = results.len() == arguments.images.len();
    let fine = all && results.iter().all(|(_, result)| result.said.is_fine());
    Ok(if fine { SUCCESS } else { INCOMPLETE })
}

/// Whether a maintenance window is open. Whoever defragments by hand outside of them must say so.
fn check_window(settings: &Settings) -> anyhow::Result<()> {
    let (calendar, now) = (planning::calendar(settings), Timestamp::now());
    if calendar.open_until(now).is_some() {
        return Ok(());
    }
    match calendar.next_opening(now) {
        Some(next) => bail!(
            "no maintenance window is open; the next one opens at {}; --force-window defragments now",
            next.opens
                .to_zoned(calendar.zone().clone())
                .strftime("%a %Y-%m-%d %H:%M %Z")
        ),
        None => bail!("no maintenance window is configured; --force-window defragments now"),
    }
}

/// When the window that is open closes.
fn window_end(settings: &Settings) -> Option<Instant> {
    let now = Timestamp::now();
    let closes = planning::calendar(settings).open_until(now)?;
    let left = closes.duration_since(now).unsigned_abs();
    Instant::now().checked_add(left)
}

/// What is to be done with each of the images.
struct Work<'s> {
    choice: Choice<'s>,
    limits: &'s Defrag,
    host: Host,
    dry_run: bool,
    until: Option<Instant>,
    signals: Signals,
    quiet: bool,
}

/// What came of an image.
struct Done {
    said: Said,
    /// The engines that were asked before.
    passed: Vec<Passed>,
}

impl Work<'_> {
    /// Nothing if there is no engine.
    fn on(&self, path: &Path) -> Option<Done> {
        let tell = |passed: &Passed, next: Engine| {
            if !self.quiet {
                let Passed { engine, reason } = passed;
                let line = format!("{}: {next}, not {engine}: {reason}", shown(path));
                output::eprint_error(&line);
            }
        };
        let work = |engine| {
            let said = self.by(engine, path);
            match said.left_to_another() {
                Some(reason) if self.signals.order().is_none() => Answer::Another(reason, said),
                _ => Answer::Final(said),
            }
        };
        let (said, passed) = self.choice.work(path, work, tell)?;
        Some(Done { said, passed })
    }

    fn by(&self, engine: Engine, path: &Path) -> Said {
        let (limits, host) = (self.limits, &self.host);
        let (until, signals, quiet) = (self.until, &self.signals, self.quiet);
        match (engine, self.dry_run) {
            (Engine::XfsFsr, true) => rehearse(path, limits, host),
            (Engine::XfsFsr, false) => defragment(path, limits, host, until, signals, quiet),
            (Engine::Online, true) => Said::Online(online::rehearse(path, limits, host)),
            (Engine::Online, false) => Said::Online(online::defragment(
                path, limits, host, until, signals, quiet,
            )),
        }
    }
}

/// What signals ask for.
pub(super) struct Signals {
    ended: Arc<AtomicBool>,
    suspended: Arc<AtomicBool>,
}

impl Signals {
    /// The first signal to end ends the run. The second one ends us on the spot, and with us, by the
    /// kernel's hand, xfs_fsr. Ctrl-Z ends the run, and then stops us: a process that is stopped
    /// would let nobody through the gate. Writing to the terminal does not stop us in the background,
    /// whatever `stty tostop` says, for the same reason.
    pub(super) fn handle() -> anyhow::Result<Signals> {
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let ended = || Arc::clone(&ended);
            signal_hook::flag::register_conditional_shutdown(signal, INCOMPLETE.into(), ended())?;
            signal_hook::flag::register(signal, ended())?;
        }
        let suspended = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGTSTP, Arc::clone(&suspended))?;
        ignore(SIGTTOU)?;
        Ok(Signals { ended, suspended })
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Why the run is to end, if it is.
    pub(super) fn order(&self) -> Option<Stop> {
        let suspended = || self.suspended.load(Ordering::Relaxed);
        match self.ended() {
            true => Some(Stop::Shutdown),
            false => suspended().then_some(Stop::Suspended),
        }
    }

    /// Stops now, if that was asked for; the next image has its turn after SIGCONT. Without a
    /// terminal, where nobody would continue it and the daemon waits for it, it ends instead.
    fn stop_if_suspended(&self) {
        if !self.suspended.swap(false, Ordering::Relaxed) {
            return;
        }
        // ENXIO without a controlling terminal (tty(4)).
        let stopped = std::fs::File::open("/dev/tty").map(drop);
        let stopped =
            stopped.and_then(|()| signal_hook::low_level::emulate_default_handler(SIGTSTP));
        if stopped.is_err() {
            self.ended.store(true, Ordering::Relaxed);
        }
    }
}

/// What there is to say of an image.
enum Said {
    Rehearsed(Result<Checked, Refusal>),
    Run(RunReport),
    Online(online::Said),
}

fn rehearse(path: &Path, limits: &Defrag, host: &Host) -> Said {
    let request = Request {
        path,
        limits,
        until: None,
    };
    Said::Rehearsed(fsr::dry_run(&request, host))
}

fn defragment(
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
    let report = fsr::run(&request, host, &mut orders, &mut watch);
    Said::Run(report)
}

/// What is seen while it works.
struct View {
    name: String,
    quiet: bool,
    extents: String,
    progress: Option<Progress>,
    total: u64,
}

impl View {
    fn new(path: &Path, quiet: bool) -> View {
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        View {
            name: shown(&name),
            quiet,
            extents: String::new(),
            progress: None,
            total: 0,
        }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Swept(count) => self.tell(&format!(
                "removed {count} temporary files (.fsrPID) of an xfs_fsr that was killed"
            )),
            Event::Cleared(facts) => {
                self.total = facts.allocated.0;
                self.extents = format!("{} extents", facts.extents);
                self.progress = Some(Progress::bytes(self.total));
            }
            Event::WithoutIo(pressure) => self.tell(&pressure.to_string()),
            Event::Progress { written, held, .. } => self.progress(written, held),
            Event::OpenBlocked(visitor) => {
                self.tell(&format!("{visitor} wants to open it: ending the run"));
            }
            Event::Started { .. } | Event::Ending(_) => {}
        }
    }

    fn progress(&mut self, written: Bytes, held: Option<Hold>) {
        let state = match held {
            Some(Hold::Pressure) => ", waits: others need the disks",
            Some(Hold::Bandwidth) | None if written.0 < self.total => "",
            Some(Hold::Bandwidth) | None => ", final swap",
        };
        let message = format!("{}: {}{state}", self.name, self.extents);
        if let Some(progress) = &mut self.progress {
            progress.at(written.0.min(self.total), message);
        }
    }

    fn tell(&self, what: &str) {
        if !self.quiet {
            output::eprint_error(&format!("{}: {what}", self.name));
        }
    }
}

impl Said {
    /// Whether the image is as good as it can be.
    fn is_fine(&self) -> bool {
        match self.refused() {
            Some((guard, _)) => guard == NEAR_IDEAL,
            None => match self {
                Said::Rehearsed(_) | Said::Online(online::Said::Rehearsed(_)) => true,
                Said::Run(report) => report.outcome == RunOutcome::Improved,
                Said::Online(online::Said::Run(report)) => {
                    report.run.outcome == RunOutcome::Improved
                }
            },
        }
    }

    /// The guard that has not let it begin, and why.
    fn refused(&self) -> Option<(String, String)> {
        let refused = |outcome: &RunOutcome| match outcome {
            RunOutcome::Refused { guard, reason } => Some((guard.clone(), reason.clone())),
            _ => None,
        };
        match self {
            Said::Rehearsed(Err(refusal)) | Said::Online(online::Said::Rehearsed(Err(refusal))) => {
                Some((refusal.name().to_owned(), refusal.to_string()))
            }
            Said::Rehearsed(Ok(_)) | Said::Online(online::Said::Rehearsed(Ok(_))) => None,
            Said::Run(report) => refused(&report.outcome),
            Said::Online(online::Said::Run(report)) => refused(&report.run.outcome),
        }
    }

    /// Why the engine has left it alone, if another one need not: it was refused, or had to give way
    /// to somebody who opened the image.
    fn left_to_another(&self) -> Option<String> {
        if let Said::Run(report) = self
            && matches!(report.outcome, RunOutcome::Busy { .. })
        {
            return report.outcome.reason();
        }
        let (guard, reason) = self.refused()?;
        leaves_to_another(&guard).then_some(reason)
    }

    fn line(&self, path: &Path) -> String {
        let text = match self {
            Said::Rehearsed(Ok(facts)) => format!(
                "would be defragmented by xfs_fsr: {} extents, copies {}",
                facts.extents, facts.allocated
            ),
            Said::Rehearsed(Err(refusal)) => format!("would be left alone: {refusal}"),
            Said::Run(report) => in_words(report),
            Said::Online(said) => said.words(),
        };
        format!("{}: {text}\n", shown(path))
    }

    fn json(&self) -> Value {
        match self {
            Said::Rehearsed(Ok(facts)) => json!({
                "outcome": "would_run",
                "engine": Engine::XfsFsr,
                "from": facts.extents,
                "copies_bytes": facts.allocated,
                "stall_seconds": facts.stall.as_secs_f64(),
            }),
            Said::Rehearsed(Err(refusal)) => json!({
                "outcome": "refused",
                "engine": Engine::XfsFsr,
                "guard": refusal.name(),
                "reason": refusal.to_string(),
            }),
            Said::Run(report) => job::run_json(report),
            Said::Online(said) => said.json(),
        }
    }
}

fn in_words(report: &RunReport) -> String {
    let extents = report.to.or(report.from).unwrap_or_default();
    let left = format!("{extents} extents as before");
    match &report.outcome {
        RunOutcome::Improved => {
            let moved = report.read.saturating_add(report.written);
            let from = report.from.unwrap_or_default();
            let seconds = report.took.as_secs_f64();
            format!(
                "{from} → {extents} extents by xfs_fsr, {moved} read and written in {seconds:.1} \
                 s{}",
                account(report)
            )
        }
        RunOutcome::Unchanged { message: None } => format!("unchanged: {left}"),
        RunOutcome::Unchanged {
            message: Some(message),
        } => format!("{}; {left}", unknown_reason(message)),
        RunOutcome::Busy { .. } => {
            format!("{}: {left}", report.outcome.reason().unwrap_or_default())
        }
        RunOutcome::NoSpace => format!("not enough free space: {left}"),
        RunOutcome::Stopped { why } => format!("stopped, because {why}: {left}"),
        RunOutcome::Refused { reason, .. } => format!("left alone: {reason}"),
        RunOutcome::Failed { reason } | RunOutcome::NoReport { reason } => {
            format!("failed: {reason}; {left}")
        }
    }
}

/// What became of its extents, behind the rest of a line.
pub(super) fn account(report: &RunReport) -> String {
    let account = report.account.as_ref();
    account.map_or_else(String::new, |account| format!(": {account}"))
}

fn as_json(results: &[(PathBuf, Done)]) -> Value {
    let runs = results.iter().map(|(path, Done { said, passed })| {
        let mut json = said.json();
        let passed = passed
            .iter()
            .map(|it| json!({ "engine": it.engine, "reason": it.reason }));
        json["passed_over"] = passed.collect();
        json["path"] = json!(shown(path));
        if let Some(hex) = hex_unless_exact(path) {
            json["path_hex"] = json!(hex);
        }
        json
    });
    json!({ "schema": 1, "runs": runs.collect::<Vec<_>>() })
}
