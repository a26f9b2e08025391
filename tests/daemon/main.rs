//! `fragwatch run`, the built program on real file systems, seen from outside: by its pages, its
//! log, its exit status, its processes.
//!
//! | file | idea |
//! |---|---|
//! | `scrape`     | reads what `/metrics` says |
//! | `watch`      | a daemon with its configuration, its sweeps and its helpers |
//! | `served`     | the pages, every metric, images and file systems that come and go |
//! | `control`    | `status`, `check`, the textfile, and clients that mean no good |
//! | `maintenance` | what it defragments by itself, and when it stops |
//! | `windows`    | the same with images that are large, in use, or cannot be had |
//! | `maps`       | which extent maps are read and which are not |
//! | `names`      | images that come, go and change their names; whose they are |
//! | `reload`     | SIGHUP |
//! | `life`       | how it starts and ends |
//! | `sequences`  | random sequences of what happens to a daemon, against a model |
//! | `start`      | what it starts with when its configuration is wrong |
//! | `severity`   | severities that change: the log, the metrics, the hook |
//! | `identity`   | what the history knows an image by |
//! | `story`      | a VM and a writer: all who can be asked tell the same |
//! | `restart`    | what the history keeps when it is killed, started again, started twice |
//! | `systemd`    | what it tells systemd, and where its log goes |
//! | `stalled`    | file systems that do not answer |
//! | `fleet`      | the lock of a group of hosts, and the query that holds runs |
//! | `fleetlock`  | the protocol of the lock, by the tests and the source of others |
//! | `by_hand`    | both of them for `fragwatch defrag` |
//! | `hooks`      | the commands around a run, and what is held against no image |
//! | `helpers`    | helpers that are killed; what must not pile up |
//! | `prometheus` | promtool and a real Prometheus |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]
#![allow(unreachable_pub, reason = "a test crate has no outside")]

#[path = "../support/mod.rs"]
mod support;

mod by_hand;
mod control;
mod fleet;
mod fleetlock;
mod helpers;
mod hooks;
mod identity;
mod kernels;
mod life;
mod maintenance;
mod maps;
mod names;
mod prometheus;
mod reload;
mod restart;
mod scrape;
mod sequences;
mod served;
mod severity;
mod stalled;
mod start;
mod story;
mod systemd;
mod watch;
mod windows;

support::stall_server!();
