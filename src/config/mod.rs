//! The configuration: the file `/etc/fragwatch/fragwatch.toml` and fragments in `conf.d` beside it.
//!
//! Each file ([`mod@file`]) is parsed to a table of values with their places, each key of which is
//! deserialized by itself ([`read`]) and checked ([`checks`]); the tables are merged and deserialized
//! to [`Settings`] ([`settings`]), whose defaults adapt to the keys that are set ([`check`],
//! [`limits`]). The mistakes of all keys are reported at once, with file, line and column
//! ([`ConfigError`]). An unknown key is an error: a misspelled threshold must not leave a host
//! unwatched.
//!
//! A new key is a field in [`settings`], with its default and, if not every value of its type is
//! valid, its check; it needs a description in `config/fragwatch.toml` (tests check this), from
//! which messages take their examples.

mod check;
mod checks;
mod examples;
mod file;
mod formats;
mod limits;
mod read;
mod report;
mod rules;
pub mod settings;
mod text;

use std::path::{Path, PathBuf};

pub use report::ConfigError;
pub use settings::Settings;

use check::Check;
use report::{Finding, Source};
use toml::de::DeTable;

/// The main file if none is named on the command line.
pub const DEFAULT_PATH: &str = "/etc/fragwatch/fragwatch.toml";
const MAINTENANCE: &str = "maintenance";

/// A configuration and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The effective settings.
    pub settings: Settings,
    /// The files read, in order of increasing precedence. Empty if there are none: all defaults.
    pub files: Vec<PathBuf>,
    /// Whether the main file exists and is empty, without even a comment.
    pub is_blank: bool,
}

/// The error for an empty main file (left by an editor or a full disk) that was not empty before.
pub fn blank_file(path: &Path) -> ConfigError {
    let message = "is empty, but the configuration before it was not";
    let help = "write the settings into it, or a comment if the defaults are to be in force";
    let problem = report::problem_of(path, message, help);
    ConfigError::new(vec![problem], Vec::new(), &[])
}

/// Reads the file at `path`, then each `conf.d/*.toml` in its directory, sorted by name and without
/// hidden files. A later file overrides earlier ones key by key, and its lists replace lists;
/// repeatable sections, such as `[[klog.rule]]`, are appended in the order of the files. Without a
/// path, it is [`DEFAULT_PATH`], which may be missing: then defaults and fragments apply.
///
/// # Errors
/// If a file cannot be read, is not a regular file, is larger than 1 MiB or is not UTF-8; if it is
/// not TOML, or has an unknown key or an invalid value; if values contradict each other.
pub fn load(path: Option<&Path>) -> Result<Loaded, ConfigError> {
    let (loaded, error, _) = read_files(path.unwrap_or(Path::new(DEFAULT_PATH)), path.is_none());
    error.map_or(Ok(loaded), Err)
}

/// As [`load`], for the start of the daemon: if only `[maintenance]` is invalid, returns the error
/// beside settings without maintenance windows.
///
/// # Errors
/// If anything else is invalid.
pub fn load_to_start(path: Option<&Path>) -> Result<(Loaded, Option<ConfigError>), ConfigError> {
    match read_files(path.unwrap_or(Path::new(DEFAULT_PATH)), path.is_none()) {
        (_, Some(error), false) => Err(error),
        (mut loaded, Some(error), true) => {
            loaded.settings.maintenance.windows.clear();
            Ok((loaded, Some(error)))
        }
        (loaded, None, _) => Ok((loaded, None)),
    }
}

/// The settings and the text of a file that consists of `head` and the output of
/// [`Settings::to_toml`]. `None` if it cannot be read or anything in it is invalid.
pub fn load_copy(path: &Path, head: &str) -> Option<(Settings, String)> {
    let source = file::read(path).ok()??;
    let (settings, findings) = assemble(std::slice::from_ref(&source), &[]);
    (source.text.starts_with(head) && findings.is_empty()).then_some((settings, source.text))
}

/// The merged settings, what is wrong, and whether all of that is in `[maintenance]`.
fn read_files(path: &Path, may_be_missing: bool) -> (Loaded, Option<ConfigError>, bool) {
    let (sources, problems) = file::read_all(path, may_be_missing);
    let (settings, findings) = assemble(&sources, &problems);
    let is_blank = |source: &Source| source.path == path && source.text.trim().is_empty();
    let loaded = Loaded {
        settings,
        is_blank: sources.first().is_some_and(is_blank),
        files: sources.iter().map(|source| source.path.clone()).collect(),
    };
    let is_right = problems.is_empty() && findings.is_empty();
    let is_in_maintenance = problems.is_empty() && findings.iter().all(|it| it.is_in(MAINTENANCE));
    let error = (!is_right).then(|| ConfigError::new(problems, findings, &sources));
    (loaded, error, is_in_maintenance)
}

/// The merged settings of `sources`, and what is wrong with them in addition to `problems`.
fn assemble(sources: &[Source], problems: &[String]) -> (Settings, Vec<Finding>) {
    let mut table = DeTable::new();
    let mut findings = Vec::new();
    let texts = report::placed(sources);
    for text in &texts {
        let (keys, found) = read::read(text);
        findings.extend(found);
        let mut invalid = Vec::new();
        read::settings(&keys).invalid("", &mut invalid);
        let mut check = Check::new(&keys);
        for (path, problem) in invalid {
            check.refuse(&path, &problem);
        }
        findings.extend(check.findings);
        read::merge(&mut table, keys);
    }
    let mut settings = read::settings(&table);
    let mut check = Check::new(&table);
    rules::check(&mut check, &settings.klog.rules);
    findings.extend(check.findings);
    let mut check = Check::new(&table);
    check.all(&mut settings);
    limits::check(&mut check, &mut settings.thresholds);
    // The default in the place of an invalid value would contradict valid ones.
    if problems.is_empty() && findings.iter().all(|it| it.is_in(MAINTENANCE)) {
        findings.extend(check.findings);
    }
    (settings, findings)
}

#[cfg(test)]
mod tests;
