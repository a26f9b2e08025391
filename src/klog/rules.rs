//! Rules that select the relevant records of the kernel log.
//!
//! # Matching
//!
//! Every built-in rule is anchored at the start of the text, so that a text which quotes a message,
//! as a guest's console may, does not match. Each rule is a dense DFA; they are tried in order of
//! precedence. A search reads each byte at most once, does not allocate, cannot fail, and no text
//! can slow it down. Of the other engines of `regex-automata`, the lazy DFA, PikeVM and the
//! backtracker allocate while they search and the one-pass DFA cannot represent these patterns;
//! `regex` takes its memory from a pool behind a lock. One table for all built-in rules would save
//! 0.07 µs per record and need four times the memory, all of it locked.
//!
//! Measured on two virtual cores: 0.1 to 0.3 µs per record of a real log that matches no built-in
//! rule, plus 0.06 µs per operator rule; 345 KiB of tables, compiled in 6 ms. PikeVM takes 0.4 to
//! 3.4 µs for one rule.
//!
//! # Precedence
//!
//! A record has at most one match, so no operator rule can hide an emergency:
//!
//! 1. built-in rules that rescue;
//! 2. operator rules that rescue, in configuration order;
//! 3. operator rules that observe, in configuration order;
//! 4. built-in rules that observe, in numerical order.

use std::ops::Range;

use regex_automata::Input;
use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_syntax::hir::Hir;
use thiserror::Error;

use super::record::{DRILL_MARKER, split_once};
use crate::model::{RuleAction, RuleDefinition};
use crate::sys::proc::number;

/// Maximum number of operator rules: each is a pass over every record.
pub const MAX_OPERATOR_RULES: usize = 64;
/// Maximum size of a rule's table: it stays locked while the daemon runs.
const DFA_BYTES: usize = 1 << 20;
/// Maximum memory for building a table; also bounds the time, to half a second at worst.
const DETERMINIZE_BYTES: usize = 16 << 20;
/// The same limit for the NFA.
const NFA_BYTES: usize = 1 << 20;
/// Maximum length of a rule name: it is a metric label.
const MAX_NAME: usize = 64;

/// Prefix of XFS messages. In Linux 2.4 and 2.6 most started with `Filesystem "sda2": `.
macro_rules! xfs {
    () => {
        r#"^(?:XFS(?: \([^)]+\))?|xfs|Filesystem "[^"]+"): "#
    };
}

/// The built-in rules, names and patterns, most important first: the first one rescues, the others
/// observe. The names are metric labels and must not change. A
/// task name in a message may contain any byte (`CPU 0/KVM`, `runc:[1:CHILD]`, `a(b)`), and vendors
/// append to messages, so no pattern is anchored at the end.
const BUILTIN: [(&str, &str); 10] = [
    // XFS retries an allocation forever. All spellings from 2.4 to 6.8, also with a device name,
    // which is not required. 2.4's own form has no prefix, so its function must be one of kmem.c.
    // The last form is Zadara's; without `retries=` it reports a first failure, no deadlock yet.
    // Not matched: `Possible memory allocation deadlock: size=…` of ZFS's Solaris porting layer.
    (
        "xfs_deadlock",
        concat!(
            r"(?s:",
            xfs!(),
            r"(?:.+\(\d+\) )?possible (?:memory allocation )?deadlock",
            r"(?: size \d+)? in \w+ ?\(mode: ?0x",
            r"|^possible deadlock in kmem_\w+ ?\(mode: ?0x",
            r"|^XFS: \[\d+\] kmem_\w+ failure .*retries=\d)",
        ),
    ),
    // Before the rules for its causes: `Log I/O Error Detected.  Shutting down filesystem` is both.
    (
        "xfs_shutdown",
        concat!(
            xfs!(),
            r"(?:.*Shutting down filesystem",
            r"|xfs_do_force_shutdown\(",
            r"|Please un?mount the filesystem,? and rectify the problem",
            r"|Filesystem has been shut down",
            r"|User initiated shutdown received)",
            r"|^xfs_force_shutdown\([^,]+,0x[0-9a-f]+\) called from",
        ),
    ),
    (
        "xfs_log_error",
        concat!(
            xfs!(),
            r"(?:[Ll]og I/O [Ee]rror|xfs_log_force: error -?\d+ returned)",
        ),
    ),
    (
        "xfs_corruption",
        concat!(
            xfs!(),
            r"(?:(?:XFS )?[Ii]nternal error .* at line \d",
            r"|Metadata [\w ]+ detected at ",
            r"|Corruption detected",
            r"|Unmount and run xfs_repair)",
        ),
    ),
    (
        "xfs_metadata_error",
        concat!(
            xfs!(),
            r#"(?i:metadata I/O error)"#,
            r#"|^I/O error in filesystem \("[^"]+"\) meta-data dev "#,
        ),
    ),
    (
        "xfs_write_failure",
        concat!(
            xfs!(),
            r"(?:Failing async write on buffer block",
            r"|Corruption Alert: Buffer at daddr 0x[0-9a-f]+ had permanent write failures)",
        ),
    ),
    (
        "hung_task",
        concat!(
            r"(?s:^INFO: task .+:\d+(?: <\w+>)?(?: is)? blocked (?:for|in|on) ",
            r"|^Future hung task reports are suppressed)",
        ),
    ),
    (
        "soft_lockup",
        r"^(?:NMI )?(?:watchdog: )?BUG: soft lockup - CPU#\d+ stuck for \d+s",
    ),
    (
        "out_of_memory",
        concat!(
            r"^(?:Memory cgroup )?[Oo]ut of memory(?: \([^)]*\))?: [Kk]ill(?:ed)? process \d",
            r"|^oom-kill:constraint=",
        ),
    ),
    // Starts with a task name, so it alone has to read more than a few bytes of other records.
    (
        "page_allocation_failure",
        concat!(
            r"(?s:^.{1,15}: (?:page allocation failure[.:] ?order:\d",
            r"|vmalloc error: size \d",
            r"|vmalloc: allocation failure))",
        ),
    ),
];

/// Number of a rule in its [`Rules`]: first built-in rules, then operator rules as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u16);

/// A match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match<'r> {
    /// The rule.
    pub rule: RuleId,
    /// Its name.
    pub name: &'r str,
    /// Its action.
    pub action: RuleAction,
}

/// An invalid rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("rule {name:?}: {problem}")]
pub struct RuleError {
    /// Its index among the operator's rules.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub problem: RuleProblem,
}

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RuleProblem {
    #[error("a name has up to {MAX_NAME} lower-case letters, digits and _, a letter first")]
    Name,
    /// Another rule, possibly a built-in one, has the same name.
    #[error("there is a rule of that name already")]
    Duplicate,
    #[error("{reason} (byte {} of the pattern)", at.start)]
    Syntax {
        /// The affected bytes of the pattern.
        at: Range<usize>,
        /// The error of the parser.
        reason: String,
    },
    #[error("the pattern matches the empty text, and so every record")]
    MatchesEverything,
    #[error(
        "the pattern takes too much memory; counted repetitions are the usual reason, \
         `.*` takes less than `.{{1,30}}`"
    )]
    TooLarge,
    #[error("the pattern cannot be used: {0}")]
    Unsupported(String),
    #[error("there are more than {MAX_OPERATOR_RULES} rules")]
    TooMany,
}

impl RuleError {
    fn new(index: usize, name: &str, problem: RuleProblem) -> RuleError {
        RuleError {
            index,
            name: name.to_owned(),
            problem,
        }
    }
}

/// The compiled rules.
#[derive(Debug, Default)]
pub struct Rules {
    /// In order of [`RuleId`].
    names: Vec<(String, RuleAction)>,
    /// In order of precedence.
    tables: Vec<Table>,
}

#[derive(Debug)]
struct Table {
    rule: RuleId,
    rank: Rank,
    dfa: dense::DFA<Vec<u32>>,
}

/// Precedence, as in the documentation of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    BuiltinRescue,
    OperatorRescue,
    OperatorObserve,
    BuiltinObserve,
}

impl Rules {
    /// Compiles the built-in rules and those of the operator, up to the first invalid one. An
    /// operator's pattern is a regular expression over bytes and matches anywhere in the text: `\w`
    /// and `\b` are ASCII, `^` is the start of the text.
    pub fn compile(operator: &[RuleDefinition]) -> Result<Rules, RuleError> {
        let mut rules = Rules {
            names: Vec::with_capacity(BUILTIN.len() + operator.len()),
            tables: Vec::with_capacity(BUILTIN.len() + operator.len()),
        };
        for (index, (name, pattern)) in BUILTIN.into_iter().enumerate() {
            let (action, rank) = match index {
                0 => (RuleAction::Rescue, Rank::BuiltinRescue),
                _ => (RuleAction::Observe, Rank::BuiltinObserve),
            };
            rules
                .add(name, pattern, action, rank)
                .map_err(|problem| RuleError::new(index, name, problem))?;
        }
        for (index, definition) in operator.iter().enumerate() {
            rules
                .add_operators(index, definition)
                .map_err(|problem| RuleError::new(index, &definition.name, problem))?;
        }
        // A stable sort: the order within a rank is kept.
        rules.tables.sort_by_key(|table| table.rank);
        Ok(rules)
    }

    fn add_operators(&mut self, index: usize, rule: &RuleDefinition) -> Result<(), RuleProblem> {
        if index >= MAX_OPERATOR_RULES {
            return Err(RuleProblem::TooMany);
        }
        if !is_name(&rule.name) {
            return Err(RuleProblem::Name);
        }
        let rank = match rule.action {
            RuleAction::Rescue => Rank::OperatorRescue,
            RuleAction::Observe => Rank::OperatorObserve,
        };
        self.add(&rule.name, &rule.pattern, rule.action, rank)
    }

    fn add(
        &mut self,
        name: &str,
        pattern: &str,
        action: RuleAction,
        rank: Rank,
    ) -> Result<(), RuleProblem> {
        if self.names.iter().any(|(other, _)| other == name) {
            return Err(RuleProblem::Duplicate);
        }
        let rule = u16::try_from(self.names.len()).map_err(|_| RuleProblem::TooMany)?;
        self.tables.push(Table {
            rule: RuleId(rule),
            rank,
            dfa: compile(pattern)?,
        });
        self.names.push((name.to_owned(), action));
        Ok(())
    }

    /// The rule that matches an unescaped record or a log line without its header. Optional printk
    /// prefixes (`[   12.345678] `, `[  T123] `) are skipped.
    pub fn find(&self, text: &[u8]) -> Option<Match<'_>> {
        let text = without_printk_prefix(text);
        if text.starts_with(DRILL_MARKER) {
            return None;
        }
        let input = Input::new(text).earliest(true);
        // A search fails only at a quit byte; these DFAs have none.
        let table = self
            .tables
            .iter()
            .find(|table| matches!(table.dfa.try_search_fwd(&input), Ok(Some(_))))?;
        let (name, action) = self.names.get(usize::from(table.rule.0))?;
        Some(Match {
            rule: table.rule,
            name,
            action: *action,
        })
    }

    /// All rules in numerical order, for metrics that exist before their first event.
    pub fn iter(&self) -> impl Iterator<Item = (RuleId, &str, RuleAction)> {
        let numbers = 0_u16..;
        numbers
            .zip(&self.names)
            .map(|(number, (name, action))| (RuleId(number), name.as_str(), *action))
    }

    /// The name of a rule.
    pub fn name(&self, rule: RuleId) -> Option<&str> {
        let (name, _) = self.names.get(usize::from(rule.0))?;
        Some(name)
    }
}

fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.len() <= MAX_NAME
        && name.bytes().all(fits)
}

fn compile(pattern: &str) -> Result<dense::DFA<Vec<u32>>, RuleProblem> {
    let hir = parse(pattern)?;
    if hir.properties().minimum_len() == Some(0) {
        return Err(RuleProblem::MatchesEverything);
    }
    let nfa = thompson::Compiler::new()
        .configure(
            thompson::Config::new()
                .utf8(false)
                .which_captures(thompson::WhichCaptures::None)
                .nfa_size_limit(Some(NFA_BYTES)),
        )
        .build_from_hir(&hir)
        .map_err(|error| match error.size_limit() {
            Some(_) => RuleProblem::TooLarge,
            None => RuleProblem::Unsupported(error.to_string()),
        })?;
    dense::Builder::new()
        .configure(
            dense::Config::new()
                .start_kind(StartKind::Unanchored)
                .dfa_size_limit(Some(DFA_BYTES))
                .determinize_size_limit(Some(DETERMINIZE_BYTES)),
        )
        .build_from_nfa(&nfa)
        .map_err(|error| match error.is_size_limit_exceeded() {
            true => RuleProblem::TooLarge,
            false => RuleProblem::Unsupported(error.to_string()),
        })
}

/// Parses a pattern over bytes: kernel messages need not be UTF-8.
fn parse(pattern: &str) -> Result<Hir, RuleProblem> {
    let mut parser = regex_syntax::ParserBuilder::new()
        .unicode(false)
        .utf8(false)
        .build();
    parser.parse(pattern).map_err(|error| {
        let (span, reason) = match &error {
            regex_syntax::Error::Parse(error) => (*error.span(), error.kind().to_string()),
            regex_syntax::Error::Translate(error) => (*error.span(), error.kind().to_string()),
            _ => return RuleProblem::Unsupported(error.to_string()),
        };
        RuleProblem::Syntax {
            at: span.start.offset..span.end.offset,
            reason,
        }
    })
}

/// The text without the optional printk prefixes `[   12.345678] ` and `[  T123] ` or `[   C1] `.
pub(super) fn without_printk_prefix(text: &[u8]) -> &[u8] {
    let mut rest = text;
    while let Some(inside) = rest.strip_prefix(b"[") {
        let Some((bracket, after)) = split_once(inside, b']') else {
            return rest;
        };
        let is_number = |bytes: &[u8]| number(bytes).is_some();
        let is_prefix = match bracket.trim_ascii_start() {
            [b'T' | b'C', id @ ..] => is_number(id),
            time => split_once(time, b'.')
                .is_some_and(|(seconds, part)| is_number(seconds) && is_number(part)),
        };
        if !is_prefix {
            return rest;
        }
        rest = after.strip_prefix(b" ").unwrap_or(after);
    }
    rest
}

#[cfg(test)]
mod tests;
