//! Tasks that wait for I/O while the disks do not work.

use std::collections::BTreeMap;

use super::waiting::{is_stuck, owners, stacks};
use crate::doctor::files::{Files, Reading};
use crate::doctor::outcome::{Checked, Found};
use crate::doctor::readings::Readings;
use crate::doctor::tasks::Task;
use crate::sys::proc::{number, pressure};

const PRESSURE: &str = "proc/pressure/io";
const DISKS: &str = "proc/diskstats";
const STAT: &str = "proc/stat";
/// Shares of the time between the two readings, in percent.
const WAITED: f64 = 40.0;
const IDLE: f64 = 10.0;
const STOLEN: f64 = 5.0;

/// I/O pressure, or iowait where the kernel has no PSI, on idle disks.
pub fn waits_on_idle_disks(readings: &Readings) -> Checked {
    readings.watched()?;
    let (waited, of, file) = match io_pressure(readings)? {
        Some(share) => (share, "I/O pressure", PRESSURE),
        None => (processor_share(readings, 4)?.unwrap_or(0.0), "iowait", STAT),
    };
    let busy = busiest(readings)?;
    if waited < WAITED || busy.as_ref().is_none_or(|(_, busy)| *busy > IDLE) {
        return Ok(Vec::new());
    }
    let (disk, busy) = busy.unwrap_or_default();
    let tasks = readings.tasks.as_ref().map_err(Clone::clone)?;
    let is_ring = |task: &&Task| task.frames.iter().any(|it| it.contains("io_cqring"));
    let rings: Vec<_> = tasks.waiting.iter().filter(is_ring).collect();
    let blocked: Vec<_> = tasks.waiting.iter().filter(|it| is_stuck(it)).collect();
    let mut what = format!(
        "{of} was {waited:.0} %, but the busiest disk ({disk}) worked {busy:.1} % of the time"
    );
    for (how, tasks) in [("waiting in io_uring", &rings), ("in state D", &blocked)] {
        if !tasks.is_empty() {
            let owners = owners(tasks, readings.holders.as_ref().ok());
            what.push_str(&format!("; {how}: {owners}"));
        }
    }
    what.push('.');
    let mut read = vec![format!("/{file}"), format!("/{DISKS}")];
    read.extend(stacks(&blocked));
    // Tasks in io_uring explain it, and wait for no disk.
    Ok(vec![match blocked.is_empty() && !rings.is_empty() {
        true => Found::note(what, read),
        false => Found::new(what, read),
    }])
}

/// Time that the hypervisor below this host took.
pub fn steal(readings: &Readings) -> Checked {
    readings.watched()?;
    let Some(share) = processor_share(readings, 7)?.filter(|share| *share >= STOLEN) else {
        return Ok(Vec::new());
    };
    let what =
        format!("{share:.0} % of the processor time was taken by a hypervisor below this host.");
    Ok(vec![Found::new(what, vec![format!("/{STAT}: cpu, steal")])])
}

/// In percent of the time.
fn io_pressure(readings: &Readings) -> Reading<Option<f64>> {
    let total = |files: &Files| -> Reading<Option<u64>> {
        let text = files.bytes(PRESSURE)?.unwrap_or_default();
        Ok(pressure(text, "some").map(|some| some.total))
    };
    let both = total(&readings.now)?.zip(total(&readings.before)?);
    // Microseconds. A share needs no more precision than f64 has.
    #[allow(clippy::cast_precision_loss)]
    let share = |(now, before): (u64, u64)| {
        now.saturating_sub(before) as f64 / readings.interval.as_micros() as f64 * 100.0
    };
    Ok(both.map(share))
}

/// The share of a column of the line `cpu` of /proc/stat (proc(5)), from 0, in percent.
fn processor_share(readings: &Readings, column: usize) -> Reading<Option<f64>> {
    let columns = |files: &Files| -> Reading<Vec<u64>> {
        let text = files.bytes(STAT)?.unwrap_or_default();
        let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let words = line.split(|byte| *byte == b' ').filter_map(number);
        // Guest time is part of user time.
        Ok(words.take(8).collect())
    };
    let (now, before) = (columns(&readings.now)?, columns(&readings.before)?);
    let rises = now.iter().zip(&before);
    let rises: Vec<u64> = rises
        .map(|(now, before)| now.saturating_sub(*before))
        .collect();
    let total = rises.iter().copied().fold(0, u64::saturating_add);
    #[allow(clippy::cast_precision_loss)]
    let share = |part: &u64| *part as f64 / total.max(1) as f64 * 100.0;
    Ok(rises.get(column).map(share))
}

/// The disk that worked most, and the share of the time, in percent; `None` if there is none.
fn busiest(readings: &Readings) -> Reading<Option<(String, f64)>> {
    let (now, before) = (busy(&readings.now)?, busy(&readings.before)?);
    #[allow(clippy::cast_precision_loss)]
    let share = |milliseconds: u64| {
        milliseconds as f64 / readings.interval.as_millis().max(1) as f64 * 100.0
    };
    let shares = now.into_iter().map(|(disk, now)| {
        let rise = now.saturating_sub(before.get(&disk).copied().unwrap_or(now));
        (disk, share(rise).min(100.0))
    });
    Ok(shares.max_by(|one, other| one.1.total_cmp(&other.1)))
}

/// Milliseconds with a request in flight, by disk or partition (Documentation/admin-guide/iostats.rst).
fn busy(files: &Files) -> Reading<BTreeMap<String, u64>> {
    let text = files.bytes(DISKS)?.unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let disk = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let name = words.nth(2)?.to_owned();
        Some((name, words.nth(9)?.parse().ok()?))
    };
    Ok(text.lines().filter_map(disk).collect())
}
