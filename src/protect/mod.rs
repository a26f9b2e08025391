//! Prevention: how many extents an image can still gain, and the extent-size hints that limit it.
//!
//! ```text
//! sweep, map, /proc ─► facts ─► verdict (pure) ─► `fragwatch protect`, status, metrics
//!                         └──► plan (pure) ─► journal, then the hint (apply) ─► undo
//! ```
//!
//! XFS gives a hole that is written the blocks that were asked for and no more: a guest that writes
//! 4 KiB at random makes an extent with each write. With an extent-size hint (ioctl_xfs_fsgetxattr(2))
//! it reserves a whole piece of that size and alignment instead. [`hints`] has the measurements.
//! [`rewrite`] is the remedy for an idle image that has fragmented already.

pub mod apply;
pub mod facts;
#[cfg(test)]
mod fixture;
pub mod hints;
pub mod journal;
pub mod kernel;
pub mod plan;
pub mod rewrite;
pub mod thin;
pub mod verdict;
