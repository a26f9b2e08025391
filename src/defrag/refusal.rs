//! Reasons why a run is not allowed to begin.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::path::shown;
use crate::model::{
    Bytes, ExtentCount, NamedProcess, Obstacle, ReasonCode, RunOutcome, Share, Stop,
};
use crate::probe::reason;

/// The reason for which a guard refuses a run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("its path is not absolute and without ..")]
    NotAbsolute,
    #[error("{} is a symbolic link: name the image by its real path", shown(.0))]
    Link(PathBuf),
    #[error("{0}")]
    Unreadable(String),
    #[error("{0}")]
    NotAFile(String),
    /// A mount covers it, or it was renamed.
    #[error("the kernel knows it as {}", shown(.0))]
    Elsewhere(PathBuf),
    #[error("lies on {0}, and only XFS is defragmented")]
    NotXfs(String),
    #[error("its file system is mounted read-only")]
    ReadOnly,
    #[error("another run is at work on its file system")]
    OtherRun,
    #[error("{0}")]
    Forbidden(Obstacle),
    #[error("in use by {}", user(.0.as_ref()))]
    InUse(Option<NamedProcess>),
    /// Possibly a QEMU on another host.
    #[error("a QEMU has locked it")]
    QemuLock,
    #[error("the kernel does not say whether somebody has it open: run as root, with CAP_LEASE")]
    UseUnknown,
    /// The image is modified repeatedly.
    #[error("it was modified a moment ago")]
    Changing,
    #[error("shares blocks with a reflink copy, which would take twice the space")]
    Shared,
    #[error("its map of {0} extents takes longer than a minute to read")]
    MapTooLong(ExtentCount),
    #[error("already near its ideal: {}", counted(*.0))]
    NearIdeal(ExtentCount),
    /// Holes, sharing or unwritten parts keep its extents apart.
    #[error("{0}")]
    LittleGain(String),
    /// `keeps` is what must stay free, in bytes and as a share.
    #[error(
        "not enough free space: needs {needs}, has {free}, keeps {} ({})",
        .keeps.0, .keeps.1
    )]
    NoSpace {
        needs: Bytes,
        free: Bytes,
        keeps: (Bytes, Share),
    },
    #[error(
        "the final swap would stall readers for about {:.1} s, and \
         defrag.max_swap_stall is {:.1} s",
        .stall.as_secs_f32(), .most.as_secs_f32()
    )]
    SwapStall { stall: Duration, most: Duration },
    /// `is` and `most` are in percent.
    #[error("I/O pressure too high: {is:.1} %, and defrag.max_io_pressure is {most}")]
    Pressure { is: f32, most: u32 },
    #[error("its XFS was made without reflink: use xfs_fsr, or copy the image to one with it")]
    NoReflink,
    #[error(
        "its file system is more than 95 % full: what is free is in pieces by then, and \
         moving blocks makes smaller ones of them"
    )]
    TooFull,
    #[error("{0}")]
    Kernel(String),
    #[error(
        "who opens it could not be held meanwhile (fanotify: {0}): \
         run as root, with CAP_SYS_ADMIN"
    )]
    NoGate(String),
    #[error("xfs_fsr is not installed: it comes with xfsprogs, or xfsdump on RHEL")]
    NoEngine,
}

fn user(process: Option<&NamedProcess>) -> String {
    process.map_or_else(
        || {
            "somebody that /proc does not show: a loop device, the NFS server, \
             or a process in another namespace"
                .to_owned()
        },
        ToString::to_string,
    )
}

fn counted(extents: ExtentCount) -> String {
    let plural = if extents.0 == 1 { "" } else { "s" };
    format!("{extents} extent{plural}")
}

impl Refusal {
    /// The reason as one word, for programs.
    pub fn code(&self) -> ReasonCode {
        match self {
            Refusal::NotAbsolute => ReasonCode::NotAbsolute,
            Refusal::Link(_) => ReasonCode::Link,
            Refusal::Unreadable(_) => ReasonCode::Unreadable,
            Refusal::NotAFile(_) => ReasonCode::NotAFile,
            Refusal::Elsewhere(_) => ReasonCode::Elsewhere,
            Refusal::NotXfs(_) => ReasonCode::NotXfs,
            Refusal::ReadOnly => ReasonCode::ReadOnly,
            Refusal::OtherRun => ReasonCode::OtherRun,
            Refusal::Forbidden(obstacle) => obstacle.code(),
            Refusal::InUse(_) => ReasonCode::InUse,
            Refusal::QemuLock => ReasonCode::QemuLock,
            Refusal::UseUnknown => ReasonCode::UseUnknown,
            Refusal::Changing => ReasonCode::Changing,
            Refusal::Shared => ReasonCode::SharesBlocks,
            Refusal::MapTooLong(_) => ReasonCode::MapTooLong,
            Refusal::NearIdeal(_) => ReasonCode::NearIdeal,
            Refusal::LittleGain(_) => ReasonCode::LittleGain,
            Refusal::NoSpace { .. } => ReasonCode::NoSpace,
            Refusal::SwapStall { .. } => ReasonCode::SwapStall,
            Refusal::Pressure { .. } => ReasonCode::IoPressure,
            Refusal::NoReflink => ReasonCode::NoReflink,
            Refusal::TooFull => ReasonCode::AlmostFull,
            Refusal::Kernel(_) => ReasonCode::Kernel,
            Refusal::NoGate(_) => ReasonCode::NoGate,
            Refusal::NoEngine => ReasonCode::NoXfsFsr,
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Unreadable(reason(&error))
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(error: rustix::io::Errno) -> Refusal {
        io::Error::from(error).into()
    }
}

/// Why a run ends before its engine starts.
#[derive(Debug)]
pub enum Halt {
    /// A guard refused it.
    Refused(Refusal),
    /// It was stopped during the guard checks.
    Stopped(Stop),
}

impl From<Refusal> for Halt {
    fn from(refusal: Refusal) -> Halt {
        Halt::Refused(refusal)
    }
}

impl From<io::Error> for Halt {
    fn from(error: io::Error) -> Halt {
        Halt::Refused(error.into())
    }
}

impl From<Halt> for RunOutcome {
    fn from(halt: Halt) -> RunOutcome {
        match halt {
            Halt::Stopped(why) => RunOutcome::Stopped { why },
            Halt::Refused(refusal) => RunOutcome::Refused {
                guard: refusal.code(),
                reason: refusal.to_string(),
            },
        }
    }
}
