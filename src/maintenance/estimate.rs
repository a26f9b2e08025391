//! How long a run takes and what it needs: judged by past runs on the same file system, and where
//! there are none, by what was measured elsewhere; which of the two is always told.

use std::time::Duration;

use super::facts::{FilesystemFacts, ImageFacts};
use super::policy::Policy;
use crate::model::{Bytes, BytesPerSecond, Engine, ExtentCount};

/// Past runs that are looked at, the last ones: disks and neighbours change.
const RUNS: usize = 9;
/// Runs that copied less say nothing of the speed.
const LEAST_COPIED: Bytes = Bytes(64 << 20);

/// What `xfs_fsr` copies where nothing was measured. An SSD does three times that; a run that takes
/// less long than it was told is no harm.
const ASSUMED_FSR: BytesPerSecond = BytesPerSecond(100 << 20);
/// What `online` copies where nothing was measured: 512 MiB in 31 s underneath a writer of 500
/// writes a second.
const ASSUMED_ONLINE: BytesPerSecond = BytesPerSecond(16 << 20);
/// Extents that the final swap of `xfs_fsr` gets done in a second: 131,000 in 0.29 s.
const ASSUMED_SWAP: u64 = 450_000;
/// The same on a file system with a reverse-mapping tree: 131,000 in 5.97 s.
const ASSUMED_SWAP_RMAPBT: u64 = 22_000;
/// What a run takes beside copying and swapping.
const AROUND_IT: Duration = Duration::from_secs(2);

/// What `online` needs beside what the image has: one segment, generously.
const ONLINE_NEEDS: Bytes = Bytes(64 << 20);

/// A run that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastRun {
    /// What did it.
    pub engine: Engine,
    /// What it copied.
    pub copied: Bytes,
    /// How long that took.
    pub took: Duration,
    /// The extents that the image had before.
    pub extents: ExtentCount,
    /// How long the final swap took, if that was seen.
    pub swap: Option<Duration>,
}

/// How fast the runs on a file system are. Nothing where there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paces {
    /// What `xfs_fsr` copies.
    pub xfs_fsr: Option<Pace>,
    /// What `online` copies.
    pub online: Option<Pace>,
    /// Extents that the final swap of `xfs_fsr` gets done in a second.
    pub swap: Option<u64>,
}

/// A measured speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The median of the last runs.
    pub speed: BytesPerSecond,
    /// How many runs these are.
    pub runs: u32,
}

impl Paces {
    /// What the runs on a file system tell, the oldest first.
    #[must_use]
    pub fn of(runs: &[PastRun]) -> Paces {
        let swap = |run: &PastRun| {
            let rate = u128::from(run.extents.0) * 1000 / run.swap?.as_millis().max(1);
            u64::try_from(rate).ok()
        };
        Paces {
            xfs_fsr: pace(runs, Engine::XfsFsr),
            online: pace(runs, Engine::Online),
            swap: median(runs.iter().rev().filter_map(swap)).map(|(rate, _)| rate),
        }
    }
}

fn pace(runs: &[PastRun], engine: Engine) -> Option<Pace> {
    let is_telling = |run: &&PastRun| run.engine == engine && run.copied >= LEAST_COPIED;
    let speed = |run: &PastRun| {
        let rate = u128::from(run.copied.0) * 1000 / run.took.as_millis().max(1);
        u64::try_from(rate).ok()
    };
    let last = runs.iter().rev().filter(is_telling);
    let (speed, runs) = median(last.filter_map(speed))?;
    Some(Pace {
        speed: BytesPerSecond(speed),
        runs,
    })
}

/// The median of the first few numbers that are not zero, the lower one of two, and how many there
/// are.
fn median(numbers: impl Iterator<Item = u64>) -> Option<(u64, u32)> {
    let mut numbers: Vec<u64> = numbers.filter(|number| *number > 0).take(RUNS).collect();
    numbers.sort_unstable();
    let middle = numbers.len().checked_sub(1)? / 2;
    Some((*numbers.get(middle)?, u32::try_from(numbers.len()).ok()?))
}

/// What a speed was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// So many runs on this file system.
    Measured {
        /// How many.
        runs: u32,
    },
    /// Runs on other hosts.
    Assumed,
}

/// What a run would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Time, from its beginning to its end.
    pub about: Duration,
    /// Free space, for as long as it lasts.
    pub needs: Bytes,
    /// How fast it copies.
    pub speed: BytesPerSecond,
    /// How that is known.
    pub basis: Basis,
    /// For how long readers are held up at the end; nothing for `online`.
    pub stall: Duration,
}

/// What a run on an image would take.
#[must_use]
pub fn estimate(
    engine: Engine,
    image: &ImageFacts,
    filesystem: &FilesystemFacts,
    policy: &Policy,
) -> Estimate {
    let paces = &filesystem.paces;
    let (pace, assumed) = match engine {
        Engine::XfsFsr => (paces.xfs_fsr, ASSUMED_FSR),
        Engine::Online => (paces.online, ASSUMED_ONLINE),
    };
    let basis = match pace {
        Some(Pace { runs, .. }) => Basis::Measured { runs },
        None => Basis::Assumed,
    };
    // What was measured may have been measured with a higher limit. Of that, half is reading.
    let speed = pace.map_or(assumed, |pace| pace.speed);
    let speed = speed.min(BytesPerSecond(policy.bandwidth.0 / 2));
    let stall = match engine {
        Engine::XfsFsr => swap_stall(image, filesystem),
        Engine::Online => Duration::ZERO,
    };
    let copying = speed.time_for(image.allocated);
    Estimate {
        about: copying.saturating_add(stall).saturating_add(AROUND_IT),
        needs: match engine {
            Engine::XfsFsr => image.allocated,
            Engine::Online => ONLINE_NEEDS,
        },
        speed,
        basis,
        stall,
    }
}

fn swap_stall(image: &ImageFacts, filesystem: &FilesystemFacts) -> Duration {
    // It is the default, so it is there unless it is known not to be.
    let rmapbt = filesystem.features.is_none_or(|it| it.rmapbt);
    let assumed = if rmapbt {
        ASSUMED_SWAP_RMAPBT
    } else {
        ASSUMED_SWAP
    };
    let rate = filesystem.paces.swap.unwrap_or(assumed).max(1);
    Duration::from_millis(image.extents.0.saturating_mul(1000) / rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(engine: Engine, mib: u64, seconds: u64) -> PastRun {
        PastRun {
            engine,
            copied: Bytes(mib << 20),
            took: Duration::from_secs(seconds),
            extents: ExtentCount(44_000),
            swap: None,
        }
    }

    #[test]
    fn the_last_runs_tell_the_speed() {
        assert_eq!(Paces::of(&[]), Paces::default());
        let mut runs = vec![run(Engine::XfsFsr, 1000, 1); 20];
        runs.extend([run(Engine::XfsFsr, 1000, 10); 6]);
        // One that was held up, and one that had hardly begun.
        runs.push(run(Engine::XfsFsr, 1000, 10_000));
        runs.push(run(Engine::XfsFsr, 1, 100));
        runs.push(run(Engine::Online, 100, 10));
        runs.last_mut().unwrap().swap = Some(Duration::from_secs(2));
        let mib = |mib: u64| BytesPerSecond(mib << 20);
        let pace = |speed, runs| Some(Pace { speed, runs });
        assert_eq!(
            Paces::of(&runs),
            Paces {
                xfs_fsr: pace(mib(100), 9),
                online: pace(mib(10), 1),
                swap: Some(22_000),
            }
        );
    }

    #[test]
    fn a_run_that_took_no_time_is_no_trouble() {
        let runs = [
            run(Engine::XfsFsr, u64::MAX >> 20, 0),
            run(Engine::XfsFsr, 0, 5),
        ];
        assert!(Paces::of(&runs).xfs_fsr.is_none_or(|pace| pace.runs == 1));
    }
}
