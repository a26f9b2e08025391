//! Searches the changelog of a kernel package for repairs, by CVE and by commit title. Debian,
//! Ubuntu and Proxmox list CVEs, titles or both; RHEL, its rebuilds and SUSE list every commit that
//! they backport. Debian and SUSE break long titles across lines.

use std::io::{self, BufRead, BufReader, Read};

use super::table::Defect;

/// Longer lines are read in pieces of this size, in bytes.
const LONGEST_LINE: u64 = 4096;
/// How much preceding text is searched with each line, in bytes: a title in three pieces.
const OVERLAP: usize = 256;

/// What a changelog names of a defect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Named {
    /// Its CVE, or the title of a repair.
    pub repair: bool,
    /// The revert of a repair.
    pub revert: bool,
    /// The title of the commit that introduced it.
    pub origin: bool,
}

impl Named {
    /// Whether the kernel has the repair.
    pub fn is_repaired(self) -> bool {
        self.repair && !self.revert
    }
}

/// The results of searching the changelogs of a package, for each defect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    named: Vec<(&'static Defect, Named)>,
    /// Whether there was anything to search: an entry, or the one of the running version.
    pub began: bool,
}

impl Found {
    pub fn none(defects: &[&'static Defect]) -> Found {
        let named = defects.iter().map(|it| (*it, Named::default()));
        Found {
            named: named.collect(),
            began: false,
        }
    }

    pub fn of(&self, defect: &Defect) -> Named {
        let mut named = self.named.iter();
        let found = named.find(|(it, _)| *it == defect);
        found.map_or_else(Named::default, |(_, named)| *named)
    }

    fn look_at(&mut self, text: &str) {
        for (defect, named) in &mut self.named {
            named.repair |= defect.cve.is_some_and(|cve| names_cve(text, cve));
            for title in defect.titles {
                for (at, _) in text.match_indices(title) {
                    match text.split_at(at).0.ends_with("Revert \"") {
                        true => named.revert = true,
                        false => named.repair = true,
                    }
                }
            }
            named.origin |= defect.introduced_by.is_some_and(|it| text.contains(it));
        }
    }
}

/// Finds whole numbers only: `CVE-2026-6460` is not in `CVE-2026-64600`.
fn names_cve(text: &str, cve: &str) -> bool {
    let mut behind = text
        .match_indices(cve)
        .map(|(at, it)| text.split_at(at + it.len()).1);
    behind.any(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Searches a changelog, newest entry first, and adds the results to `found`. If the running kernel
/// has a `version`, entries above its own belong to a package installed since the boot and do not
/// count; without an entry for it, nothing counts.
pub fn search(changelog: impl Read, version: Option<&str>, found: &mut Found) -> io::Result<()> {
    let mut began = false;
    let mut reader = BufReader::new(changelog);
    let mut window = String::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut piece = reader.by_ref().take(LONGEST_LINE);
        if piece.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        began |= match version {
            None => !text.trim().is_empty(),
            Some(version) => is_entry_of(&text, version),
        };
        if !began {
            continue;
        }
        found.began = true;
        for word in text.split_whitespace() {
            window.push(' ');
            window.push_str(word);
        }
        found.look_at(&window);
        let keep = window.len().saturating_sub(OVERLAP);
        let keep = (keep..window.len()).find(|at| window.is_char_boundary(*at));
        window.drain(..keep.unwrap_or(window.len()));
    }
}

/// `linux (6.1.192-3) bookworm-security; urgency=high`; for a signed image with `+` for `-`.
fn is_entry_of(line: &str, version: &str) -> bool {
    let is_head = line.starts_with(|c: char| c.is_ascii_alphanumeric());
    let entry = || {
        let (_, behind) = line.split_once(" (")?;
        let (version, _) = behind.split_once(')')?;
        Some(version)
    };
    let signed = version.replacen('-', "+", 1);
    is_head && entry().is_some_and(|entry| entry == version || entry == signed)
}

#[cfg(test)]
mod tests {
    use super::super::table::DEFECTS;
    use super::*;

    fn found(text: &str, version: Option<&str>) -> Found {
        let mut found = Found::none(&[&DEFECTS[0]]);
        search(text.as_bytes(), version, &mut found).unwrap();
        found
    }

    fn named(text: &str, version: Option<&str>) -> Named {
        found(text, version).of(&DEFECTS[0])
    }

    const DEBIAN: &str = "\
linux-signed-amd64 (6.1.192+3) bookworm-security; urgency=high

  * Sign kernel from linux 6.1.192-3

 -- S B <c@debian.org>  Thu, 26 Nov 2026 18:12:56 +0100

linux (6.1.180-1) bookworm-security; urgency=high

  * New upstream stable update:
    https://www.kernel.org/pub/linux/kernel/v6.x/ChangeLog-6.1.178
    - xfs: resample the data fork mapping after cycling ILOCK (CVE-2026-64600)

 -- S B <c@debian.org>  Thu, 30 Jul 2026 18:12:56 +0100

linux (6.1.176-1) bookworm; urgency=medium

  * New upstream stable update:
    - xfs: something else
";

    #[test]
    fn a_repair_is_found_by_its_cve_or_its_title() {
        let yes = [
            "  * CVE-2026-64600\n    - something\n",
            "- xfs: resample the data fork mapping after cycling ILOCK (CKI Backport Bot) [RHEL-1] \
             {CVE-2026-64600}",
            "- xfs: resample the data fork mapping after cycling ILOCK (A B)",
            // As SUSE and Debian break lines.
            "- xfs: resample the data fork mapping after\n  cycling ILOCK (git-fixes).",
            "    - xfs: resample\n      the data fork mapping\n      after cycling ILOCK\n",
            DEBIAN,
            "fixed in 2026: CVE-2026-64600, CVE-2026-64601",
        ];
        for text in yes {
            assert!(named(text, None).is_repaired(), "{text}");
        }
        let no = [
            "",
            "CVE-2026-646001",
            "- xfs: resample the data fork",
            "- Revert \"xfs: resample the data fork mapping after cycling ILOCK\"",
            "- Revert \"xfs: resample the data fork mapping after cycling ILOCK\"\n\
             - xfs: resample the data fork mapping after cycling ILOCK {CVE-2026-64600}\n",
        ];
        for text in no {
            assert!(!named(text, None).is_repaired(), "{text}");
        }
        let origin = named("- xfs: allocate direct I/O COW blocks in iomap_begin", None);
        assert!(origin.origin && !origin.repair);
    }

    #[test]
    fn what_a_later_package_brought_does_not_count() {
        let found = |version| found(DEBIAN, Some(version));
        let is_repaired = |version| found(version).of(&DEFECTS[0]).is_repaired();
        assert!(is_repaired("6.1.192-3"), "the signed one");
        assert!(is_repaired("6.1.180-1"));
        assert!(!is_repaired("6.1.176-1"), "the repair is above its entry");
        assert!(found("6.1.176-1").began);
        assert!(!found("6.1.192-4").began, "it is not in this changelog");
        assert!(!is_repaired("6.1.192-4"));
    }

    #[test]
    fn long_lines_and_odd_bytes_are_no_trouble() {
        let mut text = b"\xff\xfe".repeat(10_000);
        text.extend_from_slice("é".repeat(5_000).as_bytes());
        text.extend_from_slice(b"\n- CVE-2026-64600\n");
        let mut found = Found::none(&[&DEFECTS[0]]);
        search(&text[..], None, &mut found).unwrap();
        assert!(found.of(&DEFECTS[0]).is_repaired());
    }
}
