//! The manual pages that `fragwatch man` writes: one for each subcommand, every key and every metric,
//! and nothing that man(1) complains about.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::support::{self, fragwatch, tools};
use crate::{names, tree};

/// All pages in a directory of their own.
fn pages() -> (TempDir, Vec<PathBuf>) {
    let dir = TempDir::new().unwrap();
    let done = fragwatch().arg("man").arg(dir.path()).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let entries = fs::read_dir(dir.path()).unwrap().flatten();
    let pages = entries.map(|entry| entry.path()).collect();
    (dir, pages)
}

/// A page as its source, in which every hyphen is that of a command line.
fn source(dir: &Path, name: &str) -> String {
    let text = fs::read_to_string(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    text.replace("\\-", "-").replace("\\(dq", "\"")
}

fn output(arguments: &[&str]) -> String {
    let said = fragwatch().args(arguments).output().unwrap();
    String::from_utf8(said.stdout).unwrap()
}

#[test]
fn each_subcommand_has_a_page_that_the_first_one_names() {
    let (dir, _pages) = pages();
    let first = source(dir.path(), "fragwatch.1");
    let help = output(&["--help"]);
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let names = commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let mut number = 0;
    for name in names.filter(|name| !name.is_empty() && *name != "help") {
        assert!(first.contains(&format!("fragwatch-{name}(1)")), "{name}");
        assert!(
            source(dir.path(), &format!("fragwatch-{name}.1")).contains(".SH DESCRIPTION"),
            "{name}"
        );
        number += 1;
    }
    assert!(number > 10, "{help}");
}

#[test]
fn the_page_of_the_configuration_names_each_key_with_its_default() {
    let (dir, _pages) = pages();
    // What is shown has no underscores in numbers.
    let page = source(dir.path(), "fragwatch.toml.5").replace('_', "");
    let empty = dir.path().join("empty.toml");
    fs::write(&empty, "").unwrap();
    let shown = output(&["check-config", "--show", empty.to_str().unwrap()]).replace('_', "");
    let mut section = "";
    let mut number = 0;
    for line in shown.lines().filter(|line| !line.is_empty()) {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
            continue;
        }
        let (key, value) = line.split_once(" = ").unwrap();
        let whole = page.contains(&format!(".SS [{section}]\n"));
        let (name, table) = match section.split_once('.') {
            Some(parts) if !whole => parts,
            _ => (section, ""),
        };
        let (_, about) = page.split_once(&format!(".SS [{name}]\n")).unwrap();
        let about = about.split("\n.SS [").next().unwrap();
        // Tables of thresholds are written in one line in the file.
        let described = about.lines().any(|text| match table {
            "" => text == format!("\\fB{key}\\fR = {value}"),
            table => text.starts_with(&format!("\\fB{table}\\fR = {{")) && text.contains(line),
        });
        assert!(described, "[{section}] {line}");
        number += 1;
    }
    assert!(number > 40, "{shown}");
    for list in [
        "[[thresholds.override]]",
        "[[klog.rule]]",
        "[[maintenance.window]]",
        "[[maintenance.blackout]]",
    ] {
        assert!(page.contains(&format!(".SS {list}\n")), "{list}");
    }
}

#[test]
fn the_page_of_metrics_names_each_metric() {
    let (dir, _pages) = pages();
    let page = source(dir.path(), "fragwatch-metrics.7");
    for name in names::known() {
        let ended = ['{', '\\']
            .iter()
            .any(|end| page.contains(&format!("\\fB{name}{end}")));
        assert!(ended, "{name}");
    }
}

#[test]
fn man_finds_no_fault_in_them() {
    let man = support::require!(tools::have("man"));
    let (_dir, pages) = pages();
    assert!(pages.len() > 14, "{pages:?}");
    for page in pages {
        let mut command = Command::new(&man);
        let command = command
            .args(["--warnings", "-E", "ascii", "-P", "cat", "-l"])
            .arg(&page);
        let shown = command
            .env("LC_ALL", "C.UTF-8")
            .env("MANWIDTH", "80")
            .output()
            .unwrap();
        let complaints = String::from_utf8_lossy(&shown.stderr);
        assert!(
            shown.status.success() && complaints.is_empty(),
            "{}: {complaints}",
            page.display()
        );
        let text = String::from_utf8_lossy(&shown.stdout);
        assert!(text.contains("SEE ALSO"), "{}: {text}", page.display());
    }
}

#[test]
fn they_have_the_date_of_the_version() {
    let changelog = fs::read_to_string(tree("packaging/deb/changelog")).unwrap();
    let signed = changelog
        .lines()
        .find(|line| line.starts_with(" -- "))
        .unwrap();
    let (_, date) = signed.split_once(">  ").unwrap();
    let date = jiff::fmt::rfc2822::parse(date).unwrap().date().to_string();
    let (dir, pages) = pages();
    for page in pages {
        let page = source(dir.path(), page.file_name().unwrap().to_str().unwrap());
        let title = page.lines().find(|line| line.starts_with(".TH ")).unwrap();
        assert!(title.contains(&date), "{title}");
    }
}

#[test]
fn the_packages_install_all_of_them() {
    let manifest = fs::read_to_string(tree("Cargo.toml")).unwrap();
    let build = fs::read_to_string(tree("packaging/build")).unwrap();
    for section in ["man1", "man5", "man7"] {
        let to = format!("/usr/share/man/{section}/");
        let installed = manifest
            .matches(&format!("target/package/{section}/*"))
            .count();
        assert!(installed == 2 && manifest.contains(&to), "{section}");
        assert!(build.contains(section), "{section}");
    }
}
