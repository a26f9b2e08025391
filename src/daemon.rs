//! `fragwatch run`: what runs beside what, and how it starts, reloads and ends.
//!
//! ```text
//! signals (thread) ─► main loop ─► settings (watch channel) ─► sampler ─► inventory ─► board ─► http
//!                                                              mapper ──────┘
//! ```
//!
//! One thread, on which nothing blocks: what touches images runs in the probe helpers.

mod chronicle;
mod inventory;
mod klog_files;
mod logging;
mod maintenance;
mod mapper;
pub(crate) mod rescue;
mod sampler;
mod servers;
mod severity_hook;
mod signals;
mod start;
mod steady;
mod systemd;
mod witness;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use sd_notify::NotifyState;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::config::{self, ConfigError, Loaded, Settings};
use crate::model::UnixTime;
use crate::rescue::thread::FastSide;
use crate::serve::board::Board;
use crate::serve::control;
use crate::serve::metrics::{self, Lifetime};
use crate::serve::status::InForce;
use crate::serve::textfile::Textfile;
use chronicle::{Chronicle, Claim};
pub(crate) use chronicle::{read_last_incident, read_runs};
use maintenance::Maintenance;
pub(crate) use maintenance::is_recent;
use sampler::Sampler;
use servers::{ControlServer, PageServer};
use signals::Signal;
use start::LastGood;
pub(crate) use start::Start;
use systemd::notify;

/// A sweep may be late by this, beside its interval and its deadlines, before the daemon calls
/// itself ill.
const PATIENCE: Duration = Duration::from_secs(60);

/// Questions for the plan that wait for their turn.
const PLAN_REQUESTS: usize = 8;

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
    // A second daemon ends here, before it is armed: it would act beside the first.
    let claim = Claim::of(&start.settings)?;
    // Before all else, so that nothing of the slow side can keep it from being armed.
    let fast = rescue::start(&start.settings);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()?;
    let result = runtime.block_on(Daemon::start_and_serve(config, start, claim, fast));
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
    settings: watch::Sender<Arc<Settings>>,
    board: Arc<Board>,
    server: PageServer,
    last_good: LastGood,
    /// Nothing if it cannot be had: the daemon counts and rescues all the same.
    control: Option<ControlServer>,
    pages: control::Pages,
    chronicle: Chronicle,
}

impl Daemon {
    async fn start_and_serve(
        config: Option<&Path>,
        start: Start,
        claim: Claim,
        fast: Option<FastSide>,
    ) -> anyhow::Result<()> {
        // Without them it can still be ended, by the kernel's own means.
        let mut signals = signals::listen()
            .inspect_err(|error| error!("signals are not handled, reload does not work: {error}"))
            .ok();
        info!("fragwatch {} begins", env!("CARGO_PKG_VERSION"));
        // Before anything that another daemon would notice.
        let chronicle = Chronicle::start(&start.settings, claim)?;
        let lifetime = Lifetime::install().context("cannot set up metrics")?;
        let last_good = LastGood::start(config);
        if start.in_force == InForce::Configured {
            last_good.keep(&start.settings);
        }
        let settings = Arc::new(start.settings);
        let started = UnixTime::from_seconds(now());
        let board = Arc::new(Board::new(lifetime.clone(), started, patience(&settings)));
        let server = PageServer::start(settings.metrics.listen, Arc::clone(&board)).await;
        let (plans, plan_requests) = mpsc::channel(PLAN_REQUESTS);
        let pages = control::Pages::new(Arc::clone(&board), chronicle.state(), plans);
        let control = ControlServer::start(&settings.control, &pages);
        match start.error {
            None => metrics::config_read(now()),
            Some(_) => metrics::config_refused(),
        }
        board.config_at_start(start.in_force, start.error);
        for file in &start.files {
            info!("configuration read from {}", file.display());
        }
        let (sender, receiver) = watch::channel(settings);
        let teller = chronicle.teller();
        let rescue = rescue::run(
            fast,
            sender.subscribe(),
            Arc::clone(&board),
            teller.clone(),
            chronicle.state().incidents(),
        );
        tokio::spawn(rescue);
        let sampler = Sampler::new(receiver, Arc::clone(&board), teller);
        sampler.look_back(chronicle.state().database()).await;
        let (end_runs, end) = watch::channel(false);
        let maintenance = Maintenance::new(
            sender.subscribe(),
            sampler.inventory(),
            Arc::clone(&board),
            chronicle.teller(),
            chronicle.state(),
            plan_requests,
        );
        let maintenance = tokio::spawn(maintenance.run(end));
        let mut sampling = tokio::spawn(sampler.run());
        tokio::spawn(upkeep(lifetime));
        let export = tokio::spawn(export(sender.subscribe(), Arc::clone(&board)));
        let mut daemon = Daemon {
            config: config.map(Path::to_owned),
            settings: sender,
            board,
            server,
            last_good,
            control,
            pages,
            chronicle,
        };
        notify(&[NotifyState::Ready]);
        loop {
            tokio::select! {
                Some(signal) = async { Some(signals.as_mut()?.recv().await) } => match signal {
                    Some(Signal::Reload) => daemon.reload().await,
                    Some(Signal::End) | None => break,
                },
                () = daemon.server.keep_listening() => {}
                ended = &mut sampling => {
                    // It loops for ever; without it the daemon would serve old counts as new.
                    anyhow::bail!("the sampler has ended: {ended:?}");
                }
            }
        }
        info!("ending");
        notify(&[NotifyState::Stopping]);
        let _ = end_runs.send(true);
        let _ = maintenance.await;
        // It removes its file.
        export.abort();
        let _ = export.await;
        systemd::flush();
        Ok(())
    }

    /// Takes on a new configuration, or keeps the former one whole.
    async fn reload(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(since) => notify(&[NotifyState::Reloading, since]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
        match self.try_reload().await {
            Ok(()) => {
                metrics::config_read(now());
                self.board.config(None);
                info!("configuration reloaded");
            }
            Err(refused) => {
                metrics::config_refused();
                self.board.config(Some(format!("{refused:#}")));
                error!(
                    "the new configuration is refused, the former one stays in force:\n{refused:#}"
                );
            }
        }
        notify(&[NotifyState::Ready]);
    }

    async fn try_reload(&mut self) -> anyhow::Result<()> {
        let settings = load(self.config.as_deref())?.settings;
        self.server.move_to(settings.metrics.listen).await?;
        let socket = |server: &ControlServer| server.control == settings.control;
        if !self.control.as_ref().is_some_and(socket) {
            drop(self.control.take());
            self.control = ControlServer::start(&settings.control, &self.pages);
        }
        self.chronicle
            .teller()
            .set_retention(settings.history.retention);
        self.last_good.keep(&settings);
        // Fails only without a receiver, and then the sampler has ended and so do we.
        let _ = self.settings.send(Arc::new(settings));
        Ok(())
    }
}

/// Writes the metrics to a file as well, if the settings name one.
async fn export(mut settings: watch::Receiver<Arc<Settings>>, board: Arc<Board>) {
    let mut ticks = tokio::time::interval(TEXTFILE_INTERVAL);
    let mut textfile: Option<Textfile> = None;
    loop {
        let wanted = settings.borrow_and_update().metrics.textfile.clone();
        if textfile.as_ref().map(Textfile::path) != wanted.as_deref() {
            // The former file goes before the new one comes.
            drop(textfile.take());
            let start = |path| {
                Textfile::start(path)
                    .inspect_err(|error| warn!("metrics.textfile will not be written: {error}"))
                    .ok()
            };
            textfile = wanted.and_then(start);
        }
        tokio::select! {
            _ = ticks.tick() => if let Some(textfile) = &textfile {
                textfile.write(board.metrics());
            },
            changed = settings.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

async fn upkeep(lifetime: Lifetime) {
    let mut ticks = tokio::time::interval(lifetime.upkeep_interval());
    loop {
        ticks.tick().await;
        lifetime.upkeep();
    }
}

/// How long after one sweep the next one must have ended.
fn patience(settings: &Settings) -> Duration {
    2 * settings.sampling.interval + settings.sampling.probe_timeout + PATIENCE
}

/// Seconds since 1970, as Prometheus counts them.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
