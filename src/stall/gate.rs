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
pub(super) struct ScanGate {
    blind_interval: Duration,
    sign: Option<u64>,
    open_until: Monotonic,
    pub(super) last_scan: Option<Monotonic>,
}

impl ScanGate {
    pub(super) fn new(blind_interval: Duration) -> ScanGate {
        ScanGate {
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

/// Number of direct reclaims and compactions.
pub(super) fn allocation_stalls(vmstat: &File, buffer: &mut [u8]) -> Option<u64> {
    let is_stall = |name: &[u8]| name.starts_with(b"allocstall") || name == b"compact_stall";
    Some(sum_of(vmstat, buffer, is_stall)?.unwrap_or(0))
}

/// Number of times that tasks were throttled because the memory reserves were used up (since 3.6);
/// counted in `throttle_direct_reclaim` (mm/vmscan.c) before each sleep.
pub(super) fn direct_throttles(vmstat: &File, buffer: &mut [u8]) -> Option<u64> {
    sum_of(vmstat, buffer, |name| name == b"pgscan_direct_throttle")?
}

/// Sum of counters of /proc/vmstat, if there are any; `None` if it cannot be read.
fn sum_of(vmstat: &File, buffer: &mut [u8], of: impl Fn(&[u8]) -> bool) -> Option<Option<u64>> {
    let mut sum = None;
    proc::each_part(vmstat, buffer, |part| {
        for (_, count) in proc::counters(part).filter(|(name, _)| of(name)) {
            sum = Some(sum.unwrap_or(0_u64).saturating_add(count));
        }
    })
    .ok()?;
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Monotonic {
        Monotonic(milliseconds * 1_000_000)
    }

    #[test]
    fn counters_are_summed() {
        let sums = |text: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, text).unwrap();
            let stalls = allocation_stalls(&file, &mut [0; 64]);
            (stalls, direct_throttles(&file, &mut [0; 64]))
        };
        let stalls = b"allocstall_dma 1\nallocstall_normal 20\ncompact_stall 300\ncompact_fail 9\nallocstall 4000\n";
        assert_eq!(sums(stalls), (Some(4321), None));
        assert_eq!(sums(b"a 1\npgscan_direct_throttle 7\n"), (Some(0), Some(7)));
        let unreadable = File::open("/").unwrap();
        assert_eq!(allocation_stalls(&unreadable, &mut [0; 64]), None);
    }

    #[test]
    fn the_gate_opens_on_a_sign_and_now_and_then() {
        let mut gate = ScanGate::new(BLIND_INTERVAL);
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
