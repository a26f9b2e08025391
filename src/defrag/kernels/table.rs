//! The defects, one per row. Levels of CVE records are those of the record
//! (github.com/CVEProject/cvelistV5, under `cves`); those of other commits are from the stable
//! kernels' announcements and ChangeLogs (kernel.org/pub/linux/kernel), as in Debian's changelogs.

use super::release::Level;
use crate::model::Engine;

/// Reflink came with 4.9. Older kernels that have it got it, with its defects, by a backport.
const WITH_REFLINK: &str = "0.0";

/// A defect of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub struct Defect {
    /// The repairing commit, in the mainline kernel if there is one.
    pub commit: &'static str,
    /// Its CVE, if it has one.
    pub cve: Option<&'static str>,
    /// The title of the commit, and titles of others that repair it.
    pub titles: &'static [&'static str],
    /// The possible harm, as a clause.
    pub harm: &'static str,
    /// The engine that is not used on a kernel with the defect.
    pub engine: Engine,
    /// The first release with the defect.
    pub introduced: &'static str,
    /// The title of the commit that introduced it; identifies a backport of it to an older kernel.
    pub introduced_by: Option<&'static str>,
    /// The first repaired level of each series, mainline's last: later series are repaired too. A
    /// series between two of them was never repaired.
    pub repaired: &'static [&'static str],
}

impl Defect {
    pub fn name(&self) -> &'static str {
        self.cve.unwrap_or(self.commit)
    }

    pub fn title(&self) -> &'static str {
        self.titles.first().copied().unwrap_or_default()
    }

    /// Whether the sources of a level have the repair.
    pub fn is_repaired(&self, level: Level) -> bool {
        let series = level.series();
        match self.repairs().find(|it| it.series() == series) {
            Some(repaired) => level >= repaired,
            None => self.repairs().last().is_some_and(|it| series > it.series()),
        }
    }

    /// The levels of [`repaired`](Defect::repaired).
    pub fn repairs(&self) -> impl Iterator<Item = Level> {
        self.repaired.iter().filter_map(|level| Level::parse(level))
    }

    /// Whether the sources of a level have the defect.
    pub fn is_in(&self, level: Level) -> bool {
        let introduced = Level::parse(self.introduced);
        introduced.is_none_or(|introduced| level >= introduced) && !self.is_repaired(level)
    }
}

/// The defects that a kernel must not have for the engine to be used on it.
pub fn of(engine: Engine) -> impl Iterator<Item = &'static Defect> {
    DEFECTS.iter().filter(move |defect| defect.engine == engine)
}

/// All defects, the most serious first.
pub static DEFECTS: [Defect; 6] = [
    // cves/2026/64xxx/CVE-2026-64600.json. 5.4, 5.10, 6.13 to 6.17, 6.19 and 7.0 were not repaired.
    Defect {
        commit: "2f4acd0fcd86",
        cve: Some("CVE-2026-64600"),
        titles: &["xfs: resample the data fork mapping after cycling ILOCK"],
        harm: "a guest's write can land in blocks of another file while its image is moved",
        engine: Engine::Online,
        introduced: "4.11",
        introduced_by: Some("xfs: allocate direct I/O COW blocks in iomap_begin"),
        repaired: &[
            "5.15.212", "6.1.178", "6.6.145", "6.12.96", "6.18.39", "7.1.4", "7.2-rc4",
        ],
    },
    // Mainline 6.7; announcements of 6.6.17 (2024-02-16) and 6.1.128 (2025-02-01); none of a
    // repaired 5.15 was found. The completion of a write to shared blocks also remapped neighbours
    // whose writes were in progress: a power cut in these milliseconds leaves the previous disk
    // contents in place of data that may be old. Every move of a segment is such a write.
    Defect {
        commit: "55f669f34184",
        cve: None,
        titles: &["xfs: only remap the written blocks in xfs_reflink_end_cow_extent"],
        harm: "a power cut while an image is moved can leave stale blocks in it",
        engine: Engine::Online,
        introduced: WITH_REFLINK,
        introduced_by: None,
        repaired: &["6.1.128", "6.6.17", "6.7"],
    },
    // Mainline 6.2, ChangeLog-6.1.92. An unshare continues with a mapping that write-back has
    // changed: a page written back and reclaimed meanwhile is read from its old block
    // (iomap_unshare_iter, iomap_write_begin, fs/iomap/buffered-io.c), and a guest's write is lost.
    // Only for guests that use the page cache; found by code review, never observed.
    Defect {
        commit: "304a68b9c63b",
        cve: None,
        titles: &["xfs: use iomap_valid method to detect stale cached iomaps"],
        harm: "a write of a guest that uses the page cache can be lost while its image is moved",
        engine: Engine::Online,
        introduced: WITH_REFLINK,
        introduced_by: None,
        repaired: &["6.1.92", "6.2"],
    },
    // Text of the stable commit, announced with 5.4.70 (2020-10-07); mainline was repaired by
    // another change in 5.5. Only files with an extent-size hint, as qemu-img sets it from 5.1 on.
    Defect {
        commit: "aee38af574a1",
        cve: None,
        titles: &[
            "xfs: trim IO to found COW extent limit",
            "xfs: fill out the srcmap in iomap_begin",
        ],
        harm: "writes to an image with an extent-size hint can damage the blocks it shares",
        engine: Engine::Online,
        introduced: "5.1",
        introduced_by: Some("xfs: don't use delalloc extents for COW on files with extsize hints"),
        repaired: &["5.4.70", "5.5"],
    },
    // Introduced by a01b8f225248, 6.6-rc1; repaired in 6.6-rc3. Data not in the page cache was not
    // read before it was written to its new blocks.
    Defect {
        commit: "35d30c9cf127",
        cve: None,
        titles: &["iomap: don't skip reading in !uptodate folios when unsharing a range"],
        harm: "wrong data is written to the new blocks",
        engine: Engine::Online,
        introduced: "6.6-rc1",
        introduced_by: Some("iomap: Allocate ifs in ->write_begin() early"),
        repaired: &["6.6-rc3"],
    },
    // 4.19-rc8 according to the merge of the clone rework in 4.20 (tag xfs-4.20-merge-2), which
    // repaired the other defects of this kind. A clone could share blocks beyond the end of a file.
    Defect {
        commit: "b39989009bdb",
        cve: None,
        titles: &["xfs: fix data corruption w/ unaligned reflink ranges"],
        harm: "a clone can expose stale data behind the end of a file",
        engine: Engine::Online,
        introduced: WITH_REFLINK,
        introduced_by: None,
        repaired: &["4.20"],
    },
];

/// The first level of each series that has none of an engine's defects; the last covers all later.
pub fn good_from(engine: Engine) -> Vec<Level> {
    let is_good = |level: &Level| !of(engine).any(|defect| defect.is_in(*level));
    let mut levels: Vec<Level> = of(engine).flat_map(Defect::repairs).collect();
    levels.retain(is_good);
    levels.sort_unstable();
    levels.dedup_by_key(|level| level.series());
    levels
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn rows_are_in_order() {
        for defect in &DEFECTS {
            let name = defect.name();
            let repairs: Vec<_> = defect.repairs().collect();
            let parsed = repairs.iter().map(Level::to_string);
            assert!(parsed.eq(defect.repaired.iter().copied()), "{name}");
            assert!(repairs.is_sorted(), "{name}");
            assert!(
                Level::parse(defect.introduced).unwrap() < repairs[0],
                "{name}"
            );
            let series: HashSet<_> = repairs.iter().map(|it| it.series()).collect();
            assert_eq!(
                series.len(),
                defect.repaired.len(),
                "{name}: two of a series"
            );
            assert_eq!(defect.commit.len(), 12, "{name}");
            assert!(!defect.titles.is_empty(), "{name}");
        }
        let names: HashSet<_> = DEFECTS.iter().map(Defect::name).collect();
        assert_eq!(names.len(), DEFECTS.len());
        // The advice "use xfs_fsr meanwhile" is given on every kernel.
        assert_eq!(of(Engine::XfsFsr).count(), 0);
    }

    #[test]
    fn the_levels_are_those_of_the_records() {
        let first = &DEFECTS[0];
        for (level, is_in) in [
            ("4.10.17", false),
            ("4.11", true),
            ("5.4.302", true),
            ("5.10.260", true),
            ("5.15.211", true),
            ("5.15.212", false),
            ("6.1.177", true),
            ("6.1.178", false),
            ("6.6.144", true),
            ("6.6.145", false),
            ("6.8.12", true),
            ("6.12.95", true),
            ("6.12.96", false),
            ("6.17.13", true),
            ("6.18.38", true),
            ("6.18.39", false),
            ("6.19.14", true),
            ("7.0.14", true),
            ("7.1.3", true),
            ("7.1.4", false),
            ("7.2-rc3", true),
            ("7.2-rc4", false),
            ("7.3-rc1", false),
            ("8.0", false),
        ] {
            let parsed = Level::parse(level).unwrap();
            assert_eq!(first.is_in(parsed), is_in, "{level}");
        }
        let candidates = &DEFECTS[4];
        let is_in = |level| candidates.is_in(Level::parse(level).unwrap());
        let levels = ["6.5.13", "6.6-rc1", "6.6-rc2", "6.6-rc3", "6.6"];
        assert_eq!(levels.map(is_in), [false, true, true, false, false]);
    }

    #[test]
    fn the_good_levels() {
        let good: Vec<_> = good_from(Engine::Online)
            .iter()
            .map(Level::to_string)
            .collect();
        let expected = [
            "6.1.178", "6.6.145", "6.12.96", "6.18.39", "7.1.4", "7.2-rc4",
        ];
        assert_eq!(good, expected);
    }

    #[test]
    fn the_manual_names_the_levels() {
        let manual = include_str!("../../../packaging/man/fragwatch-defrag.md");
        let good = good_from(Engine::Online);
        let (candidate, levels) = good.split_last().unwrap();
        assert_eq!(candidate.to_string(), "7.2-rc4");
        let levels: Vec<_> = levels.iter().map(Level::to_string).collect();
        let line = format!("| {}, 7.2 and all later |", levels.join(", "));
        assert!(manual.contains(&line), "{line}");
    }

    proptest! {
        /// In a series of which each row has a repair, from the latest of these on a kernel is good,
        /// and not before.
        #[test]
        fn a_level_is_good_from_its_last_repair_on(row in 0..6_usize, patch in 0..400_u32) {
            let good = good_from(Engine::Online);
            let Some(first) = good.get(row).filter(|it| it.series() != (7, 2)) else {
                return Ok(());
            };
            let (major, minor) = first.series();
            let level = Level::parse(&format!("{major}.{minor}.{patch}")).unwrap();
            let repairs = |defect: &&Defect| {
                let series = level.series();
                defect.repairs().find(|it| it.series() == series)
            };
            let last = DEFECTS
                .iter()
                .filter(|it| it.engine == Engine::Online)
                .filter_map(|it| repairs(&it))
                .max();
            let is_good = !of(Engine::Online).any(|defect| defect.is_in(level));
            prop_assert_eq!(is_good, Some(level) >= last, "{}", level);
        }
    }
}
