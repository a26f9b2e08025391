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

use super::settings::Edition;
use crate::model::{Monotonic, Outcome, Trigger};

/// Shared state; see the module.
pub struct Exchange {
    /// Outcome of the last order, until the reader takes it.
    pub(super) done: AtomicCell<Option<Outcome>>,
    /// By [`Trigger::ALL`]: those other than the kernel log, until the reader takes them.
    triggers: [AtomicBool; Trigger::ALL.len()],
    /// The expected drill, 0 for none.
    drill: AtomicU64,
    drill_acts: AtomicBool,
    pub(super) records: AtomicU64,
    pub(super) lost: AtomicU64,
    stopping: AtomicBool,
    /// Settings that the reader has not taken yet.
    pub(super) settings: AtomicCell<Option<Arc<Edition>>>,
    /// When the action in flight began, 0 for none.
    pub(super) acting_since: AtomicU64,
    pub(super) to_reader: OwnedFd,
    pub(super) to_actor: OwnedFd,
    /// Wakes the slow side: a socket pair, which both tokio and poll(2) can wait for.
    to_slow: UnixStream,
    slow_side: UnixStream,
}

impl Exchange {
    /// Creates the eventfds and the socket pair.
    pub fn new() -> io::Result<Exchange> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let (to_slow, slow_side) = UnixStream::pair()?;
        to_slow.set_nonblocking(true)?;
        slow_side.set_nonblocking(true)?;
        Ok(Exchange {
            done: AtomicCell::default(),
            triggers: Default::default(),
            drill: AtomicU64::default(),
            drill_acts: AtomicBool::default(),
            records: AtomicU64::default(),
            lost: AtomicU64::default(),
            stopping: AtomicBool::default(),
            settings: AtomicCell::default(),
            acting_since: AtomicU64::default(),
            to_reader: event()?,
            to_actor: event()?,
            to_slow,
            slow_side,
        })
    }

    /// Requests a rescue for a trigger other than the kernel log.
    pub fn trigger(&self, trigger: Trigger) {
        for (one, requested) in Trigger::ALL.into_iter().zip(&self.triggers) {
            requested.fetch_or(one == trigger, Ordering::Relaxed);
        }
        wake(&self.to_reader);
    }

    /// The requested triggers, which are then requested no longer.
    pub(super) fn take_triggers(&self) -> impl Iterator<Item = Trigger> {
        let triggers = Trigger::ALL.into_iter().zip(&self.triggers);
        let requested = triggers.filter(|(_, requested)| requested.swap(false, Ordering::Relaxed));
        requested.map(|(trigger, _)| trigger)
    }

    /// Announces a drill by its nonzero number; `act` selects a real write.
    pub fn expect_drill(&self, nonce: u64, act: bool) {
        self.drill_acts.store(act, Ordering::Relaxed);
        self.drill.store(nonce, Ordering::Release);
    }

    /// Takes the announced drill and returns whether it acts; `None` if `nonce` was not announced.
    pub(super) fn take_drill(&self, nonce: u64) -> Option<bool> {
        let expected = self
            .drill
            .compare_exchange(nonce, 0, Ordering::Acquire, Ordering::Relaxed);
        (nonce != 0 && expected.is_ok()).then(|| self.drill_acts.load(Ordering::Relaxed))
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

    /// Passes settings to the reader, replacing those not taken yet. For the slow side only:
    /// replaced settings may be freed here.
    pub(super) fn offer(&self, settings: Arc<Edition>) {
        drop(self.settings.swap(Some(settings)));
        wake(&self.to_reader);
    }

    /// Stops both threads.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        wake(&self.to_reader);
        wake(&self.to_actor);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The socket that becomes readable when a ring has new entries.
    pub fn slow_side(&self) -> &UnixStream {
        &self.slow_side
    }

    pub(super) fn wake_slow_side(&self) {
        wake(&self.to_slow);
    }
}

/// Fails only if the counter or the socket is full; a wake-up is then pending already.
pub(super) fn wake(event: impl AsFd) {
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

    /// Otherwise they would take a lock (`AtomicCell::is_lock_free`).
    #[test]
    fn the_cells_take_no_lock() {
        assert!(AtomicCell::<Option<Arc<Edition>>>::is_lock_free());
        assert!(AtomicCell::<Option<Outcome>>::is_lock_free());
    }

    #[test]
    fn a_trigger_is_taken_once() {
        let exchange = Exchange::new().unwrap();
        assert_eq!(exchange.take_triggers().next(), None);
        for _ in 0..2 {
            exchange.trigger(Trigger::Stall);
            exchange.trigger(Trigger::File);
        }
        let taken: Vec<_> = exchange.take_triggers().collect();
        assert_eq!(taken, [Trigger::Stall, Trigger::File]);
        assert_eq!(exchange.take_triggers().next(), None);
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
            exchange.done.store(Some(outcome));
            assert_eq!(exchange.done.take(), Some(outcome));
            assert_eq!(exchange.done.take(), None);
        }
    }
}
