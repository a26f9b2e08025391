//! Derives the stable level of a kernel from the version that it reports. Pure.
//!
//! | source | proves |
//! |---|---|
//! | `uname -r` of kernel.org's own kernels, Arch, Fedora, Alpine, Gentoo: `6.18.44`, `6.17.4-200.fc42.x86_64` | exactly that level |
//! | /proc/version of Debian, `#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-3 (…)`: the version of the package | exactly that level; `uname -r` is only `6.1.0-57-amd64` |
//! | /proc/version_signature of Ubuntu, `Ubuntu 5.15.0-144.157-generic 5.15.189`: the last word (`CONFIG_VERSION_SIGNATURE`, wiki.ubuntu.com/Kernel/FAQ) | at least that level |
//! | `uname -r` of all others, `6.1.159-181.297.amzn2023.x86_64`, `6.8.12-9-pve`, `5.14.0-611.el9.x86_64` | at least that level |
//!
//! "At least": a distribution adds to the sources that the number names. Repairs in them are in the
//! kernel; the number does not show whether others were added. Some distributions keep the number:
//! RHEL 9 5.14.0, SLES 15 6.4.0 or 5.14.21, Oracle's UEK 5.15.0 or 6.12.0, openEuler 6.6.0.
//!
//! Proxmox puts its own package version into /proc/version, `PMX 6.8.12-9`, and the same numbers
//! into `uname -r`. The first three are from the Makefile of the Ubuntu sources that it builds
//! (only `EXTRAVERSION` is replaced, Makefile of pve-kernel), which is the level that
//! /proc/version_signature would show on Ubuntu. The number after them is Proxmox's own.

use std::fmt;

/// The candidate number that stands for a release.
const RELEASED: u32 = u32::MAX;

/// A level of the stable series, `6.1.178`, or a release candidate, `7.2-rc4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level {
    major: u32,
    minor: u32,
    patch: u32,
    candidate: u32,
}

impl Level {
    /// The series: major and minor number.
    pub fn series(self) -> (u32, u32) {
        (self.major, self.minor)
    }

    /// Parses the level at the beginning of a text.
    pub fn parse(text: &str) -> Option<Level> {
        Some(parse(text)?.0)
    }
}

/// The level at the beginning of a text, and the text after its numbers.
fn parse(text: &str) -> Option<(Level, &str)> {
    let (major, rest) = number(text)?;
    let (minor, rest) = number(rest.strip_prefix('.')?)?;
    let third = rest.strip_prefix('.').and_then(number);
    let (patch, rest) = third.unwrap_or((0, rest));
    let candidate = match patch {
        0 => candidate(rest).unwrap_or(RELEASED),
        // Candidates of stable levels are not installed.
        _ => RELEASED,
    };
    let level = Level {
        major,
        minor,
        patch,
        candidate,
    };
    Some((level, rest))
}

fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit());
    let (digits, rest) = text.split_at(end.unwrap_or(text.len()));
    Some((digits.parse().ok()?, rest))
}

/// `-rc2`, `~rc4-1~exp1` (Debian), `-0.rc3.20251023git…` (Fedora), `-060100rc5-generic` (Ubuntu).
fn candidate(suffix: &str) -> Option<u32> {
    let behind = suffix
        .match_indices("rc")
        .map(|(at, rc)| suffix.split_at(at + rc.len()).1);
    behind.filter_map(number).map(|(number, _)| number).next()
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        match (self.patch, self.candidate) {
            (0, RELEASED) => Ok(()),
            (0, candidate) => write!(f, "-rc{candidate}"),
            (patch, _) => write!(f, ".{patch}"),
        }
    }
}

/// The version reported by the running kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// `uname -r`.
    pub release: String,
    /// Its level, if known.
    pub level: Option<Level>,
    /// The source of the level.
    pub source: &'static str,
    /// Whether it has nothing beyond its level, and so lacks what the level lacks.
    pub exact: bool,
    /// The package version, on Debian, Ubuntu and Proxmox.
    pub package: Option<String>,
}

impl Running {
    /// From `uname -r` and the texts of /proc/version and /proc/version_signature.
    pub fn new(release: &str, version: &str, signature: &str) -> Running {
        let release = release.trim();
        let by_release = parse(release);
        let series = by_release.map(|(level, _)| level.series());
        let fits = |level: &Level| series == Some(level.series());
        let running = |level, source, exact, package| Running {
            release: release.to_owned(),
            level,
            source,
            exact,
            package,
        };
        if let Some((package, level)) = ubuntu(signature) {
            let level = level.filter(fits);
            return running(level, "/proc/version_signature", false, Some(package));
        }
        let build = build(version);
        if let Some(package) = word_behind(build, "Debian") {
            let level = Level::parse(package).filter(fits);
            let package = Some(package.to_owned());
            return running(level, "/proc/version", level.is_some(), package);
        }
        let exact = by_release.is_some_and(|(_, suffix)| is_plain(suffix));
        let package = word_behind(build, "PMX").map(str::to_owned);
        let level = by_release.map(|(level, _)| level);
        running(level, "uname -r", exact, package)
    }
}

/// `Ubuntu 5.15.0-144.157-generic 5.15.189`: the package version, and the level.
fn ubuntu(signature: &str) -> Option<(String, Option<Level>)> {
    let mut words = signature.split_whitespace();
    if words.next() != Some("Ubuntu") {
        return None;
    }
    // The package version is followed by the flavour: `generic`, `aws`, `lowlatency-64k`.
    let parts: Vec<&str> = words.next()?.split('-').take(2).collect();
    Some((parts.join("-"), words.next_back().and_then(Level::parse)))
}

/// The build in /proc/version, `#1 SMP …`. The compiler before it may be Debian's on any kernel.
fn build(version: &str) -> &str {
    version.rfind(" #").map_or("", |at| version.split_at(at).1)
}

fn word_behind<'t>(text: &'t str, word: &str) -> Option<&'t str> {
    let mut words = text.split_whitespace();
    words.find(|it| *it == word)?;
    words.next().filter(|it| begins_with_digit(it))
}

fn begins_with_digit(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

/// Whether a release with this suffix is built from little more than the sources of its level.
fn is_plain(suffix: &str) -> bool {
    let is_fedora = |part: &str| part.strip_prefix("fc").is_some_and(begins_with_digit);
    let is_alpine = || {
        let number = suffix.strip_prefix('-').and_then(number);
        number.is_some_and(|(_, flavour)| ["-lts", "-virt", "-stable"].contains(&flavour))
    };
    let starts = |with: &&str| suffix.starts_with(*with);
    ["", "+"].contains(&suffix)
        || ["-rc", "-arch", "-gentoo"].iter().any(starts)
        || suffix.split('.').any(is_fedora)
        || is_alpine()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_and_written() {
        let levels = [
            ("6.18.44", "6.18.44"),
            ("6.18.44-fc-v669", "6.18.44"),
            ("7.3-rc1", "7.3-rc1"),
            ("6.6.0-rc2+", "6.6-rc2"),
            ("6.18.0-0.rc3.20251023git8f1.22.fc44.x86_64", "6.18-rc3"),
            ("6.1.0-060100rc5-generic", "6.1-rc5"),
            ("6.18~rc4-1~exp1", "6.18-rc4"),
            ("6.12.115-1~bpo12+1", "6.12.115"),
            ("6.12.43+deb13-amd64", "6.12.43"),
            ("6.6.126.1-1.azl3", "6.6.126"),
            ("6.12.31_1", "6.12.31"),
            ("6.18.3-arch1-1", "6.18.3"),
            ("6.4.0-150600.23.25-default", "6.4"),
        ];
        for (text, level) in levels {
            let read = Level::parse(text).map(|level| level.to_string());
            assert_eq!(read.as_deref(), Some(level), "{text}");
        }
        for text in ["", "x", "6", "6.", "six.one", "99999999999.1.1", "v6.1.1"] {
            assert_eq!(Level::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_candidate_comes_before_its_release() {
        let order = ["7.1.9", "7.2-rc3", "7.2-rc4", "7.2-rc10", "7.2", "7.2.1"];
        let levels: Vec<_> = order.map(|text| Level::parse(text).unwrap()).into();
        assert!(levels.is_sorted());
        assert_eq!(levels[1].to_string(), "7.2-rc3");
        assert_eq!(levels[4].to_string(), "7.2");
    }

    #[test]
    fn a_level_of_another_series_is_none() {
        let version =
            "Linux version 6.1.0-57-amd64 (a@b) (gcc-12 (Debian 12.2.0-14) 12.2.0) #1 SMP";
        let mine = Running::new("6.1.0-57-amd64", version, "");
        assert_eq!(mine.level, Level::parse("6.1"), "gcc's is none");
        let version = format!("{version} Debian 6.12.100-1 (2026-08-01)");
        let debian = Running::new("6.1.0-57-amd64", &version, "");
        assert_eq!((debian.level, debian.exact), (None, false));
        let ubuntu = Running::new("5.15.0-1-generic", "", "Ubuntu 6.8.0-1.1-generic 6.8.12");
        assert_eq!((ubuntu.level, ubuntu.exact), (None, false));
    }
}
