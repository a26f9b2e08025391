//! `[doctor]`: the checks of the host.

use serde::{Deserialize, Serialize};

use crate::config::checks::Invalid;
use crate::config::formats::sections;
use crate::doctor::table;
use crate::model::CheckId;

sections! {
    /// The checks of the host.
    pub struct Doctor {
        /// Checks whose findings are shown, but count for nothing.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub silence: Vec<Silence> = Vec::new(), check silenced;
    }
}

/// A check that is silenced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Silence {
    /// The check.
    pub id: CheckId,
    /// Why it does not matter here; not empty.
    pub reason: String,
}

fn silenced(list: &[Silence], key: &str, invalid: &mut Invalid) {
    for (i, silence) in list.iter().enumerate() {
        if table::entry(silence.id).is_none() {
            let problem = format!("there is no check {}", silence.id);
            invalid.push((format!("{key}.{i}.id"), problem));
        }
        if silence.reason.trim().is_empty() {
            invalid.push((format!("{key}.{i}.reason"), "is empty".to_owned()));
        }
    }
}
