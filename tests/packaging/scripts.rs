//! The maintainer scripts, in a made-up host: what they ask systemd for, and what they remove.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::rundir::{self, Place};
use crate::support::script::script;
use crate::tree;

/// A directory that stands for a host, with programs that write down how they were called.
struct Host(PathBuf);

impl Host {
    /// `accepts`: whether the program finds the configuration right.
    fn new(accepts: bool) -> Host {
        let host = Host(rundir::new_dir(Place::Disk).unwrap());
        for dir in [
            "run/systemd/system",
            "usr/bin",
            "var/lib/fragwatch",
            "etc/fragwatch/conf.d",
        ] {
            fs::create_dir_all(host.0.join(dir)).unwrap();
        }
        fs::write(host.0.join("var/lib/fragwatch/history.db"), "years").unwrap();
        fs::write(host.0.join("etc/fragwatch/conf.d/mine.toml"), "").unwrap();
        let log = host.0.join("calls");
        fs::write(&log, "").unwrap();
        for program in ["deb-systemd-helper", "deb-systemd-invoke", "systemctl"] {
            let note = format!("echo \"{program} $*\" >>{}", log.display());
            host.program(program, &format!("{note}\n"));
        }
        let check = if accepts {
            "exit 0"
        } else {
            "echo wrong >&2; exit 2"
        };
        host.program(
            "fragwatch",
            &format!("[ \"$1\" = check-config ] || exit 9\n{check}\n"),
        );
        host
    }

    fn program(&self, name: &str, text: &str) {
        script(&self.0.join("usr/bin").join(name), text);
    }

    /// Runs a script of the tree as the package manager does, in this host.
    fn run(&self, script: &str, arguments: &[&str]) -> Output {
        let mut text = fs::read_to_string(tree("packaging").join(script)).unwrap();
        for path in [
            "/usr/bin/",
            "/run/systemd/",
            "/var/lib/",
            "/etc/",
            "/usr/share/",
        ] {
            text = text.replace(path, &format!("{}{path}", self.0.display()));
        }
        let path = format!("{}:/usr/bin:/bin", self.0.join("usr/bin").display());
        let mut shell = Command::new("sh");
        let shell = shell.arg("-ec").arg(text).arg(script).args(arguments);
        let done = shell.env_clear().env("PATH", path).output().unwrap();
        assert!(done.status.success(), "{script} {arguments:?}: {done:?}");
        done
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.0.join("calls")).unwrap()
    }

    fn has(&self, path: &str) -> bool {
        Path::new(&self.0).join(path).exists()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        rundir::remove(&self.0);
    }
}

#[test]
fn deb_starts_it_on_install_and_anew_on_upgrade() {
    let host = Host::new(true);
    host.run("deb/postinst", &["configure", ""]);
    let calls = host.calls();
    assert!(
        calls.contains("deb-systemd-helper enable fragwatch.service"),
        "{calls}"
    );
    assert!(
        calls.contains("deb-systemd-invoke start fragwatch.service"),
        "{calls}"
    );
    assert!(
        calls.contains("daemon-reload") && !calls.contains("restart"),
        "{calls}"
    );

    let host = Host::new(true);
    host.run("deb/prerm", &["upgrade", "0.2.0-1"]);
    assert_eq!(host.calls(), "", "the old daemon watches on");
    host.run("deb/postinst", &["configure", "0.1.0-1"]);
    assert!(
        host.calls()
            .contains("deb-systemd-invoke restart fragwatch.service")
    );
}

#[test]
fn a_configuration_that_does_not_pass_leaves_the_old_daemon_running() {
    for (script, arguments) in [
        ("deb/postinst", ["configure", "0.1.0-1"]),
        ("deb/postinst", ["configure", ""]),
        ("rpm/post", ["2", ""]),
        ("rpm/post", ["1", ""]),
    ] {
        let host = Host::new(false);
        let said = host.run(script, &arguments);
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        let calls = host.calls();
        assert!(
            !calls.contains("start fragwatch"),
            "{script} {arguments:?}: {calls}"
        );
        assert!(calls.contains("daemon-reload"), "{script}: {calls}");
        assert!(
            said.contains("wrong") && said.contains("systemctl restart fragwatch"),
            "{said}"
        );
    }
}

#[test]
fn deb_stops_it_on_removal_and_forgets_on_purge() {
    let host = Host::new(true);
    host.run("deb/prerm", &["remove"]);
    assert!(
        host.calls()
            .contains("deb-systemd-invoke stop fragwatch.service")
    );
    host.run("deb/postrm", &["remove"]);
    host.run("deb/postrm", &["upgrade", "0.2.0-1"]);
    assert!(host.has("var/lib/fragwatch/history.db") && host.has("etc/fragwatch/conf.d/mine.toml"));
    host.run("deb/postrm", &["purge"]);
    assert!(!host.has("var/lib/fragwatch") && !host.has("etc/fragwatch"));
    assert!(host.has("var/lib") && host.has("etc"));
}

#[test]
fn rpm_asks_the_presets_and_stops_only_the_last() {
    let host = Host::new(true);
    host.run("rpm/post", &["1"]);
    let calls = host.calls();
    assert!(
        calls.contains("systemctl --no-reload preset fragwatch.service"),
        "{calls}"
    );
    // The made-up systemctl says that it is enabled.
    assert!(
        calls.contains("systemctl start fragwatch.service"),
        "{calls}"
    );

    let host = Host::new(true);
    host.run("rpm/post", &["2"]);
    host.run("rpm/preun", &["1"]);
    let calls = host.calls();
    assert!(
        calls.contains("systemctl try-restart fragwatch.service"),
        "{calls}"
    );
    assert!(
        !calls.contains("preset") && !calls.contains("disable"),
        "{calls}"
    );

    let host = Host::new(true);
    host.run("rpm/preun", &["0"]);
    host.run("rpm/postun", &["0"]);
    assert!(host.calls().contains("disable --now fragwatch.service"));
    assert!(host.has("var/lib/fragwatch/history.db"));
}

/// What the build prints, and whether it succeeds, where it lints with these programs: `rpmlint` finds
/// a fault.
fn lint_with(programs: &[&str]) -> (bool, String) {
    let build = fs::read_to_string(tree("packaging/build")).unwrap();
    let (_, function) = build.split_once("\nlint() {").unwrap();
    let (function, _) = function.split_once("\n}\n").unwrap();
    let host = Host::new(true);
    for program in programs {
        host.program(program, "echo a fault\nexit 64\n");
    }
    let script = format!("lint() {{{function}\n}}\nlint rpmlint some.rpm\necho the end");
    let mut shell = Command::new("/bin/bash");
    let shell = shell.args(["-euc", &script]).env_clear();
    let done = shell.env("PATH", host.0.join("usr/bin")).output().unwrap();
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    (done.status.success(), out)
}

#[test]
fn a_lint_program_is_run_only_with_the_programs_that_it_calls() {
    let skipped =
        |missing: &str| format!("{missing} is not installed: skipping rpmlint\nthe end\n");
    assert_eq!(lint_with(&[]), (true, skipped("rpmlint")));
    assert_eq!(lint_with(&["rpm"]), (true, skipped("rpmlint")));
    assert_eq!(lint_with(&["rpmlint"]), (true, skipped("rpm")));
    let complete = lint_with(&["rpmlint", "rpm"]);
    assert_eq!(complete, (false, "a fault\n".to_owned()));
}

#[test]
fn the_changelog_of_the_package_has_its_version() {
    let changelog = fs::read_to_string(tree("packaging/deb/changelog")).unwrap();
    let first = changelog.lines().next().unwrap();
    assert!(
        first.starts_with(concat!("fragwatch (", env!("CARGO_PKG_VERSION"), "-")),
        "{first}"
    );
}

#[test]
fn everything_that_the_packages_hold_is_there() {
    let manifest = fs::read_to_string(tree("Cargo.toml")).unwrap();
    let (_, packages) = manifest.split_once("[package.metadata.deb]").unwrap();
    let sources = packages.lines().filter_map(|line| {
        let line = line.trim();
        let quoted = line
            .strip_prefix("[\"")
            .or_else(|| line.strip_prefix("{ source = \""))?;
        quoted.split('"').next()
    });
    // What packaging/build makes is not there yet; the rest it takes from the tree.
    let sources = sources.map(|s| s.strip_prefix("target/package/tree/").unwrap_or(s));
    let kept: Vec<_> = sources
        .filter(|source| !source.starts_with("target/"))
        .collect();
    assert!(kept.len() > 10, "{kept:?}");
    for source in kept {
        let (dir, name) = source.rsplit_once('/').unwrap_or((".", source));
        let (begin, end) = name.split_once('*').unwrap_or((name, ""));
        let found = fs::read_dir(tree(dir)).unwrap().flatten().any(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.starts_with(begin) && name.ends_with(end)
        });
        assert!(found, "{source}");
    }
}
