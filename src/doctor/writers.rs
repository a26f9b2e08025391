//! How much each process has written between the two readings.
//!
//! /proc/PID/io takes a lock that execve(2) holds: before Linux 5.11 while it reads the program
//! (cred_guard_mutex), which can hang with a file system. So a thread of its own reads it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::files::{self, Host, Reading};
use super::outcome::NotChecked;
use crate::model::path::printable;
use crate::sys::proc::{Stat, counters};

/// How many of them are looked up.
const MOST: usize = 10;

/// A process that has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// Its ID.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// What it has dirtied, or written past the page cache, in bytes (`write_bytes`, proc_pid_io(5)).
    pub written: u64,
}

/// Those who wrote between two readings, `interval` apart, the most first.
pub fn read(host: &Host, interval: Duration) -> Reading<Vec<Writer>> {
    let before = written(host)?;
    std::thread::sleep(interval);
    let now = written(host)?.into_iter();
    let rise = |(pid, now): (u32, u64)| {
        let written = now.saturating_sub(*before.get(&pid)?);
        (written > 0).then_some((pid, written))
    };
    let mut rises: Vec<_> = now.filter_map(rise).collect();
    rises.sort_by_key(|(pid, written)| (std::cmp::Reverse(*written), *pid));
    let writer = |(pid, written)| {
        let text = files::read(&host.path(&format!("proc/{pid}/stat"))).ok()?;
        let comm = printable(Stat::parse(&text)?.comm);
        Some(Writer { pid, comm, written })
    };
    Ok(rises.into_iter().take(MOST).filter_map(writer).collect())
}

fn written(host: &Host) -> Reading<BTreeMap<u32, u64>> {
    let entries = fs::read_dir(host.path("proc"));
    let entries = entries.map_err(|error| NotChecked::because(format!("/proc: {error}")))?;
    let process = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let text = files::read(&entry.path().join("io")).ok()?;
        let counter = |of: &[u8]| counters(&text).find_map(|(name, it)| (name == of).then_some(it));
        // Dirty pages that were truncated before they were written.
        let cancelled = counter(b"cancelled_write_bytes").unwrap_or(0);
        Some((pid, counter(b"write_bytes")?.saturating_sub(cancelled)))
    };
    Ok(entries.flatten().filter_map(process).collect())
}
