//! Which files are VM images: configured paths, globs, directories in depth, and what makes a file
//! an image.
//!
//! [`mounts`] decides whose file system a path belongs to without touching it; [`paths`] follows a
//! configured path to real files and directories; [`walk`] searches a directory; [`rules`] and
//! [`mod@format`] say what is an image. All of these but the first run in the worker of their file
//! system. [`owner`] finds out which VM has which image open, and asks procfs only;
//! [`watch`] reports names that appear and vanish.

mod command_lines;
pub mod format;
pub mod mounts;
pub mod owner;
pub mod paths;
pub mod rules;
mod vm;
pub mod walk;
pub mod watch;
