//! The configuration: one file, `/etc/fragwatch/fragwatch.toml`, and fragments beside it.
//!
//! Text becomes keys with their places (`reader`, `raw`), keys become checked [`Settings`]
//! ([`settings`]), and what is wrong is reported all at once, with file, line and column
//! ([`ConfigError`]). A key that nobody knows is an error: a slip in the name of a threshold must
//! not leave a host unwatched.
//!
//! To add a key, declare it in `raw`, give it a field and a default in [`settings`], and describe
//! it in `config/fragwatch.toml`; the compiler and the tests ask for what is forgotten. A section
//! that can be there several times is a `List` in `raw`, an `Item` that says which keys it must
//! have, and a commented example in that file.

mod diagnose;
mod files;
mod globs;
mod raw;
mod reader;
mod rules;
pub mod settings;
pub mod units;
mod values;

use std::path::{Path, PathBuf};

pub use diagnose::{ConfigError, Problem};
pub use settings::Settings;

use diagnose::Source;
use raw::Raw;
use reader::Field as _;

/// The file that is read when none is named.
pub const DEFAULT_PATH: &str = "/etc/fragwatch/fragwatch.toml";

/// A configuration and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What is configured.
    pub settings: Settings,
    /// The files that were read, in order: the later one wins. Empty if there are none and all
    /// settings are defaults.
    pub files: Vec<PathBuf>,
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
    load_files(path, files::Missing::IsAnError)
}

/// As [`load`], from [`DEFAULT_PATH`], which may be missing: then the defaults hold, and the
/// fragments are read all the same.
///
/// # Errors
/// Those of [`load`].
pub fn load_default() -> Result<Loaded, ConfigError> {
    load_files(Path::new(DEFAULT_PATH), files::Missing::IsEmpty)
}

fn load_files(path: &Path, missing: files::Missing) -> Result<Loaded, ConfigError> {
    let (sources, problems) = files::read_all(path, missing);
    let settings = assemble(&sources, problems)?;
    let files = sources.into_iter().map(|source| source.path).collect();
    Ok(Loaded { settings, files })
}

/// The settings that `sources` make together, unless there are `problems` with others already.
fn assemble(sources: &[Source], problems: Vec<Problem>) -> Result<Settings, ConfigError> {
    let mut raw = Raw::default();
    let mut findings = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let (keys, found) = reader::read::<Raw>(number, &source.text);
        raw.merge(keys);
        findings.extend(found);
    }
    let settings = Settings::from_raw(&raw, &mut findings);
    findings.extend(rules::check(&raw.klog.rule, sources));
    if problems.is_empty() && findings.is_empty() {
        findings = settings.contradictions(&raw);
    }
    if problems.is_empty() && findings.is_empty() {
        Ok(settings)
    } else {
        Err(ConfigError::new(problems, findings, sources))
    }
}

#[cfg(test)]
mod tests;
