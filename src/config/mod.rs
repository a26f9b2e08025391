//! The configuration: one file, `/etc/fragwatch/fragwatch.toml`, and fragments beside it.
//!
//! The files ([`mod@file`]) become one table of keys with their places ([`read`]), the table becomes
//! [`Settings`] ([`settings`], by serde), and what cannot work is refused ([`check`]). All that is
//! wrong is reported at once, with file, line and column ([`ConfigError`]). An unknown key is an
//! error: a mistake in the name of a threshold must not leave a host unwatched.
//!
//! To add a key, give it a field and a default in [`settings`], its bounds in [`check`], and describe
//! it in `config/fragwatch.toml`; the tests ask for what is forgotten. A section that can be there
//! several times also has an example in [`schema`].

mod check;
mod file;
mod formats;
mod globs;
mod limits;
mod read;
mod refusal;
mod report;
mod rules;
mod schema;
pub mod settings;
mod text;
pub mod units;
mod zone;

use std::path::{Path, PathBuf};

pub use report::{ConfigError, Problem};
pub use settings::Settings;

use check::Check;
use report::{Finding, Source};
use toml::de::DeTable;

/// The file that is read when none is named.
pub const DEFAULT_PATH: &str = "/etc/fragwatch/fragwatch.toml";
/// The section without which a daemon can start.
const MAINTENANCE: &str = "maintenance";

/// A configuration and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What is configured.
    pub settings: Settings,
    /// The files that were read, in order: the later one wins. Empty if there are none and all
    /// settings are defaults.
    pub files: Vec<PathBuf>,
    /// Whether the main file is there and holds nothing, not even a comment.
    pub is_blank: bool,
}

/// Why a main file that holds nothing is refused where another one was in force: an editor or a
/// full disk leaves such a file behind.
pub fn blank_file(path: &Path) -> ConfigError {
    let message = "is empty, but the configuration before it was not";
    let help = "write the settings into it, or a comment if the defaults are to be in force";
    let problem = Problem::of_file(path, message, help);
    ConfigError::new(vec![problem], Vec::new(), &[])
}

/// Reads the file at `path`, then every `conf.d/*.toml` in its directory, in the order of their
/// names; hidden ones are left out. A later file wins key by key, and its lists replace lists;
/// sections of which there may be several, such as `[[klog.rule]]`, are added up in the order of
/// the files.
///
/// # Errors
/// If a file cannot be read, is no regular file, is larger than 1 MiB or is no UTF-8; if it is no
/// TOML, sets an unknown key or a value that cannot be; if values contradict each other.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    load_files(path, file::Missing::IsAnError)
}

/// As [`load`], from [`DEFAULT_PATH`], which may be missing: then the defaults hold, and the
/// fragments are read all the same.
///
/// # Errors
/// Those of [`load`].
pub fn load_default() -> Result<Loaded, ConfigError> {
    load_files(Path::new(DEFAULT_PATH), file::Missing::IsEmpty)
}

/// As [`load`], or as [`load_default`] without a path, for a daemon that has to start: a
/// configuration of which only the section `[maintenance]` is wrong is taken, without maintenance
/// windows, and comes with what is wrong.
///
/// # Errors
/// If anything else is wrong.
pub fn load_to_start(path: Option<&Path>) -> Result<(Loaded, Option<ConfigError>), ConfigError> {
    let missing = match path {
        Some(_) => file::Missing::IsAnError,
        None => file::Missing::IsEmpty,
    };
    let path = path.unwrap_or(Path::new(DEFAULT_PATH));
    read_files(path, missing, |finding| finding.is_in(MAINTENANCE)).map(|(mut loaded, error)| {
        if error.is_some() {
            loaded.settings.maintenance.windows.clear();
        }
        (loaded, error)
    })
}

/// The settings of a file that begins with `head` and goes on as [`Settings::to_toml`] has written
/// it, and its text. None if there is no such file, or if anything is wrong with it.
pub fn load_copy(path: &Path, head: &str) -> Option<(Settings, String)> {
    let source = file::read_one(path)?;
    let (settings, findings) = assemble(std::slice::from_ref(&source), &[]);
    (source.text.starts_with(head) && findings.is_empty()).then_some((settings, source.text))
}

fn load_files(path: &Path, missing: file::Missing) -> Result<Loaded, ConfigError> {
    read_files(path, missing, |_| false).map(|(loaded, _)| loaded)
}

/// What the files make together, with what is wrong if all of it `is_tolerable`.
fn read_files(
    path: &Path,
    missing: file::Missing,
    is_tolerable: impl Fn(&Finding) -> bool,
) -> Result<(Loaded, Option<ConfigError>), ConfigError> {
    let (sources, problems) = file::read_all(path, missing);
    let (settings, findings) = assemble(&sources, &problems);
    let tolerable = problems.is_empty() && findings.iter().all(is_tolerable);
    let is_right = problems.is_empty() && findings.is_empty();
    let error = (!is_right).then(|| ConfigError::new(problems, findings, &sources));
    match error {
        Some(error) if !tolerable => Err(error),
        error => {
            let is_blank = |source: &Source| source.path == path && source.text.trim().is_empty();
            let loaded = Loaded {
                settings,
                is_blank: sources.first().is_some_and(is_blank),
                files: sources.into_iter().map(|source| source.path).collect(),
            };
            Ok((loaded, error))
        }
    }
}

/// The settings that `sources` make together, and what is wrong with them beside `problems`.
fn assemble(sources: &[Source], problems: &[Problem]) -> (Settings, Vec<Finding>) {
    let mut table = DeTable::new();
    let mut findings = Vec::new();
    let mut begin = 0;
    for source in sources {
        let (keys, found) = read::read(&source.text, begin);
        findings.extend(found);
        findings.extend(Check::new(&keys, &read::settings(keys.clone())).values());
        read::merge(&mut table, keys);
        begin += source.text.len() + 1;
    }
    let mut settings = read::settings(table.clone());
    if !findings.iter().any(|it| it.is_in("klog")) {
        findings.extend(rules::check(&settings.klog.rules, &table, sources));
    }
    check::adapt(&mut settings, &table);
    limits::adapt(&mut settings.thresholds, &table);
    if problems.is_empty() && findings.iter().all(|it| it.is_in(MAINTENANCE)) {
        let mut more = Check::new(&table, &settings).contradictions();
        // An example in the place of a value that could not be read contradicts values that are right.
        more.retain(|it| findings.is_empty() || !it.is_in(MAINTENANCE));
        findings.extend(more);
    }
    (settings, findings)
}

#[cfg(test)]
mod tests;
