//! Resolves a configured path: follows symbolic links and expands globs.
//!
//! Runs in the worker of one file system and accesses no other: a path that leads to another file
//! system is returned, to be resolved there.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use globset::GlobSet;

use super::mounts::FilesystemScope;
use crate::model::globs::{compile_globs, is_glob};

/// Maximum number of links to follow before ELOOP (`MAXSYMLINKS`, path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// Maximum number of directories that one glob may read; stops `/**`, but no sensible pattern.
const MAX_GLOB_DIRECTORIES: u32 = 100_000;

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
pub enum Followed {
    /// To this path, free of links, on the worker's file system.
    Here(PathBuf),
    /// To another file system, to be resolved there; may still contain links and globs.
    Elsewhere(PathBuf),
}

/// The part of a glob before its first component with a wildcard, where the search begins.
pub fn literal_part(path: &Path) -> PathBuf {
    path.components()
        .take_while(|component| !is_glob(component))
        .collect()
}

/// Resolves all symbolic links in an absolute path, as far as the file system extends.
///
/// # Errors
/// ELOOP, ENOENT, EACCES and any other error of lstat(2) or readlink(2).
pub fn follow(path: &Path, scope: &FilesystemScope) -> io::Result<Followed> {
    let mut todo: VecDeque<OsString> = names(path);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let rest = || todo.iter().fold(next.clone(), |path, name| path.join(name));
        // Directories above our mount point are not accessed: mount points contain no links.
        if !scope.is_here(&next) {
            if !scope.is_here(&rest()) {
                return Ok(Followed::Elsewhere(rest()));
            }
            at = next;
            continue;
        }
        if !fs::symlink_metadata(&next)?.is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let target = fs::read_link(&next)?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        for name in names(&target).into_iter().rev() {
            todo.push_front(name);
        }
    }
    Ok(Followed::Here(at))
}

fn names(path: &Path) -> VecDeque<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    };
    path.components().filter_map(name).collect()
}

/// The result of expanding a glob.
#[derive(Debug, Default)]
pub struct Expanded {
    /// Matching files and directories, and paths on other file systems that may still be globs.
    pub found: Vec<Followed>,
    /// Directories that could not be read, and patterns that could not be followed or compiled.
    pub faults: Vec<(PathBuf, io::Error)>,
}

/// Expands an absolute glob component by component, as a shell does: `*` matches within one name (a
/// leading dot only if the pattern has one), `**` any number of directories. `before` is called
/// with each directory before it is listed.
pub fn expand(pattern: &Path, scope: &FilesystemScope, before: &mut dyn FnMut(&Path)) -> Expanded {
    let mut search = GlobSearch {
        scope,
        before,
        budget: MAX_GLOB_DIRECTORIES,
        result: Expanded::default(),
    };
    let components: Vec<OsString> = names(pattern).into();
    search.descend(Path::new("/"), &components);
    search.result
}

struct GlobSearch<'a> {
    scope: &'a FilesystemScope,
    before: &'a mut dyn FnMut(&Path),
    budget: u32,
    result: Expanded,
}

impl GlobSearch<'_> {
    fn descend(&mut self, at: &Path, components: &[OsString]) {
        let literal = components.iter().take_while(|name| !is_glob(name)).count();
        let (names, rest) = components.split_at(literal);
        let base = names
            .iter()
            .fold(at.to_owned(), |path, name| path.join(name));
        let here = match follow(&base, self.scope) {
            Ok(Followed::Here(here)) => here,
            Ok(Followed::Elsewhere(path)) => {
                let path = rest.iter().fold(path, |path, name| path.join(name));
                self.result.found.push(Followed::Elsewhere(path));
                return;
            }
            // After a wildcard, a missing name is no match; the literal part before it must exist.
            Err(error) if error.kind() == io::ErrorKind::NotFound && at != Path::new("/") => return,
            Err(error) => return self.result.faults.push((base, error)),
        };
        match rest.split_first() {
            None => self.result.found.push(Followed::Here(here)),
            Some((wildcard, rest)) => self.wildcard(&here, wildcard, rest),
        }
    }

    fn wildcard(&mut self, at: &Path, wildcard: &OsStr, rest: &[OsString]) {
        if wildcard == "**" {
            self.descend(at, rest);
        }
        let matcher = match self.matcher(wildcard) {
            Ok(matcher) => matcher,
            Err(error) => return self.result.faults.push((at.join(wildcard), error)),
        };
        for (name, is_directory) in self.list(at) {
            let hidden =
                name.as_bytes().starts_with(b".") && !wildcard.as_bytes().starts_with(b".");
            if hidden || !matcher.is_match(Path::new(&name)) {
                continue;
            }
            let path = at.join(&name);
            if !self.scope.is_here(&path) {
                let mut tail = rest.to_vec();
                if wildcard == "**" {
                    tail.insert(0, wildcard.to_owned());
                }
                let path = tail.iter().fold(path, |path, name| path.join(name));
                self.result.found.push(Followed::Elsewhere(path));
            } else if wildcard == "**" {
                if is_directory {
                    self.wildcard(&path, wildcard, rest);
                }
            } else {
                self.descend(&path, rest);
            }
        }
    }

    fn matcher(&self, wildcard: &OsStr) -> io::Result<GlobSet> {
        let text = wildcard.to_str().ok_or(io::ErrorKind::InvalidInput)?;
        let text = if text == "**" { "*" } else { text };
        compile_globs([text]).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
    }

    /// The sorted names in a directory, and whether each is itself a directory (not a link to one).
    fn list(&mut self, at: &Path) -> Vec<(OsString, bool)> {
        (self.before)(at);
        let Some(budget) = self.budget.checked_sub(1) else {
            let error = io::Error::other(
                "the pattern looks into too many directories; write a narrower one",
            );
            self.result.faults.push((at.to_owned(), error));
            return Vec::new();
        };
        self.budget = budget;
        let entries = match fs::read_dir(at) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Vec::new(),
            Err(error) => {
                self.result.faults.push((at.to_owned(), error));
                return Vec::new();
            }
        };
        let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        let mut names: Vec<_> = entries
            .flatten()
            .map(|entry| (entry.file_name(), is_directory(&entry)))
            .collect();
        names.sort_unstable();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Files below a temporary directory, in which `foreign` counts as another file system.
    struct Tree {
        root: tempfile::TempDir,
        scope: FilesystemScope,
    }

    impl Tree {
        fn new(files: &[&str]) -> Self {
            let root = tempfile::tempdir().unwrap();
            let here = root.path().canonicalize().unwrap();
            for file in files {
                let path = here.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            let foreign = here.join("foreign");
            let mounts = [("/", 1), (foreign.to_str().unwrap(), 2)];
            Tree {
                root,
                scope: crate::discover::mounts::scope(&mounts, 1),
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.path().canonicalize().unwrap().join(name)
        }

        fn expand(&self, pattern: &str) -> Vec<String> {
            let expanded = expand(&self.path(pattern), &self.scope, &mut |_| ());
            assert!(expanded.faults.is_empty(), "{:?}", expanded.faults);
            let root = self.path("");
            let name = |followed| match followed {
                Followed::Here(path) => path.strip_prefix(&root).unwrap().display().to_string(),
                Followed::Elsewhere(path) => {
                    format!("-> {}", path.strip_prefix(&root).unwrap().display())
                }
            };
            let mut found: Vec<_> = expanded.found.into_iter().map(name).collect();
            found.sort_unstable();
            found
        }
    }

    #[test]
    fn links_are_followed_in_every_part() {
        let tree = Tree::new(&["real/dir/a.raw"]);
        symlink("real", tree.path("link")).unwrap();
        symlink(tree.path("link/dir"), tree.path("absolute")).unwrap();
        symlink("../dir/a.raw", tree.path("real/dir/back")).unwrap();
        for path in [
            "real/dir/a.raw",
            "link/dir/a.raw",
            "absolute/a.raw",
            "absolute/back",
            "link/../real/dir/a.raw",
        ] {
            let followed = follow(&tree.path(path), &tree.scope).unwrap();
            assert_eq!(
                followed,
                Followed::Here(tree.path("real/dir/a.raw")),
                "{path}"
            );
        }
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let tree = Tree::new(&[]);
        symlink("b", tree.path("a")).unwrap();
        symlink("a", tree.path("b")).unwrap();
        let error = follow(&tree.path("a"), &tree.scope).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        let error = follow(&tree.path("c"), &tree.scope).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn foreign_file_systems_are_not_touched() {
        let tree = Tree::new(&["x"]);
        // Nothing of that name exists: touching it would be an error.
        symlink("foreign/deep", tree.path("link")).unwrap();
        let followed = follow(&tree.path("link/a/b"), &tree.scope).unwrap();
        assert_eq!(followed, Followed::Elsewhere(tree.path("foreign/deep/a/b")));
        assert_eq!(tree.expand("link/*.raw"), ["-> foreign/deep/*.raw"]);
    }

    #[test]
    fn globs_expand_as_in_a_shell() {
        let tree = Tree::new(&[
            "vm1/a.raw",
            "vm1/b.raw",
            "vm1/.c.raw",
            "vm2/deep/a.raw",
            "vm2/x",
            "foreign/y",
        ]);
        assert_eq!(tree.expand("vm*/a.raw"), ["vm1/a.raw"]);
        assert_eq!(tree.expand("vm1/*.raw"), ["vm1/a.raw", "vm1/b.raw"]);
        assert_eq!(tree.expand("vm1/.*.raw"), ["vm1/.c.raw"]);
        assert_eq!(tree.expand("vm{1,2}"), ["vm1", "vm2"]);
        assert_eq!(tree.expand("vm[2-9]/*"), ["vm2/deep", "vm2/x"]);
        assert_eq!(
            tree.expand("**/a.raw"),
            ["-> foreign/**/a.raw", "vm1/a.raw", "vm2/deep/a.raw"]
        );
        assert_eq!(tree.expand("none*/x"), [""; 0]);
    }
}
