//! `[[doctor.silence]]`: checks of the host whose findings count for nothing.

use serde::{Deserialize, Serialize};

use crate::config::checks::Invalid;
use crate::config::text::join;
use crate::doctor::table;
use crate::model::CheckId;

/// A check that is silenced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Silence {
    /// The check.
    pub id: CheckId,
    /// Why it does not matter here; not empty.
    pub reason: String,
}

impl Silence {
    pub(super) fn invalid(&self, path: &str, invalid: &mut Invalid) {
        if table::entry(self.id).is_none() {
            let problem = format!("there is no check {}", self.id);
            invalid.push((join(path, "id"), problem));
        }
        if self.reason.trim().is_empty() {
            invalid.push((join(path, "reason"), "is empty".to_owned()));
        }
    }
}
