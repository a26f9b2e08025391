//! What blocks hold, and what they may hold where writes overlap.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

const SECTOR: usize = 512;
/// The image, as the owner of a block. Neighbour files have the numbers from one on.
pub const IMAGE: u64 = 0;

/// What was written to a block: the same in each of its sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The file.
    pub owner: u64,
    /// The number of the block in the file.
    pub block: u64,
    /// Which write it was. Odd numbers are discards, which leave zeros.
    pub write: u64,
}

/// Whether the write of this number is a discard.
pub fn is_discard(write: u64) -> bool {
    write % 2 == 1
}

impl Stamp {
    /// Fills a block.
    pub fn fill(self, block: &mut [u8]) {
        for sector in block.chunks_exact_mut(SECTOR) {
            sector.copy_from_slice(&self.sector());
        }
    }

    fn sector(self) -> [u8; SECTOR] {
        if is_discard(self.write) {
            return [0; SECTOR];
        }
        let mut sector = [(self.block ^ self.write) as u8 | 1; SECTOR];
        for (bytes, number) in sector
            .chunks_exact_mut(8)
            .zip([self.owner, self.block, self.write])
        {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        sector
    }
}

/// A sector with contents that it must not have.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong {
    allowed: Vec<Stamp>,
    /// What it looks like; where it is a stamp.
    found: Stamp,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} instead of {:?}", self.found, self.allowed)
    }
}

/// The first sector of a block that holds something else than `allowed`. Where that are several
/// writes, which overlapped, each byte may be of any of them: a RAM disk copies byte by byte.
pub fn wrong(block: &[u8], allowed: &[Stamp]) -> Option<Wrong> {
    let expected: Vec<_> = allowed.iter().map(|stamp| stamp.sector()).collect();
    let is_right = |sector: &[u8]| {
        expected.iter().any(|it| it == sector)
            || (sector.iter().enumerate())
                .all(|(at, byte)| expected.iter().any(|it| it[at] == *byte))
    };
    let sector = block.chunks_exact(SECTOR).find(|it| !is_right(it))?;
    let number = |at: usize| {
        let bytes = sector[8 * at..][..8].try_into();
        u64::from_le_bytes(bytes.expect("there are eight"))
    };
    Some(Wrong {
        allowed: allowed.to_owned(),
        found: Stamp {
            owner: number(0),
            block: number(1),
            write: number(2),
        },
    })
}

/// What each block of the image may hold: its last write, or one of those that overlapped it.
///
/// Two writes overlap if each began before the other had ended; which of them remains is open. A
/// write that had ended before another began is gone when that one has ended.
#[derive(Debug)]
pub struct Ledger {
    blocks: Vec<Mutex<Block>>,
    overlapping: AtomicU64,
}

#[derive(Debug, Default)]
struct Block {
    begun: u64,
    possible: Vec<Write>,
}

#[derive(Debug, Clone, Copy)]
struct Write {
    number: u64,
    ended: bool,
}

/// A write that has begun.
#[derive(Debug)]
pub struct Begun {
    block: u64,
    number: u64,
    /// Those that had ended before.
    replaces: Vec<u64>,
}

/// What a block may hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Possible {
    /// How many writes to it have begun so far.
    pub begun: u64,
    /// One of these.
    pub stamps: Vec<Stamp>,
}

impl Ledger {
    /// Of so many blocks, nothing written yet.
    pub fn new(blocks: u64) -> Ledger {
        Ledger {
            blocks: (0..blocks).map(|_| Mutex::default()).collect(),
            overlapping: AtomicU64::new(0),
        }
    }

    /// How many blocks it has.
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// How many writes to a block began while another was under way.
    pub fn overlapping(&self) -> u64 {
        self.overlapping.load(Ordering::Relaxed)
    }

    /// A write is about to begin. No two have the same number.
    pub fn begin(&self, block: u64, number: u64) -> Begun {
        self.with(block, |known| {
            known.begun += 1;
            let (ended, under_way): (Vec<Write>, Vec<Write>) = known
                .possible
                .iter()
                .copied()
                .partition(|write| write.ended);
            if !under_way.is_empty() {
                self.overlapping.fetch_add(1, Ordering::Relaxed);
            }
            known.possible.push(Write {
                number,
                ended: false,
            });
            Begun {
                block,
                number,
                replaces: ended.iter().map(|write| write.number).collect(),
            }
        })
    }

    /// It has ended.
    pub fn end(&self, write: &Begun) {
        self.with(write.block, |known| {
            known
                .possible
                .retain(|it| !write.replaces.contains(&it.number));
            for it in &mut known.possible {
                it.ended |= it.number == write.number;
            }
        });
    }

    /// What a block may hold now.
    pub fn possible(&self, block: u64) -> Possible {
        self.with(block, |known| {
            let stamp = |write: &Write| Stamp {
                owner: IMAGE,
                block,
                write: write.number,
            };
            Possible {
                begun: known.begun,
                stamps: known.possible.iter().map(stamp).collect(),
            }
        })
    }

    fn with<T>(&self, block: u64, act: impl FnOnce(&mut Block) -> T) -> T {
        let known = self.blocks[block as usize].lock();
        act(&mut known.unwrap_or_else(PoisonError::into_inner))
    }
}

#[test]
fn a_write_replaces_what_had_ended_before_it_began() {
    let numbers = |ledger: &Ledger| -> Vec<u64> {
        let possible = ledger.possible(0);
        possible.stamps.iter().map(|stamp| stamp.write).collect()
    };
    let ledger = Ledger::new(1);
    let first = ledger.begin(0, 2);
    ledger.end(&first);
    let (second, third) = (ledger.begin(0, 4), ledger.begin(0, 6));
    assert_eq!(numbers(&ledger), [2, 4, 6]);
    ledger.end(&third);
    // The second one may end last, and the third one may have been the later of the two.
    assert_eq!(numbers(&ledger), [4, 6]);
    let fourth = ledger.begin(0, 8);
    ledger.end(&second);
    assert_eq!(numbers(&ledger), [4, 6, 8]);
    ledger.end(&fourth);
    // It began after the third one had ended, but while the second one was under way.
    assert_eq!(numbers(&ledger), [4, 8]);
    assert_eq!(ledger.overlapping(), 2);
}

#[test]
fn one_wrong_byte_is_found() {
    let stamp = |write| Stamp {
        owner: 3,
        block: 7,
        write,
    };
    let mut block = vec![0; 4096];
    stamp(4).fill(&mut block);
    assert_eq!(wrong(&block, &[stamp(2), stamp(4)]), None);
    // Torn between two writes that may both be there.
    let torn = block[SECTOR / 2..].to_owned();
    stamp(2).fill(&mut block);
    block[SECTOR / 2..].copy_from_slice(&torn);
    assert_eq!(wrong(&block, &[stamp(2), stamp(4)]), None);
    let found = wrong(&block, &[stamp(4)]).map(|wrong| wrong.found);
    assert_eq!(found, Some(stamp(2)));
    stamp(4).fill(&mut block);
    for at in [0, 9, 23, 24, 511, 4095] {
        block[at] ^= 1;
        assert!(wrong(&block, &[stamp(4)]).is_some(), "{at}");
        block[at] ^= 1;
    }
    stamp(1).fill(&mut block);
    assert!(block.iter().all(|byte| *byte == 0));
}
