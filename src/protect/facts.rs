//! What an image is judged by, and what follows from it by arithmetic. Pure.

use crate::model::{Bytes, ExtentMap, Filesystem, FilesystemKind, Owner, Sample};

/// Copy on write takes pieces of 32 blocks without a hint (`XFS_DEFAULT_COWEXTSZ_HINT`,
/// fs/xfs/libxfs/xfs_format.h).
const COW_BLOCKS: u64 = 32;

/// An image, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Its last count.
    pub sample: &'a Sample,
    /// Its file system, if that is known.
    pub filesystem: Option<&'a Filesystem>,
    /// Its extent map, if it was read.
    pub map: Option<&'a ExtentMap>,
    /// The processes that have it open, if that is known.
    pub owner: Option<&'a Owner>,
}

impl Facts<'_> {
    /// Whether it lies on XFS; only that has the hints.
    pub fn is_xfs(&self) -> bool {
        self.filesystem
            .is_some_and(|it| it.kind == FilesystemKind::Xfs)
    }

    /// Its map, if it was read to the end.
    pub fn whole_map(&self) -> Option<&ExtentMap> {
        self.map.filter(|map| map.complete)
    }

    /// Physically contiguous runs. Without a map at most as many as it has extents.
    pub fn fragments(&self) -> u64 {
        let extents = self.sample.extents.0;
        self.whole_map().map_or(extents, |map| map.fragments)
    }

    /// Length of all holes. Without a map at least that: what is reserved beyond the end of the file
    /// is allocated too.
    pub fn holes(&self) -> Bytes {
        let mapped = self.whole_map().map(|map| map.mapped);
        let mapped = mapped.unwrap_or(self.sample.allocated);
        Bytes(self.sample.size.0.saturating_sub(mapped.0))
    }

    /// How many holes there are; without a map one or none.
    pub fn hole_count(&self) -> u64 {
        let any = u64::from(self.holes().0 > 0);
        self.whole_map().map_or(any, |map| map.holes)
    }

    /// How much of it is holes, in percent.
    pub fn hole_percent(&self) -> u64 {
        let holes = u128::from(self.holes().0) * 100;
        let share = holes.checked_div(self.sample.size.0.into());
        u64::try_from(share.unwrap_or(0)).unwrap_or(100)
    }

    /// What is reserved and not written; 0 without a map.
    pub fn unwritten(&self) -> Bytes {
        self.whole_map().map_or(Bytes(0), |map| map.unwritten)
    }

    /// What it shares with other files; 0 without a map.
    pub fn shared(&self) -> Bytes {
        self.whole_map().map_or(Bytes(0), |map| map.shared)
    }

    /// How far it can grow beyond its present end: to the size of the guest's disk.
    pub fn growth(&self) -> Bytes {
        let disk = self.sample.qcow2.map_or(0, |header| header.disk.0);
        Bytes(disk.saturating_sub(self.sample.size.0))
    }

    /// Its length, or that of the guest's disk if it can grow to that.
    pub fn full_size(&self) -> Bytes {
        self.sample.size.saturating_add(self.growth())
    }

    /// Block size of its file system.
    pub fn block(&self) -> Bytes {
        let block = self.filesystem.map_or(0, |it| it.block_size.0);
        Bytes(if block == 0 { 4096 } else { block })
    }

    /// What is allocated at least when a hole is written.
    pub fn piece(&self) -> Bytes {
        self.block().max(self.sample.extent_size_hint)
    }

    /// What is allocated at least when it grows: a cluster, whatever the hint. QEMU zeroes each new
    /// cluster, which gives the rest of a piece back; [`hints`](super::hints) has the measurement.
    pub fn growth_piece(&self) -> Bytes {
        let cluster = self.sample.qcow2.map_or(Bytes(0), |header| header.cluster);
        self.block().max(cluster)
    }

    /// What is allocated at least when a shared block is written (xfs_get_cowextsz_hint,
    /// fs/xfs/xfs_inode.c: the longer of both hints).
    pub fn cow_piece(&self) -> Bytes {
        let hint = self.sample.cow_hint.max(self.sample.extent_size_hint);
        match hint {
            Bytes(0) => Bytes(self.block().0.saturating_mul(COW_BLOCKS)),
            hint => hint,
        }
    }

    /// Whether a VM passes discards on to it; `None` if that is not known.
    pub fn discards(&self) -> Option<bool> {
        self.owner?.discards()
    }
}
