//! A disk that becomes slow: the engine does less at once.

use std::time::Duration;

use fragwatch::internals::config::settings::Defrag;
use fragwatch::internals::defrag::{self, Event, HostInterfaces, Request};
use fragwatch::internals::model::{BytesPerSecond, Engine, RunOutcome};

use super::support::guest::BLOCK;
use super::support::{self, MIB, Stall, guest, tools};
use super::{shared, state};

const IMAGE: u64 = 24 * MIB;
/// What the disk needs for a page, and later.
const PAGE: Duration = Duration::from_micros(100);
const SLOW_PAGE: Duration = Duration::from_millis(1);
/// How long a call may take. Many times what a busy machine adds to a call of `PAGE`s.
const AIM: Duration = Duration::from_millis(50);
/// So many segments may be too long until it knows.
const SURPRISED: usize = 4;

/// Extents of each segment, in their order, before the disk became slow and since.
#[derive(Debug, Default)]
struct Sizes {
    before: Vec<u64>,
    since: Vec<u64>,
    segments: u64,
    done: u64,
}

impl Sizes {
    /// The engine says how far it is.
    fn take(&mut self, done: u64, segments: u64, is_slow: bool) {
        if segments == self.segments + 1 {
            let sizes = if is_slow {
                &mut self.since
            } else {
                &mut self.before
            };
            sizes.push(done.saturating_sub(self.done));
        }
        (self.done, self.segments) = (done, segments);
    }
}

fn limits() -> Defrag {
    Defrag {
        bandwidth: BytesPerSecond(64 << 30),
        max_io_pressure: 100,
        stall_target: AIM,
        ..Defrag::default()
    }
}

/// No time is asserted that was measured: what a segment asks of this disk takes a known time at
/// least, and that is to be within the aim.
#[test]
fn a_disk_ten_times_slower_in_mid_run_gets_less_at_once() {
    let stall = support::require!(Stall::new());
    let path = stall.path().join("vm.img");
    guest::random_direct_writes(&path, IMAGE, IMAGE / BLOCK);
    let sum = tools::checksum(&path);
    let host = HostInterfaces::new(state(stall.bed()));
    let limits = limits();
    stall.slow_down(PAGE);
    let (mut sizes, mut is_slow) = (Sizes::default(), false);
    let mut watch = |event| {
        if let Event::Progress(progress) = event {
            let (done, segments) = (progress.done, progress.calls.0);
            sizes.take(done, segments, is_slow);
            if !is_slow && done * BLOCK > IMAGE / 2 {
                stall.slow_down(SLOW_PAGE);
                is_slow = true;
            }
        }
    };
    let request = Request {
        path: &path,
        limits: &limits,
        host: &host,
        orders: &mut || None,
        watch: &mut watch,
    };
    let report = defrag::run(Engine::Online, request);
    stall.slow_down(Duration::ZERO);
    eprintln!("{sizes:?}, worst {:?}", report.stalls.unwrap().longest);
    assert_eq!(report.outcome, RunOutcome::Improved);
    let most = (AIM.as_micros() / SLOW_PAGE.as_micros()) as u64;
    let largest = sizes.before.iter().max();
    assert!(
        largest > Some(&most),
        "it did little at once all the time: {largest:?}"
    );
    let settled = sizes.since.get(SURPRISED..).unwrap_or_default();
    assert!(settled.len() > 20, "{}", settled.len());
    assert!(
        settled.iter().all(|extents| *extents <= most),
        "{settled:?}"
    );
    assert_eq!(tools::checksum(&path), sum);
    assert_eq!(shared(&path), 0);
}
