//! The command line as such: usage, exit status, where output goes, and the configuration.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use support::daemon::fragwatch;
use support::expect::{Said, config, copy_program, report, scan, scan_with, whole};
use support::guest;
use support::{Bed, tools};

#[test]
fn wrong_usage_is_told() {
    for arguments in [
        &[] as &[&str],
        &["bogus"],
        &["scan", "--bogus"],
        &["scan", "--force", "/"],
        &["scan", "--map", "--census", "/"],
        &["scan", "--census", "/", "/"],
        &["scan", "--census"],
        &["scan", "--top", "many", "/"],
        &["scan", "--top", "-1", "/"],
        &["scan", "--sort", "colour", "/"],
        &["scan", "--min-size", "1 giga", "/"],
        &["scan", "--min-size", "-1B", "/"],
        &["scan", ""],
        &["scan", "--census", ""],
        &["protect", "--force", "/"],
        &["protect", "--undo", "--apply"],
        &["protect", "--undo", "/"],
        &["--config"],
        &["run", "now"],
        &["completions", "no-shell"],
        &["man"],
        &["man", "/nowhere"],
        &["check-config", "a", "b"],
        // Not for people, and without a socket of no use.
        &["probe-helper"],
    ] {
        let said = Said::by(fragwatch().args(arguments));
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(2), ""),
            "{arguments:?}"
        );
        assert!(!said.err.is_empty(), "{arguments:?}");
        assert!(!said.err.contains("panicked"), "{}", said.err);
    }
}

#[test]
fn help_and_what_is_generated_go_to_standard_output() {
    let dir = TempDir::new().unwrap();
    let man = dir.path().to_str().unwrap();
    for (arguments, word) in [
        (&["--help"] as &[&str], "Usage: fragwatch"),
        (&["scan", "--help"], "Exit status: 0"),
        (&["--version"], env!("CARGO_PKG_VERSION")),
        (&["completions", "bash"], "_fragwatch"),
        (&["completions", "bash"], "check-config"),
        (&["completions", "zsh"], "--census"),
        (&["completions", "fish"], "incidents"),
        (&["man", man], ""),
    ] {
        let said = Said::by(fragwatch().args(arguments));
        assert_eq!(
            (said.code, said.err.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
        assert!(said.out.contains(word), "{}", said.out);
        // What is not for people is not shown to them.
        for hidden in ["probe-helper", "restore-hints", "blockcopy-watchdog"] {
            assert!(!said.out.contains(hidden), "{arguments:?}");
        }
    }
    assert!(dir.path().join("fragwatch-scan.1").exists());
}

/// A pipe that nobody reads any more.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn output_that_nobody_reads_is_no_error() {
    let bed = support::require!(Bed::xfs());
    let path = bed.path().join("vm.img");
    guest::alternate_blocks(&path, 10);
    let path = path.to_str().unwrap();
    for arguments in [
        &["scan", path] as &[&str],
        &["scan", "--json", path],
        &["scan", "--map", path],
        &["scan", "--census", path],
        &["check-config", "--show"],
        &["completions", "bash"],
        &["--help"],
    ] {
        let child = fragwatch()
            .args(arguments)
            .stdout(closed_pipe())
            .stderr(Stdio::piped())
            .spawn();
        let output = child.unwrap().wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), &*err),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
    // What does not fit is an error.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let child = fragwatch()
        .args(["scan", path])
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn();
    let output = child.unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(!output.stderr.is_empty());
}

#[test]
fn errors_that_nobody_reads_change_no_status() {
    let dir = TempDir::new().unwrap();
    let nothing = dir.path().join("nothing");
    let nothing = nothing.to_str().unwrap();
    for (arguments, code) in [
        (&["scan", nothing] as &[&str], 1),
        (&["scan", "--json", nothing], 1),
        (&["check-config", nothing], 2),
        (&["scan", "--bogus"], 2),
    ] {
        let child = fragwatch()
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(closed_pipe())
            .spawn();
        let status = child.unwrap().wait().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}: {status}");
    }
}

#[test]
fn colours_are_for_a_terminal() {
    let bed = support::require!(Bed::xfs());
    let script = support::require!(tools::have("script"));
    let path = bed.path().join("vm.img");
    guest::alternate_blocks(&path, 10);
    let program = env!("CARGO_BIN_EXE_fragwatch");
    let command = format!("'{program}' scan '{}'", path.display());
    let on_terminal = |command: &str, variables: &[(&str, &str)]| {
        let mut script = Command::new(&script);
        script
            .args(["-qec", command, "/dev/null"])
            .stdin(Stdio::null());
        script.env_remove("NO_COLOR").env("TERM", "xterm");
        Said::by(script.envs(variables.iter().copied()))
    };
    let escape = '\u{1b}';
    // On a busy machine a line of progress comes and goes before the table.
    let table = |said: &Said| said.out[said.out.find("EXTENTS").unwrap()..].to_owned();

    let said = on_terminal(&command, &[]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.out.contains("SEVERITY") && table(&said).contains(escape),
        "{said:?}"
    );
    let said = on_terminal(&command, &[("NO_COLOR", "")]);
    assert!(table(&said).contains(escape), "{said:?}");
    for variable in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let said = on_terminal(&command, &[variable]);
        assert!(
            said.out.contains("SEVERITY") && !table(&said).contains(escape),
            "{said:?}"
        );
    }
    // JSON is never coloured, and a file is no terminal.
    let said = on_terminal(&command.replacen("' scan '", "' scan --json '", 1), &[]);
    assert!(
        said.out.contains("\"schema\":1") && !said.out.contains(escape),
        "{said:?}"
    );
    let said = Said::by(scan([] as [&str; 0]).arg(&path).env("TERM", "xterm"));
    assert!(
        said.out.contains("SEVERITY") && !said.out.contains(escape),
        "{said:?}"
    );

    // A narrow terminal gets lines that fit.
    let narrow = on_terminal(&format!("stty cols 60; {command}"), &[("NO_COLOR", "1")]);
    let table: Vec<_> = narrow
        .out
        .lines()
        .take_while(|line| !line.trim().is_empty())
        .collect();
    assert!(table.len() > 2, "{narrow:?}");
    assert!(
        table
            .iter()
            .all(|line| line.trim_end().chars().count() <= 60),
        "{narrow:?}"
    );
}

#[test]
fn the_order_is_that_of_the_key() {
    let bed = support::require!(Bed::xfs());
    let at = |name: &str| bed.path().join(name);
    // Extents, mean, size and allocated: each key has an order of its own.
    guest::alternate_blocks(&at("b.img"), 30);
    guest::sequential(&at("c.img"), 20 * guest::BLOCK);
    guest::alternate_blocks(&at("a.img"), 5);
    File::create(at("d.img")).unwrap().set_len(1 << 30).unwrap();
    guest::alternate_blocks(&at("e.img"), 5);
    for (key, expected) in [
        ("extents", "baecd"),
        ("mean", "aebcd"),
        ("size", "dbcae"),
        ("allocated", "bcaed"),
        ("path", "abcde"),
    ] {
        for top in [5, 3, 0] {
            let mut command = scan(["--json", "--min-size", "0B", "--sort", key]);
            let found = whole(command.args(["--top", &top.to_string()]).arg(bed.path()));
            let name = |image: &serde_json::Value| {
                let path = PathBuf::from(image["path"].as_str().unwrap());
                path.file_stem().unwrap().to_str().unwrap().to_owned()
            };
            let order: String = found.images().iter().map(name).collect();
            assert_eq!(order, expected[..top], "{key}");
        }
    }
    assert_eq!(report([bed.path()]).images().len(), 5);
}

/// What is said of a configuration that holds `text`, by each command that reads one.
#[track_caller]
fn refused(file: &Path) -> String {
    let file = file.to_str().unwrap();
    let errors = [
        &["check-config", file] as &[&str],
        &["check-config", "--show", file],
        &["--config", file, "check-config"],
        &["--config", file, "scan", "--json"],
        &["scan", "--config", file, "/"],
        &["--config", file, "scan", "--census", "/"],
    ]
    .map(|arguments| {
        let said = Said::by(fragwatch().args(arguments));
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(2), ""),
            "{arguments:?}"
        );
        said.err
    });
    assert!(
        errors.iter().all(|error| *error == errors[0]),
        "{errors:#?}"
    );
    errors[0].clone()
}

#[test]
fn a_wrong_configuration_is_shown_where_it_is_wrong() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("fragwatch.toml");
    // ‹What is wrong›, and what is said of it.
    for (marked, reason) in [
        ("[sampling]\ninterval = ‹60›", "60 is not text in quotes"),
        ("[sampling]\ninterval = ‹\"1 minute\"›", "is not a duration"),
        ("[sampling]\ninterval = ‹5m›", "must be quoted"),
        ("[sampling]\ninterval = ‹\"1ms\"›", "is below \"1s\""),
        ("[sampling]\nmap_max_extents = ‹0›", "0 is below 1"),
        (
            "[sampling]\nmap_max_extents = ‹\"1M\"›",
            "is not a whole number",
        ),
        (
            "[sampling]\ninterval = \"1m\"\nprobe_timeout = ‹\"2m\"›",
            "is longer than",
        ),
        (
            "[sampling]\n\n# text\n  ‹intervall› = \"1m\"",
            "unknown key sampling.intervall",
        ),
        ("[‹image›]\npaths = []", "unknown section [image]"),
        ("‹interval› = \"1m\"", "unknown key interval"),
        ("[sampling‹›\ninterval = \"1m\"", "not TOML"),
        ("[sampling]\ninterval = \"1m‹›", "not TOML"),
        ("[images]\npaths = ‹\"/srv\"›", "is not a list"),
        (
            "[images]\npaths = [\"/srv\", ‹\"images\"›]",
            "is not an absolute path",
        ),
        ("[images]\npaths = [‹\"/a[\"›]", "or a glob of one"),
        ("[images]\ninclude = [‹\"[a\"›]", "is not a glob"),
        ("[images]\nexclude = [‹\"vm/*.img\"›]", "is not a glob"),
        ("[images]\nmin_size = ‹\"1 giga\"›", "is not a size"),
        (
            "[images]\nmin_size = \"1B\"\n‹min_size› = \"2B\"",
            "duplicate key",
        ),
        ("[thresholds]\nwarning = ‹5›", "is a section, not a value"),
        (
            "[thresholds]\nwarning = { extents = ‹-5› }",
            "-5 is not a whole number",
        ),
        (
            "[thresholds.warning]\nextents = 10\n[thresholds.critical]\nextents = ‹10›",
            "not above",
        ),
        (
            "[metrics]\nlisten = ‹\"localhost:80\"›",
            "invalid socket address",
        ),
        (
            "[metrics]\nlisten = ‹\"127.0.0.1\"›",
            "invalid socket address",
        ),
    ] {
        let (before, rest) = marked.split_once('‹').unwrap();
        let (value, _) = rest.split_once('›').unwrap();
        let text = marked.replace(['‹', '›'], "");
        fs::write(&file, &text).unwrap();
        let number = before.split('\n').count();
        let line = text.lines().nth(number - 1).unwrap();
        let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1);

        let said = refused(&file);
        let mut lines = said.lines();
        let headline = lines.next().unwrap();
        let place = format!("fragwatch: {}:{number}:{}: ", file.display(), column + 1);
        assert!(headline.starts_with(&place), "{said}\n{place}");
        assert!(headline.contains(reason), "{said}");
        assert_eq!(lines.next().unwrap(), format!("    {line}"));
        let carets = "^".repeat(value.len().max(1));
        assert_eq!(
            lines.next().unwrap(),
            format!("    {}{carets}", " ".repeat(column))
        );
        let help = lines.next_back().unwrap();
        assert!(
            help.starts_with("    write: ") || help.starts_with("    help: "),
            "{said}"
        );
    }
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("fragwatch.toml");
    let fragment = dir.path().join("conf.d/10-site.toml");
    fs::create_dir(dir.path().join("conf.d")).unwrap();
    fs::write(&file, "[sampling]\ninterval = 60\nspeed = 1\n").unwrap();
    fs::write(&fragment, "[images]\nmin_size = 5\n").unwrap();
    let said = refused(&file);
    for place in [
        format!("{}:2:12: ", file.display()),
        format!("{}:3:1: ", file.display()),
    ] {
        assert!(said.contains(&place), "{said}");
    }
    assert!(
        said.contains(&format!("{}:2:12: ", fragment.display())),
        "{said}"
    );
}

#[test]
fn a_configuration_that_is_no_file_is_refused() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("directory")).unwrap();
    mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    fs::write(at("large"), vec![b'#'; (1 << 20) + 1]).unwrap();
    fs::write(at("latin"), b"# gr\xf6\xdfe\n[sampling]\n").unwrap();
    fs::write(at("binary"), b"\0\x1b[31m\x07").unwrap();
    for (name, reason) in [
        ("missing", ": there is no such file"),
        ("directory", ": is a directory, not a file"),
        ("pipe", ": is a pipe, not a file"),
        ("socket", ": is a socket, not a file"),
        ("large", ": is larger than 1 MiB, no configuration is"),
        ("latin", ":1:5: this is not UTF-8"),
        ("binary", ":1:1: "),
    ] {
        let said = refused(&at(name));
        let expected = format!("fragwatch: {}{reason}", at(name).display());
        assert!(said.starts_with(&expected), "{said}");
        assert!(!said.contains(['\0', '\u{1b}', '\u{7}']), "{said:?}");
    }
}

#[test]
fn a_configuration_that_may_not_be_read_is_refused() {
    let bed = support::require!(Bed::xfs());
    let setpriv = support::require!(tools::have("setpriv"));
    let [program, file] = ["fragwatch", "fragwatch.toml"].map(|name| bed.path().join(name));
    copy_program(env!("CARGO_BIN_EXE_fragwatch"), &program);
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = Command::new(setpriv);
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let said = Said::by(command.arg(program).arg("check-config").arg(&file));
    assert_eq!((said.code, said.out.as_str()), (Some(2), ""));
    let expected = format!(
        "fragwatch: {}: cannot be read: Permission denied",
        file.display()
    );
    assert!(said.err.starts_with(&expected), "{}", said.err);
}

#[test]
fn a_right_configuration_is_shown_as_it_holds() {
    let dir = TempDir::new().unwrap();
    let file = config(
        dir.path(),
        "paths = ['/srv/vm \"1\"']\n[sampling]\ninterval = '90s'\n",
    );
    fs::create_dir(dir.path().join("conf.d")).unwrap();
    let fragment = dir.path().join("conf.d/10.toml");
    fs::write(&fragment, "[sampling]\ninterval = '2m'\n").unwrap();
    let check = |arguments: &[&str], file: &Path| {
        let said = Said::by(fragwatch().arg("check-config").args(arguments).arg(file));
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
        said.out
    };
    let files = format!("{}, {}", file.display(), fragment.display());
    assert_eq!(
        check(&[], &file),
        format!("configuration is right: {files}\n")
    );
    let shown = check(&["--show"], &file);
    for line in [
        "paths = ['/srv/vm \"1\"']",
        "min_size = \"0B\"",
        "interval = \"2m\"",
    ] {
        assert!(shown.lines().any(|l| l == line), "{shown}");
    }
    // What is shown is a configuration, and the same one.
    let again = dir.path().join("again/fragwatch.toml");
    fs::create_dir(dir.path().join("again")).unwrap();
    fs::write(&again, &shown).unwrap();
    assert_eq!(check(&["--show"], &again), shown);
    // It does not control the terminal.
    fs::write(&file, "[images]\npaths = [\"/\\u001b2J\\u009b\\u202e\"]\n").unwrap();
    let shown = check(&["--show"], &file);
    let harmful = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!shown.contains(harmful), "{shown:?}");
}

#[test]
fn scan_takes_its_paths_from_the_configuration() {
    let bed = support::require!(Bed::xfs());
    let other = support::require!(Bed::ext4());
    for bed in [&bed, &other] {
        guest::sequential(&bed.path().join("vm.img"), guest::BLOCK);
    }
    let paths = format!("paths = ['{}', '/nowhere']", bed.path().display());
    let file = config(bed.path(), &paths);
    let said = Said::by(&mut scan_with(&file));
    assert_eq!((said.code, said.err.as_str()), (Some(1), ""));
    assert_eq!(said.json().paths(), [bed.path().join("vm.img")]);
    assert_eq!(
        said.json().errors(),
        [("/nowhere", "No such file or directory")]
    );
    // The command line's take their place.
    let found = whole(scan_with(&file).arg(other.path()));
    assert_eq!(found.paths(), [other.path().join("vm.img")]);
}

#[test]
fn a_table_is_as_wide_as_columns() {
    let bed = support::require!(Bed::xfs());
    let path = bed.path().join("v".repeat(100) + ".img");
    guest::alternate_blocks(&path, 10);
    let lines = |columns: &str| {
        let mut scan = fragwatch();
        let said = scan.arg("scan").arg(&path).env("COLUMNS", columns).output();
        let text = String::from_utf8(said.unwrap().stdout).unwrap();
        // A sentence below the table is broken by the terminal.
        let table = text.lines().take_while(|line| !line.is_empty());
        table.map(|line| line.chars().count()).max().unwrap()
    };
    for columns in [60, 80, 132] {
        assert!(lines(&columns.to_string()) <= columns, "{columns}");
    }
    assert!(lines("0") > 132 && lines("wide") > 132);
}
