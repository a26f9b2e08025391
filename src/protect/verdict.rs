//! Judges how many extents an image can still gain, at worst: its guest writes all of it, block by
//! block in random order, and each new extent lies apart from the others. Pure.
//!
//! What is reserved already gains none for good, but many for a time: written and unwritten blocks
//! next to each other are two records of the map, though one fragment. When half of n blocks are
//! written at random, n/2 records are expected; [`hints`](super::hints) has the measurement.

use std::fmt::Write as _;

use super::facts::Facts;
use crate::model::words::words;
use crate::model::{Bytes, ExtentCount, Format};
use crate::table::counted;

/// No image is at risk that gains no more than these, or one for each [`AIM_PIECE`]: so many take some
/// 180 KB of kernel memory.
const HARMLESS: u64 = 10_000;
/// The aim: 10,000 extents for 100 GiB.
const AIM_PIECE: Bytes = Bytes((100 << 30) / 10_000);
/// An image that can gain an extent for less than that shatters. Half of the hint that QEMU gives its
/// images, which therefore do not.
const SHATTERED_PIECE: Bytes = Bytes(512 << 10);

words! {
    /// What can become of an image.
    pub enum Risk: Display {
        /// It stays near its present number of extents.
        Safe = "safe",
        /// It can gain more than the aim, one extent for each 512 KiB at most.
        Bounded = "bounded",
        /// It can gain more.
        Shatters = "shatters",
    }
}

/// Where most new extents come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Holes that are written.
    Holes,
    /// The growth of a qcow2, cluster by cluster.
    Growth,
    /// Copy on write of shared blocks.
    Shared,
}

/// The judgement of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// `None` if nothing can be said: it is not on XFS.
    pub risk: Option<Risk>,
    /// Fragments when all of it is written.
    pub at_worst: ExtentCount,
    /// The most records of its map on the way there, if it is written in random order.
    pub meanwhile: ExtentCount,
    gains: Gains,
}

/// New fragments, by where they come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Gains {
    holes: u64,
    growth: u64,
    shared: u64,
}

impl Gains {
    fn of(facts: &Facts<'_>) -> Gains {
        let holes = facts.holes();
        // A piece is cut at the ends of its hole.
        let pieces = in_pieces(holes, facts.piece()).saturating_add(facts.hole_count());
        Gains {
            holes: pieces.min(in_pieces(holes, facts.block())),
            growth: in_pieces(facts.growth(), facts.growth_piece()),
            shared: in_pieces(facts.shared(), facts.cow_piece()),
        }
    }

    fn sum(&self) -> u64 {
        let sum = self.holes.saturating_add(self.growth);
        sum.saturating_add(self.shared)
    }
}

fn in_pieces(bytes: Bytes, piece: Bytes) -> u64 {
    bytes.0.div_ceil(piece.0.max(1))
}

impl Verdict {
    /// Judges an image. No text is made: a daemon judges all images each minute.
    pub fn of(facts: &Facts<'_>) -> Verdict {
        let gains = Gains::of(facts);
        let at_worst = facts.fragments().saturating_add(gains.sum());
        let is_piecewise = facts.piece() > facts.block();
        let reserved = if is_piecewise {
            facts.holes()
        } else {
            Bytes(0)
        };
        let reserved = reserved.saturating_add(facts.unwritten());
        // Copy on write remaps only the blocks that are written, whatever is reserved around them.
        let reserved = reserved.saturating_add(facts.shared());
        let by_turns = in_pieces(reserved, facts.block()) / 2;
        let now = facts.sample.extents.0;
        Verdict {
            risk: facts.is_xfs().then(|| risk(facts, gains.sum())),
            at_worst: ExtentCount(at_worst),
            meanwhile: ExtentCount(at_worst.max(now).max(by_turns)),
            gains,
        }
    }

    /// The judgement as one sentence, without a full stop.
    pub fn text(&self, facts: &Facts<'_>) -> String {
        let Some(filesystem) = facts.filesystem.filter(|_| facts.is_xfs()) else {
            let kind = facts
                .filesystem
                .map_or("an unknown file system", |it| &it.type_name);
            return format!("not judged: lies on {kind}, which has no extent-size hints");
        };
        let mut text = self.cause(facts);
        // Writing to a String cannot fail, here and below.
        if facts.unwritten() >= AIM_PIECE {
            let _ = write!(text, ", {} not yet written", facts.unwritten());
        }
        if grows_unseen(facts.sample.format) {
            text.push_str("; how far it grows is not known");
        }
        if facts.discards() == Some(true) {
            text.push_str("; its VM discards, so that free blocks become holes again");
        }
        if facts.whole_map().is_none() {
            let sharing = filesystem.features.is_some_and(|it| it.reflink);
            let what = if sharing {
                "fragments and sharing are"
            } else {
                "fragments are"
            };
            let _ = write!(text, "; its map was not read, so {what} not known");
        }
        text
    }

    /// Where most new extents come from; `None` without any.
    pub fn origin(&self) -> Option<Origin> {
        let Gains {
            holes,
            growth,
            shared,
        } = self.gains;
        match holes.max(growth).max(shared) {
            0 => None,
            most if most == holes => Some(Origin::Holes),
            most if most == growth => Some(Origin::Growth),
            _ => Some(Origin::Shared),
        }
    }

    /// The sentence about it.
    fn cause(&self, facts: &Facts<'_>) -> String {
        let hint = hint(facts.sample.extent_size_hint);
        match self.origin() {
            None => self.safe(facts),
            Some(Origin::Holes) => {
                let percent = facts.hole_percent();
                let sparse = match percent {
                    0 => format!("{hint}, {} of holes", facts.holes()),
                    _ => format!("sparse, {hint}, {percent} % holes"),
                };
                match facts.piece() > facts.block() {
                    true => format!("can gain an extent for each {}: {sparse}", facts.piece()),
                    false => format!("will gain an extent with nearly every new block: {sparse}"),
                }
            }
            Some(Origin::Growth) => {
                let (piece, left) = (facts.growth_piece(), facts.growth());
                format!("can gain an extent for each cluster of {piece}: qcow2, {left} to grow")
            }
            Some(Origin::Shared) => {
                let (piece, shared) = (facts.cow_piece(), facts.shared());
                let cow = match facts.sample.cow_hint.max(facts.sample.extent_size_hint) {
                    Bytes(0) => "no copy-on-write hint".to_owned(),
                    hint => format!("copy-on-write hint of {hint}"),
                };
                format!(
                    "can gain an extent for each {piece}: shares {shared} with other files, {cow}"
                )
            }
        }
    }

    fn safe(&self, facts: &Facts<'_>) -> String {
        let how = match facts.unwritten() {
            Bytes(0) => "fully allocated",
            _ => "preallocated",
        };
        let verb = match facts.discards() {
            Some(true) => "can shatter only by discards",
            _ => "cannot shatter",
        };
        let fragments = facts.whole_map().map(|map| match map.fragments {
            1 => ", one fragment".to_owned(),
            number => format!(", {}", counted(number, "fragment")),
        });
        format!("{verb}: {how}{}", fragments.unwrap_or_default())
    }
}

fn risk(facts: &Facts<'_>, gain: u64) -> Risk {
    let for_each = |piece| in_pieces(facts.full_size(), piece);
    if gain > HARMLESS.max(for_each(SHATTERED_PIECE)) {
        Risk::Shatters
    } else if gain > HARMLESS.max(for_each(AIM_PIECE)) || facts.discards() == Some(true) {
        Risk::Bounded
    } else {
        Risk::Safe
    }
}

fn hint(hint: Bytes) -> String {
    match hint {
        Bytes(0) => "no hint".to_owned(),
        hint => format!("hint of {hint}"),
    }
}

/// Whether a format grows by a rule that is not read here.
fn grows_unseen(format: Format) -> bool {
    !matches!(format, Format::Raw | Format::Qcow2 | Format::Luks)
}

#[cfg(test)]
mod tests;
