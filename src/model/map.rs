//! Summary of an extent map, built while reading: ten million extents are never kept in memory.

use serde::{Deserialize, Serialize};

use super::borders::{BorderCount, Borders};
use super::extent::Extent;
use super::units::{Bytes, ExtentCount};

/// Summary of an extent map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentMap {
    /// Records read.
    pub extents: ExtentCount,
    /// Physically contiguous runs: a disk seeks between them.
    pub fragments: u64,
    /// Gaps in the file, including one after the last extent.
    pub holes: u64,
    /// Bytes covered by extents.
    pub mapped: Bytes,
    /// Bytes reserved but not written.
    pub unwritten: Bytes,
    /// Bytes shared with another file.
    pub shared: Bytes,
    /// Bytes not yet placed on disk.
    pub delayed: Bytes,
    /// Length of the longest extent.
    pub longest: Bytes,
    /// Extents by length: index n counts those of 2^n to 2^(n+1)-1 bytes, up to the longest.
    pub histogram: Vec<u64>,
    /// False if reading stopped at a limit before the last extent.
    pub complete: bool,
    /// Extents by the border before them; zeros in maps from the history.
    #[serde(default)]
    pub borders: Borders,
}

/// Builds an [`ExtentMap`] from extents in file order. Another process can continue it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapBuilder {
    map: ExtentMap,
    /// Where the previous extent ended in the file.
    logical_end: Bytes,
    /// Where it ended on the device, if known.
    physical_end: Option<Bytes>,
    borders: BorderCount,
}

impl MapBuilder {
    /// Adds the next extent; extents must be in ascending order and must not overlap.
    pub fn push(&mut self, extent: Extent) {
        self.borders.push(&extent);
        let map = &mut self.map;
        map.holes += u64::from(extent.logical > self.logical_end);
        let placed = !extent.flags.delayed;
        // Extents that are adjacent on disk are one run, even with a hole between them in the file.
        if !placed || self.physical_end != Some(extent.physical) {
            map.fragments += 1;
        }
        map.extents.0 += 1;
        let length = extent.length;
        map.mapped = map.mapped.saturating_add(length);
        let kinds = [
            (extent.flags.unwritten, &mut map.unwritten),
            (extent.flags.shared, &mut map.shared),
            (extent.flags.delayed, &mut map.delayed),
        ];
        for (is, sum) in kinds {
            if is {
                *sum = sum.saturating_add(length);
            }
        }
        map.longest = map.longest.max(length);
        if let Some(class) = length.0.checked_ilog2() {
            let class = class as usize;
            if map.histogram.len() <= class {
                map.histogram.resize(class + 1, 0);
            }
            map.histogram[class] += 1;
        }
        self.logical_end = extent.end();
        self.physical_end = placed.then(|| extent.physical.saturating_add(length));
    }

    /// Extents so far.
    pub fn extents(&self) -> ExtentCount {
        self.map.extents
    }

    /// File offset at which to search for the next extent.
    pub fn logical_end(&self) -> Bytes {
        self.logical_end
    }

    /// Finishes the map of a file of `size` bytes; `complete`: whether its last extent was reached.
    pub fn finish(mut self, size: Bytes, complete: bool) -> ExtentMap {
        if complete && size > self.logical_end {
            self.map.holes += 1;
        }
        self.map.complete = complete;
        self.map.borders = self.borders.borders;
        self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ExtentFlags;
    use proptest::prelude::*;

    fn extent(logical: u64, physical: u64, length: u64) -> Extent {
        Extent {
            logical: Bytes(logical),
            physical: Bytes(physical),
            length: Bytes(length),
            flags: ExtentFlags::default(),
        }
    }

    fn map(extents: &[Extent], size: u64) -> ExtentMap {
        let mut builder = MapBuilder::default();
        extents.iter().for_each(|e| builder.push(*e));
        builder.finish(Bytes(size), true)
    }

    #[test]
    fn neighbours_on_disk_are_one_fragment() {
        let unwritten = Extent {
            flags: ExtentFlags {
                unwritten: true,
                ..ExtentFlags::default()
            },
            ..extent(4096, 104_096, 8192)
        };
        let map = map(
            &[
                extent(0, 100_000, 4096),
                unwritten,
                extent(12_288, 112_288, 4096),
            ],
            16_384,
        );
        assert_eq!(map.extents, ExtentCount(3));
        assert_eq!(map.fragments, 1);
        assert_eq!(map.holes, 0);
        assert_eq!(map.unwritten, Bytes(8192));
        assert_eq!(map.longest, Bytes(8192));
        assert_eq!(map.histogram[12], 2);
        assert_eq!(map.histogram[13], 1);
    }

    #[test]
    fn holes_are_counted_before_between_and_behind() {
        let map = map(
            &[extent(4096, 0, 4096), extent(12_288, 4096, 4096)],
            1 << 20,
        );
        assert_eq!(map.holes, 3);
        assert_eq!(map.fragments, 1);
        assert_eq!(super::tests::map(&[], 0).holes, 0);
        assert_eq!(super::tests::map(&[], 1).holes, 1);
    }

    #[test]
    fn a_delayed_extent_has_no_place() {
        let delayed = Extent {
            flags: ExtentFlags {
                delayed: true,
                ..ExtentFlags::default()
            },
            ..extent(4096, 0, 4096)
        };
        let map = map(
            &[extent(0, 8192, 4096), delayed, extent(8192, 4096, 4096)],
            12_288,
        );
        assert_eq!(map.fragments, 3);
        assert_eq!(map.delayed, Bytes(4096));
    }

    proptest! {
        #[test]
        fn the_sums_agree(steps in prop::collection::vec((0u64..3, 1u64..64, 0u64..1000), 0..200)) {
            let mut at = 0;
            let mut extents = Vec::new();
            for (gap, length, physical) in steps {
                at += gap * 4096;
                extents.push(extent(at, physical * 4096, length * 4096));
                at += length * 4096;
            }
            let map = map(&extents, at);
            prop_assert_eq!(map.extents.0, extents.len() as u64);
            prop_assert_eq!(map.borders.total(), map.extents.0);
            prop_assert_eq!(map.histogram.iter().sum::<u64>(), map.extents.0);
            prop_assert!(map.fragments <= map.extents.0);
            prop_assert_eq!(map.mapped.0, extents.iter().map(|e| e.length.0).sum::<u64>());
            // Going on in another process changes nothing.
            let mut builder = MapBuilder::default();
            for e in &extents {
                let text = serde_json::to_string(&builder).unwrap();
                builder = serde_json::from_str(&text).unwrap();
                builder.push(*e);
            }
            prop_assert_eq!(builder.finish(Bytes(at), true), map);
        }
    }
}
