//! The layout of ring entries: each type lists its words once, for both directions.

use crate::klog::{KernelTime, RuleId};
use crate::model::{IncidentId, Monotonic, Outcome, RescueStep, Trigger};

/// A value that consists of words.
pub(super) trait Words {
    /// Calls `on_word` with each word; the value takes on the words that it leaves.
    fn each(&mut self, on_word: &mut dyn FnMut(&mut u64));
}

/// The words of a value: those that fit, and zeros behind them.
pub(super) fn to_words<const W: usize>(mut value: impl Words) -> [u64; W] {
    let mut words = [0; W];
    let mut places = words.iter_mut();
    value.each(&mut |word| places.next().into_iter().for_each(|place| *place = *word));
    words
}

/// Replaces the words of a value; those that are missing stay.
pub(super) fn from_words<T: Words>(mut value: T, words: &[u64]) -> T {
    let mut words = words.iter();
    value.each(&mut |word| words.next().into_iter().for_each(|new| *word = *new));
    value
}

impl Words for u64 {
    fn each(&mut self, on_word: &mut dyn FnMut(&mut u64)) {
        on_word(self);
    }
}

impl<const N: usize> Words for [u64; N] {
    fn each(&mut self, on_word: &mut dyn FnMut(&mut u64)) {
        self.iter_mut().for_each(on_word);
    }
}

macro_rules! smaller_numbers {
    ($($type:ty)+) => {
        $(impl Words for $type {
            fn each(&mut self, on_word: &mut dyn FnMut(&mut u64)) {
                let mut word = u64::from(*self);
                on_word(&mut word);
                *self = <$type>::try_from(word).unwrap_or(*self);
            }
        })+
    };
}
smaller_numbers! { u16 u32 }

/// Types with few values; the word is the index.
macro_rules! choices {
    ($($type:ty: $all:expr;)+) => {
        $(impl Words for $type {
            fn each(&mut self, on_word: &mut dyn FnMut(&mut u64)) {
                let all = $all;
                let mut word = all.iter().position(|one| one == self).unwrap_or(0) as u64;
                on_word(&mut word);
                let index = usize::try_from(word).unwrap_or(usize::MAX);
                *self = all.get(index).copied().unwrap_or(*self);
            }
        })+
    };
}
choices! {
    bool: [false, true];
    RescueStep: RescueStep::ALL;
    Outcome: Outcome::ALL;
    Trigger: Trigger::ALL;
}

/// Types whose words are those of their fields, in this order. A list that lacks one is an error.
macro_rules! fields {
    ($($type:ident { $($field:tt)+ })+) => {
        $(impl Words for $type {
            fn each(&mut self, on_word: &mut dyn FnMut(&mut u64)) {
                let $type { $($field: _),+ } = self;
                $(self.$field.each(on_word);)+
            }
        })+
    };
}
pub(super) use fields;
fields! {
    Monotonic { 0 }
    KernelTime { 0 }
    IncidentId { 0 }
    RuleId { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy, Default, PartialEq)]
    struct Mixed {
        first: u64,
        small: u16,
        flag: bool,
        step: RescueStep,
        rest: [u64; 3],
    }

    fields! {
        Mixed { first small flag step rest }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(first: u64, small: u16, flag: bool, step in 0_usize..3, rest: [u64; 3]) {
            let step = RescueStep::ALL[step];
            let mixed = Mixed { first, small, flag, step, rest };
            prop_assert_eq!(from_words(Mixed::default(), &to_words::<7>(mixed)), mixed);
            prop_assert_eq!(from_words(Mixed::default(), &to_words::<9>(mixed)), mixed);
            // Words that do not fit are left out.
            let cut = Mixed { step: RescueStep::default(), rest: [0; 3], ..mixed };
            prop_assert_eq!(from_words(Mixed::default(), &to_words::<3>(mixed)), cut);
        }

        #[test]
        fn words_of_no_value_change_nothing(words: [u64; 7]) {
            let read = from_words(Mixed::default(), &words);
            prop_assert_eq!(read.first, words[0]);
            prop_assert_eq!(u64::from(read.small), if words[1] <= 0xffff { words[1] } else { 0 });
            prop_assert_eq!(read.flag, words[2] == 1);
        }
    }
}
