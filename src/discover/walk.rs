//! Recursive search of a directory for files that could be images.
//!
//! Each step opens a name relative to an open directory, never by its full path, and follows no
//! symbolic link: a user who can write to a directory can change it during the search, but cannot
//! redirect the search out of it.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, fstat, openat, statat};

use super::mounts::FilesystemScope;
use super::rules::Rules;

/// Maximum nesting of directories: far deeper than any image store, and well within the stack.
const MAX_DEPTH: usize = 128;

/// Buffer size for directory entries, in bytes.
const ENTRIES: usize = 32 * 1024;

/// Receives what a walk finds.
pub trait Visitor {
    /// A regular file: its directory, its name there, its full path, and the inode number from the
    /// directory entry. `Break` ends the walk.
    fn file(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        inode: u64,
    ) -> ControlFlow<()>;
    /// A directory is about to be opened.
    fn directory(&mut self, _path: &Path) {}
    /// A directory is about to be listed; `_id` is its device and inode. `Break` ends the walk.
    fn listed(&mut self, _path: &Path, _id: (u64, u64)) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
    /// A mount point; what is mounted there is left to another walk.
    fn mount_point(&mut self, path: &Path);
    /// Something could not be read.
    fn fault(&mut self, path: &Path, error: &io::Error);
    /// Called between any two steps that could take long.
    fn beat(&mut self);
}

/// Searches the directory `path`: absolute, free of links and on the file system of `scope`.
pub fn walk(path: &Path, scope: &FilesystemScope, rules: &Rules, visitor: &mut dyn Visitor) {
    let mut walk = Walk {
        scope,
        rules,
        visitor,
        above: Vec::new(),
    };
    // The walk is over in either case, complete or broken off.
    let _ = match open_directory(rustix::fs::CWD, path.as_os_str()) {
        Ok(directory) => walk.enter(&directory, path),
        Err(error) => walk.fault(path, &error),
    };
}

fn open_directory(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // O_NOATIME keeps sweeps from updating access times; for owner and root only (open(2)).
    match openat(at, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(rustix::io::Errno::PERM) => Ok(openat(at, name, flags, Mode::empty())?),
        other => Ok(other?),
    }
}

struct Walk<'a> {
    scope: &'a FilesystemScope,
    rules: &'a Rules,
    visitor: &'a mut dyn Visitor,
    /// Device and inode of the ancestors, to detect cycles (in a faulty FUSE).
    above: Vec<(u64, u64)>,
}

impl Walk<'_> {
    fn enter(&mut self, directory: &OwnedFd, path: &Path) -> ControlFlow<()> {
        self.visitor.beat();
        let stat = match fstat(directory) {
            Ok(stat) => stat,
            Err(error) => return self.fault(path, &error.into()),
        };
        // Something was mounted here after the mount table was read; the next sweep handles it.
        if !self.scope.holds(directory, stat.st_dev) {
            return ControlFlow::Continue(());
        }
        let here = (stat.st_dev, stat.st_ino);
        if self.above.contains(&here) {
            let error = io::Error::other("the directory contains itself; not searched again");
            return self.fault(path, &error);
        }
        if self.above.len() >= MAX_DEPTH {
            let error = io::Error::other("nested too deep; not searched any further");
            return self.fault(path, &error);
        }
        self.above.push(here);
        self.visitor.listed(path, here)?;
        for name in self.files_then_directories(directory, path)? {
            self.descend(directory, &path.join(name))?;
        }
        self.above.pop();
        ControlFlow::Continue(())
    }

    /// Visits the files of a directory and returns the names of its subdirectories. They are
    /// entered after the directory has been read completely, so that only one buffer is in use.
    fn files_then_directories(
        &mut self,
        directory: &OwnedFd,
        path: &Path,
    ) -> ControlFlow<(), Vec<PathBuf>> {
        let mut buffer = vec![MaybeUninit::uninit(); ENTRIES];
        let mut entries = RawDir::new(directory, &mut buffer);
        let mut directories = Vec::new();
        let mount_points = self.scope.mounts.names_in(path);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.visitor.fault(path, &error.into());
                    break;
                }
            };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            self.visitor.beat();
            let whole = path.join(name);
            if mount_points.contains(&name) {
                self.visitor.mount_point(&whole);
                continue;
            }
            match self.kind(directory.as_fd(), name, entry.file_type(), &whole) {
                FileType::RegularFile => {
                    self.visitor
                        .file(directory.as_fd(), name, &whole, entry.ino())?;
                }
                FileType::Directory if self.rules.searches(&whole) => {
                    directories.push(PathBuf::from(name));
                }
                // Links, FIFOs, sockets and devices in a directory are not images.
                _ => {}
            }
        }
        ControlFlow::Continue(directories)
    }

    /// Some file systems (XFS without the ftype feature) omit the type from the directory entry.
    fn kind(
        &mut self,
        at: BorrowedFd<'_>,
        name: &OsStr,
        listed: FileType,
        path: &Path,
    ) -> FileType {
        if listed != FileType::Unknown {
            return listed;
        }
        match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(error) => {
                self.visitor.fault(path, &error.into());
                FileType::Unknown
            }
        }
    }

    fn descend(&mut self, parent: &OwnedFd, path: &Path) -> ControlFlow<()> {
        let Some(name) = path.file_name() else {
            return ControlFlow::Continue(());
        };
        self.visitor.directory(path);
        match open_directory(parent.as_fd(), name) {
            Ok(directory) => self.enter(&directory, path),
            // Removed or replaced by a link since it was listed.
            Err(error) => self.fault(path, &error),
        }
    }

    /// Reports a fault; it never ends a walk.
    fn fault(&mut self, path: &Path, error: &io::Error) -> ControlFlow<()> {
        self.visitor.fault(path, error);
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::mounts;
    use crate::discover::rules::Selection;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    #[derive(Default)]
    struct Seen {
        files: Vec<PathBuf>,
        points: Vec<PathBuf>,
        faults: Vec<(PathBuf, String)>,
    }

    impl Visitor for Seen {
        fn file(
            &mut self,
            _: BorrowedFd<'_>,
            name: &OsStr,
            path: &Path,
            inode: u64,
        ) -> ControlFlow<()> {
            assert_eq!(path.file_name(), Some(name));
            assert_eq!(fs::metadata(path).unwrap().ino(), inode);
            self.files.push(path.to_owned());
            ControlFlow::Continue(())
        }

        fn mount_point(&mut self, path: &Path) {
            self.points.push(path.to_owned());
        }

        fn fault(&mut self, path: &Path, error: &io::Error) {
            self.faults.push((path.to_owned(), error.to_string()));
        }

        fn beat(&mut self) {}
    }

    fn search(root: &Path, exclude: &[&str]) -> Seen {
        let selection = Selection {
            exclude: exclude.iter().map(|glob| (*glob).to_owned()).collect(),
            ..Selection::default()
        };
        let foreign = root.join("foreign");
        let scope = mounts::scope(&[("/", 1), (foreign.to_str().unwrap(), 2)], 1);
        let device = fs::metadata(root).map_or(0, |root| root.dev());
        let scope = scope.on_device(device);
        let mut seen = Seen::default();
        walk(root, &scope, &Rules::new(&selection).unwrap(), &mut seen);
        seen.files.sort();
        seen
    }

    #[test]
    fn regular_files_are_found_in_depth_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::create_dir_all(root.join("snapshots/d")).unwrap();
        fs::create_dir_all(root.join("foreign")).unwrap();
        for file in ["x.raw", "a/b/c/y.raw", "snapshots/d/z.raw", "foreign/w.raw"] {
            fs::write(root.join(file), "").unwrap();
        }
        symlink(root, root.join("a/loop")).unwrap();
        symlink(root.join("x.raw"), root.join("a/link.raw")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("a/fifo.raw"),
            FileType::Fifo,
            Mode::RWXU,
            0,
        )
        .unwrap();
        let seen = search(root, &["snapshots"]);
        assert_eq!(
            seen.files,
            ["a/b/c/y.raw", "x.raw"].map(|file| root.join(file))
        );
        assert_eq!(seen.points, [root.join("foreign")]);
        assert!(seen.faults.is_empty(), "{:?}", seen.faults);
    }

    #[test]
    fn a_deep_tree_ends() {
        let root = tempfile::tempdir().unwrap();
        let mut deep = root.path().to_owned();
        for _ in 0..200 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let seen = search(root.path(), &[]);
        assert_eq!(seen.faults.len(), 1);
        assert!(seen.faults[0].1.contains("nested too deep"));
    }

    #[test]
    fn a_missing_directory_is_one_fault() {
        let root = tempfile::tempdir().unwrap();
        let seen = search(&root.path().join("none"), &[]);
        assert_eq!(seen.faults.len(), 1);
    }
}
