//! What the daemon publishes: metrics over HTTP.
//!
//! Everything here answers from the [`shared_status`], which is in memory: a scrape never waits for a disk.

pub mod control;
pub mod history;
pub mod http;
pub mod listener;
pub mod metrics;
pub mod parts;
pub mod plan;
pub mod shared_status;
pub mod snapshot;
pub mod status;
pub mod textfile;
pub mod view;
