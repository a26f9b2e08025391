//! A ring of fixed size, from one producer that must never block to one consumer that may. When the
//! ring is full, the oldest entry is overwritten, and the consumer counts it as lost. The producer
//! takes no lock, allocates nothing and runs a fixed number of instructions.
//!
//! Entry `n` goes to slot `n mod slots`, so the producer may overwrite what the consumer is
//! reading. The producer writes `n` into the slot as its owner, then the words, then `n + 1` into
//! `pushed`. The consumer learns from `pushed` that entry `n` is complete, and reads the words and
//! then the owner. If the owner is no longer `n`, the copy may be torn and the entry is lost. Every
//! word is atomic, so a racing read is not undefined behaviour; its copy is only discarded. Why no
//! torn copy is ever kept:
//!
//! - `pushed` is stored with release and loaded with acquire: the consumer sees every word of entry
//!   `n`, and its owner, as written by entry `n` or later entries, never older;
//! - the producer has a release fence between owner and words, the consumer an acquire fence
//!   between words and owner: if it read even one word of a later entry, it also reads that entry's
//!   owner, or a later one.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// An entry, copied as `W` words. `unpack` only gets results of `pack`.
pub trait Packed<const W: usize>: Copy {
    /// Converts the entry to words.
    fn pack(&self) -> [u64; W];
    /// Converts words to an entry.
    fn unpack(words: &[u64; W]) -> Self;
}

struct Slot<const W: usize> {
    /// Number of the entry in the slot, set before its words are written.
    owner: AtomicU64,
    words: [AtomicU64; W],
}

struct Shared<T, const W: usize> {
    slots: Box<[Slot<W>]>,
    /// Number of completed entries, including overwritten ones.
    pushed: AtomicU64,
    entry: PhantomData<fn(T) -> T>,
}

impl<T, const W: usize> Shared<T, W> {
    fn slot(&self, number: u64) -> Option<&Slot<W>> {
        let at = number.checked_rem(self.capacity())?;
        self.slots.get(usize::try_from(at).ok()?)
    }

    fn capacity(&self) -> u64 {
        u64::try_from(self.slots.len()).unwrap_or(u64::MAX)
    }
}

/// The writing side.
pub struct Producer<T, const W: usize> {
    shared: Arc<Shared<T, W>>,
    next: u64,
}

/// The reading side.
pub struct Consumer<T, const W: usize> {
    shared: Arc<Shared<T, W>>,
    next: u64,
    lost: u64,
}

/// Creates a ring of `slots` entries, at least one. Allocates all its memory.
pub fn ring<T: Packed<W>, const W: usize>(slots: usize) -> (Producer<T, W>, Consumer<T, W>) {
    let slot = |_| Slot {
        owner: AtomicU64::new(0),
        words: std::array::from_fn(|_| AtomicU64::new(0)),
    };
    let shared = Arc::new(Shared {
        slots: (0..slots.max(1)).map(slot).collect(),
        pushed: AtomicU64::new(0),
        entry: PhantomData,
    });
    let producer = Producer {
        shared: Arc::clone(&shared),
        next: 0,
    };
    let (next, lost) = (0, 0);
    (producer, Consumer { shared, next, lost })
}

impl<T: Packed<W>, const W: usize> Producer<T, W> {
    /// Adds an entry; overwrites the oldest one if the ring is full.
    pub fn push(&mut self, entry: &T) {
        let words = entry.pack();
        let Some(slot) = self.shared.slot(self.next) else {
            return;
        };
        slot.owner.store(self.next, Ordering::Relaxed);
        fence(Ordering::Release);
        for (place, word) in slot.words.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        self.next = self.next.wrapping_add(1);
        self.shared.pushed.store(self.next, Ordering::Release);
    }
}

impl<T: Packed<W>, const W: usize> Consumer<T, W> {
    /// Returns the oldest entry left, or `None`.
    pub fn pop(&mut self) -> Option<T> {
        loop {
            let pushed = self.shared.pushed.load(Ordering::Acquire);
            if self.next == pushed {
                return None;
            }
            // Skip entries that are known to be overwritten.
            let oldest = pushed.saturating_sub(self.shared.capacity());
            if self.next < oldest {
                self.lost = self.lost.saturating_add(oldest - self.next);
                self.next = oldest;
            }
            let words = self.read();
            self.next = self.next.wrapping_add(1);
            match words {
                Some(words) => return Some(T::unpack(&words)),
                None => self.lost = self.lost.saturating_add(1),
            }
        }
    }

    /// Entries overwritten before being read; final once [`pop`](Consumer::pop) returned `None`.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The words of entry `next`; `None` if the producer has reused its slot.
    fn read(&self) -> Option<[u64; W]> {
        let slot = self.shared.slot(self.next)?;
        let mut words = [0; W];
        for (word, place) in words.iter_mut().zip(&slot.words) {
            *word = place.load(Ordering::Relaxed);
        }
        fence(Ordering::Acquire);
        (slot.owner.load(Ordering::Relaxed) == self.next).then_some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;
    use std::time::{Duration, Instant};

    /// Every word follows from the number, so that a torn entry is recognised.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Numbered(u64);

    fn word(number: u64, at: usize) -> u64 {
        number
            .wrapping_add(at as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    impl Packed<9> for Numbered {
        fn pack(&self) -> [u64; 9] {
            let mut words: [u64; 9] = std::array::from_fn(|at| word(self.0, at));
            words[4] = self.0;
            words
        }

        fn unpack(words: &[u64; 9]) -> Numbered {
            for (at, found) in words.iter().enumerate().filter(|(at, _)| *at != 4) {
                assert_eq!(*found, word(words[4], at), "a torn entry");
            }
            Numbered(words[4])
        }
    }

    struct Stop<'a>(&'a AtomicBool);

    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// A producer against a consumer, until the consumer has read enough or tried long enough.
    /// Both rest at odd times, so that each laps and waits for the other.
    fn stress(slots: usize) {
        const READS: u64 = 300_000;
        let deadline = Instant::now() + Duration::from_secs(1);
        let (mut producer, mut consumer) = ring::<Numbered, 9>(slots);
        let enough = AtomicBool::new(false);
        let begin = Barrier::new(2);
        let mut read = 0;
        let pushed = std::thread::scope(|scope| {
            let producer = scope.spawn(|| {
                begin.wait();
                let mut number = 0;
                loop {
                    producer.push(&Numbered(number));
                    number += 1;
                    if enough.load(Ordering::Relaxed) {
                        break number;
                    }
                    (0..number % 13).for_each(|_| std::hint::spin_loop());
                }
            });
            // Also when an assertion fails, or the producer would never end.
            let stop = Stop(&enough);
            begin.wait();
            while read < READS && Instant::now() < deadline {
                while let Some(Numbered(number)) = consumer.pop() {
                    assert_eq!(number, read + consumer.lost());
                    read += 1;
                    (0..read % 17).for_each(|_| std::hint::spin_loop());
                    if read.is_multiple_of(1024) && (read >= READS || Instant::now() >= deadline) {
                        break;
                    }
                }
            }
            drop(stop);
            producer.join().unwrap()
        });
        while let Some(Numbered(number)) = consumer.pop() {
            assert_eq!(number, read + consumer.lost());
            read += 1;
        }
        assert_eq!(read + consumer.lost(), pushed);
        assert!(read > 0);
    }

    #[test]
    fn no_entry_is_torn_and_none_goes_uncounted() {
        for slots in [1, 2, 3, 8, 1000] {
            stress(slots);
        }
    }

    #[test]
    fn the_oldest_entries_are_lost() {
        let (mut producer, mut consumer) = ring::<Numbered, 9>(4);
        assert_eq!(consumer.pop(), None);
        for number in 0..10 {
            producer.push(&Numbered(number));
        }
        assert_eq!(consumer.pop(), Some(Numbered(6)));
        assert_eq!(consumer.lost(), 6);
        for number in [7, 8, 9] {
            assert_eq!(consumer.pop(), Some(Numbered(number)));
        }
        assert_eq!(consumer.pop(), None);
        assert_eq!(consumer.lost(), 6);
    }

    #[test]
    fn the_consumer_outlives_the_producer_and_the_other_way_round() {
        let (mut producer, mut consumer) = ring::<Numbered, 9>(0);
        producer.push(&Numbered(1));
        drop(producer);
        assert_eq!(consumer.pop(), Some(Numbered(1)));
        let (mut producer, consumer) = ring::<Numbered, 9>(2);
        drop(consumer);
        producer.push(&Numbered(1));
    }

    proptest! {
        #[test]
        fn a_ring_is_a_queue_that_forgets(slots in 1_usize..9, pushes: Vec<bool>) {
            let (mut producer, mut consumer) = ring::<Numbered, 9>(slots);
            let mut queue = VecDeque::new();
            let mut lost = 0;
            for (number, push) in (0..).zip(pushes) {
                if push {
                    producer.push(&Numbered(number));
                    queue.push_back(Numbered(number));
                    if queue.len() > slots {
                        queue.pop_front();
                        lost += 1;
                    }
                } else {
                    prop_assert_eq!(consumer.pop(), queue.pop_front());
                    prop_assert_eq!(consumer.lost(), lost);
                }
            }
        }
    }
}
