//! What a run of the online engine reports, meanwhile and at its end.

use std::path::PathBuf;
use std::time::Duration;

use crate::defrag::governor::CallTimes;
use crate::defrag::pressure::WithoutIo;
use crate::defrag::run::Hold;
use crate::model::{Bytes, ExtentCount, RunReport};

/// A step of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The hint of an image whose run was killed was restored.
    HintRestored(PathBuf),
    /// The hint of such an image could not be restored.
    HintLost(PathBuf, String),
    /// The guards allow the run, and this can be gained.
    Cleared(Summary),
    /// There is I/O pressure that does not hold the run.
    WithoutIo(WithoutIo),
    /// Progress.
    Progress {
        /// Extents that were removed, or were gone already.
        done: ExtentCount,
        /// Segments so far.
        segments: u64,
        /// The longest call so far that locked the image.
        worst: Duration,
        /// The median of these calls.
        median: Duration,
        /// Why the run is held, if it is.
        held: Option<Hold>,
    },
}

/// What can be gained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Extents of the image.
    pub extents: ExtentCount,
    /// How many of these can go.
    pub gain: ExtentCount,
    /// What belongs to another file as well, and stays so.
    pub shared: Bytes,
}

/// How it was done.
#[derive(Debug, Clone, Default)]
pub struct Work {
    /// Segments that were moved.
    pub segments: u64,
    /// The calls that locked the image: a clone and an unsharing for each segment.
    pub calls: CallTimes,
    /// Time spent on segments.
    pub busy: Duration,
    /// What belongs to another file as well, and stayed so.
    pub shared: Bytes,
    /// Extents that were removed, by what the survey counted.
    pub joined: ExtentCount,
}

/// The result of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// What every engine reports.
    pub run: RunReport,
    /// What only this one does.
    pub work: Work,
}
