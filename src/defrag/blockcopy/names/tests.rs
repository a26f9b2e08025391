use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::Duration;

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
    let vm = holder(image);
    let linked = link(&note, false);
    let found = fs::read_to_string(&note.image).unwrap();
    drop(vm);
    assert!(linked.unwrap_err().text.contains("is just being started"));
    assert_eq!(
        (found.as_str(), names(&dir)),
        ("old", vec!["copy".to_owned(), "image".to_owned()])
    );
    // A process that another test forked meanwhile has it open until it executes its program.
    let mut looks = 0;
    while note.written(&note.places().unwrap())[0] {
        looks += 1;
        assert!(looks < 1000, "it does not close it");
        thread::sleep(Duration::from_millis(10));
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

/// Killed while [`Note::try_link`] tried the directory of the copy before.
#[test]
fn a_temporary_name_beside_the_copy_before_goes() {
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("below");
    fs::create_dir(&below).unwrap();
    let mut note = copied(dir.path());
    note.former = below.join("former");
    fs::hard_link(&note.image, &note.former).unwrap();
    fs::hard_link(&note.copy, below.join(note.temporary())).unwrap();
    remove_temporary(&note).unwrap();
    assert_eq!(names(&below), ["former"]);
    assert_eq!(names(dir.path()), ["below", "copy", "image"]);
}

#[test]
fn the_copy_gets_its_owner_back_when_it_has_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let mut note = copied(dir.path());
    note.owner = (4711, 4712);
    let owner = || {
        let copy = fs::metadata(&note.copy).unwrap();
        (copy.uid(), copy.gid())
    };
    let before = owner();
    give_access(&note).unwrap();
    assert_eq!(owner(), before);
    link(&note, true).unwrap();
    assert_eq!(owner(), before);
    give_access(&note).unwrap();
    assert_eq!(owner(), note.owner);
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
