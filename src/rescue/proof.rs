//! Counters of /proc/vmstat, /proc/meminfo and /proc/buddyinfo that show whether an action took
//! place and what it freed. They are read through open descriptors into an existing buffer; the
//! parsers allocate nothing and skip what they do not recognise.

use std::fs::File;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::model::{Bytes, RescueStep};
use crate::sys::proc;

/// Orders of free blocks that are counted separately (`MAX_PAGE_ORDER` + 1, include/linux/mmzone.h:
/// 11 on x86-64, 14 on arm64 with pages of 64 KiB).
pub const ORDERS: usize = 11;

/// Counters read before and after an action; also part of the file of an incident.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Writes that dropped slab objects (`drop_slab`; mm/vmstat.c).
    pub drop_slab: u64,
    /// Writes that dropped the page cache (`drop_pagecache`).
    pub drop_pagecache: u64,
    /// Pages scanned by compaction (`compact_migrate_scanned` + `compact_free_scanned`).
    pub compact_scanned: u64,
    /// Failed compactions (`compact_fail`).
    pub compact_fail: u64,
    /// Direct reclaims by allocating tasks (`allocstall_*`).
    pub allocation_stalls: u64,
    /// Reclaimable slab memory.
    pub slab_reclaimable_kib: u64,
    /// Unreclaimable slab memory.
    pub slab_unreclaimable_kib: u64,
    /// Memory available without swapping (`MemAvailable`); 0 in files of fragwatch 0.1.0.
    pub available_kib: u64,
    /// Free blocks of 2^n pages at index n, summed over all zones and nodes. A larger block counts
    /// as the blocks of the last order that it consists of.
    pub free_blocks: [u64; ORDERS],
}

impl Counters {
    /// Whether the kernel counted `step` between `before` and these counters.
    pub fn show(&self, step: RescueStep, before: &Counters) -> bool {
        let dropped_slab = self.drop_slab > before.drop_slab;
        match step {
            RescueStep::DropSlab => dropped_slab,
            RescueStep::DropAll => dropped_slab && self.drop_pagecache > before.drop_pagecache,
            RescueStep::CompactMemory => self.compact_scanned > before.compact_scanned,
        }
    }

    /// All slab memory.
    pub fn slab_kib(&self) -> u64 {
        self.slab_reclaimable_kib
            .saturating_add(self.slab_unreclaimable_kib)
    }

    /// Describes the effect of an action, for the log.
    pub fn compared_with(&self, before: &Counters) -> String {
        let kib = |kib: u64| Bytes(kib.saturating_mul(1024));
        let large = |counters: &Counters| large_blocks(&counters.free_blocks, proc::page_bytes());
        format!(
            "reclaimable slab {} to {}, free blocks of 64 KiB and more {} to {}",
            kib(before.slab_reclaimable_kib),
            kib(self.slab_reclaimable_kib),
            large(before),
            large(self)
        )
    }

    /// Counters of /proc/vmstat and /proc/meminfo, whose names differ.
    fn take_named(&mut self, text: &[u8]) {
        for (name, value) in proc::counters(text) {
            match name {
                b"drop_slab" => self.drop_slab = value,
                b"drop_pagecache" => self.drop_pagecache = value,
                b"compact_migrate_scanned" | b"compact_free_scanned" => {
                    self.compact_scanned = self.compact_scanned.saturating_add(value);
                }
                b"compact_fail" => self.compact_fail = value,
                b"SReclaimable" => self.slab_reclaimable_kib = value,
                b"SUnreclaim" => self.slab_unreclaimable_kib = value,
                b"MemAvailable" => self.available_kib = value,
                name if name.starts_with(b"allocstall") => {
                    self.allocation_stalls = self.allocation_stalls.saturating_add(value);
                }
                _ => {}
            }
        }
    }

    fn take_buddyinfo(&mut self, text: &[u8]) {
        for (order, blocks) in proc::buddyinfo(text).flat_map(|zone| zone.free_blocks().enumerate())
        {
            let counted = order.min(ORDERS - 1);
            let parts = u32::try_from(order - counted)
                .ok()
                .and_then(|by| 1_u64.checked_shl(by));
            let blocks = blocks.saturating_mul(parts.unwrap_or(u64::MAX));
            self.free_blocks[counted] = self.free_blocks[counted].saturating_add(blocks);
        }
    }
}

/// Free blocks of 64 KiB and more, which the extent lists of older kernels need, of those that
/// [`Counters::free_blocks`] counts.
pub fn large_blocks(free_blocks: &[u64], page_bytes: u64) -> u64 {
    let orders = (0_u32..).zip(free_blocks);
    let large = orders.filter(|(order, _)| page_bytes.checked_shl(*order) >= Some(64 * 1024));
    large.fold(0, |sum, (_, blocks)| sum.saturating_add(*blocks))
}

/// The open files.
#[derive(Debug)]
pub struct Files {
    named: [File; 2],
    buddyinfo: File,
}

impl Files {
    /// Opens the files below `proc`; fails if one is missing.
    pub fn open(proc: &Path) -> io::Result<Files> {
        let open = |name| File::open(proc.join(name));
        Ok(Files {
            named: [open("vmstat")?, open("meminfo")?],
            buddyinfo: open("buddyinfo")?,
        })
    }

    /// Reads all counters. Those that cannot be read stay 0.
    pub fn read(&self, buffer: &mut [u8]) -> Counters {
        let mut counters = Counters::default();
        for file in &self.named {
            let _ = proc::each_part(file, buffer, |part| counters.take_named(part));
        }
        let _ = proc::each_part(&self.buddyinfo, buffer, |part| {
            counters.take_buddyinfo(part)
        });
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn counters(vmstat: &str, meminfo: &str, buddyinfo: &str) -> Counters {
        let proc = tempfile::tempdir().unwrap();
        fs::write(proc.path().join("vmstat"), vmstat).unwrap();
        fs::write(proc.path().join("meminfo"), meminfo).unwrap();
        fs::write(proc.path().join("buddyinfo"), buddyinfo).unwrap();
        Files::open(proc.path()).unwrap().read(&mut [0; 4096])
    }

    #[test]
    fn the_counters_are_found_among_the_others() {
        let counters = counters(
            "nr_free_pages 1\ncompact_migrate_scanned 3\ncompact_free_scanned 4\ncompact_fail 5\n\
             allocstall_dma 1\nallocstall_normal 2\nallocstall_movable 3\ndrop_pagecache 7\ndrop_slab 8\n",
            "MemTotal:  10 kB\nMemAvailable:   9 kB\nSReclaimable:     120 kB\nSUnreclaim:       34 kB\n",
            "Node 0, zone      DMA      1      2      0      0      0      0      0      0      1      1      2 \n\
             Node 0, zone   Normal      10     20      0      0      0      0      0      0      0      0      5 \n",
        );
        let mut free_blocks = [0; ORDERS];
        for (order, blocks) in [(0, 11), (1, 22), (8, 1), (9, 1), (10, 7)] {
            free_blocks[order] = blocks;
        }
        let expected = Counters {
            drop_slab: 8,
            drop_pagecache: 7,
            compact_scanned: 7,
            compact_fail: 5,
            allocation_stalls: 6,
            slab_reclaimable_kib: 120,
            slab_unreclaimable_kib: 34,
            available_kib: 9,
            free_blocks,
        };
        assert_eq!(counters, expected);
    }

    /// As with pages of 64 KiB, where the largest blocks have 512 MiB.
    #[test]
    fn larger_blocks_count_as_those_of_the_last_order() {
        let counters = counters(
            "",
            "",
            "Node 0, zone   Normal  1  2  0  0  0  0  0  0  0  0  5  1  0  3 \n",
        );
        assert_eq!(counters.free_blocks[..3], [1, 2, 0]);
        assert_eq!(counters.free_blocks[10], 5 + 2 + 3 * 8);
        let many = format!("Node 0, zone Normal{}\n", " 1".repeat(200));
        assert_eq!(self::counters("", "", &many).free_blocks[10], u64::MAX);
    }

    #[test]
    fn blocks_of_64_kib_have_another_order_where_pages_are_larger() {
        let blocks = [1, 2, 4, 8, 16, 32];
        assert_eq!(large_blocks(&blocks, 4096), 16 + 32);
        assert_eq!(large_blocks(&blocks, 16 * 1024), 4 + 8 + 16 + 32);
        assert_eq!(large_blocks(&blocks, 64 * 1024), 63);
    }

    #[test]
    fn a_small_buffer_gives_the_same_counters() {
        let files = tempfile::tempdir().unwrap();
        let other: String = (0..200).map(|n| format!("nr_other_{n} 1\n")).collect();
        let vmstat = format!("{other}drop_slab 8\n{other}allocstall_dma 7\n");
        fs::write(files.path().join("vmstat"), vmstat).unwrap();
        fs::write(files.path().join("meminfo"), "SReclaimable:     120 kB\n").unwrap();
        fs::write(files.path().join("buddyinfo"), "Node 0, zone DMA 1 2 3\n").unwrap();
        let files = Files::open(files.path()).unwrap();
        let whole = files.read(&mut [0; 16 * 1024]);
        assert_eq!((whole.drop_slab, whole.allocation_stalls), (8, 7));
        for size in 30..300 {
            assert_eq!(files.read(&mut vec![0; size]), whole, "{size}");
        }
    }

    #[test]
    fn our_own_kernel_is_understood() {
        let counters = Files::open(Path::new("/proc"))
            .unwrap()
            .read(&mut [0; 16 * 1024]);
        assert!(counters.slab_reclaimable_kib > 0);
        assert!(counters.free_blocks.iter().sum::<u64>() > 0);
    }

    #[test]
    fn a_step_is_shown_by_its_own_counter() {
        let before = Counters::default();
        let dropped = Counters {
            drop_slab: 1,
            ..before
        };
        let both = Counters {
            drop_pagecache: 1,
            ..dropped
        };
        assert!(dropped.show(RescueStep::DropSlab, &before));
        assert!(!dropped.show(RescueStep::DropAll, &before));
        assert!(both.show(RescueStep::DropAll, &before));
        assert!(!both.show(RescueStep::CompactMemory, &before));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(line: Vec<u8>) {
            let mut counters = Counters::default();
            counters.take_named(&line);
            counters.take_buddyinfo(&line);
        }
    }
}
