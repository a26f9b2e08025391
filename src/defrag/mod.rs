//! Defragmentation, with two engines. What they share is in [`engine`].
//!
//! ```text
//! guard ─► gate raised ─► guard, the rest ─► fsr: xfs_fsr works, run (pure) stops it
//!                             │                    │ meter (pure), pressure, disks
//!                             └── refusal          └► gate opened ─► extents counted ─► outcome
//! ```
//!
//! Neither status nor output of xfs_fsr are reliable: the status is 0 whatever happened, and the text
//! is wrong in some versions. The outcome of a run is by our own counts. The contents of an image are
//! written by xfs_fsr and the kernel alone.
//!
//! An image that a VM is using goes to the engine [`online`]: the kernel itself moves its blocks, a
//! segment at a time.
//!
//! ```text
//! guard ─► survey ─► segments (pure) ─► mover: clone, unshare, release ─► extents counted ─► outcome
//!                        ▲ governor (pure): how much at once │
//!                        └── run (pure): holds, stops ───────┘         hint: restored, also later
//! ```
//!
//! A run makes calls that hang with the file system, so it runs in a process of its own, such as that
//! of `fragwatch defrag`, and not in the daemon.

pub mod awake;
mod disks;
pub mod engine;
pub mod fsr;
pub mod gate;
pub mod governor;
pub mod guard;
pub mod hint;
mod holders;
pub mod job;
pub mod kernels;
pub mod leftovers;
mod messages;
pub mod meter;
pub mod mover;
pub mod online;
pub mod pressure;
pub mod refusal;
pub mod run;
pub mod segments;
pub mod usable;

use std::path::PathBuf;

/// The interfaces of the host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// Where sysfs is mounted.
    pub sys: PathBuf,
    /// Where the [hints](hint) of running jobs are recorded.
    pub hints: PathBuf,
    /// Whether its kernel is checked.
    pub kernel: KernelCheck,
}

/// Whether the kernel must be proven good for an engine; see [`kernels`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KernelCheck {
    /// It must.
    #[default]
    Judge,
    /// It need not: for tests on bad kernels.
    Overridden,
}

impl Host {
    /// This host.
    pub fn new(hints: PathBuf) -> Host {
        Host {
            proc: PathBuf::from("/proc"),
            sys: PathBuf::from("/sys"),
            hints,
            kernel: KernelCheck::default(),
        }
    }

    /// This host, for callers that change no hint.
    pub fn to_look_at() -> Host {
        Host::new(PathBuf::new())
    }
}
