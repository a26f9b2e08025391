//! The records of the history. Pure data; a record is written as a whole or not at all.

use crate::model::{
    Bytes, ExtentCount, ExtentMap, Format, ImageRef, Outcome, RunRecord, Severity, Trigger,
    UnixTime,
};

/// A record of the history.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// All images were counted.
    Sweep(Sweep),
    /// An extent map was read.
    Map(MapRow),
    /// The severity of an image changed.
    Severity(SeverityRow),
    /// A defragmentation ended.
    Run(RunRecord),
    /// An incident began, went on or ended.
    Incident(IncidentRow),
}

impl Record {
    /// The number of rows, which bounds the queue.
    pub fn weight(&self) -> usize {
        match self {
            Record::Sweep(sweep) => sweep.images.len().max(1),
            _ => 1,
        }
    }
}

/// One pass over all images, recorded with one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sweep {
    /// The end, by the wall clock, which may have been set back since the sweep before.
    pub at: UnixTime,
    /// The counts. The history has a gap for an image that is missing here.
    pub images: Vec<SampleRow>,
}

/// One image in a sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleRow {
    /// The image.
    pub image: ImageRef,
    /// The image format.
    pub format: Format,
    /// The number of extents.
    pub extents: ExtentCount,
    /// The file size.
    pub size: Bytes,
    /// The space allocated on disk.
    pub allocated: Bytes,
}

/// One reading of an extent map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapRow {
    /// The image.
    pub image: ImageRef,
    /// When the map was read.
    pub at: UnixTime,
    /// The map.
    pub map: ExtentMap,
}

/// A change of severity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeverityRow {
    /// The image.
    pub image: ImageRef,
    /// When the severity changed.
    pub at: UnixTime,
    /// The severity before.
    pub from: Severity,
    /// The severity since.
    pub to: Severity,
    /// The extents at that time.
    pub extents: ExtentCount,
    /// The threshold that decided, as text: `the threshold is 500,000 extents`.
    pub reason: String,
}

/// An incident so far. A later record of the same name replaces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncidentRow {
    /// The name of its file without `.json`: `20261120T120305.123Z-1`.
    pub name: String,
    /// When it began.
    pub at: UnixTime,
    /// When it ended; `None` if it has not.
    pub ended: Option<UnixTime>,
    /// The cause of the incident.
    pub trigger: Option<Trigger>,
    /// Number of rescue actions.
    pub actions: u32,
    /// The outcome of the last action.
    pub outcome: Option<Outcome>,
    /// Slab memory that was freed.
    pub freed: Bytes,
}
