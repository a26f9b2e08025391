//! Taking the fragmentation away.
//!
//! ```text
//! guard ─► gate raised ─► guard, the rest ─► fsr: xfs_fsr works, run (pure) says when it stops
//!                             │                    │ meter (pure), pressure, disks
//!                             └── no, in words     └► gate opened ─► extents counted ─► outcome
//! ```
//!
//! xfs_fsr says nothing that can be relied on: its status is 0 whatever happened, and its text is
//! wrong in some versions. What came of a run is what our own counts say. The contents of an image
//! are touched by xfs_fsr and the kernel alone, never by us.
//!
//! An image that a VM is using goes to the engine [`online`] instead: the kernel itself moves its
//! blocks, a segment at a time.
//!
//! ```text
//! guard ─► survey ─► segments (pure) ─► mover: clone, unshare, let go ─► extents counted ─► outcome
//!                        ▲ governor (pure): how much at once │
//!                        └── run (pure): holds, stops ───────┘         hint: restored, also later
//! ```
//!
//! A run makes calls that hang with a sick file system. So it belongs into a process of its own,
//! such as that of `fragwatch defrag`; nothing here is to be called from the daemon's.

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
pub mod run;
pub mod segments;
pub mod usable;

use std::path::PathBuf;

/// Where the host shows itself.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// Where sysfs is mounted.
    pub sys: PathBuf,
    /// Where the [hints](hint) of images at work are noted.
    pub hints: PathBuf,
    /// Whether its kernel is judged.
    pub kernel: KernelCheck,
}

/// Whether the kernel must be proven good for an engine; see [`kernels`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KernelCheck {
    /// It must.
    #[default]
    Judge,
    /// It need not: a test that wants to see what a bad one does.
    Overridden,
}

impl Host {
    /// This one.
    #[must_use]
    pub fn new(hints: PathBuf) -> Host {
        Host {
            proc: PathBuf::from("/proc"),
            sys: PathBuf::from("/sys"),
            hints,
            kernel: KernelCheck::default(),
        }
    }

    /// This one, for what only looks and changes no hint.
    #[must_use]
    pub fn to_look_at() -> Host {
        Host::new(PathBuf::new())
    }
}
