//! The kernel's log: its records, and the rules that say which of them matter.
//!
//! [`record`] and [`rules`] are pure. They run on the thread that must not get stuck when XFS does:
//! once the rules are compiled they allocate nothing, take no lock and do not panic, whatever the
//! bytes.

pub mod file;
pub mod kmsg;
pub mod record;
pub mod rules;
pub mod tail;

pub use record::{KernelTime, Record, Sequence, Text};
pub use rules::{Match, RuleId, Rules};

/// How the text of the record begins that a drill writes to /dev/kmsg; the rest names the drill.
///
/// No rule matches it: a drill must not be taken for an emergency, not even by a rule of an
/// operator that matches everything.
pub const DRILL_MARKER: &[u8] = b"fragwatch drill: ";
