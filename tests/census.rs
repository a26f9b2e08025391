//! `fragwatch scan --census`: every file of an XFS, and the names of the worst.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use support::expect::{BindMount, Said, copy_program, metadata_buffers, scan};
use support::guest::{self, BLOCK};
use support::{Bed, MIB, drop_caches, tools};

fn census(path: &Path, arguments: &[&str]) -> Value {
    let said = Said::by(scan(["--json", "--census"]).arg(path).args(arguments));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    serde_json::from_str(&said.out).unwrap()
}

fn worst(census: &Value) -> Vec<(&str, u64)> {
    let worst = census["worst"].as_array().unwrap();
    worst
        .iter()
        .map(|file| {
            let path = file["path"].as_str().unwrap_or("-");
            (path, file["extents"].as_u64().unwrap())
        })
        .collect()
}

/// All regular files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}

fn agrees_with_everyone(mut bed: Bed) {
    let at = |bed: &Bed, name: &str| bed.path().join(name);
    guest::random_direct_writes(&at(&bed, "random.img"), 64 * MIB, 4096);
    guest::preallocated_then_random_writes(&at(&bed, "preallocated.img"), 64 * MIB, 500);
    let mut extents = 1;
    for dir in ["a", "b", "c"] {
        fs::create_dir_all(at(&bed, dir)).unwrap();
        // More inodes than one call of the kernel reports.
        for n in 0..500 {
            let path = at(&bed, dir).join(n.to_string());
            match n {
                _ if n % 100 == 0 => {
                    guest::alternate_blocks(&path, extents);
                    extents += 7;
                }
                _ if n % 2 == 0 => fs::write(path, "text").unwrap(),
                _ => drop(File::create(path).unwrap()),
            }
        }
    }
    // No files, whatever they hold.
    std::os::unix::fs::symlink("a", at(&bed, "link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at(&bed, "fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();

    bed.sync();
    // With inodes in memory, and without.
    for cold in [false, true] {
        if cold {
            bed.cold();
        }
        let census = census(bed.path(), &["--top", "3"]);
        let files = files(bed.path());
        let counts = tools::xfs_io_stat_nextents_of(files.iter().map(AsRef::as_ref));
        let sum: u64 = counts.iter().sum();
        assert_eq!(census["files"], files.len());
        assert_eq!(census["extents"], sum);
        assert_eq!(census["mount"], bed.path().to_str().unwrap());
        for class in census["classes"].as_array().unwrap() {
            let bound = |key: &str| class[key].as_u64().unwrap();
            let range = bound("from_extents")..bound("to_extents");
            let within = counts.iter().filter(|count| range.contains(count)).count();
            assert_eq!(class["files"], within, "{range:?}");
        }
        let mut ranked: Vec<_> = std::iter::zip(counts, &files).collect();
        ranked.sort_unstable();
        let ranked = ranked.iter().rev().take(3);
        let expected: Vec<_> = ranked
            .map(|(n, path)| (path.to_str().unwrap(), *n))
            .collect();
        assert_eq!(worst(&census), expected);
        let first = &census["worst"][0];
        let stat = fs::metadata(at(&bed, "random.img")).unwrap();
        assert_eq!(first["inode"], stat.ino());
        assert_eq!(first["size_bytes"], 64 * MIB);
        assert_eq!(first["allocated_bytes"], stat.blocks() * 512);
        if cold {
            bed.remount_ro();
            assert_eq!(tools::xfs_db_frag(bed.device()).0, sum);
        }
    }
}

#[test]
fn agrees_with_single_counts_and_xfs_db() {
    let bed = Bed::xfs_with(&["-m", "rmapbt=1", "-i", "nrext64=1"]);
    agrees_with_everyone(support::require!(bed));
}

#[test]
fn agrees_on_xfs_of_the_old_format() {
    support::here_or_elsewhere!(Bed::xfs_v4(), agrees_with_everyone);
}

#[test]
fn the_worst_are_named_wherever_they_are() {
    let mut bed = support::require!(Bed::xfs());
    let deep = bed.path().join("not/an/image/directory");
    fs::create_dir_all(&deep).unwrap();
    let odd = [
        &b"new\nline"[..],
        b"\"quoted\"",
        b"back\\slash",
        b"no\xffutf8",
        b"100%20",
        b" ",
    ];
    for (n, name) in (100..).zip(odd) {
        guest::alternate_blocks(&deep.join(OsStr::from_bytes(name)), n);
    }
    let linked = deep.join("linked");
    guest::alternate_blocks(&linked, 200);
    let other = bed.path().join("another name of it");
    fs::hard_link(&linked, &other).unwrap();
    let looked_up = bed.path().join("looked up");
    guest::alternate_blocks(&looked_up, 300);

    for cold in [false, true] {
        if cold {
            bed.cold();
            fs::metadata(&looked_up).unwrap();
        } else {
            drop_caches(2);
        }
        let census = census(bed.path(), &[]);
        let worst = worst(&census);
        assert_eq!(worst.len(), 8);
        assert_eq!(worst[0], (looked_up.to_str().unwrap(), 300));
        assert!(
            [&linked, &other]
                .iter()
                .any(|p| p.to_str() == Some(worst[1].0)),
            "{worst:?}"
        );
        let deep = deep.display();
        let expected = [
            format!("{deep}/ "),
            format!("{deep}/100%20"),
            format!("{deep}/no\\xffutf8"),
            format!("{deep}/back\\slash"),
            format!("{deep}/\"quoted\""),
            format!("{deep}/new\\x0aline"),
        ];
        let paths: Vec<_> = worst[2..].iter().map(|(path, _)| *path).collect();
        assert_eq!(paths, expected);
        // The exact bytes, where the text is not exact.
        let hex = |name: &[u8]| -> String {
            let path = [deep.to_string().as_bytes(), b"/", name].concat();
            path.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let exact: Vec<_> = census["worst"].as_array().unwrap()[2..]
            .iter()
            .map(|file| file["path_hex"].as_str().map(str::to_owned))
            .collect();
        let none = || None::<String>;
        let expected = [
            none(),
            none(),
            Some(hex(odd[3])),
            none(),
            none(),
            Some(hex(odd[0])),
        ];
        assert_eq!(exact, expected);
    }

    // The same to be read by people: one line a file.
    let said = Said::by(scan(["--census"]).arg(bed.path()));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(
        said.out.contains("8 files with 1,115 extents"),
        "{}",
        said.out
    );
    let rows = said
        .out
        .lines()
        .filter(|line| line.contains("4.0 KiB"))
        .count();
    assert_eq!(rows, 8, "{}", said.out);
}

#[test]
fn a_deleted_file_that_is_open_has_no_name() {
    let bed = support::require!(Bed::xfs());
    let path = bed.path().join("vm.img");
    guest::alternate_blocks(&path, 10);
    let open = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let census = census(bed.path(), &[]);
    assert_eq!(
        (&census["files"], &census["extents"]),
        (&1.into(), &10.into())
    );
    assert_eq!(census["worst"][0]["path"], Value::Null);
    let said = Said::by(scan(["--census"]).arg(bed.path()));
    let inode = open.metadata().unwrap().ino();
    assert!(
        said.out.contains(&format!("inode {inode} (no name found")),
        "{}",
        said.out
    );
}

#[test]
fn a_bind_mount_of_a_part_does_not_hide_the_whole() {
    let mut bed = support::require!(Bed::xfs());
    let dir = bed.path().join("whole/part");
    fs::create_dir_all(&dir).unwrap();
    let file = bed.path().join("whole/vm.img");
    guest::alternate_blocks(&file, 10);
    bed.cold();
    // In the directory that holds the mount point: a shorter path than that of the whole.
    let place = bed.path().parent().unwrap().join("p");
    let part = support::require!(BindMount::new(&dir, &place));
    for path in [bed.path(), &place] {
        drop_caches(2);
        assert_eq!(worst(&census(path, &[])), [(file.to_str().unwrap(), 10)]);
    }
    drop(part);
}

#[test]
fn a_link_to_the_file_system_leads_to_it() {
    let bed = support::require!(Bed::xfs());
    let other = support::require!(Bed::ext4());
    guest::alternate_blocks(&bed.path().join("vm.img"), 10);
    let link = other.path().join("images");
    std::os::unix::fs::symlink(bed.path(), &link).unwrap();
    // And one that comes back by way of another file system.
    let back = bed.path().join("back");
    std::os::unix::fs::symlink(link.join("."), &back).unwrap();
    for path in [link, back.join("vm.img")] {
        assert_eq!(census(&path, &[])["extents"], 10);
    }
    let around = bed.path().join("around");
    std::os::unix::fs::symlink(other.path().join("around"), &around).unwrap();
    std::os::unix::fs::symlink(&around, other.path().join("around")).unwrap();
    let said = Said::by(scan(["--census"]).arg(&around));
    assert_eq!(said.code, Some(2));
    assert!(
        said.err.contains("too many levels of symbolic links"),
        "{}",
        said.err
    );
}

#[test]
fn counts_without_loading_maps() {
    let mut bed = support::require!(Bed::xfs());
    guest::alternate_blocks(&bed.path().join("vm.img"), 50_000);
    bed.cold();
    let before = metadata_buffers(bed.loop_device());
    let census = census(bed.path(), &[]);
    let buffers = metadata_buffers(bed.loop_device()) - before;
    assert_eq!(census["extents"], 50_000);
    // The map is in about 200 of them.
    assert!(buffers < 50, "{buffers}");
}

#[test]
fn refuses_what_it_cannot_count() {
    for (bed, kind) in [(Bed::ext4(), "ext4"), (Bed::btrfs(), "btrfs")] {
        let bed = support::require!(bed);
        let said = Said::by(scan(["--census"]).arg(bed.path()));
        assert_eq!((said.code, said.out.as_str()), (Some(2), ""));
        let path = bed.path().display();
        let expected = format!("fragwatch: {path}: lies on {kind}; a census needs XFS.");
        assert!(said.err.starts_with(&expected), "{}", said.err);
    }
    let bed = support::require!(Bed::xfs());
    let nothing = bed.path().join("nothing/there");
    for (path, kind) in [
        (&nothing, "No such file or directory"),
        (&PathBuf::from("/proc"), "lies on proc; a census needs XFS."),
    ] {
        let said = Said::by(scan(["--census"]).arg(path));
        assert_eq!((said.code, said.out.as_str()), (Some(2), ""));
        let expected = format!("fragwatch: {}: {kind}", path.display());
        assert!(said.err.starts_with(&expected), "{}", said.err);
    }
}

#[test]
fn needs_root() {
    let bed = support::require!(Bed::xfs());
    let setpriv = support::require!(tools::have("setpriv"));
    File::create(bed.path().join("vm.img"))
        .unwrap()
        .set_len(BLOCK)
        .unwrap();
    let program = bed.path().join("fragwatch");
    copy_program(env!("CARGO_BIN_EXE_fragwatch"), &program);
    let said = Said::by(
        Command::new(setpriv)
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .args(["scan", "--census"])
            .arg(bed.path()),
    );
    assert_eq!((said.code, said.out.as_str()), (Some(2), ""));
    let path = bed.path().display();
    let expected = format!("fragwatch: {path}: a census needs root (CAP_SYS_ADMIN)\n");
    assert_eq!(said.err, expected);
}
