//! fragwatch watches the extent fragmentation of VM disk images on KVM hypervisors.
//!
//! ```text
//! discover ─► probe ─► assess ─► serve
//!    which files are images, how many extents each has, how bad that is, and who is told
//! ```
//!
//! The law that shapes it: **a probe that hangs takes nothing with it.** Every call that touches
//! a file system of images is made by that file system's own helper process, with a deadline and
//! one call at a time ([`probe`]); all else reads what the helpers have told.
//!
//! - [`cli`]: the command line, one file a subcommand
//! - [`config`]: the configuration file, and what is wrong with it
//! - [`model`]: the words: image, extent, extent map, file system (pure)
//! - [`sys`]: the kernel's interfaces, and the only unsafe code
//! - [`discover`]: which files are VM images
//! - [`probe`]: counting them, and surviving when that hangs
//! - [`assess`]: how bad it is (pure)
//! - [`growth`]: how fast images gain extents, and when they have too many (pure)
//! - [`history`]: what was counted and done, in a database that nobody waits for
//! - [`hook`]: the operator's commands, run so that nobody waits for them
//! - [`maintenance`]: when which image is defragmented, and why another is not (pure)
//! - [`defrag`]: taking the fragmentation away, without losing a write
//! - [`klog`]: the kernel's log, and which of its lines matter
//! - [`rescue`]: from such a line to free memory
//! - [`stall`]: the trigger for kernels that print no such line
//! - [`serve`]: metrics and their page
//! - [`state_dir`]: where all of them keep their state, and [`durable`]: how a file is replaced
//! - [`daemon`]: `fragwatch run`, which wires it all

pub(crate) mod assess;
pub(crate) mod cli;
pub(crate) mod config;
pub(crate) mod daemon;
pub(crate) mod defrag;
pub(crate) mod discover;
pub(crate) mod durable;
pub(crate) mod growth;
pub(crate) mod history;
pub(crate) mod hook;
pub mod internals;
pub(crate) mod klog;
pub(crate) mod maintenance;
pub(crate) mod model;
pub(crate) mod probe;
pub(crate) mod rescue;
pub(crate) mod serve;
pub(crate) mod stall;
pub(crate) mod state_dir;
pub(crate) mod sys;

pub use cli::{args::Arguments, main};
