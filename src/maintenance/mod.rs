//! When which image is defragmented, and why another is not. Pure: what is to be known of the
//! images and of the host is given, and nothing is done.
//!
//! - [`calendar`]: when it is allowed
//! - [`policy`]: what the operator wants
//! - [`facts`]: all that a plan depends on beside that
//! - [`speed`]: how fast past runs were
//! - [`estimate`]: how long a run takes, judged by that
//! - [`reason`]: why an image is left alone, in words
//! - [`planner`]: from all of these to a decision on every image

pub mod calendar;
pub mod estimate;
pub mod facts;
pub mod gather;
pub mod planner;
pub mod policy;
pub mod reason;
pub mod speed;

pub use calendar::{Calendar, JitterSeed, Opening};
pub use estimate::Basis;
pub use facts::{Active, Allowed, FilesystemFacts, ImageFacts, LastRun, PlanFacts, User};
pub use planner::{Decision, Plan, Planned, PlannedRun, passed_over, plan};
pub use policy::Policy;
pub use reason::Reason;
pub use speed::Speeds;
