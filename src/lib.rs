//! fragwatch watches the extent fragmentation of VM disk images on KVM hypervisors, keeps the host
//! alive when XFS runs out of kernel memory because of it, and defragments. This page is the one to
//! read first.
//!
//! # Data flow
//!
//! ```text
//! slow side: tokio; may wait, may touch file systems
//!   discover ──► probe ──► history ──► assess ──► maintenance ──► defrag
//!      which      extents    samples     growth,     what, when,    child processes
//!      files      of each    in SQLite   severity    why not        that do it
//!   serve: /metrics, control socket, textfile; from one shared status, never from a disk
//!
//! fast side: plain threads, started before tokio
//!   klog (/dev/kmsg) ──┐
//!   stall (stacks) ────┴──► rescue: ladder ──► actor ──► /proc/sys/vm ──► ring ──► slow side
//! ```
//!
//! # Two laws
//!
//! **The fast side never waits for a file system.** When XFS is stuck, everything that touches it
//! hangs: the log file of the daemon, its state, its page faults. The fast side opens what it needs
//! before it is armed and is locked into memory. From then on it allocates nothing, opens nothing, logs
//! nothing, and takes no lock that the slow side takes. Reader and actor are two threads, because a
//! write to drop_caches runs the shrinkers in the writer and can itself block in XFS.
//!
//! **A probe that hangs affects nothing else.** Every call on a file system of images is made by the
//! helper process of that file system, with a deadline and one call at a time: a thread in state D would
//! keep the whole daemon from ending. Runs of defragmentation are child processes for the same reason.
//!
//! # Rooms
//!
//! Each directory of `src` is a room. `tests/architecture.rs` checks which room may use which: all
//! may use `model`, `sys` uses none, the pure rooms use only `model` and settings, the fast side
//! uses only `model`, `klog` and `sys`, nothing uses `cli`, and files have no circular
//! dependencies.
//!
//! | room | purpose |
//! |---|---|
//! | [`cli`] | the command line; one file for each subcommand |
//! | [`daemon`] | `fragwatch run`: starts, reloads and stops all parts; has the table of their lifecycles |
//! | [`config`] | the configuration file, its defaults and its error messages |
//! | [`model`] | image, extent, extent map, file system, severity (pure) |
//! | [`sys`] | interfaces of the kernel; the only unsafe code |
//! | [`discover`] | which files are images, and which process has them open |
//! | [`probe`] | counting extents and reading maps, in helper processes |
//! | [`growth`] | how fast images gain extents, and when they will have too many (pure) |
//! | [`history`] | the database and its writer thread |
//! | [`assess`] | thresholds, hysteresis, severity (pure) |
//! | [`maintenance`] | windows, the plan, and the reasons against a run (pure) |
//! | [`defrag`] | the engines, their guards, and the job that a child process carries out |
//! | [`protect`] | how many extents an image can gain, hints that limit it, and the rewrite of an idle image |
//! | [`klog`] | records of the kernel log and log files, and the rules that match them |
//! | [`stall`] | the detector for kernels that print no message |
//! | [`rescue`] | the fast side: from a trigger to free memory |
//! | [`doctor`] | checks of the host for what hurts now and what will: `fragwatch doctor` |
//! | [`incident`] | the record of an incident: events, evidence, files, hook |
//! | [`serve`] | metrics, the pages for people, HTTP, the control socket, the textfile |
//! | [`hook`], [`state_dir`] | commands of the operator; the state directory |
//! | [`durable`], [`background`] | replacing a file; a queue with a thread for work that may hang |
//! | [`table`] | text tables |
//!
//! # Where to begin
//!
//! - How an image is counted: `sys::fsxattr`, then [`probe`].
//! - What happens in an emergency: `rescue::ladder` (pure, with its tests), then `rescue::reader`.
//! - What the daemon does from start to stop: the table in [`daemon`].
//! - A new key of the configuration: the comment of [`config`]. A new metric: `serve::metrics`, and
//!   `packaging/prometheus/README.md`; tests fail as long as one of them is missing.
//! - A test on a real XFS: `tests/support` (`Bed`); `tests/run` runs all.
//! - Operation, from the outside: `packaging/man`.

mod assess;
mod background;
mod cli;
mod config;
mod daemon;
mod defrag;
mod discover;
mod doctor;
mod durable;
mod fleet;
mod growth;
mod history;
mod hook;
mod http_client;
mod incident;
pub mod internals;
mod klog;
mod maintenance;
mod model;
mod probe;
mod protect;
mod rescue;
#[cfg(test)]
#[path = "../tests/support/script.rs"]
mod script;
mod serve;
#[cfg(test)]
#[path = "../tests/support/skip.rs"]
#[allow(
    dead_code,
    unused_imports,
    unused_macros,
    clippy::panic,
    reason = "a unit test uses only a part of it"
)]
mod skip;
mod stall;
mod state_dir;
mod sys;
mod table;

pub use cli::{args::Arguments, main};
