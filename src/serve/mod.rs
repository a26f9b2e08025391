//! What the daemon publishes: HTTP pages, control socket, textfile. Metrics and status come from
//! the [`shared_status`] in memory: a scrape never waits for a disk.

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
