//! No circle of files: what a file uses never leads back to it.
//!
//! An import counts for the file that defines the item: a name that a `mod.rs` only hands on (`pub
//! use`) leads to where it comes from. A parent that declares a child depends on it only if it uses
//! the child's items itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Source, imports, join, path, sources, within};

/// Rooms within which there still are circles; one may lead through several rooms. This list shrinks:
/// rooms without a circle must go from here too.
const CIRCLES_TO_BREAK: &[&[&str]] = &[&["cli", "daemon"], &["config"], &["maintenance"]];

/// Paths that a file hands on, by the name under which it does.
type HandedOn = HashMap<String, BTreeMap<String, String>>;

/// `a`, `a::b`, `a::b::c`, after the crate itself, which has no name.
fn outermost_first(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices("::").map(|(end, _)| end);
    [0].into_iter()
        .chain(ends)
        .chain([path.len()])
        .map(|end| &path[..end])
}

/// The file that defines what a path names. None if it is none of the crate's.
fn definition<'a>(
    files: &BTreeSet<&'a str>,
    handed_on: &HandedOn,
    import: &str,
) -> Option<&'a str> {
    let mut import = import.to_owned();
    // As many steps as no honest chain of re-exports has.
    for _ in 0..8 {
        let file = outermost_first(&import)
            .filter_map(|file| files.get(file))
            .last()
            .copied()?;
        let rest = import[file.len()..].trim_start_matches(':').to_owned();
        let (name, rest) = rest.split_once("::").unwrap_or((&rest, ""));
        let Some(target) = handed_on.get(file).and_then(|names| names.get(name)) else {
            return Some(file);
        };
        import = join(target, rest);
    }
    None
}

/// What a file uses, as [`imports`] finds it and by the names of its children; and what it hands on.
fn uses(source: &Source, children: &BTreeSet<&str>) -> (Vec<String>, BTreeMap<String, String>) {
    let words: Vec<&str> = source
        .tokens
        .iter()
        .map(|token| token.text.as_str())
        .collect();
    let mut used: Vec<String> = imports(source).into_iter().map(|(path, _)| path).collect();
    let mut handed_on = BTreeMap::new();
    // Words that stand for a thing by themselves, outside `pub use`.
    let mut named = BTreeSet::new();
    let mut at = 0;
    while at < words.len() {
        let before = at.checked_sub(1).map_or("", |before| words[before]);
        if words[at] == "use" && ["pub", ")"].contains(&before) {
            let mut paths = Vec::new();
            let end = path(&words, at + 1, &source.module, &mut paths);
            let renamed = words[at..end]
                .windows(2)
                .find(|two| two[0] == "as")
                .map(|two| two[1]);
            for target in paths {
                let name = target.rsplit("::").next().unwrap_or_default();
                handed_on.insert(renamed.unwrap_or(name).to_owned(), target);
            }
            at = end;
            continue;
        }
        if before != "::" && before != "." {
            named.insert(words[at]);
            if children.contains(words[at]) && words.get(at + 1) == Some(&"::") {
                path(&words, at, &source.module, &mut used);
            }
        }
        at += 1;
    }
    // Handed on, but used by the file itself as well.
    let is_only_handed_on = |path: &String| {
        let names = handed_on.iter().filter(|(_, target)| *target == path);
        let mut names = names.map(|(name, _)| name.as_str()).peekable();
        names.peek().is_some() && names.all(|name| !named.contains(name))
    };
    used.retain(|path| !is_only_handed_on(path));
    for (name, target) in &handed_on {
        if named.contains(name.as_str()) {
            used.push(target.clone());
        }
    }
    (used, handed_on)
}

/// Which file uses which others.
fn graph(sources: &[Source]) -> BTreeMap<&str, BTreeSet<&str>> {
    let files: BTreeSet<&str> = sources
        .iter()
        .map(|source| source.module.as_str())
        .collect();
    let mut used = Vec::new();
    let mut handed_on = HandedOn::new();
    for source in sources {
        let child = |file: &&str| {
            let rest = file.strip_prefix(source.module.as_str())?;
            let name = if source.module.is_empty() {
                rest
            } else {
                rest.strip_prefix("::")?
            };
            (!name.is_empty() && !name.contains("::")).then_some(file.len() - name.len())
        };
        let children = files.iter().filter_map(|file| Some(&file[child(file)?..]));
        let (paths, names) = uses(source, &children.collect());
        used.push((source.module.as_str(), paths));
        handed_on.insert(source.module.clone(), names);
    }
    let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (file, paths) in used {
        let targets = paths
            .iter()
            .filter_map(|path| definition(&files, &handed_on, path));
        let others = targets.filter(|target| *target != file && !target.is_empty());
        graph.entry(file).or_default().extend(others);
    }
    graph
}

/// The files that each file leads to.
fn reach<'a>(graph: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &'a str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from];
    while let Some(file) = next.pop() {
        next.extend(
            graph
                .get(file)
                .into_iter()
                .flatten()
                .filter(|file| reached.insert(**file)),
        );
    }
    reached
}

/// Sets of files that all lead to each other.
fn circles<'a>(graph: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<Vec<&'a str>> {
    let reached: BTreeMap<_, _> = graph
        .keys()
        .map(|file| (*file, reach(graph, file)))
        .collect();
    let mut circles = BTreeSet::new();
    for (file, all) in &reached {
        let back = |other: &&&str| reached.get(**other).is_some_and(|its| its.contains(file));
        let circle: Vec<_> = all.iter().filter(back).copied().collect();
        if all.contains(file) {
            circles.insert(circle);
        }
    }
    circles
}

#[test]
fn there_is_no_circle_of_files() {
    let sources = sources();
    let graph = graph(&sources);
    assert!(
        graph.values().map(BTreeSet::len).sum::<usize>() > 300,
        "{graph:?}"
    );
    let found = circles(&graph);
    let lies_in = |circle: &[&str], rooms: &[&str]| {
        let is_in = |file: &&str| rooms.iter().any(|room| within(file, room));
        circle.iter().all(is_in)
    };
    let mut wrong = Vec::new();
    for circle in &found {
        if !CIRCLES_TO_BREAK.iter().any(|rooms| lies_in(circle, rooms)) {
            wrong.push(format!("a circle: {circle:?}"));
            for file in circle {
                let inside: Vec<_> = graph[file]
                    .iter()
                    .filter(|to| circle.contains(to))
                    .collect();
                wrong.push(format!("    {file} uses {inside:?}"));
            }
        }
    }
    for rooms in CIRCLES_TO_BREAK {
        if !found.iter().any(|circle| lies_in(circle, rooms)) {
            wrong.push(format!(
                "no circle any more: take it from the list: {rooms:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn circles_are_found_and_what_is_handed_on_is_none() {
    let source = |module: &str, text: &str| {
        let (tokens, _) = super::without_tests(&super::tokens(text));
        Source {
            path: module.into(),
            text: text.to_owned(),
            module: module.to_owned(),
            tokens,
        }
    };
    let sources = [
        source("", "mod a; mod b;"),
        source(
            "a",
            "mod one; mod two; mod three; mod four; pub use one::One; pub(crate) use two::Two as Second; pub use four::Four; fn f(x: &Four) { three::g() }",
        ),
        source("a::one", "use super::Second; pub struct One;"),
        source("a::two", "pub struct Two;"),
        source("a::three", "use crate::a::{One, f};"),
        source("a::four", "use crate::a::Four;"),
        source("b", "use crate::a::One; use crate::a::one;"),
    ];
    let graph = graph(&sources);
    assert_eq!(graph["a"], BTreeSet::from(["a::four", "a::three"]));
    assert_eq!(graph["a::one"], BTreeSet::from(["a::two"]));
    assert_eq!(graph["a::three"], BTreeSet::from(["a", "a::one"]));
    assert_eq!(graph["b"], BTreeSet::from(["a::one"]));
    assert_eq!(circles(&graph), BTreeSet::from([vec!["a", "a::three"]]));
}
