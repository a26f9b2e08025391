//! Memory that cannot be reclaimed, and allocations that had to wait.

use crate::doctor::files::Reading;
use crate::doctor::outcome::{Checked, Found};
use crate::doctor::readings::Readings;
use crate::model::path::printable;
use crate::model::{Bytes, Share};
use crate::sys::proc::{Slab, counters, memory_for_slabs, page_bytes, slabinfo};

const MEMINFO: &str = "proc/meminfo";
const VMSTAT: &str = "proc/vmstat";
const SLABINFO: &str = "proc/slabinfo";
const CACHES: usize = 3;
/// Slab that cannot be reclaimed and is a problem: this share of the memory, and at least this much.
const SHARE: Share = Share::percent(10);
const LEAST: Bytes = Bytes(1 << 30);
/// So many events a second are no accident: kswapd keeps them at none.
const EVENTS: u64 = 10;

/// Unreclaimable slab.
pub fn unreclaimable(readings: &Readings) -> Checked {
    let meminfo = readings.now.bytes(MEMINFO)?.unwrap_or_default();
    let size = |of: &[u8]| {
        let kib = counters(meminfo).find_map(|(name, kib)| (name == of).then_some(kib));
        kib.map(|kib| Bytes(kib.saturating_mul(1024)))
    };
    let (Some(slab), Some(memory)) = (size(b"SUnreclaim"), memory_for_slabs(meminfo)) else {
        return Ok(Vec::new());
    };
    if slab < LEAST || !SHARE.is_reached_by(slab, Bytes(memory)) {
        return Ok(Vec::new());
    }
    // The largest may be of the other kind: all are shown, the reader knows xfs_inode and dentry.
    let text = readings.now.bytes(SLABINFO)?.unwrap_or_default();
    let caches = slabinfo(text, page_bytes(), CACHES);
    let cache = |it: &Slab| format!("{} {}", printable(it.name.as_bytes()), Bytes(it.bytes));
    let caches: Vec<_> = caches.iter().map(cache).collect();
    let mut what = format!(
        "{slab} of {} are slab that cannot be reclaimed; dropping would free at most the other {}",
        Bytes(memory),
        size(b"SReclaimable").unwrap_or_default()
    );
    if !caches.is_empty() {
        what.push_str(&format!("; the largest caches are {}", caches.join(", ")));
    }
    let daemon = readings.own.daemon.as_ref().ok().and_then(Option::as_ref);
    let maps = daemon.map(|status| status.images.extent_map_memory);
    if let Some(maps) = maps.filter(|maps| maps.0 > 0) {
        what.push_str(&format!(
            "; the extent maps of all images take up to {maps}"
        ));
    }
    what.push('.');
    let read = vec![format!("/{MEMINFO}: SUnreclaim"), format!("/{SLABINFO}")];
    Ok(vec![Found::new(what, read)])
}

/// Allocations that had to reclaim or compact memory themselves.
pub fn stalls(readings: &Readings) -> Checked {
    readings.watched()?;
    let stalls = rise_of(readings, b"allocstall")?;
    let failures = rise_of(readings, b"compact_fail")?;
    let [stalls, failures] = [stalls, failures].map(|number| readings.per_second(number));
    if stalls < EVENTS && failures < EVENTS {
        return Ok(Vec::new());
    }
    let what = format!(
        "{stalls} allocations a second had to reclaim memory themselves, and {failures} compactions \
         a second failed."
    );
    let read = vec![format!("/{VMSTAT}: allocstall_*, compact_fail")];
    Ok(vec![Found::new(what, read)])
}

/// The rise of all counters whose names begin so.
fn rise_of(readings: &Readings, begin: &[u8]) -> Reading<u64> {
    let sum = |text: &[u8]| {
        let counters = counters(text).filter(|(name, _)| name.starts_with(begin));
        counters
            .map(|(_, count)| count)
            .fold(0, u64::saturating_add)
    };
    let now = sum(readings.now.bytes(VMSTAT)?.unwrap_or_default());
    let before = sum(readings.before.bytes(VMSTAT)?.unwrap_or_default());
    Ok(now.saturating_sub(before))
}
