//! The ring entries: reports from the fast side to the slow side.

use super::ladder::{Began, Ended, Limit, Order};
use super::proof::{Counters, ORDERS};
use super::ring::Packed;
use super::words::Words;
use crate::klog::{KernelTime, RuleId};
use crate::model::{IncidentId, Monotonic, Outcome, RescueStep, Trigger};

/// Bytes kept of a kernel line.
pub const LINE_MAX: usize = 200;
/// Words of a notice.
pub const NOTICE_WORDS: usize = 7 + LINE_MAX / 8;
/// Words of a report.
pub const REPORT_WORDS: usize = 10 + 2 * (7 + ORDERS);

/// A kernel line, truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    bytes: [u8; LINE_MAX],
    /// At most [`LINE_MAX`].
    length: u16,
}

impl Line {
    /// Copies the first [`LINE_MAX`] bytes.
    pub fn new(text: &[u8]) -> Line {
        let mut bytes = [0; LINE_MAX];
        bytes
            .iter_mut()
            .zip(text)
            .for_each(|(to, from)| *to = *from);
        Line {
            bytes,
            length: u16::try_from(text.len().min(LINE_MAX)).unwrap_or(0),
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length.into()).unwrap_or_default()
    }
}

/// An entry from the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A record matched a rule.
    Matched {
        /// Number of the settings in force, as assigned by [`FastSide`](super::thread::FastSide).
        edition: u64,
        /// The rule.
        rule: RuleId,
        /// The record's sequence number.
        sequence: u64,
        /// The kernel's timestamp.
        time: KernelTime,
        /// When the record was read.
        at: Monotonic,
        /// The record's text.
        line: Line,
    },
    /// An incident began.
    Began(Began, Monotonic),
    /// An incident ended.
    Ended(Ended, Monotonic),
    /// The hourly limit begins or ends.
    Limit(Limit, Monotonic),
    /// The record of a drill was read.
    DrillSeen {
        /// Number of the drill.
        nonce: u64,
        /// When it was read.
        at: Monotonic,
    },
    /// The kernel log can be read (0), or cannot (an error number).
    Source(u32),
}

/// An entry from the actor: an action that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The order.
    pub order: Order,
    /// Whether it belongs to a drill.
    pub drill: bool,
    /// The outcome.
    pub outcome: Outcome,
    /// The error of the write; 0 for none.
    pub error: u32,
    /// When the trigger of the order was read.
    pub read: Monotonic,
    /// When the write began.
    pub began: Monotonic,
    /// When the write ended.
    pub ended: Monotonic,
    /// When `before` was read: some seconds before the write, to avoid a delay.
    pub before_at: Monotonic,
    /// The counters before.
    pub before: Counters,
    /// The counters after.
    pub after: Counters,
}

impl Packed<NOTICE_WORDS> for Notice {
    fn pack(&self) -> [u64; NOTICE_WORDS] {
        let mut words = [0; NOTICE_WORDS];
        let mut notice = *self;
        notice.transfer(&mut Words::Fill(&mut words));
        words
    }

    fn unpack(words: &[u64; NOTICE_WORDS]) -> Notice {
        let [kind, ..] = words;
        let mut notice = Notice::blank(*kind);
        notice.transfer(&mut Words::Read(words));
        notice
    }
}

impl Notice {
    fn blank(kind: u64) -> Notice {
        let at = Monotonic(0);
        match kind {
            1 => Notice::Matched {
                edition: 0,
                rule: RuleId(0),
                sequence: 0,
                time: KernelTime(0),
                at,
                line: Line::new(b""),
            },
            2 => Notice::Began(
                Began {
                    incident: IncidentId(0),
                    trigger: Trigger::KernelLog,
                },
                at,
            ),
            3 => Notice::Ended(Ended::begin(IncidentId(0), Trigger::KernelLog, at), at),
            4 => Notice::Limit(Limit::Reached, at),
            5 => Notice::Limit(Limit::Over { held_back: 0 }, at),
            6 => Notice::DrillSeen { nonce: 0, at },
            _ => Notice::Source(0),
        }
    }

    fn kind(&self) -> u64 {
        match self {
            Notice::Source(_) => 0,
            Notice::Matched { .. } => 1,
            Notice::Began(..) => 2,
            Notice::Ended(..) => 3,
            Notice::Limit(Limit::Reached, _) => 4,
            Notice::Limit(Limit::Over { .. }, _) => 5,
            Notice::DrillSeen { .. } => 6,
        }
    }

    fn transfer(&mut self, words: &mut Words<'_>) {
        words.number(&mut self.kind());
        match self {
            Notice::Matched {
                edition,
                rule,
                sequence,
                time,
                at,
                line,
            } => {
                words.number(edition);
                words.number(&mut rule.0);
                words.number(sequence);
                words.number(&mut time.0);
                words.number(&mut at.0);
                words.number(&mut line.length);
                words.bytes(&mut line.bytes);
            }
            Notice::Began(began, at) => {
                words.number(&mut began.incident.0);
                words.one_of(&Trigger::ALL, &mut began.trigger);
                words.number(&mut at.0);
            }
            Notice::Ended(ended, at) => {
                words.number(&mut ended.incident.0);
                words.one_of(&Trigger::ALL, &mut ended.trigger);
                words.number(&mut ended.began.0);
                words.number(&mut ended.last_match.0);
                words.number(&mut ended.matches);
                words.number(&mut ended.matches_in_flight);
                words.number(&mut ended.actions);
                words.number(&mut ended.failed);
                words.number(&mut ended.held_back);
                words.number(&mut at.0);
            }
            Notice::Limit(Limit::Reached, at) => words.number(&mut at.0),
            Notice::Limit(Limit::Over { held_back }, at) => {
                words.number(held_back);
                words.number(&mut at.0);
            }
            Notice::DrillSeen { nonce, at } => {
                words.number(nonce);
                words.number(&mut at.0);
            }
            Notice::Source(error) => words.number(error),
        }
    }
}

impl Packed<REPORT_WORDS> for Report {
    fn pack(&self) -> [u64; REPORT_WORDS] {
        let mut words = [0; REPORT_WORDS];
        let mut report = *self;
        report.transfer(&mut Words::Fill(&mut words));
        words
    }

    fn unpack(words: &[u64; REPORT_WORDS]) -> Report {
        let mut report = Report {
            order: Order {
                incident: IncidentId(0),
                step: RescueStep::DropSlab,
                number: 0,
            },
            drill: false,
            outcome: Outcome::Failed,
            error: 0,
            read: Monotonic(0),
            began: Monotonic(0),
            ended: Monotonic(0),
            before_at: Monotonic(0),
            before: Counters::default(),
            after: Counters::default(),
        };
        report.transfer(&mut Words::Read(words));
        report
    }
}

impl Report {
    fn transfer(&mut self, words: &mut Words<'_>) {
        words.number(&mut self.order.incident.0);
        words.one_of(&RescueStep::ALL, &mut self.order.step);
        words.number(&mut self.order.number);
        words.flag(&mut self.drill);
        words.one_of(&Outcome::ALL, &mut self.outcome);
        words.number(&mut self.error);
        for time in [
            &mut self.read,
            &mut self.began,
            &mut self.ended,
            &mut self.before_at,
        ] {
            words.number(&mut time.0);
        }
        for counters in [&mut self.before, &mut self.after] {
            words.number(&mut counters.drop_slab);
            words.number(&mut counters.drop_pagecache);
            words.number(&mut counters.compact_scanned);
            words.number(&mut counters.compact_fail);
            words.number(&mut counters.allocation_stalls);
            words.number(&mut counters.slab_reclaimable);
            words.number(&mut counters.slab_unreclaimable);
            counters
                .free_blocks
                .iter_mut()
                .for_each(|blocks| words.number(blocks));
        }
    }
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
