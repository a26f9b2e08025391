//! What lies between an extent and the one before it in the file, and so whether an engine can join
//! the two.

use serde::{Deserialize, Serialize};

use super::extent::Extent;
use super::units::Bytes;

/// An extent of this length or more is left as it is.
pub const LONG: Bytes = Bytes(4 << 20);
/// A copy is worth its bytes if it removes an extent for each so many of them.
pub const WORTH: Bytes = Bytes(1 << 20);

/// Extents by the border before them: numbers, or estimates of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Borders<T = u64> {
    /// Nothing: the two can become one.
    pub joins: T,
    /// A hole, which no engine fills.
    pub holes: T,
    /// One of the two belongs to another file as well.
    pub shared: T,
    /// One of the two is unwritten.
    pub unwritten: T,
    /// Both are so long that a copy is not worth it; or there is none before it.
    pub long: T,
}

impl Borders {
    /// The number of extents.
    pub fn total(&self) -> u64 {
        self.joins + self.holes + self.shared + self.unwritten + self.long
    }
}

impl<T> Borders<T> {
    /// The same with a value made of each.
    pub fn map<U>(self, mut of: impl FnMut(T) -> U) -> Borders<U> {
        Borders {
            joins: of(self.joins),
            holes: of(self.holes),
            shared: of(self.shared),
            unwritten: of(self.unwritten),
            long: of(self.long),
        }
    }
}

/// Counts borders from extents in the order of the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BorderCount {
    /// The counts so far.
    pub borders: Borders,
    before: Option<Extent>,
}

impl BorderCount {
    /// Counts the next extent.
    pub fn push(&mut self, extent: &Extent) {
        *self.border(extent) += 1;
        self.skip(extent);
    }

    /// Takes the next extent without counting it.
    pub fn skip(&mut self, extent: &Extent) {
        self.before = Some(*extent);
    }

    fn border(&mut self, extent: &Extent) -> &mut u64 {
        let borders = &mut self.borders;
        let Some(before) = self.before.filter(|before| before.end() == extent.logical) else {
            return match extent.logical.0 {
                0 => &mut borders.long,
                _ => &mut borders.holes,
            };
        };
        let either = |is: fn(&Extent) -> bool| is(&before) || is(extent);
        let both = before.length.saturating_add(extent.length);
        if either(|it| it.flags.shared) {
            &mut borders.shared
        } else if either(|it| it.flags.unwritten || it.flags.delayed) {
            &mut borders.unwritten
        } else if either(|it| it.length >= LONG) || both.0 > 2 * WORTH.0 {
            &mut borders.long
        } else {
            &mut borders.joins
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ExtentFlags;
    use crate::model::extent::tests::extent;

    #[test]
    fn each_border_has_its_kind() {
        let mut extents = vec![extent(0, 1), extent(1, 1), extent(3, 1)];
        let with = |flag: fn(&mut ExtentFlags), mut extent: Extent| {
            flag(&mut extent.flags);
            extent
        };
        extents.push(with(|flags| flags.shared = true, extent(4, 1)));
        extents.push(extent(5, 1));
        extents.push(with(|flags| flags.unwritten = true, extent(6, 1)));
        extents.push(with(|flags| flags.delayed = true, extent(7, 1)));
        extents.extend([extent(8, 1024), extent(1032, 1), extent(1033, 512)]);
        let expected = Borders {
            joins: 1,
            holes: 1,
            shared: 2,
            unwritten: 3,
            long: 3,
        };
        let mut count = BorderCount::default();
        extents.iter().for_each(|extent| count.push(extent));
        assert_eq!(count.borders, expected);
        assert_eq!(expected.total(), extents.len() as u64);
    }
}
