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
//! - [`incident`]: what happened, kept for later
//! - [`stall`]: the trigger for kernels that print no such line
//! - [`serve`]: metrics and their page
//! - [`state_dir`]: where all of them keep their state, [`durable`]: how a file is replaced, and
//!   [`background`]: a queue with a thread for work that may hang
//! - [`table`]: text tables
//! - [`daemon`]: `fragwatch run`, which wires it all

mod assess;
mod background;
mod cli;
mod config;
mod daemon;
mod defrag;
mod discover;
mod durable;
mod growth;
mod history;
mod hook;
mod incident;
pub mod internals;
mod klog;
mod maintenance;
mod model;
mod probe;
mod rescue;
mod serve;
mod stall;
mod state_dir;
mod sys;
mod table;

pub use cli::{args::Arguments, main};
