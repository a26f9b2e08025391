//! State shared by the threads of the rescue: atomics, and eventfds (eventfd(2)) for wake-ups.
//! There is no lock, so no thread can block another. New settings are passed in an atomic cell that
//! holds one pointer. The reader takes it and drops its previous one, but never frees: the slow
//! side keeps each edition until no other holder is left.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_utils::atomic::AtomicCell;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};

use super::ladder::Order;
use super::settings::Edition;
use super::words::{from, place};
use crate::model::{IncidentId, Monotonic, Outcome, RescueStep, Trigger};

/// An order for the actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) order: Order,
    pub(super) drill: bool,
    pub(super) dry_run: bool,
    /// When its trigger was read.
    pub(super) read: Monotonic,
}

/// Shared state; see the module.
pub struct Exchange {
    /// The pending order in one word, 0 for none.
    job: AtomicU64,
    job_read: AtomicU64,
    /// Outcome of the last order plus one; 0 if the reader has taken it.
    done: AtomicU64,
    /// Triggers other than the kernel log that the reader has not taken yet.
    stalls: AtomicU64,
    file_matches: AtomicU64,
    /// The expected drill, 0 for none.
    drill: AtomicU64,
    drill_acts: AtomicBool,
    records: AtomicU64,
    lost: AtomicU64,
    stopping: AtomicBool,
    /// Settings that the reader has not taken yet.
    settings: AtomicCell<Option<Arc<Edition>>>,
    /// When the action in flight began, 0 for none.
    acting_since: AtomicU64,
    pub(super) to_reader: OwnedFd,
    pub(super) to_actor: OwnedFd,
    /// Wakes the slow side: a socket pair, which both tokio and poll(2) can wait for.
    to_slow: UnixStream,
    slow_side: UnixStream,
}

const VALID: u64 = 1 << 63;
const DRILL: u64 = 1 << 62;
const DRY_RUN: u64 = 1 << 61;
const STEP_SHIFT: u32 = 56;
const NUMBER_SHIFT: u32 = 32;
const NUMBER_MASK: u64 = 0xff_ffff;
const INCIDENT_MASK: u64 = 0xffff_ffff;

impl Exchange {
    /// Creates the eventfds and the socket pair.
    pub fn new() -> io::Result<Exchange> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let (to_slow, slow_side) = UnixStream::pair()?;
        to_slow.set_nonblocking(true)?;
        slow_side.set_nonblocking(true)?;
        Ok(Exchange {
            job: AtomicU64::new(0),
            job_read: AtomicU64::new(0),
            done: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
            file_matches: AtomicU64::new(0),
            drill: AtomicU64::new(0),
            drill_acts: AtomicBool::new(false),
            records: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            settings: AtomicCell::new(None),
            acting_since: AtomicU64::new(0),
            to_reader: event()?,
            to_actor: event()?,
            to_slow,
            slow_side,
        })
    }

    /// Requests a rescue for a trigger other than the kernel log.
    pub fn trigger(&self, trigger: Trigger) {
        match trigger {
            Trigger::Stall => self.stalls.fetch_add(1, Ordering::Relaxed),
            Trigger::File => self.file_matches.fetch_add(1, Ordering::Relaxed),
            // These arrive through the kernel log.
            Trigger::KernelLog | Trigger::Drill => return,
        };
        wake(&self.to_reader);
    }

    /// Announces a drill by its nonzero number; `act` selects a real write.
    pub fn expect_drill(&self, nonce: u64, act: bool) {
        self.drill_acts.store(act, Ordering::Relaxed);
        self.drill.store(nonce, Ordering::Release);
    }

    /// Records read from the kernel log.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Records overwritten before they could be read.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// How long the action in flight has been running.
    pub fn acting_for(&self, now: Monotonic) -> Option<Duration> {
        let since = self.acting_since.load(Ordering::Relaxed);
        (since != 0).then(|| now.since(Monotonic(since)))
    }

    pub(super) fn acting(&self, since: Option<Monotonic>) {
        let since = since.map_or(0, |since| since.0);
        self.acting_since.store(since, Ordering::Relaxed);
    }

    /// Passes settings to the reader, replacing those not taken yet. For the slow side only:
    /// replaced settings may be freed here.
    pub(super) fn offer(&self, settings: Arc<Edition>) {
        drop(self.settings.swap(Some(settings)));
        wake(&self.to_reader);
    }

    pub(super) fn take_settings(&self) -> Option<Arc<Edition>> {
        self.settings.take()
    }

    /// Stops both threads.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        wake(&self.to_reader);
        wake(&self.to_actor);
    }

    /// The socket that becomes readable when a ring has new entries.
    pub fn slow_side(&self) -> &UnixStream {
        &self.slow_side
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn count_record(&self) {
        self.records.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_lost(&self, records: u64) {
        self.lost.fetch_add(records, Ordering::Relaxed);
    }

    pub(super) fn take_triggers(&self) -> [(Trigger, u64); 2] {
        [
            (Trigger::Stall, self.stalls.swap(0, Ordering::Relaxed)),
            (Trigger::File, self.file_matches.swap(0, Ordering::Relaxed)),
        ]
    }

    /// Takes the announced drill and returns whether it acts; `None` if `nonce` was not announced.
    pub(super) fn take_drill(&self, nonce: u64) -> Option<bool> {
        let expected = self
            .drill
            .compare_exchange(nonce, 0, Ordering::Acquire, Ordering::Relaxed);
        (nonce != 0 && expected.is_ok()).then(|| self.drill_acts.load(Ordering::Relaxed))
    }

    /// Passes an order to the actor, which must be idle.
    pub(super) fn give(&self, job: &Job) {
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        let word = VALID
            | flag(job.drill, DRILL)
            | flag(job.dry_run, DRY_RUN)
            | place(&RescueStep::ALL, job.order.step) << STEP_SHIFT
            | (u64::from(job.order.number) & NUMBER_MASK) << NUMBER_SHIFT
            | (job.order.incident.0 & INCIDENT_MASK);
        self.job_read.store(job.read.0, Ordering::Relaxed);
        self.job.store(word, Ordering::Release);
        wake(&self.to_actor);
    }

    pub(super) fn take_job(&self) -> Option<Job> {
        let word = self.job.swap(0, Ordering::Acquire);
        if word & VALID == 0 {
            return None;
        }
        Some(Job {
            order: Order {
                incident: IncidentId(word & INCIDENT_MASK),
                step: from(&RescueStep::ALL, word >> STEP_SHIFT & 0b11),
                number: u32::try_from(word >> NUMBER_SHIFT & NUMBER_MASK).unwrap_or(0),
            },
            drill: word & DRILL != 0,
            dry_run: word & DRY_RUN != 0,
            read: Monotonic(self.job_read.load(Ordering::Relaxed)),
        })
    }

    pub(super) fn report_done(&self, outcome: Outcome) {
        self.done
            .store(place(&Outcome::ALL, outcome) + 1, Ordering::Release);
        wake(&self.to_reader);
    }

    pub(super) fn take_done(&self) -> Option<Outcome> {
        let word = self.done.swap(0, Ordering::Acquire);
        Some(from(&Outcome::ALL, word.checked_sub(1)?))
    }

    pub(super) fn wake_slow_side(&self) {
        wake(&self.to_slow);
    }
}

/// Fails only if the counter or the socket is full; a wake-up is then pending already.
fn wake(event: impl AsFd) {
    let _ = write(event, &1_u64.to_ne_bytes());
}

/// Drains pending wake-ups without blocking, so that poll(2) waits for the next one.
pub fn clear_wakeup(event: impl AsFd) {
    let mut drained = [0_u8; 64];
    while read(&event, &mut drained) == Ok(drained.len()) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_comes_out_as_it_went_in() {
        let exchange = Exchange::new().unwrap();
        assert_eq!(exchange.take_job(), None);
        for (step, drill, dry_run) in [
            (RescueStep::DropSlab, false, false),
            (RescueStep::DropAll, true, false),
            (RescueStep::CompactMemory, false, true),
        ] {
            let order = Order {
                incident: IncidentId(0xffff_fffe),
                step,
                number: 3600,
            };
            let job = Job {
                order,
                drill,
                dry_run,
                read: Monotonic(u64::MAX),
            };
            exchange.give(&job);
            assert_eq!(exchange.take_job(), Some(job));
            assert_eq!(exchange.take_job(), None);
        }
    }

    /// Otherwise the cell would take a lock (`AtomicCell::is_lock_free`).
    #[test]
    fn the_cell_of_the_settings_takes_no_lock() {
        assert!(AtomicCell::<Option<Arc<Edition>>>::is_lock_free());
    }

    #[test]
    fn only_the_expected_drill_is_taken_and_only_once() {
        let exchange = Exchange::new().unwrap();
        assert_eq!(exchange.take_drill(0), None);
        exchange.expect_drill(5, true);
        assert_eq!(exchange.take_drill(4), None);
        assert_eq!(exchange.take_drill(5), Some(true));
        assert_eq!(exchange.take_drill(5), None);
    }

    #[test]
    fn every_outcome_is_reported() {
        let exchange = Exchange::new().unwrap();
        for outcome in Outcome::ALL {
            exchange.report_done(outcome);
            assert_eq!(exchange.take_done(), Some(outcome));
            assert_eq!(exchange.take_done(), None);
        }
    }
}
