//! Extents for tests.

use super::{Bytes, Extent, ExtentFlags};

/// The unit of [`extent`].
pub(crate) const PAGE: u64 = 4096;

/// An extent of whole pages that no other one touches on disk.
pub(crate) fn extent(page: u64, pages: u64) -> Extent {
    Extent {
        logical: Bytes(page * PAGE),
        physical: Bytes(page * 7919 * PAGE),
        length: Bytes(pages * PAGE),
        flags: ExtentFlags::default(),
    }
}
