//! Holds the laws of the house: who may import whom, where unsafe code lives, and that nothing
//! panics on purpose; that there is no circle of files, and that nothing is written twice.
//!
//! The sources are read as text and cut into tokens, no more: enough for `use` and for paths.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows the tests, but not what they call"
)]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "architecture/circles.rs"]
mod circles;
#[path = "architecture/size.rs"]
mod size;

/// What a part of the crate may import beside itself, by the names of modules. A longer name stands
/// before the rooms that it lies in. Who is not named may import all but [`ENTRANCES`].
const LAW: &[(&str, &[&str])] = &[
    // Pure: no file, no clock, no kernel.
    ("model", &[]),
    ("assess", &["model", "config::settings"]),
    ("maintenance", &["model", "config::settings"]),
    // A pattern that is none is refused by those who use it.
    (
        "config",
        &["model", "klog::rules", "doctor::table", "sys::zone"],
    ),
    ("discover::rules", &["model", "config::settings"]),
    ("discover::format", &["model"]),
    ("discover::mounts", &["model", "sys"]),
    ("discover::vm", &["model"]),
    ("discover::watch", &[]),
    ("probe::map_schedule", &["model"]),
    ("growth", &["model"]),
    ("history::retention", &["model"]),
    ("history::record", &["model"]),
    // The kernel's interfaces know nobody.
    ("sys", &[]),
    ("discover", &["model", "config::settings", "sys"]),
    ("probe", &["model", "config::settings", "sys", "discover"]),
    (
        "history",
        &["model", "config::settings", "background", "sys::mutex"],
    ),
    ("defrag::run", &["model"]),
    ("defrag::meter", &["model"]),
    ("defrag::governor", &["model"]),
    ("defrag::segments", &["model", "defrag::governor"]),
    ("defrag::kernels::release", &[]),
    (
        "defrag::kernels::table",
        &["model", "defrag::kernels::release"],
    ),
    ("defrag::kernels::changelog", &["defrag::kernels::table"]),
    ("defrag::kernels::judge", &["model", "defrag::kernels"]),
    ("defrag::kernels", &["model", "sys::child"]),
    (
        "defrag",
        &[
            "model",
            "config::settings",
            "sys",
            "discover",
            "probe",
            "durable",
            "history",
        ],
    ),
    ("protect::facts", &["model"]),
    ("protect::hints", &["model"]),
    ("protect::thin", &["model"]),
    ("protect::verdict", &["model", "table", "protect::facts"]),
    (
        "protect",
        &[
            "model",
            "config::settings",
            "sys",
            "discover",
            "probe",
            "durable",
            "defrag",
            "history",
            "table",
        ],
    ),
    // The fast side waits for nobody, and so knows nobody who would.
    ("klog", &["model", "sys"]),
    ("rescue::ladder", &["model", "sys"]),
    ("rescue::ring", &["model", "sys"]),
    ("rescue", &["model", "sys", "klog"]),
    // They may import the rescue's types, never the other way.
    (
        "incident",
        &[
            "model",
            "sys",
            "rescue",
            "hook",
            "background",
            "durable",
            "table",
        ],
    ),
    ("doctor::table", &["model"]),
    (
        "doctor::checks",
        &[
            "config::settings",
            "state_dir",
            "model",
            "sys",
            "discover",
            "defrag::kernels",
            "serve::status",
            "table",
            "doctor",
        ],
    ),
    (
        "doctor",
        &[
            "model",
            "config",
            "sys",
            "discover",
            "defrag::kernels",
            "serve::status",
            "stall",
            "state_dir",
            "table",
        ],
    ),
    ("stall::tracker", &["model", "stall::stack"]),
    ("stall", &["model", "klog", "rescue", "sys"]),
    ("hook", &["background", "sys::child"]),
    ("background", &["sys::mutex"]),
    ("durable", &[]),
    ("fleet", &["http_client"]),
    ("http_client", &[]),
    ("state_dir", &["config::settings"]),
];

/// Rooms that are still to be built.
const LAW_TO_COME: &[(&str, &[&str])] = &[];

/// They know everybody, and nobody else knows them; nor does the daemon know the command line.
const ENTRANCES: [&str; 2] = ["cli", "daemon"];

/// A source file, without what is compiled for tests only.
struct Source {
    path: PathBuf,
    text: String,
    /// The module that the file is: `probe::census`; empty for the crate itself.
    module: String,
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

/// All files of src/ that are no tests.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    let mut dirs = vec![root.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                Some(extension) if extension == "rs" => paths.push(path),
                _ if path.is_dir() => dirs.push(path),
                _ => {}
            }
        }
    }
    paths.sort();
    let mut tests = HashSet::new();
    let mut sources = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let module = module(path.strip_prefix(&root).unwrap());
        let (tokens, test_modules) = without_tests(&tokens(&text));
        tests.extend(test_modules.iter().map(|name| join(&module, name)));
        sources.push(Source {
            path,
            text,
            module,
            tokens,
        });
    }
    sources.retain(|source| !tests.contains(&source.module));
    sources
}

/// `probe/census.rs` and `probe/mod.rs` are `probe::census` and `probe`.
fn module(path: &Path) -> String {
    let path = path.with_extension("");
    let names = path.iter().map(|name| name.to_str().unwrap());
    let names = names.filter(|name| !["mod", "lib", "main"].contains(name));
    names.collect::<Vec<_>>().join("::")
}

fn join(module: &str, name: &str) -> String {
    [module, name]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("::")
}

/// Words, `::`, and single characters; without comments, strings and white space.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").expect("a comment ends") + 2
        } else if let Some(length) = literal(rest) {
            length
        } else if rest.starts_with("::") {
            2
        } else if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let token = &rest[..length];
        let is_code = is_word(first) && literal(rest).is_none();
        if is_code || (length <= 2 && !first.is_whitespace() && first != '/' && first != '"') {
            let text = token.to_owned();
            tokens.push(Token { text, line });
        }
        line += token.matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Length of the string or character literal that the text begins with. A lifetime is none.
fn literal(text: &str) -> Option<usize> {
    if let Some(rest) = text
        .strip_prefix(['b', 'c'])
        .filter(|r| r.starts_with(['"', '\'', 'r']))
    {
        return literal(rest).map(|length| length + 1);
    }
    let hashes = text
        .strip_prefix('r')
        .map(|rest| rest.len() - rest.trim_start_matches('#').len());
    if let Some(hashes) = hashes.filter(|hashes| text[1 + hashes..].starts_with('"')) {
        let end = format!("\"{}", "#".repeat(hashes));
        let begin = 2 + hashes;
        return Some(begin + text[begin..].find(&end)? + end.len());
    }
    let quote = text.chars().next().filter(|c| ['"', '\''].contains(c))?;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(at + 1),
            // 'a or 'a> and no quote behind one character.
            _ if quote == '\'' && !text[at + c.len_utf8()..].starts_with('\'') => return None,
            _ => {}
        }
    }
    None
}

/// The tokens without items under `#[cfg(test)]`, and the names of the modules in other files that
/// are declared so.
fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    let words = |from: usize, count: usize| -> Vec<&str> {
        tokens[from..]
            .iter()
            .take(count)
            .map(|token| token.text.as_str())
            .collect()
    };
    let mut kept = Vec::new();
    let mut modules = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if words(at, 7) != ["#", "[", "cfg", "(", "test", ")", "]"] {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += 7;
        if let ["mod", name, ";"] = words(at, 3)[..] {
            modules.push(name.to_owned());
        }
        let mut depth = 0;
        loop {
            let token = tokens[at].text.as_str();
            at += 1;
            match token {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            if depth == 0 && matches!(token, "}" | ";") {
                break;
            }
        }
    }
    (kept, modules)
}

/// All paths within the crate that a file names, from the root of the crate on, and their lines.
fn imports(source: &Source) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    // Modules within the file, by the depth of braces that they were opened at.
    let mut inner: Vec<(usize, String)> = Vec::new();
    let mut depth = 0;
    let tokens: Vec<&str> = source
        .tokens
        .iter()
        .map(|token| token.text.as_str())
        .collect();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at] {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inner.retain(|(opened, _)| *opened < depth + 1);
            }
            "mod" if tokens.get(at + 2) == Some(&"{") => {
                inner.push((depth + 1, tokens[at + 1].to_owned()));
            }
            // `pub(in crate::room)` imports nothing.
            "crate" | "super" if at > 1 && tokens[at - 2..at] == ["(", "in"] => {}
            "crate" | "super" | "self" | "fragwatch" if tokens.get(at + 1) == Some(&"::") => {
                let here = inner
                    .iter()
                    .fold(source.module.clone(), |m, (_, name)| join(&m, name));
                let line = source.tokens[at].line;
                let mut paths = Vec::new();
                at = path(&tokens, at, &here, &mut paths);
                found.extend(paths.into_iter().map(|path| (path, line)));
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Reads the path at `at`, with groups in braces, as seen from `from`. Returns where it ends.
fn path(tokens: &[&str], mut at: usize, from: &str, paths: &mut Vec<String>) -> usize {
    let mut so_far = from.to_owned();
    loop {
        match tokens.get(at).copied().unwrap_or_default() {
            "crate" | "fragwatch" => so_far.clear(),
            "self" => {}
            "super" => {
                let parent = so_far.rfind("::").unwrap_or(0);
                so_far.truncate(parent);
            }
            "{" => {
                at += 1;
                while tokens[at] != "}" {
                    at = path(tokens, at, &so_far, paths);
                    at += usize::from(tokens[at] == ",");
                }
                return at + 1;
            }
            name if name.chars().all(is_word) => so_far = join(&so_far, name),
            _ => {}
        }
        at += 1;
        if tokens.get(at) != Some(&"::") {
            break;
        }
        at += 1;
    }
    if tokens.get(at) == Some(&"as") {
        at += 2;
    }
    paths.push(so_far);
    at
}

/// Whether a path lies in a module, or is it.
fn within(path: &str, module: &str) -> bool {
    path == module
        || path
            .strip_prefix(module)
            .is_some_and(|rest| rest.starts_with("::"))
}

fn room(module: &str) -> &str {
    module.split("::").next().unwrap_or_default()
}

/// What is wrong with an import, if anything.
fn judge(module: &str, import: &str) -> Option<String> {
    let entrance = |name: &str| ENTRANCES.contains(&name);
    // What tests are given comes from everywhere.
    let is_door = module == "internals" || module.is_empty();
    if is_door || within(import, module) {
        return None;
    }
    if room(import) == "cli" && room(module) != "cli" {
        return Some("nobody knows cli".to_owned());
    }
    if entrance(room(module)) {
        return None;
    }
    if entrance(room(import)) {
        return Some("only cli and daemon know daemon".to_owned());
    }
    let mut laws = LAW.iter().chain(LAW_TO_COME);
    let (name, allowed) = laws.find(|(name, _)| within(module, name))?;
    // A name of the crate that is no room is one of the file's own, or a macro.
    let allowed_here = within(import, name) || allowed.iter().any(|room| within(import, room));
    (!allowed_here).then(|| format!("{name} may import only [{}]", allowed.join(", ")))
}

#[test]
fn nobody_imports_whom_he_must_not() {
    let sources = sources();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for source in &sources {
        for (import, line) in imports(source) {
            seen += 1;
            let place = format!("{}:{line}", source.path.display());
            if let Some(why) = judge(&source.module, &import) {
                wrong.push(format!("{place}: imports {import}, but {why}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Had the reader of imports gone blind, there would be nothing to find fault with.
    assert!(seen > 100, "{seen}");
    for (name, _) in LAW {
        let exists = sources.iter().any(|source| within(&source.module, name));
        assert!(exists, "there is no {name} any more: change the law");
    }
}

#[test]
fn the_law_knows_right_from_wrong() {
    for (module, import, right) in [
        ("model::map", "model::units::Bytes", true),
        ("model::map", "sys::fiemap", false),
        ("sys::fiemap", "model", false),
        ("sys::fiemap", "sys::fsxattr", true),
        ("assess", "config::settings::Thresholds", true),
        ("assess", "config::load", false),
        ("config::settings", "config::raw", true),
        ("discover::walk", "probe::open", false),
        ("discover::rules", "sys::mounts", false),
        ("probe::map_schedule", "probe::open", false),
        ("probe::sweep", "discover::walk", true),
        ("probe::sweep", "serve", false),
        ("serve::metrics", "cli", false),
        ("serve::metrics", "daemon::sampler", false),
        ("daemon::sampler", "serve", true),
        ("cli::run", "daemon::run", true),
        ("daemon::sampler", "cli::scan", false),
        ("internals", "cli::incidents::run", true),
        ("rescue::ring", "rescue::ladder", false),
        ("rescue::ladder", "hook", false),
        ("rescue::actor", "hook", false),
        ("incident::hook", "hook", true),
        ("rescue::reader", "incident", false),
        ("hook", "rescue", false),
        ("growth", "history", false),
        ("klog::rules", "klog::record", true),
        // As long a name is not the same name.
        ("model::map", "modelling", false),
    ] {
        assert_eq!(
            judge(module, import).is_none(),
            right,
            "{module} imports {import}"
        );
    }
}

#[test]
fn imports_are_understood() {
    let text = r##"
        //! use crate::comment;
        use crate::model::{Bytes, path::{self, wire as w}, units};
        use super::{open, super::sys};
        use std::crate_like::x;
        const TEXT: &str = "crate::string"; // crate::behind
        const RAW: &str = r#"crate::raw " "#;
        fn f<'a>(quote: char) -> crate::serve::Page { if quote == '"' { self::own::g(b'\'') } }
        #[cfg(test)]
        mod tests { use crate::cli; }
        #[cfg(test)]
        mod elsewhere;
        pub(in crate::visible) const VISIBLE: u8 = 0;
        mod inner {
            use super::super::worker;
            fn g() { crate::daemon::run() }
        }
        use super::last::*;
    "##;
    let (tokens, tests) = without_tests(&tokens(text));
    assert_eq!(tests, ["elsewhere"]);
    let source = Source {
        path: PathBuf::new(),
        text: String::new(),
        module: "probe::census".to_owned(),
        tokens,
    };
    let found: Vec<_> = imports(&source).into_iter().map(|(path, _)| path).collect();
    let expected = [
        "model::Bytes",
        "model::path",
        "model::path::wire",
        "model::units",
        "probe::open",
        "sys",
        "serve::Page",
        "probe::census::own::g",
        "probe::worker",
        "daemon::run",
        "probe::last",
    ];
    assert_eq!(found, expected);
}

#[test]
fn unsafe_code_is_in_sys_and_says_why_it_is_safe() {
    let mut seen = 0;
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
        for pair in source
            .tokens
            .windows(2)
            .filter(|pair| pair[0].text == "unsafe")
        {
            let place = format!("{}:{}", source.path.display(), pair[0].line);
            assert!(
                within(&source.module, "sys"),
                "{place}: unsafe code outside sys"
            );
            seen += 1;
            let above = lines[..pair[0].line - 1].iter().rev();
            let mut comment = above.take_while(|line| line.starts_with("//"));
            let explained = comment.any(|line| line.starts_with("// SAFETY: "));
            // `unsafe fn` says in its documentation what it asks for.
            assert!(
                explained || pair[1].text == "fn",
                "{place}: no // SAFETY: above"
            );
        }
    }
    assert!(seen > 5, "{seen}");
}

#[test]
fn nothing_panics_on_purpose() {
    let mut wrong = Vec::new();
    for source in sources() {
        for three in source.tokens.windows(3) {
            let words = [&three[0], &three[1], &three[2]].map(|token| token.text.as_str());
            let panics = match words {
                [".", "unwrap" | "expect" | "unwrap_err" | "expect_err", "("] => true,
                // eprintln! and its like panic when nobody reads their output.
                [name, "!", "(" | "{" | "["] => {
                    let names = ["panic", "todo", "unimplemented", "print", "println"];
                    names.contains(&name) || ["eprint", "eprintln", "dbg"].contains(&name)
                }
                _ => false,
            };
            if panics {
                let place = format!("{}:{}", source.path.display(), three[0].line);
                wrong.push(format!("{place}: {}", words.concat()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is sent to a log, a socket, a hook or a queue while a guard is held makes all others wait
/// for the receiver.
#[test]
fn nothing_is_sent_under_a_guard() {
    const SENDS: [&str; 5] = ["teller", "notify", "post", "for_each", "send"];
    let mut wrong = Vec::new();
    for source in sources() {
        if !within(&source.module, "daemon") {
            continue;
        }
        let ends = |token: &Token| matches!(token.text.as_str(), ";" | "{" | "}");
        for statement in source.tokens.split(ends) {
            let words: Vec<&str> = statement.iter().map(|token| token.text.as_str()).collect();
            let locks = words.windows(3).any(|three| three == ["lock", "(", ")"]);
            let sends = words.iter().any(|word| SENDS.contains(word));
            // A value that is bound is had before the guard goes; nothing was sent.
            if locks && sends && words[0] != "let" {
                let place = format!("{}:{}", source.path.display(), statement[0].line);
                wrong.push(format!("{place}: {}", words.concat()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    for source in sources() {
        let first = source.text.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("//! "),
            "{}: begins without //!",
            source.path.display()
        );
    }
}
