//! What of an image is moved, in which order, and in what pieces. Pure.
//!
//! The image is divided into *regions*. A survey of the map keeps two numbers of each, so a map of
//! any length needs little memory. Regions are then taken by gain: those first in which a copied
//! byte removes the most extents, because a window may close before the end. Gains that differ by
//! less than a doubling count as even, and then it goes in file order, in which the new blocks of
//! neighbouring regions come to lie side by side.
//!
//! Within a region, [`cut`] takes *segments* from the map as it is at that moment.

use crate::model::gain::{BorderCount, LONG, WORTH};
use crate::model::{Borders, Bytes, Extent, ExtentCount};

use super::governor::{PAGE, Work};

/// The size of a region, and of the pieces that are asked of the allocator.
pub const REGION: u64 = 16 << 20;
/// More regions would take too much memory; they become larger then.
const MOST_REGIONS: u64 = 1 << 16;

/// Whether an extent may be moved: written, in its place, and nobody else's.
#[must_use]
pub fn is_movable(extent: &Extent) -> bool {
    let flags = extent.flags;
    !flags.unwritten && !flags.shared && !flags.delayed && extent.length < LONG
}

fn end(extent: &Extent) -> u64 {
    extent.logical.0.saturating_add(extent.length.0)
}

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    /// Extents that would be gone if all that touch each other were one.
    gain: u32,
    /// What is movable, in pages.
    pages: u32,
}

/// A part of the image that is worth its copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Where it begins.
    pub start: Bytes,
    /// Where it ends.
    pub end: Bytes,
    /// Extents that can go away.
    pub gain: ExtentCount,
    /// Nearly all of it will be moved: room for all of it may be asked for in one piece.
    pub dense: bool,
}

/// Takes in a map, extent by extent in ascending order.
#[derive(Debug)]
pub struct Survey {
    region: u64,
    tallies: Vec<Tally>,
    previous: Option<Extent>,
    borders: BorderCount,
    shared: Bytes,
}

/// What a survey found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What is to be done, in this order.
    pub regions: Vec<Region>,
    /// Extents that can go away, in all of them.
    pub gain: ExtentCount,
    /// Extents of the map.
    pub extents: ExtentCount,
    /// The same by what keeps them from the one before.
    pub borders: Borders,
    /// What belongs to another file too, and stays so.
    pub shared: Bytes,
}

impl Survey {
    /// Of an image of this size.
    #[must_use]
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
            previous: None,
            borders: BorderCount::default(),
            shared: Bytes(0),
        }
    }

    /// The next extent.
    pub fn push(&mut self, extent: Extent) {
        self.borders.push(&extent);
        if extent.flags.shared {
            self.shared = self.shared.saturating_add(extent.length);
        }
        if !is_movable(&extent) {
            self.previous = None;
            return;
        }
        let touches = self
            .previous
            .is_some_and(|previous| end(&previous) == extent.logical.0);
        self.previous = Some(extent);
        if touches && !extent.logical.0.is_multiple_of(self.region) {
            self.tally(extent.logical.0, |tally| {
                tally.gain = tally.gain.saturating_add(1);
            });
        }
        let mut at = extent.logical.0;
        while at < end(&extent) {
            let next = ((at / self.region).saturating_add(1))
                .saturating_mul(self.region)
                .min(end(&extent));
            let pages = u32::try_from((next - at).div_ceil(PAGE)).unwrap_or(u32::MAX);
            self.tally(at, |tally| tally.pages = tally.pages.saturating_add(pages));
            at = next;
        }
    }

    fn tally(&mut self, at: u64, change: impl FnOnce(&mut Tally)) {
        let index = usize::try_from(at / self.region).unwrap_or(usize::MAX);
        // What the image has grown by meanwhile is left out.
        if let Some(tally) = self.tallies.get_mut(index) {
            change(tally);
        }
    }

    /// All extents were pushed.
    #[must_use]
    pub fn finish(self) -> Plan {
        let region = self.region;
        let mut regions: Vec<(u32, Region)> = Vec::new();
        for (tally, start) in self.tallies.iter().zip((0..).step_by(step(region))) {
            let bytes = u64::from(tally.pages) * PAGE;
            if u64::from(tally.gain).saturating_mul(WORTH.0) < bytes || tally.gain == 0 {
                continue;
            }
            let class = (u64::from(tally.gain) * region / bytes.max(1)).ilog2();
            let found = Region {
                start: Bytes(start),
                end: Bytes(start.saturating_add(region)),
                gain: ExtentCount(tally.gain.into()),
                dense: bytes >= region / 8 * 7,
            };
            regions.push((class, found));
        }
        regions.sort_by_key(|(class, region)| (std::cmp::Reverse(*class), region.start));
        let regions: Vec<_> = regions.into_iter().map(|(_, region)| region).collect();
        Plan {
            gain: regions.iter().map(|region| region.gain).sum(),
            regions,
            extents: ExtentCount(self.borders.borders.total()),
            borders: self.borders.borders,
            shared: self.shared,
        }
    }
}

fn step(region: u64) -> usize {
    usize::try_from(region).unwrap_or(usize::MAX)
}

/// What is moved at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub start: Bytes,
    /// How long it is.
    pub length: Bytes,
    /// Of how many extents it consists.
    pub extents: ExtentCount,
    /// What moving it costs.
    pub work: Work,
}

impl Segment {
    /// Where it ends.
    #[must_use]
    pub fn end(&self) -> Bytes {
        self.start.saturating_add(self.length)
    }
}

/// Where the new blocks of a region lie: how far from their place in the file.
///
/// A guest's write to a block that is still to be moved goes there by itself once room for its
/// region is reserved (xfs_direct_write_iomap_begin looks into the copy-on-write fork first,
/// fs/xfs/xfs_iomap.c). Such a block has arrived; to move it would tear it out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u64);

impl Place {
    /// That of an extent which was moved.
    #[must_use]
    pub fn of(extent: &Extent) -> Place {
        Place(extent.physical.0.wrapping_sub(extent.logical.0))
    }
}

/// What is known of the part of the region before the piece of the map that is cut.
#[derive(Debug, Clone, Copy, Default)]
pub struct Before {
    /// Up to here it was moved just now.
    pub end: Option<Bytes>,
    /// To there.
    pub place: Option<Place>,
}

impl Before {
    fn has(&self, extent: &Extent) -> bool {
        self.place == Some(Place::of(extent))
    }
}

/// The first segment of a piece of the map: extents that touch each other, no more than `most`
/// allows. A single extent is moved only if it joins what was moved, or has arrived, on one of its
/// sides.
///
/// A long extent may be cut, at a page; what is left of it joins.
#[must_use]
pub fn cut(extents: &[Extent], most: Work, before: Before) -> Option<Segment> {
    let mut rest = extents;
    let mut arrived = before.end;
    while let Some(first) = rest.first() {
        let run = run(rest, &before);
        let next = rest.get(run.len()).filter(|next| before.has(next));
        let joins = arrived == Some(first.logical)
            || next.is_some_and(|next| run.last().is_some_and(|last| end(last) == next.logical.0));
        if run.len() >= 2 || (joins && !run.is_empty()) {
            return Some(take(run, most));
        }
        if before.has(first) {
            arrived = Some(Bytes(end(first)));
        }
        rest = rest.get(run.len().max(1)..).unwrap_or_default();
    }
    None
}

/// The extents at the beginning that can move and are to move, and touch each other.
fn run<'a>(extents: &'a [Extent], before: &Before) -> &'a [Extent] {
    let mut length = 0;
    let mut at = None;
    for extent in extents {
        let stays = !is_movable(extent) || before.has(extent);
        if stays || at.is_some_and(|at| at != extent.logical.0) {
            break;
        }
        at = Some(end(extent));
        length += 1;
    }
    extents.get(..length).unwrap_or_default()
}

fn take(run: &[Extent], most: Work) -> Segment {
    let mut segment = Segment {
        start: run.first().map_or(Bytes(0), |extent| extent.logical),
        length: Bytes(0),
        extents: ExtentCount(0),
        work: Work(0),
    };
    for extent in run {
        let left = Work(most.0.saturating_sub(segment.work.0));
        let mut part = *extent;
        // The first one is begun in any case, or nothing would ever move.
        let least = if segment.extents.0 == 0 { PAGE } else { 0 };
        part.length.0 = part.length.0.min(left.bytes_left().0.max(least));
        if part.length.0 == 0 {
            break;
        }
        segment.length = segment.length.saturating_add(part.length);
        segment.extents.0 += 1;
        segment.work.0 = segment.work.0.saturating_add(Work::of(&part).0);
        if part.length < extent.length {
            break;
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ExtentFlags;
    use proptest::prelude::*;

    fn extent(page: u64, pages: u64) -> Extent {
        Extent {
            logical: Bytes(page * PAGE),
            physical: Bytes(page * 7919 * PAGE),
            length: Bytes(pages * PAGE),
            flags: ExtentFlags::default(),
        }
    }

    fn shared(page: u64, pages: u64) -> Extent {
        let mut extent = extent(page, pages);
        extent.flags.shared = true;
        extent
    }

    fn survey(extents: &[Extent], size: u64) -> Plan {
        let mut survey = Survey::new(Bytes(size));
        for extent in extents {
            survey.push(*extent);
        }
        survey.finish()
    }

    #[test]
    fn the_largest_gain_comes_first_and_little_gain_not_at_all() {
        let mut extents = Vec::new();
        // Two of 512 KiB, one behind the other, in each of the first 16 MiB's halves: even gain.
        extents.extend([extent(0, 128), extent(128, 128)]);
        // 64 single pages.
        extents.extend((4096..4160).map(|page| extent(page, 1)));
        // A pair that is long already.
        extents.extend([extent(8192, 800), extent(8992, 800)]);
        extents.extend([extent(12_288, 1), shared(12_289, 1), extent(12_290, 1)]);
        let plan = survey(&extents, 4 * REGION);
        let starts: Vec<_> = plan.regions.iter().map(|r| r.start.0 / REGION).collect();
        assert_eq!(starts, [1, 0]);
        assert_eq!(plan.gain, ExtentCount(63 + 1));
        assert_eq!(plan.shared, Bytes(PAGE));
        assert_eq!(plan.extents.0, extents.len() as u64);
        assert!(!plan.regions[0].dense);
    }

    #[test]
    fn what_is_full_is_dense_and_even_gains_keep_their_order() {
        let extents: Vec<_> = (0..3 * 4096).map(|page| extent(page, 1)).collect();
        let plan = survey(&extents, 3 * REGION);
        assert!(plan.regions.iter().all(|region| region.dense));
        assert!(plan.regions.is_sorted_by_key(|region| region.start));
        assert_eq!(plan.gain.0, 3 * 4095);
    }

    #[test]
    fn the_survey_of_a_huge_image_stays_small() {
        let survey = Survey::new(Bytes(1 << 60));
        assert!(survey.tallies.len() as u64 <= MOST_REGIONS);
        assert!(survey.region.is_multiple_of(REGION));
        assert!(Survey::new(Bytes(0)).finish().regions.is_empty());
    }

    fn moved_to(end: u64, place: Option<Place>) -> Before {
        let end = Some(Bytes(end));
        Before { end, place }
    }

    #[test]
    fn what_has_arrived_stays_and_its_neighbours_come() {
        let mut arrived = [extent(10, 1), extent(13, 2)];
        for extent in &mut arrived {
            extent.physical.0 = extent.logical.0 + 77 * PAGE;
        }
        let before = moved_to(9 * PAGE, Some(Place::of(&arrived[0])));
        let [one, two] = arrived;
        let cut =
            |extents: &[Extent]| cut(extents, Work(100), before).map(|s| (s.start.0, s.length.0));
        // Up to the one, as it joins on its left side; behind it; and before the other.
        assert_eq!(cut(&[extent(9, 1), one]), Some((9 * PAGE, PAGE)));
        assert_eq!(
            cut(&[one, extent(11, 1), extent(20, 1)]),
            Some((11 * PAGE, PAGE))
        );
        assert_eq!(cut(&[extent(12, 1), two]), Some((12 * PAGE, PAGE)));
        assert_eq!(cut(&[extent(11, 1), two]), None);
        assert_eq!(cut(&[one, two]), None);
        assert_eq!(cut(&[one, extent(12, 1)]), None);
    }

    #[test]
    fn lone_extents_stay_unless_they_join() {
        let lone = [extent(3, 1), extent(5, 1), shared(6, 1), extent(7, 1)];
        assert_eq!(cut(&lone, Work(100), Before::default()), None);
        let joined = cut(&lone, Work(100), moved_to(3 * PAGE, None)).unwrap();
        assert_eq!((joined.start.0, joined.length.0), (3 * PAGE, PAGE));
        let long = [extent(0, 300), extent(300, 300)];
        let first = cut(&long, Work(100), Before::default()).unwrap();
        assert_eq!(first.length.0, 95 * PAGE);
    }

    proptest! {
        /// Cutting from front to back never touches what must stay, never takes more than allowed
        /// but for the first page, and takes all that touches another.
        #[test]
        fn segments_are_of_what_may_be_moved(
            steps in prop::collection::vec((0_u64..3, 1_u64..1200, 0_u8..8), 1..120),
            most in 12_u64..4096
        ) {
            let mut extents = Vec::new();
            let mut at = 0;
            for (gap, pages, flags) in steps {
                let mut new = extent(at + gap, pages);
                new.flags.shared = flags == 0;
                new.flags.unwritten = flags == 1;
                new.flags.delayed = flags == 2;
                at += gap + pages;
                extents.push(new);
            }
            let (mut done, mut joins) = (Vec::new(), Before::default());
            let mut rest = extents.clone();
            while let Some(segment) = cut(&rest, Work(most), joins) {
                prop_assert!(segment.length.0 > 0 && segment.length.0.is_multiple_of(PAGE));
                prop_assert!(segment.work.0 <= most.max(5 + 1), "{segment:?}");
                done.push(segment);
                joins = moved_to(segment.end().0, None);
                rest = rest.iter().filter(|e| end(e) > segment.end().0).copied().collect();
                if let Some(first) = rest.first_mut().filter(|e| e.logical.0 < segment.end().0) {
                    first.length.0 = end(first) - segment.end().0;
                    first.logical = segment.end();
                }
            }
            prop_assert!(done.is_sorted_by_key(|segment| segment.start));
            for pair in done.windows(2) {
                prop_assert!(pair[0].end() <= pair[1].start);
            }
            let covered = |extent: &Extent| -> u64 {
                done.iter().map(|s| {
                    let from = s.start.0.max(extent.logical.0);
                    s.end().0.min(end(extent)).saturating_sub(from)
                }).sum()
            };
            for (index, extent) in extents.iter().enumerate() {
                let touches = |other: Option<&Extent>| other.is_some_and(|other| {
                    is_movable(other) && (end(other) == extent.logical.0 || end(extent) == other.logical.0)
                });
                let near = touches(extents.get(index + 1)) || (index > 0 && touches(extents.get(index - 1)));
                let expected = if is_movable(extent) && near { extent.length.0 } else { 0 };
                prop_assert_eq!(covered(extent), expected, "{:?}", extent);
            }
        }
    }
}
