//! Which metrics there are, as the source names them in one room.

use std::collections::BTreeSet;
use std::fs;

use crate::tree;

/// Every metric that the daemon can serve.
pub fn known() -> BTreeSet<String> {
    let room = tree("src/serve/metrics");
    let files = fs::read_dir(&room)
        .unwrap()
        .map(|file| file.unwrap().path());
    let files = files.filter(|file| file.extension().is_some_and(|ending| ending == "rs"));
    let mut names = BTreeSet::new();
    for file in files.chain([room.with_extension("rs")]) {
        names.extend(in_text(&fs::read_to_string(file).unwrap()));
    }
    assert!(names.contains("fragwatch_image_extents"), "{names:?}");
    assert!(names.contains("fragwatch_build_info"), "{names:?}");
    names
}

/// The metrics that are asked for in `text`, without what a histogram adds to its name.
pub fn asked_for(text: &str) -> BTreeSet<String> {
    let of_histogram = |name: String| {
        let plain = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|s| name.strip_suffix(s));
        plain.map_or_else(|| name.clone(), str::to_owned)
    };
    in_text(text).into_iter().map(of_histogram).collect()
}

/// Words that begin as metrics do. What has a colon before it is a recording rule's.
fn in_text(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    text.split(|c| !word(c))
        .filter(|w| w.starts_with("fragwatch_") && !w.contains(':'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn words_are_told_apart() {
    let asked = asked_for(
        "rate(fragwatch_a_seconds_bucket{le=\"1\"}[5m]) / fragwatch_b > x:fragwatch_c:sum",
    );
    let asked: Vec<_> = asked.iter().map(String::as_str).collect();
    assert_eq!(asked, ["fragwatch_a_seconds", "fragwatch_b"]);
}
