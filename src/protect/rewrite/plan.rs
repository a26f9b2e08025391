//! What is allocated and what is copied. Pure.

use std::ops::Range;

use crate::model::{Bytes, Extent, ExtentCount};

/// The hint for images from [`LARGE`] on: at most 6,400 pieces for each 100 GiB.
const HINT: Bytes = Bytes(16 << 20);
/// The hint for smaller images.
const SMALL_HINT: Bytes = Bytes(1 << 20);
const LARGE: Bytes = Bytes(1 << 30);
/// Maximum length of an extent on XFS (BMBT_BLOCKCOUNT_BITLEN): 2^21 blocks, here of 4 KiB.
const LONGEST_EXTENT: u64 = 8 << 30;
/// Extents within this factor of the fewest possible are not worth a copy.
const NEAR: u64 = 2;

/// The hint for an image of this size, if nothing suggests a larger one.
pub(super) fn default_hint(size: Bytes) -> Bytes {
    if size < LARGE { SMALL_HINT } else { HINT }
}

/// The hint as the kernel accepts it: a multiple of the block size, at most half an allocation
/// group (xfs_inode_validate_extsize, fs/xfs/libxfs/xfs_inode_buf.c); here a quarter, which is
/// found more easily.
pub(super) fn fitting_hint(wanted: Bytes, block: u64, group: u64) -> Bytes {
    let block = block.max(512);
    let most = (group / 4).min(1 << 30);
    Bytes((wanted.0.min(most) / block * block).max(block))
}

/// Collects the extents of a map in ascending order.
#[derive(Debug)]
pub(super) struct Planner {
    size: u64,
    hint: u64,
    allocated: Vec<Range<u64>>,
    data: Vec<Range<u64>>,
    shares: bool,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The extent-size hint of the copy, also the longest gap that is filled.
    pub(super) hint: Bytes,
    size: u64,
    /// Ranges to be allocated, from multiples of the hint to such.
    allocated: Vec<Range<u64>>,
    /// Ranges to be copied, with the gaps in them.
    data: Vec<Range<u64>>,
}

impl Planner {
    /// For an image of `size`.
    pub(super) fn new(size: Bytes, hint: Bytes) -> Planner {
        Planner {
            size: size.0,
            hint: hint.0.max(1),
            allocated: Vec::new(),
            data: Vec::new(),
            shares: false,
        }
    }

    pub(super) fn push(&mut self, extent: &Extent) {
        let start = extent.logical.0;
        let end = extent.end().0.min(self.size.next_multiple_of(self.hint));
        self.shares |= extent.flags.shared;
        // What is allocated behind the end is not copied.
        if start >= self.size {
            return;
        }
        let aligned = start / self.hint * self.hint..end.next_multiple_of(self.hint);
        join(&mut self.allocated, aligned, 0);
        if !extent.flags.unwritten {
            join(&mut self.data, start..end, self.hint);
        }
    }

    /// Whether any block is shared.
    pub(super) fn shares(&self) -> bool {
        self.shares
    }

    pub(super) fn finish(self) -> Plan {
        Plan {
            hint: Bytes(self.hint),
            size: self.size,
            allocated: self.allocated,
            data: self.data,
        }
    }
}

/// Adds a range that begins behind the beginning of the last one; makes one of both unless a gap of
/// `gap` or more lies between them.
fn join(ranges: &mut Vec<Range<u64>>, range: Range<u64>, gap: u64) {
    match ranges.last_mut() {
        Some(last) if range.start <= last.end || range.start - last.end < gap => {
            last.end = last.end.max(range.end);
        }
        _ => ranges.push(range),
    }
}

fn length(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

impl Plan {
    /// What the copy occupies.
    pub(super) fn needs(&self) -> Bytes {
        Bytes(length(&self.allocated))
    }

    /// What is read and written.
    pub(super) fn data(&self) -> Bytes {
        Bytes(length(&self.data))
    }

    /// Whether the image has hardly more extents than the copy would have, and no hole in which a
    /// guest could make new ones.
    pub(super) fn is_ideal(&self, extents: ExtentCount) -> bool {
        let whole = self.allocated.len() == 1 && self.needs().0 >= self.size;
        let fewest = 1 + self.size / LONGEST_EXTENT;
        whole && extents.0 <= fewest.saturating_mul(NEAR)
    }

    /// The ranges to be allocated, in pieces of at most `most`, a multiple of the hint if possible.
    pub(super) fn allocations(&self, most: u64) -> impl Iterator<Item = Range<u64>> {
        let most = (most / self.hint.0).max(1) * self.hint.0;
        self.allocated
            .iter()
            .flat_map(move |run| pieces(run.clone(), most))
    }

    /// The parts of the data that lie within a range, in pieces of at most `most`.
    pub(super) fn data_within(
        &self,
        of: Range<u64>,
        most: u64,
    ) -> impl Iterator<Item = Range<u64>> {
        let first = self.data.partition_point(|data| data.end <= of.start);
        let (start, end) = (of.start, of.end);
        let within = self.data[first..]
            .iter()
            .take_while(move |data| data.start < end);
        within.flat_map(move |data| pieces(data.start.max(start)..data.end.min(end), most))
    }
}

/// Cuts at multiples of `most`.
fn pieces(range: Range<u64>, most: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = range.end.min((at / most + 1) * most);
        let piece = at..end;
        at = end;
        (piece.start < piece.end).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ExtentFlags;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn extent(logical: u64, length: u64, unwritten: bool) -> Extent {
        Extent {
            logical: Bytes(logical),
            physical: Bytes(logical),
            length: Bytes(length),
            flags: ExtentFlags {
                unwritten,
                ..ExtentFlags::default()
            },
        }
    }

    fn planned(size: u64, extents: &[Extent]) -> Plan {
        let mut planner = Planner::new(Bytes(size), Bytes(MIB));
        extents.iter().for_each(|extent| planner.push(extent));
        planner.finish()
    }

    #[test]
    fn short_gaps_are_filled_and_long_ones_stay() {
        let plan = planned(
            100 * MIB,
            &[
                extent(4096, 4096, false),
                extent(16_384, 4096, false),
                // Unwritten, and far from written ones.
                extent(10 * MIB, 2 * MIB, true),
                extent(50 * MIB, 4096, false),
                // Behind the end.
                extent(100 * MIB, 64 * MIB, true),
            ],
        );
        assert_eq!(plan.data, [4096..20_480, 50 * MIB..50 * MIB + 4096]);
        let allocated = [0..MIB, 10 * MIB..12 * MIB, 50 * MIB..51 * MIB];
        assert_eq!(plan.allocated, allocated);
        assert_eq!(plan.needs(), Bytes(4 * MIB));
        assert!(!plan.is_ideal(ExtentCount(1)));
    }

    #[test]
    fn alternate_blocks_become_one_run() {
        let every_second: Vec<_> = (0..512).map(|n| extent(n * 8192, 4096, false)).collect();
        let plan = planned(4 * MIB, &every_second);
        assert_eq!((plan.data.len(), plan.allocated.len()), (1, 1));
        assert!(plan.is_ideal(ExtentCount(2)) && !plan.is_ideal(ExtentCount(512)));
    }

    #[test]
    fn a_hint_fits_its_file_system() {
        assert_eq!(default_hint(Bytes(MIB)), Bytes(MIB));
        assert_eq!(default_hint(Bytes(1 << 40)), Bytes(16 * MIB));
        assert_eq!(
            fitting_hint(Bytes(16 * MIB), 4096, 1 << 30),
            Bytes(16 * MIB)
        );
        assert_eq!(
            fitting_hint(Bytes(16 * MIB), 4096, 16 * MIB),
            Bytes(4 * MIB)
        );
        assert_eq!(fitting_hint(Bytes(5000), 4096, 1 << 30), Bytes(4096));
        assert_eq!(fitting_hint(Bytes(1), 4096, 1 << 30), Bytes(4096));
    }

    proptest! {
        /// All data is copied once, in order and within what is allocated, whatever the pieces.
        #[test]
        fn everything_is_copied(
            gaps in prop::collection::vec((0_u64..600, 1_u64..600, any::<bool>()), 1..60),
            most in 1_u64..9,
        ) {
            let mut at = 0;
            let mut extents = Vec::new();
            for (gap, blocks, unwritten) in gaps {
                at += gap * 4096;
                extents.push(extent(at, blocks * 4096, unwritten));
                at += blocks * 4096;
            }
            let plan = planned(at, &extents);
            let mut copied = Vec::new();
            for piece in plan.allocations(most * MIB) {
                prop_assert!(piece.end - piece.start <= most * MIB);
                for data in plan.data_within(piece.clone(), MIB) {
                    prop_assert!(data.start >= piece.start && data.end <= piece.end);
                    join(&mut copied, data, 0);
                }
            }
            for extent in extents.iter().filter(|extent| !extent.flags.unwritten) {
                let (start, end) = (extent.logical.0, extent.end().0);
                prop_assert!(copied.iter().any(|range| range.start <= start && end <= range.end));
            }
            prop_assert_eq!(length(&copied), plan.data().0);
        }
    }
}
