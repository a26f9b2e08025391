//! The layout of a ring's entry, written once for both directions.

/// A cursor that fills or reads the words of an entry; past the last word, it does nothing.
pub(super) enum Words<'a> {
    /// Copies values into the words.
    Fill(&'a mut [u64]),
    /// Replaces values by the words.
    Read(&'a [u64]),
}

impl Words<'_> {
    fn word(&mut self, value: &mut u64) {
        match self {
            Words::Fill(words) => {
                if let Some((word, rest)) = std::mem::take(words).split_first_mut() {
                    *word = *value;
                    *words = rest;
                }
            }
            Words::Read(words) => {
                if let Some((word, rest)) = words.split_first() {
                    *value = *word;
                    *words = rest;
                }
            }
        }
    }

    pub(super) fn number<T: Copy + Into<u64> + TryFrom<u64>>(&mut self, value: &mut T) {
        let mut word = (*value).into();
        self.word(&mut word);
        *value = T::try_from(word).unwrap_or(*value);
    }

    pub(super) fn flag(&mut self, value: &mut bool) {
        let mut word = u64::from(*value);
        self.word(&mut word);
        *value = word != 0;
    }

    /// Transfers a value as its index in `all`.
    pub(super) fn one_of<T: Copy + PartialEq, const N: usize>(
        &mut self,
        all: &[T; N],
        value: &mut T,
    ) {
        let mut word = place(all, *value);
        self.word(&mut word);
        *value = from(all, word);
    }

    /// Transfers eight bytes per word.
    pub(super) fn bytes(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let mut buffer = [0; 8];
            buffer
                .iter_mut()
                .zip(&*part)
                .for_each(|(to, from)| *to = *from);
            let mut word = u64::from_le_bytes(buffer);
            self.word(&mut word);
            let from = word.to_le_bytes();
            part.iter_mut().zip(from).for_each(|(to, from)| *to = from);
        }
    }
}

/// Index of a value in `all`; the inverse of [`from`].
pub(super) fn place<T: PartialEq>(all: &[T], one: T) -> u64 {
    let place = all.iter().position(|other| *other == one);
    place
        .and_then(|place| u64::try_from(place).ok())
        .unwrap_or(0)
}

/// The value at an index returned by [`place`].
pub(super) fn from<T: Copy, const N: usize>(all: &[T; N], place: u64) -> T {
    const { assert!(N > 0) };
    let place = usize::try_from(place).unwrap_or(0);
    all.get(place).copied().unwrap_or(all[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_filled_is_read(first: u64, small: u16, flag: bool, text: [u8; 20], size in 0_usize..9) {
            let mut words = vec![0; size];
            let fill = &mut Words::Fill(&mut words);
            fill.number(&mut first.clone());
            fill.number(&mut small.clone());
            fill.flag(&mut flag.clone());
            fill.bytes(&mut text.clone());
            let (mut read_first, mut read_small, mut read_flag, mut read_text) = (0_u64, 0_u16, false, [0; 20]);
            let read = &mut Words::Read(&words);
            read.number(&mut read_first);
            read.number(&mut read_small);
            read.flag(&mut read_flag);
            read.bytes(&mut read_text);
            prop_assert_eq!(read_first, if size > 0 { first } else { 0 });
            prop_assert_eq!(read_small, if size > 1 { small } else { 0 });
            prop_assert_eq!(read_flag, size > 2 && flag);
            let fits = (size.saturating_sub(3) * 8).min(20);
            prop_assert_eq!(&read_text[..fits], &text[..fits]);
            prop_assert!(read_text[fits..].iter().all(|byte| *byte == 0));
        }
    }
}
