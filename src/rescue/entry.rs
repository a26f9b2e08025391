//! The entries of the rings: what the fast side reports to the slow side.

use super::ladder::{Began, Ended, Limit, Order};
use super::proof::{Counters, ORDERS};
use super::ring::{Packed, Packer, Unpacker};
use crate::klog::{KernelTime, RuleId};
use crate::model::{IncidentId, Monotonic, Outcome, RescueStep, Trigger};

/// Bytes of a kernel line that are kept.
pub const LINE_MAX: usize = 200;
/// Words of an entry of the reader.
pub const NOTICE_WORDS: usize = 34;
/// Words of an entry of the actor.
pub const REPORT_WORDS: usize = 12 + 2 * (7 + ORDERS);

/// A line of the kernel, as much of it as is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    bytes: [u8; LINE_MAX],
    length: usize,
}

impl Line {
    /// Keeps the first [`LINE_MAX`] bytes.
    #[must_use]
    pub fn new(text: &[u8]) -> Line {
        let mut bytes = [0; LINE_MAX];
        bytes
            .iter_mut()
            .zip(text)
            .for_each(|(to, from)| *to = *from);
        Line {
            bytes,
            length: text.len().min(LINE_MAX),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// An entry of the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A record matched a rule.
    Matched {
        /// The settings in force, as [`FastSide`](super::thread::FastSide) numbers them.
        edition: u64,
        /// The rule.
        rule: RuleId,
        /// The record's number.
        sequence: u64,
        /// When the kernel wrote it.
        time: KernelTime,
        /// When it was read.
        at: Monotonic,
        /// Its text.
        line: Line,
    },
    /// An incident began.
    Began(Began, Monotonic),
    /// An incident ended.
    Ended(Ended, Monotonic),
    /// The hourly limit begins or ends to hold actions back.
    Limit(Limit, Monotonic),
    /// The record of a drill came back.
    DrillSeen {
        /// Which drill.
        nonce: u64,
        /// When it was read.
        at: Monotonic,
    },
    /// The kernel's log can (0) or cannot (an error number) be read.
    Source(u32),
}

/// An entry of the actor: an action that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The order.
    pub order: Order,
    /// Whether it was a drill's.
    pub drill: bool,
    /// The outcome.
    pub outcome: Outcome,
    /// The error of the write; 0 if there was none.
    pub error: u32,
    /// When the reason for the order was read.
    pub read: Monotonic,
    /// When the write began.
    pub began: Monotonic,
    /// When it ended.
    pub ended: Monotonic,
    /// When `before` was read: some seconds earlier, so that the write need not wait for it.
    pub before_at: Monotonic,
    /// The counters before.
    pub before: Counters,
    /// The counters after.
    pub after: Counters,
}

impl Packed<NOTICE_WORDS> for Notice {
    fn pack(&self) -> [u64; NOTICE_WORDS] {
        let packer = Packer::new();
        match *self {
            Notice::Matched {
                edition,
                rule,
                sequence,
                time,
                at,
                line,
            } => packer
                .number(1)
                .number(edition)
                .number(rule.0.into())
                .number(sequence)
                .number(time.0)
                .number(at.0)
                .text(line.bytes()),
            Notice::Began(began, at) => packer
                .number(2)
                .number(at.0)
                .number(began.incident.0)
                .number(place(&Trigger::ALL, began.trigger)),
            Notice::Ended(ended, at) => packer
                .number(3)
                .number(at.0)
                .number(ended.incident.0)
                .number(place(&Trigger::ALL, ended.trigger))
                .number(ended.began.0)
                .number(ended.last_match.0)
                .number(ended.matches)
                .number(ended.matches_in_flight)
                .number(ended.actions.into())
                .number(ended.failed.into())
                .number(ended.held_back),
            Notice::Limit(limit, at) => {
                let (over, held_back) = match limit {
                    Limit::Reached => (0, 0),
                    Limit::Over { held_back } => (1, held_back),
                };
                packer.number(4).number(at.0).number(over).number(held_back)
            }
            Notice::DrillSeen { nonce, at } => packer.number(5).number(nonce).number(at.0),
            Notice::Source(error) => packer.number(0).number(error.into()),
        }
        .finish()
    }

    fn unpack(words: &[u64; NOTICE_WORDS]) -> Notice {
        let mut words = Unpacker::new(words);
        match words.number() {
            1 => Notice::Matched {
                edition: words.number(),
                rule: RuleId(narrow(words.number())),
                sequence: words.number(),
                time: KernelTime(words.number()),
                at: Monotonic(words.number()),
                line: {
                    let (bytes, length) = words.text();
                    Line { bytes, length }
                },
            },
            2 => {
                let at = Monotonic(words.number());
                let incident = IncidentId(words.number());
                Notice::Began(
                    Began {
                        incident,
                        trigger: from(&Trigger::ALL, words.number()),
                    },
                    at,
                )
            }
            3 => {
                let at = Monotonic(words.number());
                let ended = Ended {
                    incident: IncidentId(words.number()),
                    trigger: from(&Trigger::ALL, words.number()),
                    began: Monotonic(words.number()),
                    last_match: Monotonic(words.number()),
                    matches: words.number(),
                    matches_in_flight: words.number(),
                    actions: narrow(words.number()),
                    failed: narrow(words.number()),
                    held_back: words.number(),
                };
                Notice::Ended(ended, at)
            }
            4 => {
                let at = Monotonic(words.number());
                let limit = match (words.number(), words.number()) {
                    (0, _) => Limit::Reached,
                    (_, held_back) => Limit::Over { held_back },
                };
                Notice::Limit(limit, at)
            }
            5 => Notice::DrillSeen {
                nonce: words.number(),
                at: Monotonic(words.number()),
            },
            _ => Notice::Source(narrow(words.number())),
        }
    }
}

impl Packed<REPORT_WORDS> for Report {
    fn pack(&self) -> [u64; REPORT_WORDS] {
        let packer = Packer::new()
            .number(self.order.incident.0)
            .number(place(&RescueStep::ALL, self.order.step))
            .number(self.order.number.into())
            .number(self.drill.into())
            .number(place(&Outcome::ALL, self.outcome))
            .number(self.error.into())
            .number(self.read.0)
            .number(self.began.0)
            .number(self.ended.0)
            .number(self.before_at.0);
        pack_counters(pack_counters(packer, &self.before), &self.after).finish()
    }

    fn unpack(words: &[u64; REPORT_WORDS]) -> Report {
        let mut words = Unpacker::new(words);
        Report {
            order: Order {
                incident: IncidentId(words.number()),
                step: from(&RescueStep::ALL, words.number()),
                number: narrow(words.number()),
            },
            drill: words.number() != 0,
            outcome: from(&Outcome::ALL, words.number()),
            error: narrow(words.number()),
            read: Monotonic(words.number()),
            began: Monotonic(words.number()),
            ended: Monotonic(words.number()),
            before_at: Monotonic(words.number()),
            before: unpack_counters(&mut words),
            after: unpack_counters(&mut words),
        }
    }
}

fn pack_counters<const W: usize>(packer: Packer<W>, counters: &Counters) -> Packer<W> {
    let packer = packer
        .number(counters.drop_slab)
        .number(counters.drop_pagecache)
        .number(counters.compact_scanned)
        .number(counters.compact_fail)
        .number(counters.allocation_stalls)
        .number(counters.slab_reclaimable)
        .number(counters.slab_unreclaimable);
    counters
        .free_blocks
        .iter()
        .fold(packer, |packer, blocks| packer.number(*blocks))
}

fn unpack_counters(words: &mut Unpacker<'_>) -> Counters {
    Counters {
        drop_slab: words.number(),
        drop_pagecache: words.number(),
        compact_scanned: words.number(),
        compact_fail: words.number(),
        allocation_stalls: words.number(),
        slab_reclaimable: words.number(),
        slab_unreclaimable: words.number(),
        free_blocks: std::array::from_fn(|_| words.number()),
    }
}

/// The place of a value among all; the inverse of [`from`].
pub(super) fn place<T: PartialEq>(all: &[T], one: T) -> u64 {
    let place = all.iter().position(|other| *other == one);
    place
        .and_then(|place| u64::try_from(place).ok())
        .unwrap_or(0)
}

/// The value at a place that [`place`] returned.
pub(super) fn from<T: Copy, const N: usize>(all: &[T; N], place: u64) -> T {
    const { assert!(N > 0) };
    let place = usize::try_from(place).unwrap_or(0);
    all.get(place).copied().unwrap_or(all[0])
}

fn narrow<T: TryFrom<u64> + Default>(number: u64) -> T {
    T::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_notice_comes_out_as_it_went_in() {
        let began = Began {
            incident: IncidentId(7),
            trigger: Trigger::Stall,
        };
        let ended = Ended {
            incident: IncidentId(7),
            trigger: Trigger::File,
            began: Monotonic(1),
            last_match: Monotonic(2),
            matches: 3,
            matches_in_flight: 4,
            actions: 5,
            failed: 6,
            held_back: 7,
        };
        let matched = |text: &[u8]| Notice::Matched {
            edition: 2,
            rule: RuleId(3),
            sequence: 4,
            time: KernelTime(5),
            at: Monotonic(6),
            line: Line::new(text),
        };
        let all = [
            matched(b""),
            matched(b"XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)"),
            matched(&[b'x'; 1000]),
            Notice::Began(began, Monotonic(9)),
            Notice::Ended(ended, Monotonic(10)),
            Notice::Limit(Limit::Reached, Monotonic(11)),
            Notice::Limit(Limit::Over { held_back: 9 }, Monotonic(11)),
            Notice::DrillSeen {
                nonce: u64::MAX,
                at: Monotonic(12),
            },
            Notice::Source(5),
        ];
        for notice in all {
            assert_eq!(Notice::unpack(&notice.pack()), notice);
        }
    }

    #[test]
    fn every_report_comes_out_as_it_went_in() {
        let after = Counters {
            drop_slab: 1,
            free_blocks: std::array::from_fn(|order| order as u64),
            ..Counters::default()
        };
        for step in RescueStep::ALL {
            for outcome in Outcome::ALL {
                let report = Report {
                    order: Order {
                        incident: IncidentId(1),
                        step,
                        number: 2,
                    },
                    drill: outcome == Outcome::DryRun,
                    outcome,
                    error: 28,
                    read: Monotonic(3),
                    began: Monotonic(4),
                    ended: Monotonic(5),
                    before_at: Monotonic(6),
                    before: Counters::default(),
                    after,
                };
                assert_eq!(Report::unpack(&report.pack()), report);
            }
        }
    }
}
