//! When which image is defragmented, and why another is not. Pure: what is to be known of the
//! images and of the host is given, and nothing is done.
//!
//! - [`calendar`]: when it is allowed
//! - [`policy`]: what the operator wants
//! - [`facts`]: all that a plan depends on beside that
//! - [`estimate`]: how long a run takes, judged by past ones
//! - [`reason`]: why an image is left alone, in words
//! - [`planner`]: from all of these to a verdict on every image

pub mod calendar;
pub mod estimate;
pub mod facts;
pub mod gather;
pub mod planner;
pub mod policy;
pub mod reason;

pub use calendar::{Calendar, Host, Opening};
pub use estimate::{Basis, Paces, PastRun};
pub use facts::{Active, Allowed, Came, Facts, FilesystemFacts, ImageFacts, LastRun, User};
pub use planner::{Plan, Planned, Run, Verdict, plan};
pub use policy::Policy;
pub use reason::Reason;
