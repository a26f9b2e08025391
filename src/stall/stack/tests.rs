//! Tests of [`stack`](super).

use super::*;
use crate::stall::tests::stack;
use proptest::prelude::*;

fn verdict_of(frames: &[&str]) -> StackVerdict {
    verdict(&stack(frames))
}

/// As kernels write them.
const STACKS: &[(&str, StackVerdict)] = &[
    // 3.10, with addresses and the end.
    (
        "[<ffffffff811a2f4d>] congestion_wait+0x7d/0x130\n\
         [<ffffffffc05b4a6f>] kmem_alloc+0x6f/0xe0 [xfs]\n\
         [<ffffffffc0583e1b>] xfs_iext_realloc_indirect+0x2b/0x50 [xfs]\n\
         [<ffffffffffffffff>] 0xffffffffffffffff\n",
        StackVerdict::Starved,
    ),
    (
        "[<c0000000001f2f4d>] .__alloc_pages_nodemask+0x7d/0x130\n\
         [<d000000005b4a6f0>] .xfs_iext_realloc_indirect+0x6f/0xe0 [xfs]\n",
        StackVerdict::Starved,
    ),
    // A running task before 5.2; no symbols at all.
    (
        "[<ffffffffffffffff>] 0xffffffffffffffff\n",
        StackVerdict::Unseen,
    ),
    ("[<0>] 0xffffffffffffffff\n", StackVerdict::Unseen),
    (
        "[<0>] 0xffffffffc0a1b2c3\n[<0>] 0xffffffff81234567\n",
        StackVerdict::Unseen,
    ),
    // XFS's own retries before 5.10, before 5.14 and since 6.15.
    (
        "[<0>] io_schedule_timeout+0x1/0x2\n[<0>] kmem_realloc+0x1/0x2 [xfs]\n\
         [<0>] xfs_iext_realloc_root+0x1/0x2 [xfs]\n",
        StackVerdict::Starved,
    ),
    (
        "[<0>] io_schedule_timeout+0x1/0x2\n\
         [<0>] xfs_buf_allocate_memory.isra.0+0x1/0x2 [xfs]\n\
         [<0>] xfs_buf_get_map+0x1/0x2 [xfs]\n",
        StackVerdict::Starved,
    ),
    (
        "[<0>] io_schedule_timeout+0x1/0x2\n\
         [<0>] xfs_buf_alloc_backing_mem.part.0+0x1/0x2\n[<0>] xfs_buf_find_insert+0x1/0x2\n",
        StackVerdict::Starved,
    ),
    // Waits for requests in flight, for the log, for the writeback of others.
    (
        "[<0>] io_schedule_timeout+0x1/0x2\n[<0>] mempool_alloc_noprof+0x1/0x2\n\
         [<0>] bio_alloc_bioset+0x1/0x2\n[<0>] xfs_vm_writepages+0x1/0x2 [xfs]\n",
        StackVerdict::Elsewhere,
    ),
    (
        "[<0>] xlog_grant_head_wait+0x1/0x2 [xfs]\n[<0>] xfs_log_reserve+0x1/0x2 [xfs]\n\
         [<0>] xfs_trans_alloc+0x1/0x2 [xfs]\n",
        StackVerdict::Elsewhere,
    ),
    (
        "[<0>] balance_dirty_pages+0x1/0x2\n[<0>] iomap_file_buffered_write+0x1/0x2\n\
         [<0>] xfs_file_buffered_write+0x1/0x2 [xfs]\n",
        StackVerdict::Elsewhere,
    ),
    // The limit of a cgroup, before 3.16 and where only a slab is charged.
    (
        "[<0>] try_to_free_mem_cgroup_pages+0x1/0x2\n[<0>] mem_cgroup_reclaim+0x1/0x2\n\
         [<0>] __mem_cgroup_try_charge+0x1/0x2\n[<0>] kmem_cache_alloc+0x1/0x2\n\
         [<0>] kmem_zone_alloc+0x1/0x2 [xfs]\n[<0>] xfs_trans_alloc+0x1/0x2 [xfs]\n",
        StackVerdict::Elsewhere,
    ),
    (
        "[<0>] try_charge_memcg+0x1/0x2\n[<0>] obj_cgroup_charge+0x1/0x2\n\
         [<0>] kmem_cache_alloc_lru+0x1/0x2\n[<0>] xfs_inode_alloc+0x1/0x2 [xfs]\n",
        StackVerdict::Elsewhere,
    ),
    // Memory of the program, at a copy or at direct I/O; but XFS in a fault of its file.
    (
        "[<0>] try_to_free_pages+0x1/0x2\n[<0>] __alloc_pages_noprof+0x1/0x2\n\
         [<0>] do_swap_page+0x1/0x2\n[<0>] __handle_mm_fault+0x1/0x2\n\
         [<0>] handle_mm_fault+0x1/0x2\n[<0>] __get_user_pages+0x1/0x2\n\
         [<0>] iomap_dio_rw+0x1/0x2\n[<0>] xfs_file_dio_write_aligned+0x1/0x2 [xfs]\n",
        StackVerdict::Elsewhere,
    ),
    (
        "[<0>] try_to_free_pages+0x1/0x2\n[<0>] kmem_cache_alloc_noprof+0x1/0x2\n\
         [<0>] xfs_trans_alloc+0x1/0x2 [xfs]\n[<0>] xfs_write_fault+0x1/0x2 [xfs]\n\
         [<0>] handle_mm_fault+0x1/0x2\n",
        StackVerdict::Starved,
    ),
];

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
    for (stack, wanted) in STACKS {
        assert_eq!(verdict(stack.as_bytes()), *wanted, "{stack}");
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
