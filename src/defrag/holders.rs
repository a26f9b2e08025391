//! A process that has a file open, as far as /proc shows: a name for a refusal, not a proof.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use crate::model::NamedProcess;

/// A process that has the file open under this path and does not run our program, whose probes open
/// images briefly too. No call is made on the file system of the file.
pub(super) fn holder_of(proc: &Path, path: &Path) -> Option<NamedProcess> {
    let processes = fs::read_dir(proc).ok()?.flatten();
    processes
        .filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| has_open(proc, *pid, path) && !is_ours(proc, *pid))
        .map(|pid| process(proc, pid))
}

/// Whether a process runs our program.
pub(super) fn is_ours(proc: &Path, pid: impl Display) -> bool {
    let program = |pid: &str| fs::read_link(proc.join(pid).join("exe")).ok();
    let own = program("self");
    own.is_some() && program(&pid.to_string()) == own
}

fn has_open(proc: &Path, pid: i32, path: &Path) -> bool {
    let Ok(entries) = fs::read_dir(proc.join(format!("{pid}/fd"))) else {
        return false;
    };
    let mut targets = entries.flatten().map(|entry| fs::read_link(entry.path()));
    targets.any(|target| target.is_ok_and(|target| target == path))
}

/// A process with its name.
pub(super) fn process(proc: &Path, pid: i32) -> NamedProcess {
    let name = fs::read(proc.join(format!("{pid}/comm"))).unwrap_or_default();
    let name = String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(&name)).into_owned();
    // The process chooses its name: replace control characters.
    let name = name
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    NamedProcess { pid, name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_holder_has_a_name() {
        let proc = tempfile::tempdir().unwrap();
        let open = proc.path().join("7/fd");
        fs::create_dir_all(&open).unwrap();
        symlink("/srv/a", open.join("3")).unwrap();
        fs::write(proc.path().join("7/comm"), "kvm\x1b\n").unwrap();
        fs::create_dir_all(proc.path().join("sys")).unwrap();
        let found = holder_of(proc.path(), Path::new("/srv/a")).unwrap();
        assert_eq!(found.to_string(), "kvm? (pid 7)");
        assert_eq!(holder_of(proc.path(), Path::new("/srv/b")), None);

        // A probe of ours is none.
        fs::create_dir_all(proc.path().join("self")).unwrap();
        for pid in ["7", "self"] {
            symlink("/usr/bin/fragwatch", proc.path().join(pid).join("exe")).unwrap();
        }
        assert_eq!(holder_of(proc.path(), Path::new("/srv/a")), None);
    }
}
