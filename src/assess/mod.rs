//! The severity of images and of the host, by the configured thresholds. Pure.
//!
//! A threshold that was reached holds until its value is well below
//! ([`Thresholds::hysteresis`](crate::config::settings::Thresholds::hysteresis)), so that an image
//! at a threshold is reported once. An **unknown** value neither raises nor ends a severity; one
//! that is unknown *yet*, after a defragmentation, ends it.

mod judge;
mod limits;

pub use judge::{HostJudge, Judge, Observed, Reason};
pub use limits::{Assessor, ImageLimits};
