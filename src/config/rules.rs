//! What is wrong with the rules of the operator: compiling them finds out, and this finds the place.

use std::ops::Range;

use toml::de::DeTable;

use super::read;
use super::report::{Finding, Place, Source, locate};
use super::text::{literal, quoted};
use crate::klog::rules::{RuleProblem, Rules};
use crate::model::RuleDefinition;

/// Rules with a mistake that are named at once. To find the next one, the rules are compiled again.
const MAX_FINDINGS: usize = 20;

/// What is wrong with the rules, which were written in `table`.
pub(super) fn check(
    rules: &[RuleDefinition],
    table: &DeTable<'_>,
    sources: &[Source],
) -> Vec<Finding> {
    let placed = |(i, definition)| Rule::new(i, definition, table);
    let mut rules: Vec<Rule<'_>> = rules.iter().enumerate().filter_map(placed).collect();
    let mut definitions: Vec<RuleDefinition> =
        rules.iter().map(|rule| rule.definition.clone()).collect();
    let mut findings: Vec<Finding> = rules.iter().filter_map(Rule::backspace).collect();
    // Without rules there is nothing to be wrong, and every subcommand saves the time.
    while !definitions.is_empty() && findings.len() < MAX_FINDINGS {
        let Err(error) = Rules::compile(&definitions) else {
            break;
        };
        let (before, from) = rules.split_at(error.index.min(rules.len()));
        let Some(rule) = from.first() else {
            break;
        };
        findings.push(rule.finding(&error.problem, before, sources));
        if error.problem == RuleProblem::TooMany {
            break;
        }
        // Those before it are fine. Only their names still matter, and no time is to be spent on
        // them again.
        for fine in &mut definitions[..error.index] {
            fine.pattern = "fine".to_owned();
        }
        definitions.remove(error.index);
        rules.remove(error.index);
    }
    findings
}

/// A rule, and where it was written.
struct Rule<'r> {
    definition: &'r RuleDefinition,
    header: Place,
    name: Place,
    pattern: Place,
}

impl<'r> Rule<'r> {
    fn new(i: usize, definition: &'r RuleDefinition, table: &DeTable<'_>) -> Option<Rule<'r>> {
        let place = |key: &str| read::place(table, &format!("klog.rule.{i}{key}"));
        Some(Rule {
            definition,
            header: place("")?,
            name: place(".name")?,
            pattern: place(".pattern")?,
        })
    }

    /// `"\bsda\b"` is valid TOML, a fine regular expression, and matches nothing that any kernel
    /// says.
    fn backspace(&self) -> Option<Finding> {
        let pattern = &self.definition.pattern;
        if !pattern.contains('\u{8}') {
            return None;
        }
        let message =
            "klog.rule.pattern: \\b in double quotes is a backspace, not the end of a word";
        let write = format!("pattern = {}", literal(&pattern.replace('\u{8}', "\\b")));
        Some(Finding::new(
            self.pattern.clone(),
            message.to_owned(),
            &write,
        ))
    }

    /// `before` are the rules that it comes after.
    fn finding(&self, problem: &RuleProblem, before: &[Rule<'_>], sources: &[Source]) -> Finding {
        let RuleDefinition { name, pattern, .. } = self.definition;
        let at_name = |write: &str| {
            let message = format!("klog.rule.name: {}: {problem}", quoted(name));
            Finding::new(self.name.clone(), message, write)
        };
        let at_pattern = |help: &str| {
            let message = format!("klog.rule.pattern: {problem}");
            Finding::with_help(self.pattern.clone(), message, format!("help: {help}"))
        };
        match problem {
            RuleProblem::Name => at_name(&format!("name = {}", quoted(&fit_name(name)))),
            RuleProblem::Duplicate => {
                let mut finding = at_name("another name");
                let first = before.iter().find(|rule| rule.definition.name == *name);
                match first {
                    Some(first) => {
                        finding.other =
                            Some((first.name.clone(), "the first of that name".to_owned()));
                    }
                    None => finding.help = "help: a built-in rule is called so".to_owned(),
                }
                finding
            }
            RuleProblem::Syntax { at, reason } => {
                let write = as_it_is(pattern, at);
                let part = part_of(&self.pattern, at, pattern, sources);
                let place = part.unwrap_or_else(|| self.pattern.clone());
                Finding::new(place, format!("klog.rule.pattern: {reason}"), &write)
            }
            RuleProblem::MatchesEverything => {
                at_pattern("leave out a * or a ?, so that something must be there")
            }
            RuleProblem::TooLarge => at_pattern("write * or + where a number stands in braces"),
            RuleProblem::Unsupported(_) => at_pattern("say it with a simpler expression"),
            RuleProblem::TooMany => {
                let message = format!("klog.rule: {problem}");
                Finding::new(
                    self.header.clone(),
                    message,
                    "one pattern for several messages: 'this|that'",
                )
            }
        }
    }
}

/// What to write if an expression was meant as text: the bytes `at` of it, or, if that does not
/// mend it, all of it.
fn as_it_is(pattern: &str, at: &Range<usize>) -> String {
    let parts = (
        pattern.get(..at.start),
        pattern.get(at.clone()),
        pattern.get(at.end..),
    );
    if let (Some(before), Some(part), Some(behind)) = parts {
        let mended = format!("{before}{}{behind}", regex_syntax::escape(part));
        let is_mended = regex_syntax::ast::parse::Parser::new()
            .parse(&mended)
            .is_ok();
        if is_mended && mended != pattern {
            return format!("pattern = {} if that is meant as it is", literal(&mended));
        }
    }
    let plain = literal(&regex_syntax::escape(pattern));
    format!("pattern = {plain} if every character is meant as it is")
}

/// The name as it could be: lower case, with `_` for whatever does not fit.
fn fit_name(name: &str) -> String {
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
    let fit = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '_',
    };
    match name.is_empty() {
        true => "disk_failed".to_owned(),
        false => name.chars().take(64).map(fit).collect(),
    }
}

/// Where the bytes `at` of the string `value` stand, which was read from `place`. None if that is
/// unknown.
fn part_of(place: &Place, at: &Range<usize>, value: &str, sources: &[Source]) -> Option<Place> {
    let (source, bytes) = locate(sources, place)?;
    let part = part_of_string(source.text.get(bytes)?, value, at)?;
    Some(place.start + part.start..place.start + part.end)
}

/// Which bytes of the TOML string `written` give the bytes `at` of its value.
fn part_of_string(written: &str, value: &str, at: &Range<usize>) -> Option<Range<usize>> {
    let quotes = ["'''", "\"\"\"", "'", "\""]
        .into_iter()
        .find(|quotes| written.starts_with(quotes) && written.len() >= 2 * quotes.len())?;
    let mut begin = quotes.len();
    if quotes.len() == 3 {
        // A line break right behind the quotes is no part of the value.
        let text = &written[begin..];
        let line_break = ["\n", "\r\n"].into_iter().find(|end| text.starts_with(end));
        begin += line_break.map_or(0, str::len);
    }
    let text = written.get(begin..written.len() - quotes.len())?;
    // Where each byte of the value stands in the text.
    let mut bytes = Vec::with_capacity(value.len() + 1);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (length, gives) = match first {
            '\\' if quotes.starts_with('"') => escape(rest)?,
            first => (first.len_utf8(), first),
        };
        let start = text.len() - rest.len();
        for i in 0..gives.len_utf8() {
            // An escape stands for all of its bytes, any other character for one each.
            bytes.push(if first == '\\' { start } else { start + i });
        }
        rest = rest.get(length..)?;
    }
    bytes.push(text.len());
    // If an escape was misread after all, nothing is said rather than something wrong.
    if bytes.len() != value.len() + 1 {
        return None;
    }
    let (start, end) = (*bytes.get(at.start)?, *bytes.get(at.end)?);
    Some(begin + start..begin + end)
}

/// The length of the escape that `text` begins with, and what it gives.
fn escape(text: &str) -> Option<(usize, char)> {
    let digits = match text.as_bytes().get(1)? {
        b'x' => 2,
        b'u' => 4,
        b'U' => 8,
        b'b' | b't' | b'n' | b'f' | b'r' | b'e' | b'"' | b'\\' => return Some((2, ' ')),
        // A line break that is none, which would take the blanks behind it along.
        _ => return None,
    };
    let number = u32::from_str_radix(text.get(2..2 + digits)?, 16).ok()?;
    Some((2 + digits, char::from_u32(number)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What stands at the bytes `at` of the value of a TOML string.
    fn part(written: &str, at: Range<usize>) -> Option<&str> {
        let table: toml::Table = format!("a = {written}").parse().unwrap();
        let range = part_of_string(written, table["a"].as_str().unwrap(), &at)?;
        Some(&written[range])
    }

    #[test]
    fn a_part_of_a_pattern_is_found_in_the_file() {
        assert_eq!(part("'a(b'", 1..2), Some("("));
        assert_eq!(part("'a\\(b'", 1..3), Some("\\("));
        assert_eq!(part(r#""a\\d(b""#, 3..4), Some("("));
        assert_eq!(part(r#""a\\d(b""#, 1..3), Some(r"\\d"));
        assert_eq!(part(r#""é\u00e9(b""#, 4..5), Some("("));
        assert_eq!(part(r#""é\u00e9(b""#, 2..4), Some(r"\u00e9"));
        assert_eq!(part(r#""\x41\U00000042\e(""#, 3..4), Some("("));
        assert_eq!(part("'''\na\n(b'''", 2..3), Some("("));
        assert_eq!(part("'''\r\na\r\n(b'''", 3..4), Some("("));
        assert_eq!(part("\"\"\"\n\\\\w(\"\"\"", 2..3), Some("("));
        // Blanks behind a line break that is none are left out of the value.
        assert_eq!(part("\"\"\"a\\\n   (\"\"\"", 1..2), None);
        assert_eq!(part("''", 0..0), Some(""));
        assert_eq!(part("'ab'", 2..2), Some(""));
        assert_eq!(part("'ab'", 2..3), None);
    }

    #[test]
    fn a_name_that_does_not_fit_is_made_to() {
        assert_eq!(fit_name("MD-Raid failed"), "md_raid_failed");
        assert_eq!(fit_name("1. disk"), "disk");
        assert_eq!(fit_name("磁é"), "disk_failed");
        assert_eq!(fit_name(&"x".repeat(100)).len(), 64);
    }

    proptest! {
        #[test]
        fn a_part_reads_as_it_stands(
            before in "[a-zé\\\\\"'\n\u{202e}]{0,9}", part in "[a-zé(\\\\]{1,4}", behind: String,
        ) {
            let value = format!("{before}{part}{behind}");
            for written in [quoted(&value), literal(&value)] {
                let at = before.len()..before.len() + part.len();
                let range = part_of_string(&written, &value, &at).unwrap();
                let shown = &written[range];
                prop_assert!(shown == part || shown == part.replace('\\', "\\\\"), "{}", shown);
            }
        }

        #[test]
        fn no_string_panics(written: String, value: String, start in 0..50_usize, end in 0..50_usize) {
            for written in [written.clone(), format!("\"{written}\""), format!("'''{written}'''")] {
                if let Some(range) = part_of_string(&written, &value, &(start..end)) {
                    prop_assert!(range.end <= written.len());
                }
            }
        }
    }
}
