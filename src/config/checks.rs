//! Checks of single values, which [`sections`](super::formats::sections) declares with the keys.

use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::time::Duration;

use globset::GlobBuilder;

use super::globs::{compile_globs, is_glob};
use super::text::{grouped, quoted};
use super::units::Unit;
use crate::model::ExtentCount;

/// The shortest interval: a sweep over a thousand images needs time, the stall detector checks once
/// a second, and a shorter gap between two kernel messages does not end an incident.
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const DAY: Duration = Duration::from_secs(86_400);
/// The longest path of a socket (`sun_path`, unix(7), without the final NUL).
const MAX_SOCKET: usize = 107;

/// Invalid values of a section: the key, with the number of the list item, what is wrong, to be
/// appended to the name of the key, and what to write.
pub(super) type Invalid = Vec<(String, String, String)>;

/// What is wrong with a text, to be appended to it, and what to write.
type Verdict = Result<(), (String, String)>;

/// A value in TOML syntax.
pub(super) trait Toml {
    fn toml(&self) -> String;
}

impl<T: Unit> Toml for T {
    fn toml(&self) -> String {
        quoted(&self.write())
    }
}

macro_rules! unquoted {
    ($($type:ty: $text:expr;)+) => {$(
        impl Toml for $type {
            fn toml(&self) -> String { $text(self) }
        }
    )+};
}

unquoted! {
    ExtentCount: |count: &ExtentCount| grouped(count.0);
    u32: |number: &u32| grouped(u64::from(*number));
    jiff::civil::Date: ToString::to_string;
}

/// In this range.
pub(super) fn within<T: Toml + PartialOrd>(
    range: impl RangeBounds<T>,
) -> impl Fn(&T, &str, &mut Invalid) {
    move |value, key, invalid| {
        let (bound, is, or) = match (range.start_bound(), range.end_bound()) {
            (Bound::Included(least), _) if value < least => (least, "is below", "or more"),
            (_, Bound::Included(most)) if value > most => (most, "is above", "or less"),
            _ => return,
        };
        let (value, bound) = (value.toml(), bound.toml());
        let write = format!("{key} = {bound} {or}");
        invalid.push((key.to_owned(), format!(": {value} {is} {bound}"), write));
    }
}

/// Such a value, or none.
pub(super) fn set<T>(
    check: impl Fn(&T, &str, &mut Invalid),
) -> impl Fn(&Option<T>, &str, &mut Invalid) {
    move |value, key, invalid| value.iter().for_each(|value| check(value, key, invalid))
}

/// A text or path.
pub(super) fn one<T: AsRef<Path>>(
    judge: impl Fn(&str) -> Verdict,
) -> impl Fn(&T, &str, &mut Invalid) {
    move |text, key, invalid| {
        let text = text.as_ref().to_string_lossy();
        if let Err((problem, write)) = judge(&text) {
            let problem = format!(": {}{problem}", quoted(&text));
            invalid.push((key.to_owned(), problem, write));
        }
    }
}

/// A list of texts or paths.
pub(super) fn each<T: AsRef<Path>>(
    judge: impl Fn(&str) -> Verdict,
) -> impl Fn(&Vec<T>, &str, &mut Invalid) {
    let check = one(judge);
    move |texts, key, invalid| {
        let items = texts.iter().enumerate();
        items.for_each(|(i, text)| check(text, &format!("{key}.{i}"), invalid));
    }
}

/// A command: the absolute path of a program, and its arguments.
pub(super) fn command(words: &[String], key: &str, invalid: &mut Invalid) {
    for (i, word) in words.iter().enumerate() {
        let judge = if i == 0 { absolute } else { without_nul };
        one(judge)(word, &format!("{key}.{i}"), invalid);
    }
}

/// Globs, one by one and all together.
pub(super) fn globs(globs: &Vec<String>, key: &str, invalid: &mut Invalid) {
    let before = invalid.len();
    each(matched)(globs, key, invalid);
    if invalid.len() == before
        && let Err(error) = compile_globs(globs.iter().map(String::as_str))
    {
        let problem = format!(": all globs together: {}", error.kind());
        invalid.push((key.to_owned(), problem, "fewer or shorter globs".to_owned()));
    }
}

/// A group of users.
pub(super) fn group(group: &str, key: &str, invalid: &mut Invalid) {
    if group.is_empty() {
        let write = "group = \"root\" for root alone".to_owned();
        invalid.push((key.to_owned(), " is empty".to_owned(), write));
    }
}

fn ensure(is_valid: bool, problem: &str, write: &str) -> Verdict {
    match is_valid {
        true => Ok(()),
        false => Err((problem.to_owned(), write.to_owned())),
    }
}

fn without_nul(argument: &str) -> Verdict {
    let problem = " holds a NUL, as no argument can";
    ensure(!argument.contains('\0'), problem, "the argument without it")
}

fn absolute(path: &str) -> Verdict {
    let write = "\"/…\", the path from the root on";
    ensure(path.starts_with('/'), " is not absolute", write)?;
    let problem = " holds a NUL, as no path can";
    ensure(!path.contains('\0'), problem, "the path without it")
}

/// An entry of `images.paths`.
pub(super) fn searched(path: &str) -> Verdict {
    absolute(path)?;
    match is_glob(path) {
        true => glob(path, compile_globs([path]).err()),
        false => Ok(()),
    }
}

fn glob(glob: &str, error: Option<globset::Error>) -> Verdict {
    let Some(error) = error else {
        return Ok(());
    };
    let literal = quoted(&globset::escape(glob));
    let write = format!("{literal} if every character is meant as it is");
    Err((format!(" is not a glob: {}", error.kind()), write))
}

/// A glob. With a slash it is matched against the whole path, so it must be able to begin with one.
fn matched(text: &str) -> Verdict {
    // Only the syntax: compiling is slow, and the list is compiled as a whole.
    glob(text, GlobBuilder::new(text).build().err())?;
    ensure(!text.is_empty(), " matches nothing", "\"*\" for every file")?;
    // A class or an alternative may begin with a slash.
    let may_match = text.starts_with(['/', '{', '[', '\\']) || text.starts_with("**");
    let problem = " matches nothing: with a slash in it, it is held against the whole path";
    let rest = text.strip_prefix("./").unwrap_or(text);
    ensure(
        may_match || !text.contains('/'),
        problem,
        &quoted(&format!("**/{rest}")),
    )
}

/// The path of a database.
pub(super) fn database(path: &str) -> Verdict {
    absolute(path)?;
    // As a path, `/a/` equals `/a`, and a path that ends in `..` has no file name.
    let has_name = Path::new(path).file_name().is_some() && !path.ends_with(['/', '.']);
    ensure(
        has_name,
        " names no file",
        "path = \"/var/lib/fragwatch/history.db\"",
    )
}

/// A log file to follow.
pub(super) fn followed(path: &str) -> Verdict {
    absolute(path)?;
    // A glob would be followed as a literal, missing file. `[` and `{` do occur in names.
    ensure(
        !path.contains(['*', '?']),
        " is a glob",
        "the path of each file",
    )
}

/// A release of a kernel. No patterns: one would vouch for kernels that were not examined.
pub(super) fn release(text: &str) -> Verdict {
    let usual = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_digit());
    let is_release = begins && text.contains('.') && text.chars().all(usual);
    let write = "the output of `uname -r`, e.g. \"5.14.0-611.el9.x86_64\"";
    ensure(is_release, " is no release of a kernel", write)
}

/// The collector reads no other files (node_exporter, collector/textfile.go).
pub(super) fn textfile(path: &str) -> Verdict {
    absolute(path)?;
    let write = "a file in node_exporter's textfile directory, such as \
                 \"/var/lib/prometheus/node-exporter/fragwatch.prom\"";
    ensure(path.ends_with(".prom"), " does not end in .prom", write)
}

/// The path of a Unix socket.
pub(super) fn socket(path: &str) -> Verdict {
    absolute(path)?;
    let length = path.len();
    let problem = format!(" is {length} bytes long, more than a socket can have");
    ensure(
        length <= MAX_SOCKET,
        &problem,
        &format!("a path of at most {MAX_SOCKET} bytes"),
    )
}
