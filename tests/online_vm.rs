//! A guest writes to its disk and verifies it, while the image is defragmented underneath: a real
//! QEMU, a real kernel, and at the end the guest's own word for it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "images of these tests are small"
)]
#![allow(clippy::print_stdout, reason = "it is the guest's serial line")]
#![allow(unreachable_pub, reason = "a test crate has no outside")]

mod support;

#[path = "online/engine.rs"]
mod engine;

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};

use support::boot::{self, Machine};
use support::guest::{Aligned, BLOCK};
use support::random::Random;
use support::skip::Here;
use support::{Bed, MIB, tools};

const IMAGE: u64 = 64 * MIB;
/// A block that the guest has discarded.
const DISCARDED: u64 = u64::MAX;

#[test]
fn a_guest_with_threads_finds_what_it_wrote() {
    support::require!(defragmented_underneath("threads"));
}

#[test]
fn a_guest_with_native_aio_finds_what_it_wrote() {
    support::require!(defragmented_underneath("native"));
}

fn defragmented_underneath(aio: &str) -> Here<()> {
    tools::have("xfs_repair")?;
    let mut bed = Bed::xfs_with(&["-m", "reflink=1,rmapbt=1"])?;
    let image = bed.path().join("vm.img");
    support::guest::random_direct_writes(&image, IMAGE, IMAGE / BLOCK);
    let machine = Machine {
        test: "guest",
        disk: Some(boot::Disk { image: &image, aio }),
        files: &[],
        memory: 384,
        kernel: boot::Kernel::Usual,
        processors: 1,
    };
    let mut vm = machine.start()?;
    vm.wait_for("guest: at work");
    let from = tools::xfs_io_stat_nextents(&image);
    let said = engine::defrag(&bed, &image);
    vm.say("enough");
    let verified = vm.wait_for("guest: verified");
    vm.end();
    let to = tools::xfs_io_stat_nextents(&image);
    eprintln!("{aio}: {from} to {to} extents; {verified}\n{said}");
    assert_eq!(said["outcome"], "improved", "{said}");
    assert!(to * 50 < from, "{from} to {to}: {said}");
    assert_eq!(engine::shared(&image), 0);
    engine::repair_finds_nothing(&mut bed);
    Ok(())
}

#[test]
#[ignore = "not a test: what the virtual machine does"]
fn guest() {
    if !boot::is_guest() {
        return;
    }
    boot::arrive();
    println!();
    let enough = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&enough);
    thread::spawn(move || {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        told.store(true, Ordering::Relaxed);
    });
    let mut disk = Disk::open(&boot::disk());
    println!("guest: at work on {} blocks", disk.versions.len());
    while !enough.load(Ordering::Relaxed) {
        disk.act();
        // Some 500 times a second, if its processor is as fast as that.
        thread::sleep(Duration::from_millis(1));
    }
    disk.verify();
    println!(
        "guest: verified {} blocks after {} writes and {} discards",
        disk.versions.len(),
        disk.writes,
        disk.discards
    );
    assert!(disk.writes > 0 && disk.discards > 0);
    boot::leave();
}

/// What the guest knows of its disk.
struct Disk {
    file: File,
    /// What it wrote last to each block.
    versions: Vec<u64>,
    random: Random,
    turn: u64,
    writes: u64,
    discards: u64,
    buffers: [Aligned; 2],
}

impl Disk {
    fn open(path: &Path) -> Disk {
        let mut file = support::guest::open_direct(path).unwrap();
        let size = file.seek(SeekFrom::End(0)).unwrap();
        Disk {
            file,
            // As it was made.
            versions: vec![0; (size / BLOCK) as usize],
            random: Random::new(size),
            turn: 0,
            writes: 0,
            discards: 0,
            buffers: [Aligned::block(), Aligned::block()],
        }
    }

    fn act(&mut self) {
        self.turn += 1;
        let block = self.random.below(self.versions.len() as u64);
        match self.random.below(1000) {
            0..700 => self.write(block),
            700..990 => self.check(block),
            990..998 => self.discard(block),
            _ => self.file.sync_data().unwrap(),
        }
    }

    fn write(&mut self, block: u64) {
        let [buffer, _] = &mut self.buffers;
        support::guest::stamp(buffer, block, self.turn);
        self.file.write_all_at(buffer, block * BLOCK).unwrap();
        self.versions[block as usize] = self.turn;
        self.writes += 1;
    }

    /// Which the host does to the image.
    fn discard(&mut self, block: u64) {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, hole, block * BLOCK, BLOCK).unwrap();
        self.versions[block as usize] = DISCARDED;
        self.discards += 1;
    }

    fn check(&mut self, block: u64) {
        let [expected, found] = &mut self.buffers;
        let version = self.versions[block as usize];
        match version {
            DISCARDED => expected.fill(0),
            version => support::guest::stamp(expected, block, version),
        }
        self.file.read_exact_at(found, block * BLOCK).unwrap();
        assert!(**found == **expected, "guest: block {block} lost {version}");
    }

    fn verify(&mut self) {
        self.file.sync_data().unwrap();
        for block in 0..self.versions.len() as u64 {
            self.check(block);
        }
    }
}
