//! The role, run against this machine: what it renders is a configuration, and a wrong one is not
//! put in force.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use crate::support::rundir::{self, Place};
use crate::support::{self, tools};
use crate::tree;

fn ansible(program: &str, dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    let command = command
        .args(arguments)
        .current_dir(tree("packaging/ansible"));
    // Its own files are kept out of the home of whoever runs the tests.
    let command = command.env("HOME", dir).env("ANSIBLE_HOME", dir);
    command.env("LC_ALL", "C.UTF-8").output().unwrap()
}

/// Renders `config`; package and service are left alone.
fn render(dir: &Path, config: &serde_json::Value) -> Output {
    let variables = json!({
        "ansible_become": false,
        "fragwatch_install": false,
        "fragwatch_config_dir": dir.join("etc"),
        "fragwatch_program": env!("CARGO_BIN_EXE_fragwatch"),
        "fragwatch_config": config,
    });
    let variables = variables.to_string();
    let arguments = [
        "-i",
        "localhost,",
        "-c",
        "local",
        "-e",
        &variables,
        "site.yml",
    ];
    ansible("ansible-playbook", dir, &arguments)
}

#[test]
fn ansible_lint_finds_nothing() {
    support::require!(tools::have("ansible-lint"));
    let dir = rundir::new_dir(Place::Disk).unwrap();
    let checked = ansible(
        "ansible-lint",
        &dir,
        &["--offline", "--strict", "site.yml", "roles"],
    );
    assert!(checked.status.success(), "{checked:?}");
    rundir::remove(&dir);
}

#[test]
fn the_role_renders_a_configuration_that_passes() {
    support::require!(tools::have("ansible-playbook"));
    let dir = rundir::new_dir(Place::Disk).unwrap();
    let syntax = ["-i", "localhost,", "--syntax-check", "site.yml"];
    let checked = ansible("ansible-playbook", &dir, &syntax);
    assert!(checked.status.success(), "{checked:?}");

    let config = json!({
        "images": {"paths": ["/srv/vm \"a\"", "/srv/ö"]},
        "thresholds": {
            "warning": {"extents": 1234, "growth_per_day": "never"},
            "override": [{"images": ["db-*"], "critical": {"extents": 99999}}],
        },
        "rescue": {"dry_run": true},
        "defrag": {"keep_free": "7%", "blockcopy": {"enabled": true, "directory": "/srv/copies"}},
        "maintenance": {
            "window": [{"days": ["Sat"], "start": "01:00", "duration": "4h"}],
            "lock": {"url": "http://locks:3333", "group": "array-7"},
            "hold": {"url": "http://prometheus:9090", "query": "ALERTS{alertstate=\"firing\"}"},
        },
        "klog": {"rule": [{"name": "disk", "pattern": "md/raid\\d+: failure"}, {"name": "b", "pattern": "c"}]},
    });
    let done = render(&dir, &config);
    assert!(done.status.success(), "{done:?}");
    let rendered = dir.join("etc/conf.d/50-ansible.toml");
    let shown = Command::new(env!("CARGO_BIN_EXE_fragwatch"))
        .args(["check-config", "--show"])
        .arg(&rendered)
        .output()
        .unwrap();
    assert!(shown.status.success(), "{shown:?}");
    let shown = String::from_utf8(shown.stdout).unwrap();
    for part in [
        "/srv/ö",
        "[defrag.blockcopy]\nenabled = true",
        "/srv/copies",
        "1_234",
        "99_999",
        "dry_run = true",
        "raid\\d+",
        "http://locks:3333",
        "array-7",
        "http://prometheus:9090",
        "ALERTS{",
    ] {
        let plain = part.replace('_', "");
        assert!(
            shown.contains(part) || shown.contains(&plain),
            "{part}: {shown}"
        );
    }
    let again = render(&dir, &config);
    let again = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(again.contains("changed=0"), "{again}");

    let before = fs::read(&rendered).unwrap();
    let wrong = render(&dir, &json!({"images": {"path": ["/srv/vm"]}}));
    assert!(!wrong.status.success(), "{wrong:?}");
    assert_eq!(fs::read(&rendered).unwrap(), before);
    rundir::remove(&dir);
}
