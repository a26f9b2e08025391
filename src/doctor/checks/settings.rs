//! Settings of the kernel's memory management.

use std::time::Duration;

use crate::doctor::files::{Files, Reading};
use crate::doctor::outcome::{Checked, Found};
use crate::doctor::readings::Readings;
use crate::model::{Bytes, BytesPerSecond, Roughly};
use crate::sys::proc::{counters, memory_for_slabs, page_bytes};

const MEMINFO: &str = "proc/meminfo";
const VMSTAT: &str = "proc/vmstat";
/// A limit above this takes more than 5 s to write even at 800 MiB a second.
const DIRTY_LIMIT: Bytes = Bytes(4 << 30);
/// A flush that takes longer at the measured rate.
const LONG_FLUSH: Duration = Duration::from_secs(5);
/// A slower rate is not that of a flush.
const FLUSH_RATE: BytesPerSecond = BytesPerSecond(20 << 20);
/// The default reserve is enough for less memory.
const LARGE_HOST: Bytes = Bytes(64 << 30);

/// A finding if the kernel has the setting and its value is such; it is what was read.
fn setting(readings: &Readings, name: &str, is_bad: impl Fn(i64) -> bool, what: &str) -> Checked {
    let value = readings.now.number(name)?;
    let found = || Found::new(what.to_owned(), vec![readings.now.shown(name)]);
    Ok(Vec::from_iter(value.is_some_and(is_bad).then(found)))
}

/// How much may be dirty, and how long writing it takes.
pub fn dirty_limit(readings: &Readings) -> Checked {
    let pages = |line| readings.now.counter(VMSTAT, line);
    let Some(threshold) = pages("nr_dirty_threshold")? else {
        return Ok(Vec::new());
    };
    let limit = Bytes(threshold.saturating_mul(page_bytes()));
    let rate = flush_rate(readings)?;
    let is_long = rate.map_or(limit > DIRTY_LIMIT, |rate| {
        rate.time_for(limit) > LONG_FLUSH
    });
    if !is_long {
        return Ok(Vec::new());
    }
    let (rate, how) = match rate {
        Some(rate) => (rate, "the measured "),
        None => (BytesPerSecond(200 << 20), ""),
    };
    let what = format!(
        "Up to {limit} may be dirty, which takes {} to write at {how}{rate}.",
        Roughly(rate.time_for(limit))
    );
    let mut read = vec![format!("/{VMSTAT}: nr_dirty_threshold {threshold}")];
    let names = ["dirty_bytes", "dirty_ratio"].map(|name| format!("proc/sys/vm/{name}"));
    read.extend(names.iter().map(|name| readings.now.shown(name)));
    // Nearly every large host has the default, and VMs with cache=none dirty nothing: without a measured
    // flush it is no more than a note.
    Ok(vec![match how.is_empty() {
        true => Found::note(what, read),
        false => Found::new(what, read),
    }])
}

/// What was written in a second, if the readings are far enough apart and write-back was at work all
/// the time: above the background threshold at both readings.
fn flush_rate(readings: &Readings) -> Reading<Option<BytesPerSecond>> {
    let is_flushing = |files: &Files| -> Reading<bool> {
        let pages = |line| files.counter(VMSTAT, line);
        let dirty = pages("nr_dirty")?;
        let begins = pages("nr_dirty_background_threshold")?;
        Ok(dirty.is_some_and(|dirty| Some(dirty) >= begins))
    };
    if readings.watched().is_err()
        || !is_flushing(&readings.before)?
        || !is_flushing(&readings.now)?
    {
        return Ok(None);
    }
    let written = readings.rise(VMSTAT, "nr_written")?;
    let rate = written.map(|pages| readings.per_second(pages.saturating_mul(page_bytes())));
    Ok(rate.map(BytesPerSecond).filter(|rate| *rate >= FLUSH_RATE))
}

/// What the kernel keeps free: min_free_kbytes, and the distance of the watermarks above it.
pub fn reserve(readings: &Readings) -> Checked {
    const MIN_FREE: &str = "proc/sys/vm/min_free_kbytes";
    const SCALE: &str = "proc/sys/vm/watermark_scale_factor";
    let meminfo = readings.now.bytes(MEMINFO)?.unwrap_or_default();
    let (Some(memory), Some(min_free)) =
        (memory_for_slabs(meminfo), readings.now.number(MIN_FREE)?)
    else {
        return Ok(Vec::new());
    };
    // Without the setting, before 4.6, the distance is a quarter of min_free_kbytes.
    let scale = readings.now.number(SCALE)?.unwrap_or(0).unsigned_abs();
    let min_free = min_free.unsigned_abs().saturating_mul(1024);
    let distance = u128::from(memory) * u128::from(scale) / 10_000;
    let distance = u64::try_from(distance)
        .unwrap_or(u64::MAX)
        .max(min_free / 4);
    let kept = min_free.saturating_add(distance);
    if memory <= LARGE_HOST.0 || kept >= memory / 200 {
        return Ok(Vec::new());
    }
    let what = format!(
        "The kernel begins to reclaim when {} of {} are free, less than 0.5 %.",
        Bytes(kept),
        Bytes(memory)
    );
    let read = [MIN_FREE, SCALE].map(|name| readings.now.shown(name));
    let read = read.to_vec();
    // Every large host with the defaults is meant. It costs something only where allocations wait.
    let is_felt = super::slab::stalls(readings).is_ok_and(|found| !found.is_empty());
    Ok(vec![match is_felt {
        true => Found::new(what, read),
        false => Found::note(what, read),
    }])
}

/// Background compaction.
pub fn compaction(readings: &Readings) -> Checked {
    let name = "proc/sys/vm/compaction_proactiveness";
    setting(
        readings,
        name,
        |value| value == 0,
        "Background compaction is switched off.",
    )
}

/// Reclaim on a node before another node is used.
pub fn zone_reclaim(readings: &Readings) -> Checked {
    let what = "A NUMA node that is full is reclaimed before memory of another node is used.";
    setting(
        readings,
        "proc/sys/vm/zone_reclaim_mode",
        |value| value != 0,
        what,
    )
}

/// Page faults that compact memory.
pub fn huge_pages(readings: &Readings) -> Checked {
    const ENABLED: &str = "sys/kernel/mm/transparent_hugepage/enabled";
    const DEFRAG: &str = "sys/kernel/mm/transparent_hugepage/defrag";
    let chosen = |name: &str, word: &str| -> Reading<bool> {
        let text = readings.now.bytes(name)?.unwrap_or_default();
        let mut words = text.split(u8::is_ascii_whitespace);
        Ok(words.any(|it| it == format!("[{word}]").as_bytes()))
    };
    if !chosen(ENABLED, "always")? || !chosen(DEFRAG, "always")? {
        return Ok(Vec::new());
    }
    let what = "Every page fault of every program may wait until memory is compacted.";
    let read = [ENABLED, DEFRAG].map(|name| readings.now.shown(name));
    Ok(vec![Found::new(what.to_owned(), read.to_vec())])
}

/// Swap that is used only when it is too late.
pub fn swappiness(readings: &Readings) -> Checked {
    let meminfo = readings.now.bytes(MEMINFO)?.unwrap_or_default();
    let swap = counters(meminfo).find_map(|(name, kib)| (name == b"SwapTotal").then_some(kib));
    if swap.unwrap_or(0) == 0 {
        return Ok(Vec::new());
    }
    let what = "There is swap, but the kernel uses it only when nearly all page cache is gone.";
    setting(readings, "proc/sys/vm/swappiness", |value| value == 0, what)
}
