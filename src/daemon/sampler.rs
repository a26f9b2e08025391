//! Counts every image each interval and puts the result on the board.

use std::collections::BTreeMap;
use std::mem::Discriminant;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::inventory::{Change, Inventory};
use super::mapper::Mapper;
use super::severity_hook::SeverityHook;
use super::steady::Steady;
use super::{notify, now, patience};
use crate::assess::Assessor;
use crate::config::Settings;
use crate::model::path::shown;
use crate::model::{Bytes, DeviceNumber};
use crate::probe::sweep::{Event, Fleet, Scope};
use crate::probe::worker::CallError;
use crate::serve::board::Board;
use crate::serve::metrics::{Method, probe_failed, probed};

/// The inventory, shared by those who fill it. Never held across a wait.
#[derive(Debug, Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Inventory>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inventory> {
        // A sample is taken in whole or not at all.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub(super) struct Sampler {
    settings: watch::Receiver<Arc<Settings>>,
    board: Arc<Board>,
    fleet: Fleet,
    inventory: Shared,
    mapper: Mapper,
    steady: Steady,
    assessor: Assessor,
    hook: SeverityHook,
    /// File systems that did not answer the last sweep, where they are mounted, and in which way
    /// they did not.
    unanswering: BTreeMap<DeviceNumber, (PathBuf, Discriminant<CallError>)>,
    /// When the last sweep ended, in seconds since 1970.
    swept: Option<f64>,
}

impl Sampler {
    pub(super) fn new(settings: watch::Receiver<Arc<Settings>>, board: Arc<Board>) -> Self {
        let inventory = Shared::default();
        let assessor = Assessor::new(&settings.borrow().thresholds);
        Sampler {
            settings,
            steady: Steady::start(),
            assessor,
            hook: SeverityHook::default(),
            mapper: Mapper::new(inventory.clone()),
            inventory,
            board,
            fleet: Fleet::new(Path::new("/proc")),
            unanswering: BTreeMap::new(),
            swept: None,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let began = Instant::now();
            let settings = Arc::clone(&self.settings.borrow_and_update());
            if *self.assessor.thresholds() != settings.thresholds {
                self.assessor = Assessor::new(&settings.thresholds);
            }
            self.hook.configure(&settings.thresholds.hook);
            self.sweep(&settings).await;
            let next = began + settings.sampling.interval;
            if !self.wait_until(next, &settings).await {
                return;
            }
        }
    }

    /// Reads maps until the next sweep is due or there are new settings. False if there will be no
    /// more settings: the daemon ends.
    async fn wait_until(&mut self, next: Instant, settings: &Settings) -> bool {
        loop {
            if self.mapper.launch(settings, &mut self.fleet) {
                self.post();
            }
            let tick = Instant::now() + Duration::from_secs(1);
            tokio::select! {
                changed = self.settings.changed() => {
                    return changed.is_ok();
                }
                () = tokio::time::sleep_until(tick.min(next)) => {}
            }
            if Instant::now() >= next {
                return true;
            }
        }
    }

    async fn sweep(&mut self, settings: &Settings) {
        let scope = Scope::configured(settings);
        self.inventory.lock().begin();
        let inventory = self.inventory.clone();
        let board = Arc::clone(&self.board);
        let before = std::mem::take(&mut self.unanswering);
        let swept_before = self.swept;
        let mut unanswering = BTreeMap::new();
        let (assessor, hook, steady) = (&self.assessor, &self.hook, &self.steady);
        let tell = |change| tell(change, hook);
        let mut on_event = |device, event| match event {
            Event::Filesystem(filesystem) => inventory.lock().filesystem(device, filesystem),
            Event::Image(sample, took) => {
                probed(Method::Count, took);
                let changes = inventory
                    .lock()
                    .image(device, sample, assessor, steady.now());
                changes.into_iter().for_each(tell);
            }
            Event::Fault(fault) => {
                probe_failed();
                inventory
                    .lock()
                    .fault(device, fault)
                    .into_iter()
                    .for_each(tell);
            }
            Event::PassedOver(_) => {}
            Event::Surveyed {
                mount,
                result,
                others,
            } => {
                if let Err(error) = result {
                    probe_failed();
                    let kind = std::mem::discriminant(&error);
                    // Once, not each sweep. That a helper was busy does not say yet that it hangs.
                    if before
                        .get(&device)
                        .is_none_or(|(_, before)| *before != kind)
                    {
                        error!("file system {}: {error}", shown(&mount));
                    }
                    unanswering.insert(device, (mount, kind));
                }
                // Not only when all are done: the others may take a deadline longer.
                if others {
                    board.post(inventory.lock().snapshot(swept_before));
                }
            }
        };
        let swept = self.fleet.sweep(&scope, &mut on_event).await;
        if let Err(error) = swept {
            return error!("no sweep: cannot read /proc/self/mountinfo: {error}");
        }
        for (_, (mount, _)) in before
            .iter()
            .filter(|(device, _)| !unanswering.contains_key(device))
        {
            info!("file system {}: answers again", shown(mount));
        }
        let silent = unanswering.keys().copied().collect();
        let changes = self.inventory.lock().end(&silent);
        changes.into_iter().for_each(tell);
        let change = self.inventory.lock().host(assessor, host_memory());
        change.into_iter().for_each(tell);
        self.unanswering = unanswering;
        let stalls = self
            .fleet
            .stalls()
            .map(|(mount, flag)| (shown(&mount.point), flag));
        self.board.watch_stalls(stalls.collect());
        self.swept = Some(now());
        self.post();
        self.board.swept(patience(settings));
        notify(&[sd_notify::NotifyState::Status(
            &self.inventory.lock().status(),
        )]);
    }

    fn post(&self) {
        self.board.post(self.inventory.lock().snapshot(self.swept));
    }
}

fn tell(change: Change, hook: &SeverityHook) {
    match change {
        Change::Appeared(path, extents) => {
            info!("new image {} with {extents} extents", shown(&path));
        }
        Change::Renamed(from, to) => {
            info!("image {} is now {}", shown(&from), shown(&to));
        }
        Change::Vanished(path) => info!("image {} is gone", shown(&path)),
        Change::Severity(change) => hook.tell(&change),
        Change::Fault(fault) => warn!("{}: {}", shown(&fault.path), fault.error),
        Change::Mended(path) => info!("{}: can be read again", shown(&path)),
    }
}

/// The host's memory (sysinfo(2)).
fn host_memory() -> Bytes {
    let info = rustix::system::sysinfo();
    // The types of its fields differ from one architecture to the next.
    #[allow(clippy::useless_conversion)]
    let (pages, unit) = (u64::from(info.totalram), u64::from(info.mem_unit));
    Bytes(pages.saturating_mul(unit))
}
