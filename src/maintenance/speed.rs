//! The speed of past runs on a file system.

use crate::model::{Bytes, BytesPerSecond, Engine, RunRecord};

/// Only this many of the latest runs count, because disks and their load change.
const RUNS: usize = 9;
/// Runs that copied less do not count.
const LEAST_COPIED: Bytes = Bytes(64 << 20);

/// The speed of past runs on a file system by engine; `None` without such runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Speeds {
    /// Copying speed of `xfs_fsr`.
    pub xfs_fsr: Option<Speed>,
    /// Copying speed of `online`.
    pub online: Option<Speed>,
    /// Copying speed of `blockcopy`.
    pub blockcopy: Option<Speed>,
}

/// A measured speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    /// The median of the latest runs.
    pub median: BytesPerSecond,
    /// The number of these runs.
    pub runs: u32,
}

impl Speeds {
    /// Computes the speeds from the runs on one file system, which must be ordered oldest first.
    pub fn of(runs: &[&RunRecord]) -> Speeds {
        let by = |engine| {
            let counts = |run: &&&RunRecord| run.engine == engine && run.bytes >= LEAST_COPIED;
            let speed = |run: &&RunRecord| {
                let rate = u128::from(run.bytes.0) * 1000 / run.took.as_millis().max(1);
                u64::try_from(rate).ok()
            };
            let last = runs.iter().rev().filter(counts);
            let (median, runs) = median(last.filter_map(speed))?;
            Some(Speed {
                median: BytesPerSecond(median),
                runs,
            })
        };
        Speeds {
            xfs_fsr: by(Engine::XfsFsr),
            online: by(Engine::Online),
            blockcopy: by(Engine::BlockCopy),
        }
    }
}

/// The (lower) median of the first [`RUNS`] nonzero numbers, and how many there are.
fn median(numbers: impl Iterator<Item = u64>) -> Option<(u64, u32)> {
    let mut numbers: Vec<u64> = numbers.filter(|number| *number > 0).take(RUNS).collect();
    numbers.sort_unstable();
    let middle = numbers.len().checked_sub(1)? / 2;
    Some((*numbers.get(middle)?, u32::try_from(numbers.len()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::model::{ExtentCount, ImageKey, ImageRef, OutcomeKind, UnixTime};

    fn run(engine: Engine, mib: u64, seconds: u64) -> RunRecord {
        RunRecord {
            image: ImageRef {
                key: ImageKey {
                    filesystem: "u".to_owned(),
                    inode: 1,
                    generation: 0,
                },
                path: "/srv/a".into(),
            },
            at: UnixTime(0),
            engine,
            from: ExtentCount(44_000),
            to: ExtentCount(1),
            bytes: Bytes(mib << 20),
            took: Duration::from_secs(seconds),
            stalls: None,
            outcome: OutcomeKind::Improved,
            reason: String::new(),
        }
    }

    fn speeds(runs: &[RunRecord]) -> Speeds {
        Speeds::of(&runs.iter().collect::<Vec<_>>())
    }

    #[test]
    fn the_last_runs_give_the_speed() {
        assert_eq!(speeds(&[]), Speeds::default());
        let mut runs = vec![run(Engine::XfsFsr, 1000, 1); 20];
        runs.extend(vec![run(Engine::XfsFsr, 1000, 10); 6]);
        // One that was held up, and one that had hardly begun.
        runs.push(run(Engine::XfsFsr, 1000, 10_000));
        runs.push(run(Engine::XfsFsr, 1, 100));
        runs.push(run(Engine::Online, 100, 10));
        let speed = |mib: u64, runs| {
            let median = BytesPerSecond(mib << 20);
            Some(Speed { median, runs })
        };
        runs.push(run(Engine::BlockCopy, 100, 2));
        let found = Speeds {
            xfs_fsr: speed(100, 9),
            online: speed(10, 1),
            blockcopy: speed(50, 1),
        };
        assert_eq!(speeds(&runs), found);
    }

    #[test]
    fn a_run_that_took_no_time_is_no_trouble() {
        let runs = [
            run(Engine::XfsFsr, u64::MAX >> 20, 0),
            run(Engine::XfsFsr, 0, 5),
        ];
        assert!(speeds(&runs).xfs_fsr.is_none_or(|speed| speed.runs == 1));
    }
}
