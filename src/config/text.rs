//! Writes texts as TOML, and suggests corrections for misspelled words.

use std::path::Path;

use crate::model::path::shown;

/// The word of `known` that is nearest to `word`, with at most one wrong letter, or one in three.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let near = known.into_iter().filter_map(|candidate| {
        // A word of a megabyte is not compared.
        let distance = (word.len() <= 2 * candidate.len())
            .then(|| strsim::levenshtein(word, &candidate.to_lowercase()))?;
        (distance <= (candidate.len() / 3).max(1)).then_some((distance, candidate))
    });
    Some(near.min_by_key(|(distance, _)| *distance)?.1)
}

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
    fn the_nearest_word_is_not_far() {
        let known = ["interval", "map_interval", "probe_timeout"];
        assert_eq!(nearest("intervall", known), Some("interval"));
        assert_eq!(nearest("map-interval", known), Some("map_interval"));
        assert_eq!(nearest("probe_timout", known), Some("probe_timeout"));
        assert_eq!(nearest("timeout", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest(&"x".repeat(1_000_000), known), None);
    }

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
