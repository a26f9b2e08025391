//! Gathers what a page shows. Blocking reads run one at a time, each with a deadline.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::system::uname;
use tokio::sync::{Semaphore, watch};

use super::html::Frame;
use super::past;
use super::rows::{Disk, Row, RunRow, complete};
use crate::config::Settings;
use crate::history::{HistoryReader, ReadError};
use crate::model::UnixTime;
use crate::serve::plan::{PlanInForce, PlanRequests};
use crate::serve::shared_status::SharedStatus;
use crate::serve::view::Inventory;
use crate::state_dir::StateDir;

/// Less than an idle connection may last.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
const PLAN_TIMEOUT: Duration = Duration::from_secs(1);

/// The sources of the pages.
#[derive(Debug, Clone)]
pub struct Sources {
    pub status: Arc<SharedStatus>,
    pub inventory: Arc<dyn Inventory>,
    pub settings: watch::Receiver<Arc<Settings>>,
    pub state: StateDir,
    pub plans: PlanRequests,
}

/// The sources, and the turn to read from a disk.
#[derive(Debug, Clone)]
pub struct Pages {
    pub sources: Sources,
    reading: Arc<Semaphore>,
}

impl Pages {
    pub fn new(sources: Sources) -> Pages {
        let reading = Arc::new(Semaphore::new(1));
        Pages { sources, reading }
    }

    /// The result of work that may wait for a disk, or a sentence why there is none.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StateDir) -> T + Send + 'static,
    ) -> Result<T, String> {
        let state = self.sources.state.clone();
        let reading = async {
            let turn = Arc::clone(&self.reading).acquire_owned().await;
            let work = move || {
                let _turn = turn;
                work(&state)
            };
            tokio::task::spawn_blocking(work).await
        };
        match tokio::time::timeout(READ_TIMEOUT, reading).await {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(_) => Err("the state directory does not answer; its disk may hang".to_owned()),
        }
    }

    /// What is read from the history.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&HistoryReader) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, String> {
        let reading = self.blocking(move |state| {
            let read = || read(&HistoryReader::open(state.database())?);
            read().map_err(|error: ReadError| error.to_string())
        });
        reading.await.and_then(|read| read)
    }

    /// The plan in force, or a noted gap.
    pub async fn plan(&self, frame: &mut Frame) -> Option<PlanInForce> {
        let plan = self.sources.plans.ask(PLAN_TIMEOUT).await;
        if plan.is_none() {
            frame
                .gaps
                .push("no plan is available at the moment".to_owned());
        }
        plan
    }

    /// All images with their past and future, and what belongs to them. One reading of the history: a
    /// second one would not answer either, and a connection may not be idle for long.
    pub async fn host(&self, frame: &mut Frame) -> HostNow {
        let plan = self.plan(frame).await;
        let now = frame.now;
        let past = self.read(move |reader| Ok((past::weeks(reader, now)?, reader.runs(None, 1)?)));
        let (weeks, runs) = frame.or_gap(past.await);
        let (mut rows, mut disks) = (Vec::new(), Vec::new());
        self.sources.inventory.lend(&mut |images, filesystems| {
            rows = images.iter().map(Row::of).collect();
            disks = filesystems.iter().map(Disk::of).collect();
        });
        complete(&mut rows, weeks, plan.as_ref());
        let last_run = runs.into_iter().next().map(RunRow::from);
        HostNow {
            rows,
            disks,
            plan,
            last_run,
        }
    }
}

/// All that the first screen and the table of images show of images.
#[derive(Debug)]
pub struct HostNow {
    /// The worst first.
    pub rows: Vec<Row>,
    pub disks: Vec<Disk>,
    pub plan: Option<PlanInForce>,
    pub last_run: Option<RunRow>,
}

impl Frame {
    /// Of this host, now.
    pub fn new(title: &'static str) -> Frame {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Frame {
            title,
            host: uname().nodename().to_string_lossy().into_owned(),
            now: UnixTime::from_seconds(now.map_or(0.0, |now| now.as_secs_f64())),
            gaps: Vec::new(),
        }
    }

    /// What was read, or its default and a noted gap.
    pub fn or_gap<T: Default>(&mut self, read: Result<T, String>) -> T {
        read.unwrap_or_else(|gap| {
            self.gaps.push(gap);
            T::default()
        })
    }
}
