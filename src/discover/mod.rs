//! Finds VM images: resolves configured paths and globs, searches directories, recognises images.
//!
//! [`mounts`] determines the file system of a path without accessing it; [`paths`] resolves a
//! configured path to files and directories; [`walk`] searches a directory; [`rules`] and
//! [`mod@format`] decide what is an image. All but the first run in the worker of their file
//! system. [`owner`] determines from procfs alone which VM has which image open; [`watch`] reports
//! names that appear and disappear.

mod command_lines;
pub mod format;
pub mod mounts;
pub mod owner;
pub mod paths;
pub mod rules;
mod vm;
pub mod walk;
pub mod watch;
