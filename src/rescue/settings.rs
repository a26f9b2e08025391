//! Settings of the fast side that a reload can change.

use std::sync::Arc;

use super::ladder::LadderSettings;
use crate::klog::Rules;
use crate::klog::kmsg::Kmsg;

/// Allocated and freed by the slow side.
#[derive(Debug)]
pub struct FastSettings {
    /// Whether to act. If false, an open incident is abandoned.
    pub enabled: bool,
    /// Whether to skip the write itself.
    pub dry_run: bool,
    /// The kernel log; `None` if it is not read.
    pub kmsg: Option<Arc<Kmsg>>,
    /// The rules.
    pub rules: Arc<Rules>,
    /// Steps and limits.
    pub ladder: Arc<LadderSettings>,
}

/// Settings with the number by which notices refer to them.
#[derive(Debug)]
pub(super) struct Edition {
    pub(super) number: u64,
    pub(super) settings: FastSettings,
}
