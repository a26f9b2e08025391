//! Reads the free space of each file system, then extent maps, one at a time on each file system, in
//! parts. Between the parts the file system's worker serves sweeps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tracing::debug;

use super::clock;
use super::history::HistoryHandle;
use super::registry::{KnownImage, SharedRegistry};
use crate::config::Settings;
use crate::discover::mounts::Mount;
use crate::history::{MapRow, Record};
use crate::model::{
    DeviceNumber, ExtentCount, ExtentMap, FreeSpace, ImageId, MapBuilder, Outlook, Sample,
};
use crate::probe::map_schedule::MapSchedule;
use crate::probe::protocol::{MapPart, Reply, Request};
use crate::probe::sweep::WorkerPool;
use crate::probe::worker::{CallError, Worker};
use crate::serve::metrics::{Method, probe_failed, probed};

/// Limit for one part of a map, and so the usual wait of a sweep for the worker.
const PART_BUDGET: Duration = Duration::from_millis(500);

/// Minimum time between two readings of the free space of a file system, so that maps are read in
/// between.
const SPACE_INTERVAL: Duration = Duration::from_secs(60);

/// Schedules the reading of maps, and stores the results.
pub(super) struct Mapper {
    registry: SharedRegistry,
    history: HistoryHandle,
    schedules: BTreeMap<DeviceNumber, MapSchedule>,
    running: BTreeSet<DeviceNumber>,
    readings: JoinSet<Finished>,
}

struct Finished {
    device: DeviceNumber,
    reading: Reading,
}

enum Reading {
    Map(ImageId, Result<Seen, Unread>),
    /// Of the file system with this name.
    FreeSpace(String, Result<FreeSpace, Unread>),
}

enum Seen {
    Whole(ExtentMap),
    Sampled(Outlook),
}

#[derive(Debug, thiserror::Error)]
enum Unread {
    /// The image cannot be read, or has grown above the cap.
    #[error("{0}")]
    Refused(String),
    /// The file system does not answer, or the helper failed; a retry may succeed.
    #[error("{0}")]
    NotNow(#[source] CallError),
}

impl Mapper {
    pub(super) fn new(registry: SharedRegistry, history: HistoryHandle) -> Self {
        Mapper {
            registry,
            history,
            schedules: BTreeMap::new(),
            running: BTreeSet::new(),
            readings: JoinSet::new(),
        }
    }

    /// Stores the results that have arrived (true if any), and starts the readings that are due.
    pub(super) fn launch(&mut self, settings: &Settings, pool: &mut WorkerPool) -> bool {
        let taken = self.take_finished();
        let Some(interval) = settings.sampling.map_interval else {
            return taken;
        };
        let cap = settings.sampling.map_max_extents;
        let deadline = settings.sampling.probe_timeout;
        for device in self.idle_filesystems() {
            let Some((mount, worker)) = pool.answering_worker(device) else {
                continue;
            };
            if let Some(name) = self.begin_space(device, interval) {
                self.running.insert(device);
                self.readings.spawn(async move {
                    let space = free_space(&worker, mount, deadline).await;
                    let reading = Reading::FreeSpace(name, space);
                    Finished { device, reading }
                });
                continue;
            }
            let Some(sample) = self.due(device, interval, cap) else {
                continue;
            };
            self.running.insert(device);
            self.readings.spawn(async move {
                let (image, began) = (sample.id, Instant::now());
                let is_short = sample.extents <= cap;
                let result = read(&worker, &sample, cap, deadline).await;
                match &result {
                    Ok(_) => probed(Method::Map, began.elapsed()),
                    Err(reason) if is_short => {
                        probe_failed();
                        debug!("no extent map: {reason}");
                    }
                    Err(_) => {}
                }
                let reading = Reading::Map(image, result);
                Finished { device, reading }
            });
        }
        taken
    }

    /// How long to wait before the next [`launch`](Mapper::launch): each one wakes the process.
    pub(super) fn pause(&self, settings: &Settings) -> Duration {
        match settings.sampling.map_interval {
            None if self.running.is_empty() => Duration::from_secs(3600),
            Some(interval) if self.running.is_empty() => {
                (interval / 10).clamp(Duration::from_secs(1), Duration::from_secs(10))
            }
            _ => Duration::from_secs(1),
        }
    }

    fn take_finished(&mut self) -> bool {
        let mut any = false;
        while let Some(Ok(Finished { device, reading })) = self.readings.try_join_next() {
            self.running.remove(&device);
            any = true;
            match reading {
                Reading::Map(image, result) => self.take_map(device, image, result),
                Reading::FreeSpace(name, Ok(space)) => {
                    self.registry.lock().set_space(device, &name, space);
                }
                Reading::FreeSpace(name, Err(Unread::NotNow(_))) => {
                    self.registry.lock().outdate_spaces(|it| it == name);
                }
                // Such as on btrfs. The next attempt is after the interval.
                Reading::FreeSpace(_, Err(reason)) => debug!("free space unknown: {reason}"),
            }
        }
        any
    }

    fn take_map(&mut self, device: DeviceNumber, image: ImageId, result: Result<Seen, Unread>) {
        let now = Instant::now();
        self.schedules.entry(device).or_default().finished(now);
        let mut registry = self.registry.lock();
        let Some(image) = registry.images.get_mut(&image) else {
            return;
        };
        match result {
            Ok(Seen::Sampled(outlook)) => image.set_outlook(outlook, now),
            Ok(Seen::Whole(map)) => {
                let reference = image.reference();
                image.set_map(map.clone(), now);
                // Recorded outside the lock.
                drop(registry);
                if let Some(image) = reference {
                    let at = clock::wall();
                    self.history.record(Record::Map(MapRow { image, at, map }));
                }
            }
            Err(Unread::Refused(_)) => image.map_refused(now),
            Err(Unread::NotNow(_)) => image.map_failed(now),
        }
    }

    fn begin_space(&self, device: DeviceNumber, interval: Duration) -> Option<String> {
        let interval = interval.max(SPACE_INTERVAL);
        let mut registry = self.registry.lock();
        registry.begin_space(device, Instant::now(), interval)
    }

    fn idle_filesystems(&self) -> BTreeSet<DeviceNumber> {
        let registry = self.registry.lock();
        let all: BTreeSet<_> = registry.images.values().map(|image| image.device).collect();
        all.difference(&self.running).copied().collect()
    }

    fn due(
        &mut self,
        device: DeviceNumber,
        interval: Duration,
        cap: ExtentCount,
    ) -> Option<Sample> {
        let now = Instant::now();
        let registry = self.registry.lock();
        // Above the cap no map is to be loaded. That of an image in use is already loaded
        // (xfs_iread_extents, at the first read or write), so sampling it costs nothing.
        let is_xfs = registry.is_xfs(device);
        let is_readable = |image: &KnownImage| {
            image.device == device
                && (image.sample.extents <= cap || (is_xfs && image.owner.in_use()))
                && !image.waits_for_map_retry(now)
        };
        let readable = registry
            .images
            .values()
            .filter(|image| is_readable(image))
            .map(|image| (image.sample.id, image.map_read));
        let schedule = self.schedules.entry(device).or_default();
        let image = schedule.next(now, interval, readable)?;
        Some(registry.images.get(&image)?.sample.clone())
    }
}

/// Sends a request to the worker of a file system. A fault is an error.
async fn call(
    worker: &Arc<Mutex<Worker>>,
    request: &Request,
    deadline: Duration,
) -> Result<Reply, Unread> {
    let mut answer = Reply::Done;
    let mut worker = worker.lock().await;
    let called = worker.call(request, deadline, |reply| answer = reply).await;
    called.map_err(Unread::NotNow)?;
    match answer {
        Reply::Fault(fault) => Err(Unread::Refused(fault.error)),
        answer => Ok(answer),
    }
}

async fn free_space(
    worker: &Arc<Mutex<Worker>>,
    mount: Mount,
    deadline: Duration,
) -> Result<FreeSpace, Unread> {
    match call(worker, &Request::FreeSpace(mount), deadline).await? {
        Reply::FreeSpace(space) => Ok(*space),
        _ => Err(Unread::Refused(
            "the probe helper gave no free space".to_owned(),
        )),
    }
}

/// Reads the map of an image, or samples it if it has too many extents to be read whole. Failures
/// are logged by the sweep, which hits the same error.
async fn read(
    worker: &Arc<Mutex<Worker>>,
    sample: &Sample,
    cap: ExtentCount,
    deadline: Duration,
) -> Result<Seen, Unread> {
    let mut request = match sample.extents <= cap {
        true => Request::Map(
            sample.into(),
            Box::new(MapPart {
                builder: MapBuilder::default(),
                max_extents: cap,
                budget: PART_BUDGET,
                quick: false,
            }),
        ),
        false => Request::Sample(sample.into()),
    };
    loop {
        match (call(worker, &request, deadline).await?, &mut request) {
            (Reply::Map(map), _) if map.complete => return Ok(Seen::Whole(*map)),
            (Reply::Map(_), _) => {
                return Err(Unread::Refused("too many extents by now".to_owned()));
            }
            (Reply::MapPart(part), Request::Map(_, map)) => map.builder = *part,
            (Reply::Sampled(outlook), _) => return Ok(Seen::Sampled(outlook)),
            _ => return Err(Unread::Refused("the probe helper gave no map".to_owned())),
        }
    }
}
