//! Selects among the files found: minimum size, include and exclude globs.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::model::Bytes;
use crate::model::globs::Globs;
use crate::model::image::KEPT_SUFFIX;

/// Which files the configuration selects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Globs. If there are any, exactly the files that match one are images, whatever their
    /// contents; otherwise every file that looks like a disk image is.
    pub include: Vec<String>,
    /// Globs of files and directories to skip.
    pub exclude: Vec<String>,
    /// Smaller files are skipped.
    pub min_size: Bytes,
}

/// A compiled [`Selection`].
#[derive(Debug)]
pub struct Rules {
    include: Option<Globs>,
    exclude: Globs,
    min_size: Bytes,
}

/// Whether a found file is an image, or why it is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileVerdict {
    /// An image, because it matches a glob.
    Image,
    /// An image if it looks like one.
    Look,
    /// Smaller than the minimum size.
    TooSmall,
    /// Excluded, or not included.
    Unwanted,
}

impl Rules {
    /// Compiles the globs. Fails at the first invalid one.
    pub fn new(selection: &Selection) -> Result<Self, globset::Error> {
        let include = (!selection.include.is_empty()).then(|| Globs::new(&selection.include));
        Ok(Rules {
            include: include.transpose()?,
            exclude: Globs::new(&selection.exclude)?,
            min_size: selection.min_size,
        })
    }

    /// Whether a directory is to be searched.
    pub fn searches(&self, directory: &Path) -> bool {
        !self.exclude.matches(directory)
    }

    /// How to treat a file.
    pub fn verdict(&self, path: &Path, size: Bytes) -> FileVerdict {
        let name = path.as_os_str().as_encoded_bytes();
        if self.exclude.matches(path) || name.ends_with(KEPT_SUFFIX.as_bytes()) {
            return FileVerdict::Unwanted;
        }
        match &self.include {
            Some(include) if !include.matches(path) => FileVerdict::Unwanted,
            _ if size < self.min_size => FileVerdict::TooSmall,
            Some(_) => FileVerdict::Image,
            None => FileVerdict::Look,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(include: &[&str], exclude: &[&str], path: &str, size: u64) -> FileVerdict {
        let strings = |patterns: &[&str]| patterns.iter().map(|p| (*p).to_owned()).collect();
        let selection = Selection {
            include: strings(include),
            exclude: strings(exclude),
            min_size: Bytes(100),
        };
        Rules::new(&selection)
            .unwrap()
            .verdict(Path::new(path), Bytes(size))
    }

    #[test]
    fn a_name_or_a_path_may_be_excluded() {
        assert_eq!(
            verdict(&[], &["*.iso"], "/srv/a.iso", 100),
            FileVerdict::Unwanted
        );
        assert_eq!(
            verdict(&[], &["*.iso"], "/srv/a.iso.raw", 100),
            FileVerdict::Look
        );
        assert_eq!(
            verdict(&["a.*"], &[], "/srv/a.raw.before-rewrite", 100),
            FileVerdict::Unwanted
        );
        assert_eq!(
            verdict(&[], &["/srv/old/**"], "/srv/old/x/a.raw", 100),
            FileVerdict::Unwanted
        );
        assert_eq!(
            verdict(&[], &["/srv/*.raw"], "/srv/old/a.raw", 100),
            FileVerdict::Look
        );
    }

    #[test]
    fn what_is_included_need_not_look_like_an_image() {
        assert_eq!(
            verdict(&["vm-*"], &[], "/srv/vm-1", 100),
            FileVerdict::Image
        );
        assert_eq!(
            verdict(&["vm-*"], &[], "/srv/vm-1", 99),
            FileVerdict::TooSmall
        );
        assert_eq!(
            verdict(&["vm-*"], &[], "/srv/a.raw", 100),
            FileVerdict::Unwanted
        );
        assert_eq!(
            verdict(&["vm-*"], &["*.bak"], "/srv/vm-1.bak", 100),
            FileVerdict::Unwanted
        );
    }

    #[test]
    fn small_files_are_no_images() {
        assert_eq!(verdict(&[], &[], "/srv/a.raw", 99), FileVerdict::TooSmall);
        assert_eq!(verdict(&[], &[], "/srv/a.raw", 100), FileVerdict::Look);
    }
}
