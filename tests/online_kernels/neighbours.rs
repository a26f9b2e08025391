//! Files beside the image, made and removed all the time: they take up the blocks that become free.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::contents::{Stamp, Wrong, wrong};
use super::support::MIB;
use super::support::guest::{Aligned, BLOCK, open_direct};
use super::support::random::Random;

/// What is left free: what the engine needs besides what it reserves itself.
pub const FREE: u64 = 96 * MIB;
/// How many blocks a file has at most.
const LONGEST: u64 = 16;
/// After so many new files the log is forced: blocks that were given back can be taken only then
/// (xfs_extent_busy_trim, fs/xfs/xfs_extent_busy.c).
const FORCED: u64 = 8;

/// One neighbour file after the other gets a number of its own.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// Those that one thread takes care of.
pub struct Neighbours {
    directory: PathBuf,
    random: Random,
    files: Vec<Neighbour>,
    buffer: Aligned,
    /// Files that were made.
    pub made: u64,
    /// What was not as it should be.
    pub wrong: Vec<Wrong>,
}

struct Neighbour {
    number: u64,
    blocks: u64,
}

impl Neighbours {
    /// None yet.
    pub fn new(directory: &Path, seed: u64) -> Neighbours {
        Neighbours {
            directory: directory.to_owned(),
            random: Random::new(seed),
            files: Vec::new(),
            buffer: Aligned::zeroed((LONGEST * BLOCK) as usize),
            made: 0,
            wrong: Vec::new(),
        }
    }

    /// Makes files until the file system is as full as may be.
    pub fn fill(&mut self) -> io::Result<()> {
        while free(&self.directory)? > FREE {
            self.make()?;
        }
        Ok(())
    }

    /// Verifies and removes one and makes another.
    pub fn act(&mut self) -> io::Result<()> {
        if !self.files.is_empty() {
            let one = self.random.below(self.files.len() as u64) as usize;
            let file = self.files.swap_remove(one);
            self.verify(&file)?;
            fs::remove_file(self.path(&file))?;
        }
        self.fill()
    }

    /// Verifies all of them.
    pub fn verify_all(&mut self) -> io::Result<()> {
        for file in std::mem::take(&mut self.files) {
            self.verify(&file)?;
            self.files.push(file);
        }
        Ok(())
    }

    fn make(&mut self) -> io::Result<()> {
        let file = Neighbour {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            blocks: 1 + self.random.below(LONGEST),
        };
        let path = self.path(&file);
        drop(File::create_new(&path)?);
        let length = (file.blocks * BLOCK) as usize;
        for (block, bytes) in (0..).zip(self.buffer[..length].chunks_exact_mut(BLOCK as usize)) {
            file.stamp(block).fill(bytes);
        }
        let open = open_direct(&path)?;
        open.write_all_at(&self.buffer[..length], 0)?;
        self.made += 1;
        if self.made.is_multiple_of(FORCED) {
            open.sync_all()?;
        }
        self.files.push(file);
        Ok(())
    }

    fn verify(&mut self, file: &Neighbour) -> io::Result<()> {
        let length = (file.blocks * BLOCK) as usize;
        open_direct(&self.path(file))?.read_exact_at(&mut self.buffer[..length], 0)?;
        let blocks = self.buffer[..length].chunks_exact(BLOCK as usize);
        self.wrong.extend(
            (0..)
                .zip(blocks)
                .filter_map(|(block, bytes)| wrong(bytes, &[file.stamp(block)])),
        );
        Ok(())
    }

    fn path(&self, file: &Neighbour) -> PathBuf {
        self.directory.join(file.number.to_string())
    }

    /// All of them.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.files.iter().map(|file| self.path(file))
    }
}

impl Neighbour {
    fn stamp(&self, block: u64) -> Stamp {
        Stamp {
            owner: self.number,
            block,
            write: 0,
        }
    }
}

/// Free space of a file system.
pub fn free(directory: &Path) -> io::Result<u64> {
    let size = rustix::fs::statvfs(directory)?;
    Ok(size.f_bavail * size.f_frsize)
}
