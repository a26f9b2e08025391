//! Starts and arms the two threads of the rescue: opens their files, locks memory and runs all
//! their code once, so that nothing has to be read from a disk that hangs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

use super::actor::{Actor, VmSysctls};
use super::clock::now;
use super::drill;
use super::entry::{Job, NOTICE_WORDS, Notice, REPORT_WORDS, Report};
use super::exchange::Exchange;
use super::ladder::{Ladder, LadderError};
use super::proof::Counters;
use super::reader::{KmsgReader, Watchdog};
use super::ring::{Consumer, ring};
use super::settings::{Edition, FastSettings};
use crate::klog::kmsg::RECORD_MAX;
use crate::klog::{RuleId, Sequence};
use crate::model::{Monotonic, Trigger};
use crate::sys::realtime::{SchedPolicy, lock_memory, raise_policy, touch_stack};

/// Entries per ring: some minutes of an incident at full rate, or a storm of matches. The slow side
/// drains them within milliseconds unless it hangs.
const RING: usize = 256;
/// Stack of each thread; a few KiB are used, half of it is touched.
const STACK_KIB: usize = 128;
/// A record that takes every path of the reader except a match.
const WARM_UP_RECORD: &[u8] = b"6,0,18446744073709551615,-;warm-up \\x41\n SUBSYSTEM=none\n";

/// Settings and resources of the fast side.
#[derive(Debug)]
pub struct Setup {
    /// Settings that [`FastSide::change`] can replace.
    pub settings: FastSettings,
    /// Mount point of procfs.
    pub proc: PathBuf,
    /// systemd's watchdog; `None` if it is off.
    pub watchdog: Option<Watchdog>,
}

/// Reasons why the fast side cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0} (the rescue needs root)")]
    Sysctls(#[source] io::Error),
    #[error(transparent)]
    Ladder(#[from] LadderError),
    #[error("cannot start the threads of the rescue: {0}")]
    Threads(#[source] io::Error),
}

/// How far the fast side is armed; shortcomings are reported to the operator.
#[derive(Debug)]
pub struct StartReport {
    /// Whether memory is locked, or the reason why not.
    pub memory: Result<(), io::Error>,
    /// The worse scheduling policy of the two threads.
    pub priority: SchedPolicy,
}

/// The running fast side.
pub struct FastSide {
    /// State shared with the threads.
    pub exchange: Arc<Exchange>,
    /// Entries from the reader.
    pub notices: Consumer<Notice, NOTICE_WORDS>,
    /// Entries from the actor.
    pub reports: Consumer<Report, REPORT_WORDS>,
    /// How far the threads are armed.
    pub start_report: StartReport,
    /// Settings in use by the reader or notices, newest last; while listed, the reader frees none.
    editions: Vec<Arc<Edition>>,
    threads: Vec<JoinHandle<()>>,
}

impl FastSide {
    /// Starts and arms both threads.
    ///
    /// # Errors
    /// If a rescue would be impossible; for lesser shortcomings see [`FastSide::start_report`].
    pub fn start(setup: Setup) -> Result<FastSide, StartError> {
        let sysctls = VmSysctls::open(&setup.proc).map_err(StartError::Sysctls)?;
        let exchange = Arc::new(Exchange::new().map_err(StartError::Threads)?);
        let (notice_ring, notices) = ring(RING);
        let (report_ring, reports) = ring(RING);
        let (job_ring, jobs) = ring(1);
        let edition = Arc::new(Edition {
            number: 0,
            settings: setup.settings,
        });
        let reader = KmsgReader {
            ladder: Ladder::new(Arc::clone(&edition.settings.ladder))?,
            edition: Arc::clone(&edition),
            drills: Ladder::new(drill::ladder())?,
            exchange: Arc::clone(&exchange),
            notices: notice_ring,
            jobs: job_ring,
            watchdog: setup.watchdog,
            sequence: Sequence::default(),
            record: vec![0; RECORD_MAX].into_boxed_slice(),
            text: vec![0; RECORD_MAX].into_boxed_slice(),
            at_work: None,
            waiting: None,
            failed: false,
        };
        let actor = Actor {
            sysctls,
            exchange: Arc::clone(&exchange),
            jobs,
            reports: report_ring,
            before: Counters::default(),
            before_at: Monotonic::default(),
            buffer: vec![0; 16 * 1024].into_boxed_slice(),
        };
        let memory = lock_memory();
        let (armed, arming) = mpsc::channel();
        let threads = vec![
            spawn(
                "rescue-actor",
                armed.clone(),
                actor,
                warm_up_actor,
                Actor::run,
            )?,
            spawn(
                "rescue-reader",
                armed,
                reader,
                warm_up_reader,
                KmsgReader::run,
            )?,
        ];
        // Both send before they run; the channel closes early if one has died.
        let priority = arming.iter().take(2).max_by_key(|priority| *priority as u8);
        Ok(FastSide {
            exchange,
            notices,
            reports,
            start_report: StartReport {
                memory,
                priority: priority.unwrap_or(SchedPolicy::Ordinary),
            },
            editions: vec![edition],
            threads,
        })
    }

    /// Changes the settings from the next record on; neither side waits for the other. An open
    /// incident continues unless rescues are disabled.
    ///
    /// # Errors
    /// If the settings of the ladder are invalid; the former ones then stay.
    pub fn change(&mut self, settings: FastSettings) -> Result<(), LadderError> {
        settings.ladder.check()?;
        let number = self.editions.last().map_or(0, |last| last.number + 1);
        let edition = Arc::new(Edition { number, settings });
        self.editions.push(Arc::clone(&edition));
        self.exchange.offer(edition);
        Ok(())
    }

    /// The oldest edition that later notices can refer to. Call it before popping notices;
    /// afterwards, [`FastSide::forget`] frees the earlier editions.
    pub fn oldest_in_use(&self) -> u64 {
        let mut shared = self.editions.iter().filter(|of| Arc::strong_count(of) > 1);
        let oldest = shared.next().map_or(0, |edition| edition.number);
        // Pairs with the release by which the reader dropped an edition: its notices are visible.
        fence(Ordering::Acquire);
        oldest
    }

    /// Frees the editions before this one, which the reader no longer holds.
    pub fn forget(&mut self, before: u64) {
        self.editions.retain(|edition| edition.number >= before);
    }

    /// Name of a rule in an edition of the settings.
    pub fn rule_name(&self, edition: u64, rule: RuleId) -> Option<&str> {
        let edition = self.editions.iter().find(|of| of.number == edition)?;
        edition.settings.rules.name(rule)
    }

    /// Whether both threads are running; false after a panic.
    pub fn is_alive(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops both threads and waits for them, including an action in flight.
    pub fn stop(self) {
        self.exchange.stop();
        for thread in self.threads {
            // A thread that panicked has ended too.
            let _ = thread.join();
        }
    }
}

/// Starts a thread that is armed before it runs: priority raised, stack touched, code run once.
fn spawn<T: Send + 'static>(
    name: &str,
    armed: mpsc::Sender<SchedPolicy>,
    mut state: T,
    warm_up: fn(&mut T),
    run: fn(T),
) -> Result<JoinHandle<()>, StartError> {
    let body = move || {
        let priority = raise_policy();
        touch_stack::<{ STACK_KIB / 2 }>();
        warm_up(&mut state);
        // The starting thread may have stopped waiting.
        let _ = armed.send(priority);
        drop(armed);
        run(state);
    };
    let builder = Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_KIB * 1024);
    builder.spawn(body).map_err(StartError::Threads)
}

fn warm_up_actor(actor: &mut Actor) {
    actor.carry_out(&Job {
        drill: true,
        dry_run: true,
        read: now(),
        ..Job::default()
    });
    // The reader did not order it.
    let _ = actor.exchange.done.take();
}

fn warm_up_reader(reader: &mut KmsgReader) {
    reader.exchange.offer(Arc::clone(&reader.edition));
    reader.take_settings();
    if let Some(place) = reader.record.get_mut(..WARM_UP_RECORD.len()) {
        place.copy_from_slice(WARM_UP_RECORD);
    }
    reader.take_record(WARM_UP_RECORD.len());
    reader.sequence = Sequence::default();
    // The path of a match, without effects.
    std::hint::black_box(
        reader
            .edition
            .settings
            .rules
            .find(b"XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)"),
    );
    let _ = std::hint::black_box(reader.drills.matched(now(), Trigger::Drill));
    let _ = std::hint::black_box(reader.drills.tick(now()));
    reader.drills.reset();
}
