use std::fs;
use std::path::Path;
use std::thread;

use super::super::tests::{copied, holder};
use super::*;

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|it| it.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_vm_that_was_started_meanwhile_keeps_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let note = copied(&dir);
    note.try_link().unwrap();
    assert_eq!(names(&dir), ["copy", "image"]);
    let image = File::options().write(true).open(&note.image).unwrap();
    let mut vm = holder(image);
    let linked = link(&note, false);
    let found = fs::read_to_string(&note.image).unwrap();
    vm.kill().unwrap();
    vm.wait().unwrap();
    assert!(linked.unwrap_err().text.contains("is just being started"));
    assert_eq!(
        (found.as_str(), names(&dir)),
        ("old", vec!["copy".to_owned(), "image".to_owned()])
    );
    // A process that another test forked meanwhile has it open until it executes its program.
    while note.written(&note.places().unwrap())[0] {
        thread::yield_now();
    }
    link(&note, false).unwrap();
    assert_eq!(fs::read_to_string(&note.image).unwrap(), "new");
    assert_eq!(names(&dir), ["copy", "image"]);
}

#[test]
fn both_names_of_the_old_file_become_those_of_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let former = dir.join("below/former");
    fs::create_dir(dir.join("below")).unwrap();
    let mut note = copied(&dir);
    fs::hard_link(&note.image, &former).unwrap();
    note.former = former.clone();
    note.try_link().unwrap();
    assert_eq!(names(&dir), ["below", "copy", "image"]);
    link(&note, true).unwrap();
    for path in [&note.image, &former] {
        assert_eq!(fs::read_to_string(path).unwrap(), "new");
    }
    assert_eq!(names(&dir), ["below", "copy", "image"]);
    assert_eq!(names(&dir.join("below")), ["former"]);
    // Killed between both.
    let other = dir.join("other");
    fs::create_dir(&other).unwrap();
    let mut note = copied(&other);
    fs::hard_link(&note.image, other.join("former")).unwrap();
    note.former = other.join("former");
    fs::remove_file(&note.image).unwrap();
    fs::hard_link(&note.copy, &note.image).unwrap();
    link(&note, true).unwrap();
    assert_eq!(fs::read_to_string(&note.former).unwrap(), "new");
}

#[test]
fn the_old_file_gets_its_path_back() {
    let dir = tempfile::tempdir().unwrap();
    let note = copied(dir.path());
    let temporary = dir.path().join(note.temporary());
    fs::rename(&note.image, &temporary).unwrap();
    fs::hard_link(&note.copy, &note.image).unwrap();
    restore(&note).unwrap();
    assert_eq!(fs::read_to_string(&note.image).unwrap(), "old");
    assert_eq!(fs::read_to_string(&temporary).unwrap(), "new");
}

/// The guest would go on with a stale file under its path.
#[test]
fn a_path_that_leads_to_another_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let note = copied(dir.path());
    fs::remove_file(&note.image).unwrap();
    fs::write(&note.image, "another").unwrap();
    let refusal = link(&note, true).unwrap_err();
    assert!(refusal.text.contains("somebody else renames"), "{refusal}");
    assert_eq!(names(dir.path()), ["copy", "image"]);
}
