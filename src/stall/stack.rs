//! Decides whether a kernel stack shows XFS waiting for memory.

use crate::sys::proc;

/// Verdict on a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StackVerdict {
    /// XFS waits for the allocator.
    Starved,
    /// The kernel shows no stack.
    Unseen,
    /// The task does something else.
    Elsewhere,
}

/// Prefixes of XFS functions (fs/xfs), without underscores in front; in a module, `[xfs]` after the
/// name marks them too.
const XFS: [&[u8]; 3] = [b"xfs_", b"xlog_", b"xfsaild"];

/// Prefixes of allocator functions, likewise; suffixes vary between kernels
/// (`__alloc_pages_noprof`, `kmem_cache_alloc_lru`, `__kmalloc_cache_noprof`, …).
const ALLOCATOR_BEGINNINGS: [&[u8]; 13] = [
    // mm/page_alloc.c, mm/mempolicy.c
    b"alloc_pages",
    b"alloc_frozen_pages",
    b"folio_alloc",
    b"filemap_alloc_folio",
    b"perform_reclaim",
    // mm/slub.c, mm/slab.c, mm/slab_common.c
    b"kmalloc",
    b"krealloc",
    b"kmem_cache_alloc",
    b"slab_alloc",
    // mm/util.c, mm/vmalloc.c
    b"kvmalloc",
    b"vmalloc",
    // mm/vmscan.c
    b"shrink_zone",
    // mm/compaction.c
    b"compact_zone",
];

/// Full names where a prefix would be ambiguous: `shrink_dcache_parent` is called by rmdir.
const ALLOCATOR_NAMES: [&[u8]; 25] = [
    // mm/slub.c
    b"allocate_slab",
    b"new_slab",
    // mm/vmscan.c
    b"try_to_free_pages",
    b"do_try_to_free_pages",
    b"throttle_direct_reclaim",
    b"reclaim_throttle",
    b"shrink_node",
    b"shrink_node_memcgs",
    b"shrink_lruvec",
    b"shrink_one",
    b"shrink_many",
    b"shrink_list",
    b"shrink_slab",
    b"shrink_inactive_list",
    b"shrink_active_list",
    b"shrink_page_list",
    b"shrink_folio_list",
    // mm/compaction.c, mm/backing-dev.c, mm/oom_kill.c
    b"try_to_compact_pages",
    b"congestion_wait",
    b"out_of_memory",
    // fs/xfs/kmem.c before 6.9 and fs/xfs/xfs_buf.c, which retry by themselves
    b"kmem_alloc",
    b"kmem_alloc_large",
    b"kmem_zone_alloc",
    b"xfs_buf_alloc_pages",
    b"xfs_buf_allocate_memory",
];

/// Functions that wait for the limit of a cgroup (mm/memcontrol.c).
const CGROUP: [&[u8]; 3] = [
    b"try_to_free_mem_cgroup_pages",
    b"try_charge",
    b"try_charge_memcg",
];

/// Judges the text of /proc/PID/stack.
pub fn verdict(stack: &[u8]) -> StackVerdict {
    let mut frames = 0;
    let mut allocates = false;
    let mut limited = false;
    for frame in proc::stack_frames(stack) {
        frames += 1;
        let name = function(frame);
        limited |= CGROUP.contains(&name);
        // Innermost first: later frames called the earlier ones.
        if allocates && !limited && is_xfs(frame, name) {
            return StackVerdict::Starved;
        }
        allocates |= is_allocator(name);
    }
    if frames == 0 {
        StackVerdict::Unseen
    } else {
        StackVerdict::Elsewhere
    }
}

/// Extracts `xfs_ilock` from `__xfs_ilock.part.0+0x8e/0x120 [xfs]`.
fn function(frame: &[u8]) -> &[u8] {
    let mut parts = frame.split(|byte| b"+. ".contains(byte));
    let name = parts.next().unwrap_or_default();
    let start = name.iter().position(|byte| *byte != b'_');
    &name[start.unwrap_or(0)..]
}

fn is_xfs(frame: &[u8], name: &[u8]) -> bool {
    frame.ends_with(b"[xfs]") || begins(name, &XFS)
}

fn is_allocator(name: &[u8]) -> bool {
    ALLOCATOR_NAMES.contains(&name) || begins(name, &ALLOCATOR_BEGINNINGS)
}

fn begins(name: &[u8], with: &[&[u8]]) -> bool {
    with.iter().any(|begin| name.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::super::fake_proc::stack;
    use super::*;
    use proptest::prelude::*;

    fn verdict_of(frames: &[&str]) -> StackVerdict {
        verdict(&stack(frames))
    }

    #[test]
    fn xfs_that_calls_the_allocator_is_starved() {
        for frames in [
            // 6.12: a node of the extent tree.
            &[
                "shrink_lruvec",
                "shrink_node",
                "do_try_to_free_pages",
                "try_to_free_pages",
                "__alloc_pages_slowpath.constprop.0",
                "__alloc_pages_noprof",
                "allocate_slab",
                "___slab_alloc",
                "__kmalloc_cache_noprof",
                "xfs_iext_insert_raw",
                "xfs_iext_insert",
                "xfs_iread_bmbt_block",
                "xfs_iread_extents",
                "xfs_bmapi_read",
                "xfs_read_iomap_begin",
            ][..],
            // 6.1: waits between two attempts of XFS itself.
            &["io_schedule_timeout", "kmem_alloc", "xfs_iext_realloc_root"],
            &[
                "io_schedule_timeout",
                "xfs_buf_alloc_pages",
                "xfs_buf_get_map",
            ],
            // The log, in a worker.
            &[
                "compact_zone_order",
                "try_to_compact_pages",
                "__alloc_frozen_pages_noprof",
                "__kvmalloc_node_noprof",
                "xlog_cil_push_work",
                "process_one_work",
            ],
            // Before 4.15.
            &[
                "congestion_wait",
                "kmem_alloc",
                "kmem_realloc",
                "xfs_iext_realloc_indirect",
            ],
        ] {
            assert_eq!(verdict_of(frames), StackVerdict::Starved, "{frames:?}");
        }
        let module = b"[<0>] try_to_free_pages+0x1/0x2\n[<0>] kmalloc_order+0x1/0x2\n[<0>] helper+0x1/0x2 [xfs]\n";
        assert_eq!(verdict(module), StackVerdict::Starved);
    }

    #[test]
    fn others_are_not() {
        assert_eq!(verdict(b""), StackVerdict::Unseen);
        assert_eq!(verdict(b"\n"), StackVerdict::Unseen);
        for frames in [
            // Waits for a lock, or for the disk.
            &[
                "rwsem_down_write_slowpath",
                "xfs_ilock",
                "xfs_file_write_iter",
            ][..],
            &["io_schedule", "folio_wait_bit_common", "xfs_vm_writepages"],
            // Memory is reclaimed from XFS: kswapd, our own actor, an allocation of somebody else.
            &[
                "xfs_reclaim_inodes_nr",
                "super_cache_scan",
                "shrink_slab",
                "shrink_node",
                "kswapd",
            ],
            &[
                "xfs_log_force",
                "xfs_reclaim_inodes_nr",
                "shrink_slab",
                "drop_slab",
            ],
            &[
                "xfs_buf_lock",
                "shrink_slab",
                "try_to_free_pages",
                "__alloc_pages",
                "do_anonymous_page",
            ],
            // Another file system.
            &["try_to_free_pages", "__alloc_pages", "ext4_mpage_readpages"],
            // What only sounds like reclaim.
            &[
                "shrink_dentry_list",
                "shrink_dcache_parent",
                "xfs_vn_unlink",
            ],
            // The limit of a cgroup.
            &[
                "shrink_node",
                "do_try_to_free_pages",
                "try_to_free_mem_cgroup_pages",
                "try_charge_memcg",
                "__mem_cgroup_charge",
                "filemap_add_folio",
                "iomap_write_begin",
                "xfs_file_buffered_write",
            ],
            &["do_syscall_64"],
        ] {
            assert_eq!(verdict_of(frames), StackVerdict::Elsewhere, "{frames:?}");
        }
    }

    proptest! {
        #[test]
        fn stacks_of_any_bytes_are_judged(text: Vec<u8>) {
            let _ = verdict(&text);
        }

        /// Whatever stands around them: an allocator's function inside of one of XFS is starved,
        /// and without either of them nothing is.
        #[test]
        fn the_order_decides(
            inner in proptest::collection::vec("[a-w][a-z_]{0,12}x", 0..4),
            between in proptest::collection::vec("[a-w][a-z_]{0,12}x", 0..4),
            outer in proptest::collection::vec("[a-w][a-z_]{0,12}x", 0..4),
        ) {
            let join = |parts: &[&[String]]| -> Vec<String> { parts.concat() };
            let allocator = ["__alloc_pages_slowpath".to_owned()];
            let xfs = ["xfs_iread_extents".to_owned()];
            let judge = |frames: Vec<String>| {
                verdict_of(&frames.iter().map(String::as_str).collect::<Vec<_>>())
            };
            prop_assert_eq!(judge(join(&[&inner, &allocator, &between, &xfs, &outer])), StackVerdict::Starved);
            prop_assert_eq!(judge(join(&[&inner, &xfs, &between, &allocator, &outer])), StackVerdict::Elsewhere);
            prop_assert_ne!(judge(join(&[&inner, &xfs, &between, &outer])), StackVerdict::Starved);
            prop_assert_ne!(judge(join(&[&inner, &allocator, &outer])), StackVerdict::Starved);
        }
    }
}
