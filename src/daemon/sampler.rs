//! Counts every image each interval, and publishes the result.

use std::collections::BTreeMap;
use std::mem::Discriminant;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::clock::{self, MonotonicWallClock};
use super::history::{HistoryHandle, look_back};
use super::mapper::Mapper;
use super::registry::{Change, SharedRegistry};
use super::severity_hook::SeverityHook;
use super::systemd::notify;
use crate::assess::Assessor;
use crate::config::Settings;
use crate::discover::watch::{News, SweepPace};
use crate::model::path::shown;
use crate::model::{Bytes, DeviceNumber, Opener, Owner};
use crate::probe::sweep::{Event, Scope, WorkerPool};
use crate::probe::worker::CallError;
use crate::serve::metrics::{Method, probe_failed, probed};
use crate::serve::shared_status::SharedStatus;
use crate::sys::heap;
use crate::sys::proc::memory_for_slabs;

/// Extra time, beyond intervals and deadlines, before a sweep is overdue.
const SWEEP_GRACE: Duration = Duration::from_secs(60);

/// The task that sweeps.
pub(super) struct Sampler {
    settings: watch::Receiver<Arc<Settings>>,
    pool: WorkerPool,
    news: mpsc::UnboundedReceiver<News>,
    pace: SweepPace,
    mapper: Mapper,
    results: Results,
}

/// Stores, logs and publishes what sweeps find.
struct Results {
    status: Arc<SharedStatus>,
    registry: SharedRegistry,
    history: HistoryHandle,
    hook: SeverityHook,
    assessor: Assessor,
    clock: MonotonicWallClock,
    /// The end of the last sweep, in seconds since 1970.
    swept: Option<f64>,
    unanswering: Unanswering,
    /// Of the sweep before.
    unanswered: Unanswering,
    /// For each file system of the sweep, why not all of its directories are watched.
    watched: BTreeMap<DeviceNumber, Option<String>>,
    /// The last such reasons.
    unwatched: BTreeMap<DeviceNumber, String>,
}

/// File systems that did not answer a sweep: the mount point and the kind of error.
type Unanswering = BTreeMap<DeviceNumber, (PathBuf, Discriminant<CallError>)>;

/// The time from the end of one sweep to the latest end of the next.
pub(super) fn sweep_timeout(settings: &Settings) -> Duration {
    2 * settings.sampling.interval + settings.sampling.probe_timeout + SWEEP_GRACE
}

impl Sampler {
    pub(super) fn new(
        settings: watch::Receiver<Arc<Settings>>,
        status: Arc<SharedStatus>,
        registry: SharedRegistry,
        history: HistoryHandle,
    ) -> Self {
        let mut pool = WorkerPool::new(Path::new("/proc"));
        let assessor = Assessor::new(&settings.borrow().thresholds);
        Sampler {
            news: pool.listen(),
            pool,
            pace: SweepPace::default(),
            mapper: Mapper::new(registry.clone(), history.clone()),
            settings,
            results: Results {
                status,
                registry,
                history,
                hook: SeverityHook::default(),
                assessor,
                clock: MonotonicWallClock::start(),
                swept: None,
                unanswering: BTreeMap::new(),
                unanswered: BTreeMap::new(),
                watched: BTreeMap::new(),
                unwatched: BTreeMap::new(),
            },
        }
    }

    /// Restores the past from the history at `path`. To be called before [`run`](Sampler::run).
    pub(super) async fn look_back(&self, path: &Path) {
        let results = &self.results;
        let (window, now) = (results.assessor.window(), results.clock.now());
        look_back(&results.history, path, window, now, &results.registry).await;
    }

    /// Sweeps until the settings channel closes.
    pub(super) async fn run(mut self) {
        loop {
            let began = Instant::now();
            let settings = Arc::clone(&self.settings.borrow_and_update());
            let thresholds = &settings.thresholds;
            if self.results.assessor.thresholds() != thresholds {
                self.results.assessor = Assessor::new(thresholds);
            }
            self.results.hook.configure(&thresholds.hook);
            self.sweep(&settings).await;
            heap::trim();
            self.pace.swept(began.into_std(), Instant::now().into_std());
            let next = began + settings.sampling.interval;
            if !self.wait_until(next, &settings).await {
                return;
            }
        }
    }

    /// Reads maps until a sweep is due or the settings change. False if the daemon ends.
    async fn wait_until(&mut self, next: Instant, settings: &Settings) -> bool {
        loop {
            if self.mapper.launch(settings, &mut self.pool) {
                self.results.publish();
            }
            let tick = Instant::now() + self.mapper.pause(settings);
            let due = self.pace.due().map_or(next, Instant::from_std).min(next);
            tokio::select! {
                changed = self.settings.changed() => {
                    return changed.is_ok();
                }
                Some(news) = self.news.recv() => {
                    self.directories_changed(news);
                    continue;
                }
                () = tokio::time::sleep_until(tick.min(due)) => {}
            }
            if Instant::now() >= due {
                return true;
            }
        }
    }

    fn directories_changed(&mut self, news: News) {
        if news == News::Lost {
            info!(
                "so much has changed in the image directories that events were lost; all of them \
                 are searched again"
            );
        }
        self.pace.heard(Instant::now().into_std());
    }

    async fn sweep(&mut self, settings: &Settings) {
        let (results, scope) = (&mut self.results, Scope::configured(settings));
        results.begin();
        let mut on_event = |device, event| results.event(device, event);
        let ended = self.pool.sweep(&scope, &mut on_event).await;
        if let Err(error) = ended {
            return error!("no sweep: cannot read /proc/self/mountinfo: {error}");
        }
        results.end();
        let stalls = self.pool.stalls();
        let stalls = stalls.map(|(mount, flag)| (mount.point.clone(), flag));
        results.status.set_stalls(stalls.collect());
        results.swept = Some(clock::now());
        results.publish();
        results.status.swept(sweep_timeout(settings));
        let summary = results.registry.lock().summary();
        notify(&[NotifyState::Status(&summary)]);
    }
}

impl Results {
    fn begin(&mut self) {
        self.registry.lock().begin();
        self.unanswered = std::mem::take(&mut self.unanswering);
        self.watched.clear();
    }

    fn publish(&self) {
        let snapshot = self.registry.lock().snapshot(self.swept);
        self.status.set_snapshot(snapshot);
    }

    fn event(&mut self, device: DeviceNumber, event: Event) {
        match event {
            Event::Filesystem(filesystem) => self.registry.lock().filesystem(device, filesystem),
            Event::Image(counted) => {
                probed(Method::Count, counted.took);
                let changes = self.registry.lock().image(
                    device,
                    counted.sample,
                    counted.owner,
                    &self.assessor,
                    self.clock.now(),
                );
                self.report(changes);
            }
            Event::Fault(fault) => {
                probe_failed();
                let change = self.registry.lock().fault(device, fault);
                self.report(change);
            }
            Event::PassedOver(_) => {}
            // A file system can be surveyed several times in a sweep; any refusal counts.
            Event::Watched(refusal) => {
                let known = self.watched.entry(device).or_default();
                *known = known.take().or(refusal);
            }
            Event::Surveyed {
                mount,
                result,
                others,
            } => {
                if let Err(error) = result {
                    self.fails_to_answer(device, mount, &error);
                }
                // Not only at the end: the other file systems may take a deadline longer.
                if others {
                    self.publish();
                }
            }
        }
    }

    /// Logged once, not each sweep. A busy helper does not necessarily hang.
    fn fails_to_answer(&mut self, device: DeviceNumber, mount: PathBuf, error: &CallError) {
        probe_failed();
        let kind = std::mem::discriminant(error);
        let before = self.unanswered.get(&device);
        if before.is_none_or(|(_, before)| *before != kind) {
            error!("file system {}: {error}", shown(&mount));
        }
        self.unanswering.insert(device, (mount, kind));
    }

    fn end(&mut self) {
        for (device, (mount, _)) in &self.unanswered {
            if !self.unanswering.contains_key(device) {
                info!("file system {}: answers again", shown(mount));
            }
        }
        let unanswering = self.unanswering.keys().copied().collect();
        let changes = self.registry.lock().end(&unanswering);
        self.report(changes);
        let change = self.registry.lock().host(&self.assessor, host_memory());
        self.report(change);
        let rows = self.registry.lock().counted_rows();
        self.history.swept(rows);
        self.log_watched();
    }

    fn report(&self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            if let Change::Severity(change) = &change {
                self.history.severity(change);
            }
            log(change, &self.hook);
        }
    }

    fn log_watched(&mut self) {
        for (device, refusal) in std::mem::take(&mut self.watched) {
            let known = self.unwatched.get(&device);
            if known == refusal.as_ref() {
                continue;
            }
            match refusal {
                Some(refusal) => {
                    warn!("file system {device}: {refusal}");
                    self.unwatched.insert(device, refusal);
                }
                None => {
                    info!("file system {device}: all image directories are watched again");
                    self.unwatched.remove(&device);
                }
            }
        }
    }
}

fn log(change: Change, hook: &SeverityHook) {
    match change {
        Change::Appeared(path, extents) => {
            info!("new image {} with {extents} extents", shown(&path));
        }
        Change::Renamed(from, to) => {
            info!("image {} is now {}", shown(&from), shown(&to));
        }
        Change::Vanished(path) => info!("image {} is gone", shown(&path)),
        Change::Severity(change) => hook.report(&change),
        Change::MixedOpeners(path, owner) => warn!(
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

/// Memory that slabs, and with them extent maps, can take; all of it (sysinfo(2)) if the pages of
/// hugetlbfs cannot be read.
fn host_memory() -> Bytes {
    let meminfo = std::fs::read("/proc/meminfo").unwrap_or_default();
    if let Some(memory) = memory_for_slabs(&meminfo) {
        return Bytes(memory);
    }
    let info = rustix::system::sysinfo();
    // The field types differ between architectures.
    #[allow(clippy::useless_conversion)]
    let (pages, unit) = (u64::from(info.totalram), u64::from(info.mem_unit));
    Bytes(pages.saturating_mul(unit))
}
