//! A guest writes numbered blocks and reads them again, while its disk is copied underneath, and after
//! that: all of it is there, and it is never an older state.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::libvirt::{Libvirt, until};
use super::support::boot::{self, Machine};
use super::support::guest::{self, Aligned, BLOCK};
use super::support::random::{Random, mix};
use super::support::skip::Here;
use super::support::{self, Bed, MIB, rundir, tools};
use super::{defrag, inode, names, noted, qcow2, recover, report};

pub(super) const IMAGE: u64 = 64 * MIB;
/// For a guest whose disk has holes: blocks that were never written are zeros.
pub const THIN: &str = "FRAGWATCH_THIN=1 ";
/// So often it prints what it has written.
const REPORTS: u64 = 100;

#[test]
fn without_reflink() {
    support::require!(copied_underneath(
        Bed::xfs_with(&["-m", "reflink=0"]),
        "raw"
    ));
}

#[test]
fn with_reflink() {
    support::require!(copied_underneath(
        Bed::xfs_with(&["-m", "reflink=1"]),
        "raw"
    ));
}

#[test]
fn on_ext4() {
    support::require!(copied_underneath(Bed::ext4(), "raw"));
}

#[test]
fn qcow2_without_reflink() {
    let bed = Bed::xfs_with(&["-m", "reflink=0"]);
    support::require!(copied_underneath(bed, "qcow2"));
}

/// What the guest boots.
pub fn parts() -> Here<boot::Parts> {
    let machine = Machine {
        test: "written::guest",
        disk: None,
        files: &[],
        memory: 384,
        kernel: boot::Kernel::Usual,
        processors: 1,
    };
    machine.parts()
}

/// A guest at work.
pub struct Guest {
    log: PathBuf,
}

impl Guest {
    pub fn start(libvirt: &Libvirt, bed: &Bed, image: &Path, parts: &boot::Parts) -> Guest {
        let log = bed.path().parent().unwrap().join("serial");
        let words = parts.words.replace('&', "&amp;").replace('<', "&lt;");
        let (kernel, memory) = (parts.kernel.display(), parts.memory.display());
        let os =
            format!("<kernel>{kernel}</kernel><initrd>{memory}</initrd><cmdline>{words}</cmdline>");
        let log_xml = log.display();
        let serial = format!("<serial type='file'><source path='{log_xml}' append='on'/></serial>");
        libvirt.define("guest", image, &os, &serial);
        libvirt.power_on("guest");
        Guest { log }
    }

    /// All numbers that it printed after a word.
    pub fn printed(&self, word: &str) -> Vec<u64> {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        assert!(
            !text.contains("panicked") && !text.contains("Kernel panic"),
            "{text}"
        );
        let whole = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        let numbers = whole.filter_map(|line| line.trim().strip_prefix(word)?.trim().parse().ok());
        numbers.collect()
    }

    /// The last write that it printed: this and all before it are flushed.
    pub fn turn(&self) -> u64 {
        self.printed("turn").last().copied().unwrap_or(0)
    }

    /// Waits until it has come up for the `number`-th time, having found all that it had written.
    pub fn wait_for_start(&self, number: usize) -> u64 {
        let [found, last] = self.wait_after_cut(number);
        assert_eq!(found, last);
        found
    }

    /// The same, of a guest whose writes since its last flush may be lost: up to which write it has found
    /// all, and the last one of which it found something.
    pub fn wait_after_cut(&self, number: usize) -> [u64; 2] {
        until("the guest", || self.printed("found").len() >= number);
        ["found", "last"].map(|word| self.printed(word)[number - 1])
    }

    pub fn wait_for_more(&self) {
        let before = self.turn();
        until("a write of the guest", || self.turn() > before + REPORTS);
    }
}

fn copied_underneath(bed: Here<Bed>, format: &str) -> Here<()> {
    let bed = bed?;
    let libvirt = Libvirt::start()?;
    let image = bed.path().join(format!("vm - -more-.{format}"));
    match format {
        "raw" => guest::random_direct_writes(&image, IMAGE, IMAGE / BLOCK),
        _ => {
            let raw = bed.path().parent().unwrap().join("raw");
            guest::random_direct_writes(&raw, IMAGE, IMAGE / BLOCK);
            qcow2::shattered(&raw, &image, &[])?;
        }
    }
    let before = inode(&image);
    let parts = parts()?;
    let guest = Guest::start(&libvirt, &bed, &image, &parts);
    guest.wait_for_start(1);
    guest.wait_for_more();
    let from = tools::filefrag_count(&image);
    let output = defrag(&libvirt, &bed, &image, "").output().unwrap();
    let (run, said) = (
        report(&output),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert_eq!(run["outcome"], "improved", "{run} {said} {}", libvirt.log());
    // One pause.
    assert_eq!(run["calls"], 1, "{run}");
    assert!(run["worst_call_seconds"].as_f64() > Some(0.0), "{run}");
    assert!(run["guest_write_seconds"].as_f64() > Some(0.0), "{run}");
    let to = tools::filefrag_count(&image);
    eprintln!(
        "{from} to {to} extents, {} writes until then; {said}{run}",
        guest.turn()
    );
    // On ext4 it is in a few pieces before, as direct writes come in batches, and may be in two or three after.
    assert!(to <= (from / 200).max(4), "{from} to {to}");
    let after = inode(&image);
    assert_ne!(after, before);
    assert_eq!(libvirt.writes("guest", bed.path()), [after]);
    assert_eq!(libvirt.source("guest", &["--inactive"]), image);
    // Its running definition still names the copy.
    assert_eq!((names(&image).len(), noted(&bed)), (2, 1));
    guest.wait_for_more();

    libvirt.virsh(&["reset", "guest"]);
    let written = guest.turn();
    assert!(guest.wait_for_start(2) >= written);
    guest.wait_for_more();
    libvirt.virsh(&["destroy", "guest"]);
    let written = guest.turn();
    qcow2::check(&image);
    assert_eq!(recover(&libvirt, &bed), "");
    assert_eq!((names(&image).len(), noted(&bed)), (1, 0));
    libvirt.power_on("guest");
    assert!(guest.wait_for_start(3) >= written);
    guest.wait_for_more();
    assert_eq!(libvirt.writes("guest", bed.path()), [after]);
    libvirt.virsh(&["destroy", "guest"]);
    qcow2::check(&image);
    rundir::remove(&parts.dir);
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
    let mut disk = Disk::open(&boot::disk());
    let (found, mut turn) = disk.find_all();
    println!("last {turn}");
    println!("found {found}");
    // What a power cut took is written again.
    (found + 1..=turn).for_each(|lost| disk.write(lost));
    let mut random = Random::new(turn);
    loop {
        turn += 1;
        disk.write(turn);
        disk.check(random.below(disk.blocks), turn);
        if turn.is_multiple_of(REPORTS) {
            disk.file.sync_data().unwrap();
            println!("turn {turn}");
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The disk of the guest. Write number `turn` goes to a block that follows from the number, and the
/// block holds it.
struct Disk {
    file: File,
    blocks: u64,
    versions: Vec<u64>,
    buffers: [Aligned; 2],
    is_thin: bool,
}

impl Disk {
    fn open(path: &Path) -> Disk {
        let mut file = guest::open_direct(path).unwrap();
        let blocks = file.seek(SeekFrom::End(0)).unwrap() / BLOCK;
        Disk {
            file,
            blocks,
            versions: vec![0; blocks as usize],
            buffers: [Aligned::block(), Aligned::block()],
            is_thin: std::env::var_os("FRAGWATCH_THIN").is_some(),
        }
    }

    fn write(&mut self, turn: u64) {
        let block = mix(turn) % self.blocks;
        let [buffer, _] = &mut self.buffers;
        guest::stamp(buffer, block, turn);
        self.file.write_all_at(buffer, block * BLOCK).unwrap();
        self.versions[block as usize] = turn;
    }

    /// Reads a block, which must be whole. Returns the number of the write that it holds.
    fn read(&mut self, block: u64) -> u64 {
        let [expected, found] = &mut self.buffers;
        self.file.read_exact_at(found, block * BLOCK).unwrap();
        if self.is_thin && found.iter().all(|byte| *byte == 0) {
            return 0;
        }
        let word: [u8; 8] = found[..8].try_into().unwrap();
        let version = u64::from_le_bytes(word).wrapping_sub(mix(block));
        guest::stamp(expected, block, version);
        assert!(**found == **expected, "block {block} is torn");
        version
    }

    fn check(&mut self, block: u64, turn: u64) {
        let (found, written) = (self.read(block), self.versions[block as usize]);
        assert_eq!(found, written, "block {block} at write {turn}");
    }

    /// Reads all. Returns up to which write all are there, and the last that is. Only a power cut may
    /// make a difference between them.
    fn find_all(&mut self) -> (u64, u64) {
        self.versions = (0..self.blocks).map(|block| self.read(block)).collect();
        let last = self.versions.iter().copied().max().unwrap();
        let is_there = |turn: &u64| self.versions[(mix(*turn) % self.blocks) as usize] >= *turn;
        ((1..=last).take_while(is_there).count() as u64, last)
    }
}
