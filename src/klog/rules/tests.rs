//! The rules: which patterns are refused, which rule wins, and that no bytes make it panic.

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
    let bytes = rules.tables.iter().map(|table| table.dfa.memory_usage());
    let bytes: usize = bytes.sum();
    assert!(bytes < 400 << 10, "{bytes}");
}

#[test]
fn every_builtin_rule_begins_with_the_text() {
    for (name, pattern) in BUILTIN {
        let hir = parse(pattern).unwrap();
        let begin = hir.properties().look_set_prefix();
        assert!(begin.contains(regex_syntax::hir::Look::Start), "{name}");
        assert!(is_name(name));
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
    assert!(matches!(error.problem, RuleProblem::Syntax { at, .. } if at == (3..6)));
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
    }

    #[test]
    fn any_task_can_be_starved(
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
    }
}
