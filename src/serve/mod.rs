//! What the daemon tells the world: metrics over HTTP.
//!
//! Everything here answers from the [`board`], which is in memory: a scrape never waits for a disk.

pub mod board;
pub mod control;
pub mod history;
pub mod http;
pub mod listener;
pub mod metrics;
pub mod parts;
pub mod plan;
pub mod status;
pub mod textfile;
