//! The ring entries: notices and reports for the slow side, jobs for the actor.

use super::ladder::{Began, Ended, Limit, Order};
use super::proof::{Counters, ORDERS};
use super::ring::Packed;
use super::words::{Words, fields, from_words, to_words};
use crate::klog::{KernelTime, RuleId};
use crate::model::{Monotonic, Outcome};

/// Bytes kept of a kernel line.
pub const LINE_MAX: usize = 200;
/// Words of a notice.
pub const NOTICE_WORDS: usize = 7 + LINE_MAX / 8;
/// Words of a report.
pub const REPORT_WORDS: usize = 10 + 2 * (8 + ORDERS);
/// Words of a job.
pub(super) const JOB_WORDS: usize = 6;

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
        let copied = bytes.iter_mut().zip(text).map(|(to, from)| *to = *from);
        let length = u16::try_from(copied.count()).unwrap_or(0);
        Line { bytes, length }
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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

/// An entry for the actor: an action to be carried out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) order: Order,
    pub(super) drill: bool,
    pub(super) dry_run: bool,
    /// When its trigger was read.
    pub(super) read: Monotonic,
}

fields! {
    Order { incident step number }
    Job { order drill dry_run read }
    Report { order drill outcome error read began ended before_at before after }
    Counters {
        drop_slab drop_pagecache compact_scanned compact_fail allocation_stalls
        slab_reclaimable_kib slab_unreclaimable_kib available_kib free_blocks
    }
    Began { incident trigger }
    Ended {
        incident trigger began last_match matches matches_in_flight actions failed held_back
    }
}

const _: () = assert!(LINE_MAX / 8 * 8 == LINE_MAX);

impl Words for Line {
    fn each(&mut self, on_word: &mut dyn FnMut(&mut u64)) {
        self.length.each(on_word);
        for part in self.bytes.as_chunks_mut::<8>().0 {
            let mut word = u64::from_le_bytes(*part);
            on_word(&mut word);
            *part = word.to_le_bytes();
        }
    }
}

impl Notice {
    /// A notice of the kind that is the first word.
    fn of_kind(kind: u64) -> Notice {
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
            2 => Notice::Began(Began::default(), at),
            3 => Notice::Ended(Ended::default(), at),
            4 => Notice::Limit(Limit::Reached, at),
            5 => Notice::Limit(Limit::Over { held_back: 0 }, at),
            6 => Notice::DrillSeen { nonce: 0, at },
            _ => Notice::Source(0),
        }
    }
}

impl Words for Notice {
    fn each(&mut self, on_word: &mut dyn FnMut(&mut u64)) {
        let mut all = |kind: u64, words: &mut [&mut dyn Words]| {
            on_word(&mut { kind });
            words.iter_mut().for_each(|word| word.each(on_word));
        };
        match self {
            Notice::Source(error) => all(0, &mut [error]),
            Notice::Matched {
                edition,
                rule,
                sequence,
                time,
                at,
                line,
            } => all(1, &mut [edition, rule, sequence, time, at, line]),
            Notice::Began(began, at) => all(2, &mut [began, at]),
            Notice::Ended(ended, at) => all(3, &mut [ended, at]),
            Notice::Limit(Limit::Reached, at) => all(4, &mut [at]),
            Notice::Limit(Limit::Over { held_back }, at) => all(5, &mut [held_back, at]),
            Notice::DrillSeen { nonce, at } => all(6, &mut [nonce, at]),
        }
    }
}

/// Entries of rings, with the value that takes on the words of one.
macro_rules! packed {
    ($($type:ty, $words:ident, $blank:expr;)+) => {
        $(impl Packed<$words> for $type {
            fn pack(&self) -> [u64; $words] {
                to_words(*self)
            }

            fn unpack(words: &[u64; $words]) -> $type {
                from_words($blank(words[0]), words)
            }
        })+
    };
}
packed! {
    Notice, NOTICE_WORDS, Notice::of_kind;
    Report, REPORT_WORDS, |_| Report::default();
    Job, JOB_WORDS, |_| Job::default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{IncidentId, RescueStep, Trigger};

    #[test]
    fn every_job_comes_out_as_it_went_in() {
        for (step, drill, dry_run) in [
            (RescueStep::DropSlab, false, false),
            (RescueStep::DropAll, true, false),
            (RescueStep::CompactMemory, false, true),
        ] {
            let order = Order {
                incident: IncidentId(u64::MAX),
                step,
                number: 3600,
            };
            let job = Job {
                order,
                drill,
                dry_run,
                read: Monotonic(u64::MAX),
            };
            assert_eq!(Job::unpack(&job.pack()), job);
        }
    }

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
            available_kib: 7,
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
