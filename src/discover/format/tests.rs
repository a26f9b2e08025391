//! Tests of [`format`](super).

use super::*;
use proptest::prelude::*;
use std::io::Write as _;

#[test]
fn formats_are_known_by_their_magic() {
    let mut vdi = b"<<< Oracle VM VirtualBox Disk Image >>>\n".to_vec();
    vdi.resize(0x40, 0);
    vdi.extend([0x7f, 0x10, 0xda, 0xbe]);
    for (header, format) in [
        (&b"QFI\xfb\0\0\0\x03"[..], Format::Qcow2),
        (b"KDMV\x01", Format::Vmdk),
        (b"COWD\x01", Format::Vmdk),
        (b"\xbe\xba\xfe\xca\0\0\0\0", Format::Vmdk),
        (b"# Disk DescriptorFile\nversion=1", Format::Vmdk),
        (&vdi, Format::Vdi),
        (b"vhdxfileM\0", Format::Vhdx),
        (b"conectix\0\0\0\x02", Format::Vhd),
        (b"QED\0\0\0\x01\0", Format::Qed),
        (b"WithoutFreeSpace\x02", Format::Parallels),
        (b"WithouFreSpacExt\x02", Format::Parallels),
        (b"LUKS\xba\xbe\0\x01aes", Format::Luks),
        (b"LUKS\xba\xbe\0\x02", Format::Luks),
    ] {
        assert_eq!(by_magic(header), Some(format), "{header:?}");
    }
    for other in [
        &b""[..],
        b"QFI",
        b"\x7fELF",
        b"LUKS\xba\xbe\0\x03",
        &vdi[..0x43],
    ] {
        assert_eq!(by_magic(other), None);
    }
}

#[test]
fn a_partition_table_makes_an_image_but_a_boot_sector_does_not() {
    let mut table = vec![0; 4096];
    table[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert_eq!(by_magic(&table), None, "without partitions");
    // As sfdisk writes it: one partition of Linux, from sector 2048 on.
    let entry = [
        0, 0x20, 0x21, 0, 0x83, 0xfe, 0xff, 0xff, 0, 8, 0, 0, 0, 0xf8, 9, 0,
    ];
    table[446..462].copy_from_slice(&entry);
    assert_eq!(by_magic(&table), Some(Format::Raw));
    assert_eq!(by_magic(&table[..511]), None);
    // Before a GPT.
    table[450] = 0xee;
    assert_eq!(by_magic(&table), Some(Format::Raw));
    // Code, as in the boot sector of FAT.
    table[462..478].fill(0xcd);
    assert_eq!(by_magic(&table), None);
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

fn read_back(content: &[u8]) -> Header {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    read(&File::open(file.path()).unwrap(), content.len() as u64).unwrap()
}

#[test]
fn the_header_is_read_from_files_of_any_length() {
    for length in [0, 3, 4, 5000, 10_000] {
        let mut content = b"QFI\xfb".to_vec();
        content.resize(length, 0);
        let found = read_back(&content).format;
        assert_eq!(found, (length >= 4).then_some(Format::Qcow2), "{length}");
    }
}

#[test]
fn a_vhd_of_fixed_size_is_known_by_its_footer() {
    for disk in [512, 1536, 4096, 1 << 20] {
        let mut content = vec![0; disk];
        content.extend(b"conectix");
        assert_eq!(read_back(&content).format, None, "{disk}");
        content.resize(disk + 512, 0);
        assert_eq!(read_back(&content).format, Some(Format::Vhd), "{disk}");
    }
}

/// A header of qcow2 with these header extensions.
fn qcow2(version: u32, features: u64, extensions: &[(u32, &[u8])]) -> Vec<u8> {
    let mut header = b"QFI\xfb".to_vec();
    header.extend(version.to_be_bytes());
    header.resize(72, 0);
    header.extend(features.to_be_bytes());
    header.resize(100, 0);
    header.extend(112_u32.to_be_bytes());
    header.resize(112, 0);
    for (kind, data) in extensions {
        header.extend(kind.to_be_bytes());
        header.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        header.extend(*data);
        header.resize(header.len().next_multiple_of(8), 0);
    }
    header.resize(4096, 0);
    header
}

#[test]
fn an_external_data_file_of_qcow2_is_known() {
    let (format, data) = (
        (0xe279_2aca, &b"qcow2"[..]),
        (0x4441_5441, &b"a b.data"[..]),
    );
    let of = |header: &[u8]| read_back(header).data_files;
    assert_eq!(of(&qcow2(3, 4, &[format, data])), ["a b.data"]);
    assert_eq!(of(&qcow2(3, 0, &[format, data])), [""; 0]);
    assert_eq!(of(&qcow2(2, 4, &[format, data])), [""; 0]);
    assert_eq!(of(&qcow2(3, 4, &[format])), [""; 0]);
}

#[test]
fn a_descriptor_of_vmdk_names_its_files() {
    let mut text = String::from(
        "# Disk DescriptorFile\nversion=1\ncreateType=\"twoGbMaxExtentFlat\"\r\n\
         RW 4192256 FLAT \"a b-f001.vmdk\" 0\r\nRDONLY 63 SPARSE \"c.vmdk\"\n\
         RW 5 VMFS \"unfinished\nddb.adapterType = \"ide\"\n",
    );
    let expected = ["a b-f001.vmdk", "c.vmdk"];
    assert_eq!(read_back(text.as_bytes()).data_files, expected);
    text += &"#\n".repeat(4000);
    text += "RW 20971520 FLAT \"last.vmdk\" 0\n";
    assert_eq!(
        read_back(text.as_bytes()).data_files.last().unwrap(),
        "last.vmdk"
    );
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(
        content: Vec<u8>,
        length in 0_usize..2000,
        begin in prop::sample::select(vec![
            &b""[..], b"QFI\xfb\0\0\0\x03", VMDK_DESCRIPTOR, b"conectix", b"LUKS\xba\xbe",
        ]),
        numbers: [u32; 3],
    ) {
        let mut header = begin.to_vec();
        header.extend(&content);
        header.resize(length, 0xff);
        drop((by_magic(&header), data_files(&header)));
        let bytes = numbers.map(u32::to_be_bytes).concat();
        let mut qcow2 = qcow2(3, 4, &[(numbers[0], &content)]);
        qcow2[100..104].copy_from_slice(&(numbers[1] % 4200).to_be_bytes());
        qcow2[112..124].copy_from_slice(&bytes);
        drop(data_files(&qcow2));
        drop(read_back(&header));
    }

    #[test]
    fn every_name_of_a_data_file_comes_through(name in "[^\0\"\r\n]{1,60}") {
        let text = format!("# Disk DescriptorFile\nRW 63 FLAT \"{name}\" 0\n");
        prop_assert_eq!(data_files(text.as_bytes()), [OsString::from(&name)]);
        let qcow2 = qcow2(3, 4, &[(0x4441_5441, name.as_bytes())]);
        prop_assert_eq!(data_files(&qcow2), [OsString::from(&name)]);
    }
}
