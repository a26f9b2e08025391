//! The kernel's log: its records, and the rules for those that matter.
//!
//! [`record`] and [`rules`] are pure. They run on the thread that must not get stuck when XFS does:
//! once the rules are compiled they allocate nothing, take no lock and do not panic, whatever the
//! bytes.

pub mod dedup;
pub mod file;
pub mod kmsg;
pub mod record;
pub mod rules;
pub mod syslog;
pub mod tail;

pub use record::{DRILL_MARKER, KernelTime, Record, Sequence, Text};
pub use rules::{Match, RuleId, Rules};
