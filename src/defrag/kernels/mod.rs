//! Which kernels an engine may be used on: the kernel defects that could damage an image, and the
//! proof that the running kernel does not have them. Without proof the engine is refused.
//!
//! ```text
//! /proc: release, level ─► every repair in it? ───────────────────────► trusted
//!   └─ no ─► defrag.trusted_kernels names the release? ───────────────► trusted
//!        └─ no ─► changelog of its package names what is missing? ────► trusted
//!             └─ no ─► nothing but its level in it? ─► known bad, else unknown: refused
//! ```
//!
//! - [`release`]: the version that a kernel reports, and what it proves
//! - [`table`]: the defects, one per row, with sources
//! - [`changelog`], [`package`]: other places that name repairs
//! - [`judge`](mod@judge): the verdict, as text
//!
//! A release in `defrag.trusted_kernels` is trusted even if known bad: it may have been patched.
//!
//! # Checked and left out
//!
//! All CVE records up to 2026-11-23 with files in fs/xfs or fs/iomap, against the engines' calls
//! (FICLONERANGE, FALLOC_FL_UNSHARE_RANGE, fallocate, ftruncate, FIEMAP, FSGETXATTR, FSSETXATTR,
//! BULKSTAT, O_TMPFILE, page cache reads; SWAPEXT, XFS_IOC_COMMIT_RANGE by xfs_fsr):
//!
//! - CVE-2026-80530, reflink flags of exchanged ranges (6.10; repaired by b2d5a81dae38 in 6.12.105,
//!   6.18.46, 7.1.10 and 7.2): no image that shares blocks is given to xfs_fsr (check_map), which
//!   exchanges ranges from xfsprogs 6.12.0 on, and it does not set the required flag. Likewise
//!   CVE-2026-98974, CVE-2026-98975, "fix exchange-range-to-eof file size exchange" and "stop
//!   exchanging reflink flags when exchanging mappings" (6.12.114); the to-EOF flag is not set.
//! - CVE-2026-43365, sectors of 4 KiB and no log stripe unit (5.14): an XFS may not mount after a
//!   crash, whether an engine is used or not.
//! - CVE-2026-64357, reservation of an exchange: for more blocks than 32 bits count; no damage.
//! - CVE-2026-68145, zero-length write: only after a fault of a write buffer; unsharing has none.
//! - CVE-2026-72367, write-back and truncation: xfs_reflink_end_cow ignores the wrapped range.
//! - CVE-2025-68794, reads that do not begin at a block: XFS reads whole blocks.
//! - CVE-2025-21667, CVE-2023-54285: 32-bit kernels.
//! - CVE-2022-50406, CVE-2026-53165, CVE-2026-31463, CVE-2025-68357, CVE-2026-72370: crashes after
//!   an I/O error, with sub-block I/O, or in atomic writes. No further data of an image is lost.
//! - CVE-2024-50250, CVE-2023-53306: DAX, which is refused. CVE-2026-98447: the realtime device,
//!   also refused. CVE-2026-99678, CVE-2026-99680: pNFS layouts.
//! - Not called by us: log recovery and unmounting (CVE-2024-39472, CVE-2024-41014, CVE-2026-31453
//!   to 31455, CVE-2026-43063, CVE-2026-64187, CVE-2026-80536, CVE-2026-99395), attributes and
//!   directories (CVE-2024-41013, CVE-2024-55641, CVE-2025-39835, CVE-2026-43053, CVE-2026-43153,
//!   CVE-2026-43158, CVE-2026-43187), scrub (CVE-2025-40246, CVE-2025-68784, CVE-2026-23223,
//!   CVE-2026-23249 to 23252, CVE-2026-31556, CVE-2026-64256, CVE-2026-99403), filestreams
//!   (CVE-2024-50216), DAX (CVE-2026-46005), quota (CVE-2026-64356).
//!
//! Without a CVE:
//! - 1cf7e834a6fb "xfs: switch to multigrain timestamps", 6.13: before it, change times were as
//!   coarse as a tick, and xfs_fsr, which compares them, could lose a write in that tick. Behind
//!   the gate nobody has the image open, and its last change is 100 ms old (check_settled).
//! - b8c4076db5fd "xfs: don't allocate COW extents when unsharing a hole", 6.12: holes are skipped.
//! - 50793801fc7f "fsdax: dax_unshare_iter needs to copy entire blocks", 6.12: DAX is refused.
//! - a311a08a4237 "iomap: constrain the file range passed to iomap_file_unshare", 6.12: nothing is
//!   unshared beyond the end of the file.
//! - f7a4874d977b "iomap: don't bother unsharing delalloc extents", 6.12, 6.6.60 and 6.1.116:
//!   without it, unnecessary but correct work.
//! - "iomap: correct the range of a partial dirty clear", 6.12.101: our ranges are block-aligned.
//! - "xfs: don't replace the wrong part of the cow fork", 6.12.101: only online repair does that.
//! - abd7d651ad2c "xfs: IOMAP_ZERO and IOMAP_UNSHARE already hold invalidate_lock", 6.12-rc4:
//!   before it, an unshare whose read fails could deadlock on a lock that it holds itself. Then the
//!   run hangs, as it may on any failing disk, and the daemon does not.

pub mod changelog;
pub mod judge;
pub mod package;
pub mod release;
pub mod table;

use std::sync::{Mutex, PoisonError};

pub use judge::{Judgement, Trust};
pub use package::Sources;

use crate::model::Engine;

type Key = (Engine, String, Sources);

/// The last evidence found: a process searches once for its kernel.
static SEARCHED: Mutex<Option<(Key, judge::Evidence)>> = Mutex::new(None);

/// Judges the running kernel for an engine. May take as long as [`Sources::deadline`], and hang
/// with the disk that holds the changelog: not for a thread that others wait for.
pub fn judge_host(engine: Engine, sources: &Sources, vouched: &[String]) -> Judgement {
    let (running, version) = package::running(&sources.proc);
    judge::judge(engine, &running, vouched, |defects| {
        let key = (engine, version, sources.clone());
        // Held during the search, so that no other thread repeats it.
        let mut searched = SEARCHED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, evidence)) = searched.as_ref().filter(|(known, _)| *known == key) {
            return evidence.clone();
        }
        let evidence = package::search(sources, &running, defects);
        // A failed search is repeated the next time.
        *searched = evidence.is_ok().then(|| (key, evidence.clone()));
        evidence
    })
}
