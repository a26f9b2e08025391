//! How samples are kept small, and what is left of them as they grow old.
//!
//! A *block* is a series of sweeps in the order in which they were recorded. Their times are kept
//! once for all images; of each image there is one row with the counts, each as its distance from
//! the smallest of them. What is not there was not sampled; what never changed is one number.
//!
//! Time is only ever a label: a block is found by its number, so a clock that jumps, in whichever
//! direction, can make no block unreadable. Blocks belong to a day (UTC), and a day as a whole grows
//! old, whether it lies in the past or, by a clock that was wrong, in the future.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::model::{ExtentCount, Point, UnixTime};

/// Most sweeps in a block: an hour of minutes, and some.
pub const LONGEST_BLOCK: usize = 64;
/// So many days every sample is kept.
pub const FULL_DAYS: u64 = 7;
/// So many days there is a sample for each hour.
pub const HOURLY_DAYS: u64 = 30;

const HOUR: i64 = 3600;
const DAY: i64 = 86_400;

/// How much of the past a block still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Every sample.
    Full,
    /// The last sample of each hour, and the largest.
    Hourly,
    /// The last sample of the day, and the largest.
    Daily,
}

impl Tier {
    /// The number in the database.
    #[must_use]
    pub fn as_number(self) -> i64 {
        match self {
            Tier::Full => 0,
            Tier::Hourly => 1,
            Tier::Daily => 2,
        }
    }

    /// The tier with this number; the fullest for one that is none.
    #[must_use]
    pub fn from_number(number: i64) -> Tier {
        match number {
            1 => Tier::Hourly,
            2 => Tier::Daily,
            _ => Tier::Full,
        }
    }

    /// Into which part of a day of this tier a time falls: samples in the same part become one.
    fn part(self, at: UnixTime) -> i64 {
        match self {
            Tier::Full => at.0,
            Tier::Hourly => hour(at),
            Tier::Daily => day(at),
        }
    }
}

/// The hour of a time, counted from 1970.
#[must_use]
pub fn hour(at: UnixTime) -> i64 {
    at.0.div_euclid(HOUR)
}

/// The day of a time in UTC, counted from 1970.
#[must_use]
pub fn day(at: UnixTime) -> i64 {
    at.0.div_euclid(DAY)
}

/// What becomes of a day: the tier that it should be in, or nothing if it is to be removed.
#[must_use]
pub fn fate(day: i64, today: i64, retention: Duration) -> Option<Tier> {
    let age = today.abs_diff(day);
    if age > retention.as_secs().div_ceil(DAY.unsigned_abs()) {
        None
    } else if age > HOURLY_DAYS {
        Some(Tier::Daily)
    } else if age > FULL_DAYS {
        Some(Tier::Hourly)
    } else {
        Some(Tier::Full)
    }
}

/// What is done to keep a history small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chore {
    /// Removes a day.
    Remove(i64),
    /// Makes all blocks of a day that hold more than this one block that holds this.
    Thin(i64, Tier),
}

/// What is to be done next, by the days that there are and the fullest tier of each.
///
/// Of each kind one day, that which is farthest from today: nobody shall wait long for a sweep to be
/// written, and a clock that is wrong for an hour shall cost a day and not the history.
#[must_use]
pub fn chores(days: &BTreeMap<i64, Tier>, today: i64, retention: Duration) -> Vec<Chore> {
    let farthest = |which: &dyn Fn(i64, Tier) -> bool| {
        let which = days.iter().filter(|(day, tier)| which(**day, **tier));
        which
            .max_by_key(|(day, _)| today.abs_diff(**day))
            .map(|(day, _)| *day)
    };
    let thin = |to| farthest(&|day, tier| tier < to && fate(day, today, retention) == Some(to));
    let remove = farthest(&|day, _| fate(day, today, retention).is_none());
    let chores = [
        remove.map(Chore::Remove),
        thin(Tier::Daily).map(|day| Chore::Thin(day, Tier::Daily)),
        thin(Tier::Hourly).map(|day| Chore::Thin(day, Tier::Hourly)),
    ];
    chores.into_iter().flatten().collect()
}

/// Where series of sweeps are cut into blocks: the lengths of the blocks that are complete. What is
/// left is the block that still grows.
///
/// A block ends with its hour, so that a day can be thinned by whole blocks.
#[must_use]
pub fn complete_blocks(times: &[UnixTime]) -> Vec<usize> {
    let mut lengths = Vec::new();
    let mut length = 0;
    for (n, at) in times.iter().enumerate() {
        length += 1;
        let next = times.get(n + 1);
        if length == LONGEST_BLOCK || next.is_some_and(|next| hour(*next) != hour(*at)) {
            lengths.push(length);
            length = 0;
        }
    }
    lengths
}

/// What is known of an image at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reading {
    /// The last count.
    pub point: Point,
    /// The largest count since the reading before. The same as the last one unless samples were
    /// thinned.
    pub peak: ExtentCount,
}

impl Reading {
    /// A sample as it was taken.
    #[must_use]
    pub fn sampled(at: UnixTime, extents: ExtentCount) -> Reading {
        Reading {
            point: Point { at, extents },
            peak: extents,
        }
    }

    /// This one and a later one in one.
    #[must_use]
    pub fn then(self, later: Reading) -> Reading {
        Reading {
            point: later.point,
            peak: self.peak.max(later.peak),
        }
    }
}

/// One image in a block, as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The smallest count.
    pub base: i64,
    /// Of each sweep the distance from `base`, as a JSON array, `null` where the image was not
    /// sampled; what is missing at the end was not either. Nothing: every sweep found `base`.
    pub extents: Option<String>,
    /// The largest counts likewise. Nothing: they are the same as `extents`.
    pub peaks: Option<String>,
}

impl Row {
    /// Packs one image of a block of `sweeps` sweeps; nothing if it was in none of them.
    #[must_use]
    pub fn pack(sweeps: usize, counts: &[Option<(ExtentCount, ExtentCount)>]) -> Option<Row> {
        let seen = || counts.iter().flatten();
        let base = seen().map(|(extents, _)| signed(*extents)).min()?;
        let constant = seen().count() == sweeps
            && seen().all(|(extents, peak)| signed(*extents) == base && extents == peak);
        let thinned = seen().any(|(extents, peak)| extents != peak);
        let array = |of: fn(&(ExtentCount, ExtentCount)) -> ExtentCount| {
            json(counts.iter().map(|count| {
                let count = count.as_ref()?;
                Some(signed(of(count)) - base)
            }))
        };
        Some(Row {
            base,
            extents: (!constant).then(|| array(|(extents, _)| *extents)),
            peaks: thinned.then(|| array(|(_, peak)| *peak)),
        })
    }

    /// The readings of the image. Damage that the database did not notice is left out.
    pub fn unpack<'r>(&self, times: &'r [UnixTime]) -> impl Iterator<Item = Reading> + use<'r> {
        let counts = times.iter().zip(self.counts());
        counts.filter_map(|(at, count)| {
            let (extents, peak) = count?;
            let point = Point { at: *at, extents };
            Some(Reading { point, peak })
        })
    }

    /// The last and the largest count of each sweep, without end.
    fn counts(&self) -> impl Iterator<Item = Option<(ExtentCount, ExtentCount)>> + use<> {
        let base = self.base;
        let constant = self.extents.is_none();
        let extents = numbers(self.extents.as_deref());
        let peaks = numbers(self.peaks.as_deref());
        (0..).map(move |n: usize| {
            let of = |array: &[Option<i64>]| array.get(n).copied().flatten();
            let distance = if constant { 0 } else { of(&extents)? };
            let count = |distance: i64| {
                ExtentCount(u64::try_from(base.saturating_add(distance)).unwrap_or(0))
            };
            Some((count(distance), count(of(&peaks).unwrap_or(distance))))
        })
    }

    /// This row and another one of the same image in the same block of `sweeps` sweeps. Where both
    /// were sampled, this one counts.
    #[must_use]
    pub fn merged(&self, other: &Row, sweeps: usize) -> Option<Row> {
        let both = self.counts().zip(other.counts()).take(sweeps);
        let counts: Vec<_> = both.map(|(mine, others)| mine.or(others)).collect();
        Row::pack(sweeps, &counts)
    }
}

/// As SQLite stores it. Nothing has more extents than that.
fn signed(extents: ExtentCount) -> i64 {
    i64::try_from(extents.0).unwrap_or(i64::MAX)
}

/// Times as a JSON array.
#[must_use]
pub fn pack_times(times: &[UnixTime]) -> String {
    json(times.iter().map(|at| Some(at.0)))
}

/// The times of [`pack_times`].
#[must_use]
pub fn unpack_times(text: &str) -> Vec<UnixTime> {
    let numbers = numbers(Some(text));
    numbers.into_iter().flatten().map(UnixTime).collect()
}

fn json(numbers: impl Iterator<Item = Option<i64>>) -> String {
    let mut text = String::from("[");
    // Up to here without the gaps at the end.
    let mut end = 1;
    for number in numbers {
        if text.len() > 1 {
            text.push(',');
        }
        match number {
            // Writing to a String cannot fail.
            Some(number) => {
                let _ = write!(text, "{number}");
                end = text.len();
            }
            None => text.push_str("null"),
        }
    }
    text.truncate(end);
    text.push(']');
    text
}

fn numbers(text: Option<&str>) -> Vec<Option<i64>> {
    text.and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

/// Where the sweeps of old blocks go in the new one that takes their place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thinning {
    tier: Tier,
    /// The parts of the day that have samples, in order.
    parts: Vec<i64>,
    /// The time of each: that of the last sweep in it.
    pub times: Vec<UnixTime>,
}

impl Thinning {
    /// For blocks with these times, in the order in which they were recorded.
    #[must_use]
    pub fn new<'t>(tier: Tier, times: impl IntoIterator<Item = &'t UnixTime>) -> Thinning {
        let mut last = BTreeMap::new();
        for at in times {
            last.insert(tier.part(*at), *at);
        }
        let (parts, times) = last.into_iter().unzip();
        Thinning { tier, parts, times }
    }

    /// One image of the new block, from its readings in the order in which they were recorded.
    #[must_use]
    pub fn thin(
        &self,
        readings: impl IntoIterator<Item = Reading>,
    ) -> Vec<Option<(ExtentCount, ExtentCount)>> {
        let mut parts: Vec<Option<Reading>> = vec![None; self.parts.len()];
        for reading in readings {
            let part = self.tier.part(reading.point.at);
            let known = self.parts.binary_search(&part).ok();
            if let Some(slot) = known.and_then(|n| parts.get_mut(n)) {
                *slot = Some(slot.map_or(reading, |before| before.then(reading)));
            }
        }
        parts
            .into_iter()
            .map(|reading| reading.map(|reading| (reading.point.extents, reading.peak)))
            .collect()
    }
}

/// At most `most` readings in the place of these, which are in the order of time: of each of `most`
/// equal shares the last and the largest.
#[must_use]
pub fn thin_evenly(readings: Vec<Reading>, most: usize) -> Vec<Reading> {
    if readings.len() <= most || most == 0 {
        return readings;
    }
    let share = |n: usize| n * readings.len() / most;
    (0..most)
        .filter_map(|n| {
            let share = readings.get(share(n)..share(n + 1))?;
            share.iter().copied().reduce(Reading::then)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(extents: u64) -> Option<(ExtentCount, ExtentCount)> {
        Some((ExtentCount(extents), ExtentCount(extents)))
    }

    #[test]
    fn a_block_ends_with_its_hour_and_is_never_long() {
        let minutes: Vec<_> = (0..150).map(|n| UnixTime(7200 + n * 60)).collect();
        assert_eq!(complete_blocks(&minutes), [60, 60]);
        let seconds: Vec<_> = (0..200).map(UnixTime).collect();
        assert_eq!(complete_blocks(&seconds), [64, 64, 64]);
        // A clock that goes back opens a new block, too.
        let jumps = [7200, 7260, 60, 120, -60].map(UnixTime);
        assert_eq!(complete_blocks(&jumps), [2, 2]);
        assert_eq!(complete_blocks(&[]), [0; 0]);
    }

    #[test]
    fn a_row_reads_as_documented() {
        let row = Row::pack(4, &[count(1000), None, count(1007), None]).unwrap();
        assert_eq!(
            (row.base, row.extents.as_deref()),
            (1000, Some("[0,null,7]"))
        );
        assert_eq!(row.peaks, None);
        let row = Row::pack(2, &[count(5), count(5)]).unwrap();
        assert_eq!((row.base, row.extents), (5, None));
        // Not sampled in the second sweep is not the same as unchanged.
        let row = Row::pack(2, &[count(5), None]).unwrap();
        assert_eq!((row.base, row.extents.as_deref()), (5, Some("[0]")));
        assert_eq!(Row::pack(2, &[None, None]), None);
        assert_eq!(pack_times(&[UnixTime(3), UnixTime(-4)]), "[3,-4]");
    }

    #[test]
    fn a_day_grows_old_by_the_rule_in_either_direction() {
        let retention = Duration::from_secs(90 * 86_400 + 1);
        for (age, tier) in [
            (0, Some(Tier::Full)),
            (7, Some(Tier::Full)),
            (8, Some(Tier::Hourly)),
            (30, Some(Tier::Hourly)),
            (31, Some(Tier::Daily)),
            (91, Some(Tier::Daily)),
            (92, None),
        ] {
            assert_eq!(fate(20_000 - age, 20_000, retention), tier, "{age}");
            assert_eq!(fate(20_000 + age, 20_000, retention), tier, "{age}");
        }
        assert_eq!(fate(i64::MIN, i64::MAX, Duration::MAX), None);
        assert_eq!(fate(-2, 0, Duration::from_secs(86_400)), None);
    }

    #[test]
    fn one_day_of_each_kind_is_done_at_a_time() {
        let days = [(0, Tier::Daily), (80, Tier::Full), (81, Tier::Full)];
        let days = BTreeMap::from_iter(
            days.into_iter()
                .chain([(100, Tier::Full), (200, Tier::Full)]),
        );
        let ninety = Duration::from_secs(90 * 86_400);
        let expected = [Chore::Remove(200), Chore::Thin(80, Tier::Hourly)];
        assert_eq!(chores(&days, 100, ninety), expected);
        let long = Duration::from_secs(900 * 86_400);
        let expected = [Chore::Thin(200, Tier::Daily), Chore::Thin(80, Tier::Hourly)];
        assert_eq!(chores(&days, 100, long), expected);
        assert_eq!(chores(&BTreeMap::new(), 100, long), []);
    }

    #[test]
    fn a_peak_outlives_thinning() {
        let at = |n: i64| UnixTime(n * 600);
        let times: Vec<_> = (0..12).map(at).collect();
        let thinning = Thinning::new(Tier::Hourly, &times);
        assert_eq!(thinning.times, [at(5), at(11)]);
        let readings = [(0, 10), (2, 90), (4, 20), (7, 30)];
        let readings = readings.map(|(n, extents)| Reading::sampled(at(n), ExtentCount(extents)));
        let thin = thinning.thin(readings);
        let expected = [(20, 90), (30, 30)];
        let expected = expected.map(|(last, peak)| Some((ExtentCount(last), ExtentCount(peak))));
        assert_eq!(thin, expected);
        let row = Row::pack(2, &thin).unwrap();
        assert_eq!(row.extents.as_deref(), Some("[0,10]"));
        assert_eq!(row.peaks.as_deref(), Some("[70,10]"));
    }

    #[test]
    fn what_is_no_array_holds_nothing() {
        let row = Row {
            base: 5,
            extents: Some("{}".to_owned()),
            peaks: Some("[".to_owned()),
        };
        assert_eq!(row.unpack(&[UnixTime(1)]).count(), 0);
        let row = Row {
            base: i64::MAX,
            extents: Some("[9,-3]".to_owned()),
            peaks: None,
        };
        assert_eq!(row.unpack(&[UnixTime(1), UnixTime(2)]).count(), 2);
        assert_eq!(unpack_times("none"), []);
    }

    fn counts() -> impl Strategy<Value = Vec<Option<(ExtentCount, ExtentCount)>>> {
        let one = prop::option::of((0..i64::MAX.unsigned_abs(), 0..1000_u64, any::<bool>()));
        prop::collection::vec(one, 0..80).prop_map(|counts| {
            let count = |(extents, more, thinned): (u64, u64, bool)| {
                let most = i64::MAX.unsigned_abs();
                let peak = if thinned {
                    extents.saturating_add(more).min(most)
                } else {
                    extents
                };
                (ExtentCount(extents), ExtentCount(peak))
            };
            counts.into_iter().map(|one| one.map(count)).collect()
        })
    }

    proptest! {
        #[test]
        fn what_was_packed_comes_back(counts in counts(), from: i32) {
            let times: Vec<_> =
                (0..).map(|n| UnixTime(i64::from(from) + n)).take(counts.len()).collect();
            let expected: Vec<_> = times.iter().zip(&counts).filter_map(|(at, count)| {
                let (extents, peak) = (*count)?;
                Some(Reading { point: Point { at: *at, extents }, peak })
            }).collect();
            let row = Row::pack(counts.len(), &counts);
            let back: Vec<_> = row.iter().flat_map(|row| row.unpack(&times)).collect();
            prop_assert_eq!(back, expected);
            prop_assert_eq!(unpack_times(&pack_times(&times)), times);
        }

        #[test]
        fn blocks_hold_one_hour_each_and_leave_the_last_open(
            times in prop::collection::vec(-9000_i64..9000, 0..300), step in 0..3_i64,
        ) {
            let times: Vec<_> = times.iter().enumerate()
                .map(|(n, at)| UnixTime(if step == 0 { *at } else { i64::try_from(n).unwrap() * step * 40 }))
                .collect();
            let mut rest = times.as_slice();
            for length in complete_blocks(&times) {
                let (block, behind) = rest.split_at(length);
                prop_assert!(block.iter().all(|at| hour(*at) == hour(block[0])));
                prop_assert!(length == LONGEST_BLOCK || hour(behind[0]) != hour(block[0]));
                rest = behind;
            }
            prop_assert!(rest.len() < LONGEST_BLOCK);
            prop_assert!(rest.iter().all(|at| hour(*at) == hour(rest[0])));
        }

        #[test]
        fn thinning_twice_is_thinning_once(
            samples in prop::collection::vec((0..86_400_i64, 0..1000_u64), 1..60),
        ) {
            let times: Vec<_> = samples.iter().map(|(at, _)| UnixTime(*at)).collect();
            let readings = samples.iter().map(|(at, n)| Reading::sampled(UnixTime(*at), ExtentCount(*n)));
            let at_once = Thinning::new(Tier::Daily, &times);
            let hourly = Thinning::new(Tier::Hourly, &times);
            let first: Vec<_> = hourly.times.iter().zip(hourly.thin(readings.clone()))
                .filter_map(|(at, count)| count.map(|(extents, peak)| Reading {
                    point: Point { at: *at, extents }, peak,
                })).collect();
            let peak = |counts: Vec<Option<(ExtentCount, ExtentCount)>>| counts[0].unwrap().1;
            let then = Thinning::new(Tier::Daily, &hourly.times).thin(first);
            prop_assert_eq!(peak(then), peak(at_once.thin(readings)));
        }

        #[test]
        fn an_even_choice_is_short_and_keeps_the_ends_and_the_peak(
            counts in prop::collection::vec(0..1000_u64, 0..300), most in 1..50_usize,
        ) {
            let readings: Vec<_> = counts.iter().zip(0..)
                .map(|(n, at)| Reading::sampled(UnixTime(at), ExtentCount(*n))).collect();
            let thin = thin_evenly(readings.clone(), most);
            prop_assert_eq!(thin.len(), readings.len().min(most));
            prop_assert_eq!(thin.last().map(|r| r.point), readings.last().map(|r| r.point));
            let peak = |readings: &[Reading]| readings.iter().map(|r| r.peak).max();
            prop_assert_eq!(peak(&thin), peak(&readings));
        }
    }
}
