//! Raw images with holes: QEMU copies them by 64 KiB, and what that comes to is asked for before.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::libvirt::Libvirt;
use super::support::{self, Bed, KIB, MIB};
use super::{defrag, inode, qcow2::taken, report};

const IMAGE: u64 = 64 * MIB;

/// An image with a block in every 128 KiB.
#[test]
fn what_a_copy_takes_is_known_before() {
    let bed = support::require!(Bed::xfs_with(&["-m", "reflink=0"]));
    let libvirt = support::require!(Libvirt::start());
    let image = bed.path().join("vm.raw");
    let file = File::create(&image).unwrap();
    file.set_len(IMAGE).unwrap();
    for at in (0..IMAGE).step_by(128 << 10) {
        file.write_all_at(&[b'a'; 4096], at + 32 * KIB).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    libvirt.define("thin", &image, "", "");
    libvirt.power_on("thin");
    let run = |options: &[&str]| {
        let mut run = defrag(&libvirt, &bed, &image, "");
        report(&run.args(options).output().unwrap())
    };
    let told = run(&["--dry-run"])["copies_bytes"].as_u64().unwrap();
    let before = inode(&image);
    let done = run(&[]);
    assert_ne!(inode(&image), before, "{done}");
    // Some blocks of metadata are not counted before.
    let took = taken(&image);
    assert!(
        (told..told + 64 * KIB).contains(&took),
        "{told} {took} {done}"
    );
}
