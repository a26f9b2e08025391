//! What operators get beside the program: the unit, alerts, the dashboard, the packages' scripts.
//!
//! | file | idea |
//! |---|---|
//! | `unit`       | systemd's opinion of the unit, and the daemon with exactly its capabilities |
//! | `calls`      | what the program asks the kernel for, against what the unit refuses |
//! | `prometheus` | alerts and recording rules |
//! | `grafana`    | the dashboard, against a Prometheus that scrapes a daemon |
//! | `fleet`      | its row for the fleet, against a Prometheus that scrapes a thousand simulated hosts |
//! | `man`        | the manual pages: what they name, and that man(1) finds no fault |
//! | `names`      | which metrics there are |
//! | `scripts`    | the maintainer scripts, in a made-up host |
//! | `ansible`    | the role, run against this machine without touching its service |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]
#![allow(unreachable_pub, reason = "a test crate has no outside")]

mod support;

#[path = "packaging/ansible.rs"]
mod ansible;
#[path = "packaging/calls.rs"]
mod calls;
#[path = "packaging/fleet.rs"]
mod fleet;
#[path = "packaging/grafana.rs"]
mod grafana;
#[path = "packaging/man.rs"]
mod man;
#[path = "packaging/names.rs"]
mod names;
#[path = "packaging/prometheus.rs"]
mod prometheus;
#[path = "packaging/scripts.rs"]
mod scripts;
#[path = "packaging/unit.rs"]
mod unit;

use std::path::{Path, PathBuf};

/// A file of the source tree.
fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
