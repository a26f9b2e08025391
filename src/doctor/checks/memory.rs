//! Memory: what is dirty, and in what pieces it is free.

use crate::defrag::kernels::release::Level;
use crate::doctor::outcome::{Checked, Found};
use crate::doctor::readings::Readings;
use crate::model::path::printable;
use crate::model::{Bytes, BytesPerSecond, Roughly, Severity, Share};
use crate::sys::proc::{buddyinfo, page_bytes};

const VMSTAT: &str = "proc/vmstat";
const BUDDYINFO: &str = "proc/buddyinfo";
/// From this share of the limit on, writers are slowed down noticeably.
const NEAR: Share = Share::percent(80);
/// Blocks of this size and more are large: order 4 with pages of 4 KiB, 0 with pages of 64 KiB.
const LARGE: u64 = 64 << 10;
/// Fewer of them in the zone Normal of a node are a warning.
const FEW: u64 = 64;

/// Dirty memory against its limit.
pub fn dirty(readings: &Readings) -> Checked {
    let counter = |line: &str| readings.now.counter(VMSTAT, line);
    let pages = |pages: u64| Bytes(pages.saturating_mul(page_bytes()));
    // `nr_dirty_threshold` is missing before 2.6.37.
    let (Some(dirty), Some(writeback), Some(limit)) = (
        counter("nr_dirty")?,
        counter("nr_writeback")?,
        counter("nr_dirty_threshold")?,
    ) else {
        return Ok(Vec::new());
    };
    let (used, limit) = (pages(dirty.saturating_add(writeback)), pages(limit));
    if limit == Bytes(0) || !NEAR.is_reached_by(used, limit) {
        return Ok(Vec::new());
    }
    let written = readings.rise(VMSTAT, "nr_written")?.map(pages);
    let rate = written.map(|written| BytesPerSecond(readings.per_second(written.0)));
    let flush = match rate.filter(|rate| rate.0 > 0 && readings.watched().is_ok()) {
        Some(rate) => format!(
            "; writing it takes {} at the measured {rate}",
            Roughly(rate.time_for(used))
        ),
        None => String::new(),
    };
    let what = format!(
        "{used} are dirty or being written, of at most {limit} at which every writer waits{flush}{}.",
        super::waiting::writers(readings)
    );
    let read = format!(
        "/{VMSTAT}: nr_dirty {dirty}, nr_writeback {writeback}, nr_dirty_threshold {}",
        limit.0 / page_bytes()
    );
    Ok(vec![Found::new(what, vec![read])])
}

/// Free memory in small pieces.
pub fn pieces(readings: &Readings) -> Checked {
    let text = readings.now.bytes(BUDDYINFO)?.unwrap_or_default();
    let zones = buddyinfo(text).filter(|zone| zone.name == b"Normal");
    let order = (LARGE / page_bytes()).max(1).ilog2();
    // Since 4.15 XFS allocates extent maps in single pages, and nothing else waits for ever for more.
    let level = readings.kernel.as_ref().ok().and_then(|it| it.level);
    let needs_blocks = level.is_none_or(|level| Some(level) < Level::parse("4.15"));
    let found = zones.filter_map(|zone| {
        let large = zone.free_blocks().skip(order as usize);
        let large = large.fold(0, u64::saturating_add);
        let size = Bytes(page_bytes() << order);
        if large >= FEW {
            return None;
        }
        let number = match large {
            0 => "no free block".to_owned(),
            1 => "1 free block".to_owned(),
            _ => format!("{large} free blocks"),
        };
        let what = format!(
            "Node {} has {number} of {size} or more in the zone {}.",
            zone.node,
            printable(zone.name)
        );
        let blocks: Vec<_> = zone.free_blocks().map(|it| it.to_string()).collect();
        let read = format!("/{BUDDYINFO}: node {}: {}", zone.node, blocks.join(" "));
        let severity = (large == 0 && needs_blocks).then_some(Severity::Critical);
        Some(Found {
            severity,
            ..Found::new(what, vec![read])
        })
    });
    Ok(found.collect())
}
