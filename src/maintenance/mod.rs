//! When which image is defragmented, and why another is not. Pure: what is to be known of the
//! images and of the host is given, and nothing is done.
//!
//! - [`calendar`]: when it is allowed

pub mod calendar;

pub use calendar::{Calendar, Host, Opening};
