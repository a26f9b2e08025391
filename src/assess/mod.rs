//! The severity of images and of the host, by the configured thresholds. Pure.
//!
//! A severity that was reached is left only when its value is well below the threshold
//! ([`Thresholds::hysteresis`](crate::config::settings::Thresholds::hysteresis)), each threshold by
//! itself, so that an image at a threshold is reported once. An **unknown** value neither raises a
//! severity nor ends one; but after a defragmentation, when nothing is known *yet*, it ends.

mod judge;
mod limits;

pub use judge::{HostJudge, Judge, Observed, Reason};
pub use limits::Assessor;
