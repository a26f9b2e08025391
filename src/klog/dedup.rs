//! Recognises one event that several sources report. Pure.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::time::Duration;

use crate::model::Monotonic;

/// Where a kernel message was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// /dev/kmsg.
    Kmsg,
    /// A log file, by its index in the configuration.
    File(u16),
}

/// Separates the first record of an event from its duplicates in other sources.
///
/// A record of /dev/kmsg is never a duplicate. A line of a file is one if another source reported
/// the same text at about that time; the same text twice from one source is two events. Sources
/// differ in delay, so a line of a file is best checked a little later, with the time at which it
/// was read. Memory is fixed: only texts that matched a rule are to be stored, and the oldest is
/// overwritten when all places are taken, which at worst causes a second reaction to one event.
#[derive(Debug)]
pub struct Dedup {
    window: Duration,
    hasher: RandomState,
    shown: [Option<Shown>; Dedup::PLACES],
}

#[derive(Debug, Clone, Copy)]
struct Shown {
    text: u64,
    by: Source,
    at: Monotonic,
}

impl Dedup {
    /// Maximum number of texts remembered.
    pub const PLACES: usize = 64;

    /// Records further apart than `window` are two events.
    pub fn new(window: Duration) -> Dedup {
        Dedup {
            window,
            hasher: RandomState::new(),
            shown: [None; Dedup::PLACES],
        }
    }

    /// Registers a text that a source reported at a time. Returns true if it is not a duplicate.
    pub fn is_first(&mut self, by: Source, text: &[u8], at: Monotonic) -> bool {
        let text = self.hasher.hash_one(text.trim_ascii());
        let known = self.shown.iter().position(|shown| {
            shown.is_some_and(|shown| shown.text == text && self.is_near(shown.at, at))
        });
        if by != Source::Kmsg
            && let Some(Some(shown)) = known.and_then(|place| self.shown.get(place))
            && shown.by != by
        {
            return false;
        }
        let place = known.or_else(|| {
            // An unused place counts as the oldest.
            (0..)
                .zip(&self.shown)
                .min_by_key(|(_, shown)| shown.map(|shown| shown.at))
                .map(|(place, _)| place)
        });
        if let Some(shown) = place.and_then(|place| self.shown.get_mut(place)) {
            *shown = Some(Shown { text, by, at });
        }
        true
    }

    fn is_near(&self, one: Monotonic, other: Monotonic) -> bool {
        one.since(other).max(other.since(one)) <= self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_of_several_sources_is_first_once() {
        let second = |seconds: u64| Monotonic(seconds * 1_000_000_000);
        let mut dedup = Dedup::new(Duration::from_secs(10));
        let (kmsg, one, two) = (Source::Kmsg, Source::File(0), Source::File(1));

        assert!(dedup.is_first(kmsg, b"a", second(100)));
        assert!(!dedup.is_first(one, b"a", second(101)));
        assert!(!dedup.is_first(two, b" a\n", second(110)));
        assert!(dedup.is_first(one, b"b", second(101)));
        // Asked late, with the time at which it was seen.
        assert!(!dedup.is_first(one, b"a", second(99)));
        assert!(dedup.is_first(one, b"a", second(111)));

        // The kernel's own word is never doubted.
        assert!(dedup.is_first(kmsg, b"a", second(112)));
        assert!(dedup.is_first(kmsg, b"a", second(113)));
        assert!(!dedup.is_first(one, b"a", second(114)));

        // Two files without /dev/kmsg: the event after the first one is an event.
        assert!(dedup.is_first(one, b"c", second(200)));
        assert!(!dedup.is_first(two, b"c", second(201)));
        assert!(dedup.is_first(one, b"c", second(202)));
        assert!(!dedup.is_first(two, b"c", second(203)));
    }

    #[test]
    fn too_many_events_forget_the_oldest() {
        let mut dedup = Dedup::new(Duration::from_secs(1000));
        for number in 0..Dedup::PLACES as u64 + 1 {
            assert!(dedup.is_first(
                Source::Kmsg,
                number.to_string().as_bytes(),
                Monotonic(number)
            ));
        }
        let at = Monotonic(100);
        assert!(!dedup.is_first(Source::File(0), b"1", at));
        assert!(dedup.is_first(Source::File(0), b"0", at));
    }
}
