//! The free space of a file system: how long its free extents are, in which allocation groups, and in
//! how many extents a file can lie at best.

use serde::{Deserialize, Serialize};

use super::gain::LITTLE;
use super::{Bytes, ExtentCount, ReasonCode, Refusal};

/// How many of the longest free extents are kept one by one: enough for most images.
const LONGEST: usize = 4096;
/// An extent of XFS has at most so many blocks (`XFS_MAX_BMBT_EXTLEN`, fs/xfs/libxfs/xfs_format.h).
const MAX_EXTENT_BLOCKS: u64 = (1 << 21) - 1;

/// The free space of a file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeSpace {
    /// Size of a block.
    pub block_size: Bytes,
    /// Each allocation group, in order. One for the whole, if the file system has none.
    pub groups: Vec<Group>,
    /// Free extents by length: class `n` has those from `2^n` to below `2^(n+1)` bytes.
    pub classes: Vec<Class>,
    /// The lengths of the longest free extents, the longest first.
    pub longest: Vec<Bytes>,
}

/// The free space of an allocation group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its size. The last group of a file system may be shorter.
    pub size: Bytes,
    /// Free extents.
    pub extents: ExtentCount,
    /// Free space.
    pub free: Bytes,
    /// The longest free extent.
    pub longest: Bytes,
}

/// The free extents of similar length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// How many there are.
    pub extents: ExtentCount,
    /// Their lengths together.
    pub bytes: Bytes,
}

impl Class {
    fn add(&mut self, length: u64) {
        self.extents.0 += 1;
        self.bytes.0 += length;
    }
}

/// The sum of free extents that are added one by one.
pub struct Summary {
    space: FreeSpace,
    group_size: u64,
    /// Lengths; cut down to the longest whenever there are twice as many as are kept.
    lengths: Vec<u64>,
}

impl Summary {
    /// For a file system of `size`, in allocation groups of `group_size`.
    pub fn new(size: Bytes, block_size: Bytes, group_size: Bytes) -> Summary {
        let group_size = group_size.0.max(1);
        let starts = (0..size.0.div_ceil(group_size)).map(|group| group * group_size);
        let groups = starts.map(|start| Group {
            size: Bytes(group_size.min(size.0 - start)),
            ..Group::default()
        });
        Summary {
            space: FreeSpace {
                block_size,
                groups: groups.collect(),
                ..FreeSpace::default()
            },
            group_size,
            lengths: Vec::new(),
        }
    }

    /// Adds a free extent, by its place and length in bytes.
    pub fn add(&mut self, start: u64, length: u64) {
        let Some(class) = length.checked_ilog2() else {
            return;
        };
        let class = class as usize;
        if self.space.classes.len() <= class {
            self.space.classes.resize(class + 1, Class::default());
        }
        self.space.classes[class].add(length);
        let group = usize::try_from(start / self.group_size).unwrap_or(usize::MAX);
        if let Some(group) = self.space.groups.get_mut(group) {
            group.extents.0 += 1;
            group.free.0 += length;
            group.longest = group.longest.max(Bytes(length));
        }
        self.lengths.push(length);
        if self.lengths.len() == 2 * LONGEST {
            self.keep_longest();
        }
    }

    fn keep_longest(&mut self) {
        self.lengths.sort_unstable_by(|a, b| b.cmp(a));
        self.lengths.truncate(LONGEST);
    }

    /// The sum.
    pub fn finish(mut self) -> FreeSpace {
        self.keep_longest();
        self.space.longest = self.lengths.into_iter().map(Bytes).collect();
        self.space
    }
}

/// How a file would lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// In at least so many extents.
    AtLeast(ExtentCount),
    /// Not at all: so much is missing.
    Missing(Bytes),
}

impl FreeSpace {
    /// Free extents.
    pub fn extents(&self) -> ExtentCount {
        self.classes.iter().map(|class| class.extents).sum()
    }

    /// Free space.
    pub fn bytes(&self) -> Bytes {
        self.classes.iter().map(|class| class.bytes).sum()
    }

    /// The longest free extent; 0 if there is none.
    pub fn longest(&self) -> Bytes {
        self.longest.first().copied().unwrap_or_default()
    }

    /// In how many extents a copy of a file lies at least, if it takes the longest free extents first and
    /// leaves `keep_free` unused. The file now occupies `allocated` with its map of so many `extents`.
    pub fn placement(&self, allocated: Bytes, extents: ExtentCount, keep_free: Bytes) -> Placement {
        let missing = (allocated.0.saturating_add(keep_free.0)).saturating_sub(self.bytes().0);
        if missing > 0 {
            return Placement::Missing(Bytes(missing));
        }
        let longest_extent = self.longest_extent();
        let mut left = allocated.0.saturating_sub(self.largest_map(extents));
        let mut extents = 0;
        for length in &self.longest {
            if left == 0 {
                break;
            }
            let used = left.min(length.0);
            extents += used.div_ceil(longest_extent);
            left -= used;
        }
        Placement::AtLeast(ExtentCount(extents + self.beyond_longest(left)))
    }

    /// Checks whether a copy of an image could have at most a tenth of its `extents`. An image so large
    /// that the longest possible extents are not enough is not refused because of that; one with ten
    /// extents or fewer is left to other checks.
    ///
    /// # Errors
    /// [`ReasonCode::FreeSpaceFragmented`], with the least number of extents.
    pub fn check_copy(&self, allocated: Bytes, extents: ExtentCount) -> Result<(), Refusal> {
        let Placement::AtLeast(least) = self.placement(allocated, extents, Bytes(0)) else {
            return Ok(());
        };
        let group = self.groups.iter().map(|group| group.size.0).max();
        let longest = self.longest_extent().min(group.unwrap_or(u64::MAX)).max(1);
        let is_unavoidable = least.0 <= allocated.0.div_ceil(longest);
        let is_better = least.0.saturating_mul(LITTLE) <= extents.0;
        if is_unavoidable || is_better || extents.0 <= LITTLE {
            return Ok(());
        }
        let text = format!(
            "the free space is too fragmented: a copy would have at least {least} extents \
             (fragwatch space)"
        );
        Err(Refusal::new(ReasonCode::FreeSpaceFragmented, text))
    }

    /// The space that the map of a file on XFS occupies at most (`di_nblocks` contains it): each block of
    /// the tree but the only leaf is at least half full of records of 16 bytes (xfs_bmbt_rec,
    /// fs/xfs/libxfs/xfs_format.h) after a header of at most 72 bytes.
    fn largest_map(&self, extents: ExtentCount) -> u64 {
        if extents.0 <= 1 {
            return 0;
        }
        let block = self.block_size.0;
        let half_full = block.saturating_sub(72) / 16 / 2;
        // Of the sum of all levels: n/m + n/m² + … is n/(m-1).
        let blocks = extents.0 / half_full.saturating_sub(1).max(1) + 1;
        blocks.saturating_mul(block)
    }

    /// The longest extent that a file can have, in bytes.
    fn longest_extent(&self) -> u64 {
        MAX_EXTENT_BLOCKS.saturating_mul(self.block_size.0).max(1)
    }

    /// The least number of extents for `left` bytes, of those that are not kept one by one.
    fn beyond_longest(&self, mut left: u64) -> u64 {
        if left == 0 {
            return 0;
        }
        let mut rest = self.classes.clone();
        for length in &self.longest {
            let class = length.0.checked_ilog2().unwrap_or(0) as usize;
            if let Some(class) = rest.get_mut(class) {
                class.extents = class.extents.saturating_sub(ExtentCount(1));
                class.bytes.0 = class.bytes.0.saturating_sub(length.0);
            }
        }
        // Not one is longer than the end of its class, nor than the shortest that is kept.
        let shortest = self.longest.last().map_or(u64::MAX, |length| length.0);
        let mut extents = 0;
        for (
            class,
            Class {
                extents: count,
                bytes,
            },
        ) in rest.into_iter().enumerate().rev()
        {
            if left <= bytes.0 {
                let longest = (2_u64 << class).wrapping_sub(1).min(shortest);
                return extents + left.div_ceil(longest.max(1));
            }
            extents += count.0;
            left -= bytes.0;
        }
        extents
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1024;

    fn space(lengths: &[u64]) -> FreeSpace {
        let size = Bytes(lengths.iter().sum::<u64>().max(1) * 2);
        let mut summary = Summary::new(size, Bytes(4 * KIB), size);
        let mut start = 0;
        for &length in lengths {
            summary.add(start, length);
            start += 2 * length;
        }
        summary.finish()
    }

    #[test]
    fn the_longest_are_taken_first() {
        let space = space(&[4 * KIB, 64 * KIB, 16 * KIB]);
        assert_eq!(space.longest(), Bytes(64 * KIB));
        assert_eq!(
            space.placement(Bytes(64 * KIB), ExtentCount(1), Bytes(0)),
            Placement::AtLeast(ExtentCount(1))
        );
        assert_eq!(
            space.placement(Bytes(65 * KIB), ExtentCount(1), Bytes(0)),
            Placement::AtLeast(ExtentCount(2))
        );
        assert_eq!(
            space.placement(Bytes(84 * KIB), ExtentCount(1), Bytes(0)),
            Placement::AtLeast(ExtentCount(3))
        );
    }

    #[test]
    fn the_map_of_the_file_is_not_copied() {
        // A block is half full of 125 records.
        let space = space(&[64 * KIB; 2000]);
        let least = |blocks: u64, extents| {
            let allocated = Bytes(blocks * 4 * KIB);
            space.placement(allocated, ExtentCount(extents), Bytes(0))
        };
        assert_eq!(least(16_000, 1), Placement::AtLeast(ExtentCount(1000)));
        assert_eq!(least(16_001, 2), Placement::AtLeast(ExtentCount(1000)));
        assert_eq!(least(16_130, 16_000), Placement::AtLeast(ExtentCount(1000)));
        assert_eq!(least(16_131, 16_000), Placement::AtLeast(ExtentCount(1001)));
    }

    #[test]
    fn what_is_kept_free_is_not_used() {
        let space = space(&[64 * KIB]);
        let placement = space.placement(Bytes(64 * KIB), ExtentCount(1), Bytes(KIB));
        assert_eq!(placement, Placement::Missing(Bytes(KIB)));
    }

    #[test]
    fn an_extent_of_xfs_has_a_longest_length() {
        let space = space(&[100 << 30]);
        let placement = space.placement(Bytes(100 << 30), ExtentCount(1), Bytes(0));
        assert_eq!(placement, Placement::AtLeast(ExtentCount(13)));
    }

    #[test]
    fn a_copy_must_be_ten_times_better_if_the_free_space_is_to_blame() {
        let short = space(&vec![64 * KIB; 1000]);
        let code = |space: &FreeSpace, size, extents| {
            let checked = space.check_copy(Bytes(size), ExtentCount(extents));
            checked.err().map(|refusal| refusal.code)
        };
        let refused = Some(ReasonCode::FreeSpaceFragmented);
        assert_eq!(code(&short, 6400 * KIB, 900), refused);
        assert_eq!(code(&short, 6400 * KIB, 1000), None);
        // Other checks find that it does not fit.
        assert_eq!(code(&short, 1 << 40, 1000), None);
        // As few extents as there can be.
        assert_eq!(code(&short, 64 * KIB, 11), None);
        assert_eq!(code(&short, 128 * KIB, 11), refused);
        assert_eq!(code(&short, 128 * KIB, 10), None);
        assert_eq!(code(&space(&[100 << 30]), 100 << 30, 14), None);
    }

    #[test]
    fn groups_have_their_own_sums() {
        let mut summary = Summary::new(Bytes(2500), Bytes(1), Bytes(1000));
        summary.add(0, 10);
        summary.add(900, 100);
        summary.add(2400, 50);
        let groups = summary.finish().groups;
        let sizes: Vec<u64> = groups.iter().map(|group| group.size.0).collect();
        assert_eq!(sizes, [1000, 1000, 500]);
        assert_eq!(
            (groups[0].extents.0, groups[0].free.0, groups[0].longest.0),
            (2, 110, 100)
        );
        assert_eq!(groups[1].free, Bytes(0));
        assert_eq!(groups[2].free, Bytes(50));
    }

    /// The fewest extents, from the whole list.
    fn exactly(lengths: &[u64], mut left: u64) -> u64 {
        let mut lengths = lengths.to_vec();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let mut extents = 0;
        for length in lengths {
            if left == 0 {
                break;
            }
            left -= left.min(length);
            extents += 1;
        }
        extents
    }

    proptest! {
        #[test]
        fn never_more_than_are_needed(
            lengths in prop::collection::vec(1_u64..5_000_000, 1..12_000),
            share in 0.0..1.0_f64,
        ) {
            let all: u64 = lengths.iter().sum();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let size = (all as f64 * share) as u64;
            let exact = exactly(&lengths, size);
            let placement = space(&lengths).placement(Bytes(size), ExtentCount(1), Bytes(0));
            let Placement::AtLeast(found) = placement else {
                return Err(TestCaseError::fail("it fits"));
            };
            prop_assert!(found.0 <= exact, "{found} for {exact}");
            // Exact as far as the lengths are kept, and no worse than half beyond.
            if exact <= LONGEST as u64 {
                prop_assert_eq!(found.0, exact);
            }
            prop_assert!(found.0 * 2 >= exact, "{found} for {exact}");
        }

        #[test]
        fn sums_are_sums(lengths in prop::collection::vec(1_u64..1_000_000, 0..200)) {
            let space = space(&lengths);
            prop_assert_eq!(space.bytes().0, lengths.iter().sum::<u64>());
            prop_assert_eq!(space.extents().0, lengths.len() as u64);
            prop_assert_eq!(space.longest().0, lengths.iter().copied().max().unwrap_or(0));
        }
    }
}
