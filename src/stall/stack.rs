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
#[rustfmt::skip]
const ALLOCATOR_BEGINNINGS: [&[u8]; 14] = [
    // mm/page_alloc.c, mm/mempolicy.c
    b"alloc_pages", b"alloc_frozen_pages", b"folio_alloc", b"filemap_alloc_folio", b"perform_reclaim",
    // mm/slub.c, mm/slab.c, mm/slab_common.c
    b"kmalloc", b"krealloc", b"kmem_cache_alloc", b"slab_alloc",
    // mm/util.c, mm/vmalloc.c
    b"kvmalloc", b"vmalloc",
    // fs/xfs/xfs_buf.c, which retries by itself: `xfs_buf_alloc_pages`, `xfs_buf_alloc_backing_mem`
    b"xfs_buf_alloc",
    // mm/vmscan.c, mm/compaction.c
    b"shrink_zone", b"compact_zone",
];

/// Full names where a prefix would be ambiguous: `shrink_dcache_parent` is called by rmdir.
#[rustfmt::skip]
const ALLOCATOR_NAMES: [&[u8]; 24] = [
    // mm/slub.c
    b"allocate_slab", b"new_slab",
    // mm/vmscan.c
    b"try_to_free_pages", b"do_try_to_free_pages", b"throttle_direct_reclaim", b"reclaim_throttle",
    b"shrink_node", b"shrink_node_memcgs", b"shrink_lruvec", b"shrink_one", b"shrink_many",
    b"shrink_list", b"shrink_slab", b"shrink_inactive_list", b"shrink_active_list",
    b"shrink_page_list", b"shrink_folio_list",
    // mm/compaction.c, mm/backing-dev.c, mm/oom_kill.c
    b"try_to_compact_pages", b"congestion_wait", b"out_of_memory",
    // fs/xfs/kmem.c before 6.9, which retries by itself
    b"kmem_alloc", b"kmem_alloc_large", b"kmem_realloc", b"kmem_zone_alloc",
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
    // Where there is no symbol, there is nothing to judge. Before 5.2 a stack ends in
    // `0xffffffffffffffff`, and that of a running task consists of nothing else.
    let is_named = |frame: &&[u8]| !frame.starts_with(b"0x");
    for frame in proc::stack_frames(stack).filter(is_named) {
        frames += 1;
        let name = function(frame);
        limited |= CGROUP.contains(&name);
        // Innermost first: later frames called the earlier ones.
        if allocates && !limited && is_xfs(frame, name) {
            return StackVerdict::Starved;
        }
        // A page fault is the program's need of memory, in whatever call it happens.
        allocates = (allocates || is_allocator(name)) && name != b"handle_mm_fault";
    }
    if frames == 0 {
        StackVerdict::Unseen
    } else {
        StackVerdict::Elsewhere
    }
}

/// Extracts `xfs_ilock` from `__xfs_ilock.part.0+0x8e/0x120 [xfs]`, and from `.xfs_ilock+…` of
/// big-endian PowerPC.
fn function(frame: &[u8]) -> &[u8] {
    let start = frame.iter().position(|byte| !b"_.".contains(byte));
    let frame = frame.get(start.unwrap_or(0)..).unwrap_or_default();
    let mut parts = frame.split(|byte| b"+. ".contains(byte));
    parts.next().unwrap_or_default()
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
mod tests;
