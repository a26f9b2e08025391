//! The rescue: when XFS waits for memory that does not come, the slab cache is dropped, again and
//! again until the kernel falls silent.
//!
//! ```text
//! /dev/kmsg ─► reader ─► ladder ─► actor ─► /proc/sys/vm/drop_caches
//!                │                   │
//!                └────── rings ──────┴──► slow side (log, metrics, incident file)
//! ```
//!
//! **The fast side never waits for a file system.** When XFS is stuck everything that touches it
//! hangs: log files, state, page faults. So the two threads open what they need before they are
//! armed, are locked into memory, have run through their code once, and from then on allocate
//! nothing, free nothing, take no lock, log nothing and open nothing. [`ladder`] decides what is done when,
//! [`mod@ring`] tells the slow side; both are pure.

mod actor;
pub mod archive;
pub mod clock;
pub mod entry;
pub mod evidence;
pub mod exchange;
pub mod hook;
pub mod incident;
pub mod ladder;
pub mod proc_text;
pub mod proof;
mod reader;
pub mod ring;
pub mod settings;
pub mod thread;
pub mod utc;

pub use ladder::{Began, Ended, Ladder, LadderSettings, Limit, Order};
pub use reader::Watchdog;
pub use ring::Packed;
