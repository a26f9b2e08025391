//! Reads extent maps: on each file system one at a time, in parts, between which sweeps get their
//! turn at the file system's worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc};
use tracing::debug;

use super::sampler::Shared;
use crate::config::Settings;
use crate::model::{DeviceNumber, ExtentCount, ExtentMap, ImageId, MapBuilder, Sample};
use crate::probe::map_schedule::MapSchedule;
use crate::probe::protocol::{MapRequest, Reply, Request};
use crate::probe::sweep::Fleet;
use crate::probe::worker::Worker;
use crate::serve::metrics::{Method, probe_failed, probed};

/// How long one part of a map may take. A sweep waits at most so long for its turn.
const PART: Duration = Duration::from_millis(500);

/// See the module.
pub(super) struct Mapper {
    inventory: Shared,
    schedules: BTreeMap<DeviceNumber, MapSchedule>,
    running: BTreeSet<DeviceNumber>,
    finished: mpsc::UnboundedReceiver<Finished>,
    finish: mpsc::UnboundedSender<Finished>,
}

struct Finished {
    device: DeviceNumber,
    image: ImageId,
    map: Option<ExtentMap>,
}

impl Mapper {
    pub(super) fn new(inventory: Shared) -> Self {
        let (finish, finished) = mpsc::unbounded_channel();
        Mapper {
            inventory,
            schedules: BTreeMap::new(),
            running: BTreeSet::new(),
            finished,
            finish,
        }
    }

    /// Takes in the maps that were read since, and begins to read those that are due. Says whether
    /// there are new maps.
    pub(super) fn launch(&mut self, settings: &Settings, fleet: &mut Fleet) -> bool {
        let taken = self.take_finished();
        let Some(interval) = settings.sampling.map_interval else {
            return taken;
        };
        let cap = settings.sampling.map_max_extents;
        let deadline = settings.sampling.probe_timeout;
        for device in self.idle_filesystems() {
            let Some(sample) = self.due(device, interval, cap) else {
                continue;
            };
            let Some(worker) = fleet.known_worker(device) else {
                continue;
            };
            self.running.insert(device);
            let finish = self.finish.clone();
            tokio::spawn(async move {
                let image = sample.id;
                let map = read_map(&worker, &sample, cap, deadline).await;
                // Nobody listens any more when the daemon ends.
                let _ = finish.send(Finished { device, image, map });
            });
        }
        taken
    }

    fn take_finished(&mut self) -> bool {
        let mut any = false;
        while let Ok(Finished { device, image, map }) = self.finished.try_recv() {
            let now = Instant::now();
            self.running.remove(&device);
            self.schedules.entry(device).or_default().finished(now);
            self.inventory.lock().map(image, map, now);
            any = true;
        }
        any
    }

    fn idle_filesystems(&self) -> BTreeSet<DeviceNumber> {
        let inventory = self.inventory.lock();
        let all = inventory.images().map(|entry| entry.device);
        all.filter(|device| !self.running.contains(device))
            .collect()
    }

    /// The image of a file system whose map is due, if any.
    fn due(
        &mut self,
        device: DeviceNumber,
        interval: Duration,
        cap: ExtentCount,
    ) -> Option<Sample> {
        let inventory = self.inventory.lock();
        let readable = inventory
            .images()
            .filter(|entry| entry.device == device && entry.sample.extents <= cap)
            .map(|entry| (entry.sample.id, entry.map_read));
        let schedule = self.schedules.entry(device).or_default();
        let image = schedule.next(Instant::now(), interval, readable)?;
        Some(inventory.get(image)?.sample.clone())
    }
}

/// The map of an image; nothing if it cannot be read. Why not is told by the sweep, which meets the
/// same trouble.
async fn read_map(
    worker: &Arc<Mutex<Worker>>,
    sample: &Sample,
    cap: ExtentCount,
    deadline: Duration,
) -> Option<ExtentMap> {
    let began = Instant::now();
    let mut builder = MapBuilder::default();
    loop {
        match read_part(worker, sample, cap, deadline, builder).await {
            Ok(Part::More(part)) => builder = part,
            Ok(Part::Whole(map)) => {
                probed(Method::Map, began.elapsed());
                return Some(map);
            }
            Err(reason) => {
                probe_failed();
                debug!("no extent map: {reason}");
                return None;
            }
        }
    }
}

enum Part {
    More(MapBuilder),
    Whole(ExtentMap),
}

async fn read_part(
    worker: &Arc<Mutex<Worker>>,
    sample: &Sample,
    cap: ExtentCount,
    deadline: Duration,
    builder: MapBuilder,
) -> Result<Part, String> {
    let request = Request::Map(Box::new(MapRequest {
        path: sample.path.clone(),
        id: sample.id,
        expected: sample.extents,
        builder,
        max_extents: cap,
        budget: PART,
        quick: false,
    }));
    let mut answer = None;
    let called = worker
        .lock()
        .await
        .call(&request, deadline, |reply| answer = Some(reply))
        .await;
    called.map_err(|error| error.to_string())?;
    match answer {
        Some(Reply::Map(map)) => Ok(Part::Whole(*map)),
        Some(Reply::MapPart(part)) => Ok(Part::More(*part)),
        Some(Reply::Fault(fault)) => Err(fault.error),
        _ => Err("the probe helper gave no map".to_owned()),
    }
}
