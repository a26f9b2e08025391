//! Recognises disk images by magic number, and raw images by partition table or file name.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{Advice, OFlags};

use crate::model::{Bytes, Format, Qcow2};

/// Bytes to read for the magic number. A multiple of every sector size, as O_DIRECT requires.
pub const HEADER: usize = 4096;
/// Incompatible feature of a qcow2: its clusters lie in another file.
pub const EXTERNAL_DATA: u64 = 1 << 2;
/// Bytes to read of a descriptor of VMDK, which has a line of text for each of its files.
const DESCRIPTOR: usize = 64 << 10;
const VMDK_DESCRIPTOR: &[u8] = b"# Disk DescriptorFile";
/// The footer of VHD, also at the begin of one that grows (block/vpc.c of QEMU).
const VHD: &[u8] = b"conectix";
/// Length of that footer.
const VHD_FOOTER: u64 = 512;

/// What a file shows of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// Its format; `None` if it does not look like an image.
    pub format: Option<Format>,
    /// The files that hold its data, if others do, as it names them.
    pub data_files: Vec<OsString>,
    /// Its layout, if it is a qcow2 image.
    pub qcow2: Option<Qcow2>,
}

/// Magic numbers at their offsets: docs/interop/{qcow2,qed_spec,parallels}, block/{vmdk,vdi,vhdx,vpc}.c
/// and crypto/block-luks.c of QEMU.
const MAGIC: [(usize, &[u8], Format); 13] = [
    (0, b"QFI\xfb", Format::Qcow2),
    (0, b"KDMV", Format::Vmdk),
    (0, b"COWD", Format::Vmdk),
    (0, VMDK_DESCRIPTOR, Format::Vmdk),
    // SEsparse.
    (0, &0xcafe_babe_u64.to_le_bytes(), Format::Vmdk),
    (0x40, &0xbeda_107f_u32.to_le_bytes(), Format::Vdi),
    (0, b"vhdxfile", Format::Vhdx),
    (0, VHD, Format::Vhd),
    (0, b"QED\0", Format::Qed),
    (0, b"WithoutFreeSpace", Format::Parallels),
    (0, b"WithouFreSpacExt", Format::Parallels),
    (0, b"LUKS\xba\xbe\0\x01", Format::Luks),
    (0, b"LUKS\xba\xbe\0\x02", Format::Luks),
];

/// The format indicated by the first bytes of a file.
pub fn by_magic(header: &[u8]) -> Option<Format> {
    let is_at = |(offset, magic, _): &&(usize, &[u8], Format)| {
        header.get(*offset..).is_some_and(|h| h.starts_with(magic))
    };
    let found = MAGIC.iter().find(is_at).map(|(_, _, format)| *format);
    found.or_else(|| is_partitioned(header).then_some(Format::Raw))
}

/// Whether there is a partition table of DOS; before a GPT lies one as well (UEFI, 5.2.3). Boot
/// sectors of file systems and kernels have its signature too, but code in place of the entries.
fn is_partitioned(header: &[u8]) -> bool {
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0_u64, |n, byte| n << 8 | u64::from(*byte))
    };
    let is_free = |entry: &[u8]| entry.iter().all(|byte| *byte == 0);
    let is_used = |entry: &[u8]| {
        let (first, sectors) = (number(&entry[8..12]), number(&entry[12..16]));
        matches!(entry[0], 0 | 0x80) && entry[4] != 0 && first != 0 && sectors != 0
    };
    let Some((entries, [0x55, 0xaa])) = header.get(446..512).map(|table| table.split_at(64)) else {
        return false;
    };
    let mut all = entries.chunks_exact(16);
    all.clone().any(is_used) && all.all(|entry| is_used(entry) || is_free(entry))
}

/// The format indicated by a file name; sufficient only for raw images, which have no header.
pub fn by_name(path: &Path) -> Option<Format> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "raw" | "img" | "disk" => Some(Format::Raw),
        "qcow2" | "qcow" => Some(Format::Qcow2),
        "vmdk" => Some(Format::Vmdk),
        "vdi" => Some(Format::Vdi),
        "vhdx" | "avhdx" => Some(Format::Vhdx),
        "vhd" | "vpc" | "avhd" => Some(Format::Vhd),
        "qed" => Some(Format::Qed),
        "hds" => Some(Format::Parallels),
        "luks" => Some(Format::Luks),
        _ => None,
    }
}

/// The files that hold the data of an image with this header: of a qcow2 with an external data file
/// (docs/interop/qcow2.rst), and of a VMDK that is a descriptor.
fn data_files(header: &[u8]) -> Vec<OsString> {
    let names: Vec<&[u8]> = if header.starts_with(VMDK_DESCRIPTOR) {
        let lines = header.split(|byte| matches!(byte, b'\n' | b'\r'));
        lines.filter_map(extent_file).collect()
    } else {
        qcow2_data_file(header).into_iter().collect()
    };
    let owned = |name: &[u8]| OsString::from_vec(name.to_vec());
    names.into_iter().map(owned).collect()
}

/// The file in `RW 20971520 FLAT "db-flat.vmdk" 0` (vmdk_parse_extents, block/vmdk.c of QEMU).
fn extent_file(line: &[u8]) -> Option<&[u8]> {
    let mut parts = line.splitn(3, |byte| *byte == b'"');
    let (extent, file) = (std::str::from_utf8(parts.next()?).ok()?, parts.next()?);
    let is_extent = matches!(
        extent.split_whitespace().next()?,
        "RW" | "RDONLY" | "NOACCESS"
    );
    (is_extent && parts.next().is_some()).then_some(file)
}

/// The layout in a header of qcow2: the size of a cluster as a power of two, and that of the disk. `None`
/// if the clusters lie in another file, which is judged by itself.
pub fn qcow2(header: &[u8]) -> Option<Qcow2> {
    let bits = word(header, 20)?;
    let disk = long(header, 24)?;
    // MIN_CLUSTER_BITS, MAX_CLUSTER_BITS (block/qcow2.h).
    let is_valid = header.starts_with(b"QFI\xfb") && (9..=21).contains(&bits);
    let is_alone = qcow2_data_file(header).is_none();
    (is_valid && is_alone).then(|| Qcow2 {
        cluster: Bytes(1 << bits),
        disk: Bytes(disk),
    })
}

fn qcow2_data_file(header: &[u8]) -> Option<&[u8]> {
    const DATA_FILE: u32 = 0x4441_5441;
    let is_external = u64::from(*header.get(79)?) & EXTERNAL_DATA != 0;
    if !header.starts_with(b"QFI\xfb") || word(header, 4)? < 3 || !is_external {
        return None;
    }
    let mut extensions = qcow2_extensions(header);
    extensions.find_map(|(kind, data)| (kind == DATA_FILE).then_some(data))
}

/// The header extensions of a qcow2 image of version 3, each with its kind and its data. The last one is of kind 0,
/// unless the rest lies beyond `header`.
pub fn qcow2_extensions(header: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let offset = |at| Some(usize::try_from(word(header, at)?).unwrap_or(usize::MAX));
    let mut next = offset(100);
    std::iter::from_fn(move || {
        let (kind, length) = (word(header, next?)?, offset(next?.checked_add(4)?)?);
        let begin = next?.checked_add(8)?;
        // Padded to a multiple of eight bytes.
        let end = begin.checked_add(length.checked_next_multiple_of(8)?);
        next = end.filter(|_| kind != 0);
        Some((kind, header.get(begin..begin.checked_add(length)?)?))
    })
}

/// The number of 32 bits in a header of qcow2 at this offset.
pub fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The number of 64 bits in a header or a table of qcow2 at this offset.
pub fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Determines the format of an open file of `size` bytes.
pub fn read(file: &File, size: u64) -> io::Result<Header> {
    let mut header = read_at(file, 0, HEADER)?;
    if header.starts_with(VMDK_DESCRIPTOR) && size > HEADER as u64 {
        header = read_at(file, 0, DESCRIPTOR)?;
    }
    let mut format = by_magic(&header);
    // A VHD of fixed size has only a footer. Not to read the end of every raw image, its size must
    // be a multiple of 4 KiB and the footer: disks of more than 136 MiB have 16 heads.
    let may_have_footer = !size.is_multiple_of(HEADER as u64);
    if matches!(format, None | Some(Format::Raw))
        && may_have_footer
        && let Some(footer) = size.checked_sub(VHD_FOOTER)
    {
        let block = footer - footer % HEADER as u64;
        let end = read_at(file, block, 2 * HEADER)?;
        let at = usize::try_from(footer - block).unwrap_or(usize::MAX);
        if end.get(at..).is_some_and(|footer| footer.starts_with(VHD)) {
            format = Some(Format::Vhd);
        }
    }
    Ok(Header {
        format,
        data_files: data_files(&header),
        qcow2: qcow2(&header),
    })
}

/// Reads up to `length` bytes; both numbers must be multiples of [`HEADER`].
///
/// Uses O_DIRECT where that works: each direct write of the guest would have to invalidate a page
/// of the image in the page cache.
fn read_at(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    let mut buffer = vec![0; length + HEADER];
    let begin = buffer.as_ptr().align_offset(HEADER).min(HEADER);
    let part = &mut buffer[begin..begin + length];

    let direct = rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT)
        .map_err(io::Error::from)
        .and_then(|()| file.read_at(part, at));
    let read = match direct {
        Ok(read) => read,
        Err(_) => {
            rustix::fs::fcntl_setfl(file, flags)?;
            let read = file.read_at(part, at)?;
            // Only a hint; if it is refused, the page stays cached until it is reclaimed.
            let _ = rustix::fs::fadvise(file.as_fd(), at, None, Advice::DontNeed);
            read
        }
    };
    Ok(part[..read].to_vec())
}

#[cfg(test)]
mod tests;
