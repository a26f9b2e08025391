//! Text forms of paths, which may hold control characters and bytes that are not UTF-8: [`shown`]
//! is one line that is safe to print, [`wire`] keeps the exact bytes between our processes.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The path as one line of text, for tables, logs, JSON and metric labels: control characters and
/// bytes that are not UTF-8 become `\xNN`.
pub fn shown(path: &Path) -> String {
    printable(path.as_os_str().as_bytes())
}

/// Any bytes, escaped as by [`shown`].
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if is_unprintable(character) {
                let mut buffer = [0; 4];
                escape(&mut text, character.encode_utf8(&mut buffer).as_bytes());
            } else {
                text.push(character);
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

/// Control characters, line separators and direction marks: they could falsify a terminal's output.
fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "\\x{byte:02x}");
    }
}

/// As [`shown`], but different for any two paths, for metric labels: what looks like an escape in
/// the name itself has its backslash escaped.
pub fn distinct(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(4).position(is_like_an_escape) {
        text += &printable(&rest[..at]);
        escape(&mut text, b"\\");
        rest = &rest[at + 1..];
    }
    text + &printable(rest)
}

fn is_like_an_escape(bytes: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
    bytes.starts_with(b"\\x") && bytes[2..].iter().all(is_digit)
}

/// The bytes of the path in hexadecimal if [`shown`] escapes any of them, for JSON: the escaped
/// form of one name may itself be a name.
pub fn hex_unless_exact(path: &Path) -> Option<String> {
    let bytes = path.as_os_str().as_bytes();
    if shown(path).as_bytes() == bytes {
        return None;
    }
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A path that serde writes as by [`wire`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlainPath(#[serde(with = "wire")] pub PathBuf);

/// Serde module (`#[serde(with = "path::wire")]`): the exact bytes as a string, with `%` and bytes
/// that are not UTF-8 as `%NN`. Serde's own form rejects paths that are not UTF-8.
pub mod wire {
    use std::ffi::OsString;
    use std::fmt::Write as _;
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

    /// Writes the path. Fails only if the serializer does.
    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        encode(path).serialize(serializer)
    }

    /// Reads what [`serialize`] wrote. Fails on a `%` without two hexadecimal digits after it.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        let text = String::deserialize(deserializer)?;
        decode(&text).ok_or_else(|| D::Error::custom("a path with a broken % escape"))
    }

    pub(super) fn encode(path: &Path) -> String {
        let mut text = String::with_capacity(path.as_os_str().len());
        for chunk in path.as_os_str().as_bytes().utf8_chunks() {
            text.push_str(&chunk.valid().replace('%', "%25"));
            for byte in chunk.invalid() {
                let _ = write!(text, "%{byte:02x}");
            }
        }
        text
    }

    pub(super) fn decode(text: &str) -> Option<PathBuf> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&first, tail)) = rest.split_first() {
            if first == b'%' {
                let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = &tail[2..];
            } else {
                bytes.push(first);
                rest = tail;
            }
        }
        Some(PathBuf::from(OsString::from_vec(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsStr;

    fn path(bytes: &[u8]) -> &Path {
        Path::new(OsStr::from_bytes(bytes))
    }

    #[test]
    fn what_could_break_a_line_is_escaped() {
        assert_eq!(shown(path(b"/a b/\"q\"\\\xc3\xa4")), "/a b/\"q\"\\ä");
        assert_eq!(shown(path(b"/a\nb\x1b[31m\xff")), "/a\\x0ab\\x1b[31m\\xff");
        assert_eq!(shown(Path::new("/a\u{202e}gpj")), "/a\\xe2\\x80\\xaegpj");
    }

    #[test]
    fn only_what_is_shown_otherwise_needs_hexadecimal() {
        assert_eq!(hex_unless_exact(path(b"/\\x0a \xc3\xa4")), None);
        assert_eq!(hex_unless_exact(path(b"/\n")), Some("2f0a".to_owned()));
        assert_eq!(hex_unless_exact(path(b"/\xff")), Some("2fff".to_owned()));
    }

    #[test]
    fn distinct_is_as_shown_unless_that_is_ambiguous() {
        for (name, expected) in [
            (&b"/a\nb\xff"[..], "/a\\x0ab\\xff"),
            (b"/a\\b\\x0g\\x0A\\x", "/a\\b\\x0g\\x0A\\x"),
            (b"/a\\x0ab", "/a\\x5cx0ab"),
            (b"/\\\\x0a\n", "/\\\\x5cx0a\\x0a"),
        ] {
            assert_eq!(distinct(path(name)), expected);
        }
    }

    /// Undoes [`distinct`]: what can be undone is different for different names.
    fn undone(text: &str) -> Vec<u8> {
        let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
        while let Some((&first, tail)) = rest.split_first() {
            if rest.get(..4).is_some_and(is_like_an_escape) {
                let digits = std::str::from_utf8(&rest[2..4]).unwrap();
                bytes.push(u8::from_str_radix(digits, 16).unwrap());
                rest = &rest[4..];
            } else {
                bytes.push(first);
                rest = tail;
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn different_names_stay_different(
            bytes in prop_oneof![
                any::<Vec<u8>>(),
                prop::collection::vec(prop::sample::select(b"\\x05caf\n\xff\xc3\xa4".to_vec()), 0..20),
            ],
        ) {
            let text = distinct(path(&bytes));
            prop_assert_eq!(undone(&text), bytes);
            prop_assert!(!text.chars().any(is_unprintable));
        }

        #[test]
        fn the_wire_keeps_every_byte(bytes: Vec<u8>) {
            let there = wire::encode(path(&bytes));
            prop_assert_eq!(wire::decode(&there).unwrap(), path(&bytes));
        }

        #[test]
        fn shown_is_one_printable_line(bytes: Vec<u8>) {
            prop_assert!(!shown(path(&bytes)).chars().any(is_unprintable));
        }
    }
}
