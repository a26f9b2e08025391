//! The gate: decides when all tasks are scanned.

use std::fs::File;
use std::time::Duration;

use rustix::io::pread;

use crate::model::Monotonic;
use crate::sys::proc;

/// How long the gate stays open after a sign.
const HOLD: Duration = Duration::from_secs(5);
/// Minimum interval while no task is starved: ordinary pressure, constant on some hosts, is a sign.
const CALM_INTERVAL: Duration = Duration::from_secs(3);
/// Interval of scans without a sign.
pub(super) const BLIND_INTERVAL: Duration = Duration::from_secs(60);
/// The same without PSI.
pub(super) const BLIND_INTERVAL_WITHOUT_PSI: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Gate {
    blind_interval: Duration,
    sign: Option<u64>,
    open_until: Monotonic,
    pub(super) last_scan: Option<Monotonic>,
}

impl Gate {
    pub(super) fn new(blind_interval: Duration) -> Gate {
        Gate {
            blind_interval,
            sign: None,
            open_until: Monotonic(0),
            last_scan: None,
        }
    }

    /// `sign` is a count that changes while tasks wait for memory; `None` if it cannot be read.
    pub(super) fn opens(&mut self, now: Monotonic, sign: Option<u64>, alarmed: bool) -> bool {
        if sign.is_none() || self.sign.is_some_and(|before| Some(before) != sign) {
            self.open_until = now.plus(HOLD);
        }
        self.sign = sign;
        let last = |ago| self.last_scan.is_none_or(|last| now.since(last) >= ago);
        let worth_it = now < self.open_until && last(CALM_INTERVAL);
        let opens = alarmed || worth_it || last(self.blind_interval);
        if opens {
            self.last_scan = Some(now);
        }
        opens
    }
}

/// Microseconds in which tasks waited for memory.
pub(super) fn pressure_total(file: &File, buffer: &mut [u8]) -> Option<u64> {
    let length = pread(file, &mut *buffer, 0).ok()?;
    Some(proc::pressure(buffer.get(..length)?, "some")?.total)
}

/// Number of direct reclaims and compactions, from /proc/vmstat.
pub(super) fn allocation_stalls(vmstat: &File, buffer: &mut [u8]) -> Option<u64> {
    sum_of(vmstat, buffer, |part| Some(proc::allocation_stalls(part)))
}

/// Number of times that tasks were throttled because the memory reserves were used up, from
/// /proc/vmstat; counted in `throttle_direct_reclaim` (mm/vmscan.c) before each sleep.
pub(super) fn direct_throttles(vmstat: &File, buffer: &mut [u8]) -> Option<u64> {
    sum_of(vmstat, buffer, proc::direct_throttles)
}

/// Sum of the counts in a file; `None` if it cannot be read or has none.
fn sum_of(file: &File, buffer: &mut [u8], count: impl Fn(&[u8]) -> Option<u64>) -> Option<u64> {
    let mut total: Option<u64> = None;
    proc::each_part(file, buffer, |part| {
        if let Some(counted) = count(part) {
            total = Some(total.unwrap_or(0).saturating_add(counted));
        }
    })
    .ok()?;
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Monotonic {
        Monotonic(milliseconds * 1_000_000)
    }

    #[test]
    fn the_gate_opens_on_a_sign_and_now_and_then() {
        let mut gate = Gate::new(BLIND_INTERVAL);
        assert!(gate.opens(at(0), Some(5), false), "the first look");
        assert!(!gate.opens(at(1000), Some(5), false));
        assert!(!gate.opens(at(2000), Some(6), false), "too early");
        assert!(gate.opens(at(3000), Some(7), false), "a sign");
        assert!(!gate.opens(at(5000), Some(7), false), "too early");
        assert!(gate.opens(at(6000), Some(7), false), "it is held open");
        assert!(!gate.opens(at(9000), Some(7), false));
        assert!(gate.opens(at(10_000), Some(7), true), "somebody is starved");
        assert!(gate.opens(at(11_000), Some(7), true), "and still is");
        assert!(!gate.opens(at(70_999), Some(7), false));
        assert!(
            gate.opens(at(71_000), Some(7), false),
            "no sign for a minute"
        );
        assert!(
            gate.opens(at(74_000), None, false),
            "no word is no all-clear"
        );
    }
}
