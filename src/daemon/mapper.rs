//! Reads extent maps: on each file system one at a time, in parts, between which the file system's
//! worker serves sweeps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc};
use tracing::debug;

use super::clock;
use super::history::HistoryHandle;
use super::registry::{KnownImage, SharedRegistry};
use crate::config::Settings;
use crate::model::{DeviceNumber, ExtentCount, ExtentMap, ImageId, MapBuilder, Outlook, Sample};
use crate::probe::map_schedule::MapSchedule;
use crate::probe::protocol::{MapRequest, Reply, Request, SampleRequest};
use crate::probe::sweep::WorkerPool;
use crate::probe::worker::{CallError, Worker};
use crate::serve::metrics::{Method, probe_failed, probed};

/// How long one part of a map may take. A sweep waits at most so long for its turn.
const PART_BUDGET: Duration = Duration::from_millis(500);

/// See the module.
pub(super) struct Mapper {
    registry: SharedRegistry,
    history: HistoryHandle,
    schedules: BTreeMap<DeviceNumber, MapSchedule>,
    running: BTreeSet<DeviceNumber>,
    finished: mpsc::UnboundedReceiver<Finished>,
    finish: mpsc::UnboundedSender<Finished>,
}

struct Finished {
    device: DeviceNumber,
    image: ImageId,
    result: Result<Seen, Unread>,
}

/// What was seen of a map.
enum Seen {
    Whole(ExtentMap),
    Sampled(Outlook),
}

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
enum Unread {
    /// The image cannot be read, or has grown above the cap.
    #[error("{0}")]
    Refused(String),
    /// The file system does not answer, or the helper failed: soon it may be otherwise.
    #[error("{0}")]
    NotNow(#[source] CallError),
}

impl Mapper {
    pub(super) fn new(registry: SharedRegistry, history: HistoryHandle) -> Self {
        let (finish, finished) = mpsc::unbounded_channel();
        Mapper {
            registry,
            history,
            schedules: BTreeMap::new(),
            running: BTreeSet::new(),
            finished,
            finish,
        }
    }

    /// Takes in the maps that were read since, and begins to read those that are due. Returns whether
    /// there are new maps.
    pub(super) fn launch(&mut self, settings: &Settings, pool: &mut WorkerPool) -> bool {
        let taken = self.take_finished();
        let Some(interval) = settings.sampling.map_interval else {
            return taken;
        };
        let cap = settings.sampling.map_max_extents;
        let deadline = settings.sampling.probe_timeout;
        for device in self.idle_filesystems() {
            let Some(worker) = pool.answering_worker(device) else {
                continue;
            };
            let Some(sample) = self.due(device, interval, cap) else {
                continue;
            };
            self.running.insert(device);
            let finish = self.finish.clone();
            tokio::spawn(async move {
                let (image, began) = (sample.id, Instant::now());
                let is_short = sample.extents <= cap;
                let result = match is_short {
                    true => read_map(&worker, &sample, cap, deadline).await,
                    false => sample_map(&worker, &sample, deadline).await,
                };
                match &result {
                    Ok(_) => probed(Method::Map, began.elapsed()),
                    Err(reason) if is_short => {
                        probe_failed();
                        debug!("no extent map: {reason}");
                    }
                    Err(_) => {}
                }
                // Fails only when the daemon ends.
                let _ = finish.send(Finished {
                    device,
                    image,
                    result,
                });
            });
        }
        taken
    }

    fn take_finished(&mut self) -> bool {
        let mut any = false;
        while let Ok(finished) = self.finished.try_recv() {
            let now = Instant::now();
            self.running.remove(&finished.device);
            let schedule = self.schedules.entry(finished.device).or_default();
            schedule.finished(now);
            any = true;
            let mut registry = self.registry.lock();
            let Some(image) = registry.get_mut(finished.image) else {
                continue;
            };
            match finished.result {
                Ok(Seen::Sampled(outlook)) => image.set_outlook(outlook, now),
                Ok(Seen::Whole(map)) => {
                    let reference = image.reference();
                    image.set_map(map.clone(), now);
                    // The history may be slow to take it: not under the guard.
                    drop(registry);
                    if let Some(reference) = reference {
                        self.history.map(clock::wall(), reference, map);
                    }
                }
                Err(Unread::Refused(_)) => image.map_refused(now),
                Err(Unread::NotNow(_)) => image.map_failed(now),
            }
        }
        any
    }

    fn idle_filesystems(&self) -> BTreeSet<DeviceNumber> {
        let registry = self.registry.lock();
        let all: BTreeSet<_> = registry.images().map(|image| image.device).collect();
        all.difference(&self.running).copied().collect()
    }

    /// The image of a file system whose map is due, if any.
    fn due(
        &mut self,
        device: DeviceNumber,
        interval: Duration,
        cap: ExtentCount,
    ) -> Option<Sample> {
        let now = Instant::now();
        let registry = self.registry.lock();
        // Above the cap the map is not to be loaded; that of an image in use is loaded already, and
        // a sample of it costs nothing (xfs_iread_extents, at the first read or write).
        let is_xfs = registry.is_xfs(device);
        let is_readable = |image: &&KnownImage| {
            image.device == device
                && (image.sample.extents <= cap || (is_xfs && image.owner.in_use()))
                && !image.waits_for_map_retry(now)
        };
        let readable = registry
            .images()
            .filter(is_readable)
            .map(|image| (image.sample.id, image.map_read));
        let schedule = self.schedules.entry(device).or_default();
        let image = schedule.next(now, interval, readable)?;
        Some(registry.get(image)?.sample.clone())
    }
}

/// The map of an image. Why it cannot be read is logged by the sweep, which meets the same trouble.
async fn read_map(
    worker: &Arc<Mutex<Worker>>,
    sample: &Sample,
    cap: ExtentCount,
    deadline: Duration,
) -> Result<Seen, Unread> {
    let mut builder = MapBuilder::default();
    loop {
        let request = Request::Map(Box::new(MapRequest {
            path: sample.path.clone(),
            id: sample.id,
            expected: sample.extents,
            builder,
            max_extents: cap,
            budget: PART_BUDGET,
            quick: false,
        }));
        match call(worker, &request, deadline).await? {
            Reply::Map(map) if map.complete => return Ok(Seen::Whole(*map)),
            Reply::Map(_) => return Err(Unread::Refused("too many extents by now".to_owned())),
            Reply::MapPart(part) => builder = *part,
            _ => return Err(Unread::Refused("the probe helper gave no map".to_owned())),
        }
    }
}

/// What could be gained of an image in use whose map is too long to be read.
async fn sample_map(
    worker: &Arc<Mutex<Worker>>,
    sample: &Sample,
    deadline: Duration,
) -> Result<Seen, Unread> {
    let request = Request::Sample(SampleRequest {
        path: sample.path.clone(),
        id: sample.id,
        expected: sample.extents,
    });
    match call(worker, &request, deadline).await? {
        Reply::Sampled(outlook) => Ok(Seen::Sampled(outlook)),
        _ => Err(Unread::Refused(
            "the probe helper gave no sample".to_owned(),
        )),
    }
}

/// The last reply to a request, if it is no fault.
async fn call(
    worker: &Arc<Mutex<Worker>>,
    request: &Request,
    deadline: Duration,
) -> Result<Reply, Unread> {
    let mut answer = Reply::Done;
    let called = worker
        .lock()
        .await
        .call(request, deadline, |reply| answer = reply)
        .await;
    called.map_err(Unread::NotNow)?;
    match answer {
        Reply::Fault(fault) => Err(Unread::Refused(fault.error)),
        answer => Ok(answer),
    }
}
