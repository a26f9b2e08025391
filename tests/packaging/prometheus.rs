//! Alerts and recording rules: promtool's own tests of them, and that none is without one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use crate::support::prometheus::tool;
use crate::{names, support, tree};

const ALERTS: &str = "packaging/prometheus/alerts.yml";
const RECORDING: &str = "packaging/prometheus/recording.yml";
const TESTS: &str = "packaging/prometheus/tests.yml";
const PAGE: &str = "packaging/prometheus/README.md";

fn text(path: &str) -> String {
    fs::read_to_string(tree(path)).unwrap()
}

/// Values of `key:` in lines of YAML, in order.
fn values<'a>(yaml: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    let of_line = move |line: &'a str| line.trim().trim_start_matches("- ").strip_prefix(key);
    yaml.lines().filter_map(of_line).map(str::trim)
}

#[test]
fn promtool_finds_the_rules_right() {
    let promtool = support::require!(tool("promtool"));
    for arguments in [
        &["check", "rules", ALERTS, RECORDING][..],
        &["test", "rules", TESTS],
    ] {
        let checked = Command::new(&promtool)
            .args(arguments)
            .current_dir(tree(""))
            .output()
            .unwrap();
        assert!(checked.status.success(), "{checked:?}");
    }
}

/// How often the tests expect an alert to fire, and not to.
fn expectations() -> BTreeMap<String, (u32, u32)> {
    let mut expected: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for test in text(TESTS).split("\n  - name: '").skip(1) {
        let alert = test.split(':').next().unwrap();
        let counts = expected.entry(alert.to_owned()).or_default();
        for check in test.split("- expr:").skip(1).chain(
            // One-line checks.
            test.split("- {expr:").skip(1),
        ) {
            let check = check.split("eval_time").nth(1).unwrap_or_default();
            let check = check.split("expr:").next().unwrap();
            if check.contains(&format!("alertname=\"{alert}\"")) {
                counts.0 += 1;
            } else {
                counts.1 += 1;
            }
        }
    }
    expected
}

#[test]
fn each_alert_is_tried_firing_and_not_firing() {
    let expected = expectations();
    let alerts = text(ALERTS);
    let mut number = 0;
    for alert in values(&alerts, "alert:") {
        let (firing, silent) = expected.get(alert).copied().unwrap_or_default();
        assert!(
            firing > 0 && silent > 0,
            "{alert}: {firing} firing, {silent} not"
        );
        number += 1;
    }
    assert!(number >= 11, "{number}");
}

#[test]
fn each_alert_says_what_to_do() {
    let alerts = text(ALERTS);
    for alert in alerts.split("- alert: ").skip(1) {
        let name = alert.lines().next().unwrap();
        for part in ["summary: ", "description: >-", "severity: "] {
            assert!(alert.contains(part), "{name} has no {part}");
        }
        let (_, words) = alert.split_once("description: >-").unwrap();
        assert!(words.len() > 150, "{name} says too little: {words}");
        // On which host, or that there is none.
        assert!(alert.contains("$labels.instance"), "{name} names no host");
    }
}

#[test]
fn the_rules_ask_for_metrics_that_there_are() {
    let known = names::known();
    for file in [ALERTS, RECORDING, TESTS, PAGE] {
        let asked = names::asked_for(&text(file));
        let unknown: BTreeSet<_> = asked.difference(&known).collect();
        assert!(
            !asked.is_empty() && unknown.is_empty(),
            "{file}: {unknown:?}"
        );
    }
}

#[test]
fn the_page_of_metrics_names_each_alert_and_each_recording_rule() {
    let page = text(PAGE);
    let (alerts, recording) = (text(ALERTS), text(RECORDING));
    for name in values(&alerts, "alert:").chain(values(&recording, "record:")) {
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
    }
}
