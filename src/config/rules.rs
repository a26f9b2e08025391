//! Reports mistakes in the operator's rules: compiles the rules and finds the places of the errors.

use toml::de::DeTable;

use super::examples::write;
use super::read::place;
use super::report::Finding;
use super::text::quoted;
use crate::klog::rules::{RuleProblem, Rules};
use crate::model::RuleDefinition;

/// Maximum number of rules reported at once; each requires the rules to be compiled again.
const MAX_FINDINGS: usize = 20;

/// The mistakes in the rules, which were read from `table`.
pub(super) fn check(rules: &[RuleDefinition], table: &DeTable<'_>) -> Vec<Finding> {
    let finding = |rule: usize, key: &str, problem: &str| {
        let place = place(table, &format!("klog.rule.{rule}.{key}"));
        let path = format!("klog.rule.{key}");
        let message = format!("{path}: {problem}");
        Finding::new(place.unwrap_or_default(), message, write(&path))
    };
    let mut findings = Vec::new();
    let mut left: Vec<_> = rules.iter().cloned().enumerate().collect();
    // `"\bsda\b"` is valid TOML and a valid regular expression, but matches no kernel message.
    for (number, _) in left
        .iter()
        .filter(|(_, rule)| rule.pattern.contains('\u{8}'))
    {
        let problem = "\\b in double quotes is a backspace; in single quotes, the end of a word";
        findings.push(finding(*number, "pattern", problem));
    }
    // Saves the compilation in every subcommand if there are no rules.
    while !left.is_empty() && findings.len() < MAX_FINDINGS {
        let definitions: Vec<_> = left.iter().map(|(_, rule)| rule.clone()).collect();
        let Err(error) = Rules::compile(&definitions) else {
            break;
        };
        if error.index >= left.len() {
            break;
        }
        // The rules before it are valid and not compiled again; only their names are still needed.
        for (_, fine) in &mut left[..error.index] {
            fine.pattern = "fine".to_owned();
        }
        let (number, rule) = left.remove(error.index);
        let problem = error.problem.to_string();
        let named = format!("{}: {problem}", quoted(&rule.name));
        findings.push(match error.problem {
            RuleProblem::Name | RuleProblem::Duplicate => finding(number, "name", &named),
            RuleProblem::TooMany => Finding {
                help: "write: one pattern for several messages: 'this|that'".to_owned(),
                ..finding(number, "name", &named)
            },
            _ => finding(number, "pattern", &problem),
        });
        if error.problem == RuleProblem::TooMany {
            break;
        }
    }
    findings
}
