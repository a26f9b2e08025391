//! `fragwatch defrag`: defragments images immediately, without the daemon. `fragwatch defrag-job`:
//! the process in which the daemon runs a defragmentation.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGTSTP, SIGTTOU};

use super::args::DefragArguments;
use super::command::load_config;
use super::fleet_lock::{self, HeldLock};
use super::output::{self, INCOMPLETE, SCHEMA, SUCCESS};
use super::planning;
use super::progress::Progress;
use crate::config::Settings;
use crate::defrag::blockcopy::recover::{recover_all, resume_all};
use crate::defrag::engine::{self, Event};
use crate::defrag::hint;
use crate::defrag::job::{DefragJob, JobMessage, JobProgress, JobReport, PassedOver};
use crate::defrag::run::Hold;
use crate::fleet::lock::FleetLock;
use crate::model::path::shown;
use crate::model::{Engine, ReasonCode, RunForecast, RunOutcome, RunReport, Stop, unknown_reason};
use crate::protect::rewrite;
use crate::serve::of_file;
use crate::state_dir::StateDir;
use crate::sys::child::ignore;

/// Minimum interval between progress reports to the daemon.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn run(arguments: &DefragArguments, config: Option<&Path>) -> anyhow::Result<u8> {
    let mut settings = load_config(config)?.settings;
    if !arguments.force_window && !arguments.dry_run {
        check_window(&settings)?;
    }
    settings.defrag.dry_run |= arguments.dry_run;
    let mut signals = Signals::handle()?;
    if !arguments.force_window {
        signals.until = window_end(&settings);
    }
    let lock = take_lock(arguments, &settings)?;
    let mut results = Vec::new();
    for image in &arguments.images {
        let path = std::path::absolute(image)
            .with_context(|| format!("{}: no path can be made of it", shown(image)))?;
        if let Err(held) = check_hold(arguments, &settings) {
            output::eprint_error(&format!("{}: {held:#}", shown(&path)));
            break;
        }
        let Some(report) = on(&path, arguments, &settings, &signals) else {
            break;
        };
        if !arguments.json {
            let words = in_words(&report.run, settings.defrag.dry_run);
            output::print(&format!("{}: {words}\n", shown(&path)))?;
        }
        results.push((path, report));
        signals.stop_if_suspended(lock.is_some());
        if signals.ended() {
            break;
        }
    }
    if arguments.json {
        output::print(&format!("{:#}\n", as_json(&results)))?;
    }
    let all = results.len() == arguments.images.len();
    let fine = all && results.iter().all(|(_, report)| is_fine(&report.run));
    Ok(if fine { SUCCESS } else { INCOMPLETE })
}

/// Fails unless a maintenance window is open; a manual run at other times needs `--force-window`.
fn check_window(settings: &Settings) -> anyhow::Result<()> {
    let (calendar, now) = (planning::calendar(settings), Timestamp::now());
    if calendar.open_until(now).is_some() {
        return Ok(());
    }
    let Some(next) = calendar.next_opening(now) else {
        bail!("no maintenance window is configured; --force-window defragments now");
    };
    let opens = next.opens.to_zoned(calendar.zone().clone());
    bail!(
        "no maintenance window is open; the next one opens at {}; --force-window defragments now",
        opens.strftime("%a %Y-%m-%d %H:%M %Z")
    )
}

/// The lock of `maintenance.lock`, until it is dropped; `None` if none is needed.
fn take_lock(arguments: &DefragArguments, settings: &Settings) -> anyhow::Result<Option<HeldLock>> {
    if settings.defrag.dry_run || arguments.force_lock {
        return Ok(None);
    }
    let hints = StateDir::of(&settings.history).hints();
    // No lock is released before.
    recover_all(&hints, |text| output::eprint_error(&text));
    fleet_lock::release_left(&hints);
    let held = HeldLock::take(&settings.maintenance.lock, &hints)?;
    if let Some(held) = held.as_ref().filter(|_| !arguments.json) {
        let FleetLock { group, id, .. } = &held.lock;
        output::eprint_error(&format!("maintenance.lock: {id} holds the lock of {group}"));
    }
    Ok(held)
}

/// Fails if `maintenance.hold` is against a run; `--force-window` is for a hold too.
fn check_hold(arguments: &DefragArguments, settings: &Settings) -> anyhow::Result<()> {
    if arguments.force_window || settings.defrag.dry_run {
        return Ok(());
    }
    fleet_lock::check_hold(&settings.maintenance.hold)
}

fn window_end(settings: &Settings) -> Option<Instant> {
    let now = Timestamp::now();
    let closes = planning::calendar(settings).open_until(now)?;
    let left = closes.duration_since(now).unsigned_abs();
    Instant::now().checked_add(left)
}

/// Defragments one image with the named engines, else with the configured ones except those that
/// the planner passes over: unlike the guards, which decide last, it has the VM's name and
/// computes whether a run would end before the window closes. `None` if no engine is left.
fn on(
    path: &Path,
    arguments: &DefragArguments,
    settings: &Settings,
    signals: &Signals,
) -> Option<JobReport> {
    let named: Vec<Engine> = arguments.engine.iter().map(|name| name.engine()).collect();
    let (engines, mut passed_over) = if named.is_empty() {
        let passed_over = planning::passed_over(settings, path, arguments.force_window);
        (&settings.defrag.engines, passed_over)
    } else {
        (&named, Vec::new())
    };
    let mut view = View::new(path, arguments.json);
    for (PassedOver { engine, reason }, next) in passed_over.iter().zip(engines.iter().skip(1)) {
        view.passed_over(*engine, reason, *next);
    }
    let mut left = engines.iter().skip(passed_over.len()).copied();
    let state = StateDir::of(&settings.history);
    let job = DefragJob::new(
        path.to_owned(),
        left.next()?,
        left.collect(),
        settings.defrag.clone(),
        state.hints(),
        state.database().to_owned(),
    );
    let mut report = job.run(&mut || signals.order(), &mut |event| view.show(event));
    passed_over.append(&mut report.passed_over);
    report.passed_over = passed_over;
    Some(report)
}

/// Carries out the daemon's job from standard input.
pub(super) fn job() -> anyhow::Result<u8> {
    let job = DefragJob::read(io::stdin().lock())?;
    let signals = Signals::handle()?;
    let write = |message: JobMessage| -> anyhow::Result<()> {
        let line = serde_json::to_string(&message)?;
        Ok(output::print(&format!("{line}\n"))?)
    };
    let mut last: Option<Instant> = None;
    let mut watch = |event| {
        let Event::Progress(engine::Progress { done, total, .. }) = event else {
            return;
        };
        if last.is_none_or(|last| last.elapsed() >= PROGRESS_INTERVAL) {
            last = Some(Instant::now());
            let done = done.min(total);
            // If the daemon has ended, nobody reads this, and the process will be killed.
            drop(write(JobMessage::Progress(JobProgress { done, total })));
        }
    };
    let report = job.run(&mut || signals.order(), &mut watch);
    write(JobMessage::Report(Box::new(report)))?;
    Ok(SUCCESS)
}

/// Restores the hints left by killed runs, ends what they have begun, and releases their locks. Never
/// fails: what cannot be done stays recorded. Guests that stand still come first, or (`suspended`)
/// alone.
pub(super) fn restore_hints(hints: &Path, suspended: bool) -> u8 {
    resume_all(hints, |text| output::eprint_error(&text));
    if suspended {
        return SUCCESS;
    }
    hint::restore_all(hints, |text| output::eprint_error(&text));
    rewrite::recover(hints, |text| output::eprint_error(&text));
    recover_all(hints, |text| output::eprint_error(&text));
    // Last: until then a copy may go on.
    fleet_lock::release_left(hints);
    SUCCESS
}

pub(super) struct Signals {
    ended: Arc<AtomicBool>,
    suspended: Arc<AtomicBool>,
    /// When the maintenance window closes.
    until: Option<Instant>,
}

impl Signals {
    /// The first SIGINT, SIGTERM or SIGHUP ends the run; the second ends this process immediately,
    /// and the kernel then ends xfs_fsr. Ctrl-Z ends the run before it stops or ends the process: a stopped
    /// process would block every process waiting at the gate. SIGTTOU is ignored for the same
    /// reason: writing to the terminal must not stop a background process (`stty tostop`).
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
        Ok(Signals {
            ended,
            suspended,
            until: None,
        })
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    pub(super) fn order(&self) -> Option<Stop> {
        let is_over = |until| Instant::now() >= until;
        match () {
            () if self.ended() => Some(Stop::Shutdown),
            () if self.suspended.load(Ordering::Relaxed) => Some(Stop::Suspended),
            () if self.until.is_some_and(is_over) => Some(Stop::WindowClosed),
            () => None,
        }
    }

    /// Stops the process if that was requested; the next image follows after SIGCONT. It ends instead
    /// if it holds a lock that other hosts wait for, or has no terminal, where nobody would continue it
    /// and the daemon would wait.
    fn stop_if_suspended(&self, holds_lock: bool) {
        if !self.suspended.swap(false, Ordering::Relaxed) {
            return;
        }
        // ENXIO without a controlling terminal (tty(4)).
        let may_stop = !holds_lock && std::fs::File::open("/dev/tty").is_ok();
        if !may_stop || signal_hook::low_level::emulate_default_handler(SIGTSTP).is_err() {
            self.ended.store(true, Ordering::Relaxed);
        }
    }
}

struct View {
    path: String,
    name: String,
    quiet: bool,
    bar: Option<Progress>,
}

impl View {
    fn new(path: &Path, quiet: bool) -> View {
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        View {
            path: shown(path),
            name: shown(&name),
            quiet,
            bar: None,
        }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Notice(text) if !self.quiet => {
                output::eprint_error(&format!("{}: {text}", self.name));
            }
            Event::Notice(_) => {}
            Event::PassedOver {
                engine,
                reason,
                next,
            } => {
                self.bar = None;
                self.passed_over(engine, &reason, next);
            }
            Event::Cleared(progress) => {
                self.bar = Some(match progress.engine {
                    Engine::XfsFsr | Engine::BlockCopy => Progress::bytes(progress.total),
                    Engine::Online => Progress::bar(progress.total),
                });
            }
            Event::Progress(progress) => {
                if let Some(bar) = &mut self.bar {
                    let message = format!("{}: {}", self.name, so_far(&progress));
                    bar.set_total(progress.total);
                    bar.at(progress.done.min(progress.total), message);
                }
            }
        }
    }

    fn passed_over(&self, engine: Engine, reason: &str, next: Engine) {
        if !self.quiet {
            output::eprint_error(&format!("{}: {next}, not {engine}: {reason}", self.path));
        }
    }
}

fn so_far(progress: &engine::Progress) -> String {
    let engine::Progress { extents, .. } = progress;
    let state = match (progress.held, progress.engine) {
        (Some(Hold::Pressure), _) => ", waits: others need the disks",
        (Some(Hold::Bandwidth), Engine::Online) => ", waits: bandwidth",
        (None, Engine::Online) | (_, Engine::BlockCopy) => "",
        (_, Engine::XfsFsr) if progress.done < progress.total => "",
        (_, Engine::XfsFsr) => ", final swap",
    };
    match progress.engine {
        Engine::XfsFsr | Engine::BlockCopy => format!("{extents} extents{state}"),
        Engine::Online => {
            let left = extents.0.saturating_sub(progress.done.min(progress.total));
            let (segments, worst, median) = progress.calls;
            let calls = calls(median, worst);
            format!("{left} extents left, {segments} segments, {calls}{state}")
        }
    }
}

fn calls(median: Duration, worst: Duration) -> String {
    let [median, worst] = [median, worst].map(|time| time.as_secs_f64() * 1e3);
    format!("calls {median:.1} ms (worst {worst:.1} ms)")
}

fn is_fine(run: &RunReport) -> bool {
    match run.outcome {
        RunOutcome::Improved | RunOutcome::WouldRun { .. } => true,
        RunOutcome::Refused { guard, .. } => guard == ReasonCode::NearIdeal,
        _ => false,
    }
}

fn in_words(run: &RunReport, dry_run: bool) -> String {
    let (engine, from) = (run.engine, run.from.unwrap_or_default());
    let online = engine == Engine::Online;
    let colon = |text: &str| format!("{text}: ");
    let before = match &run.outcome {
        RunOutcome::Refused { reason, .. } if dry_run => {
            return format!("would be left alone: {reason}");
        }
        RunOutcome::Refused { reason, .. } => return format!("left alone: {reason}"),
        RunOutcome::WouldRun { forecast } => {
            let does = match forecast {
                RunForecast::Copy { copies, .. } => format!("copies {copies}"),
                RunForecast::Segments { gain, .. } => format!("{gain} can go away"),
            };
            return format!("would be defragmented by {engine}: {from} extents, {does}");
        }
        RunOutcome::Stopped { why } if run.from.is_none() => {
            return format!("not begun, because {why}");
        }
        RunOutcome::Stopped { why } => format!("stopped, because {why}: "),
        RunOutcome::Failed { reason } | RunOutcome::NoReport { reason } => {
            if run.from.is_none() {
                return format!("failed: {reason}");
            }
            format!("failed: {reason}; ")
        }
        RunOutcome::Improved => String::new(),
        RunOutcome::Unchanged { .. } if online => {
            colon("no fewer extents, the guest makes new ones")
        }
        RunOutcome::Unchanged { message: None } => colon("unchanged"),
        RunOutcome::Unchanged {
            message: Some(message),
        } => format!("{}; ", unknown_reason(message)),
        RunOutcome::NoSpace if online => colon("ended, because free space came to its limit"),
        RunOutcome::NoSpace => colon("not enough free space"),
        RunOutcome::Busy { .. } => colon(&run.outcome.reason().unwrap_or_default()),
    };
    before + &work_in_words(run)
}

fn work_in_words(run: &RunReport) -> String {
    let (from, to) = (run.from.unwrap_or_default(), run.to.unwrap_or_default());
    let seconds = run.took.as_secs_f64();
    let account = run.account.as_ref();
    let account = account.map_or_else(String::new, |account| format!(": {account}"));
    let how = match &run.segments {
        Some(work) => {
            let worst = run.stalls.unwrap_or_default().longest;
            let calls = calls(work.median_call, worst);
            format!(
                "online, {} segments in {seconds:.1} s, {calls}",
                work.segments
            )
        }
        None if run.outcome == RunOutcome::Improved => {
            let moved = run.read.saturating_add(run.written);
            let engine = run.engine;
            format!("{engine}, {moved} read and written in {seconds:.1} s")
        }
        None => return format!("{} extents as before", run.to.unwrap_or(from)),
    };
    format!("{from} → {to} extents by {how}{account}")
}

fn as_json(results: &[(PathBuf, JobReport)]) -> Value {
    let runs = results.iter();
    let runs = runs.map(|(path, report)| of_file(path, report.to_json()));
    json!({ "schema": SCHEMA, "runs": runs.collect::<Vec<_>>() })
}
