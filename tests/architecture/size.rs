//! Long tests lie in a file beside what they test, and nothing is written twice.

use std::collections::{BTreeMap, BTreeSet};

use super::{Source, sources};

/// Lines that the tests inside a file may have.
const MOST_TEST_LINES: usize = 150;
/// So many equal lines, one after the other, are a copy.
const COPIED_LINES: usize = 10;

/// Files whose tests inside are still too long. This list shrinks: one that is no longer must go from
/// here too.
const LONG_TESTS: &[&str] = &[];

/// Files that still have copied lines, in the order of their names. This list shrinks likewise.
const COPIES: &[(&str, &str)] = &[];

/// The lines before the tests inside a file, and how many lines those have.
fn parts(text: &str) -> (Vec<&str>, usize) {
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines
        .windows(2)
        .position(|two| two == ["#[cfg(test)]", "mod tests {"]);
    let code = lines[..tests.unwrap_or(lines.len())].to_vec();
    let tests = lines.len() - code.len();
    (code, tests)
}

#[test]
fn long_tests_lie_in_a_file_of_their_own() {
    let mut wrong = Vec::new();
    let mut listed: BTreeSet<&str> = LONG_TESTS.iter().copied().collect();
    for Source { module, text, .. } in &sources() {
        let (_, tests) = parts(text);
        if tests > MOST_TEST_LINES && !listed.remove(module.as_str()) {
            wrong.push(format!(
                "{module}: {tests} lines of tests; put them into {module}::tests"
            ));
        }
    }
    for module in listed {
        wrong.push(format!("{module} has no long tests; take it from the list"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The lines that can be a copy, with their numbers: no comment, no import, no attribute, nothing
/// empty.
fn code_lines(text: &str) -> Vec<(usize, &str)> {
    let mut in_import = false;
    let mut kept = Vec::new();
    for (number, line) in (1..).zip(parts(text).0) {
        let line = line.trim();
        let is_import = ["use ", "pub use ", "pub(crate) use ", "pub(super) use "]
            .iter()
            .any(|begin| line.starts_with(begin));
        in_import |= is_import;
        let skipped = line.is_empty() || line.starts_with("//") || line.starts_with("#[");
        if !in_import && !skipped {
            kept.push((number, line));
        }
        in_import &= !line.ends_with(';');
    }
    kept
}

/// Places where a run of [`COPIED_LINES`] begins that stands elsewhere too, by pairs of files.
fn copies(sources: &[(String, String)]) -> BTreeMap<(&str, &str), String> {
    let mut seen: BTreeMap<Vec<&str>, (&str, usize)> = BTreeMap::new();
    let mut copies = BTreeMap::new();
    for (module, text) in sources {
        let lines = code_lines(text);
        for run in lines.windows(COPIED_LINES) {
            let here = (module.as_str(), run[0].0);
            let texts = run.iter().map(|(_, line)| *line).collect();
            let there = *seen.entry(texts).or_insert(here);
            if there != here {
                let pair = (there.0.min(here.0), there.0.max(here.0));
                let place = format!("{}:{} and {}:{}", there.0, there.1, here.0, here.1);
                copies.entry(pair).or_insert(place);
            }
        }
    }
    copies
}

#[test]
fn nothing_is_written_twice() {
    let sources: Vec<_> = sources()
        .into_iter()
        .map(|source| (source.module, source.text))
        .collect();
    let found = copies(&sources);
    let listed: BTreeSet<_> = COPIES.iter().copied().collect();
    let mut wrong = Vec::new();
    for (pair, place) in &found {
        if !listed.contains(pair) {
            wrong.push(format!("the same {COPIED_LINES} lines: {place}"));
        }
    }
    for pair in listed.iter().filter(|pair| !found.contains_key(*pair)) {
        wrong.push(format!("no longer copied; take it from the list: {pair:?}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn copies_are_found() {
    let block = |prefix: &str, count: usize| {
        let lines =
            (0..count).map(|number| format!("    {prefix}{number}();\n\n    // {number}\n"));
        lines.collect::<String>()
    };
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}", block("a", 20));
    let file = |name: &str, text: String| (name.to_owned(), text);
    let sources = [
        file(
            "one",
            format!("use a::{{\n    a0,\n}};\nfn f() {{\n{}}}\n", block("a", 10)),
        ),
        file("two", format!("fn g() {{\n{}}}\n{tests}", block("a", 9))),
        file("three", format!("        {}", block("a", 10))),
    ];
    let copies = copies(&sources);
    let pairs: Vec<_> = copies.keys().copied().collect();
    assert_eq!(pairs, [("one", "three")]);
    assert_eq!(copies[&("one", "three")], "one:5 and three:1");
}
