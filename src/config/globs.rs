//! Globs as the configuration means them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Whether a path of [`Images::paths`](super::settings::Images::paths) is a glob rather than the
/// name of a file or directory.
#[must_use]
pub fn is_glob(path: impl AsRef<OsStr>) -> bool {
    path.as_ref()
        .as_bytes()
        .iter()
        .any(|byte| b"*?[{".contains(byte))
}

/// Compiles globs the way that the configuration means them: `*` and `?` match no `/`, `**`
/// matches any number of directories.
///
/// # Errors
/// If one of them is no glob, or all together are too large. Those of valid settings are fine.
pub fn compile_globs<'g>(
    globs: impl IntoIterator<Item = &'g str>,
) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        set.add(GlobBuilder::new(glob).literal_separator(true).build()?);
    }
    set.build()
}

/// Globs with a `/` speak of the whole path, the others of the file name.
#[derive(Debug, Default)]
pub struct Globs {
    paths: GlobSet,
    names: GlobSet,
}

impl Globs {
    /// Compiles them.
    ///
    /// # Errors
    /// Those of [`compile_globs`].
    pub fn new(patterns: &[String]) -> Result<Self, globset::Error> {
        let (paths, names): (Vec<_>, Vec<_>) = patterns
            .iter()
            .map(String::as_str)
            .partition(|pattern| pattern.contains('/'));
        Ok(Globs {
            paths: compile_globs(paths)?,
            names: compile_globs(names)?,
        })
    }

    /// Whether one of them speaks of this path.
    #[must_use]
    pub fn matches(&self, path: &Path) -> bool {
        self.paths.is_match(path)
            || path
                .file_name()
                .is_some_and(|name| self.names.is_match(name))
    }
}
