//! Globs of the configuration.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Whether an entry of [`Images::paths`](super::settings::Images::paths) is a glob, not a path.
pub fn is_glob(path: impl AsRef<OsStr>) -> bool {
    path.as_ref()
        .as_bytes()
        .iter()
        .any(|byte| b"*?[{".contains(byte))
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
        let (paths, names): (Vec<_>, Vec<_>) = patterns
            .iter()
            .map(String::as_str)
            .partition(|pattern| pattern.contains('/'));
        Ok(Globs {
            paths: compile_globs(paths)?,
            names: compile_globs(names)?,
        })
    }

    /// Whether any of the globs matches the path.
    pub fn matches(&self, path: &Path) -> bool {
        self.paths.is_match(path)
            || path
                .file_name()
                .is_some_and(|name| self.names.is_match(name))
    }
}

/// Several lists of globs, matched all at once.
#[derive(Debug, Default)]
pub struct GlobLists {
    paths: Vec<Part>,
    names: Vec<Part>,
}

/// Globs compiled together, and the list of each.
#[derive(Debug)]
struct Part {
    globs: GlobSet,
    lists: Vec<usize>,
}

impl GlobLists {
    /// Compiles the lists. An invalid glob matches nothing.
    pub fn new<'g>(lists: impl IntoIterator<Item = &'g [String]>) -> GlobLists {
        let globs = lists.into_iter().enumerate();
        let globs =
            globs.flat_map(|(list, globs)| globs.iter().map(move |glob| (list, glob.as_str())));
        let (paths, names): (Vec<_>, Vec<_>) = globs.partition(|(_, glob)| glob.contains('/'));
        GlobLists {
            paths: compile_parts(&paths),
            names: compile_parts(&names),
        }
    }

    /// The numbers of the lists that match the path, in ascending order.
    pub fn matching(&self, path: &Path) -> Vec<usize> {
        let mut lists = Vec::new();
        let mut ask = |parts: &[Part], text: &Path| {
            for part in parts {
                let globs = part.globs.matches(text);
                lists.extend(globs.iter().filter_map(|glob| part.lists.get(*glob)));
            }
        };
        ask(&self.paths, path);
        if let Some(name) = path.file_name() {
            ask(&self.names, Path::new(name));
        }
        lists.sort_unstable();
        lists.dedup();
        lists
    }
}

/// Compiles the globs into one part, or into several if one is too large for the regex compiler.
fn compile_parts(globs: &[(usize, &str)]) -> Vec<Part> {
    match compile_globs(globs.iter().map(|(_, glob)| *glob)) {
        _ if globs.is_empty() => Vec::new(),
        Ok(set) => vec![Part {
            globs: set,
            lists: globs.iter().map(|(list, _)| *list).collect(),
        }],
        Err(_) if globs.len() == 1 => Vec::new(),
        Err(_) => {
            let (one, other) = globs.split_at(globs.len() / 2);
            let mut parts = compile_parts(one);
            parts.extend(compile_parts(other));
            parts
        }
    }
}
