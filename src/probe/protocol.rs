//! The protocol between a worker and its helper: JSON frames over a socket pair, each preceded by
//! its length as four bytes, little-endian.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::settings::is_glob;
use crate::discover::mounts::{FilesystemScope, Mount};
use crate::discover::rules::Selection;
use crate::model::{
    Bytes, Census, ExtentCount, ExtentMap, Filesystem, ImageId, MapBuilder, Outlook, Sample,
    path::wire,
};

/// Maximum length of a frame; a longer one is a protocol error.
const MAX_FRAME: u32 = 64 << 20;

/// A request to a helper. It sends any number of replies, the last of which is [`Reply::Done`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Search for images and count their extents.
    Survey(SurveyRequest),
    /// Continue reading the map of one image.
    Map(Box<MapRequest>),
    /// Sample the map of one image.
    Sample(SampleRequest),
    /// Count all files of the file system.
    Census(CensusRequest),
}

/// Worst-case time to load an extent: one disk seek of 10 ms per block of about 250 records.
const LOAD_PER_EXTENT: Duration = Duration::from_micros(40);

impl Request {
    /// Time that one step of the request may take in addition to the deadline for a count.
    pub fn extra_time(&self) -> Duration {
        match self {
            // The first chunk may load the whole map (xfs_iread_extents, cannot be interrupted).
            Request::Map(map) => load_time(map.expected),
            Request::Sample(sample) => load_time(sample.expected),
            Request::Survey(_) | Request::Census(_) => Duration::ZERO,
        }
    }
}

fn load_time(extents: ExtentCount) -> Duration {
    let extents = u32::try_from(extents.0).unwrap_or(u32::MAX);
    LOAD_PER_EXTENT.saturating_mul(extents)
}

/// See [`Request::Survey`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SurveyRequest {
    /// The mount of the file system to describe.
    pub mount: Mount,
    /// The file system that may be accessed.
    pub scope: FilesystemScope,
    /// Where to search.
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

/// A path on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlainPath(#[serde(with = "wire")] pub PathBuf);

/// See [`Request::Map`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MapRequest {
    /// Path of the image.
    #[serde(with = "wire")]
    pub path: PathBuf,
    /// The required identity.
    pub id: ImageId,
    /// Number of extents at the last count.
    pub expected: ExtentCount,
    /// What was read so far.
    pub builder: MapBuilder,
    /// Maximum number of extents.
    pub max_extents: ExtentCount,
    /// Approximate time for this part.
    pub budget: Duration,
    /// Whether a user is waiting.
    pub quick: bool,
}

/// See [`Request::Sample`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SampleRequest {
    /// Path of the image.
    #[serde(with = "wire")]
    pub path: PathBuf,
    /// The required identity.
    pub id: ImageId,
    /// Number of extents at the last count.
    pub expected: ExtentCount,
}

/// See [`Request::Census`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CensusRequest {
    /// A path to the file system, or by links to another one, where the census then takes place.
    #[serde(with = "wire")]
    pub path: PathBuf,
    /// The mount of the file system.
    pub mount: Mount,
    /// The file system that may be searched for names.
    pub scope: FilesystemScope,
    /// How many of the most fragmented files to name.
    pub worst: usize,
}

/// A reply of a helper.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// Still working; nothing hangs.
    Beat,
    /// The file that a slow step concerns. Not a sign of progress.
    Slow(PlainPath),
    /// The file system of the survey.
    Filesystem(Filesystem),
    /// An image, and how long its count took.
    Image(Box<Sample>, Duration),
    /// Something could not be read.
    Fault(Fault),
    /// A path leads to another file system.
    Elsewhere(Root),
    /// Files that were skipped.
    PassedOver(PassedOver),
    /// The directories are watched; if not all of them, the reason.
    Watched(Option<String>),
    /// The map so far.
    MapPart(Box<MapBuilder>),
    /// The whole map.
    Map(Box<ExtentMap>),
    /// The gain to be expected, from a sample of the map.
    Sampled(Outlook),
    /// The census.
    Census(Box<Census>),
    /// The request is complete.
    Done,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Its path.
    #[serde(with = "wire")]
    pub path: PathBuf,
    /// The error text.
    pub error: String,
}

impl Fault {
    /// From the error of a call on this path.
    pub fn new(path: &Path, error: &io::Error) -> Fault {
        Fault {
            path: path.to_owned(),
            error: reason(error),
        }
    }
}

/// An I/O error in words for an operator, without Rust's `(os error 2)`.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
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

/// Appends a message as a frame. Fails if it cannot be serialised, which is a bug in its type.
pub fn append(frames: &mut Vec<u8>, message: &impl Serialize) -> io::Result<()> {
    let begin = frames.len();
    frames.extend([0; 4]);
    serde_json::to_writer(&mut *frames, message)?;
    let length = u32::try_from(frames.len() - begin - 4).map_err(io::Error::other)?;
    frames[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// The length in a frame's first four bytes. Fails with InvalidData above `MAX_FRAME`.
pub fn frame_length(prefix: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(prefix);
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a frame of the probe protocol",
        ));
    }
    Ok(length as usize)
}

/// Reads one request; `None` if the other side has closed, InvalidData if it is malformed.
pub fn read_request(from: &mut impl Read) -> io::Result<Option<Request>> {
    let mut prefix = [0; 4];
    match from.read_exact(&mut prefix) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut frame = vec![0; frame_length(prefix)?];
    from.read_exact(&mut frame)?;
    Ok(Some(serde_json::from_slice(&frame)?))
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
