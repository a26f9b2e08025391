//! Globs of images.

use std::ffi::OsStr;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Whether an entry of [`Images::paths`](crate::config::settings::Images::paths) is a glob, not a path.
pub fn is_glob(path: impl AsRef<OsStr>) -> bool {
    let bytes = path.as_ref().as_encoded_bytes();
    bytes.iter().any(|byte| b"*?[{".contains(byte))
}

/// Whether a glob may match. With a slash it is matched against the whole path.
pub fn can_match(text: &str) -> bool {
    // A class or an alternative may begin with a slash.
    let is_path = text.starts_with(['/', '{', '[', '\\']) || text.starts_with("**");
    // Only the syntax: compiling is slow, and the list is compiled as a whole.
    let is_glob = GlobBuilder::new(text).build().is_ok();
    is_glob && !text.is_empty() && (is_path || !text.contains('/'))
}

/// Compiles globs: `*` and `?` do not match `/`, `**` matches any number of directories.
///
/// # Errors
/// If one of them is invalid, or all together are too large. The globs of valid settings compile.
pub fn compile_globs<'g>(
    globs: impl IntoIterator<Item = &'g str>,
) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        set.add(GlobBuilder::new(glob).literal_separator(true).build()?);
    }
    set.build()
}

/// Globs with a `/` are matched against the whole path, others against the file name.
#[derive(Debug, Default)]
pub struct Globs {
    paths: GlobSet,
    names: GlobSet,
}

impl Globs {
    /// Compiles `patterns`; fails as [`compile_globs`] does.
    pub fn new(patterns: &[String]) -> Result<Self, globset::Error> {
        let patterns = patterns.iter().map(String::as_str);
        let (paths, names): (Vec<_>, Vec<_>) = patterns.partition(|it| it.contains('/'));
        Ok(Globs {
            paths: compile_globs(paths)?,
            names: compile_globs(names)?,
        })
    }

    /// Whether any of the globs matches the path.
    pub fn matches(&self, path: &Path) -> bool {
        let has_name = |name| self.names.is_match(name);
        self.paths.is_match(path) || path.file_name().is_some_and(has_name)
    }
}
