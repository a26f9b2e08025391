//! Kernels that are known to unshare blocks wrongly. Pure.

/// The first kernel whose clone and unshare are trusted: with 4.20 and 5.4 came the last repairs of
/// contents that were lost or shown to strangers by them (xfs: fix data corruption w/ unaligned
/// reflink ranges; iomap: use a srcmap for a read-modify-write I/O).
const OLDEST: (u32, u32) = (5, 4);

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
    // Broken by "iomap: allocate ifs in ->write_begin() early" in 6.6-rc1, repaired by "iomap:
    // don't skip reading in !uptodate folios when unsharing a range" in 6.6-rc4.
    let candidate = release
        .split_once("-rc")
        .and_then(|(_, rest)| number(rest, 0));
    if (major, minor) == (6, 6) && candidate.is_some_and(|candidate| candidate < 4) {
        return Some(format!(
            "kernel {release} writes wrong data when it unshares blocks: 6.6-rc4 does not"
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
            "6.6.0-rc3+",
            "x",
        ];
        for release in bad {
            assert!(known_bad(release).is_some(), "{release}");
        }
        let good = [
            "5.4.0-216-generic",
            "5.14.0-570.el9",
            "6.1.0-41-amd64",
            "6.6.0-rc4",
            "6.6.0",
            "6.18.44+",
            "7.3-rc1",
        ];
        for release in good {
            assert_eq!(known_bad(release), None, "{release}");
        }
    }
}
