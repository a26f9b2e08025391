//! Which of the files that a search finds are wanted: minimum size, globs to include and exclude.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::settings::Globs;
use crate::model::Bytes;

/// What the configuration says of the files to look for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Globs; a file that matches one is an image whatever it looks like, and then nothing else
    /// is. Empty: every file that looks like a disk image.
    pub include: Vec<String>,
    /// Globs of files and directories to pass over.
    pub exclude: Vec<String>,
    /// Smaller files are passed over.
    pub min_size: Bytes,
}

/// A [`Selection`] ready to be asked.
#[derive(Debug)]
pub struct Rules {
    include: Option<Globs>,
    exclude: Globs,
    min_size: Bytes,
}

/// Why a file that a search found is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is an image, because a glob says so.
    Image,
    /// It is an image if it looks like one.
    Look,
    /// Smaller than the minimum.
    TooSmall,
    /// Excluded, or not included.
    Unwanted,
}

impl Rules {
    /// Compiles the globs.
    ///
    /// # Errors
    /// The first glob that is none.
    pub fn new(selection: &Selection) -> Result<Self, globset::Error> {
        let include = (!selection.include.is_empty()).then(|| Globs::new(&selection.include));
        Ok(Rules {
            include: include.transpose()?,
            exclude: Globs::new(&selection.exclude)?,
            min_size: selection.min_size,
        })
    }

    /// Whether a directory is to be searched.
    #[must_use]
    pub fn searches(&self, directory: &Path) -> bool {
        !self.exclude.matches(directory)
    }

    /// What is to be done with a file.
    #[must_use]
    pub fn verdict(&self, path: &Path, size: Bytes) -> Verdict {
        if self.exclude.matches(path) {
            return Verdict::Unwanted;
        }
        match &self.include {
            Some(include) if !include.matches(path) => Verdict::Unwanted,
            _ if size < self.min_size => Verdict::TooSmall,
            Some(_) => Verdict::Image,
            None => Verdict::Look,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(include: &[&str], exclude: &[&str], path: &str, size: u64) -> Verdict {
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
            Verdict::Unwanted
        );
        assert_eq!(
            verdict(&[], &["*.iso"], "/srv/a.iso.raw", 100),
            Verdict::Look
        );
        assert_eq!(
            verdict(&[], &["/srv/old/**"], "/srv/old/x/a.raw", 100),
            Verdict::Unwanted
        );
        assert_eq!(
            verdict(&[], &["/srv/*.raw"], "/srv/old/a.raw", 100),
            Verdict::Look
        );
    }

    #[test]
    fn what_is_included_need_not_look_like_an_image() {
        assert_eq!(verdict(&["vm-*"], &[], "/srv/vm-1", 100), Verdict::Image);
        assert_eq!(verdict(&["vm-*"], &[], "/srv/vm-1", 99), Verdict::TooSmall);
        assert_eq!(
            verdict(&["vm-*"], &[], "/srv/a.raw", 100),
            Verdict::Unwanted
        );
        assert_eq!(
            verdict(&["vm-*"], &["*.bak"], "/srv/vm-1.bak", 100),
            Verdict::Unwanted
        );
    }

    #[test]
    fn small_files_are_no_images() {
        assert_eq!(verdict(&[], &[], "/srv/a.raw", 99), Verdict::TooSmall);
        assert_eq!(verdict(&[], &[], "/srv/a.raw", 100), Verdict::Look);
    }
}
