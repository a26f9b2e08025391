//! Kernels that are known to unshare blocks wrongly. Pure.
//!
//! Judged by the release (`uname -r`) alone. A distribution's kernel keeps the release that it began
//! with, and which repairs were added to it since cannot be told from that: SLES 15 lists those of
//! 4.20 in its change log; of RHEL 8, which calls itself 4.18, it is not known to us. Such a kernel is
//! refused with the rest of its age.
//!
//! # What is refused
//!
//! | releases | commit | what was wrong before it |
//! |---|---|---|
//! | before 5.4 | b39989009bdb "xfs: fix data corruption w/ unaligned reflink ranges", 4.20, and those around it | a clone could share what lies beyond the end of a file, and lose what was in the page cache only |
//! | 6.6-rc1, rc2 | 35d30c9cf127 "iomap: don't skip reading in !uptodate folios when unsharing a range", 6.6-rc3 | what was not in the page cache was not read before it was written to its new blocks; came with a01b8f225248 "iomap: Allocate ifs in ->write_begin() early" |
//!
//! The line is drawn at 5.4 because that is the first long-term kernel behind 4.20; nothing is known
//! to have been wrong in 5.0 to 5.3.
//!
//! # What is known and does not matter here
//!
//! - b8c4076db5fd "xfs: don't allocate COW extents when unsharing a hole" and 50793801fc7f "fsdax:
//!   dax_unshare_iter needs to copy entire blocks", both 6.12: holes are skipped, and DAX is refused.
//! - a311a08a4237 "iomap: constrain the file range passed to iomap_file_unshare", 6.12: nothing is
//!   unshared beyond the end of the file.
//! - f7a4874d977b "iomap: don't bother unsharing delalloc extents", 6.12 and 6.6.60: needless work
//!   before, no wrong one.
//!
//! # What is known, rare, and not refused
//!
//! - 55f669f34184 "xfs: only remap the written blocks in xfs_reflink_end_cow_extent", 6.7, 6.6.y and
//!   6.1.128: before it, blocks next to those just written could be remapped before their own write
//!   had ended. If the power fails in these milliseconds, they hold what was on the disk before. That
//!   is so for every write to a file that shares blocks, found by reading the code, and never seen.
//!   Whether a distribution's 5.14 or 5.15 has the repair is not known to us. Whoever cannot have it
//!   leaves `online` out of `defrag.engines` on such a kernel.
//! - abd7d651ad2c "xfs: IOMAP_ZERO and IOMAP_UNSHARE already hold invalidate_lock", 6.12-rc4: before
//!   it, an unsharing in which a read fails could wait for a lock that it holds itself. The run hangs
//!   then, as it may on any disk that fails, and the daemon does not.

/// The first kernel whose clone and unshare are trusted.
const OLDEST: (u32, u32) = (5, 4);
/// The first candidate of 6.6 that is.
const FIRST_GOOD_CANDIDATE: u32 = 3;

/// Why this kernel, by its release (`uname -r`), must not be asked to unshare.
#[must_use]
pub(super) fn known_bad(release: &str) -> Option<String> {
    let (Some(major), Some(minor)) = (number(release, 0), number(release, 1)) else {
        return Some(format!(
            "the kernel calls itself {release}, which says nothing of its age"
        ));
    };
    if (major, minor) < OLDEST {
        return Some(format!(
            "kernel {release} is older than 5.4: it may lose data when it unshares blocks"
        ));
    }
    let candidate = release
        .split_once("-rc")
        .and_then(|(_, rest)| number(rest, 0));
    if (major, minor) == (6, 6) && candidate.is_some_and(|it| it < FIRST_GOOD_CANDIDATE) {
        return Some(format!(
            "kernel {release} writes wrong data when it unshares blocks: 6.6-rc3 does not"
        ));
    }
    None
}

/// One of the numbers at the beginning, separated by dots.
fn number(text: &str, index: usize) -> Option<u32> {
    let part = text.split('.').nth(index)?;
    let digits = part.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bad_ones_are_known() {
        let bad = [
            "3.10.0-1160.el7",
            "4.18.0-553.el8_10",
            "5.3.18",
            "6.6.0-rc1",
            "6.6.0-rc2+",
            "x",
        ];
        for release in bad {
            assert!(known_bad(release).is_some(), "{release}");
        }
        let good = [
            "5.4.0-216-generic",
            "5.14.0-570.el9",
            "6.1.0-41-amd64",
            "6.6.0-rc3",
            "6.6.0",
            "6.18.44+",
            "7.3-rc1",
        ];
        for release in good {
            assert_eq!(known_bad(release), None, "{release}");
        }
    }
}
