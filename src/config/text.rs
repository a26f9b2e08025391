//! Writes values and the paths of keys as TOML.

use std::path::Path;

use crate::model::ExtentCount;
use crate::model::notation::Unit;
use crate::model::path::shown;

/// The text as a TOML string in double quotes, on one line, escaped for terminals as by [`shown`].
pub(super) fn quoted(text: &str) -> String {
    let escaped = text.chars().map(|character| match character {
        '"' | '\\' => format!("\\{character}"),
        _ => match character.to_string() {
            plain if shown(Path::new(&plain)) == plain => plain,
            _ => format!("\\U{:08X}", u32::from(character)),
        },
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// A value in TOML syntax.
pub(super) trait Toml {
    fn toml(&self) -> String;
}

impl<T: Unit> Toml for T {
    fn toml(&self) -> String {
        quoted(&self.write())
    }
}

impl Toml for ExtentCount {
    fn toml(&self) -> String {
        self.0.to_string()
    }
}

impl Toml for u32 {
    fn toml(&self) -> String {
        self.to_string()
    }
}

/// The path of `name` in `section`, either of which may be empty.
pub(super) fn join(section: &str, name: &str) -> String {
    let is_one = section.is_empty() || name.is_empty();
    format!("{section}{}{name}", if is_one { "" } else { "." })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quotes_hold_everything() {
        assert_eq!(quoted(r#"a "b" \c é"#), r#""a \"b\" \\c é""#);
        assert_eq!(quoted("\n\u{202e}"), r#""\U0000000A\U0000202E""#);
    }

    proptest! {
        #[test]
        fn a_quoted_text_reads_back(text: String) {
            let document = format!("a = {}", quoted(&text));
            let table: toml::Table = document.parse().unwrap();
            prop_assert_eq!(table["a"].as_str(), Some(text.as_str()));
            prop_assert!(!document.contains(char::is_control));
        }
    }
}
