//! Counts every image each interval and puts the result on the board.

use std::collections::BTreeMap;
use std::mem::Discriminant;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::history::{HistoryHandle, look_back};
use super::inventory::{Change, Inventory};
use super::mapper::Mapper;
use super::severity_hook::SeverityHook;
use super::wall_clock::MonotonicWallClock;
use super::{notify, now, patience};
use crate::assess::Assessor;
use crate::config::Settings;
use crate::discover::watch::{News, SweepPace};
use crate::model::path::shown;
use crate::model::{Bytes, DeviceNumber, Opener, Owner, UnixTime};
use crate::probe::sweep::{Counted, Event, Scope, WorkerPool};
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
    pool: WorkerPool,
    /// What the watch of the directories has to say, and when to sweep because of it.
    news: mpsc::UnboundedReceiver<News>,
    pace: SweepPace,
    /// File systems not all of whose directories are watched, and why.
    unwatched: BTreeMap<DeviceNumber, String>,
    inventory: Shared,
    mapper: Mapper,
    clock: MonotonicWallClock,
    assessor: Assessor,
    hook: SeverityHook,
    history: HistoryHandle,
    /// File systems that did not answer the last sweep, where they are mounted, and in which way
    /// they did not.
    unanswering: BTreeMap<DeviceNumber, (PathBuf, Discriminant<CallError>)>,
    /// When the last sweep ended, in seconds since 1970.
    swept: Option<f64>,
}

impl Sampler {
    pub(super) fn new(
        settings: watch::Receiver<Arc<Settings>>,
        board: Arc<Board>,
        history: HistoryHandle,
    ) -> Self {
        let inventory = Shared::default();
        let mut pool = WorkerPool::new(Path::new("/proc"));
        let assessor = Assessor::new(&settings.borrow().thresholds);
        Sampler {
            news: pool.listen(),
            pace: SweepPace::default(),
            unwatched: BTreeMap::new(),
            settings,
            clock: MonotonicWallClock::start(),
            assessor,
            hook: SeverityHook::default(),
            mapper: Mapper::new(inventory.clone(), history.clone()),
            history,
            inventory,
            board,
            pool,
            unanswering: BTreeMap::new(),
            swept: None,
        }
    }

    /// What it fills.
    pub(super) fn inventory(&self) -> Shared {
        self.inventory.clone()
    }

    /// Takes in what the history at `path` knows. To be called before [`run`](Sampler::run).
    pub(super) async fn look_back(&self, path: &Path) {
        let (window, now) = (self.assessor.window(), self.clock.now());
        look_back(&self.history, path, window, now, &self.inventory).await;
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
            crate::sys::heap::trim();
            self.pace.swept(began.into_std(), Instant::now().into_std());
            let next = began + settings.sampling.interval;
            if !self.wait_until(next, &settings).await {
                return;
            }
        }
    }

    /// Reads maps until the next sweep is due, names have come or gone, or there are new settings.
    /// False if there will be no
    /// more settings: the daemon ends.
    async fn wait_until(&mut self, next: Instant, settings: &Settings) -> bool {
        loop {
            if self.mapper.launch(settings, &mut self.pool) {
                self.post();
            }
            let tick = Instant::now() + Duration::from_secs(1);
            let due = self.pace.due().map_or(next, Instant::from_std).min(next);
            tokio::select! {
                changed = self.settings.changed() => {
                    return changed.is_ok();
                }
                Some(news) = self.news.recv() => {
                    self.heard(news);
                    continue;
                }
                () = tokio::time::sleep_until(tick.min(due)) => {}
            }
            if Instant::now() >= due {
                return true;
            }
        }
    }

    fn heard(&mut self, news: News) {
        if news == News::Lost {
            info!(
                "so much has changed in the image directories that events were lost; all of them \
                 are searched again"
            );
        }
        self.pace.heard(Instant::now().into_std());
    }

    /// Says once why not all directories of a file system are watched.
    fn watched(&mut self, answers: BTreeMap<DeviceNumber, Option<String>>) {
        for (device, refusal) in answers {
            let Some(refusal) = refusal else {
                if self.unwatched.remove(&device).is_some() {
                    info!("file system {device}: all image directories are watched again");
                }
                continue;
            };
            if self.unwatched.get(&device) != Some(&refusal) {
                warn!("file system {device}: {refusal}");
                self.unwatched.insert(device, refusal);
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
        let mut watched = BTreeMap::<_, Option<String>>::new();
        let (assessor, hook, clock) = (&self.assessor, &self.hook, &self.clock);
        let history = &self.history;
        let tell = |change| {
            if let Change::Severity(change) = &change {
                let image = change.image().and_then(|id| inventory.lock().reference(id));
                history.severity(wall(), change, image);
            }
            tell(change, hook);
        };
        let mut on_event = |device, event| match event {
            Event::Filesystem(filesystem) => inventory.lock().filesystem(device, filesystem),
            Event::Image(counted) => {
                let Counted {
                    sample,
                    took,
                    owner,
                } = *counted;
                probed(Method::Count, took);
                let changes = inventory
                    .lock()
                    .image(device, sample, owner, assessor, clock.now());
                changes.into_iter().for_each(tell);
            }
            Event::Fault(fault) => {
                probe_failed();
                let change = inventory.lock().fault(device, fault);
                change.into_iter().for_each(tell);
            }
            Event::PassedOver(_) => {}
            // A file system is surveyed again when more of it is met; then any refusal counts.
            Event::Watched(refusal) => {
                let known = watched.entry(device).or_default();
                *known = known.take().or(refusal);
            }
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
                    let snapshot = inventory.lock().snapshot(swept_before);
                    board.post(snapshot);
                }
            }
        };
        let swept = self.pool.sweep(&scope, &mut on_event).await;
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
        let rows = self.inventory.lock().counted_rows();
        history.swept(wall(), rows);
        self.watched(watched);
        self.unanswering = unanswering;
        let stalls = self
            .pool
            .stalls()
            .map(|(mount, flag)| (shown(&mount.point), flag));
        self.board.watch_stalls(stalls.collect());
        self.swept = Some(now());
        self.post();
        self.board.swept(patience(settings));
        let status = self.inventory.lock().status();
        notify(&[sd_notify::NotifyState::Status(&status)]);
    }

    fn post(&self) {
        let snapshot = self.inventory.lock().snapshot(self.swept);
        self.board.post(snapshot);
    }
}

/// The time of rows in the history. Growth in memory is computed with [`MonotonicWallClock`], which does
/// not follow a clock that is set.
fn wall() -> UnixTime {
    UnixTime::from_seconds(now())
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
        Change::Mixed(path, owner) => warn!(
            "image {}: {}; what is read through the page cache can be older than what the others \
             wrote. Give all of them the same cache mode, or close all but one",
            shown(&path),
            openers(&owner)
        ),
        Change::Fault(fault) => warn!("{}: {}", shown(&fault.path), fault.error),
        Change::Mended(path) => info!("{}: can be read again", shown(&path)),
    }
}

/// `process 17 kvm (VM db-1) writes past the page cache (O_DIRECT), process 18 rsync reads …`
fn openers(owner: &Owner) -> String {
    let opener = |opener: &Opener| {
        let how = match (opener.direct, opener.buffered) {
            (true, true) => "both past and through the page cache",
            (true, false) => "past the page cache (O_DIRECT)",
            _ => "through the page cache",
        };
        let vm = opener.vm.as_ref().and_then(|vm| vm.name.as_deref());
        let vm = vm.map(|name| format!(" (VM {name})")).unwrap_or_default();
        let name = format!("{}{vm}", opener.name);
        let access = if opener.writes { "writes" } else { "reads" };
        let name = shown(Path::new(&name));
        format!("process {} {name} {access} {how}", opener.pid)
    };
    let openers: Vec<_> = owner.openers.iter().map(opener).collect();
    openers.join(", ")
}

/// The host's memory (sysinfo(2)).
fn host_memory() -> Bytes {
    let info = rustix::system::sysinfo();
    // The types of its fields differ from one architecture to the next.
    #[allow(clippy::useless_conversion)]
    let (pages, unit) = (u64::from(info.totalram), u64::from(info.mem_unit));
    Bytes(pages.saturating_mul(unit))
}
