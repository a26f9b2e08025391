//! Devices that slow writers down: their share of the dirty memory, and the commits of their journals.

use std::time::Duration;

use super::memory::dirty;
use super::waiting::throttled_tasks;
use crate::doctor::files::{Entry, Reading};
use crate::doctor::outcome::{Checked, Found};
use crate::doctor::readings::Readings;
use crate::model::path::printable;
use crate::model::{Bytes, BytesPerSecond, Roughly, Share};
use crate::sys::proc::{counters, number};

const RATIOS: &str = "sys/class/bdi/*/max_ratio";
const STRICT: &str = "sys/class/bdi/*/strict_limit";
const STATS: &str = "sys/kernel/debug/bdi/*/stats";
const NAMES: &str = "sys/class/block/*/dev";
const JOURNALS: &str = "proc/fs/jbd2/*/info";
/// From this share of its limit on, writers to a device are slowed down noticeably.
const NEAR: Share = Share::percent(80);
/// A journal that commits for this share of the time, in percent.
const COMMITTING: u64 = 40;

/// Devices at a limit of their own, while writers are throttled. The limits by themselves are no finding:
/// somebody has set them, and they hurt only then.
pub fn limited(readings: &Readings) -> Checked {
    let throttled = !throttled_tasks(readings)?.is_empty();
    // Then each device that is written to is near its share, which is no finding of its own.
    let host_is_full = !dirty(readings)?.is_empty();
    let mut found = Vec::new();
    for ratio in readings.now.all(RATIOS)?.iter().filter(|_| throttled) {
        // `0:53-fuse` is strict by design, and its writers wait for a daemon, not for a disk.
        if ratio.star.starts_with("0:") {
            continue;
        }
        let share = value(ratio).unwrap_or(100);
        let strict = of(readings, STRICT, &ratio.star)?.and_then(value) == Some(1);
        let stats = of(readings, STATS, &ratio.star)?.and_then(Stats::of);
        // The limit of a device that has written nothing lately is 0.
        let stats = stats.filter(|it| it.limit > Bytes(0));
        let is_full = stats.is_some_and(|it| NEAR.is_reached_by(it.dirty, it.limit));
        if share >= 100 && !strict && (!is_full || host_is_full) {
            continue;
        }
        let mut what = format!(
            "Writers are throttled, and {} ",
            name(readings, &ratio.star)
        );
        what.push_str(&match (share < 100, strict) {
            (true, false) => format!("may hold at most {share} % of the dirty memory"),
            (true, true) => format!(
                "may hold at most {share} % of the dirty memory, which holds at any time (strict_limit)"
            ),
            (false, true) => {
                "may hold only its share of the dirty memory at any time (strict_limit)".to_owned()
            }
            (false, false) => "is near the limit of its share of the dirty memory".to_owned(),
        });
        if let Some(Stats { dirty, limit, rate }) = stats {
            let time = Roughly(rate.time_for(dirty));
            what.push_str(&format!(
                "; {dirty} of its {limit} are used, which takes {time} to write at {rate}"
            ));
        }
        what.push('.');
        found.push(Found::new(what, vec![format!("/{}: {share}", ratio.name)]));
    }
    Ok(found)
}

/// The file of a device among those of a pattern.
fn of<'r>(readings: &'r Readings, pattern: &str, star: &str) -> Reading<Option<&'r Entry>> {
    Ok(readings.now.all(pattern)?.iter().find(|it| it.star == star))
}

fn value(entry: &Entry) -> Option<u64> {
    number(entry.text.as_deref()?.trim_ascii())
}

/// `sdb (8:16)`, or the number alone.
fn name(readings: &Readings, device: &str) -> String {
    let devices = readings.now.all(NAMES).unwrap_or_default();
    let is_it =
        |it: &&Entry| it.text.as_deref().unwrap_or_default().trim_ascii() == device.as_bytes();
    match devices.iter().find(is_it) {
        Some(known) => format!("{} ({device})", printable(known.star.as_bytes())),
        None => device.to_owned(),
    }
}

/// What the kernel counts of a device (bdi_debug_stats_show, mm/backing-dev.c).
#[derive(Debug, Clone, Copy)]
struct Stats {
    /// Dirty or being written.
    dirty: Bytes,
    /// Its share of the limit, by how fast it has written lately.
    limit: Bytes,
    /// How fast that was.
    rate: BytesPerSecond,
}

impl Stats {
    fn of(entry: &Entry) -> Option<Stats> {
        let text = entry.text.as_deref()?;
        let kib = |of: &[u8]| {
            let value = counters(text).find_map(|(name, it)| (name == of).then_some(it))?;
            Some(value.saturating_mul(1024))
        };
        Some(Stats {
            dirty: Bytes(kib(b"BdiWriteback")?.saturating_add(kib(b"BdiReclaimable")?)),
            limit: Bytes(kib(b"BdiDirtyThresh")?),
            rate: BytesPerSecond(kib(b"BdiWriteBandwidth")?),
        })
    }
}

/// Journals of ext4 that commit most of the time.
pub fn commits(readings: &Readings) -> Checked {
    readings.watched()?;
    let journals = readings.now.all(JOURNALS)?.iter();
    let before = readings.before.all(JOURNALS)?;
    let found = journals.filter_map(|now| {
        let before = before.iter().find(|it| it.star == now.star)?;
        let (before, now_) = (Journal::of(before)?, Journal::of(now)?);
        let commits = now_.commits.saturating_sub(before.commits);
        let requested = now_.requested.saturating_sub(before.requested);
        let busy = u128::from(commits) * now_.average.as_micros() * 100;
        let busy = u64::try_from(busy / readings.interval.as_micros().max(1)).unwrap_or(100);
        let device = now.star.rsplit_once('-').map_or(&*now.star, |(device, _)| device);
        let what = format!(
            "The journal of {} committed for {} % of the time: {} times a second, of which {} by fsync, \
             each in {:.1} ms.",
            printable(device.as_bytes()),
            busy.min(100),
            readings.per_second(commits),
            readings.per_second(requested.min(commits)),
            now_.average.as_secs_f64() * 1000.0
        );
        (busy >= COMMITTING).then(|| Found::new(what, vec![format!("/{}", now.name)]))
    });
    Ok(found.collect())
}

/// What jbd2 counts (jbd2_seq_info_show, fs/jbd2/journal.c).
struct Journal {
    /// Transactions.
    commits: u64,
    /// Those that somebody has waited for.
    requested: u64,
    /// Time of a commit.
    average: Duration,
}

impl Journal {
    /// `123 transactions (45 requested), each up to 8192 blocks` … `1234us average transaction commit time`
    fn of(entry: &Entry) -> Option<Journal> {
        let text = String::from_utf8_lossy(entry.text.as_deref()?);
        let mut words = text.split_ascii_whitespace();
        let commits = words.next()?.parse().ok()?;
        let requested = words.nth(1)?.strip_prefix('(')?.parse().ok()?;
        let mut lines = text.lines().map(str::trim);
        let average =
            lines.find_map(|line| line.strip_suffix("us average transaction commit time"))?;
        let average = Duration::from_micros(average.parse().ok()?);
        Some(Journal {
            commits,
            requested,
            average,
        })
    }
}

#[cfg(test)]
mod tests;
