//! The directory of incident files: names, reading, writing, recovery after a crash, pruning.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::format::IncidentState;
use crate::durable;

/// Prefix of temporary files in former versions.
const FORMER_TEMPORARY: &str = ".incident-";
const SUFFIX: &str = ".json";
/// Larger files are refused.
const LARGEST: u64 = 64 << 20;
/// Readable by root only: the files quote the kernel log.
const MODE: u32 = 0o600;

/// Returns the incident files in `directory`, newest first; ignores other files.
pub fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if is_incident(&entry.file_name()) {
            files.push(entry.path());
        }
    }
    // Names begin with the time.
    files.sort_unstable_by(|a, b| b.cmp(a));
    Ok(files)
}

/// Reads an incident file.
///
/// # Errors
/// Those of reading, and `FileTooLarge` for a file larger than any incident.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// File name of an incident.
pub(super) fn file_name(id: &str) -> String {
    format!("{id}{SUFFIX}")
}

/// Writes a file atomically ([`durable::replace`]).
pub fn save(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    durable::replace(&directory.join(name), bytes, MODE)
}

/// Recovers the directory after a crash: removes temporary files, and marks open incidents from
/// before `now` (in the format of [`compact`](crate::model::utc::compact)) as interrupted. Later
/// ones belong to this process.
///
/// # Errors
/// If the directory cannot be created or read, or a file in it cannot be read, written or removed.
pub fn recover(directory: &Path, now: &str) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let former = name.to_string_lossy().starts_with(FORMER_TEMPORARY);
        if former || durable::is_left_over(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    for path in list(directory)? {
        let name = path.file_name().and_then(OsStr::to_str);
        let Some(name) = name.filter(|name| *name < now) else {
            continue;
        };
        if let Some(bytes) = interrupted(&read(&path)?) {
            save(directory, name, &bytes)?;
        }
    }
    Ok(())
}

/// Marks an open incident as interrupted, preserving unknown keys; `None` for other contents.
fn interrupted(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut incident: Value = serde_json::from_slice(bytes).ok()?;
    let state = incident.get_mut("state")?;
    if *state != json!(IncidentState::Open) {
        return None;
    }
    *state = json!(IncidentState::Interrupted);
    serde_json::to_vec(&incident).ok()
}

/// Removes all files but the newest `keep` and `latest`, which may be old if the clock went back.
pub(super) fn prune(directory: &Path, keep: usize, latest: &str) -> io::Result<()> {
    for path in list(directory)?.into_iter().skip(keep) {
        if path.file_name() != Some(OsStr::new(latest)) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// `20261120T120305.123Z-1.json`
fn is_incident(name: &OsStr) -> bool {
    let name = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
    let parts = name.and_then(|name| name.split_once("Z-"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    parts.is_some_and(|(time, number)| {
        digits(number) && time.len() == 19 && digits(&time.replace(['T', '.'], ""))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "20261120T120305.123Z-1.json";

    #[test]
    fn incidents_are_known_by_their_names() {
        for (name, expected) in [
            (NAME, true),
            ("20261120T120305.123Z-77.json", true),
            ("20261120T120305.123Z-.json", false),
            ("20261120T120305Z-1.json", false),
            ("notes.json", false),
            (".fragwatch-abc.tmp", false),
        ] {
            assert_eq!(is_incident(OsStr::new(name)), expected, "{name}");
        }
        let now = crate::model::utc::compact(std::time::SystemTime::now());
        assert!(is_incident(OsStr::new(&file_name(&format!("{now}-3")))));
    }

    #[test]
    fn what_a_crash_left_is_put_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let write = |name: &str, text: &str| fs::write(path.join(name), text).unwrap();
        write(".incident-abc.tmp", "half a fi");
        write(".fragwatch-abc.tmp", "half a fi");
        write(NAME, r#"{"state":"open","later":{"key":1}}"#);
        write("20261120T120306.000Z-2.json", r#"{"state":"ended"}"#);
        write("20261120T120307.000Z-3.json", "no JSON");
        write("notes.txt", "mine");
        write("20991120T120307.000Z-1.json", r#"{"state":"open"}"#);
        recover(path, "20261121").unwrap();
        assert_eq!(fs::read_dir(path).unwrap().count(), 5);
        let marked: Value = serde_json::from_slice(&read(&path.join(NAME)).unwrap()).unwrap();
        assert_eq!(marked["state"], "interrupted");
        assert_eq!(marked["later"]["key"], 1);
        let ours = read(&path.join("20991120T120307.000Z-1.json")).unwrap();
        assert_eq!(ours, br#"{"state":"open"}"#);
    }

    #[test]
    fn the_oldest_are_removed_and_other_files_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::write(path.join("notes.json"), "mine").unwrap();
        let names: Vec<_> = (0..6)
            .map(|n| format!("2026112{n}T000000.000Z-1.json"))
            .collect();
        for name in &names {
            save(path, name, b"{}").unwrap();
        }
        prune(path, 3, &names[0]).unwrap();
        let kept: Vec<_> = list(path).unwrap();
        let expected = [5, 4, 3, 0].map(|place| path.join(&names[place]));
        assert_eq!(kept, expected);
        assert!(path.join("notes.json").exists());
    }
}
