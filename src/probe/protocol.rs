//! The protocol between a worker and its helper: messages as JSON, one a line, over a socket pair.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::discover::mounts::{FilesystemScope, Mount};
use crate::discover::rules::Selection;
use crate::model::globs::is_glob;
use crate::model::{
    Bytes, Census, ExtentCount, ExtentMap, Filesystem, FreeSpace, ImageId, MapBuilder, Outlook,
    Sample, path::PlainPath, path::wire,
};

/// A request to a helper. It sends any number of replies, the last of which is [`Reply::Done`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Search for images and count their extents.
    Survey(SurveyRequest),
    /// Continue reading the map of one image.
    Map(ImageRequest, Box<MapPart>),
    /// Sample the map of one image.
    Sample(ImageRequest),
    /// Count all files of the file system.
    Census(CensusRequest),
    /// Read the free space of the file system.
    FreeSpace(Mount),
    /// Read the extent-size hint of a directory.
    Directory(DirectoryRequest),
}

/// Worst-case time to load an extent: one disk seek of 10 ms per block of about 250 records.
const LOAD_PER_EXTENT: Duration = Duration::from_micros(40);

impl Request {
    /// Time that one step of the request may take in addition to the deadline for a count.
    pub fn extra_time(&self) -> Duration {
        match self {
            // The first chunk may load the whole map (xfs_iread_extents, cannot be interrupted).
            Request::Map(image, _) | Request::Sample(image) => {
                LOAD_PER_EXTENT.saturating_mul(u32::try_from(image.expected.0).unwrap_or(u32::MAX))
            }
            _ => Duration::ZERO,
        }
    }
}

/// See [`Request::Survey`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SurveyRequest {
    /// The mount of the file system to describe.
    pub mount: Mount,
    /// The file system that may be accessed.
    pub scope: FilesystemScope,
    /// Where the search begins.
    pub roots: Vec<Root>,
    /// Which files are images.
    pub selection: Selection,
    /// Maximum number of files and directories in the search of one root.
    pub limit: u32,
    /// Files that QEMU has open; these are images regardless of their format.
    pub held: Vec<PlainPath>,
    /// Their inode numbers, as far as known.
    pub held_inodes: Vec<u64>,
    /// Number of the sweep if the directories are to be watched. The watch reports at any time, as
    /// bytes on standard output ([`News`](crate::discover::watch::News)).
    pub watch: Option<u64>,
}

/// Where to search.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Root {
    /// An absolute path; may contain symbolic links.
    #[serde(with = "wire")]
    pub path: PathBuf,
    /// Whether `*`, `?`, `[` and `{` in it are wildcards. A path from the command line was already
    /// expanded by the shell and is literal.
    pub glob: bool,
}

impl Root {
    /// A path from the configuration; a glob if it has wildcards.
    pub fn configured(path: PathBuf) -> Self {
        let glob = is_glob(&path);
        Root { path, glob }
    }

    /// A path without wildcards.
    pub fn literal(path: PathBuf) -> Self {
        Root { path, glob: false }
    }
}

/// An image whose map is to be read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageRequest {
    /// Path of the image.
    #[serde(with = "wire")]
    pub path: PathBuf,
    /// The required identity.
    pub id: ImageId,
    /// Number of extents at the last count.
    pub expected: ExtentCount,
}

impl From<&Sample> for ImageRequest {
    fn from(sample: &Sample) -> ImageRequest {
        ImageRequest {
            path: sample.path.clone(),
            id: sample.id,
            expected: sample.extents,
        }
    }
}

/// See [`Request::Map`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MapPart {
    /// What was read so far.
    pub builder: MapBuilder,
    /// Maximum number of extents.
    pub max_extents: ExtentCount,
    /// Approximate time for this part.
    pub budget: Duration,
    /// Whether a user is waiting.
    pub quick: bool,
}

/// See [`Request::Census`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CensusRequest {
    /// A path to the file system, or by links to another one, where the census then takes place.
    #[serde(with = "wire")]
    pub path: PathBuf,
    /// The mount of the path.
    pub mount: Mount,
    /// The file system that may be searched for names.
    pub scope: FilesystemScope,
    /// How many of the most fragmented files to name.
    pub worst: usize,
}

/// See [`Request::Directory`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DirectoryRequest {
    /// May contain symbolic links.
    #[serde(with = "wire")]
    pub path: PathBuf,
    /// The file system that may be accessed.
    pub scope: FilesystemScope,
}

/// A reply of a helper.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// Still working; nothing hangs.
    Beat,
    /// The file that a slow step concerns. Not a sign of progress.
    Slow(PlainPath),
    Filesystem(Filesystem),
    /// An image, and how long its count took.
    Image(Box<Sample>, Duration),
    Fault(Fault),
    /// A path leads to another file system.
    Elsewhere(Root),
    PassedOver(PassedOver),
    /// The directories are watched; if not all of them, the reason.
    Watched(Option<String>),
    /// The map so far.
    MapPart(Box<MapBuilder>),
    Map(Box<ExtentMap>),
    /// The gain to be expected, from a sample of the map.
    Sampled(Outlook),
    Census(Box<Census>),
    FreeSpace(Box<FreeSpace>),
    /// A directory, without links, and the extent-size hint that it gives to new files; 0 if none.
    Directory(PlainPath, Bytes),
    /// The request is complete.
    Done,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What could not be read.
    #[serde(with = "wire")]
    pub path: PathBuf,
    /// Why, in words.
    pub error: String,
}

impl Fault {
    /// From the error of a call on this path.
    pub fn new(path: &Path, error: &io::Error) -> Fault {
        let (path, error) = (path.to_owned(), reason(error));
        Fault { path, error }
    }
}

/// An I/O error in words for an operator, without Rust's `(os error 2)`.
pub fn reason(error: &io::Error) -> String {
    let mut text = error.to_string();
    text.truncate(text.find(" (os error").unwrap_or(text.len()));
    text
}

/// Files that a survey found and did not take for images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// Smaller than the minimum size.
    pub too_small: u64,
    /// Excluded, not included, or not looking like an image.
    pub unwanted: u64,
    /// Total size of the files counted in `too_small`.
    pub too_small_bytes: Bytes,
}

impl PassedOver {
    /// Adds the numbers of another survey.
    pub fn add(&mut self, other: PassedOver) {
        self.too_small += other.too_small;
        self.unwanted += other.unwanted;
        self.too_small_bytes = self.too_small_bytes.saturating_add(other.too_small_bytes);
    }
}

/// Appends a message. Fails if it cannot be serialised, which is a bug in its type.
pub fn append(lines: &mut Vec<u8>, message: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *lines, message)?;
    lines.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_given_in_words() {
        assert_eq!(
            reason(&io::Error::from_raw_os_error(libc::ENOENT)),
            "No such file or directory"
        );
        assert_eq!(reason(&io::Error::other("the way out")), "the way out");
    }
}
