//! Images of the format qcow2: the guest's disk and all properties are the same after a copy, QEMU finds
//! nothing wrong with it, and what a copy would lack is refused.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use fragwatch::internals::defrag::{Content, Layout};
use fragwatch::internals::model::{RunOutcome, Stop};

use super::libvirt::{Libvirt, until};
use super::support::child::Child;
use super::support::guest::{self, Aligned, BLOCK};
use super::support::random::{Random, SEED};
use super::support::rundir::{self, Place};
use super::support::skip::Here;
use super::support::{self, Bed, MIB, tools};
use super::{defrag, inode, is_switching, names, noted, recover, report, state};

const VM: &str = "idle";

/// Runs a tool of QEMU.
fn tool(name: &str, arguments: &[&str]) -> Output {
    let output = Command::new(name).args(arguments).output().unwrap();
    assert!(output.status.success(), "{name} {arguments:?}: {output:?}");
    output
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image of this format with the content of a raw one, in as many extents as there can be.
pub fn shattered(raw: &Path, image: &Path, options: &[&str]) -> Here<()> {
    tools::have("qemu-img")?;
    let whole = raw.with_extension("whole");
    let arguments = [
        &["convert", "-O", "qcow2"],
        options,
        &[text(raw), text(&whole)],
    ]
    .concat();
    tool("qemu-img", &arguments);
    let mut from = File::open(&whole).unwrap();
    let length = from.seek(SeekFrom::End(0)).unwrap();
    File::create_new(image)
        .unwrap()
        .set_len(length.next_multiple_of(BLOCK))
        .unwrap();
    let to = guest::open_direct(image).unwrap();
    let blocks = length.div_ceil(BLOCK);
    let mut block = Aligned::block();
    for number in Random::new(SEED).distinct(blocks, blocks) {
        block.fill(0);
        let read = from.read_at(&mut block, number * BLOCK).unwrap();
        assert!(read > 0);
        to.write_all_at(&block, number * BLOCK).unwrap();
    }
    to.sync_all().unwrap();
    fs::remove_file(whole).unwrap();
    Ok(())
}

/// QEMU finds no error in an image, and no leak. Nothing is checked of a raw one.
pub fn check(image: &Path) {
    if image.extension().is_some_and(|its| its == "qcow2") {
        tool("qemu-img", &["check", "-f", "qcow2", text(image)]);
    }
}

/// The same, but what was allocated for writes that a power cut has taken may be a leak (exit code 3 of qemu-img).
pub fn check_after_cut(image: &Path) {
    if image.extension().is_some_and(|its| its == "qcow2") {
        let mut check = Command::new("qemu-img");
        let output = check.args(["check", "-f", "qcow2", text(image)]).output();
        let output = output.unwrap();
        assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");
    }
}

/// The guest's disk is that of a raw image.
fn compare(raw: &Path, image: &Path) {
    let formats = ["compare", "-f", "raw", "-F", "qcow2"];
    tool(
        "qemu-img",
        &[&formats[..], &[text(raw), text(image)]].concat(),
    );
}

/// The properties of an image, as QEMU prints them.
fn properties(image: &Path) -> [Value; 3] {
    let output = tool("qemu-img", &["info", "--output=json", text(image)]);
    let mut info: Value = serde_json::from_slice(&output.stdout).unwrap();
    ["virtual-size", "cluster-size", "format-specific"].map(|key| info[key].take())
}

/// A directory for images, removed with it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Here<Directory> {
        tools::have("qemu-img")?;
        tools::have("qemu-io")?;
        Ok(Directory(rundir::new_dir(Place::Disk).unwrap()))
    }

    /// Creates an image.
    fn image(&self, options: &str, more: &[&str], size: &str) -> PathBuf {
        let path = self.0.join("a.qcow2");
        let _ = fs::remove_file(&path);
        let all = [
            &["create", "-q", "-f", "qcow2", "-o", options],
            more,
            &[text(&path), size],
        ]
        .concat();
        tool("qemu-img", &all);
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        rundir::remove(&self.0);
    }
}

fn layout(image: &Path) -> Result<Layout, &'static str> {
    let mut header = [0; 4096];
    let read = File::open(image).unwrap().read_at(&mut header, 0).unwrap();
    Layout::of(&header[..read])
}

/// All properties, each at its ends.
const OPTIONS: [&str; 12] = [
    "compat=1.1",
    "cluster_size=512",
    "cluster_size=2M",
    "cluster_size=4k,refcount_bits=64",
    "cluster_size=512,refcount_bits=64",
    "refcount_bits=1",
    "refcount_bits=2",
    "refcount_bits=4",
    "refcount_bits=8,lazy_refcounts=on",
    "refcount_bits=32,compression_type=zstd",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,cluster_size=128k,lazy_refcounts=on",
];

#[test]
fn an_empty_image_has_all_properties_of_the_image() {
    let directory = support::require!(Directory::new());
    // A disk that fills no cluster, and one whose tables take many clusters of 512 bytes.
    for size in ["512", "3000000512"] {
        for options in OPTIONS {
            let image = directory.image(options, &[], size);
            let (expected, layout) = (properties(&image), layout(&image).unwrap());
            let empty = layout.empty();
            fs::write(&image, &empty.begin).unwrap();
            let file = File::options().write(true).open(&image).unwrap();
            file.set_len(empty.length).unwrap();
            check(&image);
            assert_eq!(properties(&image), expected, "{options} {size}");
            // QEMU uses it, with tables in the place that is theirs.
            let last = size.parse::<u64>().unwrap() - 512;
            let write = format!("write -P 7 {last} 512");
            tool("qemu-io", &["-f", "qcow2", "-c", &write, text(&image)]);
            let read = format!("read -P 7 {last} 512");
            tool("qemu-io", &["-f", "qcow2", "-c", &read, text(&image)]);
            check(&image);
            let taken = fs::metadata(&image).unwrap().len();
            let most = layout.metadata() + layout.cluster;
            assert!(taken <= most, "{options} {size}: {taken} of {most}");
        }
    }
}

#[test]
fn the_disk_is_read_as_qemu_reads_it() {
    let directory = support::require!(Directory::new());
    let raw = directory.0.join("raw");
    for options in OPTIONS {
        let image = directory.image(options, &[], "10000384");
        let writes = [
            "write -P 1 0 5k",
            "write -P 2 300k 1M",
            "write -z 400k 128k",
            "discard 600k 64k",
            "write -P 3 9999872 512",
            "write -z 3M 2M",
            "write -P 4 3584k 4k",
        ];
        for write in writes {
            tool(
                "qemu-io",
                &["-f", "qcow2", "-d", "unmap", "-c", write, text(&image)],
            );
        }
        tool(
            "qemu-img",
            &["convert", "-O", "raw", text(&image), text(&raw)],
        );
        let (file, expected) = (File::open(&image).unwrap(), fs::read(&raw).unwrap());
        let content = Content::of(&file, "qcow2").unwrap();
        assert_eq!(content.size().unwrap(), 10_000_384);
        for (number, expected) in expected.chunks(65_536).enumerate() {
            let read = content.read(number as u64 * 65_536, 65_536).unwrap();
            assert!(read.as_deref() == Some(expected), "{options} {number}");
        }
        // Where there is data, there is some in all that is copied, but for zeros that fill no cluster.
        let layout = layout(&image).unwrap();
        let grain = layout.cluster.clamp(4096, 65_536).max(layout.piece()) as usize;
        let has_data = |part: &&[u8]| part.iter().any(|byte| *byte != 0);
        let least = expected.chunks(grain).filter(has_data).count() as u64 * grain as u64;
        let odd = match layout.cluster < 4096 || layout.has_subclusters {
            true => 8 * grain as u64,
            false => 0,
        };
        let copied = content.copied(&mut || None).unwrap().0;
        assert!(
            (least..=least + odd).contains(&copied),
            "{options}: {copied} of {least}"
        );
    }
}

/// The number of times that this thread has read.
fn reads() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("syscr: "));
    line.unwrap().parse().unwrap()
}

/// The guest stands still meanwhile.
#[test]
fn tables_are_not_read_entry_by_entry() {
    let directory = support::require!(Directory::new());
    let image = directory.image("cluster_size=512", &[], "1M");
    tool(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 7 0 1M", text(&image)],
    );
    let file = File::open(&image).unwrap();
    let content = Content::of(&file, "qcow2").unwrap();
    let before = reads();
    assert_eq!(content.read(0, 65_536).unwrap(), Some(vec![7; 65_536]));
    let read = reads() - before;
    // Of two L2 tables, and their data, between which tables may lie.
    eprintln!("{read} reads");
    assert!(read < 32, "{read}");
}

#[test]
fn what_is_allocated_is_copied_even_if_it_is_a_hole_of_the_file() {
    let directory = support::require!(Directory::new());
    // A cluster of subclusters is allocated without them.
    for (options, expected) in [
        ("cluster_size=64k", 64 * MIB),
        ("cluster_size=512", 64 * MIB),
        ("extended_l2=on,cluster_size=128k", 0),
    ] {
        let options = format!("{options},preallocation=metadata");
        let image = directory.image(&options, &[], "64M");
        let file = File::open(&image).unwrap();
        let content = Content::of(&file, "qcow2").unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 < 32 * MIB);
        let copied = content.copied(&mut || None).unwrap().0;
        assert_eq!(copied, expected, "{options}");
        let stopped = content.copied(&mut || Some(Stop::Incident));
        assert_eq!(
            stopped,
            Err(RunOutcome::Stopped {
                why: Stop::Incident
            })
        );
    }
}

#[test]
fn damaged_tables_are_refused() {
    let directory = support::require!(Directory::new());
    let image = directory.image("cluster_size=64k", &[], "1T");
    tool(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 7 0 1M", text(&image)],
    );
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let l1 = layout(&image).unwrap().l1;
    let copied = || Content::of(&file, "qcow2").unwrap().copied(&mut || None);
    assert_eq!(copied().unwrap().0, MIB);
    let mut table = [0; 8];
    file.read_exact_at(&mut table, l1).unwrap();
    let refused = |entries: &[u8]| {
        file.write_all_at(entries, l1).unwrap();
        let why = format!("{:?}", copied().unwrap_err());
        assert!(why.contains("qemu-img check"), "{why}");
    };
    // One table for the whole disk, one behind the end of the file, and one between clusters.
    refused(&table.repeat(2048));
    refused(&[&(1_u64 << 40).to_be_bytes()[..], &[0; 2047 * 8]].concat());
    refused(&(u64::from_be_bytes(table) + 512).to_be_bytes());
}

#[test]
fn compressed_clusters_are_counted_and_not_read() {
    let directory = support::require!(Directory::new());
    let raw = directory.0.join("raw");
    fs::write(&raw, vec![9; 3 << 20]).unwrap();
    for options in [
        "compression_type=zlib",
        "compression_type=zstd",
        "extended_l2=on,cluster_size=128k",
    ] {
        let image = directory.0.join("a.qcow2");
        let all = [
            "convert",
            "-c",
            "-O",
            "qcow2",
            "-o",
            options,
            text(&raw),
            text(&image),
        ];
        tool("qemu-img", &all);
        tool(
            "qemu-io",
            &["-f", "qcow2", "-c", "write -P 5 1M 1M", text(&image)],
        );
        let file = File::open(&image).unwrap();
        let content = Content::of(&file, "qcow2").unwrap();
        assert_eq!(content.read(0, 65_536).unwrap(), None);
        assert_eq!(
            content.read(1 << 20, 65_536).unwrap(),
            Some(vec![5; 65_536])
        );
        assert_eq!(
            content.copied(&mut || None).unwrap().0,
            3 << 20,
            "{options}"
        );
    }
}

#[test]
fn what_a_copy_would_lack_is_refused() {
    let directory = support::require!(Directory::new());
    let (base, data) = (directory.0.join("base"), directory.0.join("data"));
    fs::write(&base, vec![1; 1 << 20]).unwrap();
    let plain = || directory.image("compat=1.1", &[], "1M");
    let refused = |image: &Path, words: &str| {
        let why = layout(image).unwrap_err();
        assert!(why.contains(words), "{why}");
        // The way out.
        assert!(why.contains(": "), "{why}");
    };
    let above = directory.image("compat=1.1", &["-b", text(&base), "-F", "raw"], "1M");
    refused(&above, "a backing file");
    let secret = ["--object", "secret,id=s,data=abc"];
    refused(
        &directory.image(
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            &secret,
            "1M",
        ),
        "encrypted",
    );
    let external = format!("data_file={}", text(&data));
    refused(&directory.image(&external, &[], "1M"), "another file holds");
    refused(&directory.image("compat=0.10", &[], "1M"), "qemu-img amend");
    tool("qemu-img", &["snapshot", "-c", "before", text(&plain())]);
    refused(&directory.0.join("a.qcow2"), "snapshots inside");
    tool("qemu-img", &["bitmap", "--add", text(&plain()), "b"]);
    refused(&directory.0.join("a.qcow2"), "persistent bitmaps");
    let features = |byte: u8| {
        let image = plain();
        let file = File::options().write(true).open(&image).unwrap();
        file.write_all_at(&[byte], 79).unwrap();
        image
    };
    refused(&features(2), "marked it as corrupt");
    refused(&features(0x20), "newer than this");
    // As long as QEMU uses an image with lazy refcounts.
    assert!(layout(&features(1)).is_ok());
    fs::write(directory.0.join("a.qcow2"), b"QFI\xfb").unwrap();
    refused(&directory.0.join("a.qcow2"), "damaged");
}

/// Copies an image with these options under a VM whose guest is idle.
fn copied(bed: &Bed, libvirt: &Libvirt, options: &[&str]) -> Here<()> {
    let beside = bed.path().parent().unwrap();
    let (raw, image) = (beside.join("raw"), bed.path().join("vm.qcow2"));
    shattered(&raw, &image, options)?;
    let (expected, before, read) = (properties(&image), inode(&image), taken(&image));
    let most = {
        let file = File::open(&image).unwrap();
        let copied = Content::of(&file, "qcow2").unwrap().copied(&mut || None);
        copied.unwrap().0.max(read) + layout(&image).unwrap().metadata()
    };
    let from = tools::filefrag_count(&image);
    libvirt.define(VM, &image, "", "");
    libvirt.power_on(VM);
    let output = defrag(libvirt, bed, &image, "").output().unwrap();
    let run = report(&output);
    assert_eq!(
        run["outcome"],
        "improved",
        "{run} {output:?} {}",
        libvirt.log()
    );
    let written = taken(&image);
    let xml = libvirt.virsh(&["dumpxml", VM, "--inactive"]);
    assert!(xml.contains("type='qcow2'"), "{xml}");
    libvirt.virsh(&["destroy", VM]);
    assert_eq!((recover(libvirt, bed), noted(bed)), (String::new(), 0));
    let to = tools::filefrag_count(&image);
    assert!(written <= most, "{written} of {most}: {run}");
    assert_eq!(
        (&run["read_bytes"], &run["written_bytes"]),
        (&read.into(), &written.into())
    );
    eprintln!("{options:?}: {from} to {to} extents, {read} to {written} bytes, {run}");
    assert_ne!(inode(&image), before);
    assert!(to <= from / 20 + 4, "{options:?}: {from} to {to}");
    check(&image);
    assert_eq!(properties(&image), expected, "{options:?}");
    compare(&raw, &image);
    libvirt.virsh(&["undefine", VM]);
    fs::remove_file(&image).unwrap();
    Ok(())
}

#[test]
fn images_of_all_properties_are_copied() {
    let bed = support::require!(Bed::xfs_with(&["-m", "reflink=0"]));
    let libvirt = support::require!(Libvirt::start());
    let raw = bed.path().parent().unwrap().join("raw");
    // Data, a little text that can be compressed, and holes.
    guest::random_direct_writes(&raw, 32 * MIB, 32 * MIB / BLOCK);
    let file = File::options().write(true).open(&raw).unwrap();
    for at in (0..32).step_by(16) {
        file.write_all_at(&[b'a'; 1 << 20], at << 20).unwrap();
        file.write_all_at(&[0; 2 << 20], (at + 4) << 20).unwrap();
    }
    let all: [&[&str]; 6] = [
        &[],
        &["-c"],
        &["-c", "-o", "compression_type=zstd,refcount_bits=64"],
        &["-o", "cluster_size=2M"],
        &["-o", "cluster_size=4k,lazy_refcounts=on"],
        &["-o", "extended_l2=on,cluster_size=128k"],
    ];
    for options in all {
        support::require!(copied(&bed, &libvirt, options));
    }
}

/// What a file takes up, in bytes.
pub fn taken(image: &Path) -> u64 {
    fs::metadata(image).unwrap().blocks() * 512
}

#[test]
fn a_thin_image_does_not_become_thick() {
    let bed = support::require!(Bed::xfs_with(&["-m", "reflink=0"]));
    let libvirt = support::require!(Libvirt::start());
    let image = bed.path().join("vm.qcow2");
    let raw = bed.path().parent().unwrap().join("raw");
    fs::write(&raw, vec![b'a'; 8 << 20]).unwrap();
    let options = "preallocation=metadata";
    for is_compressed in [false, true] {
        if is_compressed {
            support::require!(shattered(&raw, &image, &["-c"]));
        } else {
            let path = text(&image);
            tool(
                "qemu-img",
                &["create", "-q", "-f", "qcow2", "-o", options, path, "64M"],
            );
            // A second extent.
            let write = ["-f", "qcow2", "-c", "write -P 7 60M 64k", path];
            tool("qemu-io", &write);
        }
        let (before, took) = (inode(&image), taken(&image));
        libvirt.define(VM, &image, "", "");
        libvirt.power_on(VM);
        let output = defrag(&libvirt, &bed, &image, "").output().unwrap();
        let run = report(&output);
        assert_eq!(run["outcome"], "refused", "{run} {output:?}");
        let why = run.to_string();
        assert!(
            why.contains("its copy would take") && why.contains("qemu-img convert"),
            "{why}"
        );
        assert_eq!((inode(&image), taken(&image)), (before, took));
        libvirt.virsh(&["destroy", VM]);
        libvirt.virsh(&["undefine", VM]);
        fs::remove_file(&image).unwrap();
    }
}

/// QEMU has metadata of both files in memory until it flushes them.
#[test]
fn qemu_killed_during_the_switch_leaves_a_whole_image() {
    let bed = support::require!(Bed::xfs_with(&["-m", "reflink=0"]));
    let libvirt = support::require!(Libvirt::start());
    let raw = bed.path().parent().unwrap().join("raw");
    let image = bed.path().join("vm.qcow2");
    guest::random_direct_writes(&raw, 16 * MIB, 1024);
    for round in 0..3 {
        let _ = fs::remove_file(&image);
        support::require!(shattered(&raw, &image, &[]));
        if round == 0 {
            libvirt.define(VM, &image, "", "");
        }
        libvirt.power_on(VM);
        let before = inode(&image);
        let mut child = Child::spawn(&mut defrag(&libvirt, &bed, &image, "")).unwrap();
        // The guest may stand still, QEMU has pivoted, the path leads to the copy.
        let is_reached = || match round {
            0 => is_switching(&state(&bed)),
            1 => !libvirt.writes(VM, bed.path()).contains(&before),
            _ => inode(&image) != before,
        };
        until("the switch", || {
            is_reached() || child.wait(Duration::ZERO).is_some()
        });
        libvirt.kill_qemu(VM);
        child.end();
        until("the end of the copy", || {
            recover(&libvirt, &bed);
            (names(&image).len(), noted(&bed)) == (1, 0)
        });
        let is_copy = inode(&image) != before;
        eprintln!("round {round}: on the copy: {is_copy}");
        assert!(is_copy || round < 2);
        check(&image);
        compare(&raw, &image);
        assert_eq!(libvirt.source(VM, &["--inactive"]), image);
        libvirt.power_on(VM);
        libvirt.virsh(&["destroy", VM]);
        check(&image);
    }
}
