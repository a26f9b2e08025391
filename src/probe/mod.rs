//! Counting extents, without being taken along by a file system that hangs.
//!
//! ```text
//! sweep ─► worker (one a file system, in our process)     deadline, one call at a time
//!             │  socket pair, protocol
//!          helper (a process of its own)                  may hang without holding us up
//!             └─► survey ─► discover::walk ─► count::Probe (xfs | generic)
//! ```
//!
//! The call that may hang runs in a helper *process*, not in a thread: a thread in
//! uninterruptible sleep cannot be killed and keeps its whole process from ending. SIGTERM, a panic
//! or systemd's restart would then wait for the very file system that we are to outlive.

pub mod census;
mod count;
pub mod extents;
mod format_cache;
pub mod helper;
mod identity;
pub mod map_schedule;
pub mod open;
mod owners;
pub mod protocol;
mod reply_writer;
mod survey;
pub mod sweep;
pub mod worker;

pub use count::Probe;
pub use protocol::reason;
