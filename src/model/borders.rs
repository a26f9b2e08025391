//! What separates an extent from its predecessor in the file: whether an engine can join the two.

use serde::{Deserialize, Serialize};

use super::extent::Extent;
use super::units::Bytes;

/// Extents of this length or more are left as they are.
pub const LONG: Bytes = Bytes(4 << 20);
/// The most bytes worth copying for each extent removed.
pub const WORTH: Bytes = Bytes(1 << 20);

/// Extents by the border before them: counts or estimates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Borders<T = u64> {
    /// No obstacle: the two can become one.
    pub joins: T,
    /// A hole, which no engine fills.
    pub holes: T,
    /// One of the two is shared with another file.
    pub shared: T,
    /// One of the two is unwritten or delayed.
    pub unwritten: T,
    /// Too long for a copy to be worthwhile; or the extent at the beginning of the file.
    pub long: T,
}

impl Borders {
    /// The number of extents.
    pub fn total(&self) -> u64 {
        self.joins + self.holes + self.shared + self.unwritten + self.long
    }
}

impl<T> Borders<T> {
    /// Applies a function to each value.
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

/// Counts the borders of extents in file order.
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

    /// Passes the next extent without counting it.
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
