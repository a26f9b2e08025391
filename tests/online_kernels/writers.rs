//! The guest's writes: direct, overlapping, most of them where the engine is at work.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate};

use super::contents::{IMAGE, Ledger, Stamp, Wrong, wrong};
use super::support::guest::{Aligned, BLOCK, open_direct};
use super::support::random::Random;

/// So many writes one after the other go to the same block and the one behind it.
const TOGETHER: u64 = 8;
/// How many blocks one write has at most.
const LONGEST: u64 = 2;
/// How many blocks from the engine's position on are written most.
const NEAR: u64 = 96;
/// One of so many groups of writes begins with a discard, elsewhere: the image shatters anew.
const DISCARDS: u64 = 24;
/// Each thread reads a block back after so many writes.
const READ_BACK: u64 = 16;

/// It is reported after each part of the writes; otherwise they would be waited for in vain.
pub const PARTS: u64 = 20;

/// What all writers share.
pub struct Writes {
    /// What they wrote.
    pub ledger: Ledger,
    /// The block that the engine has come to.
    pub position: AtomicU64,
    tickets: AtomicU64,
    wanted: u64,
}

impl Writes {
    /// So many are wanted, to an image of so many blocks.
    pub fn new(blocks: u64, wanted: u64) -> Writes {
        Writes {
            ledger: Ledger::new(blocks),
            position: AtomicU64::new(0),
            tickets: AtomicU64::new(0),
            wanted,
        }
    }

    /// How many have begun.
    pub fn count(&self) -> u64 {
        self.tickets.load(Ordering::Relaxed)
    }

    fn take_ticket(&self) -> u64 {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let part = self.wanted / PARTS;
        if ticket > 0 && ticket.is_multiple_of(part) {
            println!("guest: part {} of {PARTS}", ticket / part);
        }
        ticket
    }

    /// Whether that is enough.
    pub fn enough(&self) -> bool {
        self.count() >= self.wanted
    }
}

/// One thread of the guest.
pub struct Writer<'a> {
    writes: &'a Writes,
    file: File,
    buffer: Aligned,
    done: u64,
    wrong: Vec<Wrong>,
}

impl<'a> Writer<'a> {
    /// With the image open for itself.
    pub fn new(writes: &'a Writes, image: &Path) -> io::Result<Writer<'a>> {
        Ok(Writer {
            writes,
            file: open_direct(image)?,
            buffer: Aligned::zeroed((LONGEST * BLOCK) as usize),
            done: 0,
            wrong: Vec::new(),
        })
    }

    /// Writes every block once, in random order: each becomes an extent.
    pub fn shatter(&mut self) -> io::Result<()> {
        let blocks = self.writes.ledger.blocks();
        let order = Random::new(blocks).distinct(blocks, blocks);
        for (block, turn) in order.into_iter().zip(0..) {
            self.write(block, 1, 2 * turn)?;
        }
        self.file.sync_all()
    }

    /// Writes until there are enough writes. What a block held that it must not hold is returned.
    pub fn work(mut self) -> io::Result<Vec<Wrong>> {
        while !self.writes.enough() {
            self.act()?;
        }
        Ok(self.wrong)
    }

    fn act(&mut self) -> io::Result<()> {
        let ticket = self.writes.take_ticket();
        let (group, member) = (ticket / TOGETHER, ticket % TOGETHER);
        let mut random = Random::new(group);
        let last = self.writes.ledger.blocks() - LONGEST;
        let discards = random.below(DISCARDS) == 0;
        let block = match random.below(4) {
            0 => random.below(last),
            _ if discards => random.below(last),
            _ => self.writes.position.load(Ordering::Relaxed) + random.below(NEAR),
        };
        let block = (block + member % 2).min(last);
        // Behind the numbers of the first writes, and twice as far apart: odd ones are discards.
        let number = 2 * (self.writes.ledger.blocks() + ticket);
        if discards && member == 0 {
            self.discard(block, number + 1)?;
        } else {
            self.write(block, 1 + member / 2 % LONGEST, number)?;
        }
        self.done += 1;
        if self.done.is_multiple_of(READ_BACK) {
            self.read_back(block)?;
        }
        Ok(())
    }

    fn write(&mut self, block: u64, count: u64, number: u64) -> io::Result<()> {
        let length = (count * BLOCK) as usize;
        let blocks = block..block + count;
        for (block, bytes) in blocks
            .clone()
            .zip(self.buffer[..length].chunks_exact_mut(BLOCK as usize))
        {
            let stamp = Stamp {
                owner: IMAGE,
                block,
                write: number,
            };
            stamp.fill(bytes);
        }
        let ledger = &self.writes.ledger;
        let begun: Vec<_> = blocks.map(|block| ledger.begin(block, number)).collect();
        self.file
            .write_all_at(&self.buffer[..length], block * BLOCK)?;
        begun.iter().for_each(|write| ledger.end(write));
        Ok(())
    }

    /// Which the host does to the image.
    fn discard(&mut self, block: u64, number: u64) -> io::Result<()> {
        let begun = self.writes.ledger.begin(block, number);
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, hole, block * BLOCK, BLOCK)?;
        self.writes.ledger.end(&begun);
        Ok(())
    }

    /// Says nothing where another write began meanwhile.
    fn read_back(&mut self, block: u64) -> io::Result<()> {
        let buffer = &mut self.buffer[..BLOCK as usize];
        let before = self.writes.ledger.possible(block);
        self.file.read_exact_at(buffer, block * BLOCK)?;
        if self.writes.ledger.possible(block).begun == before.begun {
            self.wrong.extend(wrong(buffer, &before.stamps));
        }
        Ok(())
    }

    /// Reads all blocks back; nobody else writes any more.
    pub fn verify(mut self) -> io::Result<Vec<Wrong>> {
        for block in 0..self.writes.ledger.blocks() {
            self.read_back(block)?;
        }
        Ok(self.wrong)
    }
}
