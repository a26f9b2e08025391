//! Converts what is known of images and file systems to the planner's input. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::facts::{Active, FilesystemFacts, ImageFacts, LastRun, User, ideal};
use super::speed::Speeds;
use crate::model::{
    ExtentMap, Filesystem, FreeSpace, ImageKey, OutcomeKind, Outlook, Owner, RunRecord, Sample,
    Severity, UnixTime,
};

/// Past runs, oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PastRuns(Vec<RunRecord>);

impl PastRuns {
    /// Maximum number of runs kept: enough for some of every image and every file system.
    pub const MOST: u32 = 4096;

    /// Takes runs in any order.
    pub fn new(mut runs: Vec<RunRecord>) -> Self {
        runs.sort_by_key(RunRecord::ended);
        let mut runs = PastRuns(runs);
        runs.drop_oldest();
        runs
    }

    /// Adds the latest run; drops the oldest one if there are too many.
    pub fn push(&mut self, run: RunRecord) {
        self.0.push(run);
        self.drop_oldest();
    }

    fn drop_oldest(&mut self) {
        self.0
            .drain(..self.0.len().saturating_sub(Self::MOST as usize));
    }

    /// Whether they include the run on an image that began at this time.
    pub fn contains(&self, key: &ImageKey, began: UnixTime) -> bool {
        let is_it = |run: &RunRecord| run.image.key == *key && run.at == began;
        self.0.iter().any(is_it)
    }

    /// The last run on an image.
    pub fn last(&self, key: &ImageKey) -> Option<LastRun> {
        let its = || self.0.iter().rev().filter(|run| run.image.key == *key);
        let last = its().next()?;
        let effect = last.outcome.effect();
        let alike = its().take_while(|run| run.outcome.effect() == effect);
        Some(LastRun {
            ended: Timestamp::from_second(last.ended().0).unwrap_or(Timestamp::MIN),
            effect,
            times: u32::try_from(alike.count()).unwrap_or(u32::MAX),
            reason: last.reason.clone(),
        })
    }

    /// Speeds by file system, from the runs that improved their image.
    pub fn speeds(&self) -> HashMap<String, Speeds> {
        let mut by_filesystem: HashMap<&str, Vec<&RunRecord>> = HashMap::new();
        for run in &self.0 {
            if run.outcome == OutcomeKind::Improved {
                let runs = by_filesystem.entry(&run.image.key.filesystem);
                runs.or_default().push(run);
            }
        }
        let speeds = |(id, runs): (&str, Vec<_>)| (id.to_owned(), Speeds::of(&runs));
        by_filesystem.into_iter().map(speeds).collect()
    }
}

/// The facts of an image, without its severity and growth; `None` if it could not be identified.
/// `map` and `outlook` are those of its last examination.
pub fn image(
    sample: &Sample,
    owner: &Owner,
    map: Option<&ExtentMap>,
    outlook: Option<Outlook>,
    runs: &PastRuns,
) -> Option<ImageFacts> {
    let key = sample.key.as_ref().ok()?;
    Some(ImageFacts {
        path: sample.path.clone(),
        filesystem: key.filesystem.clone(),
        severity: Severity::Ok,
        extents: sample.extents,
        ideal: ideal(sample.size, map.map_or(0, |map| map.holes)),
        outlook: outlook.map(|outlook| outlook.with(sample.extents)),
        growth: None,
        size: sample.size,
        allocated: sample.allocated,
        user: user(owner),
        shares_blocks: map.is_some_and(|map| map.shared.0 > 0),
        // Obstacles are found by the guards, which hold the file open while they check.
        obstacles: Vec::new(),
        last_run: runs.last(key),
    })
}

fn user(owner: &Owner) -> Option<User> {
    let vm = owner.vm().map(|vm| User::Vm {
        name: vm.name.clone(),
        pid: vm.pid,
        manager: vm.manager,
        node: owner.node_of(vm).map(str::to_owned),
    });
    vm.or_else(|| {
        let opener = owner.openers.first()?;
        Some(User::Process {
            name: opener.name.clone(),
            pid: opener.pid,
        })
    })
}

/// The facts of a file system.
pub fn filesystem(
    filesystem: &Filesystem,
    stalled: bool,
    active: Option<Active>,
    io_pressure: Option<f64>,
    speeds: &HashMap<String, Speeds>,
    space: Option<Arc<FreeSpace>>,
) -> FilesystemFacts {
    let id = filesystem.lasting_name();
    FilesystemFacts {
        speeds: speeds.get(&id).cloned().unwrap_or_default(),
        id,
        info: filesystem.clone(),
        stalled,
        active,
        io_pressure,
        space,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Bytes, Effect, Engine, ExtentCount, ImageRef};
    use std::time::Duration;

    fn run(inode: u64, ended: i64, outcome: OutcomeKind) -> RunRecord {
        RunRecord {
            image: ImageRef {
                key: key(inode),
                path: "/srv/a".into(),
            },
            at: UnixTime(ended - 10),
            took: Duration::from_secs(10),
            stalls: None,
            engine: Engine::XfsFsr,
            from: ExtentCount(1000),
            to: ExtentCount(1),
            bytes: Bytes(1 << 30),
            outcome,
            reason: format!("because of {ended}"),
        }
    }

    fn key(inode: u64) -> ImageKey {
        ImageKey {
            filesystem: "u".to_owned(),
            inode,
            generation: 0,
        }
    }

    #[test]
    fn the_last_run_and_how_many_before_it_brought_nothing() {
        use OutcomeKind as O;
        let mut runs = PastRuns::new(vec![
            run(1, 30, O::Failed),
            run(1, 10, O::Improved),
            run(1, 20, O::Unchanged),
            run(2, 40, O::Improved),
            run(3, 5, O::Stopped),
            run(5, 6, O::Improved),
            run(5, 7, O::Busy),
            run(5, 8, O::Refused),
        ]);
        let last = |runs: &PastRuns, inode| {
            let last = runs.last(&key(inode))?;
            Some((last.effect, last.times, last.reason))
        };
        let because = |effect, times, ended| Some((effect, times, format!("because of {ended}")));
        assert_eq!(last(&runs, 1), because(Effect::InVain, 2, 30));
        assert_eq!(last(&runs, 2), because(Effect::Improved, 1, 40));
        assert_eq!(last(&runs, 3), because(Effect::Interrupted, 1, 5));
        assert_eq!(last(&runs, 4), None);
        assert_eq!(last(&runs, 5), because(Effect::PutOff, 2, 8));
        assert!(runs.contains(&key(2), UnixTime(30)));
        assert!(!runs.contains(&key(2), UnixTime(31)));
        let speed = runs.speeds()["u"].xfs_fsr.unwrap();
        assert_eq!(speed.runs, 3, "those that brought nothing do not count");
        runs.push(run(1, 40, O::Unexplained));
        assert_eq!(last(&runs, 1), because(Effect::PutOff, 1, 40));
    }

    #[test]
    fn the_latest_runs_are_kept() {
        let ended = |ended| run(1, ended, OutcomeKind::Improved);
        let most = i64::from(PastRuns::MOST);
        let mut runs = PastRuns::new((0..most + 5).rev().map(ended).collect());
        let of = |runs: &PastRuns| {
            (
                runs.0.len(),
                runs.0[0].ended(),
                runs.0.last().unwrap().ended(),
            )
        };
        let all = PastRuns::MOST as usize;
        assert_eq!(of(&runs), (all, UnixTime(5), UnixTime(most + 4)));
        runs.push(ended(most + 5));
        assert_eq!(of(&runs), (all, UnixTime(6), UnixTime(most + 5)));
    }
}
