//! Recognises disk images by magic number, and raw images by file name.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{Advice, OFlags};

use crate::model::Format;

/// Bytes to read for the magic number. A multiple of every sector size, as O_DIRECT requires.
const HEADER: usize = 4096;

/// The format indicated by the first bytes of a file.
pub fn by_magic(header: &[u8]) -> Option<Format> {
    let at =
        |offset: usize, magic: &[u8]| header.get(offset..).is_some_and(|h| h.starts_with(magic));
    // docs/interop/qcow2.rst and block/{vmdk,vdi,vhdx}.c of QEMU.
    if at(0, b"QFI\xfb") {
        Some(Format::Qcow2)
    } else if at(0, b"KDMV") || at(0, b"COWD") || at(0, b"# Disk DescriptorFile") {
        Some(Format::Vmdk)
    } else if at(0x40, &0xbeda_107f_u32.to_le_bytes()) {
        Some(Format::Vdi)
    } else if at(0, b"vhdxfile") {
        Some(Format::Vhdx)
    } else {
        None
    }
}

/// The format indicated by a file name; sufficient only for raw images, which have no header.
pub fn by_name(path: &Path) -> Option<Format> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "raw" | "img" | "disk" => Some(Format::Raw),
        "qcow2" | "qcow" => Some(Format::Qcow2),
        "vmdk" => Some(Format::Vmdk),
        "vdi" => Some(Format::Vdi),
        "vhdx" => Some(Format::Vhdx),
        _ => None,
    }
}

/// Determines the format of an open file from its first bytes.
///
/// Uses O_DIRECT where that works: each direct write of the guest would have to invalidate a page
/// of the image in the page cache.
pub fn read_magic(file: &File) -> io::Result<Option<Format>> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    let mut buffer = vec![0; 2 * HEADER];
    let begin = buffer.as_ptr().align_offset(HEADER).min(HEADER);
    let header = &mut buffer[begin..begin + HEADER];

    let direct = rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT)
        .map_err(io::Error::from)
        .and_then(|()| file.read_at(header, 0));
    let read = match direct {
        Ok(read) => read,
        Err(_) => {
            rustix::fs::fcntl_setfl(file, flags)?;
            let read = file.read_at(header, 0)?;
            // Only a hint; if it is refused, the page stays cached until it is reclaimed.
            let _ = rustix::fs::fadvise(file.as_fd(), 0, None, Advice::DontNeed);
            read
        }
    };
    Ok(by_magic(&header[..read]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn formats_are_known_by_their_magic() {
        let mut vdi = b"<<< Oracle VM VirtualBox Disk Image >>>\n".to_vec();
        vdi.resize(0x40, 0);
        vdi.extend([0x7f, 0x10, 0xda, 0xbe]);
        assert_eq!(by_magic(b"QFI\xfb\0\0\0\x03"), Some(Format::Qcow2));
        assert_eq!(by_magic(b"KDMV\x01"), Some(Format::Vmdk));
        assert_eq!(
            by_magic(b"# Disk DescriptorFile\nversion=1"),
            Some(Format::Vmdk)
        );
        assert_eq!(by_magic(&vdi), Some(Format::Vdi));
        assert_eq!(by_magic(b"vhdxfileM\0"), Some(Format::Vhdx));
        for other in [&b""[..], b"QFI", b"\x7fELF", &vdi[..0x43]] {
            assert_eq!(by_magic(other), None);
        }
    }

    #[test]
    fn names_promise_formats() {
        for name in ["a.raw", "a.img", "a.b.disk", "A.IMG"] {
            assert_eq!(by_name(Path::new(name)), Some(Format::Raw), "{name}");
        }
        assert_eq!(by_name(Path::new("a.qcow2")), Some(Format::Qcow2));
        for name in ["a", "raw", ".raw", "a.raw.gz", "a.iso"] {
            assert_eq!(by_name(Path::new(name)), None, "{name}");
        }
    }

    #[test]
    fn the_header_is_read_from_files_of_any_length() {
        for length in [0, 3, 4, 5000, 10_000] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            let mut content = b"QFI\xfb".to_vec();
            content.resize(length, 0);
            file.write_all(&content).unwrap();
            let found = read_magic(&File::open(file.path()).unwrap()).unwrap();
            assert_eq!(found, (length >= 4).then_some(Format::Qcow2), "{length}");
        }
    }
}
