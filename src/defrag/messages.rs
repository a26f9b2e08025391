//! The messages of xfs_fsr and their meaning for a run. Pure.
//!
//! The forms cover all xfsprogs releases from 3.0.1 to 6.15.0 (fsr/xfs_fsr.c, compared release by
//! release), as far as `xfs_fsr -v FILE` can print them. A message is recognized by the text around
//! the image path, because the path may contain any words.
//!
//! From 6.12.0 on (commit ea1626b8, "xfs_fsr: port to new file exchange library function"), a
//! refused exchange is printed as `Unknown error -N`, followed by the success line, with status 0:
//! the errno has the wrong sign in the switch (xfrog_defragrange, libfrog/file_exchange.c).

use std::path::Path;

use crate::model::RunOutcome;
use Meaning::{Busy, Failed, NoSpace, Note, Nothing, Swap};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Note,
    /// There is nothing to gain.
    Nothing,
    Busy,
    /// Not enough free space, or not enough in one piece.
    NoSpace,
    /// Failure; an error at the end of the message may change it to [`NoSpace`].
    Failed,
    /// The final exchange was refused; the error decides.
    Swap,
}

/// Message forms: `{path}` is the image, `{temp}` the temporary file in its directory, `{number}` a
/// decimal number, `{error}` the rest of the line.
#[rustfmt::skip]
static FORMS: &[(Meaning, &str)] = &[
    (Note, "{path}"),
    (Note, "extents before:{number} after:{number} DONE {path}"),
    (Note, "extents before:{number} after:{number}      {path}"),
    (Note, "could not trunc tmp {temp}"),
    (Nothing, "{path} already fully defragmented."),
    (Nothing, "No improvement will be made (skipping): {path}"),
    (Nothing, "{path}: zero size, ignoring"),
    (Busy, "{path}: file busy"),
    (Busy, "{path}: file modified defrag aborted"),
    (Busy, "mandatory lock: {path}: ignoring"),
    (NoSpace, "insufficient freespace for: {path}: size={number}: ignoring"),
    (NoSpace, "low on realtime free space: {path}: ignoring file"),
    (NoSpace, "could not pre-allocate tmp space: {temp}"),
    (Swap, "XFS_IOC_SWAPEXT failed: {path}: {error}"),
    (Failed, "{path}: file type not supported"),
    (Failed, "{path}: immutable/append, ignoring"),
    (Failed, "{path}: marked as don't defrag, ignoring"),
    (Failed, "cannot open: {path}: Permission denied"),
    (Failed, "xfs_fsr: could not stat: {path}: {error}"),
    (Failed, "xfs_fsr: cannot defragment: {path}: Not XFS"),
    (Failed, "{path}: not fsys dev, dir, or reg file, ignoring"),
    (Failed, "unable to construct sys handle for {path}: {error}"),
    (Failed, "unable to open sys handle for {path}: {error}"),
    (Failed, "unable to open sys handle for XFS file {path}: {error}"),
    (Failed, "Unable to get geom on fs for: {path}"),
    (Failed, "unable to get bstat on {path}: {error}"),
    (Failed, "unable to open handle {path}: {error}"),
    (Failed, "sync failed: {path}: {error}"),
    (Failed, "locking check failed: {path}"),
    (Failed, "unable to get fs stat on {path}: {error}"),
    (Failed, "failed to get inode attrs: {path}"),
    (Failed, "cannot get realtime geometry for: {path}"),
    (Failed, "could not open tmp file: {temp}: {error}"),
    (Failed, "tmp file name too long: {path}"),
    (Failed, "could not set ATTR on tmp: {temp}:"),
    (Failed, "failed to set ATTR fork on tmp: {temp}:"),
    (Failed, "could not set ATTR"),
    (Failed, "unable to stat temp file: {error}"),
    (Failed, "unable to get bstat on temp file: {error}"),
    (Failed, "forkoff diff {number} too large!"),
    (Failed, "FSGETXATTRA failed on target"),
    (Failed, "big ATTR set failed"),
    (Failed, "could not set inode attrs on tmp: {temp}"),
    (Failed, "could not get DirectIO info on tmp: {temp}"),
    (Failed, "could not allocate buf: {temp}"),
    (Failed, "could not lseek in tmpfile: {temp} : {error}"),
    (Failed, "could not lseek in file: {path} : {error}"),
    (Failed, "Couldn't rewind on temporary file"),
    (Failed, "bad read of {number} bytes from {path}: {error}"),
    (Failed, "bad write of {number} bytes to {temp}: {error}"),
    (Failed, "bad write2 of {number} bytes to {temp}: {error}"),
    (Failed, "bad copy to {temp}"),
    (Failed, "could not truncate tmpfile: {path} : {error}"),
    (Failed, "could not fsync tmpfile: {path} : {error}"),
    (Failed, "failed to fchown tmpfile {temp}: {error}"),
    (Failed, "bstat conversion error on {path}: {error}"),
    (Failed, "bstat conversion error: {error}"),
    (Failed, "failed to prep for defrag: {error}"),
    (Failed, "realloc failed: {error}"),
    (Failed, "malloc failed: {error}"),
    (Failed, "failed reading extents: inode {number}"),
    (Failed, "failed reading extents"),
];

/// The outcome of an apparently unchanged image by the output about it; `path` and the output are
/// [`printable`] text. If no known failure was printed, but an unknown message, or nothing to
/// interpret, the outcome is [`RunOutcome::Unchanged`] with that message.
pub(super) fn interpret(printed: &str, path: &str) -> RunOutcome {
    let image = Image::new(path);
    let mut unknown = None;
    let mut any = false;
    let mut rest = printed.trim_matches('\n');
    while !rest.is_empty() {
        let (line, after, meaning) = first_message(rest, &image);
        rest = after.trim_start_matches('\n');
        match meaning {
            Some(Note) => {}
            Some(Nothing) => any = true,
            Some(Busy) => return RunOutcome::Busy { by: None },
            Some(NoSpace) => return RunOutcome::NoSpace,
            Some(Failed | Swap) => {
                let reason = line.to_owned();
                return RunOutcome::Failed { reason };
            }
            None if line.trim().is_empty() => {}
            None => unknown = Some(line.trim().to_owned()),
        }
        // The success line proves nothing.
        any |= line.starts_with("extents before:");
    }
    let message = unknown.or((!any).then(String::new));
    RunOutcome::Unchanged { message }
}

/// Returns the first message, the text after it, and its meaning if known.
fn first_message<'a>(text: &'a str, image: &Image<'_>) -> (&'a str, &'a str, Option<Meaning>) {
    for (meaning, form) in FORMS {
        if let Some((length, error)) = image.matches(form, text) {
            let (line, after) = text.split_at(length);
            let meaning = error.map_or(*meaning, |error| by_error(*meaning, error));
            return (line, after, Some(meaning));
        }
    }
    let (line, after) = text.split_once('\n').unwrap_or((text, ""));
    (line, after, by_words(line, image))
}

/// The meaning of a message of unknown form, as a later release may print.
fn by_words(line: &str, image: &Image<'_>) -> Option<Meaning> {
    let beside = line.replace(image.path, "");
    let beside = match image.directory {
        "" => beside,
        directory => beside.replace(directory, ""),
    };
    let error = beside.rsplit(": ").next().unwrap_or_default();
    match by_error(Swap, error) {
        Swap | Failed if !beside.contains("failed") => None,
        meaning => Some(meaning),
    }
}

/// The meaning of a message that ends in `error`: text of strerror(3) of glibc or musl in the C
/// locale, or the number with the wrong sign.
fn by_error(meaning: Meaning, error: &str) -> Meaning {
    let error = error.trim();
    let number = error
        .strip_prefix("Unknown error -")
        .and_then(|number| number.parse::<i32>().ok());
    match (number, error) {
        (Some(libc::ENOSPC | libc::EDQUOT), _)
        | (_, "No space left on device" | "Disk quota exceeded" | "Quota exceeded") => NoSpace,
        // EFAULT: the length has changed (xfs_ioc_swapext, fs/xfs/xfs_ioctl.c).
        (Some(libc::EBUSY | libc::EFAULT), _)
        | (_, "Device or resource busy" | "Resource busy")
            if meaning == Swap =>
        {
            Busy
        }
        _ => meaning,
    }
}

struct Image<'a> {
    path: &'a str,
    directory: &'a str,
}

impl<'a> Image<'a> {
    fn new(path: &'a str) -> Image<'a> {
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        Image { path, directory }
    }

    /// The length of the message at the beginning of `text` and its error, if it has this form.
    fn matches<'t>(&self, form: &str, text: &'t str) -> Option<(usize, Option<&'t str>)> {
        let (mut form, mut rest, mut error) = (form, text, None);
        while !form.is_empty() {
            let (literal, slot) = form.split_once('{').unwrap_or((form, ""));
            rest = rest.strip_prefix(literal)?;
            let (slot, after) = slot.split_once('}').unwrap_or((slot, ""));
            rest = match slot {
                "path" => rest.strip_prefix(self.path)?,
                "temp" => self.after_temp(rest)?,
                "number" => after_number(rest)?,
                "error" => {
                    let (line, after) = rest.split_at(rest.find('\n').unwrap_or(rest.len()));
                    error = Some(line);
                    after
                }
                _ => rest,
            };
            form = after;
        }
        let ends = rest.is_empty() || rest.starts_with('\n');
        ends.then_some((text.len() - rest.len(), error))
    }

    /// The text after the name of the temporary file (gettmpname: `DIRECTORY/.fsrPID`).
    fn after_temp<'t>(&self, text: &'t str) -> Option<&'t str> {
        let rest = text.strip_prefix(self.directory)?.strip_prefix("/.fsr")?;
        after_number(rest)
    }
}

fn after_number(text: &str) -> Option<&str> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let rest = digits.trim_start_matches(|c: char| c.is_ascii_digit());
    (rest.len() < digits.len()).then_some(rest)
}

/// A path as it appears in the messages.
pub(super) fn of_path(path: &Path) -> String {
    printable(path.as_os_str().as_encoded_bytes())
}

/// The output of xfs_fsr, without control characters that could affect a terminal.
pub(super) fn printable(printed: &[u8]) -> String {
    let text = String::from_utf8_lossy(printed);
    let harmless = |c: char| if c.is_control() && c != '\n' { '?' } else { c };
    text.chars().map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: RunOutcome = RunOutcome::Busy { by: None };
    const FINE: RunOutcome = RunOutcome::Unchanged { message: None };

    fn failed(line: &str) -> RunOutcome {
        let reason = line.to_owned();
        RunOutcome::Failed { reason }
    }

    fn unknown(message: &str) -> RunOutcome {
        let message = Some(message.to_owned());
        RunOutcome::Unchanged { message }
    }

    /// A message of a form about an image.
    fn message(form: &str, path: &str, error: &str) -> String {
        let directory = path.rsplit_once('/').unwrap().0;
        form.replace("{error}", error)
            .replace("{number}", "-4711")
            .replace("{temp}", &format!("{directory}/.fsr17"))
            .replace("{path}", path)
    }

    fn expected((meaning, form): (Meaning, &str), line: &str) -> RunOutcome {
        match meaning {
            Note if form.starts_with("extents") => FINE,
            Note => unknown(""),
            Nothing => FINE,
            Busy => BUSY,
            NoSpace => RunOutcome::NoSpace,
            Failed | Swap => failed(line),
        }
    }

    const DONE: &str = "extents before:2047 after:1 DONE {path}\n";

    /// Paths that contain what would be a message.
    fn paths() -> Vec<String> {
        let mut paths = vec!["/a".to_owned(), "/srv/vm images/a: b.raw".to_owned()];
        paths.push("/srv/no\nsuch: file busy\nline.raw".to_owned());
        for (_, form) in FORMS {
            let words = form.replace(['{', '}'], "").replace('/', "-");
            paths.push(format!("/srv/{words}: Unknown error -16/{words}"));
        }
        paths
    }

    #[test]
    fn each_form_is_known_whatever_the_path_is() {
        for path in paths() {
            for (meaning, form) in FORMS {
                let line = message(form, &path, "Invalid argument");
                let wanted = expected((*meaning, form), &line);
                assert_eq!(interpret(&line, &path), wanted, "{line:?}");
                // With the name before it and the line of success behind it.
                let done = DONE.replace("{path}", &path);
                let all = format!("{path}\n{line}\n{done}");
                let wanted = match wanted {
                    RunOutcome::Unchanged { .. } => FINE,
                    other => other,
                };
                assert_eq!(interpret(&all, &path), wanted, "{all:?}");
            }
        }
    }

    #[test]
    fn an_error_decides_what_a_refused_exchange_is() {
        let (_, swap) = FORMS.iter().find(|(meaning, _)| *meaning == Swap).unwrap();
        let cases = [
            ("Unknown error -16", BUSY),
            ("Unknown error -14", BUSY),
            ("Device or resource busy", BUSY),
            ("Unknown error -28", RunOutcome::NoSpace),
            ("Unknown error -122", RunOutcome::NoSpace),
            ("No space left on device", RunOutcome::NoSpace),
        ];
        for path in paths() {
            let done = DONE.replace("{path}", &path);
            for (error, wanted) in &cases {
                let line = message(swap, &path, error);
                assert_eq!(interpret(&format!("{line}\n{done}"), &path), *wanted);
            }
            for other in ["Unknown error -22", "No error information", "Unknown error"] {
                let line = message(swap, &path, other);
                let wanted = failed(&line);
                assert_eq!(interpret(&format!("{line}\n{done}"), &path), wanted);
            }
        }
        // Of anything but the exchange, busy is a failure; no space is none whatever it is.
        let write = "bad write of 4096 bytes to /d/.fsr12: ";
        let meaning = |error: &str| interpret(&format!("{write}{error}"), "/d/a");
        assert_eq!(meaning("No space left on device"), RunOutcome::NoSpace);
        assert_eq!(
            meaning("Device or resource busy"),
            failed(&format!("{write}Device or resource busy"))
        );
    }

    #[test]
    fn a_message_to_come_is_quoted_unless_its_words_are_plain() {
        let path = "/srv/failed: No space left on device";
        let line = format!("XFS_IOC_NEW: {path}: deferred");
        let quoted = unknown(&line);
        assert_eq!(interpret(&format!("{path}\n{line}\n"), path), quoted);
        let new = |error: &str| interpret(&format!("XFS_IOC_NEW failed: {path}: {error}"), path);
        assert_eq!(new("Device or resource busy"), BUSY);
        assert_eq!(new("No space left on device"), RunOutcome::NoSpace);
        assert!(matches!(new("Invalid argument"), RunOutcome::Failed { .. }));
        // What is known counts, whatever else there is.
        let busy = format!("{line}\n{path}: file busy\n{line}");
        assert_eq!(interpret(&busy, path), BUSY);
        assert_eq!(interpret("", path), unknown(""));
    }

    #[test]
    fn each_form_is_there_once() {
        for (_, form) in FORMS {
            let same = FORMS.iter().filter(|(_, other)| other == form);
            assert_eq!(same.count(), 1, "{form:?}");
        }
    }

    #[test]
    fn a_terminal_is_not_changed() {
        assert_eq!(printable(b"a\x1b[2J\xff\nb\r"), "a?[2J\u{fffd}\nb?");
    }
}
