//! Reads the kernel log, decides and gives orders. Waits only for records, deadlines and wake-ups.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::write;

use super::clock::now;
use super::drill;
use super::entry::{JOB_WORDS, Job, Line, NOTICE_WORDS, Notice};
use super::exchange::{Exchange, clear_wakeup, wake};
use super::ladder::{Ladder, Order, Reaction};
use super::ring::Producer;
use super::settings::Edition;
use crate::klog::kmsg::Read;
use crate::klog::record::{Arrival, Piece};
use crate::klog::{Record, Sequence};
use crate::model::{Monotonic, Outcome, RuleAction, Trigger};

/// Records read before deadlines are checked again.
const BATCH: usize = 256;
const RETRY: Duration = Duration::from_secs(1);

/// State of the reader, allocated before it is armed.
pub(super) struct KmsgReader {
    pub(super) edition: Arc<Edition>,
    pub(super) ladder: Ladder,
    pub(super) drills: Ladder,
    pub(super) exchange: Arc<Exchange>,
    pub(super) notices: Producer<Notice, NOTICE_WORDS>,
    pub(super) jobs: Producer<Job, JOB_WORDS>,
    pub(super) watchdog: Option<Watchdog>,
    pub(super) sequence: Sequence,
    pub(super) record: Box<[u8]>,
    pub(super) text: Box<[u8]>,
    /// Whether the job of the actor is a drill; `None` if the actor is idle.
    pub(super) at_work: Option<bool>,
    /// An order that waits for a drill to end, and when its trigger was read.
    pub(super) waiting: Option<(Order, Monotonic)>,
    pub(super) failed: bool,
}

/// systemd's watchdog, fed by the reader: while this thread runs, the host can be rescued.
#[derive(Debug)]
pub struct Watchdog {
    /// A nonblocking socket connected to systemd's.
    pub socket: OwnedFd,
    /// Interval between messages.
    pub interval: Duration,
    /// Time of the last message.
    pub fed: Monotonic,
}

impl KmsgReader {
    /// Runs until stopped. Allocates nothing; its only system calls are poll, read and write.
    pub(super) fn run(mut self) {
        while !self.exchange.is_stopping() {
            self.wait();
            clear_wakeup(&self.exchange.to_reader);
            self.take_settings();
            self.take_done();
            self.take_triggers();
            self.read_records();
            let time = now();
            let reaction = self.ladder.tick(time);
            self.react(reaction, time);
            self.feed_watchdog();
        }
    }

    fn wait(&self) {
        let until = self.next_deadline();
        let timeout = until.and_then(|until| Timespec::try_from(until.since(now())).ok());
        let wake = PollFd::new(&self.exchange.to_reader, PollFlags::IN);
        let kmsg = self.edition.settings.kmsg.as_deref();
        let kmsg = kmsg.filter(|_| !self.failed);
        let log = kmsg.map_or(wake.clone(), |kmsg| PollFd::new(kmsg, PollFlags::IN));
        // Errors are irrelevant: all sources are checked afterwards.
        let _ = poll(&mut [wake, log], timeout.as_ref());
    }

    fn next_deadline(&self) -> Option<Monotonic> {
        let watchdog = self.watchdog.as_ref().map(|dog| dog.fed.plus(dog.interval));
        let retry = self.failed.then(|| now().plus(RETRY));
        [self.ladder.next_deadline(), watchdog, retry]
            .into_iter()
            .flatten()
            .min()
    }

    /// Also run at the start. Keeps limits and the action in flight; disabling ends the incident.
    pub(super) fn take_settings(&mut self) {
        let Some(edition) = self.exchange.settings.take() else {
            return;
        };
        let (old, new) = (&self.edition.settings, &edition.settings);
        let kmsg = |of: &Option<Arc<_>>| of.as_ref().map(Arc::as_ptr);
        if kmsg(&old.kmsg) != kmsg(&new.kmsg) {
            self.sequence = Sequence::default();
            self.failed = false;
        }
        // Frees nothing: the slow side holds both as well.
        self.ladder.set(Arc::clone(&new.ladder));
        if !new.enabled {
            if self.waiting.take().is_some() {
                // It will not be carried out; the ladder must not wait for it.
                self.ladder.action_done(now(), Outcome::DryRun);
            }
            let reaction = Reaction {
                ended: self.ladder.give_up(),
                ..Reaction::default()
            };
            self.react(reaction, now());
        }
        self.edition = edition;
    }

    fn take_done(&mut self) {
        let Some(outcome) = self.exchange.done.take() else {
            return;
        };
        match self.at_work.take() {
            Some(true) => self.drills.reset(),
            _ => self.ladder.action_done(now(), outcome),
        }
        if let Some((order, read)) = self.waiting.take() {
            self.give(order, read);
        }
    }

    fn take_triggers(&mut self) {
        let exchange = Arc::clone(&self.exchange);
        for trigger in exchange.take_triggers() {
            if self.edition.settings.enabled {
                let time = now();
                let reaction = self.ladder.matched(time, trigger);
                self.react(reaction, time);
            }
        }
    }

    fn read_records(&mut self) {
        for _ in 0..BATCH {
            let Some(kmsg) = &self.edition.settings.kmsg else {
                return;
            };
            let source = Arc::as_ptr(kmsg);
            match kmsg.read(&mut self.record) {
                Read::Record(length) => {
                    self.source(0);
                    self.exchange.records.fetch_add(1, Ordering::Relaxed);
                    // What came before the record is in force for it.
                    self.take_settings();
                    self.take_record(length);
                    if self.edition.settings.kmsg.as_ref().map(Arc::as_ptr) != Some(source) {
                        // The record was the last one of the former source.
                        self.sequence = Sequence::default();
                    }
                }
                Read::Nothing => return,
                // The sequence number of the next record shows how many were lost.
                Read::Overrun => {}
                Read::Failed(error) => return self.source(error.raw_os_error().unsigned_abs()),
            }
        }
        // If there are more records, poll(2) returns at once.
    }

    fn source(&mut self, error: u32) {
        let failed = error != 0;
        if failed != self.failed {
            self.failed = failed;
            self.notices.push(&Notice::Source(error));
            self.exchange.wake_slow_side();
        }
    }

    /// Also run at the start: everything from a record to an order.
    pub(super) fn take_record(&mut self, length: usize) {
        let time = now();
        let bytes = self.record.get(..length).unwrap_or_default();
        let Some(record) = Record::parse(bytes) else {
            return;
        };
        if let Arrival::New { lost: lost @ 1.. } = self.sequence.arrived(record.sequence) {
            self.exchange.lost.fetch_add(lost, Ordering::Relaxed);
        }
        if record.piece == Piece::Further {
            return;
        }
        let text = record.text.unescape(&mut self.text);
        if !record.is_genuine() {
            // A drill is identified by its number, regardless of its age.
            let nonce = drill::nonce(text);
            return self.drill(nonce, time);
        }
        let settings = &self.edition.settings;
        let kmsg = settings.kmsg.as_deref();
        if kmsg.is_some_and(|kmsg| kmsg.is_too_old(&record)) {
            return;
        }
        let Some(found) = settings.rules.find(text) else {
            return;
        };
        let notice = Notice::Matched {
            edition: self.edition.number,
            rule: found.rule,
            sequence: record.sequence,
            time: record.time,
            at: time,
            line: Line::new(text),
        };
        let rescues = found.action == RuleAction::Rescue;
        if rescues {
            let reaction = self.ladder.matched(time, Trigger::KernelLog);
            self.react(reaction, time);
        }
        self.notices.push(&notice);
        self.exchange.wake_slow_side();
    }

    fn drill(&mut self, nonce: u64, time: Monotonic) {
        let Some(acts) = self.exchange.take_drill(nonce) else {
            return;
        };
        self.notices.push(&Notice::DrillSeen { nonce, at: time });
        self.exchange.wake_slow_side();
        // A drill must not delay a rescue.
        if self.at_work.is_some() || self.ladder.incident().is_some() {
            return;
        }
        if let Some(order) = self.drills.matched(time, Trigger::Drill).order {
            self.start_job(&Job {
                order,
                drill: true,
                dry_run: !acts,
                read: time,
            });
        }
    }

    /// The order goes first, then the notices.
    fn react(&mut self, reaction: Reaction, time: Monotonic) {
        if let Some(order) = reaction.order {
            self.give(order, time);
        }
        let notices = [
            reaction.ended.map(|ended| Notice::Ended(ended, time)),
            reaction.began.map(|began| Notice::Began(began, time)),
            reaction.limit.map(|limit| Notice::Limit(limit, time)),
        ];
        for notice in notices.iter().flatten() {
            self.notices.push(notice);
            self.exchange.wake_slow_side();
        }
    }

    fn give(&mut self, order: Order, read: Monotonic) {
        if self.at_work.is_some() {
            self.waiting = Some((order, read));
            return;
        }
        self.start_job(&Job {
            order,
            drill: false,
            dry_run: self.edition.settings.dry_run,
            read,
        });
    }

    /// The actor must be idle.
    fn start_job(&mut self, job: &Job) {
        self.at_work = Some(job.drill);
        self.jobs.push(job);
        wake(&self.exchange.to_actor);
    }

    fn feed_watchdog(&mut self) {
        let time = now();
        if let Some(dog) = &mut self.watchdog
            && time.since(dog.fed) >= dog.interval
        {
            dog.fed = time;
            // If the socket is full, enough messages are pending.
            let _ = write(&dog.socket, b"WATCHDOG=1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::klog::Rules;
    use crate::klog::kmsg::Kmsg;
    use crate::model::RuleDefinition;
    use crate::rescue::ring::ring;
    use crate::rescue::settings::FastSettings;
    use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_setfl, mknodat};
    use std::fs::File;
    use std::io::Write as _;

    /// A record that is written after new settings were passed, before they are taken.
    #[test]
    fn new_settings_are_in_force_for_the_next_record() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("kmsg");
        mknodat(CWD, &log, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let mut kernel = File::options().read(true).write(true).open(&log).unwrap();
        // One write, one record (pipe(7), "packet mode").
        fcntl_setfl(&kernel, OFlags::DIRECT).unwrap();
        let kmsg = Arc::new(Kmsg::open(&log, Duration::from_secs(10)).unwrap());
        let edition = |number: u64| {
            let rule = RuleDefinition {
                name: format!("round_{number}"),
                pattern: format!("^record {number}$"),
                action: RuleAction::Observe,
            };
            Arc::new(Edition {
                number,
                settings: FastSettings {
                    enabled: true,
                    dry_run: true,
                    kmsg: Some(Arc::clone(&kmsg)),
                    rules: Arc::new(Rules::compile(&[rule]).unwrap()),
                    ladder: Arc::new(drill::ladder()),
                },
            })
        };
        let (notices, mut found) = ring(8);
        let mut reader = KmsgReader {
            ladder: Ladder::new(drill::ladder()).unwrap(),
            edition: edition(0),
            drills: Ladder::new(drill::ladder()).unwrap(),
            exchange: Arc::new(Exchange::new().unwrap()),
            notices,
            jobs: ring(1).0,
            watchdog: None,
            sequence: Sequence::default(),
            record: vec![0; 8192].into(),
            text: vec![0; 8192].into(),
            at_work: None,
            waiting: None,
            failed: false,
        };
        reader.exchange.offer(edition(1));
        kernel.write_all(b"3,1,1,-;record 1\n").unwrap();
        reader.read_records();
        let Some(Notice::Matched { edition, .. }) = found.pop() else {
            panic!("the record has no notice");
        };
        assert_eq!(edition, 1);
    }
}
