//! Checks of single values, which [`settings`](super::settings) declares with the keys.

use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::time::Duration;

use super::text::{Toml, quoted};
use crate::model::globs::{can_match, compile_globs, is_glob};

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
/// The shortest interval: a sweep over a thousand images needs time, the stall detector checks once
/// a second, and a shorter gap between two kernel messages does not end an incident.
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// Invalid values: the path of the key, with the numbers of list items, and what is wrong.
pub(super) type Invalid = Vec<(String, String)>;

/// In this range.
pub(super) fn within<T: Toml + PartialOrd>(
    range: impl RangeBounds<T>,
) -> impl Fn(&T, &str, &mut Invalid) {
    move |value, path, invalid| {
        let (bound, is) = match (range.start_bound(), range.end_bound()) {
            (Bound::Included(least), _) if value < least => (least, "is below"),
            (_, Bound::Included(most)) if value > most => (most, "is above"),
            _ => return,
        };
        let problem = format!("{} {is} {}", value.toml(), bound.toml());
        invalid.push((path.to_owned(), problem));
    }
}

/// A text or path of this form.
pub(super) fn form<T: AsRef<Path>>(
    is_valid: impl Fn(&str) -> bool,
    form: &str,
) -> impl Fn(&T, &str, &mut Invalid) {
    move |text, path, invalid| {
        let text = text.as_ref().to_string_lossy();
        if !is_valid(&text) {
            invalid.push((path.to_owned(), format!("{} is not {form}", quoted(&text))));
        }
    }
}

/// Such a value, or none.
pub(super) fn set<T>(
    check: impl Fn(&T, &str, &mut Invalid),
) -> impl Fn(&Option<T>, &str, &mut Invalid) {
    move |value, path, invalid| value.iter().for_each(|value| check(value, path, invalid))
}

/// A list of such values.
pub(super) fn each<T>(
    check: impl Fn(&T, &str, &mut Invalid),
) -> impl Fn(&Vec<T>, &str, &mut Invalid) {
    move |items, path, invalid| {
        let items = items.iter().enumerate();
        items.for_each(|(i, item)| check(item, &format!("{path}.{i}"), invalid));
    }
}

/// A command: the absolute path of a program, and its arguments.
pub(super) fn command(words: &[String], path: &str, invalid: &mut Invalid) {
    for (i, word) in words.iter().enumerate() {
        let path = &format!("{path}.{i}");
        match i {
            0 => form(is_absolute, "an absolute path")(word, path, invalid),
            _ => form(without_nul, "text without NUL")(word, path, invalid),
        }
    }
}

/// Globs, one by one and all together.
pub(super) fn globs(globs: &Vec<String>, path: &str, invalid: &mut Invalid) {
    let before = invalid.len();
    let syntax = "a glob of a file name, or one of a whole path, which begins with / or **";
    each(form(can_match, syntax))(globs, path, invalid);
    if invalid.len() == before
        && let Err(error) = compile_globs(globs.iter().map(String::as_str))
    {
        let problem = format!("all globs together: {}", error.kind());
        invalid.push((path.to_owned(), problem));
    }
}

fn without_nul(text: &str) -> bool {
    !text.contains('\0')
}

pub(super) fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && without_nul(path)
}

/// Whether it may be an entry of `images.paths`.
pub(super) fn is_searched(path: &str) -> bool {
    is_absolute(path) && (!is_glob(path) || compile_globs([path]).is_ok())
}

/// Whether it may be the path of a database.
pub(super) fn is_database(path: &str) -> bool {
    // As a path, `/a/` equals `/a`, and a path that ends in `..` has no file name.
    let has_name = Path::new(path).file_name().is_some() && !path.ends_with(['/', '.']);
    is_absolute(path) && has_name
}

/// Whether it may be the release of a kernel. No patterns: one would vouch for kernels that were not
/// examined.
pub(super) fn is_release(text: &str) -> bool {
    let usual = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_digit());
    begins && text.contains('.') && text.chars().all(usual)
}
