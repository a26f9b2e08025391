//! What the fuzzer found worth keeping (`fuzz/corpus`), tried again: see `fuzz/run`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(unreachable_pub, reason = "a test crate has no outside")]

use std::fs;
use std::path::Path;

#[path = "fuzz/entries.rs"]
mod entries;

fn all_of(target: &str, entry: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let mut tried = 0;
    for file in fs::read_dir(directory.join(target)).unwrap() {
        let path = file.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        // Which of them it was, for it is the last.
        eprintln!("{}", path.display());
        entry(&bytes);
        tried += 1;
    }
    assert!(tried > 10, "{target}: a corpus of {tried}");
}

#[test]
fn records() {
    all_of("record", entries::record);
}

#[test]
fn rules() {
    all_of("rules", entries::rules);
}

#[test]
fn lines_of_log_files() {
    all_of("line", entries::line);
}

#[test]
fn heads_of_lines() {
    all_of("head", entries::head);
}
