use super::super::tests::{copied, holder};
use super::*;

/// The number of a removed inode is soon that of another file.
#[test]
fn a_writer_of_another_file_with_the_same_number_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let mut note = copied(&dir);
    let image = File::options().write(true).open(&note.image).unwrap();
    let _vm = holder(image);
    let places = note.places().unwrap();
    let is_old = note.written(&places);
    note.old.generation = note.old.generation.wrapping_add(1);
    let was_old = note.written(&places);
    assert_eq!((is_old, was_old), ([true, false], [false, false]));
}

#[test]
fn a_later_copy_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let (state, path) = (dir.path().join("state"), dir.path());
    let first = copied(path);
    let note = Note {
        copy: path.join("second"),
        former: first.copy.clone(),
        old: first.new.clone(),
        new: ImageKey {
            inode: first.new.inode + 1,
            ..first.new.clone()
        },
        ..first.clone()
    };
    let first = Noted::write(first, &state).unwrap();
    assert!(!is_superseded(&state, &first.file));
    let mut second = Noted::write(note, &state).unwrap();
    assert!(is_superseded(&state, &first.file));
    assert!(!is_superseded(&state, &second.file));
    second.forget_former().unwrap();
    assert_eq!((first.file.exists(), second.file.exists()), (false, true));
    assert_eq!(read(&second.file).unwrap().former(), None);
    // That of another image whose copy has got the same number.
    let other = Noted::write(first.note.clone(), &state).unwrap();
    second.note.former = path.join("another");
    second.forget_former().unwrap();
    assert!(other.file.exists());
}

/// One that cannot be read as settled counts, whichever the directory lists first.
#[test]
fn all_notes_of_an_image_count() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let mut note = copied(dir.path());
    note.step = Step::Switching { suspends: false };
    fs::remove_file(&note.image).unwrap();
    fs::hard_link(&note.copy, &note.image).unwrap();
    let image = note.image.clone();
    assert!(of_image(&state, &image).unwrap().is_none());
    drop(Noted::write(note.clone(), &state).unwrap());
    let last = of_image(&state, &image).unwrap().unwrap();
    assert_eq!(last.note, note);
    drop(last);
    for inode in [1, u64::MAX] {
        let mut other = note.clone();
        other.new.inode = inode;
        let other = Noted::write(other, &state).unwrap().file;
        let refusal = of_image(&state, &image).map(drop).unwrap_err();
        assert!(refusal.text.contains("has not ended"), "{refusal}");
        fs::remove_file(other).unwrap();
    }
}

#[test]
fn a_note_of_the_version_before_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let note = copied(dir.path());
    let mut json = serde_json::to_value(&note).unwrap();
    let members = json.as_object_mut().unwrap();
    for later in ["former", "label", "mark", "holder"] {
        members.remove(later).unwrap();
    }
    assert_eq!(serde_json::from_value::<Note>(json).unwrap(), note);
}

#[test]
fn a_copy_may_go_on_until_it_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let file = File::open(dir.path()).unwrap();
    let mut other = holder(file);
    let [this, another] = [std::process::id(), other.0.id()].map(ProcessId::of);
    let mut noted = Noted::write(copied(dir.path()), &state).unwrap();
    let mut goes_on = |holder, step| {
        noted
            .change(|note| (note.holder, note.step) = (holder, step))
            .unwrap();
        copying(&state).next().is_some()
    };
    let switching = |suspends| Step::Switching { suspends };
    // Whether the note is locked, as it is here, does not count: whoever ends the copy locks it too.
    for step in [Step::Copying, switching(true)] {
        assert!(goes_on(None, step) && goes_on(this, step));
        // Which holds a lock of its own.
        assert!(!goes_on(another, step));
    }
    // Kept because the VM still names the copy.
    assert!(!goes_on(None, switching(false)));
    other.0.kill().unwrap();
    // Also before it is waited for.
    while another.is_some_and(ProcessId::runs) {
        std::thread::yield_now();
    }
    assert!(goes_on(another, Step::Copying));
    other.0.wait().unwrap();
}

#[test]
fn a_lock_of_qemu_counts_more_than_an_open_file() {
    let file = |is_open, is_locked| Use { is_open, is_locked };
    let (locked, open, none) = (file(true, true), file(true, false), file(false, false));
    for (files, expected) in [
        ([locked, locked], [true, true]),
        ([locked, open], [true, false]),
        ([open, locked], [false, true]),
        ([none, locked], [false, true]),
        ([open, open], [true, true]),
        ([open, none], [true, false]),
        ([none, none], [false, false]),
    ] {
        assert_eq!(written(files), expected, "{files:?}");
    }
}
