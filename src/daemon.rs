//! `fragwatch run`: what runs beside what, and how it starts, reloads and ends.
//!
//! ```text
//! signals (thread) ─► main loop ─► settings (watch channel) ─► sampler ─► registry ─► status ─► http
//!                                                              mapper ──────┘
//! ```
//!
//! One thread, on which nothing blocks: what touches images runs in the probe helpers, and files are
//! read on threads that may be left behind.
//!
//! # The parts and their lives
//!
//! The rescue is armed before the runtime is there, and ends last but for the history, which takes
//! the final state of an incident. A reload reads the files on a thread of its own (given up after 10 s;
//! the settings in force stay), and every part compares the new settings with its own and changes only
//! what has changed. SIGHUP is answered (READY=1) when the rescue has adopted the new settings.
//!
//! | part | start | reload | stop | health |
//! |---|---|---|---|---|
//! | kernel-log reader | opens /dev/kmsg, looks back 10 s; a thread, armed | takes an edition of the settings from a cell, between two records; keeps incident, limits, place in the log; a log that is switched on is opened at its end | with the process | `rescue`, `kernel_log`, the drill |
//! | actor | a thread, armed | nothing: each order says whether it is a dry run | with the process; a write that hangs is left | `rescue`: alive, and its write returns within 30 s |
//! | stall detector | after the recorder | begun anew if `stall_after` changed, else untouched | its threads end; readers that hang are left | `stall_detector` |
//! | incident recorder | when the rescue is first enabled | another `hook` gets threads of its own, the former ones end after their runs; the incident goes on | takes what the rings and log files still hold, then writes its files: 300 ms | `incident_files` |
//! | log files | two threads a file | those that stay go on at their place, by the new rules; those that go are ended, and their series with them | lines that were found are handed over | `log_file PATH` |
//! | sampler | one pass | a pass with the new settings | dropped, its helpers end | `sampler`: down while a sweep is overdue |
//! | history | opens in the background | retention; another path needs a restart, until which `configuration` is impaired | 500 ms for what waits | `history` |
//! | maintenance | reads the past runs | calendar and plan anew | ends its run | `maintenance`: down once its task has ended |
//! | hooks (`rescue.hook`, `thresholds.hook`) | threads that wait | as the recorder; as the sampler | what runs is left to end | the log, the incident's file |
//! | HTTP | binds `metrics.listen` | binds the new address, then leaves the former; else refused as a whole | closed | `http` |
//! | control socket | on a thread, 2 s | as at the start, if `[control]` changed or there is none | its file is removed | `control_socket` |
//! | textfile | a thread | the former file is removed first | its file is removed: 300 ms | `textfile` |
//!
//! Health is the name of the [`Part`], whose state `fragwatch status`, `check`, `/metrics`
//! (`fragwatch_part_severity`, `fragwatch_klog_source_up`) and the alerts are answered from.

mod chronicle;
mod clock;
mod incident_monitor;
mod klog_files;
mod logging;
mod maintenance;
mod mapper;
mod registry;
pub(crate) mod rescue;
mod sampler;
mod servers;
mod severity_hook;
mod signals;
mod start;
mod systemd;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sd_notify::NotifyState;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::config::{self, ConfigError, Loaded, Settings};
use crate::model::path::shown;
use crate::serve::control;
use crate::serve::metrics::{self, Lifetime};
use crate::serve::parts::{Part, State};
use crate::serve::shared_status::SharedStatus;
use crate::serve::status::InForce;
use crate::serve::textfile::Textfile;
use crate::state_dir::StateDir;
use chronicle::{Chronicle, Claim, Teller};
pub(crate) use chronicle::{read_last_incident, read_runs};
use clock::now;
use maintenance::Maintenance;
pub(crate) use maintenance::is_recent;
use rescue::{Armed, Rescue};
use sampler::{Sampler, sweep_timeout};
use servers::{ControlServer, PageServer};
use signals::Signal;
use start::LastGood;
pub(crate) use start::Start;
use systemd::notify;

/// Requests for the plan that wait for their turn.
const PLAN_REQUESTS: usize = 8;
/// What reading the configuration may take at a reload.
const CONFIG_TIMEOUT: Duration = Duration::from_secs(10);
/// What the rescue may take to adopt new settings; it needs a moment.
const RESCUE_RELOAD_TIMEOUT: Duration = Duration::from_secs(1);
/// What the rescue may take at the end for its last reports.
const RESCUE_STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// node_exporter is scraped about as often.
const TEXTFILE_INTERVAL: Duration = Duration::from_secs(15);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When it must not start, because another daemon has the state directory, or cannot, because there
/// is no event loop.
pub fn run(config: Option<&Path>) -> anyhow::Result<()> {
    let _logging = logging::init();
    let start = Start::read(config);
    if let Some(error) = &start.error {
        error!("{}:\n{error}", start.in_force.in_words());
    }
    // A second daemon ends here, before its rescue is armed: it would act beside the first.
    let claim = Claim::of(&start.settings)?;
    // Before all else, so that nothing of the slow side can keep it from being armed.
    let armed = rescue::start(&start.settings);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()?;
    let result = runtime.block_on(Daemon::start_and_serve(config, start, claim, armed));
    // Not dropped: that would wait for what still blocks.
    runtime.shutdown_background();
    result
}

fn load(config: Option<&Path>) -> Result<Loaded, ConfigError> {
    match config {
        Some(path) => config::load(path),
        None => config::load_default(),
    }
}

struct Daemon {
    config: Option<PathBuf>,
    reading: Option<Reading>,
    /// SIGHUP came while the configuration was being read: it may have changed since.
    read_again: bool,
    settings: watch::Sender<Arc<Settings>>,
    /// Those that the rescue has adopted.
    rescue_settings: watch::Receiver<Arc<Settings>>,
    status: Arc<SharedStatus>,
    server: PageServer,
    last_good: LastGood,
    /// Whether the settings are those of an empty main file.
    is_blank: bool,
    /// `None` if it cannot be had: the daemon counts and rescues all the same.
    control: Option<ControlServer>,
    pages: control::Pages,
    chronicle: Chronicle,
}

impl Daemon {
    async fn start_and_serve(
        config: Option<&Path>,
        start: Start,
        claim: Claim,
        armed: Armed,
    ) -> anyhow::Result<()> {
        // Without them it can still be ended, by the kernel's own means.
        let mut signals = signals::listen()
            .inspect_err(|error| error!("signals are not handled, reload does not work: {error}"))
            .ok();
        info!("fragwatch {} starting", env!("CARGO_PKG_VERSION"));
        // Before anything that another daemon would notice.
        let chronicle = Chronicle::start(&start.settings, claim)?;
        let lifetime = Lifetime::install().context("cannot set up metrics")?;
        let last_good = LastGood::start(config);
        if start.in_force == InForce::Configured {
            last_good.keep(&start.settings, start.is_blank);
        }
        let settings = Arc::new(start.settings);
        let timeout = sweep_timeout(&settings);
        let status = Arc::new(SharedStatus::new(lifetime.clone(), clock::wall(), timeout));
        let server = PageServer::start(settings.metrics.listen, Arc::clone(&status)).await;
        let (plans, plan_requests) = mpsc::channel(PLAN_REQUESTS);
        let pages = control::Pages::new(Arc::clone(&status), chronicle.state(), plans);
        let control = ControlServer::start(&settings.control, &pages, &status).await;
        match start.error {
            None => metrics::config_read(now()),
            Some(_) => metrics::config_refused(),
        }
        status.config_at_start(start.in_force, start.error);
        for file in &start.files {
            info!("configuration read from {}", file.display());
        }
        let (sender, receiver) = watch::channel(Arc::clone(&settings));
        let teller = chronicle.teller();
        let (end_rescue, rescue_end) = watch::channel(false);
        let incidents = chronicle.state().incidents();
        let rescue = Rescue::new(
            armed,
            settings,
            Arc::clone(&status),
            teller.clone(),
            incidents,
        );
        let rescue_settings = rescue.settings();
        let rescue = tokio::spawn(rescue.run(sender.subscribe(), rescue_end));
        let sampler = Sampler::new(receiver, Arc::clone(&status), teller);
        sampler.look_back(chronicle.state().database()).await;
        let (end_runs, end) = watch::channel(false);
        let maintenance = Maintenance::new(
            sender.subscribe(),
            sampler.registry(),
            Arc::clone(&status),
            chronicle.teller(),
            chronicle.state(),
            plan_requests,
        );
        let maintenance = supervise(Part::Maintenance, maintenance.run(end), &status);
        let mut sampling = tokio::spawn(sampler.run());
        tokio::spawn(upkeep(lifetime, Arc::clone(&status), chronicle.teller()));
        let export = tokio::spawn(export(sender.subscribe(), Arc::clone(&status)));
        let mut daemon = Daemon {
            config: config.map(Path::to_owned),
            reading: None,
            read_again: false,
            settings: sender,
            rescue_settings,
            status,
            server,
            last_good,
            is_blank: start.is_blank,
            control,
            pages,
            chronicle,
        };
        notify(&[NotifyState::Ready]);
        let ended = loop {
            tokio::select! {
                Some(signal) = async { Some(signals.as_mut()?.recv().await) } => match signal {
                    Some(Signal::Reload) => daemon.begin_reload(),
                    Some(Signal::End) | None => break Ok(()),
                },
                read = read_of(&mut daemon.reading) => daemon.end_reload(read).await,
                () = daemon.server.keep_listening() => {}
                ended = &mut sampling => {
                    // Without it the daemon would serve old counts as new.
                    break Err(anyhow::anyhow!("the sampler has ended: {ended:?}"));
                }
            }
        };
        info!("shutting down");
        notify(&[NotifyState::Stopping]);
        let _ = end_runs.send(true);
        let _ = maintenance.await;
        // Not before: until here an emergency is acted upon. After it only the history goes on, which
        // takes the last state of an incident.
        let _ = end_rescue.send(true);
        if tokio::time::timeout(RESCUE_STOP_TIMEOUT, rescue)
            .await
            .is_err()
        {
            warn!("the last reports of the rescue were not written in time");
        }
        // It removes its file.
        export.abort();
        let _ = export.await;
        systemd::flush();
        ended
    }

    /// Begins to read the configuration again. On a thread that may be left behind: /etc may lie on a
    /// file system that hangs.
    fn begin_reload(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(since) => notify(&[NotifyState::Reloading, since]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
        match &mut self.reading {
            Some(reading) if reading.hangs() => {
                let error = anyhow::anyhow!(
                    "the configuration cannot be read: the file system that it lies on does not answer"
                );
                self.answer_reload(Err(error));
            }
            Some(_) => self.read_again = true,
            None => self.reading = Some(Reading::start(self.config.clone())),
        }
    }

    /// Adopts a new configuration, or keeps the former one as a whole.
    async fn end_reload(&mut self, read: anyhow::Result<Loaded>) {
        if std::mem::take(&mut self.read_again) {
            return self.begin_reload();
        }
        let result = match read {
            Ok(loaded) if loaded.is_blank && !self.is_blank => {
                let path = self.config.as_deref();
                let path = path.unwrap_or(Path::new(config::DEFAULT_PATH));
                Err(config::blank_file(path).into())
            }
            Ok(loaded) => self.adopt(loaded).await,
            Err(error) => Err(error),
        };
        self.answer_reload(result);
    }

    fn answer_reload(&self, result: anyhow::Result<()>) {
        match result {
            Ok(()) => {
                metrics::config_read(now());
                self.status.config(None);
                info!("configuration reloaded");
            }
            Err(refused) => {
                metrics::config_refused();
                self.status.config(Some(format!("{refused:#}")));
                error!(
                    "the new configuration is refused, the former one stays in force:\n{refused:#}"
                );
            }
        }
        notify(&[NotifyState::Ready]);
    }

    async fn adopt(&mut self, loaded: Loaded) -> anyhow::Result<()> {
        let settings = loaded.settings;
        self.server.move_to(settings.metrics.listen).await?;
        let socket = |server: &ControlServer| server.control == settings.control;
        if !self.control.as_ref().is_some_and(socket) {
            drop(self.control.take());
            let started = ControlServer::start(&settings.control, &self.pages, &self.status);
            self.control = started.await;
        }
        self.note_what_needs_a_restart(&settings);
        self.chronicle
            .teller()
            .set_retention(settings.history.retention);
        self.is_blank = loaded.is_blank;
        self.last_good.keep(&settings, loaded.is_blank);
        let settings = Arc::new(settings);
        // Fails only without a receiver: then the sampler has ended, and the daemon ends too.
        let _ = self.settings.send(Arc::clone(&settings));
        // "Reloaded" means that the rescue has adopted them.
        let adopted = self
            .rescue_settings
            .wait_for(|adopted| Arc::ptr_eq(adopted, &settings));
        let _ = tokio::time::timeout(RESCUE_RELOAD_TIMEOUT, adopted).await;
        Ok(())
    }

    /// The history keeps its database open, and all other state lies beside it.
    fn note_what_needs_a_restart(&self, settings: &Settings) {
        let wanted = StateDir::of(&settings.history);
        let current = self.chronicle.state();
        let state = if wanted == *current {
            State::Up
        } else {
            let reason = format!(
                "history.path = {} needs a restart: until then the history stays in {}",
                shown(wanted.database()),
                shown(current.database())
            );
            warn!("{reason}");
            State::Impaired(reason)
        };
        self.status.set_part(Part::Configuration, state);
    }
}

/// The configuration is being read, on a thread of its own.
struct Reading {
    task: JoinHandle<Result<Loaded, ConfigError>>,
    /// When it is given up; `None` once it was.
    deadline: Option<tokio::time::Instant>,
}

impl Reading {
    fn start(config: Option<PathBuf>) -> Self {
        let read = move || {
            // jiff keeps the rules of a time zone, and which one is the system's, for five minutes
            // (jiff 0.2, DEFAULT_TTL in src/tz/db/zoneinfo/enabled.rs and src/tz/system/mod.rs).
            jiff::tz::db().reset();
            jiff::tz::reset_system_time_zone_cache();
            load(config.as_deref())
        };
        Reading {
            task: tokio::task::spawn_blocking(read),
            deadline: Some(tokio::time::Instant::now() + CONFIG_TIMEOUT),
        }
    }

    /// Whether it was given up and has not come back since.
    fn hangs(&self) -> bool {
        self.deadline.is_none()
    }
}

/// Waits for what is read, at the latest until it is given up; for ever if nothing is being read. One
/// that was given up is left to come back; what it has read then is dropped.
async fn read_of(reading: &mut Option<Reading>) -> anyhow::Result<Loaded> {
    loop {
        let Some(Reading { task, deadline }) = reading else {
            return std::future::pending().await;
        };
        let Some(until) = *deadline else {
            let _ = task.await;
            *reading = None;
            continue;
        };
        match tokio::time::timeout_at(until, task).await {
            Ok(read) => {
                *reading = None;
                return Ok(read??);
            }
            Err(_) => {
                *deadline = None;
                anyhow::bail!(
                    "reading it takes longer than {CONFIG_TIMEOUT:?}: does its file system hang?"
                );
            }
        }
    }
}

/// Writes the metrics to a file as well, if the settings name one.
async fn export(mut settings: watch::Receiver<Arc<Settings>>, status: Arc<SharedStatus>) {
    let mut ticks = tokio::time::interval(TEXTFILE_INTERVAL);
    let mut textfile: Option<Textfile> = None;
    loop {
        let wanted = settings.borrow_and_update().metrics.textfile.clone();
        if textfile.as_ref().map(Textfile::path) != wanted.as_deref() {
            // The former file goes before the new one comes. Its disk may hang.
            let former = textfile.take();
            let _ = tokio::task::spawn_blocking(move || drop(former)).await;
            status.retain_parts(|part| *part != Part::Textfile);
            textfile = wanted.and_then(|path| {
                let failed = |error: &std::io::Error| {
                    let reason = format!("metrics.textfile will not be written: {error}");
                    warn!("{reason}");
                    status.set_part(Part::Textfile, State::Down(reason));
                };
                Textfile::start(path).inspect_err(failed).ok()
            });
        }
        tokio::select! {
            _ = ticks.tick() => if let Some(textfile) = &textfile {
                status.set_part(Part::Textfile, textfile.write(status.metrics()));
            },
            changed = settings.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// What is done every minute.
async fn upkeep(lifetime: Lifetime, status: Arc<SharedStatus>, teller: Teller) {
    let mut ticks = tokio::time::interval(Lifetime::UPKEEP_INTERVAL);
    // At once: the history needs a moment before it can be asked.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        lifetime.upkeep();
        status.set_part(Part::History, teller.state());
    }
}

/// Runs a part of the daemon that ends only with it. Should it end earlier, it is down.
fn supervise(
    part: Part,
    task: impl Future<Output = ()> + Send + 'static,
    status: &Arc<SharedStatus>,
) -> JoinHandle<()> {
    status.set_part(part.clone(), State::Up);
    let (task, status) = (tokio::spawn(task), Arc::clone(status));
    tokio::spawn(async move {
        let reason = match task.await {
            Ok(()) => "its task has ended; only a restart begins it anew".to_owned(),
            Err(error) => format!("its task has ended ({error}); only a restart begins it anew"),
        };
        status.set_part(part, State::Down(reason));
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UnixTime;

    #[tokio::test]
    async fn a_part_whose_task_has_ended_is_down() {
        let status = SharedStatus::new(Lifetime::detached(), UnixTime(0), Duration::MAX / 4);
        let status = Arc::new(status);
        let maintenance = || {
            let parts = status.status().parts;
            let part = parts.into_iter().find(|part| part.part == "maintenance");
            part.unwrap().to_string()
        };
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let task = async { ended.await.unwrap() };
        let task = supervise(Part::Maintenance, task, &status);
        assert_eq!(maintenance(), "maintenance up");
        drop(end);
        task.await.unwrap();
        let down = maintenance();
        assert!(
            down.starts_with("maintenance down: its task has ended (task"),
            "{down}"
        );
    }
}
