//! Starts the two threads of the rescue and arms them: opens what they need, locks it into memory,
//! and runs through all their code once, so that nothing is left to be read from a disk when the disk
//! is what hangs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

use super::actor::{Actor, VmSysctls};
use super::clock::now;
use super::drill;
use super::entry::{NOTICE_WORDS, Notice, REPORT_WORDS, Report};
use super::exchange::{Exchange, Job};
use super::ladder::{Ladder, LadderError, Order};
use super::proof::Counters;
use super::reader::{Reader, Watchdog};
use super::ring::{Consumer, ring};
use super::settings::{Edition, Settings};
use crate::klog::kmsg::RECORD_MAX;
use crate::klog::{RuleId, Sequence};
use crate::model::{IncidentId, Monotonic, RescueStep, Trigger};
use crate::sys::realtime::{SchedPolicy, lock_memory, raise_policy, touch_stack};

/// Entries of each ring: an incident of some minutes at full speed, or a storm of matches. The
/// slow side takes them within milliseconds, unless it hangs.
const RING: usize = 256;
/// Stack of each thread. What they use of it is a few kilobytes; half of this is touched.
const STACK_KIB: usize = 128;
/// A record that takes every path through the reader but that of a match.
const WARM_UP_RECORD: &[u8] = b"6,0,18446744073709551615,-;warm-up \\x41\n SUBSYSTEM=none\n";

/// What the fast side is made of.
#[derive(Debug)]
pub struct Setup {
    /// What may be changed later, by [`FastSide::change`].
    pub settings: Settings,
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// systemd's watchdog, if it is on.
    pub watchdog: Option<Watchdog>,
}

/// Why the fast side cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The files under /proc/sys/vm cannot be written.
    #[error("{0} (the rescue needs root)")]
    Sysctls(#[source] io::Error),
    /// The ladder's settings contradict each other.
    #[error(transparent)]
    Ladder(#[from] LadderError),
    /// Threads or descriptors are short.
    #[error("cannot start the threads of the rescue: {0}")]
    Threads(#[source] io::Error),
}

/// How far the fast side is armed. Shortcomings are for the operator.
#[derive(Debug)]
pub struct StartReport {
    /// Why memory is not locked.
    pub memory: Result<(), io::Error>,
    /// The lower priority of the two threads.
    pub priority: SchedPolicy,
}

/// The running fast side.
pub struct FastSide {
    /// Shared with the threads.
    pub exchange: Arc<Exchange>,
    /// From the reader.
    pub notices: Consumer<Notice, NOTICE_WORDS>,
    /// From the actor.
    pub reports: Consumer<Report, REPORT_WORDS>,
    /// How far it is armed.
    pub start_report: StartReport,
    /// The settings that the reader has or may still have, or that notices may refer to; the newest
    /// is the last. As long as they are in here the reader does not free what it lets go of.
    editions: Vec<Arc<Edition>>,
    threads: Vec<JoinHandle<()>>,
}

impl FastSide {
    /// Starts and arms both threads.
    ///
    /// # Errors
    /// When nothing could be rescued with it; for lesser shortcomings see
    /// [`FastSide::start_report`].
    pub fn start(setup: Setup) -> Result<FastSide, StartError> {
        let sysctls = VmSysctls::open(&setup.proc).map_err(StartError::Sysctls)?;
        let exchange = Arc::new(Exchange::new().map_err(StartError::Threads)?);
        let (notice_ring, notices) = ring(RING);
        let (report_ring, reports) = ring(RING);
        let edition = Arc::new(Edition {
            number: 0,
            settings: setup.settings,
        });
        let reader = Reader {
            ladder: Ladder::new(Arc::clone(&edition.settings.ladder))?,
            edition: Arc::clone(&edition),
            drills: Ladder::new(drill::ladder())?,
            exchange: Arc::clone(&exchange),
            notices: notice_ring,
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
            spawn("rescue-reader", armed, reader, warm_up_reader, Reader::run)?,
        ];
        // Both report before they begin; a channel that closes early means that one has died.
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

    /// Changes the settings, from the next record on; the state of the incident stays. Does not wait
    /// for the threads, nor do they wait.
    ///
    /// # Errors
    /// When the ladder's settings contradict each other; then the former ones stay.
    pub fn change(&mut self, settings: Settings) -> Result<(), LadderError> {
        settings.ladder.check()?;
        let number = self.editions.last().map_or(0, |last| last.number + 1);
        let edition = Arc::new(Edition { number, settings });
        self.editions.push(Arc::clone(&edition));
        self.exchange.offer(edition);
        Ok(())
    }

    /// The oldest edition of the settings that notices to come can refer to. To be called before
    /// the notices are popped; afterwards [`FastSide::forget`] frees the editions before it.
    pub fn oldest_in_use(&self) -> u64 {
        let mut shared = self.editions.iter().filter(|of| Arc::strong_count(of) > 1);
        let oldest = shared.next().map_or(0, |edition| edition.number);
        // With the release by which the reader let go of an edition: its notices are seen as well.
        fence(Ordering::Acquire);
        oldest
    }

    /// Frees the settings before this edition. The reader may still have a newer one only.
    pub fn forget(&mut self, before: u64) {
        self.editions.retain(|edition| edition.number >= before);
    }

    /// The name of a rule of an edition of the settings.
    pub fn rule_name(&self, edition: u64, rule: RuleId) -> Option<&str> {
        let edition = self.editions.iter().find(|of| of.number == edition)?;
        edition.settings.rules.name(rule)
    }

    /// Whether both threads run. One that panicked does not.
    pub fn is_alive(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Ends both threads and waits for them; an action in flight is waited for as well.
    pub fn stop(self) {
        self.exchange.stop();
        for thread in self.threads {
            // A thread that panicked is at its end too.
            let _ = thread.join();
        }
    }
}

/// Starts a thread that is armed before it runs: its priority raised, its stack touched, its code
/// run through once.
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
        // Whoever starts us may have given up waiting.
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
    let order = Order {
        incident: IncidentId(0),
        step: RescueStep::DropSlab,
        number: 0,
    };
    actor.carry_out(&Job {
        order,
        drill: true,
        dry_run: true,
        read: now(),
    });
    // The reader has not ordered it.
    let _ = actor.exchange.take_done();
}

fn warm_up_reader(reader: &mut Reader) {
    reader.exchange.offer(Arc::clone(&reader.edition));
    reader.take_settings();
    if let Some(place) = reader.record.get_mut(..WARM_UP_RECORD.len()) {
        place.copy_from_slice(WARM_UP_RECORD);
    }
    reader.take_record(WARM_UP_RECORD.len());
    reader.sequence = Sequence::default();
    // The path of a match, without an effect.
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
