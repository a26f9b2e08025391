//! The configuration.

pub mod units;
