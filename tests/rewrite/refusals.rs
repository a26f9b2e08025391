//! What is left alone, and what names can do.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use super::support::{self, Bed, MIB, guest, tools};
use super::{bed, finish, inode, kept, names, noted, protect, remove, rewrite, said, thaw, xfs_io};

fn refused(bed: &Bed, image: &Path, why: &str) {
    let before = names(image.parent().unwrap());
    let text = said(&mut protect(bed, "--rewrite", image, ""), false);
    assert!(text.contains(why), "{text}");
    assert_eq!((names(image.parent().unwrap()), noted(bed)), (before, 0));
}

#[test]
fn what_is_not_safe_is_refused() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 8 * MIB, 1024);
    let sum = tools::checksum(&image);

    let reader = File::open(&image).unwrap();
    refused(&bed, &image, "in use by");
    drop(reader);

    let link = bed.path().join("hard");
    fs::hard_link(&image, &link).unwrap();
    refused(&bed, &image, "has 2 names (hard links)");
    fs::remove_file(link).unwrap();

    for (flag, why) in [("i", "is immutable"), ("a", "can only be appended to")] {
        xfs_io(&format!("chattr +{flag}"), &image);
        refused(&bed, &image, why);
        thaw(&image);
    }

    symlink(&image, bed.path().join("link")).unwrap();
    refused(&bed, &bed.path().join("link"), "is a symbolic link");
    symlink(bed.path(), bed.path().join("way")).unwrap();
    refused(&bed, &bed.path().join("way/vm.raw"), "is a symbolic link");
    refused(&bed, bed.path(), "is a directory");

    // Nothing at that name is touched or followed.
    symlink("/nowhere", kept(&image)).unwrap();
    refused(&bed, &image, "vm.raw.before-rewrite exists");
    assert!(fs::symlink_metadata(kept(&image)).unwrap().is_symlink());
    fs::remove_file(kept(&image)).unwrap();

    let filler = File::create(bed.path().join("filler")).unwrap();
    let size = rustix::fs::statvfs(bed.path()).unwrap();
    let most = size.f_bavail * size.f_frsize - 4 * MIB;
    fallocate(&filler, FallocateFlags::empty(), 0, most).unwrap();
    refused(&bed, &image, "not enough free space: needs 8.0 MiB");
    fs::remove_file(bed.path().join("filler")).unwrap();
    assert_eq!(tools::checksum(&image), sum);
}

#[test]
fn shared_blocks_are_not_taken_twice_unless_told() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 8 * MIB, 1024);
    let sum = tools::checksum(&image);
    let snapshot = bed.path().join("snapshot");
    guest::reflink_copy(&image, &snapshot);
    refused(&bed, &image, "shares blocks with a reflink copy");
    let mut forced = protect(&bed, "--rewrite", &image, "");
    said(forced.arg("--force"), true);
    assert_eq!(
        (tools::checksum(&image), tools::checksum(&snapshot)),
        (sum.clone(), sum)
    );
}

#[test]
fn the_old_file_is_removed_only_if_it_is_the_old_file() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 8 * MIB, 1024);
    let not = |why: &str| {
        let text = said(&mut protect(&bed, "--rewrite-finish", &image, ""), false);
        assert!(text.contains(why), "{text}");
    };
    not("no rewrite is known");
    rewrite(&bed, &image);
    let text = said(&mut protect(&bed, "--rewrite", &image, ""), false);
    assert!(text.contains("--rewrite-finish"), "{text}");
    let reader = File::open(kept(&image)).unwrap();
    not("is in use");
    drop(reader);
    // Somebody who had found the old file in time writes to it.
    thaw(&kept(&image));
    xfs_io("pwrite 0 4096", &kept(&image));
    not("was written to after it was copied");
    // And somebody puts another in its place.
    let elsewhere = bed.path().join("elsewhere");
    fs::rename(kept(&image), &elsewhere).unwrap();
    fs::write(kept(&image), "mine").unwrap();
    not("is not the file that was kept");
    assert_eq!(fs::read(kept(&image)).unwrap(), b"mine");
    // Without it, there is nothing left to know.
    fs::remove_file(kept(&image)).unwrap();
    super::recover(&bed);
    assert_eq!(noted(&bed), 0);
}

#[test]
fn any_name_is_a_name() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let long = "n".repeat(240);
    let hostile: [&[u8]; 5] = [
        b"-rf",
        b"new\nline",
        b"not \xff\xfe utf-8",
        b"$(id)",
        long.as_bytes(),
    ];
    for name in hostile {
        let directory = bed.path().join(OsStr::from_bytes(b"a b\n"));
        fs::create_dir_all(&directory).unwrap();
        let image = directory.join(OsStr::from_bytes(name));
        guest::random_direct_writes(&image, 2 * MIB, 256);
        let (sum, old) = (tools_sum(&image), inode(&image));
        rewrite(&bed, &image);
        assert_eq!(tools_sum(&image), sum);
        assert_eq!(inode(&kept(&image)), old);
        finish(&bed, &image);
        assert_eq!((names(&directory), noted(&bed)), (1, 0));
        fs::remove_file(&image).unwrap();
    }
    // Its second name would be too long.
    let image = bed.path().join("n".repeat(250));
    guest::random_direct_writes(&image, 2 * MIB, 256);
    refused(&bed, &image, "File name too long");
    remove(&image);
}

/// sha256sum escapes such names.
fn tools_sum(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}
