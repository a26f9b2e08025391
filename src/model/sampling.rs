//! Estimates the borders of an extent map from a sample.
//!
//! The file is divided into equal parts; one *window* of the same length is read in each. Extents
//! that begin in a window are counted by the border before them; the share of each kind is a ratio
//! estimate with windows as clusters (Cochran, Sampling Techniques, 3rd edition, 2.11 and 6.3).
//! Neighbours are alike, so a hundred extents in a window are little more evidence than one; the
//! variance between windows accounts for that.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::borders::Borders;
use super::units::{Bytes, ExtentCount};

/// Windows per sample.
const WINDOWS: u64 = 512;
/// Expected extents per window.
const EXPECTED: u64 = 64;
/// Maps with no more extents are read whole, which costs as much as a sample.
pub const SAMPLED_FROM: ExtentCount = ExtentCount(WINDOWS * EXPECTED);

/// An estimate and its 95 % confidence interval, from `low` to `high`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Between {
    /// Lower bound.
    pub low: ExtentCount,
    /// Best estimate.
    pub likely: ExtentCount,
    /// Upper bound.
    pub high: ExtentCount,
}

impl Between {
    /// A known number.
    pub fn exactly(number: u64) -> Between {
        let number = ExtentCount(number);
        Between {
            low: number,
            likely: number,
            high: number,
        }
    }

    /// The larger distance from `likely` to an end of the interval.
    pub fn spread(&self) -> ExtentCount {
        let up = self.high.saturating_sub(self.likely);
        up.max(self.likely.saturating_sub(self.low))
    }

    /// `all` minus this number.
    pub(super) fn left_of(self, all: ExtentCount) -> Between {
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

/// An image whose map is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Its length.
    pub size: Bytes,
    /// Its extents.
    pub extents: ExtentCount,
}

impl Sampling {
    /// Length of a window in bytes.
    fn length(&self) -> u64 {
        let length =
            u128::from(self.size.0) * u128::from(EXPECTED) / u128::from(self.extents.0.max(1));
        u64::try_from(length).unwrap_or(u64::MAX).max(1)
    }

    /// The windows, disjoint half-open ranges: fixed for an image, irregular as it may be periodic.
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

    /// Estimates the kinds of all extents from the counts of all windows.
    pub fn estimate(&self, counts: &[Borders]) -> Borders<Between> {
        Borders {
            joins: estimate(counts, |it| it.joins, self),
            holes: estimate(counts, |it| it.holes, self),
            shared: estimate(counts, |it| it.shared, self),
            unwritten: estimate(counts, |it| it.unwritten, self),
            long: estimate(counts, |it| it.long, self),
        }
    }
}

/// SplitMix64.
pub(super) fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Estimates how many of all extents are of one kind.
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
    // Number of windows of equal size with the same evidence (Kish): 1 if one holds all extents.
    let effective = sum.powi(2) / sizes.iter().map(|size| size * size).sum::<f64>();
    // What is in a smaller share of the windows may have been missed: (1 - 3/n)^n is about 5 %.
    let unmet = (3.0 / effective).min(1.0) * unseen_part;
    let spread = (student(effective - 1.0) * error).max(unmet);
    // If windows hold clearly fewer extents than expected, the others lie outside of them.
    let hidden = hidden(&sizes, sample);
    let low = ((share - spread).max(0.0) * (1.0 - hidden)).min(share);
    let high = ((share + spread).min(1.0) * (1.0 - hidden) + hidden).max(share);
    let number = |share: f64| (share * all as f64).round() as u64;
    // What was seen exists.
    let not_it = seen.saturating_sub(of_it);
    let low = number(low).max(of_it).min(all);
    let high = number(high).min(all.saturating_sub(not_it)).max(low);
    Between {
        low: ExtentCount(low),
        likely: ExtentCount(number(share).clamp(low, high)),
        high: ExtentCount(high),
    }
}

/// Share of all extents that certainly lies outside what the windows represent.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn hidden(sizes: &[f64], sample: &Sampling) -> f64 {
    let n = sizes.len() as f64;
    let mean = sizes.iter().sum::<f64>() / n;
    let variance = sizes.iter().map(|size| (size - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let windows = sample.size.0 as f64 / sample.length() as f64;
    let most = (mean + 2.0 * (variance / n).sqrt()) * windows;
    (1.0 - most / sample.extents.0.max(1) as f64).clamp(0.0, 1.0)
}

/// Two-sided 95 % quantile of Student's t, up to 0.12 too low for 2 to 5 degrees of freedom.
fn student(freedom: f64) -> f64 {
    if freedom < 1.0 {
        return 12.7;
    }
    1.96 + 2.4 / freedom + 8.3 / freedom.powi(3)
}
