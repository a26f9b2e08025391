//! How long an extent-size hint should be. Pure.
//!
//! Measured on XFS, kernel 6.18: an image of 256 MiB (65,536 blocks), each block written once by a
//! direct write, in random order. Fragments are physically contiguous runs, records what the kernel's
//! map holds; both when a part of the blocks was written.
//!
//! | image | 1 %: allocated | 1/4: records, fragments, allocated | 1/2: records, fragments | all: records, fragments |
//! |---|---|---|---|---|
//! | sparse, no hint | 2 MiB | 16,381, 16,377, 64 MiB | 32,764, 32,763 | 65,529, 65,529 |
//! | hint of 64 KiB | 37 MiB | 27,080, 4,046, 253 MiB | 34,678, 4,089 | 4,089, 4,089 |
//! | hint of 256 KiB | 120 MiB | 25,187, 1,018, 256 MiB | 33,158, 1,018 | 1,018, 1,018 |
//! | hint of 1 MiB | 236 MiB | 24,731, 253, 256 MiB | 32,759, 253 | 253, 253 |
//! | hint of 4 MiB | 256 MiB | 24,604, 55, 256 MiB | 32,669, 55 | 55, 55 |
//! | hint of 16 MiB | 256 MiB | 24,575, 9, 256 MiB | 32,639, 9 | 9, 9 |
//! | preallocated, not written | 256 MiB | 24,571, 1, 256 MiB | 32,635, 1 | 1, 1 |
//! | preallocated with zeros | 256 MiB | 1, 1, 256 MiB | 1, 1 | 1, 1 |
//!
//! qcow2 images of 256 MiB with clusters of 64 KiB (4,096), written in full by the same random writes of
//! QEMU 7.2 with `cache=none`:
//!
//! | images | fragments without a hint | with a hint of 1 MiB |
//! |---|---|---|
//! | one | 115 | 277 |
//! | four at a time | 74 to 607 | 1,601 to 1,984 |
//!
//! So
//!
//! - an image ends with about one extent for each piece of the hint's size;
//! - a random write costs a piece: when 1 % of the blocks were written, a hint of 1 MiB has allocated
//!   92 % of the image, one of 4 MiB all of it. Under such a guest a hint saves no space, and
//!   preallocation is better: as many records, one fragment, and the room cannot run out. A hint is
//!   for guests that fill their disk from one end, as file systems mostly do, and where the room for
//!   all of it is not there;
//! - a hint does not help a qcow2 image that grows: only preallocation does, or longer clusters;
//! - no hint and no reservation keeps the number of *records* small while blocks are first written at
//!   random: half of them in between. Only blocks that are written already do: preallocation with
//!   zeros (`preallocation=full`).

use crate::model::Bytes;

/// The shortest hint; QEMU gives its images the same (`extent_size_hint`, since 5.1).
pub const SHORTEST: Bytes = Bytes(1 << 20);
/// The longest: with it an image of any size has less than 10,000 extents for 100 GiB, and longer ones
/// cost space without making them fewer than they need to be.
const LONGEST: Bytes = Bytes(16 << 20);
/// With pieces of the hint's size a large image has no more extents than that when it is full, as
/// far as [`LONGEST`] allows.
const EXTENTS: u64 = 10_000;
/// So many pieces must fit in the free space: each may be allocated for a single block.
const PIECES: u64 = 1_000;

/// The hint for an image of `size` where `room` is free: the shortest power of two that leaves it
/// fewer than 10,000 extents, from 1 to 16 MiB. Shorter with little room; `None` with too little for
/// the shortest.
pub fn wanted(size: Bytes, room: Bytes) -> Option<Bytes> {
    let piece = size.0.div_ceil(EXTENTS).clamp(SHORTEST.0, LONGEST.0);
    let affordable = room.0 / PIECES;
    if affordable < SHORTEST.0 {
        return None;
    }
    let most = 1 << affordable.ilog2();
    Some(Bytes(piece.next_power_of_two().min(most)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_large_image_takes_a_long_hint() {
        for (gib, mib) in [
            (1, 1),
            (9, 1),
            (10, 2),
            (20, 4),
            (40, 8),
            (79, 16),
            (100, 16),
            (5_000, 16),
        ] {
            let hint = wanted(Bytes(gib * GIB), Bytes(u64::MAX));
            assert_eq!(hint, Some(Bytes(mib << 20)), "{gib} GiB");
        }
    }

    #[test]
    fn with_little_room_it_is_shorter() {
        let size = Bytes(100 * GIB);
        for (room, mib) in [
            (16_000, Some(16)),
            (15_999, Some(8)),
            (1_000, Some(1)),
            (999, None),
        ] {
            let hint = wanted(size, Bytes(room << 20));
            assert_eq!(hint, mib.map(|mib| Bytes(mib << 20)), "{room} MiB");
        }
    }

    proptest! {
        /// XFS_IOC_FSSETXATTR takes multiples of the block size, which is at most 64 KiB.
        #[test]
        fn a_hint_is_one_that_the_kernel_takes(size: u64, room: u64) {
            let Some(Bytes(hint)) = wanted(Bytes(size), Bytes(room)) else {
                prop_assert!(room < PIECES * SHORTEST.0);
                return Ok(());
            };
            prop_assert!(hint.is_power_of_two() && (SHORTEST..=LONGEST).contains(&Bytes(hint)));
            prop_assert!(hint * PIECES <= room);
        }

        #[test]
        fn the_aim_is_met_where_there_is_room(size in 0..1_u64 << 50) {
            let Bytes(hint) = wanted(Bytes(size), Bytes(u64::MAX)).unwrap();
            let extents = size.div_ceil(hint);
            prop_assert!(extents <= EXTENTS.max((size / (100 * GIB) + 1) * EXTENTS));
        }
    }
}
