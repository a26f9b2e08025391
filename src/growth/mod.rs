//! The growth of images in extents, and the forecast of their thresholds. Pure.
//!
//! - [`recent`]: the last counts of an image, few enough to be kept in memory
//! - [`trend`]: the growth rate of counts
//! - [`mod@forecast`]: when a threshold is reached

mod forecast;
mod recent;
mod trend;

pub use forecast::forecast;
pub use recent::{CAPACITY, Recent};
pub use trend::{float, growth, unsigned};

#[cfg(test)]
mod tests;
