//! What a defragmentation could gain: the extents that can be removed, and what keeps the others.

use serde::{Deserialize, Serialize};

use super::borders::Borders;
use super::defrag::Engine;
use super::sampling::{Between, Sampling};
use super::units::ExtentCount;

/// A gain below one extent in this many is little. This is the hysteresis of a severity (0.9):
/// after less, the image keeps its severity and the kernel memory of its map.
pub const LITTLE: u64 = 10;

/// The possible gain of an image, in extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlook {
    /// Extents of the image.
    pub extents: ExtentCount,
    /// Extents that were examined.
    pub looked_at: ExtentCount,
    /// All extents by the border before them.
    #[serde(flatten)]
    pub borders: Borders<Between>,
}

impl Outlook {
    /// From a whole map.
    pub fn of_map(borders: &Borders) -> Outlook {
        let extents = ExtentCount(borders.total());
        Outlook {
            extents,
            looked_at: extents,
            borders: borders.map(Between::exactly),
        }
    }

    /// From the counts of all windows of a sample ([`Sampling::windows`]).
    pub fn of_sample(counts: &[Borders], sample: &Sampling) -> Outlook {
        Outlook {
            extents: sample.extents,
            looked_at: ExtentCount(counts.iter().map(Borders::total).sum()),
            borders: sample.estimate(counts),
        }
    }

    /// Adjusts it to another number of extents; which ones were added or removed is unknown.
    pub fn with(&self, extents: ExtentCount) -> Outlook {
        let came = extents.saturating_sub(self.extents);
        let went = self.extents.saturating_sub(extents);
        let scaled = |part: Between| {
            let likely = u128::from(part.likely.0) * u128::from(extents.0)
                / u128::from(self.extents.0.max(1));
            let likely = u64::try_from(likely).unwrap_or(u64::MAX);
            let high = part.high.saturating_add(came).min(extents);
            let low = part.low.saturating_sub(went).min(high);
            Between {
                low,
                likely: ExtentCount(likely).clamp(low, high),
                high,
            }
        };
        Outlook {
            extents,
            looked_at: self.looked_at,
            borders: self.borders.map(scaled),
        }
    }

    /// Extents that an engine can remove at best; a copy of the whole also has those that are shared
    /// or unwritten.
    pub fn gain(&self, engine: Engine) -> Between {
        match engine {
            Engine::XfsFsr | Engine::BlockCopy => self.borders.holes.left_of(self.extents),
            Engine::Online => self.borders.joins,
        }
    }

    /// Whether an engine can certainly gain only little.
    pub fn is_little(&self, engine: Engine) -> bool {
        is_little(self.gain(engine).high, self.extents)
    }

    /// Why these engines would gain only little, and what would help instead.
    pub fn why_little(&self, engines: &[Engine]) -> String {
        let most = engines.iter().map(|engine| self.gain(*engine).high).max();
        let (most, extents) = (most.unwrap_or_default(), self.extents);
        let kept = self.what_keeps();
        format!("little to gain: at most {most} of {extents} extents can go; {kept}")
    }

    /// What keeps most of the extents apart, and what would help.
    pub fn what_keeps(&self) -> String {
        let kept = [
            (
                self.borders.holes,
                "lie behind holes, which no engine fills: a copy made with an extent-size hint \
                 has fewer (VM off: qemu-img convert -S 1M; running: virsh blockcopy)",
            ),
            (
                self.borders.shared,
                "belong to a snapshot or reflink copy as well: \
                fewer can be gained until that is deleted",
            ),
            (
                self.borders.unwritten,
                "border on unwritten parts: xfs_fsr joins these while \
                nobody has the image open",
            ),
            (
                self.borders.long,
                "are so long that moving them is not worth it",
            ),
        ];
        let most = kept.into_iter().max_by_key(|(number, _)| number.likely);
        let (number, what) = most.unwrap_or_default();
        format!("{number} {what}")
    }
}

/// Whether a gain is little for this many extents.
pub fn is_little(gain: ExtentCount, extents: ExtentCount) -> bool {
    gain.0.saturating_mul(LITTLE) < extents.0
}

#[cfg(test)]
mod tests;
