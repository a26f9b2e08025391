//! Which records of the kernel's log matter.
//!
//! # How a record is matched
//!
//! Every built-in rule begins where the text begins, so that a text which merely quotes one (the
//! console of a guest, say) does not match. Each rule is a dense DFA, tried in order of precedence: the
//! search reads each byte at most once, needs no memory, cannot fail and cannot be made slow by the
//! text. Of the other engines of `regex-automata` the lazy DFA, PikeVM and the backtracker allocate
//! while they search, the one-pass DFA cannot hold patterns like these, and `regex` itself takes its
//! memory from a pool behind a lock.
//!
//! One table for all built-in rules would save 0.07 µs a record and cost four times the memory, all
//! of it locked.
//!
//! Measured on two virtual cores: 0.1 to 0.3 µs to find that a record of a real log matches no
//! built-in rule, and 0.06 µs more for each rule of an operator; 345 KiB of tables, compiled in
//! 6 ms. PikeVM takes 0.4 to 3.4 µs for one rule.
//!
//! # Precedence
//!
//! A record has at most one match, so that no rule of an operator can hide an emergency:
//!
//! 1. built-in rules that rescue;
//! 2. rules of the operator that rescue, in the order of the configuration;
//! 3. rules of the operator that observe, likewise;
//! 4. built-in rules that observe, in the order of their numbers.

use std::ops::Range;

use regex_automata::Input;
use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_syntax::hir::Hir;
use thiserror::Error;

use super::record::{DRILL_MARKER, split_once};
use crate::model::{Bytes, RuleAction, RuleDefinition};
use crate::sys::proc::number;

/// The most rules of an operator: each is a pass over every record.
pub const MAX_OPERATOR_RULES: usize = 64;
/// The largest table of a rule: it stays locked for as long as the daemon runs.
const DFA_BYTES: usize = 1 << 20;
/// The most memory for building a table, which bounds the time as well: half a second at worst.
const DETERMINIZE_BYTES: usize = 16 << 20;
/// The same for the step before.
const NFA_BYTES: usize = 1 << 20;
/// The longest name of a rule: it is a metric label.
const MAX_NAME: usize = 64;

/// The beginning of a message of XFS. 2.4 and 2.6 had `Filesystem "sda2": ` before most messages.
macro_rules! xfs {
    () => {
        r#"^(?:XFS(?: \([^)]+\))?|xfs|Filesystem "[^"]+"): "#
    };
}

/// A built-in rule.
struct Builtin {
    name: &'static str,
    action: RuleAction,
    pattern: &'static str,
}

/// The built-in rules, most important first. The names are labels of metrics: they stay.
///
/// Two things about the patterns: a task's name may hold any byte (`CPU 0/KVM`, `runc:[1:CHILD]`,
/// `a(b)`), and vendors append to messages, so no end is anchored.
const BUILTIN: [Builtin; 10] = [
    // XFS retries an allocation for ever. All spellings from 2.4 to 6.8, with an unneeded device as
    // well; 2.4's own form has no prefix, so there the function must be one of kmem.c. The last is
    // Zadara's; without `retries=` it reports a first failure, which is no deadlock yet.
    // Not matched, on purpose: `Possible memory allocation deadlock: size=…` of the Solaris
    // porting layer under ZFS.
    Builtin {
        name: "xfs_deadlock",
        action: RuleAction::Rescue,
        pattern: concat!(
            r"(?s:",
            xfs!(),
            r"(?:.+\(\d+\) )?possible (?:memory allocation )?deadlock",
            r"(?: size \d+)? in \w+ ?\(mode: ?0x",
            r"|^possible deadlock in kmem_\w+ ?\(mode: ?0x",
            r"|^XFS: \[\d+\] kmem_\w+ failure .*retries=\d)",
        ),
    },
    // Before the rules for its causes: `Log I/O Error Detected.  Shutting down filesystem` is both.
    Builtin {
        name: "xfs_shutdown",
        action: RuleAction::Observe,
        pattern: concat!(
            xfs!(),
            r"(?:.*Shutting down filesystem",
            r"|xfs_do_force_shutdown\(",
            r"|Please un?mount the filesystem,? and rectify the problem",
            r"|Filesystem has been shut down",
            r"|User initiated shutdown received)",
            r"|^xfs_force_shutdown\([^,]+,0x[0-9a-f]+\) called from",
        ),
    },
    Builtin {
        name: "xfs_log_error",
        action: RuleAction::Observe,
        pattern: concat!(
            xfs!(),
            r"(?:[Ll]og I/O [Ee]rror|xfs_log_force: error -?\d+ returned)",
        ),
    },
    Builtin {
        name: "xfs_corruption",
        action: RuleAction::Observe,
        pattern: concat!(
            xfs!(),
            r"(?:(?:XFS )?[Ii]nternal error .* at line \d",
            r"|Metadata [\w ]+ detected at ",
            r"|Corruption detected",
            r"|Unmount and run xfs_repair)",
        ),
    },
    Builtin {
        name: "xfs_metadata_error",
        action: RuleAction::Observe,
        pattern: concat!(
            xfs!(),
            r#"(?i:metadata I/O error)"#,
            r#"|^I/O error in filesystem \("[^"]+"\) meta-data dev "#,
        ),
    },
    Builtin {
        name: "xfs_write_failure",
        action: RuleAction::Observe,
        pattern: concat!(
            xfs!(),
            r"(?:Failing async write on buffer block",
            r"|Corruption Alert: Buffer at daddr 0x[0-9a-f]+ had permanent write failures)",
        ),
    },
    Builtin {
        name: "hung_task",
        action: RuleAction::Observe,
        pattern: concat!(
            r"(?s:^INFO: task .+:\d+(?: <\w+>)?(?: is)? blocked (?:for|in|on) ",
            r"|^Future hung task reports are suppressed)",
        ),
    },
    Builtin {
        name: "soft_lockup",
        action: RuleAction::Observe,
        pattern: r"^(?:NMI )?(?:watchdog: )?BUG: soft lockup - CPU#\d+ stuck for \d+s",
    },
    Builtin {
        name: "out_of_memory",
        action: RuleAction::Observe,
        pattern: concat!(
            r"^(?:Memory cgroup )?[Oo]ut of memory(?: \([^)]*\))?: [Kk]ill(?:ed)? process \d",
            r"|^oom-kill:constraint=",
        ),
    },
    // The only rule that begins with a task's name, so the only one that looks beyond the first
    // few bytes of a record of another kind.
    Builtin {
        name: "page_allocation_failure",
        action: RuleAction::Observe,
        pattern: concat!(
            r"(?s:^.{1,15}: (?:page allocation failure[.:] ?order:\d",
            r"|vmalloc error: size \d",
            r"|vmalloc: allocation failure))",
        ),
    },
];

/// Number of a rule: first the built-in ones, then the operator's in the order of the
/// configuration. It stays for as long as the [`Rules`] do.
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

/// A rule that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("rule {name:?}: {problem}")]
pub struct RuleError {
    /// Its place among the rules of the operator.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub problem: RuleProblem,
}

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RuleProblem {
    /// It is no fit metric label.
    #[error("a name has up to {MAX_NAME} lower-case letters, digits and _, a letter first")]
    Name,
    /// Another rule, perhaps a built-in one, is called the same.
    #[error("there is a rule of that name already")]
    Duplicate,
    /// The pattern is no regular expression.
    #[error("{reason} (byte {} of the pattern)", at.start)]
    Syntax {
        /// Which bytes of the pattern.
        at: Range<usize>,
        /// Why.
        reason: String,
    },
    /// The pattern matches every record.
    #[error("the pattern matches the empty text, and so every record")]
    MatchesEverything,
    /// The pattern's table would be too large.
    #[error(
        "the pattern takes too much memory; counted repetitions are the usual reason, \
         `.*` takes less than `.{{1,30}}`"
    )]
    TooLarge,
    /// The pattern cannot be matched in one pass over bytes.
    #[error("the pattern cannot be used: {0}")]
    Unsupported(String),
    /// There are more than [`MAX_OPERATOR_RULES`].
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

    /// The bytes of the pattern that are to blame; `None` when it is the pattern as a whole, or
    /// not the pattern.
    pub fn in_pattern(&self) -> Option<Range<usize>> {
        match &self.problem {
            RuleProblem::Syntax { at, .. } => Some(at.clone()),
            _ => None,
        }
    }
}

/// The rules, compiled.
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

/// Precedence, as the documentation of this module gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    BuiltinRescue,
    OperatorRescue,
    OperatorObserve,
    BuiltinObserve,
}

impl Rules {
    /// Compiles the built-in rules and those of the operator.
    ///
    /// An operator's pattern is a regular expression over bytes, found anywhere in the text: `\w`
    /// and `\b` mean ASCII, `^` the beginning of the text.
    ///
    /// # Errors
    /// The first rule that is wrong.
    pub fn compile(operator: &[RuleDefinition]) -> Result<Rules, RuleError> {
        let mut rules = Rules {
            names: Vec::with_capacity(BUILTIN.len() + operator.len()),
            tables: Vec::with_capacity(BUILTIN.len() + operator.len()),
        };
        for (index, builtin) in BUILTIN.iter().enumerate() {
            let rank = match builtin.action {
                RuleAction::Rescue => Rank::BuiltinRescue,
                RuleAction::Observe => Rank::BuiltinObserve,
            };
            rules
                .add(builtin.name, builtin.pattern, builtin.action, rank)
                .map_err(|problem| RuleError::new(index, builtin.name, problem))?;
        }
        for (index, definition) in operator.iter().enumerate() {
            rules
                .add_operators(index, definition)
                .map_err(|problem| RuleError::new(index, &definition.name, problem))?;
        }
        // A stable sort: within a rank the order stays.
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

    /// The rule that matches a text, as the kernel had it ([`Text::unescape`]) or as a log file has
    /// it after its own header. What printk puts before a text on request (`[   12.345678] `,
    /// `[  T123] `) is skipped.
    ///
    /// [`Text::unescape`]: super::record::Text::unescape
    pub fn find(&self, text: &[u8]) -> Option<Match<'_>> {
        let text = without_printk_prefix(text);
        if text.starts_with(DRILL_MARKER) {
            return None;
        }
        let input = Input::new(text).earliest(true);
        // A search fails only at a byte at which the DFA was built to give up; there is none.
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

    /// Every rule with its name and action, in order of number: for metrics that exist before
    /// their first event.
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

    /// What the tables take.
    pub fn memory(&self) -> Bytes {
        let bytes = self.tables.iter().map(|table| table.dfa.memory_usage());
        Bytes(u64::try_from(bytes.sum::<usize>()).unwrap_or(u64::MAX))
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

/// A pattern over bytes: the kernel's texts need not be UTF-8.
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

/// The text without `[   12.345678] ` and `[  T123] ` or `[   C1] ` at its beginning, which printk
/// adds on request.
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
