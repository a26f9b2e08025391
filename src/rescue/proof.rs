//! Counters of /proc/vmstat, /proc/meminfo and /proc/buddyinfo that show whether an action took
//! place and what it freed. They are read through open descriptors into an existing buffer; the
//! parsers allocate nothing and skip what they do not recognise.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::model::{Bytes, RescueStep};
use crate::sys::proc;

/// Orders of free blocks counted separately (`MAX_PAGE_ORDER` + 1 is 11 on x86-64,
/// include/linux/mmzone.h); larger blocks count as the last order.
pub const ORDERS: usize = 11;

/// Counters read before and after an action.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
    /// Reclaimable slab memory, in KiB.
    pub slab_reclaimable: u64,
    /// Unreclaimable slab memory, in KiB.
    pub slab_unreclaimable: u64,
    /// Free blocks of 2^n pages at index n, summed over all zones and nodes.
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

    /// Describes the effect of an action, for the log.
    pub fn compared_with(&self, before: &Counters) -> String {
        let kib = |kib: u64| Bytes(kib.saturating_mul(1024));
        // Blocks of 64 KiB and more (order 4): needed by the extent lists of older kernels.
        let large = |counters: &Counters| counters.free_blocks.iter().skip(4).sum::<u64>();
        format!(
            "reclaimable slab {} to {}, free blocks of 64 KiB and more {} to {}",
            kib(before.slab_reclaimable),
            kib(self.slab_reclaimable),
            large(before),
            large(self)
        )
    }

    fn take_vmstat(&mut self, text: &[u8]) {
        for (name, value) in proc::counters(text) {
            match name {
                b"drop_slab" => self.drop_slab = value,
                b"drop_pagecache" => self.drop_pagecache = value,
                b"compact_migrate_scanned" | b"compact_free_scanned" => {
                    self.compact_scanned = self.compact_scanned.saturating_add(value);
                }
                b"compact_fail" => self.compact_fail = value,
                name if name.starts_with(b"allocstall") => {
                    self.allocation_stalls = self.allocation_stalls.saturating_add(value);
                }
                _ => {}
            }
        }
    }

    fn take_meminfo(&mut self, text: &[u8]) {
        for (name, value) in proc::counters(text) {
            match name {
                b"SReclaimable" => self.slab_reclaimable = value,
                b"SUnreclaim" => self.slab_unreclaimable = value,
                _ => {}
            }
        }
    }

    fn take_buddyinfo(&mut self, text: &[u8]) {
        for (order, blocks) in proc::buddyinfo(text).flat_map(|zone| zone.free_blocks().enumerate())
        {
            if let Some(sum) = self.free_blocks.get_mut(order.min(ORDERS - 1)) {
                *sum = sum.saturating_add(blocks);
            }
        }
    }
}

/// The open files.
#[derive(Debug)]
pub struct Files {
    vmstat: File,
    meminfo: File,
    buddyinfo: File,
}

impl Files {
    /// Opens the files below `proc`; fails if one is missing.
    pub fn open(proc: &Path) -> io::Result<Files> {
        Ok(Files {
            vmstat: File::open(proc.join("vmstat"))?,
            meminfo: File::open(proc.join("meminfo"))?,
            buddyinfo: File::open(proc.join("buddyinfo"))?,
        })
    }

    /// Reads all counters. Those that cannot be read stay 0.
    pub fn read(&self, buffer: &mut [u8]) -> Counters {
        let mut counters = Counters::default();
        let _ = proc::each_part(&self.vmstat, buffer, |part| counters.take_vmstat(part));
        let _ = proc::each_part(&self.meminfo, buffer, |part| counters.take_meminfo(part));
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
            "MemTotal:  10 kB\nSReclaimable:     120 kB\nSUnreclaim:       34 kB\n",
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
            slab_reclaimable: 120,
            slab_unreclaimable: 34,
            free_blocks,
        };
        assert_eq!(counters, expected);
    }

    #[test]
    fn our_own_kernel_is_understood() {
        let counters = Files::open(Path::new("/proc"))
            .unwrap()
            .read(&mut [0; 16 * 1024]);
        assert!(counters.slab_reclaimable > 0);
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
            counters.take_vmstat(&line);
            counters.take_meminfo(&line);
            counters.take_buddyinfo(&line);
        }
    }
}
