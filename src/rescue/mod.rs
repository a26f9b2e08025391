//! The fast side of the rescue: when XFS waits for memory, the slab cache is dropped, repeatedly
//! until the kernel reports no more waiting. Events are recorded by [`incident`](crate::incident).
//!
//! ```text
//! /dev/kmsg ─► reader ─► ladder ─► actor ─► /proc/sys/vm/drop_caches
//!                │                   │
//!                └────── rings ──────┴──► slow side (log, metrics, incident file)
//! ```
//!
//! **The fast side never waits for a file system.** While XFS is stuck, everything that touches it
//! hangs: log files, state, page faults. So its two threads open what they need before they are
//! armed, are locked into memory and have run through their code once; from then on they do not
//! allocate, free, lock, log or open anything. [`ladder`] decides which step is taken when,
//! [`mod@ring`] passes reports to the slow side; both are pure.

mod actor;
pub mod clock;
pub mod drill;
pub mod entry;
pub mod exchange;
pub mod ladder;
pub mod proof;
mod reader;
pub mod ring;
pub mod settings;
pub mod thread;
mod words;

pub use ladder::{Began, Ended, Ladder, LadderSettings, Limit, Order};
pub use reader::Watchdog;
pub use ring::Packed;
