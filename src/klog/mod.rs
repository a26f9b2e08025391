//! The kernel log: sources, records, and the rules that match records.
//!
//! [`record`] and [`rules`] are pure. They run on the thread that must not block when XFS does:
//! once the rules are compiled, they do not allocate, lock or panic, whatever the input.

pub mod dedup;
pub mod file;
pub mod head;
pub mod kmsg;
pub mod record;
pub mod rules;
pub mod stamp;
pub mod tail;

pub use record::{DRILL_MARKER, KernelTime, Record, Sequence, Text};
pub use rules::{Match, RuleId, Rules};
