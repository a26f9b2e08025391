//! Decides which image is defragmented when, and why others are not. Pure: all facts are passed in.
//!
//! - [`calendar`]: when runs are allowed
//! - [`facts`]: all other input of a plan; [`gather`] collects it
//! - [`speed`]: the speed of past runs
//! - [`estimate`]: the duration of a run, based on that speed
//! - [`reason`]: why an image is not defragmented
//! - [`planner`]: a decision on every image
//! - [`by_hand`]: what operators can do where no engine works

pub mod by_hand;
pub mod calendar;
pub mod estimate;
pub mod facts;
pub mod gather;
pub mod planner;
pub mod reason;
pub mod speed;

pub use calendar::{Calendar, JitterSeed, Opening};
pub use facts::{Active, Allowed, FilesystemFacts, ImageFacts, LastRun, PlanFacts, User};
pub use planner::{Decision, Plan, Planned, PlannedRun, passed_over, plan};
pub use speed::Speeds;
