//! What the program asks the kernel for, against what the unit refuses: no call that the filter turns
//! away, no memory that is writable and executable, no other kind of socket.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::support::rundir::{self, Place};
use crate::support::{self, Bed, RunningDaemon, fragwatch, free_address, guest, tools};
use crate::unit;

/// The calls of a group of systemd's, `@mount` for instance.
fn group(systemd: &Path, name: &str) -> BTreeSet<String> {
    let listed = Command::new(systemd)
        .args(["syscall-filter", "--no-pager", name])
        .output()
        .unwrap();
    assert!(listed.status.success(), "{listed:?}");
    let mut calls = BTreeSet::new();
    for line in String::from_utf8(listed.stdout).unwrap().lines() {
        match line.strip_prefix("    ").map(str::trim) {
            Some(inner) if inner.starts_with('@') => calls.extend(group(systemd, inner)),
            Some(call) if !call.starts_with('#') => drop(calls.insert(call.to_owned())),
            _ => {}
        }
    }
    calls
}

/// All that the unit's filter turns away.
fn refused(systemd: &Path) -> BTreeSet<String> {
    let unit = unit::service();
    let set = unit::settings(&unit);
    let (_, filter) = set
        .iter()
        .find(|(name, _)| *name == "SystemCallFilter")
        .unwrap();
    let groups = filter.strip_prefix('~').unwrap().split(' ');
    groups.flat_map(|name| group(systemd, name)).collect()
}

/// A line of strace: the call and what it was given.
fn call(line: &str) -> Option<(&str, &str)> {
    // After the process id.
    let (_, rest) = line.split_once(' ')?;
    let (name, arguments) = rest.trim_start().split_once('(')?;
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.is_empty() && name.chars().all(word)).then_some((name, arguments))
}

/// Why the sandbox would refuse a call.
fn refusal(refused: &BTreeSet<String>, name: &str, arguments: &str) -> Option<&'static str> {
    let both = arguments.contains("PROT_WRITE") && arguments.contains("PROT_EXEC");
    let unix_or_ip = ["AF_UNIX", "AF_INET"];
    match name {
        name if refused.contains(name) => Some("SystemCallFilter"),
        "mmap" if both => Some("MemoryDenyWriteExecute"),
        "mprotect" if arguments.contains("PROT_EXEC") => Some("MemoryDenyWriteExecute"),
        "socket"
            if !unix_or_ip
                .iter()
                .any(|family| arguments.starts_with(family)) =>
        {
            Some("RestrictAddressFamilies")
        }
        "unshare" | "setns" => Some("RestrictNamespaces"),
        _ => None,
    }
}

/// The program, traced into `file`. The tracer is the one that is beside it (-D), so that the
/// program is our child and ends as such.
fn traced(strace: &Path, file: &Path, arguments: &[&str]) -> Command {
    let plain = fragwatch();
    let mut command = Command::new(strace);
    command.args(["-D", "-f", "-o"]).arg(file);
    command.arg(plain.get_program()).args(arguments);
    command
}

/// Polls until there is a value.
fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(value) = poll() {
            return value;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("not seen: {what}");
}

/// A trace that has come to its end: the tracer writes on for a moment.
fn whole(file: &Path) -> String {
    let mut before = 0;
    wait_for("the end of a trace", || {
        let text = fs::read_to_string(file).unwrap_or_default();
        let ended = text.len() == before && text.contains("+++ ");
        before = text.len();
        ended.then_some(text)
    })
}

fn trace_all(strace: &Path, bed: &Bed, dir: &Path) -> Vec<PathBuf> {
    let image = bed.path().join("db-1.raw");
    guest::alternate_blocks(&image, 100);
    let address = free_address();
    let config = dir.join("fragwatch.toml");
    // The rescue is off: it would act on what other tests do to this machine. The drill tries it.
    let text = format!(
        "[images]\npaths = [{:?}]\nmin_size = \"0B\"\n[sampling]\ninterval = \"1s\"\n\
         probe_timeout = \"1s\"\nmap_interval = \"1s\"\n\
         [metrics]\nlisten = \"{address}\"\ntextfile = {:?}\n[rescue]\nenabled = false\n",
        bed.path(),
        dir.join("fragwatch.prom")
    );
    fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let files = ["daemon", "drill", "census", "scan"].map(|name| dir.join(name));

    let mut daemon = traced(strace, &files[0], &["run", "--config", config]);
    let daemon = RunningDaemon::spawn(daemon.env_remove("NOTIFY_SOCKET"), address);
    wait_for("the map", || {
        let page = daemon.get("/metrics").body;
        page.contains("fragwatch_image_fragments").then_some(())
    });
    assert!(daemon.ask("status").output().unwrap().status.success());
    drop(daemon);
    for (file, arguments) in files[1..].iter().zip([
        &["drill", "--act", "--config", config][..],
        &["scan", "--census", bed.path().to_str().unwrap()],
        &["scan", "--map", image.to_str().unwrap()],
    ]) {
        traced(strace, file, arguments).output().unwrap();
    }
    files.to_vec()
}

#[test]
fn the_program_makes_no_call_that_the_unit_refuses() {
    let systemd = support::require!(tools::have("systemd-analyze"));
    let strace = support::require!(tools::have("strace"));
    let bed = support::require!(Bed::xfs());
    let refused = refused(&systemd);
    assert!(
        refused.contains("mount") && refused.contains("reboot"),
        "{refused:?}"
    );
    let dir = rundir::new_dir(Place::Disk).unwrap();
    let traces = trace_all(&strace, &bed, &dir);
    let mut seen = BTreeSet::new();
    for trace in traces {
        let text = whole(&trace);
        for (name, arguments) in text.lines().filter_map(call) {
            let why = refusal(&refused, name, arguments);
            assert_eq!(why, None, "{name}({arguments}");
            seen.insert(name.to_owned());
        }
    }
    // That it was looked at: the rescue's, the census's, the server's.
    for call in [
        "mlockall",
        "sched_setscheduler",
        "ioctl",
        "open_by_handle_at",
        "socket",
        "mmap",
    ] {
        assert!(seen.contains(call), "{call} is not among {seen:?}");
    }
    rundir::remove(&dir);
}

#[test]
fn what_the_sandbox_would_refuse_is_found() {
    let refused = BTreeSet::from(["mount".to_owned()]);
    let why = |line| call(line).and_then(|(name, arguments)| refusal(&refused, name, arguments));
    assert_eq!(why("12 mount(\"a\", \"b\") = 0"), Some("SystemCallFilter"));
    assert_eq!(
        why("12 socket(AF_NETLINK, 3, 0) = 4"),
        Some("RestrictAddressFamilies")
    );
    assert_eq!(why("12 socket(AF_INET6, 3, 0) = 4"), None);
    let mapped = "1 mmap(NULL, 9, PROT_READ|PROT_WRITE|PROT_EXEC, MAP_PRIVATE, -1, 0) = 0";
    assert_eq!(why(mapped), Some("MemoryDenyWriteExecute"));
    assert_eq!(why("12 +++ exited with 0 +++"), None);
}
