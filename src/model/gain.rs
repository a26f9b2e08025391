//! What a defragmentation could bring: extents that can go, and what keeps the others. Of a whole
//! extent map, or estimated from a sample of it. Pure.
//!
//! The sample: the file is divided into equal parts, and of each part a *window* of the same length
//! is looked at. Extents that begin in a window are counted by the [`Border`] before them; the share
//! of each kind is a ratio estimate, with the windows as its clusters (Cochran, Sampling Techniques,
//! 3rd edition, 2.11 and 6.3). Neighbours are alike, so that a window with a hundred extents says
//! little more than one extent would; the variance between windows takes that into account.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::defrag::Engine;
use super::map::Extent;
use super::units::{Bytes, ExtentCount};

/// An extent as long as this is left as it is.
pub const LONG: Bytes = Bytes(4 << 20);
/// A copy is worth its bytes if for each so many of them an extent goes away.
pub const WORTH: Bytes = Bytes(1 << 20);
/// Less than one extent in so many is little gain. It is the hysteresis of a severity (0.9): a run
/// that brings less leaves the image as bad as it was, with as much kernel memory for its map.
pub const LITTLE: u64 = 10;

/// Windows of a sample.
const WINDOWS: u64 = 512;
/// Extents that are expected in each.
const EXPECTED: u64 = 64;
/// The map of an image with no more extents is read as a whole: it costs as much as a sample.
pub const SAMPLED_FROM: ExtentCount = ExtentCount(WINDOWS * EXPECTED);

/// What is between an extent and the one before it in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Border {
    /// Nothing: the two can become one.
    Joins,
    /// A hole, which no engine fills.
    Hole,
    /// One of the two belongs to another file as well.
    Shared,
    /// One of the two was not written yet.
    Unwritten,
    /// Both are so long that a copy is not worth it; or there is none before it.
    Long,
}

/// Extents by the border before them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Borders {
    /// See [`Border::Joins`].
    pub joins: u64,
    /// See [`Border::Hole`].
    pub holes: u64,
    /// See [`Border::Shared`].
    pub shared: u64,
    /// See [`Border::Unwritten`].
    pub unwritten: u64,
    /// See [`Border::Long`].
    pub long: u64,
}

impl Borders {
    /// One more.
    pub fn add(&mut self, border: Border) {
        *match border {
            Border::Joins => &mut self.joins,
            Border::Hole => &mut self.holes,
            Border::Shared => &mut self.shared,
            Border::Unwritten => &mut self.unwritten,
            Border::Long => &mut self.long,
        } += 1;
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.joins + self.holes + self.shared + self.unwritten + self.long
    }
}

/// Counts borders from extents in the order of the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BorderCount {
    /// What was counted.
    pub borders: Borders,
    before: Option<Before>,
}

/// The extent before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Before {
    end: Bytes,
    length: Bytes,
    shared: bool,
    unwritten: bool,
}

impl BorderCount {
    /// Counts the next extent.
    pub fn push(&mut self, extent: &Extent) {
        let border = self.border(extent);
        self.borders.add(border);
        self.skip(extent);
    }

    /// Takes in the next extent without counting it.
    pub fn skip(&mut self, extent: &Extent) {
        self.before = Some(Before {
            end: extent.logical.saturating_add(extent.length),
            length: extent.length,
            shared: extent.flags.shared,
            unwritten: extent.flags.unwritten || extent.flags.delayed,
        });
    }

    fn border(&self, extent: &Extent) -> Border {
        let Some(before) = self.before.filter(|before| before.end == extent.logical) else {
            return match extent.logical.0 {
                0 => Border::Long,
                _ => Border::Hole,
            };
        };
        let flags = extent.flags;
        let both = before.length.saturating_add(extent.length);
        match () {
            () if before.shared || flags.shared => Border::Shared,
            () if before.unwritten || flags.unwritten || flags.delayed => Border::Unwritten,
            () if before.length >= LONG || extent.length >= LONG => Border::Long,
            () if both.0 > 2 * WORTH.0 => Border::Long,
            () => Border::Joins,
        }
    }
}

/// A number that is not known exactly: with a probability of 95 % it is not below `low` and not
/// above `high`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Between {
    /// At least.
    pub low: ExtentCount,
    /// The best guess.
    pub likely: ExtentCount,
    /// At most.
    pub high: ExtentCount,
}

impl Between {
    /// A number that is known.
    #[must_use]
    pub fn exactly(number: u64) -> Between {
        let number = ExtentCount(number);
        Between {
            low: number,
            likely: number,
            high: number,
        }
    }

    /// By how much it may be wrong.
    #[must_use]
    pub fn spread(&self) -> ExtentCount {
        let (up, down) = (
            self.high.saturating_sub(self.likely),
            self.likely.saturating_sub(self.low),
        );
        up.max(down)
    }

    /// What is left of so many.
    fn left_of(self, all: ExtentCount) -> Between {
        Between {
            low: all.saturating_sub(self.high),
            likely: all.saturating_sub(self.likely),
            high: all.saturating_sub(self.low),
        }
    }
}

impl fmt::Display for Between {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spread = match self.spread() {
            ExtentCount(0) => String::new(),
            spread => format!(" ±{spread}"),
        };
        f.pad(&format!("{}{spread}", self.likely))
    }
}

/// What could be gained of an image, in extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlook {
    /// What it has.
    pub extents: ExtentCount,
    /// Of these were looked at.
    pub looked_at: ExtentCount,
    /// See [`Border::Joins`].
    pub joins: Between,
    /// See [`Border::Hole`].
    pub holes: Between,
    /// See [`Border::Shared`].
    pub shared: Between,
    /// See [`Border::Unwritten`].
    pub unwritten: Between,
    /// See [`Border::Long`].
    pub long: Between,
}

impl Outlook {
    /// Of a whole map.
    #[must_use]
    pub fn of_map(borders: &Borders) -> Outlook {
        let extents = ExtentCount(borders.total());
        Outlook {
            extents,
            looked_at: extents,
            joins: Between::exactly(borders.joins),
            holes: Between::exactly(borders.holes),
            shared: Between::exactly(borders.shared),
            unwritten: Between::exactly(borders.unwritten),
            long: Between::exactly(borders.long),
        }
    }

    /// Of what was counted in the windows of a sample ([`Sampling::windows`]), all of them, of an image of
    /// so many extents.
    #[must_use]
    pub fn of_sample(counts: &[Borders], sample: &Sampling) -> Outlook {
        let of = |part: fn(&Borders) -> u64| estimate(counts, part, sample);
        let looked_at = counts.iter().map(Borders::total).sum();
        Outlook {
            extents: sample.extents,
            looked_at: ExtentCount(looked_at),
            joins: of(|it| it.joins),
            holes: of(|it| it.holes),
            shared: of(|it| it.shared),
            unwritten: of(|it| it.unwritten),
            long: of(|it| it.long),
        }
    }

    /// The same when the image has so many extents: nothing is known of those that came since, nor
    /// which of them went.
    #[must_use]
    pub fn with(&self, extents: ExtentCount) -> Outlook {
        let came = extents.saturating_sub(self.extents);
        let went = self.extents.saturating_sub(extents);
        let scaled = |part: Between| {
            let likely = u128::from(part.likely.0) * u128::from(extents.0)
                / u128::from(self.extents.0.max(1));
            let likely = u64::try_from(likely).unwrap_or(u64::MAX);
            let low = part.low.saturating_sub(went);
            let high = part.high.saturating_add(came).min(extents);
            Between {
                low: low.min(high),
                likely: ExtentCount(likely).clamp(low.min(high), high),
                high,
            }
        };
        Outlook {
            extents,
            looked_at: self.looked_at,
            joins: scaled(self.joins),
            holes: scaled(self.holes),
            shared: scaled(self.shared),
            unwritten: scaled(self.unwritten),
            long: scaled(self.long),
        }
    }

    /// Extents that an engine can take away, if nothing else stands against it. xfs_fsr leaves but
    /// the holes; it copies what is shared, and writes what is unwritten.
    #[must_use]
    pub fn gain(&self, engine: Engine) -> Between {
        match engine {
            Engine::XfsFsr => self.holes.left_of(self.extents),
            Engine::Online => self.joins,
        }
    }

    /// Whether it is certain that an engine can gain but little.
    #[must_use]
    pub fn is_little(&self, engine: Engine) -> bool {
        is_little(self.gain(engine).high, self.extents)
    }
}

impl Outlook {
    /// Why these engines would gain but little, and what would help instead.
    #[must_use]
    pub fn why_little(&self, engines: &[Engine]) -> String {
        let most = engines.iter().map(|engine| self.gain(*engine).high).max();
        let (most, extents) = (most.unwrap_or_default(), self.extents);
        let kept = self.what_keeps();
        format!("little to gain: at most {most} of {extents} extents can go; {kept}")
    }

    /// What keeps most of the extents apart, and what would help.
    #[must_use]
    pub fn what_keeps(&self) -> String {
        let kept = [
            (
                self.holes,
                "lie behind holes, which no engine fills: a copy made with an extent-size hint \
                 has fewer (VM off: qemu-img convert -S 1M; running: virsh blockcopy)",
            ),
            (
                self.shared,
                "belong to a snapshot or reflink copy as well: \
                fewer can be gained until that is deleted",
            ),
            (
                self.unwritten,
                "border on unwritten parts: xfs_fsr joins these while \
                nobody has the image open",
            ),
            (self.long, "are so long that moving them is not worth it"),
        ];
        let (number, what) = kept
            .into_iter()
            .max_by_key(|(number, _)| number.likely)
            .unwrap_or_default();
        format!("{number} {what}")
    }
}

/// Whether a gain is little for so many extents.
#[must_use]
pub fn is_little(gain: ExtentCount, extents: ExtentCount) -> bool {
    gain.0.saturating_mul(LITTLE) < extents.0
}

/// What is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Its length as a file.
    pub size: Bytes,
    /// What it has.
    pub extents: ExtentCount,
}

impl Sampling {
    /// How long a window is.
    fn length(&self) -> u64 {
        let length =
            u128::from(self.size.0) * u128::from(EXPECTED) / u128::from(self.extents.0.max(1));
        u64::try_from(length).unwrap_or(u64::MAX).max(1)
    }

    /// The windows, as first byte and the one behind the last; none overlaps another. The same for
    /// the same image, and at no regular distance: images may have a pattern.
    pub fn windows(self) -> impl Iterator<Item = (Bytes, Bytes)> {
        let mut random = self.size.0 ^ self.extents.0.rotate_left(32);
        let part = (self.size.0 / WINDOWS).max(1);
        let length = self.length().min(part);
        (0..WINDOWS).map(move |number| {
            let within = next_random(&mut random) % (part - length + 1);
            let start = part.saturating_mul(number) + within;
            (Bytes(start), Bytes(start.saturating_add(length)))
        })
    }
}

/// SplitMix64.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How many extents of all are of one kind.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate; all numbers are positive, and beyond 2^53 the last digits do not matter"
)]
fn estimate(counts: &[Borders], part: fn(&Borders) -> u64, sample: &Sampling) -> Between {
    let all = sample.extents.0;
    let seen: u64 = counts.iter().map(Borders::total).sum();
    let of_it: u64 = counts.iter().map(part).sum();
    if seen == 0 {
        let (low, high) = (ExtentCount(0), sample.extents);
        return Between {
            low,
            likely: low,
            high,
        };
    }
    let sizes: Vec<f64> = counts.iter().map(|it| it.total() as f64).collect();
    let (n, sum) = (counts.len() as f64, seen as f64);
    let share = of_it as f64 / sum;
    let unseen_part = (1.0 - sum / all.max(1) as f64).max(0.0);
    let residuals = counts.iter().zip(&sizes);
    let squares: f64 = residuals
        .map(|(it, size)| (part(it) as f64 - share * size).powi(2))
        .sum();
    let error = (n / (n - 1.0).max(1.0) * squares * unseen_part).sqrt() / sum;
    // As many windows of even size say as much (Kish): where all extents are in one, it is one.
    let effective = sum.powi(2) / sizes.iter().map(|size| size * size).sum::<f64>();
    // What lies in less than this share of the windows may not have been met (0.95^effective).
    let unmet = (3.0 / effective).min(1.0) * unseen_part;
    let spread = (student(effective - 1.0) * error).max(unmet);
    // Where windows hold clearly fewer extents than there are, the others lie where none was.
    let hidden = hidden(&sizes, sample);
    let low = ((share - spread).max(0.0) * (1.0 - hidden)).min(share);
    let high = ((share + spread).min(1.0) * (1.0 - hidden) + hidden).max(share);
    let number = |share: f64| (share * all as f64).round() as u64;
    // What was seen is there.
    let not_it = seen.saturating_sub(of_it);
    let low = number(low).max(of_it).min(all);
    let high = number(high).min(all.saturating_sub(not_it)).max(low);
    Between {
        low: ExtentCount(low),
        likely: ExtentCount(number(share).clamp(low, high)),
        high: ExtentCount(high),
    }
}

/// Which share of all extents lies certainly outside of what the windows stand for.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn hidden(sizes: &[f64], sample: &Sampling) -> f64 {
    let n = sizes.len() as f64;
    let mean = sizes.iter().sum::<f64>() / n;
    let variance = sizes.iter().map(|size| (size - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let windows = sample.size.0 as f64 / sample.length() as f64;
    let most = (mean + 2.0 * (variance / n).sqrt()) * windows;
    (1.0 - most / sample.extents.0.max(1) as f64).clamp(0.0, 1.0)
}

/// The two-sided 95 % quantile of Student's distribution, to a few hundredths.
fn student(freedom: f64) -> f64 {
    if freedom < 1.0 {
        return 12.7;
    }
    1.96 + 2.4 / freedom + 8.3 / freedom.powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ExtentFlags;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;

    fn extent(page: u64, pages: u64) -> Extent {
        Extent {
            logical: Bytes(page * PAGE),
            physical: Bytes(page * 7919 * PAGE),
            length: Bytes(pages * PAGE),
            flags: ExtentFlags::default(),
        }
    }

    fn counted(extents: &[Extent]) -> Borders {
        let mut count = BorderCount::default();
        extents.iter().for_each(|extent| count.push(extent));
        count.borders
    }

    #[test]
    fn each_border_has_its_kind() {
        let mut extents = vec![extent(0, 1), extent(1, 1), extent(3, 1)];
        let with = |flag: fn(&mut ExtentFlags), mut extent: Extent| {
            flag(&mut extent.flags);
            extent
        };
        extents.push(with(|flags| flags.shared = true, extent(4, 1)));
        extents.push(extent(5, 1));
        extents.push(with(|flags| flags.unwritten = true, extent(6, 1)));
        extents.push(with(|flags| flags.delayed = true, extent(7, 1)));
        extents.extend([extent(8, 1024), extent(1032, 1), extent(1033, 512)]);
        let wanted = Borders {
            joins: 1,
            holes: 1,
            shared: 2,
            unwritten: 3,
            long: 3,
        };
        assert_eq!(counted(&extents), wanted);
        assert_eq!(wanted.total(), extents.len() as u64);
    }

    /// A part of a made-up map: so many extents with a chance of each border.
    #[derive(Debug, Clone)]
    struct Stretch {
        extents: u64,
        pages: u64,
        holes: u64,
        unwritten: u64,
        shared: u64,
        /// Pages of a hole behind it.
        gap: u64,
    }

    fn map(stretches: &[Stretch], seed: u64) -> (Vec<Extent>, u64) {
        let mut random = seed;
        let mut chance = |percent: u64| next_random(&mut random) % 100 < percent;
        let (mut at, mut extents) = (0, Vec::new());
        for stretch in stretches {
            for _ in 0..stretch.extents {
                at += u64::from(chance(stretch.holes));
                let mut new = extent(at, stretch.pages);
                new.flags.unwritten = chance(stretch.unwritten);
                new.flags.shared = chance(stretch.shared);
                extents.push(new);
                at += stretch.pages;
            }
            at += stretch.gap;
        }
        (extents, at * PAGE)
    }

    /// What a reader of the windows sees.
    fn sampled(extents: &[Extent], size: u64) -> Outlook {
        let sampling = Sampling {
            size: Bytes(size),
            extents: ExtentCount(extents.len() as u64),
        };
        let count = |(start, end): (Bytes, Bytes)| {
            let first = extents.partition_point(|it| it.logical < start);
            let mut count = BorderCount::default();
            if let Some(before) = first.checked_sub(1) {
                count.skip(&extents[before]);
            }
            let inside = extents[first..].iter().take_while(|it| it.logical < end);
            inside.for_each(|it| count.push(it));
            count.borders
        };
        let counts: Vec<_> = sampling.windows().map(count).collect();
        Outlook::of_sample(&counts, &sampling)
    }

    fn stretch() -> impl Strategy<Value = Stretch> {
        let percent = || prop_oneof![3 => Just(0_u64), 1 => Just(100), 2 => 0_u64..100];
        let gap = prop_oneof![2 => Just(0_u64), 1 => 0_u64..2_000_000];
        let holes = percent();
        (1_u64..40_000, 1_u64..40, holes, percent(), percent(), gap).prop_map(
            |(extents, pages, holes, unwritten, shared, gap)| Stretch {
                extents,
                pages,
                holes,
                unwritten,
                shared,
                gap,
            },
        )
    }

    fn parts(outlook: &Outlook, whole: &Borders) -> [(Between, u64); 5] {
        [
            (outlook.joins, whole.joins),
            (outlook.holes, whole.holes),
            (outlook.shared, whole.shared),
            (outlook.unwritten, whole.unwritten),
            (outlook.long, whole.long),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_sample_is_in_order_and_never_surer_than_what_it_saw(
            stretches in prop::collection::vec(stretch(), 1..12),
            seed in any::<u64>(), more in 0_u64..100_000
        ) {
            let (extents, size) = map(&stretches, seed);
            let outlook = sampled(&extents, size);
            let whole = counted(&extents);
            let all = extents.len() as u64;
            for outlook in [outlook, outlook.with(ExtentCount(all + more)),
                            outlook.with(ExtentCount(all.saturating_sub(more)))] {
                for (part, _) in parts(&outlook, &whole) {
                    prop_assert!(part.low <= part.likely && part.likely <= part.high);
                    prop_assert!(part.high <= outlook.extents);
                }
            }
            prop_assert_eq!(outlook.with(outlook.extents), outlook);
            let exact = Outlook::of_map(&whole);
            prop_assert_eq!(exact.joins, Between::exactly(whole.joins));
            prop_assert_eq!(exact.gain(Engine::XfsFsr), Between::exactly(all - whole.holes));
        }
    }

    /// Against whole maps of every structure: nineteen of twenty intervals hold the truth.
    #[test]
    fn the_truth_lies_within_the_interval() {
        use proptest::strategy::ValueTree as _;
        use proptest::test_runner::TestRunner;
        let mut runner = TestRunner::deterministic();
        let maps = prop::collection::vec(stretch(), 1..12);
        let (mut held, mut all, mut widths) = (0_u32, 0_u32, 0.0);
        for seed in 0..120 {
            let stretches = maps.new_tree(&mut runner).unwrap().current();
            let (extents, size) = map(&stretches, seed);
            let outlook = sampled(&extents, size);
            for (part, truth) in parts(&outlook, &counted(&extents)) {
                let truth = ExtentCount(truth);
                held += u32::from(part.low <= truth && truth <= part.high);
                all += 1;
                widths += (part.high.0 - part.low.0) as f64 / extents.len() as f64;
            }
        }
        let (share, width) = (f64::from(held) / f64::from(all), widths / f64::from(all));
        assert!(share >= 0.95, "{share} of {all}, mean width {width}");
        // An interval that holds everything would hold the truth as well.
        assert!(width < 0.12, "mean width {width}");
    }

    #[test]
    fn one_pattern_over_the_whole_file_is_known_to_a_hundredth() {
        let stretch = |holes, unwritten| Stretch {
            extents: 1_000_000,
            pages: 1,
            holes,
            unwritten,
            shared: 0,
            gap: 0,
        };
        let (extents, size) = map(&[stretch(100, 100)], 7);
        let outlook = sampled(&extents, size);
        assert!(outlook.is_little(Engine::Online) && outlook.is_little(Engine::XfsFsr));
        assert!(outlook.joins.high < ExtentCount(10_000), "{outlook:?}");
        let (extents, size) = map(&[stretch(50, 0)], 7);
        let joins = sampled(&extents, size).joins;
        assert!(joins.high.0 - joins.low.0 < 30_000, "{joins:?}");
        assert!((480_000..520_000).contains(&joins.likely.0), "{joins:?}");
        // What is fragmented in one place that no window met is not known to be whole.
        let quiet = Stretch {
            extents: 40_000,
            pages: 1000,
            ..stretch(0, 0)
        };
        let (extents, size) = map(&[quiet, stretch(100, 0)], 7);
        let outlook = sampled(&extents, size);
        assert!(outlook.holes.high.0 > 900_000, "{outlook:?}");
    }
}
