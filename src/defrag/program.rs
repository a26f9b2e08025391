//! Finds the programs that engines run.

use std::path::PathBuf;

/// Directories missing from PATH for many users.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The absolute path of an installed program.
pub(super) fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM.into_iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_absolute() && file.is_file())
}
