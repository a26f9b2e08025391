//! What the daemon tells the world: metrics over HTTP.
//!
//! Everything here answers from the [`board`], which is in memory: a scrape never waits for a disk.

pub mod board;
pub mod http;
pub mod metrics;
