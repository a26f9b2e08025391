//! Made-up images and file systems for the tests of this room.

use std::path::PathBuf;

use super::facts::Facts;
use crate::model::{
    Bytes, ExtentCount, ExtentMap, Features, Filesystem, FilesystemKind, Format, ImageId, Owner,
    Sample,
};

pub const GIB: u64 = 1 << 30;

/// A raw image of this size on an XFS with reflink of 1 TiB, of which half is free.
#[derive(Debug, Clone)]
pub struct Image {
    pub sample: Sample,
    pub filesystem: Filesystem,
    pub map: Option<ExtentMap>,
    pub owner: Owner,
}

impl Image {
    pub fn sparse(size: u64, allocated: u64, extents: u64) -> Image {
        let sample = Sample {
            id: ImageId {
                device: 1,
                inode: 131,
            },
            key: Err("none".to_owned()),
            path: PathBuf::from("/srv/vm/a.raw"),
            format: Format::Raw,
            extents: ExtentCount(extents),
            size: Bytes(size),
            allocated: Bytes(allocated),
            extent_size_hint: Bytes(0),
            directory_hint: Bytes(0),
            cow_hint: Bytes(0),
            qcow2: None,
        };
        Image {
            sample,
            filesystem: filesystem(),
            map: None,
            owner: Owner::default(),
        }
    }

    /// With a map of that many fragments, holes of equal size, and without anything unwritten.
    pub fn mapped(mut self, fragments: u64, holes: u64) -> Image {
        self.map = Some(ExtentMap {
            extents: self.sample.extents,
            fragments,
            holes,
            mapped: self.sample.allocated,
            complete: true,
            ..ExtentMap::default()
        });
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Image)) -> Image {
        change(&mut self);
        self
    }

    pub fn facts(&self) -> Facts<'_> {
        Facts {
            sample: &self.sample,
            filesystem: Some(&self.filesystem),
            map: self.map.as_ref(),
            owner: Some(&self.owner),
        }
    }
}

pub fn filesystem() -> Filesystem {
    Filesystem {
        mount: PathBuf::from("/srv"),
        type_name: "xfs".to_owned(),
        kind: FilesystemKind::Xfs,
        uuid: None,
        features: Some(Features {
            reflink: true,
            ..Features::default()
        }),
        size: Bytes(1024 * GIB),
        free: Bytes(512 * GIB),
        block_size: Bytes(4096),
    }
}
