//! Defragmentation with three engines, which share [`engine`]; its comment is how to add another.
//!
//! ```text
//! guard ─► gate raised ─► guard, the rest ─► fsr: xfs_fsr works, run (pure) stops it
//!                             │                    │ meter (pure), pressure, disks
//!                             └── refusal          └► gate opened ─► extents counted ─► outcome
//! ```
//!
//! The exit status and output of xfs_fsr are unreliable: the status is 0 in every case, and some
//! versions print wrong messages. The outcome is determined by our own extent counts. Image
//! contents are written only by xfs_fsr and the kernel.
//!
//! An image in use by a VM is left to the engine [`online`]: the kernel moves it in segments.
//!
//! ```text
//! guard ─► survey ─► segments (pure) ─► mover: clone, unshare, release ─► extents counted ─► outcome
//!                        ▲ governor (pure): how much at once │
//!                        └── run (pure): holds, stops ───────┘         hint: restored, also later
//! ```
//!
//! Where the kernel cannot do that, the engine [`blockcopy`] has libvirt copy the image of a running VM
//! to a new file.
//!
//! A run makes calls that can hang with the file system, so it runs in a separate process, such as
//! that of `fragwatch defrag`, not in the daemon.

pub mod awake;
pub mod blockcopy;
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
pub(crate) mod metadata;
pub mod meter;
pub mod mover;
pub mod notes;
pub mod online;
pub mod pressure;
mod program;
pub mod run;
pub mod segments;
pub mod usable;

use crate::sys::proc::ProcessId;
use std::path::PathBuf;

/// The interfaces of the host.
#[derive(Debug, Clone)]
pub struct HostInterfaces {
    /// Mount point of procfs.
    pub proc: PathBuf,
    /// Mount point of sysfs.
    pub sys: PathBuf,
    /// Directory in which the [hints](hint) of active runs are recorded.
    pub hints: PathBuf,
    /// The history, which `blockcopy` continues under the identity of the copy; empty if there is none.
    pub database: PathBuf,
    /// Whether the kernel is checked.
    pub kernel: KernelCheck,
    /// The process that holds the lock of `maintenance.lock`, if one is needed: the daemon or `fragwatch
    /// defrag`. `None` if it has ended.
    pub holder: Option<ProcessId>,
}

/// Whether an engine requires a kernel that is proven good; see [`kernels`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KernelCheck {
    /// Required.
    #[default]
    Judge,
    /// Not required: for tests on bad kernels.
    Overridden,
}

impl HostInterfaces {
    /// This host.
    pub fn new(hints: PathBuf) -> HostInterfaces {
        HostInterfaces {
            proc: PathBuf::from("/proc"),
            sys: PathBuf::from("/sys"),
            hints,
            database: PathBuf::new(),
            kernel: KernelCheck::default(),
            holder: ProcessId::of(std::process::id()),
        }
    }

    /// This host, for callers that change no hint.
    pub fn to_look_at() -> HostInterfaces {
        HostInterfaces::new(PathBuf::new())
    }
}
