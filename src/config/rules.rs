//! Reports mistakes in the operator's rules: compiles the rules and finds the places of the errors.

use super::check::Check;
use super::text::quoted;
use crate::klog::rules::{RuleProblem, Rules};
use crate::model::RuleDefinition;

/// Maximum number of rules reported at once; each requires the rules to be compiled again.
const MAX_FINDINGS: usize = 20;

/// Refuses the mistakes in the rules.
pub(super) fn check(check: &mut Check<'_>, rules: &[RuleDefinition]) {
    for (number, rule) in rules.iter().enumerate() {
        // `"\bsda\b"` is valid TOML and a valid regular expression, but matches no kernel message.
        if rule.pattern.contains('\u{8}') {
            let problem =
                "\\b in double quotes is a backspace; in single quotes, the end of a word";
            check.refuse(&format!("klog.rule.{number}.pattern"), problem);
        }
    }
    let mut left: Vec<_> = rules.iter().cloned().enumerate().collect();
    // Saves the compilation in every subcommand if there are no rules.
    while !left.is_empty() && check.findings.len() < MAX_FINDINGS {
        let definitions: Vec<_> = left.iter().map(|(_, rule)| rule.clone()).collect();
        let error = Rules::compile(&definitions).err();
        let Some(error) = error.filter(|error| error.index < left.len()) else {
            break;
        };
        // The rules before it are valid and not compiled again; only their names are still needed.
        for (_, fine) in &mut left[..error.index] {
            fine.pattern = "fine".to_owned();
        }
        let (number, rule) = left.remove(error.index);
        let problem = error.problem.to_string();
        let (key, problem) = match error.problem {
            RuleProblem::Name | RuleProblem::Duplicate | RuleProblem::TooMany => {
                ("name", format!("{}: {problem}", quoted(&rule.name)))
            }
            _ => ("pattern", problem),
        };
        check.refuse(&format!("klog.rule.{number}.{key}"), &problem);
        if error.problem == RuleProblem::TooMany {
            if let Some(finding) = check.findings.last_mut() {
                finding.help = "write: one pattern for several messages: 'this|that'".to_owned();
            }
            break;
        }
    }
}
