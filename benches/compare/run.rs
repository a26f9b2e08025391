//! Runs commands to the end, with what they print thrown away, and takes what they cost.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The program that is measured, as cargo built it for this benchmark: as for a release.
pub const FRAGWATCH: &str = env!("CARGO_BIN_EXE_fragwatch");

/// A command of a program with arguments.
pub fn command<const N: usize>(program: &str, arguments: [&dyn AsRef<OsStr>; N]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments.map(AsRef::as_ref))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// How long a command takes, from before it is started until it has ended, in seconds.
pub fn time(command: &mut Command) -> f64 {
    let began = Instant::now();
    let status = command.status().expect("it starts");
    let took = began.elapsed();
    assert_success(command, status);
    took.as_secs_f64()
}

/// The most memory that a command and its children occupy together at any moment, in bytes: the
/// peak of the sum of their proportional set sizes. A page that several of them share, as those of
/// the program itself, counts once (`Pss`, proc_pid_smaps(5)).
///
/// Read again and again while it runs, so what is only taken in the last millisecond is missed;
/// and never in a run whose time is taken. The rusage of a child (wait4(2)) would not do: it
/// contains what the process had before it became the command, that is what we have.
pub fn peak_memory(command: &mut Command) -> f64 {
    let mut child = command.spawn().expect("it starts");
    let mut peak = 0;
    let status = loop {
        let now = family(child.id())
            .into_iter()
            .filter_map(proportional_bytes);
        peak = peak.max(now.sum::<u64>());
        if let Some(status) = child.try_wait().expect("it is a child") {
            break status;
        }
        std::thread::sleep(Duration::from_micros(200));
    };
    assert_success(command, status);
    assert!(peak > 0, "{command:?} ended before it was looked at");
    peak as f64
}

/// Has a command run over and over for so long.
pub fn over_and_over(command: &mut Command, duration: Duration) {
    let began = Instant::now();
    while began.elapsed() < duration {
        time(command);
    }
}

/// A process and all that come from it.
pub fn family(ancestor: u32) -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let parents: Vec<_> = entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, stat_field(pid, 4)? as u32))
        })
        .collect();
    let mut family = BTreeSet::from([ancestor]);
    loop {
        let before = family.len();
        for (pid, parent) in &parents {
            if family.contains(parent) {
                family.insert(*pid);
            }
        }
        if family.len() == before {
            return family;
        }
    }
}

/// A numeric field of /proc/PID/stat, numbered as in proc(5), from 4 on.
pub fn stat_field(pid: u32, number: usize) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks and parentheses; behind it comes field 3.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(number - 3)?.parse().ok()
}

/// A line of /proc/PID/status, in bytes. Nothing if the process has ended.
pub fn status_bytes(pid: u32, name: &str) -> Option<u64> {
    kib(
        &fs::read_to_string(format!("/proc/{pid}/status")).ok()?,
        name,
    )
}

/// What of a process's memory is its own, and its share of what it shares with others.
pub fn proportional_bytes(pid: u32) -> Option<u64> {
    kib(
        &fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?,
        "Pss",
    )
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

fn assert_success(command: &Command, status: ExitStatus) {
    assert!(status.success(), "{command:?}: {status}");
}
