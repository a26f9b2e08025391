//! The rescue: when XFS waits for memory that does not come, the slab cache is dropped, again and
//! again until the kernel falls silent.
//!
//! [`ladder`] decides what is done when, [`mod@ring`] tells the rest of the daemon about it. Both are
//! pure and run on threads that must not get stuck when XFS does: once built they allocate nothing,
//! take no lock and do not panic.

pub mod ladder;
pub mod ring;

pub use ladder::{Began, Ended, Ladder, LadderError, LadderSettings, Order, Reaction};
pub use ring::{Consumer, Packed, Producer, ring};
