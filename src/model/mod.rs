//! What fragwatch talks about: images, extents, extent maps, file systems.
//!
//! Pure data and arithmetic. Nothing here reads a file or a clock, so everything here can be
//! tested by value, and every other room may import it.

pub mod census;
pub mod defrag;
pub mod filesystem;
pub mod gain;
pub mod growth;
pub mod history;
pub mod image;
pub mod map;
pub mod memory;
pub mod owner;
pub mod path;
pub mod rescue;
pub mod severity;
pub mod time;
pub mod units;
pub mod utc;

pub use census::{Census, CensusFile};
pub use defrag::{
    Account, Engine, EngineState, RunOutcome, RunReport, Stop, Unusable, UnusableReason, Visitor,
    swap_stall, unknown_reason,
};
pub use filesystem::{DeviceNumber, Features, Filesystem, FilesystemKind};
pub use gain::{Between, Borders, Outlook};
pub use growth::{Forecast, Growth, Pace, Trend, Unknown};
pub use history::{ExtentsPerDay, ImageKey, Point, UnixTime};
pub use image::{Format, ImageId, Sample};
pub use map::{Extent, ExtentFlags, ExtentMap, MapBuilder};
pub use owner::{Opener, Owner, Vm};
pub use rescue::{
    IncidentId, Monotonic, Outcome, RescueStep, RuleAction, RuleDefinition, StuckTask, Trigger,
};
pub use severity::Severity;
pub use time::Roughly;
pub use units::{Bytes, BytesPerSecond, ExtentCount, Share};
