//! Which parts of an image are moved, in which order, and in what pieces. Pure.
//!
//! The image is divided into *regions*. A survey of the map keeps two numbers per region, so any
//! map needs little memory. Regions in which a copied byte removes the most extents come first,
//! because a window may close before the end. Gains that differ by less than a factor of two count
//! as equal; such regions stay in file order, so that the new blocks of neighbours are adjacent.
//! Within a region, [`cut`] takes *segments* from the map as it is at that moment.

use crate::model::borders::{BorderCount, LONG, WORTH};
use crate::model::{Borders, Bytes, Extent, ExtentCount};

use super::governor::{Cost, PAGE};

/// The size of a region, and of the pieces requested from the allocator, in bytes.
pub const REGION: u64 = 16 << 20;
/// Maximum number of regions, to save memory; longer images have larger regions.
const MOST_REGIONS: u64 = 1 << 16;

/// Whether an extent may be moved: written, allocated, not shared, not long.
pub fn is_movable(extent: &Extent) -> bool {
    let flags = extent.flags;
    !flags.unwritten && !flags.shared && !flags.delayed && extent.length < LONG
}

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    /// Extents that would be removed if all adjacent ones were joined.
    gain: u64,
    pages: u64,
}

/// A part of the image that is worth copying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Its start.
    pub start: Bytes,
    /// Its end.
    pub end: Bytes,
    /// Extents that can be removed.
    pub gain: ExtentCount,
    /// Nearly all of it will be moved, so space for all of it may be reserved in one piece.
    pub dense: bool,
}

/// Surveys a map, extent by extent in ascending order.
#[derive(Debug)]
pub struct Survey {
    region: u64,
    tallies: Vec<Tally>,
    /// The part behind the last region.
    beyond: Tally,
    previous: Option<Extent>,
    borders: BorderCount,
    shared: Bytes,
}

/// The result of a survey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovePlan {
    /// The regions to move, in this order.
    pub regions: Vec<Region>,
    /// Extents that can be removed, in all regions.
    pub gain: ExtentCount,
    /// Extents of the map.
    pub extents: ExtentCount,
    /// The extents of the map by the border before them.
    pub borders: Borders,
    /// Bytes that also belong to another file, which are not moved.
    pub shared: Bytes,
}

impl Survey {
    /// A survey of an image of this size.
    pub fn new(size: Bytes) -> Survey {
        let region = size
            .0
            .div_ceil(MOST_REGIONS)
            .max(1)
            .next_multiple_of(REGION);
        let count = size.0.div_ceil(region);
        Survey {
            region,
            tallies: vec![Tally::default(); usize::try_from(count).unwrap_or(0)],
            beyond: Tally::default(),
            previous: None,
            borders: BorderCount::default(),
            shared: Bytes(0),
        }
    }

    /// Adds the next extent.
    pub fn push(&mut self, extent: Extent) {
        self.borders.push(&extent);
        if extent.flags.shared {
            self.shared = self.shared.saturating_add(extent.length);
        }
        if !is_movable(&extent) {
            self.previous = None;
            return;
        }
        let previous = self.previous.replace(extent);
        let touches = previous.is_some_and(|previous| previous.end() == extent.logical);
        if touches && !extent.logical.0.is_multiple_of(self.region) {
            self.tally(extent.logical.0).gain += 1;
        }
        let (mut at, end) = (extent.logical.0, extent.end().0);
        while at < end {
            let next = (at / self.region + 1).saturating_mul(self.region).min(end);
            self.tally(at).pages += (next - at).div_ceil(PAGE);
            at = next;
        }
    }

    fn tally(&mut self, at: u64) -> &mut Tally {
        let index = usize::try_from(at / self.region).unwrap_or(usize::MAX);
        // Parts by which the image has grown meanwhile are ignored.
        self.tallies.get_mut(index).unwrap_or(&mut self.beyond)
    }

    /// Ends the survey.
    pub fn finish(self) -> MovePlan {
        let region = self.region;
        let mut regions: Vec<(u32, Region)> = Vec::new();
        for (tally, start) in self.tallies.iter().zip((0_u64..).map(|it| it * region)) {
            let bytes = tally.pages * PAGE;
            if tally.gain.saturating_mul(WORTH.0) < bytes || tally.gain == 0 {
                continue;
            }
            let class = (tally.gain.saturating_mul(region) / bytes.max(1)).ilog2();
            let found = Region {
                start: Bytes(start),
                end: Bytes(start.saturating_add(region)),
                gain: ExtentCount(tally.gain),
                dense: bytes >= region / 8 * 7,
            };
            regions.push((class, found));
        }
        regions.sort_by_key(|(class, region)| (std::cmp::Reverse(*class), region.start));
        let regions: Vec<_> = regions.into_iter().map(|(_, region)| region).collect();
        MovePlan {
            gain: regions.iter().map(|region| region.gain).sum(),
            regions,
            extents: ExtentCount(self.borders.borders.total()),
            borders: self.borders.borders,
            shared: self.shared,
        }
    }
}

/// A part of an image that is moved at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its start.
    pub start: Bytes,
    /// Its length.
    pub length: Bytes,
    /// The number of its extents.
    pub extents: ExtentCount,
    /// The cost of moving it.
    pub cost: Cost,
}

impl Segment {
    /// Its end.
    pub fn end(&self) -> Bytes {
        self.start.saturating_add(self.length)
    }
}

/// Where the new blocks of a region lie: their distance from the position in the file. Once space
/// for a region is reserved, a guest's write to a block not yet moved goes there directly
/// (xfs_direct_write_iomap_begin reads the copy-on-write fork first, fs/xfs/xfs_iomap.c). Such a
/// block must not be moved again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u64);

impl Place {
    /// The place of an extent that was moved.
    pub fn of(extent: &Extent) -> Place {
        Place(extent.physical.0.wrapping_sub(extent.logical.0))
    }
}

/// The part of the region before the piece of the map that is cut.
#[derive(Debug, Clone, Copy, Default)]
pub struct Before {
    /// The end of the part just moved.
    pub end: Option<Bytes>,
    /// Where it was moved to.
    pub place: Option<Place>,
}

impl Before {
    fn has(&self, extent: &Extent) -> bool {
        self.place == Some(Place::of(extent))
    }
}

/// The first segment of a piece of the map: adjacent extents, up to `most`. A single extent is
/// moved only if adjacent to moved blocks. A long extent may be cut at a page; the rest follows.
pub fn cut(extents: &[Extent], most: Cost, before: Before) -> Option<Segment> {
    let mut rest = extents;
    let mut arrived = before.end;
    while let Some(first) = rest.first() {
        let run = run(rest, &before);
        let next = rest.get(run.len()).filter(|next| before.has(next));
        let joins = arrived == Some(first.logical)
            || next.is_some_and(|next| run.last().is_some_and(|last| last.end() == next.logical));
        if run.len() >= 2 || (joins && !run.is_empty()) {
            return Some(take(run, most));
        }
        if before.has(first) {
            arrived = Some(first.end());
        }
        rest = rest.get(run.len().max(1)..).unwrap_or_default();
    }
    None
}

/// The adjacent movable extents at the beginning.
fn run<'a>(extents: &'a [Extent], before: &Before) -> &'a [Extent] {
    let mut length = 0;
    let mut at = None;
    for extent in extents {
        let stays = !is_movable(extent) || before.has(extent);
        if stays || at.is_some_and(|at| at != extent.logical) {
            break;
        }
        at = Some(extent.end());
        length += 1;
    }
    extents.get(..length).unwrap_or_default()
}

fn take(run: &[Extent], most: Cost) -> Segment {
    let mut segment = Segment {
        start: run.first().map_or(Bytes(0), |extent| extent.logical),
        length: Bytes(0),
        extents: ExtentCount(0),
        cost: Cost(0),
    };
    for extent in run {
        let left = Cost(most.0.saturating_sub(segment.cost.0));
        let mut part = *extent;
        // At least a page of the first one, or nothing would ever be moved.
        let least = if segment.extents.0 == 0 { PAGE } else { 0 };
        part.length.0 = part.length.0.min(left.bytes_left().0.max(least));
        if part.length.0 == 0 {
            break;
        }
        segment.length = segment.length.saturating_add(part.length);
        segment.extents.0 += 1;
        segment.cost.0 = segment.cost.0.saturating_add(Cost::of(&part).0);
        if part.length < extent.length {
            break;
        }
    }
    segment
}

#[cfg(test)]
mod tests;
