//! The hypervisor copies an image under its running VM, which then uses the copy.

pub mod domain;
pub mod output;
pub mod refusal;

use super::engine::Controls;
use crate::model::{ReasonCode, Refusal, RunOutcome, RunReport};

/// Copies one image.
pub(super) fn run(_: &mut Controls<'_, '_>, _: &mut RunReport) -> Result<RunOutcome, RunOutcome> {
    Err(Refusal::from(ReasonCode::NotLibvirt).into())
}
