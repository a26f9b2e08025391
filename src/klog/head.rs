//! The head of a line of a log file: who wrote the line, when, and where its text begins. Pure.
//!
//! Every writer puts the same things before the text, and each may be missing:
//!
//! ```text
//! line     = [priority] ( time columns program | "1 " rfc5424 | stamps ) text
//! priority = "<3>" | "kern.err " | "kern  :err   : "     RFC 3164; dmesg --raw, --decode
//! columns  = [host " "] ["kern.err "] ["err "]           in any order
//! program  = "kernel:" | "kernel[-] err:" | "[kernel]"   the last is metalog's
//! stamps   = "[12345.678901] " | "[Thu Feb 11 04:05:06 2027] " | …   dmesg
//! ```
//!
//! Besides these: `time stamps text` (dmesg through ts(1)), `time host kernel - - - text` (sysklogd),
//! `time kern.err: text` (socklog) and records as read from /dev/kmsg.
//!
//! The text of a line belongs to its program. Everything before it is read word by word and must
//! have its form, so that no text of another program can move the place where the text is expected.
//! A user who can send `kernel:` as the name of a program to a writer that does not show the
//! facility can forge a whole line, and no parser can detect that.

use std::borrow::Cow;

use super::record::{Record, split_once};
use super::rules::without_printk_prefix;
use super::stamp::{self, Stamp};
use crate::sys::proc::number;

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading<'a> {
    /// The kernel's own text.
    Kernel {
        /// The text, without the times that printk puts before it.
        text: &'a [u8],
        /// The number of times that it was logged: more than one in `message repeated 5 times: […]`.
        times: u32,
        /// When it was written.
        stamp: Option<Stamp>,
    },
    /// The line before this one was logged that many more times.
    Repeated {
        /// How many times.
        times: u32,
        /// When that was written.
        stamp: Option<Stamp>,
    },
    /// Another program's.
    Other,
    /// The form of the line is not known.
    Unknown,
}

/// Reads a line.
pub fn read(line: &[u8]) -> Reading<'_> {
    // After a crash a file has NULs where the last blocks were never written.
    let nuls = line.iter().take_while(|byte| **byte == 0).count();
    let line = without_mark(line.get(nuls..).unwrap_or_default()).trim_ascii_end();
    let reading = match line.strip_prefix(b" ") {
        None => head(line),
        // Korean writes ` 2월 11`. Other lines that begin with a blank continue a text (journalctl).
        Some(rest) => match split_once(rest, b' ') {
            Some((word, _)) if !word.is_ascii() => head(rest),
            _ => repetition(rest.trim_ascii_start()).map(|times| repeated(times, None)),
        },
    };
    reading.unwrap_or(Reading::Unknown)
}

/// A line without the sequences that colour it on a terminal (`ESC [ 31 m`), as by `dmesg
/// --color=always`.
pub fn without_colours(line: &[u8]) -> Cow<'_, [u8]> {
    let mut parts = line.split(|byte| *byte == 0x1b);
    let first = parts.next().unwrap_or_default();
    if first.len() == line.len() {
        return Cow::Borrowed(line);
    }
    let mut plain = first.to_vec();
    for part in parts {
        let end = part.iter().position(u8::is_ascii_alphabetic);
        let end = end
            .filter(|_| part.starts_with(b"["))
            .map_or(0, |end| end + 1);
        plain.extend(part.get(end..).unwrap_or_default());
    }
    Cow::Owned(plain)
}

/// A text without a byte order mark (RFC 5424, section 6.4).
fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

fn head(line: &[u8]) -> Option<Reading<'_>> {
    let (facility, rest) = priority(line);
    if facility == Some(false) {
        return Some(Reading::Other);
    }
    if let Some(rest) = rest.strip_prefix(b"1 ") {
        if let Some(rest) = rest.strip_prefix(b"- ") {
            return rfc5424(rest, None);
        }
        if let Some(time) = stamp::parse(rest) {
            return rfc5424(time.rest, Some(time.stamp));
        }
    }
    if let Some(time) = stamp::parse(rest) {
        let stamp = Some(time.stamp);
        let text = without_stamps(time.rest).0;
        let by_printk = matches!(time.rest, [b'[', b' ' | b'0'..=b'9', ..]);
        if time.is_dmesg || by_printk && text.len() < time.rest.len() {
            return Some(message(text, stamp));
        }
        let has_zone = matches!(time.stamp, Stamp::Civil { zone: Some(_), .. });
        let by_svlogd = !has_zone && matches!(rest.get(10), Some(b'T' | b'_'));
        let by_socklog = by_svlogd.then(|| socklog(time.rest, stamp)).flatten();
        return by_socklog
            .or_else(|| after_time(time.rest, stamp))
            .or_else(|| rfc5424(time.rest, stamp).filter(|_| has_zone));
    }
    let (text, stamp) = without_stamps(rest);
    if text.len() < rest.len() {
        let by_journalctl = (stamp.is_none() && facility.is_none()).then(|| of_journalctl(text));
        return Some(by_journalctl.flatten().unwrap_or(message(text, stamp)));
    }
    match facility {
        Some(_) => Some(message(text, None)),
        None => Record::parse(line).map(|record| match record.is_genuine() {
            true => message(record.text.0, None),
            false => Reading::Other,
        }),
    }
}

/// `kern.err: text` of socklog(8) after a time of svlogd(8), which writes no zone.
fn socklog(rest: &[u8], stamp: Option<Stamp>) -> Option<Reading<'_>> {
    let (word, text) = split_once(rest, b' ')?;
    Some(match by_column(word.strip_suffix(b":")?)? {
        true => message(text, stamp),
        false => Reading::Other,
    })
}

/// Whether the facility at the start of a line is the kernel's, and the rest of the line.
fn priority(line: &[u8]) -> (Option<bool>, &[u8]) {
    let by_number = || {
        let (priority, rest) = split_once(line.strip_prefix(b"<")?, b'>')?;
        Some((by_priority(priority)?, rest)).filter(|(_, rest)| !rest.starts_with(b" "))
    };
    let by_dmesg = || {
        let (facility, rest) = split_once(line, b':')?;
        let (level, rest) = split_once(rest, b':')?;
        let facility = by_name(facility.trim_ascii_end(), level.trim_ascii_end())?;
        Some((facility, rest.strip_prefix(b" ")?))
    };
    // Nothing but a time may follow.
    let by_word = || {
        let (word, rest) = split_once(line, b' ')?;
        stamp::parse(rest)
            .and(by_column(word))
            .map(|facility| (facility, rest))
    };
    match by_number().or_else(by_dmesg).or_else(by_word) {
        Some((facility, rest)) => (Some(facility), rest),
        None => (None, line),
    }
}

/// Facility × 8 + level; the kernel's facility is 0.
fn by_priority(digits: &[u8]) -> Option<bool> {
    number(digits).map(|priority| priority < 8)
}

fn by_name(facility: &[u8], level: &[u8]) -> Option<bool> {
    let is_known = is_one_of(FACILITIES, facility) && is_one_of(LEVELS, level);
    is_known.then_some(facility == b"kern")
}

/// `kern.err`, `<kern.err>`, `<0.3>`, rsyslog's `kern.err<3>`, BusyBox's `<191>`.
fn by_column(word: &[u8]) -> Option<bool> {
    let inside = word
        .strip_prefix(b"<")
        .and_then(|word| word.strip_suffix(b">"));
    let parts = split_once(inside.unwrap_or(word), b'.');
    let (facility, level) = match (parts, inside) {
        (None, inside) => return by_priority(inside?),
        (Some((facility, level)), Some(_)) if number(level).is_some() => {
            return number(facility).map(|facility| facility == 0);
        }
        (Some(parts), _) => parts,
    };
    by_name(
        facility,
        split_once(level, b'<').map_or(level, |(level, _)| level),
    )
}

const FACILITIES: &str = "kern user mail daemon auth syslog lpr news uucp cron authpriv ftp ntp \
    security audit console clock solaris-cron mark local0 local1 local2 local3 local4 local5 local6 \
    local7";
const LEVELS: &str = "emerg panic alert crit err error warn warning notice info debug none";

fn is_one_of(names: &str, word: &[u8]) -> bool {
    names
        .split_ascii_whitespace()
        .any(|name| name.as_bytes() == word)
}

/// What follows the time: columns, program and text.
fn after_time(mut rest: &[u8], stamp: Option<Stamp>) -> Option<Reading<'_>> {
    if let Some(text) = rest.strip_prefix(b"[kernel] ") {
        return Some(message(text, stamp));
    }
    let mut host = false;
    for _ in 0..4 {
        if let Some(text) = program(rest) {
            return Some(message(text, stamp));
        }
        if let Some(times) = repetition(rest) {
            return Some(repeated(times, stamp));
        }
        if rest == b"-- MARK --" {
            return Some(Reading::Other);
        }
        let (word, after) = split_once(rest, b' ').unwrap_or((rest, b""));
        let facility = by_column(word).or_else(|| match (host, word) {
            (true, word) if is_one_of(FACILITIES, word) => Some(word == b"kern"),
            _ => None,
        });
        match facility {
            Some(false) => return Some(Reading::Other),
            Some(true) => {}
            None if host && is_one_of(LEVELS, word) => {}
            None if !host && is_host(word) => host = true,
            None => return is_program(word).then_some(Reading::Other),
        }
        rest = after;
    }
    None
}

/// The text after the kernel's name: `kernel:`, `kernel[-]:`, `kernel[0]:` (metalog), each possibly
/// with a level before the colon.
fn program(rest: &[u8]) -> Option<&[u8]> {
    let rest = rest.strip_prefix(b"kernel")?;
    let rest = [b"[-]".as_slice(), b"[0]"]
        .iter()
        .find_map(|process| rest.strip_prefix(*process))
        .unwrap_or(rest);
    let (level, text) = split_once(rest, b':')?;
    let is_end = level.is_empty()
        || level
            .strip_prefix(b" ")
            .is_some_and(|level| is_one_of(LEVELS, level));
    is_end.then_some(text)
}

/// The host that a line names between its time and its program.
pub fn host(line: &[u8]) -> Option<&[u8]> {
    let (_, line) = priority(line);
    let line = line.strip_prefix(b"1 ").unwrap_or(line);
    let mut rest = stamp::parse(line)?.rest;
    loop {
        let (word, after) = split_once(rest, b' ')?;
        match by_column(word) {
            Some(_) => rest = after,
            None => return is_host(word).then_some(word),
        }
    }
}

fn is_host(word: &[u8]) -> bool {
    // A host without a name is `(none)`.
    let fits =
        |byte: &u8| byte.is_ascii_alphanumeric() || !byte.is_ascii() || b".-_:@/%()".contains(byte);
    !word.is_empty() && word.len() <= 255 && !word.ends_with(b":") && word.iter().all(fits)
}

/// Whether a word ends as the name of a program does: `qemu:`, `qemu[9]:` or metalog's `[qemu]`.
fn is_program(word: &[u8]) -> bool {
    word.ends_with(b":") || word.starts_with(b"[") && word.ends_with(b"]")
}

/// Fields after the time of RFC 5424, section 6.
fn rfc5424(rest: &[u8], stamp: Option<Stamp>) -> Option<Reading<'_>> {
    let (_host, rest) = split_once(rest, b' ')?;
    let (program, rest) = split_once(rest, b' ')?;
    let (process, rest) = split_once(rest, b' ')?;
    let (_id, rest) = split_once(rest, b' ')?;
    let text = match rest.strip_prefix(b"-") {
        Some(text) => text,
        None => without_structured_data(rest)?,
    };
    if !matches!(text, [] | [b' ', ..]) {
        return None;
    }
    Some(match (program, process) {
        (b"kernel", b"-" | b"0") => message(text, stamp),
        _ => Reading::Other,
    })
}

/// What follows `[id name="value" …][…]`. In a value, `"`, `\` and `]` are escaped.
fn without_structured_data(data: &[u8]) -> Option<&[u8]> {
    let (mut quoted, mut escaped, mut inside) = (false, false, false);
    for (at, byte) in data.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' if inside => quoted = !quoted,
            b'[' if !inside => inside = true,
            b']' if inside && !quoted => inside = false,
            _ if !inside => return data.get(at..).filter(|_| at > 0),
            _ => {}
        }
    }
    None
}

/// A text of `journalctl -o short-monotonic` after its time: a host and a program follow. A text
/// of dmesg looks like that only if it begins like the name of a process with its number.
fn of_journalctl(text: &[u8]) -> Option<Reading<'_>> {
    if let Some(text) = program(text) {
        return Some(message(text, None));
    }
    let (host, rest) = split_once(text, b' ')?;
    if !is_host(host) {
        return None;
    }
    if let Some(text) = program(rest) {
        return Some(message(text, None));
    }
    let name = split_once(rest, b' ').map_or(rest, |(name, _)| name);
    let (_, process) = split_once(name.strip_suffix(b"]:")?, b'[')?;
    number(process).map(|_| Reading::Other)
}

/// The text after the times that dmesg puts before it, and the time of day among them.
fn without_stamps(text: &[u8]) -> (&[u8], Option<Stamp>) {
    let (mut text, mut stamp) = (text, None);
    loop {
        let rest = without_printk_prefix(text);
        let iso = || stamp::parse(rest).filter(|time| time.is_dmesg);
        let found = dmesg_stamp(rest).or_else(|| iso().map(|time| (Some(time.stamp), time.rest)));
        let Some((found, rest)) = found else {
            return (rest, stamp);
        };
        stamp = stamp.or(found);
        text = rest;
    }
}

/// `[Thu Feb 11 04:05:06 2027] `, `[Feb11 04:05] `, `[  +0.000123] `, `[<    0.000123>] `; and
/// `<    0.000123>` after another time.
fn dmesg_stamp(text: &[u8]) -> Option<(Option<Stamp>, &[u8])> {
    let (inside, rest) = split_once(text.strip_prefix(b"[")?, b']')?;
    let (time, delta) = match split_once(inside, b'<') {
        Some((time, delta)) => (time.trim_ascii_end(), Some(delta)),
        None => (inside.trim_ascii_end(), None),
    };
    if let Some(delta) = delta {
        // journalctl writes `>` after a blank, or after a `*` if its clock was set.
        let seconds = delta.strip_suffix(b">")?;
        let seconds = seconds.strip_suffix(b"*").unwrap_or(seconds);
        is_seconds(seconds.trim_ascii()).then_some(())?;
    }
    let stamp = match time.trim_ascii_start() {
        [] if delta.is_some() => None,
        [b'+' | b'-', seconds @ ..] if is_seconds(seconds) => None,
        seconds if is_seconds(seconds) => None,
        _ => match stamp::parse(time) {
            Some(whole) if whole.rest.is_empty() => Some(whole.stamp),
            _ => Some(stamp::parse_short(time)?),
        },
    };
    Some((stamp, rest.strip_prefix(b" ").unwrap_or(rest)))
}

fn is_seconds(text: &[u8]) -> bool {
    let parts = split_once(text, b'.');
    parts.is_some_and(|(whole, part)| number(whole).is_some() && number(part).is_some())
}

/// The kernel's text in a message of the kernel.
fn message(text: &[u8], stamp: Option<Stamp>) -> Reading<'_> {
    let text = without_mark(text.trim_ascii_start());
    // The level that some versions of klogd leave.
    let text = match text {
        [b'<', b'0'..=b'7', b'>', rest @ ..] => rest,
        _ => text,
    };
    if let Some(times) = repetition(text) {
        return repeated(times, stamp);
    }
    let (times, text) = several(text).unwrap_or((1, text));
    let text = without_printk_prefix(text.trim_ascii_start());
    Reading::Kernel { text, times, stamp }
}

fn repeated(times: u32, stamp: Option<Stamp>) -> Reading<'static> {
    Reading::Repeated { times, stamp }
}

/// rsyslog's `message repeated 5 times: [ a text]`.
fn several(text: &[u8]) -> Option<(u32, &[u8])> {
    let (count, rest) = split_once(text.strip_prefix(b"message repeated ")?, b' ')?;
    let text = rest.strip_prefix(b"times: [")?.strip_suffix(b"]")?;
    Some((u32::try_from(number(count)?).ok()?, text))
}

/// How often the line before was repeated: `last message repeated 5 times` (BSD, old rsyslog),
/// `last message buffered 5 times` (sysklogd), `- Last output repeated 5 times -` (metalog), `Last
/// message 'the first 20 bytes' repeated 5 times, suppressed by syslog-ng on host`.
fn repetition(text: &[u8]) -> Option<u32> {
    if text == b"- Last output repeated twice -" {
        return Some(1);
    }
    let text = std::str::from_utf8(text).ok()?;
    let by_syslog_ng = || {
        let (_, rest) = text
            .strip_prefix("Last message '")?
            .rsplit_once("' repeated ")?;
        Some(rest.split_once(", suppressed by syslog-ng on ")?.0)
    };
    let plain = || {
        let metalog = text.strip_prefix("- Last output repeated ");
        let rest = metalog.and_then(|rest| rest.strip_suffix(" -"));
        let rest = rest.or_else(|| text.strip_prefix("last message repeated "));
        rest.or_else(|| text.strip_prefix("last message buffered "))
    };
    let (count, unit) = by_syslog_ng().or_else(plain)?.split_once(' ')?;
    let count = number(count.as_bytes())?;
    u32::try_from(count)
        .ok()
        .filter(|_| matches!(unit, "time" | "times"))
}

#[cfg(test)]
mod tests;
