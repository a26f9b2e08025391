//! What a reload can change of the fast side while it runs.

use std::sync::Arc;

use super::ladder::LadderSettings;
use crate::klog::Rules;
use crate::klog::kmsg::Kmsg;

/// See the module. Made by the slow side, and freed by it.
#[derive(Debug)]
pub struct Settings {
    /// Whether anything is done. If not, an incident that goes on is given up.
    pub enabled: bool,
    /// Whether to do all but the write.
    pub dry_run: bool,
    /// The kernel's log; none to do without.
    pub kmsg: Option<Arc<Kmsg>>,
    /// What to look for.
    pub rules: Arc<Rules>,
    /// What to do then, and how often.
    pub ladder: Arc<LadderSettings>,
}

/// Settings with the number by which notices refer to them.
#[derive(Debug)]
pub(super) struct Edition {
    pub(super) number: u64,
    pub(super) settings: Settings,
}
