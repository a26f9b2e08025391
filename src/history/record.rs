//! The records that the rest of the program gives to the history.
//!
//! Pure data. A record is written whole or not at all.

use crate::model::{
    Bytes, ExtentCount, ExtentMap, Format, ImageRef, Outcome, RunRecord, Severity, Trigger,
    UnixTime,
};

/// Something to remember.
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
    /// How many rows it makes: what the queue is measured by.
    pub fn weight(&self) -> usize {
        match self {
            Record::Sweep(sweep) => sweep.images.len().max(1),
            _ => 1,
        }
    }
}

/// One pass over all images. All that were counted in it have its time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sweep {
    /// When it ended, by the wall clock, which may have been set back since the one before.
    pub at: UnixTime,
    /// What was counted. An image that is missing here was not: the history shows a gap.
    pub images: Vec<SampleRow>,
}

/// One image in a sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleRow {
    /// Which image.
    pub image: ImageRef,
    /// What it is.
    pub format: Format,
    /// Records of its extent map.
    pub extents: ExtentCount,
    /// Its length as a file.
    pub size: Bytes,
    /// What it occupies on disk.
    pub allocated: Bytes,
}

/// One reading of an extent map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapRow {
    /// Of which image.
    pub image: ImageRef,
    /// When.
    pub at: UnixTime,
    /// What was read.
    pub map: ExtentMap,
}

/// A change of severity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeverityRow {
    /// Of which image.
    pub image: ImageRef,
    /// When.
    pub at: UnixTime,
    /// How bad it was before.
    pub from: Severity,
    /// How bad it is now.
    pub to: Severity,
    /// Its extents then.
    pub extents: ExtentCount,
    /// Which threshold decided, for a person: `extents 612,000 of 500,000`.
    pub reason: String,
}

/// An incident, as far as it is known. A later record of the same name takes its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncidentRow {
    /// The name of its file without `.json`: `20261120T120305.123Z-1`.
    pub name: String,
    /// When it began.
    pub at: UnixTime,
    /// When it ended; nothing while it goes on.
    pub ended: Option<UnixTime>,
    /// What made it begin.
    pub trigger: Option<Trigger>,
    /// Actions of the rescue.
    pub actions: u32,
    /// How the last of them came out.
    pub outcome: Option<Outcome>,
    /// Slab memory that was freed.
    pub freed: Bytes,
}
