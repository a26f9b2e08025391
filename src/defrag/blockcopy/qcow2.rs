//! The header of a qcow2 image: whether it can be copied, and the empty image that becomes its copy. Pure.
//! The format is that of docs/interop/qcow2.rst of QEMU.
//!
//! The empty image is written here and not by `qemu-img create`: no other process opens a file that has no
//! name yet, replaces its extent-size hint (raw_co_create, block/file-posix.c, since QEMU 5.1), or lacks an
//! option of a newer format. Its header is that of the image with other offsets, so version, cluster size,
//! subclusters, width of the refcounts, lazy refcounts and type of compression are the same.

use crate::discover::format::{self, EXTERNAL_DATA, long, word};

/// Incompatible features (bits of the header).
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
/// Kind of the header extension for persistent bitmaps, and of the end of all extensions.
const BITMAPS: u32 = 0x2385_2875;
const END: u32 = 0;
/// Bytes of the header of version 3 without additional fields.
const SHORTEST: usize = 104;
/// QEMU's limit for the L1 table (QCOW_MAX_L1_SIZE, block/qcow2.h).
const LARGEST_L1: u64 = 32 << 20;

const UNKNOWN: &str =
    "its qcow2 header is damaged, or newer than this fragwatch: see `qemu-img info -U`";

/// An image that can be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Length of the guest's disk, in bytes.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Whether a cluster has 32 subclusters, and an entry of an L2 table a second word for them.
    pub has_subclusters: bool,
    /// Where the L1 table is in the file.
    pub l1: u64,
    /// Bits of a refcount, as a power of two.
    refcount_order: u32,
    header: Vec<u8>,
}

/// An empty image.
pub struct Empty {
    /// The file up to the L1 table, which is zero.
    pub begin: Vec<u8>,
    /// Length of the file.
    pub length: u64,
}

/// Clusters of the parts of an empty image, in their order after that of the header.
struct Parts {
    table: u64,
    blocks: u64,
    l1: u64,
}

impl Layout {
    /// Reads the first 4 KiB of an image. The error is why it is not copied, and the way out.
    pub fn of(header: &[u8]) -> Result<Layout, &'static str> {
        let read = read(header).ok_or(UNKNOWN)?;
        match against(header, read.version, read.features) {
            Some(why) => Err(why),
            None => read.layout.filter(Layout::is_sane).ok_or(UNKNOWN),
        }
    }

    fn is_sane(&self) -> bool {
        self.size > 0
            && self.size.is_multiple_of(512)
            && self.l1.is_multiple_of(self.cluster)
            && self.l1 < 1 << 56
            && self.tables() * 8 <= LARGEST_L1
            && self.header.len() as u64 <= self.cluster
            // "Unsupported subcluster size" (qcow2_do_open, block/qcow2.c).
            && self.piece() >= 512
    }

    /// Entries of an L2 table, which is one cluster long.
    pub fn entries(&self) -> u64 {
        self.cluster / if self.has_subclusters { 16 } else { 8 }
    }

    /// Bytes of the part of a disk whose place is known by itself: of a subcluster, or of a cluster.
    pub fn piece(&self) -> u64 {
        self.cluster / if self.has_subclusters { 32 } else { 1 }
    }

    /// A bit for each such part of a cluster.
    pub(super) fn all(&self) -> u64 {
        u64::MAX >> (64 - self.cluster / self.piece())
    }

    /// L2 tables of the whole disk.
    pub fn tables(&self) -> u64 {
        self.size.div_ceil(self.cluster * self.entries())
    }

    /// What a copy takes up at most besides the guest's data, in bytes: QEMU first writes zeros to all of
    /// it, for which it needs all L2 tables (mirror_dirty_init, block/mirror.c).
    pub fn metadata(&self) -> u64 {
        let all = self.size.div_ceil(self.cluster) + self.tables();
        let refcounts = (all << self.refcount_order) / 8;
        self.tables() * self.cluster + refcounts + self.parts().clusters() * self.cluster
    }

    fn parts(&self) -> Parts {
        let l1 = (self.tables() * 8).div_ceil(self.cluster);
        let (mut table, mut blocks) = (1, 1);
        loop {
            let parts = Parts { table, blocks, l1 };
            // The refcounts count their own clusters as well.
            let needed = (parts.clusters() << self.refcount_order).div_ceil(self.cluster * 8);
            if needed == blocks {
                return parts;
            }
            (table, blocks) = ((needed * 8).div_ceil(self.cluster), needed);
        }
    }

    /// An empty image with the same properties.
    pub fn empty(&self) -> Empty {
        let Parts { table, blocks, l1 } = self.parts();
        let offset = |cluster: u64| cluster * self.cluster;
        let short = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
        let mut begin = self.header.clone();
        begin.resize(index(offset(1 + table + blocks)), 0);
        let mut put =
            |at: u64, bytes: &[u8]| begin[index(at)..][..bytes.len()].copy_from_slice(bytes);
        put(36, &short(self.tables()));
        put(40, &offset(1 + table + blocks).to_be_bytes());
        put(48, &offset(1).to_be_bytes());
        put(56, &short(table));
        put(64, &[0; 8]);
        let kept = if self.has_subclusters { EXTENDED_L2 } else { 0 };
        let compression = u64::from(self.header[79]) & COMPRESSION_TYPE;
        put(72, &(kept | compression).to_be_bytes());
        // Without features that may be ignored, but for lazy refcounts.
        put(80, &(u64::from(self.header[87]) & 1).to_be_bytes());
        put(88, &[0; 8]);
        for block in 0..blocks {
            put(
                offset(1) + block * 8,
                &offset(1 + table + block).to_be_bytes(),
            );
        }
        let refcounts = index(offset(1 + table));
        let all = 1 + table + blocks + l1;
        (0..all)
            .for_each(|cluster| set_to_one(&mut begin[refcounts..], cluster, self.refcount_order));
        Empty {
            begin,
            length: offset(all),
        }
    }
}

impl Parts {
    /// With that of the header.
    fn clusters(&self) -> u64 {
        1 + self.table + self.blocks + self.l1
    }
}

/// What a header says.
struct Read {
    version: u32,
    features: u64,
    /// `None` if it is damaged or unknown.
    layout: Option<Layout>,
}

fn read(header: &[u8]) -> Option<Read> {
    let version = word(header, 4).filter(|version| matches!(version, 2 | 3))?;
    let features = if version == 2 { 0 } else { long(header, 72)? };
    let layout = || {
        let is_known = features & !(DIRTY | COMPRESSION_TYPE | EXTENDED_L2) == 0;
        let length = usize::try_from(word(header, 100)?).ok()?;
        let read = format::qcow2(header).filter(|_| is_known && length >= SHORTEST)?;
        let layout = Layout {
            size: read.disk.0,
            cluster: read.cluster.0,
            has_subclusters: features & EXTENDED_L2 != 0,
            l1: long(header, 40)?,
            refcount_order: word(header, 96).filter(|order| *order <= 6)?,
            header: header.get(..length)?.to_vec(),
        };
        let is_whole = layout.tables() <= u64::from(word(header, 36)?);
        (is_whole && kinds(header).last() == Some(END)).then_some(layout)
    };
    (header.starts_with(b"QFI\xfb") && header.len() >= SHORTEST).then(|| Read {
        version,
        features,
        layout: layout(),
    })
}

fn kinds(header: &[u8]) -> impl Iterator<Item = u32> {
    format::qcow2_extensions(header).map(|(kind, _)| kind)
}

/// Why an image is not copied.
fn against(header: &[u8], version: u32, features: u64) -> Option<&'static str> {
    let is_set = |is: Option<u64>| is != Some(0);
    let has_bitmaps = version == 3 && kinds(header).any(|kind| kind == BITMAPS);
    let against = [
        (
            is_set(long(header, 8)),
            "it has a backing file: merge them first (`virsh blockcommit`, `virsh blockpull`)",
        ),
        (
            is_set(word(header, 32).map(u64::from)),
            "it is encrypted, and the secrets for a copy are with libvirt: shut the VM down in a window, \
             for xfs_fsr",
        ),
        (
            is_set(word(header, 60).map(u64::from)),
            "it has snapshots inside, which a copy lacks: delete them (`virsh snapshot-delete`; those that \
             libvirt does not know with `qemu-img snapshot -d`, when the VM is off)",
        ),
        (
            has_bitmaps,
            "it has persistent bitmaps, which a copy lacks: delete them (`virsh checkpoint-delete`; those \
             that libvirt does not know with `qemu-img bitmap --remove`, when the VM is off), and the next \
             backup is a full one",
        ),
        (
            features & CORRUPT != 0,
            "QEMU has marked it as corrupt: shut the VM down, and see `qemu-img check`",
        ),
        (
            features & EXTERNAL_DATA != 0,
            "another file holds its data: shut the VM down in a window, for xfs_fsr",
        ),
        (
            // Since 5.1 or 5.2, QEMU discards instead (qcow2_subcluster_zeroize, block/qcow2-cluster.c); one that
            // runs may be older than what is installed.
            version == 2,
            "its version of qcow2 (compat=0.10) has no zero clusters, and not every QEMU leaves holes in a \
             copy then: shut the VM down, and update it (`qemu-img amend -o compat=1.1`)",
        ),
    ];
    let found = against.into_iter().find(|(is_so, _)| *is_so);
    found.map(|(_, why)| why)
}

/// Sets a refcount of 2^`order` bits to 1. Those of less than 8 bits begin at the lowest bit of a byte.
fn set_to_one(refcounts: &mut [u8], number: u64, order: u32) {
    let bits = 1 << order;
    let lowest = number * bits + u64::saturating_sub(bits, 8);
    refcounts[index(lowest / 8)] |= 1 << (lowest % 8);
}

pub(super) fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header as QEMU writes it, of a disk of 1 GiB with clusters of 64 KiB.
    pub(in super::super) fn header() -> Vec<u8> {
        let mut header = vec![0; 4096];
        let fields: [(usize, &[u8]); 8] = [
            (0, b"QFI\xfb\0\0\0\x03"),
            (20, &[0, 0, 0, 16, 0, 0, 0, 0, 0x40, 0, 0, 0]),
            (36, &[0, 0, 0, 2, 0, 0, 0, 0, 0, 3, 0, 0]),
            (48, &[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]),
            (96, &[0, 0, 0, 4, 0, 0, 0, 112]),
            // Names of features, as an extension.
            (112, &[0x68, 3, 0xf8, 0x57, 0, 0, 0, 48]),
            (120, b"\0\0dirty bit"),
            (168, &[0; 8]),
        ];
        for (at, field) in fields {
            header[at..at + field.len()].copy_from_slice(field);
        }
        header
    }

    #[test]
    fn an_empty_image_is_as_qemu_makes_it() {
        let layout = Layout::of(&header()).unwrap();
        let Empty { begin, length } = layout.empty();
        let mut expected = header();
        // Without the names, which QEMU adds when it writes the header anew.
        expected[112..].fill(0);
        expected.resize(3 << 16, 0);
        expected[1 << 16..][..8].copy_from_slice(&(2_u64 << 16).to_be_bytes());
        expected[2 << 16..][..8].copy_from_slice(&[0, 1, 0, 1, 0, 1, 0, 1]);
        assert!(begin == expected);
        assert_eq!(length, 4 << 16);
        assert_eq!(Layout::of(&begin[..4096]).as_ref(), Ok(&layout));
    }

    /// A header with these fields in place of its own.
    fn patched(bits: u32, order: u32, size: u64, features: u64, length: u32) -> Vec<u8> {
        let mut header = header();
        let fields: [(usize, &[u8]); 8] = [
            (20, &bits.to_be_bytes()),
            (24, &size.to_be_bytes()),
            // As many tables as there can be, in a cluster of any size.
            (36, &u32::MAX.to_be_bytes()),
            (40, &(3_u64 << 21).to_be_bytes()),
            (72, &features.to_be_bytes()),
            (96, &order.to_be_bytes()),
            (100, &length.to_be_bytes()),
            (112, &[0; 64]),
        ];
        for (at, field) in fields {
            header[at..at + field.len()].copy_from_slice(field);
        }
        header
    }

    #[test]
    fn subclusters_are_sectors_at_least() {
        assert_eq!(
            Layout::of(&patched(13, 4, 1 << 30, EXTENDED_L2, 112)),
            Err(UNKNOWN)
        );
        assert!(Layout::of(&patched(14, 4, 1 << 30, EXTENDED_L2, 112)).is_ok());
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(
            bits in 0..24_u32,
            order in 0..9_u32,
            sectors in prop_oneof![Just(0), Just(1), 0..1_u64 << 20, 0..1_u64 << 55],
            odd in prop_oneof![9 => Just(0), 1 => 0..512_u64],
            features in prop_oneof![3 => Just(0), 3 => Just(EXTENDED_L2), 1 => 0..32_u64],
            length in prop_oneof![Just(104), Just(112), (0..520_u32).prop_map(|it| it * 8), any::<u32>()],
        ) {
            let header = patched(bits, order, sectors * 512 + odd, features, length);
            // What QEMU opens, as far as the fields are its matter.
            let is_valid = (9..=21).contains(&bits) && order <= 6 && sectors > 0 && odd == 0
                && matches!(features, 0 | EXTENDED_L2) && matches!(length, 104 | 112);
            let Ok(layout) = Layout::of(&header) else {
                let entries = 1_u64 << bits.min(21) >> if features == 0 { 3 } else { 4 };
                let clusters = (sectors * 512).div_ceil(1 << bits.min(21));
                let is_long = clusters > entries * (LARGEST_L1 / 8);
                let has_small_pieces = features != 0 && bits < 14;
                prop_assert!(!is_valid || is_long || has_small_pieces);
                return Ok(());
            };
            let Empty { begin, length } = layout.empty();
            let copy = Layout::of(&begin[..begin.len().min(4096)]).unwrap();
            prop_assert_eq!((copy.size, copy.cluster, copy.piece()), (layout.size, layout.cluster, layout.piece()));
            prop_assert_eq!(length % layout.cluster, 0);
            prop_assert!(begin.len() as u64 <= length && length <= layout.metadata());
        }
    }
}
