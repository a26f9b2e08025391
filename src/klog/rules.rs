//! Which records of the kernel's log matter, and what can be read from them.
//!
//! # How a record is matched
//!
//! Every built-in rule begins where the text begins, so that a text which merely quotes one (the
//! console of a guest, say) is none. Each rule is a dense DFA, tried in order of precedence. A
//! dense DFA is a table: the search reads each byte at most once, needs no memory, cannot fail and
//! cannot be made slow by the text. The other engines of `regex-automata` were left out for a
//! reason each: the lazy DFA builds its table while it searches, PikeVM and the backtracker grow a
//! stack while they search (all three allocate), the one-pass DFA cannot hold patterns like ours,
//! and `regex` itself takes its scratch memory from a pool behind a lock. What a dense DFA lacks is
//! capture groups; the fields are cut out by hand instead, and only after a match.
//!
//! One table for all built-in rules would save 0.07 µs a record and cost four times the memory, all
//! of it locked: the rules multiply each other's states.
//!
//! Measured on two virtual cores: 0.1 to 0.3 µs to find that a record of a real log matches no
//! built-in rule, and 0.06 µs more for each rule of an operator; 345 KiB of tables, compiled in
//! 6 ms. PikeVM takes 0.4 to 3.4 µs for one rule.
//!
//! # Which rule wins
//!
//! A record has at most one match. In this order, the first wins:
//!
//! 1. built-in rules that rescue;
//! 2. rules of the operator that rescue, in the order of the configuration;
//! 3. rules of the operator that observe, likewise;
//! 4. built-in rules that observe, in the order of their numbers.
//!
//! So no rule of an operator can hide an emergency, and an operator's word for a lesser thing goes
//! before ours.

use std::ops::Range;

use regex_automata::Input;
use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_syntax::hir::Hir;
use thiserror::Error;

use super::DRILL_MARKER;
use crate::model::{Bytes, RuleAction, RuleDefinition};
use crate::sys::proc::number;

/// Most rules that an operator can add: each is a pass over every record.
pub const MAX_OPERATOR_RULES: usize = 64;
/// Most memory of the table of one rule: it stays locked for as long as the daemon runs.
const DFA_BYTES: usize = 1 << 20;
/// Most memory that building a table may take in passing, which bounds its time as well: half a
/// second at worst.
const DETERMINIZE_BYTES: usize = 16 << 20;
/// The same for the step before.
const NFA_BYTES: usize = 1 << 20;
/// Longest name of a rule: it is a metric label and a part of a ring's entry.
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
    fields: for<'t> fn(&'t [u8]) -> Fields<'t>,
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
        fields: deadlock,
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
        fields: filesystem,
    },
    Builtin {
        name: "xfs_log_error",
        action: RuleAction::Observe,
        pattern: concat!(
            xfs!(),
            r"(?:[Ll]og I/O [Ee]rror|xfs_log_force: error -?\d+ returned)",
        ),
        fields: filesystem,
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
        fields: filesystem,
    },
    Builtin {
        name: "xfs_metadata_error",
        action: RuleAction::Observe,
        pattern: concat!(
            xfs!(),
            r#"(?i:metadata I/O error)"#,
            r#"|^I/O error in filesystem \("[^"]+"\) meta-data dev "#,
        ),
        fields: metadata_error,
    },
    Builtin {
        name: "xfs_write_failure",
        action: RuleAction::Observe,
        pattern: concat!(
            xfs!(),
            r"(?:Failing async write on buffer block",
            r"|Corruption Alert: Buffer at daddr 0x[0-9a-f]+ had permanent write failures)",
        ),
        fields: filesystem,
    },
    Builtin {
        name: "hung_task",
        action: RuleAction::Observe,
        pattern: concat!(
            r"(?s:^INFO: task .+:\d+(?: <\w+>)?(?: is)? blocked (?:for|in|on) ",
            r"|^Future hung task reports are suppressed)",
        ),
        fields: hung_task,
    },
    Builtin {
        name: "soft_lockup",
        action: RuleAction::Observe,
        pattern: r"^(?:NMI )?(?:watchdog: )?BUG: soft lockup - CPU#\d+ stuck for \d+s",
        fields: soft_lockup,
    },
    Builtin {
        name: "out_of_memory",
        action: RuleAction::Observe,
        pattern: concat!(
            r"^(?:Memory cgroup )?[Oo]ut of memory(?: \([^)]*\))?: [Kk]ill(?:ed)? process \d",
            r"|^oom-kill:constraint=",
        ),
        fields: out_of_memory,
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
        fields: allocation_failure,
    },
];

/// What a record says, as far as its rule can read it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fields<'t> {
    /// The kernel's name of the block device (`dm-0`).
    pub device: Option<&'t [u8]>,
    /// The name of a task: at most 15 bytes, any of them.
    pub task: Option<&'t [u8]>,
    /// Its number.
    pub pid: Option<u32>,
    /// Bytes that could not be allocated.
    pub size: Option<u64>,
    /// A function of the kernel, without the offset.
    pub function: Option<&'t [u8]>,
}

/// Number of a rule: first the built-in ones, then the operator's in the order of the
/// configuration. It stays for as long as the [`Rules`] do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u16);

/// A record that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match<'r, 't> {
    /// The rule.
    pub rule: RuleId,
    /// Its name.
    pub name: &'r str,
    /// What it asks for.
    pub action: RuleAction,
    /// What the text says; nothing for a rule of an operator.
    pub fields: Fields<'t>,
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
    #[must_use]
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
    #[must_use]
    pub fn find<'r, 't>(&'r self, text: &'t [u8]) -> Option<Match<'r, 't>> {
        let text = without_printk_prefix(text);
        if text.starts_with(DRILL_MARKER) {
            return None;
        }
        let input = Input::new(text).earliest(true);
        // A search fails only at a byte that the DFA was told to give up at, and it was told none.
        let table = self
            .tables
            .iter()
            .find(|table| matches!(table.dfa.try_search_fwd(&input), Ok(Some(_))))?;
        let number = usize::from(table.rule.0);
        let (name, action) = self.names.get(number)?;
        Some(Match {
            rule: table.rule,
            name,
            action: *action,
            fields: match BUILTIN.get(number) {
                Some(builtin) => (builtin.fields)(text),
                None => Fields::default(),
            },
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
    #[must_use]
    pub fn name(&self, rule: RuleId) -> Option<&str> {
        let (name, _) = self.names.get(usize::from(rule.0))?;
        Some(name)
    }

    /// What the tables take.
    #[must_use]
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
        let Some((bracket, after)) = split_once(inside, b"]") else {
            return rest;
        };
        let is_number = |bytes: &[u8]| number(bytes).is_some();
        let is_prefix = match bracket.trim_ascii_start() {
            [b'T' | b'C', id @ ..] => is_number(id),
            time => split_once(time, b".")
                .is_some_and(|(seconds, part)| is_number(seconds) && is_number(part)),
        };
        if !is_prefix {
            return rest;
        }
        rest = after.strip_prefix(b" ").unwrap_or(after);
    }
    rest
}

/// `XFS: nginx(31293) possible memory allocation deadlock size 65728 in kmem_alloc (mode:0x250)`,
/// and Zadara's `XFS: [31293] kmem_alloc failure inum=1 size=65728 flags=0x4 …`.
fn deadlock(text: &[u8]) -> Fields<'_> {
    // The longer needle first: a task may be called `possible`, but no name is as long as these.
    let halves = split_once(text, b"possible memory allocation deadlock")
        .or_else(|| split_once(text, b"possible deadlock"));
    let Some((before, rest)) = halves else {
        let (pid, rest) = after(text, b"XFS: [")
            .and_then(|rest| split_once(rest, b"] "))
            .unwrap_or_default();
        return Fields {
            pid: pid_of(pid),
            size: after(rest, b" size=").and_then(leading_number),
            function: symbol(rest),
            ..Fields::default()
        };
    };
    let (task, pid) = after(before, b": ")
        .and_then(|owner| rsplit_once(owner.strip_suffix(b") ")?, b'('))
        .unzip();
    Fields {
        device: device(text),
        task,
        pid: pid.and_then(pid_of),
        size: rest.strip_prefix(b" size ").and_then(leading_number),
        function: after(rest, b" in ").and_then(symbol),
    }
}

/// A message of XFS: the device, and the function where it happened.
fn filesystem(text: &[u8]) -> Fields<'_> {
    let places: [&[u8]; 3] = [b" detected at ", b"Return address = ", b"Caller "];
    Fields {
        device: device(text),
        function: places
            .iter()
            .find_map(|place| after(text, place).and_then(symbol)),
        ..Fields::default()
    }
}

/// `metadata I/O error in "xfs_buf_ioend+0x1/0x2 [xfs]" at daddr …`, and before 4.17
/// `metadata I/O error: block 0x1 ("xfs_trans_read_buf_map") error 5 numblks 8`.
fn metadata_error(text: &[u8]) -> Fields<'_> {
    let newer = after(text, b"rror in \"");
    let older = after(text, b" block 0x").and_then(|rest| after(rest, b"(\""));
    Fields {
        device: device(text),
        function: newer.or(older).and_then(symbol),
        ..Fields::default()
    }
}

/// `INFO: task CPU 0/KVM:1234 blocked for more than 120 seconds.`
fn hung_task(text: &[u8]) -> Fields<'_> {
    // Long enough that no task can be called so.
    let ends: [&[u8]; 3] = [
        b" blocked for more",
        b" blocked in I/O wait",
        b" blocked on a",
    ];
    let task = after(text, b"INFO: task ").and_then(|rest| {
        let (task, _) = ends.iter().find_map(|end| split_once(rest, end))?;
        let task = task.strip_suffix(b" is").unwrap_or(task);
        // `<reader>` or `<writer>` of an rw-semaphore.
        match task
            .strip_suffix(b">")
            .and_then(|task| rsplit_once(task, b'<'))
        {
            Some((task, _)) => Some(task.trim_ascii_end()),
            None => Some(task),
        }
    });
    task.map(task_and_pid).unwrap_or_default()
}

/// `watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [kworker/0:1:123]`
fn soft_lockup(text: &[u8]) -> Fields<'_> {
    after(text, b"s! [")
        .and_then(|rest| rsplit_once(rest, b']'))
        .map(|(task, _)| task_and_pid(task))
        .unwrap_or_default()
}

/// `Out of memory: Killed process 1234 (qemu-kvm) total-vm:…`, and the summary before it,
/// `oom-kill:constraint=CONSTRAINT_NONE,…,task=qemu-kvm,pid=1234,uid=107`.
fn out_of_memory(text: &[u8]) -> Fields<'_> {
    let mut fields = Fields::default();
    if text.starts_with(b"oom-kill:") {
        // A path of a cgroup may hold a comma; what is sought comes after it.
        if let Some((rest, pid)) = rsplit_at(text, b",pid=") {
            fields.pid = leading_number(pid).and_then(|pid| u32::try_from(pid).ok());
            fields.task = rsplit_at(rest, b",task=").map(|(_, task)| task);
        }
        return fields;
    }
    if let Some((pid, rest)) = after(text, b" process ").and_then(|rest| split_once(rest, b" (")) {
        let ends: [&[u8]; 4] = [b") total-vm:", b"), UID", b") score ", b")"];
        fields.pid = pid_of(pid);
        fields.task = ends
            .iter()
            .find_map(|end| split_once(rest, end))
            .map(|(task, _)| task);
    }
    fields
}

/// `qemu-kvm: page allocation failure: order:5, mode:0x…`,
/// `qemu-kvm: vmalloc error: size 4096, page order 0, …`
fn allocation_failure(text: &[u8]) -> Fields<'_> {
    let kinds: [&[u8]; 3] = [
        b": page allocation failure",
        b": vmalloc error: size ",
        b": vmalloc: allocation failure",
    ];
    Fields {
        task: kinds
            .iter()
            .find_map(|kind| split_once(text, kind))
            .map(|(task, _)| task),
        size: after(text, b": vmalloc error: size ").and_then(leading_number),
        ..Fields::default()
    }
}

fn device(text: &[u8]) -> Option<&[u8]> {
    let forms: [(&[u8], &[u8]); 4] = [
        (b"XFS (", b")"),
        (b"Filesystem \"", b"\""),
        (b"xfs_force_shutdown(", b","),
        (b"I/O error in filesystem (\"", b"\""),
    ];
    forms.iter().find_map(|(begin, end)| {
        let (device, _) = split_once(text.strip_prefix(*begin)?, end)?;
        Some(device)
    })
}

/// `name:123`, where the name may hold a colon.
fn task_and_pid(text: &[u8]) -> Fields<'_> {
    match rsplit_once(text, b':') {
        Some((task, pid)) => Fields {
            task: Some(task),
            pid: pid_of(pid),
            ..Fields::default()
        },
        None => Fields::default(),
    }
}

fn pid_of(digits: &[u8]) -> Option<u32> {
    number(digits).and_then(|pid| u32::try_from(pid).ok())
}

/// The name of a function at the beginning. Older kernels print an address, which is none.
fn symbol(text: &[u8]) -> Option<&[u8]> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
    let length = text.iter().take_while(|byte| is_part(byte)).count();
    let symbol = text.get(..length)?;
    let first = symbol.first()?;
    (first.is_ascii_alphabetic() || *first == b'_').then_some(symbol)
}

fn leading_number(text: &[u8]) -> Option<u64> {
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    number(text.get(..length)?)
}

/// What follows the first `needle`.
fn after<'t>(text: &'t [u8], needle: &[u8]) -> Option<&'t [u8]> {
    split_once(text, needle).map(|(_, after)| after)
}

/// What is before and after the first `needle`, which is not empty.
fn split_once<'t>(text: &'t [u8], needle: &[u8]) -> Option<(&'t [u8], &'t [u8])> {
    let at = text.windows(needle.len()).position(|part| part == needle)?;
    Some((text.get(..at)?, text.get(at + needle.len()..)?))
}

/// What is before and after the last `needle`, which is not empty.
fn rsplit_at<'t>(text: &'t [u8], needle: &[u8]) -> Option<(&'t [u8], &'t [u8])> {
    let at = text
        .windows(needle.len())
        .rposition(|part| part == needle)?;
    Some((text.get(..at)?, text.get(at + needle.len()..)?))
}

fn rsplit_once(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    rsplit_at(text, &[byte])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn rule(name: &str, pattern: &str, action: RuleAction) -> RuleDefinition {
        RuleDefinition {
            name: name.to_owned(),
            pattern: pattern.to_owned(),
            action,
        }
    }

    fn problem_of(pattern: &str) -> RuleProblem {
        let rules = [
            rule("first", "first", RuleAction::Observe),
            rule("second", pattern, RuleAction::Observe),
        ];
        let error = Rules::compile(&rules).unwrap_err();
        assert_eq!((error.index, error.name.as_str()), (1, "second"));
        error.problem
    }

    #[test]
    fn rules_are_small() {
        let rules = Rules::compile(&[]).unwrap();
        assert!(rules.memory() < Bytes(400 << 10), "{}", rules.memory());
    }

    #[test]
    fn every_builtin_rule_begins_with_the_text() {
        for builtin in &BUILTIN {
            let hir = parse(builtin.pattern).unwrap();
            let begin = hir.properties().look_set_prefix();
            assert!(
                begin.contains(regex_syntax::hir::Look::Start),
                "{}",
                builtin.name
            );
            assert!(is_name(builtin.name));
        }
    }

    #[test]
    fn precedence() {
        let deadlock = b"XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)";
        let shutdown = b"XFS (sda1): Log I/O Error Detected.  Shutting down filesystem";
        let rules = Rules::compile(&[
            rule("any_xfs", "XFS", RuleAction::Observe),
            rule("also_xfs", "XFS", RuleAction::Observe),
            rule("grave", "Shutting down", RuleAction::Rescue),
            rule("too_late", "Shutting", RuleAction::Rescue),
        ])
        .unwrap();
        let name = |text| rules.find(text).map(|found| found.name);
        assert_eq!(name(deadlock), Some("xfs_deadlock"));
        assert_eq!(name(shutdown), Some("grave"));
        assert_eq!(name(b"XFS (sda1): Ending clean mount"), Some("any_xfs"));
        assert_eq!(name(b"XFS (sda1): log I/O error -5"), Some("any_xfs"));
        assert_eq!(
            name(b"BUG: soft lockup - CPU#1 stuck for 67s! [a:1]"),
            Some("soft_lockup")
        );

        let names: Vec<_> = rules.iter().map(|(id, name, _)| (id.0, name)).collect();
        assert_eq!(names[0], (0, "xfs_deadlock"));
        assert_eq!(
            names[10..],
            [
                (10, "any_xfs"),
                (11, "also_xfs"),
                (12, "grave"),
                (13, "too_late")
            ]
        );
        assert_eq!(rules.name(RuleId(12)), Some("grave"));
        assert_eq!(rules.name(RuleId(14)), None);
    }

    #[test]
    fn a_pattern_of_an_operator_is_sought_in_the_bytes_of_the_whole_text() {
        let rules = Rules::compile(&[
            rule("word", r"\bnvme\d+: I/O .* timeout", RuleAction::Observe),
            rule("umlaut", "ä+ö", RuleAction::Observe),
            rule("beginning", "^mce: ", RuleAction::Observe),
        ])
        .unwrap();
        let name = |text| rules.find(text).map(|found| found.name);
        assert_eq!(
            name(b"xx nvme0: I/O 12 QID 3 timeout, aborting\xff"),
            Some("word")
        );
        assert_eq!(name(b"xnvme0: I/O 12 timeout"), None);
        assert_eq!(name("ää\u{e4}ö".as_bytes()), Some("umlaut"));
        assert_eq!(name(b"[    0.1] mce: CPU0"), Some("beginning"));
        assert_eq!(name(b"a mce: CPU0"), None);
    }

    #[test]
    fn a_bad_pattern_is_an_error_at_its_place() {
        let place = |pattern| match problem_of(pattern) {
            RuleProblem::Syntax { at, .. } => at,
            other => panic!("{other}"),
        };
        assert_eq!(place("abc(d"), 3..4);
        assert_eq!(place("ab[z-a]"), 3..6);
        assert_eq!(place("*"), 0..0);
        assert_eq!(problem_of("x*"), RuleProblem::MatchesEverything);
        assert_eq!(problem_of(r"\b"), RuleProblem::MatchesEverything);
        assert_eq!(problem_of(""), RuleProblem::MatchesEverything);
        assert_eq!(problem_of("(a|b)*a(a|b){30}"), RuleProblem::TooLarge);
        assert_eq!(
            problem_of("(((((a{10}){10}){10}){10}){10})"),
            RuleProblem::TooLarge
        );
        assert!(matches!(
            problem_of(r"(?u:\b)x"),
            RuleProblem::Unsupported(_)
        ));
    }

    #[test]
    fn errors_read_well() {
        let error = Rules::compile(&[rule("mine", "ab[z-a]", RuleAction::Rescue)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "rule \"mine\": invalid character class range, the start must be <= the end \
             (byte 3 of the pattern)"
        );
        assert_eq!(error.in_pattern(), Some(3..6));
        let error = Rules::compile(&[rule("mine", "a{100000}", RuleAction::Rescue)]).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("`.*` takes less than `.{1,30}`"),
            "{error}"
        );
    }

    #[test]
    fn names_must_be_fit_and_new() {
        let problem = |name: &str| {
            let rules = [
                rule("one", "1", RuleAction::Observe),
                rule(name, "2", RuleAction::Observe),
            ];
            Rules::compile(&rules).unwrap_err().problem
        };
        assert_eq!(problem("one"), RuleProblem::Duplicate);
        assert_eq!(problem("hung_task"), RuleProblem::Duplicate);
        for name in ["", "1a", "a-b", "A", "a b", "_a", "ä", &"a".repeat(65)] {
            assert_eq!(problem(name), RuleProblem::Name, "{name}");
        }
    }

    #[test]
    fn there_is_an_end_to_rules() {
        let mut rules = Vec::new();
        for number in 0..=MAX_OPERATOR_RULES {
            rules.push(rule(&format!("r{number}"), "x", RuleAction::Observe));
        }
        assert_eq!(
            Rules::compile(&rules).unwrap_err().problem,
            RuleProblem::TooMany
        );
        rules.pop();
        assert!(Rules::compile(&rules).is_ok());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(bytes: Vec<u8>) {
            let rules = Rules::compile(&[]).unwrap();
            let _ = rules.find(&bytes);
            for builtin in &BUILTIN {
                let _ = (builtin.fields)(&bytes);
            }
        }

        #[test]
        fn no_text_made_of_our_words_makes_it_panic(words in vec(prop::sample::select(WORDS), 0..12)) {
            let text = words.concat();
            for builtin in &BUILTIN {
                let _ = (builtin.fields)(text.as_bytes());
            }
            let _ = without_printk_prefix(text.as_bytes());
        }

        #[test]
        fn any_task_can_be_named(
            name in vec(any::<u8>(), 1..16),
            pid in 1_u32..4_194_304,
            size: u32,
        ) {
            let rules = Rules::compile(&[]).unwrap();
            let line = [
                b"XFS: ",
                name.as_slice(),
                format!("({pid}) possible memory allocation deadlock size {size} in kmem_alloc (mode:0x2d40)").as_bytes(),
            ].concat();
            let found = rules.find(&line).unwrap();
            prop_assert_eq!(found.name, "xfs_deadlock");
            prop_assert_eq!(found.fields, Fields {
                device: None,
                task: Some(name.as_slice()),
                pid: Some(pid),
                size: Some(u64::from(size)),
                function: Some(b"kmem_alloc"),
            });
        }
    }

    const WORDS: &[&str] = &[
        "XFS",
        "XFS (",
        "XFS: ",
        "XFS: [",
        "] ",
        "kmem_",
        ")",
        "(",
        ") ",
        "possible deadlock",
        "possible memory allocation deadlock",
        " size ",
        " in ",
        "12",
        " size=",
        "] kmem_",
        "Filesystem \"",
        "\"",
        ": ",
        "xfs_force_shutdown(",
        ",",
        " detected at ",
        "Caller ",
        "rror in \"",
        " block 0x",
        "(\"",
        "INFO: task ",
        " blocked for more",
        " is",
        "<",
        ">",
        "s! [",
        "]",
        "[",
        "oom-kill:",
        ",pid=",
        ",task=",
        " process ",
        " (",
        ":",
        " T1",
        ".",
        "C",
    ];
}
