//! Which kernels an engine may be used on: the kernel defects that could damage an image, and the
//! proof that the running kernel does not have them. What cannot be proven is refused.
//!
//! ```text
//! /proc: release, level ─► every repair in it? ───────────────────────► trusted
//!   └─ no ─► defrag.trusted_kernels names the release? ───────────────► trusted
//!        └─ no ─► changelog of its package names what is missing? ────► trusted
//!             └─ no ─► nothing but its level in it? ─► known bad, else unknown: refused
//! ```
//!
//! - [`release`]: the version that a kernel reports, and what that proves
//! - [`table`]: the defects, a row each, with sources
//! - [`changelog`], [`package`]: where else repairs are named
//! - [`judge`](mod@judge): the verdict, in words
//!
//! A release of `defrag.trusted_kernels` is trusted even if it is known to be bad: the operator may
//! have patched it.
//!
//! # Checked and left out
//!
//! All CVE records up to 2026-11-23 whose files lie in fs/xfs or fs/iomap, against the calls of the
//! engines (FICLONERANGE, FALLOC_FL_UNSHARE_RANGE, fallocate, ftruncate, FIEMAP, FSGETXATTR,
//! FSSETXATTR, BULKSTAT, O_TMPFILE, reading through the page cache; SWAPEXT, XFS_IOC_COMMIT_RANGE by
//! xfs_fsr):
//!
//! - CVE-2026-98974, CVE-2026-98975, "fix exchange-range-to-eof file size exchange" and "stop
//!   exchanging reflink flags when exchanging mappings" (6.12.114): as CVE-2026-80530 in the table,
//!   behind the same guard; xfs_fsr sets no flag to the end of the file.
//! - CVE-2026-64357, the reservation of an exchange: for more blocks than 32 bits count, and an error
//!   of the call, no damage.
//! - CVE-2026-68145, a write of no length: only after a fault of the writer's own buffer; unsharing
//!   has none.
//! - CVE-2026-72367, write-back and truncation: the range that wraps ends before it begins, and
//!   xfs_reflink_end_cow does nothing for it.
//! - CVE-2025-68794, reads that do not begin at a block: XFS reads whole blocks.
//! - CVE-2025-21667, CVE-2023-54285: kernels of 32 bits.
//! - CVE-2022-50406, CVE-2026-53165, CVE-2026-31463, CVE-2025-68357, CVE-2026-72370: crashes after an
//!   I/O error, with sub-block I/O, or in atomic writes. Nothing of an image is lost that was not.
//! - CVE-2024-50250, CVE-2023-53306: DAX, which is refused. CVE-2026-98447: the realtime device,
//!   which is refused too. CVE-2026-99678, CVE-2026-99680: pNFS layouts.
//! - Log recovery and unmounting (CVE-2024-39472, CVE-2024-41014, CVE-2026-31453 to 31455,
//!   CVE-2026-43063, CVE-2026-64187, CVE-2026-80536, CVE-2026-99395), attributes and directories
//!   (CVE-2024-41013, CVE-2024-55641, CVE-2025-39835, CVE-2026-43053, CVE-2026-43153, CVE-2026-43158,
//!   CVE-2026-43187), scrub (CVE-2025-40246, CVE-2025-68784, CVE-2026-23223, CVE-2026-23249 to 23252,
//!   CVE-2026-31556, CVE-2026-64256, CVE-2026-99403), the rest (CVE-2024-50216 filestreams,
//!   CVE-2026-46005 DAX, CVE-2026-64356 quota): no call of ours.
//!
//! Without a CVE:
//!
//! - b8c4076db5fd "xfs: don't allocate COW extents when unsharing a hole" and 50793801fc7f "fsdax:
//!   dax_unshare_iter needs to copy entire blocks", both 6.12: holes are skipped, and DAX is refused.
//! - a311a08a4237 "iomap: constrain the file range passed to iomap_file_unshare", 6.12: nothing is
//!   unshared beyond the end of the file.
//! - f7a4874d977b "iomap: don't bother unsharing delalloc extents", 6.12, 6.6.60 and 6.1.116: needless
//!   work before, no wrong one.
//! - "iomap: correct the range of a partial dirty clear", 6.12.101: our ranges begin and end at
//!   blocks.
//! - "xfs: don't replace the wrong part of the cow fork", 6.12.101: only online repair does that.
//! - abd7d651ad2c "xfs: IOMAP_ZERO and IOMAP_UNSHARE already hold invalidate_lock", 6.12-rc4: before
//!   it, an unsharing in which a read fails could wait for a lock that it holds itself. The run hangs
//!   then, as it may on any disk that fails, and the daemon does not.

pub mod changelog;
pub mod judge;
pub mod package;
pub mod release;
pub mod table;

use std::sync::{Mutex, PoisonError};

pub use judge::{Judgement, Trust};
pub use package::Sources;

use crate::model::Engine;

/// What was searched for: an engine, /proc/version, and where.
type Key = (Engine, String, Sources);

/// The evidence that was found last: a process searches once for its kernel.
static SEARCHED: Mutex<Option<(Key, judge::Evidence)>> = Mutex::new(None);

/// Judges the running kernel for an engine. This may take as long as [`Sources::deadline`], and hang
/// with the disk that the changelog is on: not for a thread that others wait for.
pub fn judge_host(engine: Engine, sources: &Sources, vouched: &[String]) -> Judgement {
    let (running, version) = package::running(&sources.proc);
    judge::judge(engine, &running, vouched, |defects| {
        let key = (engine, version, sources.clone());
        // Held while searching, so that nobody searches for the same.
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
