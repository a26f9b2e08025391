//! Between a record of the kernel and the order to act nothing may be allocated: the allocator can
//! wait for the very memory that the rescue is to bring.

// A global allocator can only be written with unsafe code.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fragwatch::internals::klog::Kmsg;
use fragwatch::internals::klog::{Record, Rules, Sequence};
use fragwatch::internals::model::{
    Monotonic, Outcome, RescueStep, RuleAction, RuleDefinition, Trigger,
};
use fragwatch::internals::rescue::FastSettings;
use fragwatch::internals::rescue::{FastSide, Setup};
use fragwatch::internals::rescue::{Ladder, LadderSettings, Packed, ring};
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_setfl, mknodat};

thread_local! {
    /// Calls of the allocator by this thread. The threads of the test harness have their own.
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

/// Whether the threads of the rescue are watched, and what they called.
static WATCHED: AtomicBool = AtomicBool::new(false);
static OF_THE_RESCUE: AtomicU64 = AtomicU64::new(0);

fn count() {
    // Fails only while the thread ends.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
    if WATCHED.load(Ordering::Relaxed) && is_of_the_rescue() {
        OF_THE_RESCUE.fetch_add(1, Ordering::Relaxed);
    }
}

/// By the name of the thread (PR_GET_NAME, prctl(2)), without allocating.
fn is_of_the_rescue() -> bool {
    let mut name = [0_u8; 16];
    // SAFETY: the kernel writes 16 bytes at most.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    name.starts_with(b"rescue-")
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: as above; every pointer is from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above; every pointer is from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What the fast side tells the slow side of a record.
#[derive(Clone, Copy)]
struct Entry {
    sequence: u64,
    rule: u64,
    text: [u8; 128],
    length: usize,
}

impl Packed<19> for Entry {
    fn pack(&self) -> [u64; 19] {
        let mut words = [0; 19];
        words[..3].copy_from_slice(&[self.sequence, self.rule, self.length as u64]);
        for (word, part) in words[3..].iter_mut().zip(self.text.as_chunks().0) {
            *word = u64::from_le_bytes(*part);
        }
        words
    }

    fn unpack(words: &[u64; 19]) -> Entry {
        let mut text = [0; 128];
        for (part, word) in text.as_chunks_mut().0.iter_mut().zip(&words[3..]) {
            *part = word.to_le_bytes();
        }
        Entry {
            sequence: words[0],
            rule: words[1],
            text,
            length: usize::try_from(words[2]).unwrap_or(0),
        }
    }
}

/// Records of every kind: ours, others', long, escaped, broken.
fn records() -> Vec<Vec<u8>> {
    let texts = [
        "XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)".to_owned(),
        "XFS: CPU 0/KVM(12345) possible memory allocation deadlock size 65768 in kmem_alloc (mode:0x2d40)"
            .to_owned(),
        "XFS: a\\x0ab\\xff(7) possible memory allocation deadlock in kmem_zone_alloc (mode:0x2d40)"
            .to_owned(),
        "XFS (dm-0): Log I/O Error (0x2) detected at xlog_force_shutdown+0x1a/0x120 [xfs] (fs/xfs/xfs_log.c:3870).  Shutting down filesystem.".to_owned(),
        "XFS (dm-0): metadata I/O error in \"xfs_imap_to_bp+0x5d/0xa0 [xfs]\" at daddr 0x40 len 32 error 74".to_owned(),
        "INFO: task CPU 0/KVM:12345 blocked for more than 122 seconds.".to_owned(),
        "Out of memory: Killed process 1234 (qemu-kvm) total-vm:8388608kB".to_owned(),
        "qemu-kvm: page allocation failure: order:5, mode:0xcc0(GFP_KERNEL)".to_owned(),
        "an operator's nvme0: I/O 12 QID 3 timeout, aborting".to_owned(),
        "XFS (dm-0): Mounting V5 Filesystem".to_owned(),
        "device vnet12 entered promiscuous mode".to_owned(),
        String::new(),
        "x".repeat(1000),
        format!("XFS (dm-0): {}", "Shutting down ".repeat(500)),
        format!("XFS: {}", "(1) possible memory allocation ".repeat(200)),
        format!("INFO: task {}", ":1 blocked ".repeat(300)),
        "\\x5c".repeat(3000),
    ];
    let mut records = Vec::new();
    for (number, text) in (1000..).zip(texts) {
        records.push(
            format!("3,{number},5140900,-,caller=T1;{text}\n SUBSYSTEM=block\n").into_bytes(),
        );
    }
    records.push(Vec::new());
    records.push(b"no record".to_vec());
    records.push(b"3,99999999999999999999,5140900,-;overflow".to_vec());
    records
}

#[test]
fn nothing_is_allocated_between_record_and_order() {
    let rules = Rules::compile(&[
        RuleDefinition {
            name: "nvme_timeout".to_owned(),
            pattern: r"(?i)nvme\d+: .* timeout".to_owned(),
            action: RuleAction::Rescue,
        },
        RuleDefinition {
            name: "promiscuous".to_owned(),
            pattern: r"\bpromiscuous\b".to_owned(),
            action: RuleAction::Observe,
        },
    ])
    .unwrap();
    let mut ladder = Ladder::new(LadderSettings {
        steps: vec![RescueStep::DropSlab, RescueStep::DropAll],
        min_interval: Duration::from_secs(2),
        quiet_after: Duration::from_secs(60),
        max_actions_per_hour: 120,
    })
    .unwrap();
    let (mut producer, mut consumer) = ring::<Entry, 19>(64);
    let mut sequence = Sequence::default();
    let records = records();
    let mut buffer = [0; 2048];
    let (mut matches, mut orders, mut ends, mut broken) = (0_u64, 0_u64, 0_u64, 0_u64);

    CALLS.set(0);
    for round in 0..5_000_u64 {
        // Mostly a storm; a pause now and then, long enough for an incident to end.
        let pause = round / 100 * 200_000;
        for (number, bytes) in (0..).zip(black_box(&records)) {
            let now = Monotonic((round * 1_000 + number * 10 + pause) * 1_000_000);
            let Some(record) = Record::parse(bytes) else {
                broken += 1;
                continue;
            };
            black_box(sequence.arrived(record.sequence + round * 1_000));
            let text = record.text.unescape(&mut buffer);
            let reaction = match rules.find(text) {
                Some(found) => {
                    matches += 1;
                    let mut entry = Entry {
                        sequence: record.sequence,
                        rule: u64::from(found.rule.0),
                        text: [0; 128],
                        length: text.len().min(128),
                    };
                    entry
                        .text
                        .iter_mut()
                        .zip(text)
                        .for_each(|(to, from)| *to = *from);
                    producer.push(&entry);
                    match found.action {
                        RuleAction::Rescue => ladder.matched(now, Trigger::KernelLog),
                        RuleAction::Observe => ladder.tick(now),
                    }
                }
                None => ladder.tick(now),
            };
            black_box(ladder.next_deadline());
            ends += u64::from(reaction.ended.is_some());
            if reaction.order.is_some() {
                orders += 1;
                ladder.action_done(now, Outcome::Done);
            }
        }
    }
    let calls = CALLS.get();

    assert_eq!(calls, 0, "calls of the allocator");
    assert_eq!(matches, 5_000 * 10);
    assert_eq!(broken, 5_000 * 3);
    assert!(orders > 100 && ends > 10, "{orders} orders, {ends} ends");
    let last = consumer.pop().unwrap();
    assert!(last.length > 0 && last.sequence >= 1000 && last.rule < 12);
    assert_eq!(consumer.lost(), matches - 64);
}

/// The real threads: records, triggers, drills, actions, and new settings with other rules all the
/// while, the former ones freed by us.
#[test]
fn the_threads_of_the_rescue_neither_take_nor_free_memory() {
    const ROUNDS: u64 = 100;
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("kmsg");
    mknodat(CWD, &log, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let mut kernel = File::options().read(true).write(true).open(&log).unwrap();
    // One write, one record (pipe(7), "packet mode").
    fcntl_setfl(&kernel, OFlags::DIRECT).unwrap();
    // Of /proc only what can be read by anybody, and files to write to.
    let vm = directory.path().join("sys/vm");
    fs::create_dir_all(&vm).unwrap();
    for name in ["drop_caches", "compact_memory"] {
        File::create(vm.join(name)).unwrap();
    }
    for name in ["vmstat", "buddyinfo", "meminfo"] {
        fs::copy(Path::new("/proc").join(name), directory.path().join(name)).unwrap();
    }
    let settings = |number: u64| FastSettings {
        enabled: number % 10 != 9,
        dry_run: number.is_multiple_of(2),
        kmsg: Kmsg::open(&log, Duration::ZERO).ok().map(Arc::new),
        rules: Arc::new(
            Rules::compile(&[RuleDefinition {
                name: format!("round_{number}"),
                pattern: "device".to_owned(),
                action: RuleAction::Rescue,
            }])
            .unwrap(),
        ),
        ladder: Arc::new(LadderSettings {
            steps: vec![RescueStep::DropSlab; 1 + usize::try_from(number % 5).unwrap()],
            min_interval: Duration::ZERO,
            quiet_after: Duration::from_millis(1 + number % 7),
            max_actions_per_hour: 1 + u32::try_from(number).unwrap(),
        }),
    };
    let mut fast = FastSide::start(Setup {
        settings: settings(0),
        proc: directory.path().to_owned(),
        watchdog: None,
    })
    .unwrap();
    let wait_for = |what: &str, fast: &FastSide, holds: &dyn Fn(&FastSide) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds(fast) {
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_micros(100));
        }
    };
    WATCHED.store(true, Ordering::Relaxed);
    let records = records();
    let (mut notices, mut reports) = (0, 0);
    for number in 0..ROUNDS {
        let before = fast.exchange.records();
        for record in records
            .iter()
            .filter(|record| (1..4000).contains(&record.len()))
        {
            kernel.write_all(record).unwrap();
            wait_for("it is read", &fast, &|fast| {
                fast.exchange.records() > before
            });
        }
        fast.exchange.trigger(Trigger::Stall);
        fast.exchange.expect_drill(number + 1, true);
        let drill = format!("14,{number},1,-;fragwatch drill: {}\n", number + 1);
        kernel.write_all(drill.as_bytes()).unwrap();
        fast.change(settings(number + 1)).unwrap();
        thread::sleep(Duration::from_millis(1));
        let in_use = fast.oldest_in_use();
        notices += std::iter::from_fn(|| fast.notices.pop()).count();
        reports += std::iter::from_fn(|| fast.reports.pop()).count();
        fast.forget(in_use);
    }
    WATCHED.store(false, Ordering::Relaxed);
    assert!(fast.is_alive());
    assert!(fast.exchange.records() > ROUNDS);
    assert!(notices > 30 && reports > 30, "{notices} {reports}");
    assert_eq!(OF_THE_RESCUE.load(Ordering::Relaxed), 0);
    // And such a call would have been seen.
    WATCHED.store(true, Ordering::Relaxed);
    let name = thread::Builder::new().name("rescue-test".to_owned());
    let body = || drop(black_box(Vec::<u8>::with_capacity(10)));
    name.spawn(body).unwrap().join().unwrap();
    WATCHED.store(false, Ordering::Relaxed);
    assert!(OF_THE_RESCUE.load(Ordering::Relaxed) >= 2);
    fast.stop();
}

#[test]
fn the_counter_counts() {
    CALLS.set(0);
    drop(black_box(Vec::<u8>::with_capacity(10)));
    assert_eq!(CALLS.get(), 2);
}
