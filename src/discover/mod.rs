//! Which files are VM images: configured paths, globs, directories in depth, and what makes a file
//! an image.
//!
//! [`mounts`] decides whose file system a path belongs to without touching it; [`paths`] follows a
//! configured path to real files and directories; [`walk`] searches a directory; [`rules`] and
//! [`mod@format`] say what is an image. All but the first run in the worker of their file system.

pub mod format;
pub mod mounts;
pub mod paths;
pub mod rules;
pub mod walk;
