//! Reports mistakes in the operator's rules: compiles the rules and finds the places of the errors.

use std::ops::Range;

use toml::de::DeTable;

use super::read;
use super::report::{Finding, Place};
use super::text::{literal, quoted};
use crate::klog::rules::{RuleProblem, Rules};
use crate::model::RuleDefinition;

/// Maximum number of rules reported at once; each requires the rules to be compiled again.
const MAX_FINDINGS: usize = 20;

/// The mistakes in the rules, which were read from `table`. `texts` are those of the files.
pub(super) fn check(
    rules: &[RuleDefinition],
    table: &DeTable<'_>,
    texts: &[String],
) -> Vec<Finding> {
    let rule = |(number, definition)| Rule {
        definition,
        number,
        table,
    };
    let mut rules: Vec<Rule<'_>> = rules.iter().enumerate().map(rule).collect();
    let mut definitions: Vec<_> = rules.iter().map(|rule| rule.definition.clone()).collect();
    let mut findings: Vec<Finding> = rules.iter().filter_map(Rule::backspace).collect();
    // Saves the compilation in every subcommand if there are no rules.
    while !definitions.is_empty() && findings.len() < MAX_FINDINGS {
        let Err(error) = Rules::compile(&definitions) else {
            break;
        };
        let (before, from) = rules.split_at(error.index.min(rules.len()));
        let Some(rule) = from.first() else {
            break;
        };
        findings.push(rule.finding(&error.problem, before, texts));
        if error.problem == RuleProblem::TooMany {
            break;
        }
        // The rules before it are valid and not compiled again; only their names are still needed.
        for fine in &mut definitions[..error.index] {
            fine.pattern = "fine".to_owned();
        }
        definitions.remove(error.index);
        rules.remove(error.index);
    }
    findings
}

struct Rule<'r> {
    definition: &'r RuleDefinition,
    /// Its number in the list.
    number: usize,
    table: &'r DeTable<'r>,
}

impl Rule<'_> {
    /// The place of a key, which every rule has; with an empty key, of the rule.
    fn place(&self, key: &str) -> Place {
        let path = format!("klog.rule.{}{key}", self.number);
        read::place(self.table, &path).unwrap_or_default()
    }

    /// `"\bsda\b"` is valid TOML and a valid regular expression, but matches no kernel message.
    fn backspace(&self) -> Option<Finding> {
        let pattern = &self.definition.pattern;
        let write = literal(&pattern.replace('\u{8}', "\\b"));
        let message =
            "klog.rule.pattern: \\b in double quotes is a backspace, not the end of a word";
        pattern.contains('\u{8}').then(|| {
            let write = format!("pattern = {write}");
            Finding::new(self.place(".pattern"), message.to_owned(), &write)
        })
    }

    /// `before` are the preceding rules.
    fn finding(&self, problem: &RuleProblem, before: &[Rule<'_>], texts: &[String]) -> Finding {
        let RuleDefinition { name, pattern, .. } = self.definition;
        let of_pattern = |help: &str| (".pattern", problem.to_string(), format!("help: {help}"));
        let of_name = |help: String| (".name", format!("{}: {problem}", quoted(name)), help);
        let mut place = None;
        let mut other = None;
        let (key, message, help) = match problem {
            RuleProblem::Name => of_name(format!("write: name = {}", quoted(&fit_name(name)))),
            RuleProblem::Duplicate => {
                let first = before.iter().find(|rule| rule.definition.name == *name);
                let first = first.map(|rule| rule.place(".name"));
                other = first.map(|place| (place, "the first of that name".to_owned()));
                of_name(match other {
                    Some(_) => "write: another name".to_owned(),
                    None => "help: a built-in rule is called so".to_owned(),
                })
            }
            RuleProblem::Syntax { at, reason } => {
                place = part_of(&self.place(".pattern"), at, pattern, texts);
                (
                    ".pattern",
                    reason.clone(),
                    format!("write: {}", as_it_is(pattern, at)),
                )
            }
            RuleProblem::MatchesEverything => {
                of_pattern("leave out a * or a ?, so that something must be there")
            }
            RuleProblem::TooLarge => of_pattern("write * or + where a number stands in braces"),
            RuleProblem::Unsupported(_) => of_pattern("use a simpler expression"),
            RuleProblem::TooMany => {
                let help = "write: one pattern for several messages: 'this|that'";
                ("", problem.to_string(), help.to_owned())
            }
        };
        Finding {
            place: place.unwrap_or_else(|| self.place(key)),
            message: format!("klog.rule{key}: {message}"),
            other,
            help,
        }
    }
}

/// A suggestion for literal text: escapes the bytes `at`, or everything if that is not sufficient.
fn as_it_is(pattern: &str, at: &Range<usize>) -> String {
    let mut mended = pattern.to_owned();
    if let Some(part) = pattern.get(at.clone()) {
        mended.replace_range(at.clone(), &regex_syntax::escape(part));
    }
    let mut parser = regex_syntax::ast::parse::Parser::new();
    if mended != pattern && parser.parse(&mended).is_ok() {
        return format!("pattern = {} if that is meant as it is", literal(&mended));
    }
    let plain = literal(&regex_syntax::escape(pattern));
    format!("pattern = {plain} if every character is meant as it is")
}

/// A valid name: lower case, with `_` for invalid characters.
fn fit_name(name: &str) -> String {
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
    let fit = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '_'
        }
    };
    match name {
        "" => "disk_failed".to_owned(),
        name => name.chars().take(64).map(fit).collect(),
    }
}

/// The place of the bytes `at` of the string `value`, which was read from `place`. `None` unless
/// the string as written contains that text exactly once.
fn part_of(place: &Place, at: &Range<usize>, value: &str, texts: &[String]) -> Option<Place> {
    let written = texts.iter().find_map(|text| text.get(place.clone()))?;
    let part = value.get(at.clone()).filter(|part| !part.is_empty())?;
    let mut found = written.match_indices(part);
    match (found.next(), found.next()) {
        (Some((i, _)), None) => Some(place.start + i..place.start + i + part.len()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_does_not_fit_is_made_to() {
        assert_eq!(fit_name("MD-Raid failed"), "md_raid_failed");
        assert_eq!(fit_name("1. disk"), "disk");
        assert_eq!(fit_name("磁é"), "disk_failed");
        assert_eq!(fit_name(&"x".repeat(100)).len(), 64);
    }

    #[test]
    fn a_part_of_a_pattern_is_found_in_the_file() {
        let part = |written: &str, value: &str, at| {
            let texts = ["first".to_owned(), format!("      {written}")];
            let place = part_of(&(6..6 + written.len()), &at, value, &texts)?;
            Some(written[place.start - 6..place.end - 6].to_owned())
        };
        assert_eq!(part("'a(b'", "a(b", 1..2).as_deref(), Some("("));
        assert_eq!(part(r#""a\\d(b""#, r"a\d(b", 3..4).as_deref(), Some("("));
        assert_eq!(part("'''\né\n(b'''", "é\n(b", 3..4).as_deref(), Some("("));
        // Which of the two it is, is unknown; or it is written with an escape.
        assert_eq!(part("'a((b'", "a((b", 1..2), None);
        assert_eq!(part(r#""\u00e9""#, "é", 0..2), None);
        assert_eq!(part("'ab'", "ab", 2..3), None);
    }
}
