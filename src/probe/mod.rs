//! Counts extents without being blocked by a file system that hangs.
//!
//! ```text
//! sweep ─► worker (one per file system, in our process)   deadline, one call at a time
//!             │  socket pair, protocol
//!          helper (separate process)                      may hang without blocking us
//!             └─► survey ─► discover::walk ─► count::Probe (xfs | generic)
//! ```
//!
//! The helper is a *process*, not a thread: a thread in uninterruptible sleep cannot be killed and
//! keeps its whole process from ending. SIGTERM, a panic or a restart by systemd would then wait
//! for the very file system that hangs.

pub mod census;
mod count;
pub mod extents;
mod format_cache;
pub mod helper;
mod identity;
pub mod located;
pub mod map_schedule;
pub mod open;
mod owners;
pub mod protocol;
mod reply_writer;
pub mod space;
mod survey;
pub mod sweep;
pub mod worker;

pub use count::Probe;
pub use identity::uuid;
pub use protocol::reason;
