//! The protocol of a worker and its helper: frames of JSON over a socket pair, each after its length
//! as four bytes, least significant first.

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

/// A frame longer than this is no message of ours.
const MAX_FRAME: u32 = 64 << 20;

/// A request to a helper, which answers with any number of replies, the last of which is
/// [`Reply::Done`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Search for images and count their extents.
    Survey(SurveyRequest),
    /// Go on reading the map of one image.
    Map(Box<MapRequest>),
    /// Sample the map of one image.
    Sample(SampleRequest),
    /// Count all files of the file system.
    Census(CensusRequest),
}

/// What it can take to load an extent into kernel memory: a disk seeks once for each block of about
/// 250 records, in 10 ms.
const LOAD_PER_EXTENT: Duration = Duration::from_micros(40);

impl Request {
    /// Time that one step of it may rightly take beyond that of a count.
    pub fn extra_time(&self) -> Duration {
        match self {
            // The first chunk of a map loads all of it (xfs_iread_extents, which cannot be
            // interrupted); whether it is the first since the image was opened we cannot know.
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
    /// What may be touched.
    pub scope: FilesystemScope,
    /// Where to search.
    pub roots: Vec<Root>,
    /// What to look for.
    pub selection: Selection,
    /// Files and directories that the search of one root meets at most.
    pub limit: u32,
    /// Files that QEMU has open: images whatever they look like.
    pub held: Vec<PlainPath>,
    /// Number of the sweep, if the directories are to be watched from then on. The news of the watch
    /// come as bytes on standard output ([`News`](crate::discover::watch::News)), at any time.
    pub watch: Option<u64>,
}

/// Where to search.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Root {
    /// An absolute path; may lead through symbolic links.
    #[serde(with = "wire")]
    pub path: PathBuf,
    /// Whether `*`, `?`, `[` and `{` in it are wildcards. A path from the command line has passed
    /// the shell and is meant as it is.
    pub glob: bool,
}

impl Root {
    /// A path as the configuration writes it: a glob if it has wildcards.
    pub fn configured(path: PathBuf) -> Self {
        let glob = is_glob(&path);
        Root { path, glob }
    }

    /// A path that means itself.
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
    /// Where the image is.
    #[serde(with = "wire")]
    pub path: PathBuf,
    /// Which image it must be.
    pub id: ImageId,
    /// How many extents it had when it was counted.
    pub expected: ExtentCount,
    /// What was read so far.
    pub builder: MapBuilder,
    /// Extents to stop at.
    pub max_extents: ExtentCount,
    /// How long this part may take, about.
    pub budget: Duration,
    /// Whether someone waits for it.
    pub quick: bool,
}

/// See [`Request::Sample`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SampleRequest {
    /// The image.
    #[serde(with = "wire")]
    pub path: PathBuf,
    /// The identity that it must have.
    pub id: ImageId,
    /// How many extents it had when it was counted.
    pub expected: ExtentCount,
}

/// See [`Request::Census`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CensusRequest {
    /// A path that leads to the file system, or to another one, where the census is then.
    #[serde(with = "wire")]
    pub path: PathBuf,
    /// The mount of the file system.
    pub mount: Mount,
    /// What may be touched in search of names.
    pub scope: FilesystemScope,
    /// How many of the most fragmented files to name.
    pub worst: usize,
}

/// A reply of a helper.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// Still at work: nothing hangs.
    Beat,
    /// One step takes long: the file that it is about. It is no sign of progress.
    Slow(PlainPath),
    /// The file system of the survey.
    Filesystem(Filesystem),
    /// An image, and how long its count took.
    Image(Box<Sample>, Duration),
    /// Something could not be read.
    Fault(Fault),
    /// A path leads to another file system.
    Elsewhere(Root),
    /// Files that were passed over.
    PassedOver(PassedOver),
    /// The directories are watched; why not all of them, if so.
    Watched(Option<String>),
    /// The map so far.
    MapPart(Box<MapBuilder>),
    /// The whole map.
    Map(Box<ExtentMap>),
    /// What could be gained, by a sample of the map.
    Sampled(Outlook),
    /// The census.
    Census(Box<Census>),
    /// The request has been carried out.
    Done,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What.
    #[serde(with = "wire")]
    pub path: PathBuf,
    /// Why, in words.
    pub error: String,
}

impl Fault {
    /// For the error of a call about this path.
    pub fn new(path: &Path, error: &io::Error) -> Fault {
        Fault {
            path: path.to_owned(),
            error: reason(error),
        }
    }
}

/// An I/O error in words for an operator: without Rust's `(os error 2)`.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Files that a survey met and did not take for images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// Smaller than the minimum size.
    pub too_small: u64,
    /// Excluded, not included, or not looking like an image.
    pub unwanted: u64,
    /// The sum of their sizes, of the too small ones.
    pub too_small_bytes: Bytes,
}

impl PassedOver {
    /// Adds what another survey passed over.
    pub fn add(&mut self, other: PassedOver) {
        self.too_small += other.too_small;
        self.unwanted += other.unwanted;
        self.too_small_bytes = self.too_small_bytes.saturating_add(other.too_small_bytes);
    }
}

/// Appends a message as a frame.
///
/// # Errors
/// When the message cannot be written as JSON, which would be a mistake in its type.
pub fn append(frames: &mut Vec<u8>, message: &impl Serialize) -> io::Result<()> {
    let begin = frames.len();
    frames.extend([0; 4]);
    serde_json::to_writer(&mut *frames, message)?;
    let length = u32::try_from(frames.len() - begin - 4).map_err(io::Error::other)?;
    frames[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// The length that a frame's first four bytes announce.
///
/// # Errors
/// InvalidData if no message is so long.
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

/// Reads one request; none when the other side has closed.
///
/// # Errors
/// Those of reading, and InvalidData for what is no request.
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
