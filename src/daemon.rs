//! `fragwatch run`: the parts of the daemon, and how they start, reload and stop.
//!
//! ```text
//! signals (thread) ─► main loop ─► settings (watch channel) ─► sampler ─► registry ─► status ─► http
//!                                                              mapper ──────┘
//! ```
//!
//! All of this runs on one thread, which never blocks: the probe helpers access the images, and
//! files are read on threads that may be left behind.
//!
//! # The parts and their lifecycles
//!
//! The rescue is armed before the runtime exists, and ends after maintenance but before the
//! history, which records the final state of an incident. A reload reads the files on its own
//! thread (given up after 10 s; the settings in force stay), and every part compares the new
//! settings with its own and applies only the differences. A configuration that could not be read in
//! time for the start is taken in the same way, whenever it arrives. The reply to SIGHUP (READY=1)
//! waits, for at most 1 s, until the rescue has adopted the new settings.
//!
//! | part | start | reload | stop | health |
//! |---|---|---|---|---|
//! | kernel-log reader | opens /dev/kmsg, looks back 10 s; a thread, armed | takes an edition of the settings from a cell, between two records; keeps the incident, the limits and the position in the log; a log that is switched on is opened at its end | with the process | `rescue`, `kernel_log`, the drill |
//! | actor | a thread, armed | none: each order carries the dry-run flag | with the process; a write that hangs is left | `rescue`: alive, and its write returns within 30 s |
//! | stall detector | after the recorder | restarted if `stall_after` changed, else untouched | its threads end; readers that hang are left | `stall_detector` |
//! | incident recorder | when the rescue is first enabled | another `hook` gets its own threads, the former ones end after their runs; the incident continues | takes what the rings and log files still hold, then writes its files: 300 ms | `incident_files` |
//! | log files | two threads a file | those that stay continue at their position, by the new rules; those that go are ended, and their series with them | matching lines are handed over | `log_file PATH` |
//! | sampler | one pass | a pass with the new settings | dropped, its helpers end | `sampler`: down while a sweep is overdue |
//! | history | opens in the background | retention; another path needs a restart, until which `configuration` is impaired | 500 ms for pending records | `history` |
//! | maintenance | reads the past runs | new calendar and plan | ends its run | `maintenance`: down once its task has ended |
//! | doctor | its first examination after a minute, then daily | examines anew if `[doctor]` changed | dropped; readers that hang are left | the log, `status` |
//! | hooks (`rescue.hook`, `thresholds.hook`) | threads that wait | as the recorder; as the sampler | runs under way are left to end | the log, the incident's file |
//! | HTTP | binds `metrics.listen` | binds the new address, then leaves the former; else refused as a whole | closed | `http` |
//! | control socket | on a thread, 2 s | as at the start, if `[control]` changed or there is none | its file is removed | `control_socket` |
//! | textfile | a thread | the former file is removed first | its file is removed: 300 ms | `textfile` |
//!
//! The health column names the [`Part`] whose state `fragwatch status`, `check`, `/metrics`
//! (`fragwatch_part_severity`, `fragwatch_klog_source_up`) and the alerts report.

mod blocking;
mod clock;
mod doctor;
mod history;
mod incident_monitor;
mod instance_lock;
mod klog_files;
mod logging;
mod maintenance;
mod mapper;
mod registry;
mod reload;
pub(crate) mod rescue;
mod sampler;
mod servers;
mod severity_hook;
mod signals;
mod start;
mod systemd;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sd_notify::NotifyState;
use signal_hook::consts::SIGHUP;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::config::{Loaded, Settings, blank_file};
use crate::model::path::shown;
use crate::serve::control;
use crate::serve::metrics::{self, Lifetime};
use crate::serve::page;
use crate::serve::parts::{Part, State};
use crate::serve::plan::PlanRequests;
use crate::serve::shared_status::SharedStatus;
use crate::serve::status::InForce;
use crate::serve::textfile::Textfile;
use crate::state_dir::StateDir;
use crate::sys::heap;
use clock::now;
use history::{HistoryHandle, HistoryService};
pub(crate) use history::{read_last_incident, read_runs};
use instance_lock::InstanceLock;
use maintenance::Maintenance;
pub(crate) use maintenance::is_recent;
use registry::SharedRegistry;
use reload::ConfigReader;
use rescue::{Armed, Rescue};
use sampler::{Sampler, sweep_timeout};
use servers::{ControlServer, PageServer};
use start::LastGood;
pub(crate) use start::Start;
use systemd::notify;

const PLAN_REQUESTS: usize = 8;
const RESCUE_RELOAD_TIMEOUT: Duration = Duration::from_secs(1);
const RESCUE_STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// About the interval at which node_exporter is scraped.
const TEXTFILE_INTERVAL: Duration = Duration::from_secs(15);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// If another daemon has the state directory, or there is no event loop.
pub fn run(config: Option<&Path>) -> anyhow::Result<()> {
    heap::configure();
    let _logging = logging::init();
    let start = Start::read(config);
    if let Some(error) = &start.error {
        error!("{}:\n{error}", start.in_force.text());
    }
    // A second daemon ends here, before its rescue is armed and acts beside the first.
    let lock = InstanceLock::take(&start.loaded.settings)?;
    // First, so that the slow side cannot delay it.
    let armed = rescue::start(&start.loaded.settings);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // One is for the pages, whose reads wait for each other: if their disk hangs, the others
        // are still free.
        .max_blocking_threads(6)
        .build()?;
    let result = runtime.block_on(async {
        // Without a handler, signals still end the process by their default action.
        let mut signals = signals::listen()
            .inspect_err(|error| error!("signals are not handled, reload does not work: {error}"))
            .ok();
        info!("fragwatch {} starting", env!("CARGO_PKG_VERSION"));
        let mut daemon = Daemon::start(config, start, lock, armed).await?;
        let ended = daemon.serve(&mut signals).await;
        daemon.stop().await;
        ended
    });
    // Not dropped: that would wait for blocked threads.
    runtime.shutdown_background();
    result
}

struct Daemon {
    config: ConfigReader,
    settings: watch::Sender<Arc<Settings>>,
    rescue_settings: watch::Receiver<Arc<Settings>>,
    status: Arc<SharedStatus>,
    server: PageServer,
    last_good: LastGood,
    is_blank: bool,
    /// `None` if it cannot be created; counting and the rescue do not need it.
    control: Option<ControlServer>,
    pages: control::Pages,
    history: HistoryService,
    sampler: JoinHandle<()>,
    maintenance: JoinHandle<()>,
    end_maintenance: watch::Sender<bool>,
    rescue: JoinHandle<()>,
    end_rescue: watch::Sender<bool>,
    export: JoinHandle<()>,
}

impl Daemon {
    async fn start(
        config: Option<&Path>,
        start: Start,
        lock: InstanceLock,
        armed: Armed,
    ) -> anyhow::Result<Daemon> {
        // Before anything that another daemon would notice.
        let (loaded, in_force) = (start.loaded, start.in_force);
        let history = HistoryService::start(&loaded.settings, lock)?;
        let lifetime = Lifetime::install().context("cannot set up metrics")?;
        let last_good = LastGood::start(config);
        if in_force == InForce::Configured {
            last_good.keep(&loaded.settings, loaded.is_blank);
        }
        let settings = Arc::new(loaded.settings);
        let timeout = sweep_timeout(&settings);
        let status = SharedStatus::new(lifetime.clone(), clock::wall(), timeout);
        let status = Arc::new(status);
        let (sender, receiver) = watch::channel(Arc::clone(&settings));
        let registry = SharedRegistry::default();
        let (plans, plan_requests) = mpsc::channel(PLAN_REQUESTS);
        let plans = PlanRequests(plans);
        let pages = page::Sources {
            status: Arc::clone(&status),
            inventory: Arc::new(registry.clone()),
            settings: receiver.clone(),
            state: history.state.clone(),
            plans: plans.clone(),
        };
        let server = PageServer::start(settings.metrics.listen, pages).await;
        let pages = control::Pages::new(Arc::clone(&status), &history.state, plans);
        let control = ControlServer::start(&settings.control, &pages, &status).await;
        match start.error {
            None => metrics::config_read(now()),
            Some(_) => metrics::config_refused(),
        }
        status.update(|status| {
            status.daemon.config_in_force = in_force;
            status.daemon.config_refused = start.error;
        });
        for file in &loaded.files {
            info!("configuration read from {}", file.display());
        }
        let rescue = Rescue::new(
            armed,
            settings,
            Arc::clone(&status),
            history.handle.clone(),
            history.state.incidents(),
        );
        let rescue_settings = rescue.settings.subscribe();
        let (end_rescue, rescue_end) = watch::channel(false);
        let rescue = tokio::spawn(rescue.run(sender.subscribe(), rescue_end));
        let sampler = Sampler::new(
            receiver,
            Arc::clone(&status),
            registry.clone(),
            history.handle.clone(),
        );
        sampler.look_back(history.state.database()).await;
        let maintenance = Maintenance::new(
            sender.subscribe(),
            registry,
            Arc::clone(&status),
            history.handle.clone(),
            &history.state,
            plan_requests,
        );
        let mut reader = ConfigReader::new(config);
        if start.is_late {
            reader.read_late();
        }
        tokio::spawn(doctor::run(sender.subscribe(), Arc::clone(&status)));
        let (end_maintenance, end) = watch::channel(false);
        tokio::spawn(upkeep(
            lifetime,
            Arc::clone(&status),
            history.handle.clone(),
        ));
        Ok(Daemon {
            config: reader,
            rescue_settings,
            server,
            last_good,
            is_blank: loaded.is_blank,
            control,
            pages,
            history,
            maintenance: supervise(Part::Maintenance, maintenance.run(end), &status),
            end_maintenance,
            sampler: tokio::spawn(sampler.run()),
            rescue,
            end_rescue,
            export: tokio::spawn(export(sender.subscribe(), Arc::clone(&status))),
            settings: sender,
            status,
        })
    }

    async fn serve(&mut self, signals: &mut Option<UnboundedReceiver<i32>>) -> anyhow::Result<()> {
        notify(&[NotifyState::Ready]);
        loop {
            tokio::select! {
                Some(signal) = async { Some(signals.as_mut()?.recv().await) } => match signal {
                    Some(SIGHUP) => self.begin_reload(),
                    Some(_) | None => return Ok(()),
                },
                read = self.config.read() => self.end_reload(read).await,
                () = self.server.keep_listening() => {}
                ended = &mut self.sampler => {
                    // Without it the daemon would serve old counts as new.
                    return Err(anyhow::anyhow!("the sampler has ended: {ended:?}"));
                }
            }
        }
    }

    async fn stop(self) {
        info!("shutting down");
        notify(&[NotifyState::Stopping]);
        let _ = self.end_maintenance.send(true);
        let _ = self.maintenance.await;
        // Not earlier: emergencies are acted on until here. The history ends later.
        let _ = self.end_rescue.send(true);
        let stopped = tokio::time::timeout(RESCUE_STOP_TIMEOUT, self.rescue).await;
        if stopped.is_err() {
            warn!("the last reports of the rescue were not written in time");
        }
        // Dropping the task's state removes the file.
        self.export.abort();
        let _ = self.export.await;
        systemd::flush();
    }

    fn begin_reload(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(since) => notify(&[NotifyState::Reloading, since]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
        if let Err(error) = self.config.request() {
            self.answer_reload(Err(error));
        }
    }

    /// Adopts a new configuration, or keeps the former one as a whole.
    async fn end_reload(&mut self, read: anyhow::Result<Loaded>) {
        let result = match read {
            Ok(loaded) if loaded.is_blank && !self.is_blank => {
                Err(blank_file(self.config.path()).into())
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
        self.history
            .handle
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

    /// The history keeps its database open, and all other state is in the same directory.
    fn note_what_needs_a_restart(&self, settings: &Settings) {
        let wanted = StateDir::of(&settings.history);
        let current = &self.history.state;
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

async fn export(mut settings: watch::Receiver<Arc<Settings>>, status: Arc<SharedStatus>) {
    let mut ticks = tokio::time::interval(TEXTFILE_INTERVAL);
    let mut textfile: Option<Textfile> = None;
    loop {
        let wanted = settings.borrow_and_update().metrics.textfile.clone();
        if textfile.as_ref().map(Textfile::path) != wanted.as_deref() {
            // The former file is removed before the new one is created. Its disk may hang.
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

async fn upkeep(lifetime: Lifetime, status: Arc<SharedStatus>, history: HistoryHandle) {
    let mut ticks = tokio::time::interval(Lifetime::UPKEEP_INTERVAL);
    // The first tick is immediate, but the state of the history is not known that early.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        lifetime.upkeep();
        status.set_part(Part::History, history.state());
    }
}

/// Runs a part that must run as long as the daemon, and reports it as down if it ends earlier.
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
