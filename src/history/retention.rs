//! Which samples are kept as they age, and the steps to get there. Pure.
//!
//! Time only labels a sweep: a clock that jumps in either direction makes nothing unreadable, and
//! samples of a clock that was ahead age like those of the past.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::UnixTime;

/// Hours for which every sample is kept.
const FULL_HOURS: u64 = 48;
/// Days for which one sample per hour is kept.
const HOURLY_DAYS: u64 = 30;
/// Maximum number of hours merged at once, which bounds how long a sweep waits to be written.
const MOST_HOURS: usize = 24;

const HOUR: i64 = 3600;
const DAY: i64 = 86_400;

/// How many samples of a period are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Full,
    /// The last sample of each hour, and the largest count.
    Hourly,
    /// The last sample of each day, and the largest count.
    Daily,
}

/// A step of the retention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RetentionTask {
    /// Removes everything recorded on a day (days since 1970, UTC).
    RemoveDay(i64),
    /// Merges sweeps (row numbers in the order of recording) into the last of them.
    Merge(Vec<i64>),
}

/// The hour of a time, counted from 1970.
pub(super) fn hour(at: UnixTime) -> i64 {
    at.0.div_euclid(HOUR)
}

/// The day of a time in UTC, counted from 1970.
pub(super) fn day(at: UnixTime) -> i64 {
    at.0.div_euclid(DAY)
}

/// The first second of a day and of the next.
pub(super) fn day_bounds(day: i64) -> (i64, i64) {
    (
        day.saturating_mul(DAY),
        day.saturating_add(1).saturating_mul(DAY),
    )
}

/// The tier of a sweep by its age; `None` if it is to be removed.
fn target_tier(at: UnixTime, now: UnixTime, retention: Duration) -> Option<Tier> {
    let days = day(now).abs_diff(day(at));
    if days > retention.as_secs().div_ceil(DAY.unsigned_abs()) {
        None
    } else if days > HOURLY_DAYS {
        Some(Tier::Daily)
    } else if hour(now).abs_diff(hour(at)) > FULL_HOURS {
        Some(Tier::Hourly)
    } else {
        Some(Tier::Full)
    }
}

/// The next steps for these sweeps (row number and time, in the order of recording) and the days
/// with other records. At most one day is removed and one merged, those farthest from `now`: a
/// clock that is wrong for an hour costs a day, not the history.
pub(super) fn tasks(
    sweeps: &[(i64, UnixTime)],
    days: &BTreeSet<i64>,
    now: UnixTime,
    retention: Duration,
) -> Vec<RetentionTask> {
    let mut outdated: BTreeSet<i64> = days
        .iter()
        .copied()
        .filter(|day| target_tier(UnixTime(day_bounds(*day).0), now, retention).is_none())
        .collect();
    let (mut hours, mut whole_days) = (BTreeMap::new(), BTreeMap::new());
    for (number, at) in sweeps {
        let group: &mut Vec<i64> = match target_tier(*at, now, retention) {
            None => {
                outdated.insert(day(*at));
                continue;
            }
            Some(Tier::Full) => continue,
            Some(Tier::Hourly) => hours.entry(hour(*at)).or_default(),
            Some(Tier::Daily) => whole_days.entry(day(*at)).or_default(),
        };
        group.push(*number);
    }
    let outdated = outdated.into_iter().max_by_key(|it| day(now).abs_diff(*it));
    let merges = farthest(whole_days, day(now), 1);
    let merges = merges.chain(farthest(hours, hour(now), MOST_HOURS));
    outdated
        .map(RetentionTask::RemoveDay)
        .into_iter()
        .chain(merges.map(RetentionTask::Merge))
        .collect()
}

/// At most `most` groups of more than one sweep, the farthest from `now` first.
fn farthest(
    groups: BTreeMap<i64, Vec<i64>>,
    now: i64,
    most: usize,
) -> impl Iterator<Item = Vec<i64>> {
    let due = groups.into_iter().filter(|(_, sweeps)| sweeps.len() > 1);
    let mut due: Vec<_> = due.collect();
    due.sort_by_key(|(at, _)| std::cmp::Reverse(now.abs_diff(*at)));
    due.into_iter().take(most).map(|(_, sweeps)| sweeps)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NINETY_DAYS: Duration = Duration::from_secs(90 * 86_400);

    #[test]
    fn a_sample_grows_old_by_the_rule_in_either_direction() {
        let retention = Duration::from_secs(90 * 86_400 + 1);
        let noon = 20_000 * DAY + 12 * HOUR;
        for (age, tier) in [
            (0, Some(Tier::Full)),
            (48 * HOUR, Some(Tier::Full)),
            (49 * HOUR, Some(Tier::Hourly)),
            (30 * DAY, Some(Tier::Hourly)),
            (31 * DAY, Some(Tier::Daily)),
            (91 * DAY, Some(Tier::Daily)),
            (92 * DAY, None),
        ] {
            for at in [noon - age, noon + age] {
                let found = target_tier(UnixTime(at), UnixTime(noon), retention);
                assert_eq!(found, tier, "{age}");
            }
        }
        let (first, last) = (UnixTime(i64::MIN), UnixTime(i64::MAX));
        assert_eq!(target_tier(first, last, NINETY_DAYS), None);
    }

    #[test]
    fn one_day_is_removed_and_one_merged_at_a_time() {
        let now = UnixTime(100 * DAY);
        let at = |day: i64, hour: i64| UnixTime(day * DAY + hour * HOUR);
        // Two days too old, one of them by a clock that was ahead; two for a sample a day; three
        // hours, one of which has a single sweep.
        let sweeps = [
            (1, at(5, 0)),
            (2, at(200, 0)),
            (3, at(60, 1)),
            (4, at(60, 2)),
            (5, at(65, 1)),
            (6, at(65, 2)),
            (7, at(80, 1)),
            (8, at(80, 1)),
            (9, at(90, 1)),
            (10, at(95, 1)),
            (11, at(95, 1)),
            (12, at(100, 0)),
            (13, at(100, 0)),
        ];
        let expected = [
            RetentionTask::RemoveDay(200),
            RetentionTask::Merge(vec![3, 4]),
            RetentionTask::Merge(vec![7, 8]),
            RetentionTask::Merge(vec![10, 11]),
        ];
        assert_eq!(tasks(&sweeps, &BTreeSet::new(), now, NINETY_DAYS), expected);
        // Days of events count as well.
        let days = BTreeSet::from([2, 99]);
        assert_eq!(
            tasks(&[], &days, now, NINETY_DAYS),
            [RetentionTask::RemoveDay(2)]
        );
        assert_eq!(tasks(&[], &BTreeSet::new(), now, NINETY_DAYS), []);
    }
}
