//! Starts the two threads of the rescue and arms them: opens what they need, locks it into memory,
//! and has them run through all their code once, so that nothing is left to be read from a disk
//! when the disk is what hangs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::actor::{Actor, Levers};
use super::clock::now;
use super::entry::{NOTICE_WORDS, Notice, REPORT_WORDS, Report};
use super::exchange::{Exchange, Job};
use super::ladder::{Ladder, LadderError, LadderSettings, Order};
use super::proof::Counters;
use super::reader::{Reader, Watchdog};
use super::ring::{Consumer, ring};
use super::settings::{Edition, Settings};
use crate::klog::kmsg::RECORD_MAX;
use crate::klog::{RuleId, Sequence};
use crate::model::{IncidentId, Monotonic, RescueStep, Trigger};
use crate::sys::realtime::{Urgency, lock_memory, raise_urgency, touch_stack};

/// Entries of each ring: an incident of some minutes at full speed, or a storm of matches. The
/// other side takes them within milliseconds, unless it hangs.
const RING: usize = 256;
/// Stack of each thread. What they use of it is a few kilobytes; half of this is touched.
const STACK_KIB: usize = 128;
/// A record that takes every way through the reader but that of a match.
const REHEARSAL: &[u8] = b"6,0,18446744073709551615,-;rehearsal \\x41\n SUBSYSTEM=none\n";

/// What the fast side is made of.
#[derive(Debug)]
pub struct Setup {
    /// What may be changed later, by [`FastSide::change`].
    pub settings: Settings,
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// systemd's watchdog, if it wants to be fed.
    pub watchdog: Option<Watchdog>,
}

/// Why the fast side cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing could be done in an emergency.
    #[error("{0} (the rescue needs root)")]
    Levers(#[source] io::Error),
    /// The ladder's settings contradict each other.
    #[error(transparent)]
    Ladder(#[from] LadderError),
    /// Threads or descriptors are short.
    #[error("cannot start the threads of the rescue: {0}")]
    Threads(#[source] io::Error),
}

/// How well armed the fast side is. Each shortcoming is to be told to the operator.
#[derive(Debug)]
pub struct Armament {
    /// Why memory is not locked.
    pub memory: Result<(), io::Error>,
    /// Of the reader.
    pub urgency: Urgency,
}

/// The running fast side.
pub struct FastSide {
    /// Shared with the threads.
    pub exchange: Arc<Exchange>,
    /// From the reader.
    pub notices: Consumer<Notice, NOTICE_WORDS>,
    /// From the actor.
    pub reports: Consumer<Report, REPORT_WORDS>,
    /// How well armed it is.
    pub armament: Armament,
    /// The settings that the reader has or may still have, or that notices may refer to; the newest
    /// is the last. Only what is in here keeps the reader from freeing what it lets go of.
    editions: Vec<Arc<Edition>>,
    threads: Vec<JoinHandle<()>>,
}

impl FastSide {
    /// Starts and arms both threads.
    ///
    /// # Errors
    /// When nothing could be rescued with it; shortcomings that leave it useful are told by
    /// [`FastSide::armament`].
    pub fn start(setup: Setup) -> Result<FastSide, StartError> {
        let levers = Levers::open(&setup.proc).map_err(StartError::Levers)?;
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
            drills: Ladder::new(drill_ladder())?,
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
            levers,
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
                rehearse_actor,
                Actor::run,
            )?,
            spawn("rescue-reader", armed, reader, rehearse_reader, Reader::run)?,
        ];
        // Both have told before they begin; a channel that closes early means that one has died.
        let urgencies: Vec<Urgency> = arming.iter().take(2).collect();
        let urgency = urgencies.into_iter().max_by_key(|urgency| *urgency as u8);
        Ok(FastSide {
            exchange,
            notices,
            reports,
            armament: Armament {
                memory,
                urgency: urgency.unwrap_or(Urgency::Ordinary),
            },
            editions: vec![edition],
            threads,
        })
    }

    /// Has the threads go on with other settings: from the next record on, and nothing is forgotten.
    /// Neither waits for them nor makes them wait.
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

    /// The oldest edition of the settings that notices to come can refer to. To be asked for before
    /// the notices are popped; afterwards [`FastSide::forget`] frees those before it.
    #[must_use]
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
    #[must_use]
    pub fn rule_name(&self, edition: u64, rule: RuleId) -> Option<&str> {
        let edition = self.editions.iter().find(|of| of.number == edition)?;
        edition.settings.rules.name(rule)
    }

    /// Whether both threads run. One that panicked does not.
    #[must_use]
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

/// A drill orders one step at once, whatever was drilled before.
fn drill_ladder() -> LadderSettings {
    LadderSettings {
        steps: vec![RescueStep::DropSlab],
        min_interval: Duration::ZERO,
        quiet_after: Duration::from_secs(1),
        max_actions_per_hour: 1,
    }
}

/// A thread that is armed before it runs: urgent, its stack there, its code run through once.
fn spawn<T: Send + 'static>(
    name: &str,
    armed: mpsc::Sender<Urgency>,
    mut state: T,
    rehearse: fn(&mut T),
    run: fn(T),
) -> Result<JoinHandle<()>, StartError> {
    let body = move || {
        let urgency = raise_urgency();
        touch_stack::<{ STACK_KIB / 2 }>();
        rehearse(&mut state);
        // Whoever starts us may have given up waiting.
        let _ = armed.send(urgency);
        drop(armed);
        run(state);
    };
    let builder = Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_KIB * 1024);
    builder.spawn(body).map_err(StartError::Threads)
}

fn rehearse_actor(actor: &mut Actor) {
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
    // Nobody has ordered it.
    let _ = actor.exchange.take_done();
}

fn rehearse_reader(reader: &mut Reader) {
    reader.exchange.offer(Arc::clone(&reader.edition));
    reader.take_settings();
    if let Some(place) = reader.record.get_mut(..REHEARSAL.len()) {
        place.copy_from_slice(REHEARSAL);
    }
    reader.take_record(REHEARSAL.len());
    reader.sequence = Sequence::default();
    // The way of a match, without an effect.
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
