//! From what is known of images and file systems to what the planner asks for. Pure.

use std::collections::HashMap;

use jiff::Timestamp;

use super::estimate::{Paces, PastRun};
use super::facts::{Active, Came, FilesystemFacts, ImageFacts, LastRun, User, ideal};
use crate::model::{
    Bytes, Engine, ExtentCount, ExtentMap, ExtentsPerDay, Filesystem, ImageKey, Outlook, Owner,
    Sample, Severity, UnixTime,
};

/// A run of the past, as the history has it.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownRun {
    /// Of which image.
    pub key: ImageKey,
    /// When it ended.
    pub ended: UnixTime,
    /// What it took.
    pub took: std::time::Duration,
    /// What did it; nothing if that is not known to us.
    pub engine: Option<Engine>,
    /// Extents before.
    pub from: ExtentCount,
    /// What was copied.
    pub copied: Bytes,
    /// What came of it: [`RunOutcome::as_str`](crate::model::RunOutcome::as_str), or `interrupted`.
    pub outcome: String,
    /// Why, in words.
    pub reason: String,
}

/// The runs of the past, oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Runs(Vec<KnownRun>);

/// Runs that are remembered: enough for some of every image and every file system.
const MOST: usize = 4096;

impl Runs {
    /// Of runs in any order.
    #[must_use]
    pub fn new(mut runs: Vec<KnownRun>) -> Self {
        runs.sort_by_key(|run| run.ended);
        Runs(runs)
    }

    /// One more.
    pub fn push(&mut self, run: KnownRun) {
        if self.0.len() >= MOST {
            self.0.remove(0);
        }
        self.0.push(run);
    }

    /// Whether the run on an image that began then is among them.
    #[must_use]
    pub fn contains(&self, key: &ImageKey, began: UnixTime) -> bool {
        let is_it = |run: &KnownRun| {
            let took = i64::try_from(run.took.as_secs()).unwrap_or(i64::MAX);
            run.key == *key && run.ended.0.saturating_sub(took) == began.0
        };
        self.0.iter().any(is_it)
    }

    /// How the last run on an image went.
    #[must_use]
    pub fn last(&self, key: &ImageKey) -> Option<LastRun> {
        let its = || self.0.iter().rev().filter(|run| run.key == *key);
        let last = its().next()?;
        let in_a_row = |what| {
            let alike = its().take_while(|run| verdict(&run.outcome) == what);
            u32::try_from(alike.count()).unwrap_or(u32::MAX)
        };
        let came = match verdict(&last.outcome) {
            Verdict::Improved => Came::Improved,
            Verdict::Interrupted => Came::Interrupted,
            Verdict::PutOff => Came::PutOff {
                times: in_a_row(Verdict::PutOff),
                why: last.reason.clone(),
            },
            Verdict::InVain => Came::Nothing(in_a_row(Verdict::InVain)),
        };
        let ended = Timestamp::from_second(last.ended.0).unwrap_or(Timestamp::MIN);
        Some(LastRun { ended, came })
    }

    /// How fast runs on each file system were.
    #[must_use]
    pub fn paces(&self) -> HashMap<String, Paces> {
        let mut by_filesystem: HashMap<&str, Vec<PastRun>> = HashMap::new();
        for run in &self.0 {
            let Some(engine) = run.engine else { continue };
            if verdict(&run.outcome) != Verdict::Improved {
                continue;
            }
            let runs = by_filesystem.entry(&run.key.filesystem).or_default();
            runs.push(PastRun {
                engine,
                copied: run.copied,
                took: run.took,
                extents: run.from,
                swap: None,
            });
        }
        by_filesystem
            .into_iter()
            .map(|(filesystem, runs)| (filesystem.to_owned(), Paces::of(&runs)))
            .collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Improved,
    /// Nothing that the image can help: the next window may bring more.
    Interrupted,
    /// It could not have the image, and may a little later.
    PutOff,
    InVain,
}

fn verdict(outcome: &str) -> Verdict {
    match outcome {
        "improved" => Verdict::Improved,
        "stopped" | "interrupted" => Verdict::Interrupted,
        "busy" | "refused" | "no_report" | "unexplained" => Verdict::PutOff,
        // What there is to gain does not change in minutes, and finding it out loads the map.
        "no_gain" => Verdict::InVain,
        _ => Verdict::InVain,
    }
}

/// What the planner asks of an image.
#[derive(Debug, Clone, Copy)]
pub struct ImageNow<'a> {
    /// Its last count.
    pub sample: &'a Sample,
    /// Who it is for good.
    pub key: &'a ImageKey,
    /// Who has it open.
    pub owner: &'a Owner,
    /// How bad it is.
    pub severity: Severity,
    /// How fast it gets worse.
    pub growth: Option<ExtentsPerDay>,
    /// Its map, if one was read.
    pub map: Option<&'a ExtentMap>,
    /// What could be gained, if its map was read or sampled.
    pub outlook: Option<Outlook>,
}

/// The facts of an image.
#[must_use]
pub fn image(now: &ImageNow<'_>, runs: &Runs) -> ImageFacts {
    let sample = now.sample;
    let holes = now.map.map_or(0, |map| map.holes);
    ImageFacts {
        path: sample.path.clone(),
        filesystem: now.key.filesystem.clone(),
        severity: now.severity,
        extents: sample.extents,
        ideal: ideal(sample.size, holes),
        outlook: now.outlook.map(|outlook| outlook.with(sample.extents)),
        growth: now.growth,
        size: sample.size,
        allocated: sample.allocated,
        user: user(now.owner),
        shares_blocks: now.map.is_some_and(|map| map.shared.0 > 0),
        // What forbids touching it is found by the guards, which hold the file while they look.
        obstacles: Vec::new(),
        last_run: runs.last(now.key),
    }
}

fn user(owner: &Owner) -> Option<User> {
    if let Some(vm) = owner.vm() {
        return Some(User::Vm {
            name: vm.name.clone(),
            pid: vm.pid,
        });
    }
    let opener = owner.openers.first()?;
    Some(User::Process {
        name: opener.name.clone(),
        pid: opener.pid,
    })
}

/// The facts of a file system.
#[must_use]
pub fn filesystem(
    filesystem: &Filesystem,
    stalled: bool,
    active: Option<Active>,
    io_pressure: Option<f64>,
    paces: &HashMap<String, Paces>,
) -> FilesystemFacts {
    let id = filesystem.lasting_name();
    FilesystemFacts {
        paces: paces.get(&id).cloned().unwrap_or_default(),
        id,
        mount: filesystem.mount.clone(),
        type_name: filesystem.type_name.clone(),
        kind: filesystem.kind,
        features: filesystem.features,
        size: filesystem.size,
        free: filesystem.free,
        stalled,
        active,
        io_pressure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::unknown_reason;
    use std::time::Duration;

    fn run(inode: u64, ended: i64, outcome: &str) -> KnownRun {
        KnownRun {
            key: key(inode),
            ended: UnixTime(ended),
            took: Duration::from_secs(10),
            engine: Some(Engine::XfsFsr),
            from: ExtentCount(1000),
            copied: Bytes(1 << 30),
            outcome: outcome.to_owned(),
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
        let runs = Runs::new(vec![
            run(1, 30, "failed"),
            run(1, 10, "improved"),
            run(1, 20, "unchanged"),
            run(2, 40, "improved"),
            run(3, 5, "stopped"),
            run(5, 6, "improved"),
            run(5, 7, "busy"),
            run(5, 8, "refused"),
        ]);
        let came = |inode| runs.last(&key(inode)).map(|last| last.came);
        assert_eq!(came(1), Some(Came::Nothing(2)));
        assert_eq!(came(2), Some(Came::Improved));
        assert_eq!(came(3), Some(Came::Interrupted));
        assert_eq!(came(4), None);
        let (times, why) = (2, "because of 8".to_owned());
        assert_eq!(came(5), Some(Came::PutOff { times, why }));
        let why = unknown_reason("deferred");
        let unknown = KnownRun {
            reason: why.clone(),
            ..run(1, 40, "unexplained")
        };
        let runs_then = Runs::new(vec![run(1, 30, "unchanged"), unknown]);
        let last = runs_then.last(&key(1)).map(|last| last.came);
        assert_eq!(last, Some(Came::PutOff { times: 1, why }));
        let paces = runs.paces();
        let pace = paces["u"].xfs_fsr.as_ref().unwrap();
        assert_eq!(pace.runs, 3, "those that brought nothing say nothing");
    }
}
