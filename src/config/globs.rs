//! Globs as the configuration means them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Whether a path of [`Images::paths`](super::settings::Images::paths) is a glob rather than the
/// name of a file or directory.
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
    pub fn matches(&self, path: &Path) -> bool {
        self.paths.is_match(path)
            || path
                .file_name()
                .is_some_and(|name| self.names.is_match(name))
    }
}

/// Several lists of globs, asked all at once.
#[derive(Debug, Default)]
pub struct GlobLists {
    paths: Vec<Part>,
    names: Vec<Part>,
}

/// Globs that are compiled together, and the list that each belongs to.
#[derive(Debug)]
struct Part {
    globs: GlobSet,
    lists: Vec<usize>,
}

impl GlobLists {
    /// Compiles them. What is no glob matches nothing.
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

    /// The lists of which a glob speaks of this path, by their numbers, in their order.
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

/// In one part, unless that is too large for the compiler of regular expressions.
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
