//! What a check returns.

use crate::model::Severity;

/// Why a check could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotChecked {
    /// The two readings are too close.
    NeedsWatch,
    /// Something could not be read, as a clause.
    Because(String),
}

impl NotChecked {
    /// For this reason, as a clause.
    pub fn because(reason: String) -> NotChecked {
        NotChecked::Because(reason)
    }
}

/// What a check has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// `None`: that of the table.
    pub severity: Option<Severity>,
    /// What is, in one sentence.
    pub what: String,
    /// What was read.
    pub read: Vec<String>,
}

impl Found {
    /// A note: the operator need not do anything, and it counts for nothing.
    pub fn note(what: String, read: Vec<String>) -> Found {
        Found {
            severity: Some(Severity::Ok),
            ..Found::new(what, read)
        }
    }

    /// A finding of the severity of the table.
    pub fn new(what: String, read: Vec<String>) -> Found {
        Found {
            severity: None,
            what,
            read,
        }
    }
}

/// The result of a check.
pub type Checked = Result<Vec<Found>, NotChecked>;
