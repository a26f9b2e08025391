//! Data types and arithmetic, without files or clocks. Every other module may import them.

pub mod borders;
pub mod census;
pub mod defrag;
pub mod extent;
pub mod filesystem;
pub mod finding;
pub mod free_space;
pub mod gain;
pub mod globs;
pub mod growth;
pub mod history;
pub mod image;
pub mod map;
pub mod memory;
pub mod notation;
pub mod owner;
pub mod path;
pub mod reason;
pub mod rescue;
pub mod sampling;
pub mod severity;
pub mod time;
pub mod units;
pub mod utc;
pub(crate) mod words;

pub use borders::Borders;
pub use census::{Census, CensusFile};
pub use defrag::{
    Account, Effect, Engine, EngineState, GuestWrites, NamedProcess, OutcomeKind, RunForecast,
    RunOutcome, RunRecord, RunReport, SegmentWork, Stalls, Stop, Unusable, UnusableReason,
    swap_stall, unknown_reason,
};
pub use extent::{Extent, ExtentFlags};
pub use filesystem::{DeviceNumber, Features, Filesystem, FilesystemKind};
pub use finding::{CheckId, Diagnosis, Finding, Unchecked};
pub use free_space::{FreeSpace, Placement};
pub use gain::Outlook;
pub use growth::{Forecast, Growth, Pace, Trend, Unknown};
pub use history::{ExtentsPerDay, ImageKey, Point, UnixTime};
pub use image::{Format, ImageId, ImageRef, Qcow2, Sample};
pub use map::{ExtentMap, MapBuilder};
pub use owner::{Manager, Opener, Owner, Vm};
pub use reason::{ReasonCode, Refusal};
pub use rescue::{
    IncidentId, Monotonic, Outcome, RescueStep, RuleAction, RuleDefinition, StuckTask, Trigger,
};
pub use sampling::Between;
pub use severity::Severity;
pub use time::{Briefly, Roughly};
pub use units::{Bytes, BytesPerSecond, ExtentCount, Share};
