//! From a record of the kernel to the write to drop_caches: fragwatch, and the shell pipelines that
//! operators use. The records are XFS's own, the drops are real, and all times are from the kernel's
//! trace: when the record was printed, when its reader was woken, and when the write began.
//!
//! # What takes how long
//!
//! The kernel does not wake the readers of its log when it prints, for it may print anywhere, also
//! where nobody may be woken. It leaves that to the next tick of the processor's timer
//! (`wake_up_klog_work`, a lazy irq_work; kernel/printk/printk.c): up to 4 ms at CONFIG_HZ=250, 1 ms
//! at 1000. That is the same for everybody who reads /dev/kmsg, and so there are two rows: from the
//! record to the write, and from the moment it can be read.
//!
//! It can be had sooner, and was tried: a tracefs instance of our own with the event printk:console
//! wakes its reader at once, 0.05 ms after the record instead of 2.4 ms (medians; 0.1 and 4.1 ms for
//! 99 of 100). It was left out. To read an event takes a semaphore that loading a module holds while
//! it waits for memory (`trace_event_sem`), and waiting for such a thing is what the rescue must
//! never do; polling /dev/kmsg each millisecond instead costs 30 times the processor time that it may
//! take at rest. And 2 ms matter to nobody: XFS prints its message after a hundred attempts, that is
//! after 0.4 s at the earliest.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::samples::{Samples, Unit};
use super::support::child::Child;
use super::support::emergency::{Host, KernelLog, Plan, Refusals};
use super::support::{Here, NotHere, tools};
use super::table::Row;
use super::trace::{Event, Trace};

/// Records for each of them in one repetition of the benchmark; by default there are five.
const RECORDS: usize = 200;
/// Those that do not count: the first drops have something to drop.
const WARM_UP: usize = 10;
/// Who does not drop within this does not do so at all.
const PATIENCE: Duration = Duration::from_secs(10);
const MEDIAN_AT_MOST: f64 = 200e-6;
const P99_AT_MOST: f64 = 2e-3;

/// Their names in the table, by the kind of records that each waits for. A bar would end the cell.
const NAMES: [&str; 3] = ["fragwatch", r"dmesg --follow \| grep", r"tail -F \| grep"];

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    let field = Field::new()?;
    let records = repetitions * RECORDS;
    let mut rows = Vec::new();
    rows.extend(field.measure("idle", records, true));
    let busy = Busy::start();
    rows.extend(field.measure("all processors busy", records, false));
    drop(busy);
    Ok(rows)
}

/// All three at work, each on its own kind of records.
struct Field {
    trace: Trace,
    records: Refusals,
    /// Who reads the kernel's log for them, and who writes.
    readers: [u32; 3],
    writers: [u32; 3],
    // In the order in which they end.
    _pipelines: [Pipeline; 2],
    _syslog: Syslog,
    _host: Host,
}

impl Field {
    fn new() -> Here<Field> {
        tools::have("dmesg")?;
        let records = Refusals::new()?;
        let trace = Trace::new()?;
        let host = Plan::of(records.pattern())
            .rescue("steps = [\"drop_slab\"]\nmin_interval = \"0s\"\nmax_actions_per_hour = 3600")
            .start();
        let log = host.directory.path().join("kern.log");
        let syslog = Syslog::start(&log)?;
        let pipelines = [
            Pipeline::start(Command::new("dmesg").arg("--follow"), &records.text(1))?,
            Pipeline::start(Command::new("tail").arg("-F").arg(&log), &records.text(2))?,
        ];
        let writers = [
            host.thread("rescue-actor"),
            pipelines[0].shell.id(),
            pipelines[1].shell.id(),
        ];
        let readers = [
            host.thread("rescue-reader"),
            pipelines[0].source.id(),
            syslog.thread,
        ];
        let field = Field {
            trace,
            records,
            readers,
            writers,
            _pipelines: pipelines,
            _syslog: syslog,
            _host: host,
        };
        field.begin_to_trace()?;
        Ok(field)
    }

    fn begin_to_trace(&self) -> Here<()> {
        let any = |field: &str, numbers: &[u32]| {
            let each: Vec<_> = numbers.iter().map(|n| format!("{field} == {n}")).collect();
            each.join(" || ")
        };
        let trace = &self.trace;
        trace.event("printk/console", "msg ~ \"*invalid logbufsize*\"")?;
        trace.event("sched/sched_waking", &any("pid", &self.readers))?;
        let [ours, theirs @ ..] = &self.writers;
        trace.event("syscalls/sys_enter_pwrite64", &any("common_pid", &[*ours]))?;
        trace.event("syscalls/sys_enter_write", &any("common_pid", theirs))
    }

    fn measure(&self, condition: &str, records: usize, bounded: bool) -> Vec<Row> {
        self.have_happen(WARM_UP);
        self.trace.clear();
        self.have_happen(records);
        let events = self.trace.events();
        let times = [0, 1, 2].map(|kind| self.reactions(kind, &events));
        let printed = [0, 1, 2].map(|kind| seconds(&times[kind], |time| time.write - time.printed));
        let readable =
            [0, 1, 2].map(|kind| seconds(&times[kind], |time| time.write - time.readable));
        let others = |of: &[Samples; 3]| {
            let each = [1, 2].map(|kind| format!("`{}` {}", NAMES[kind], of[kind].with_p99()));
            each.join("; ")
        };
        let work = format!("reaction, {condition}, {} records", readable[0].count());
        let reached = readable[0].median() < MEDIAN_AT_MOST && readable[0].p99() < P99_AT_MOST;
        let from_readable = if bounded {
            Row::plain(
                format!("{work}: from a record that can be read to the write"),
                readable[0].with_p99(),
                others(&readable),
                "median below 200 µs, 99 % within 2 ms",
                reached,
            )
        } else {
            Row::told(
                format!("{work}: from a record that can be read to the write"),
                readable[0].with_p99(),
                others(&readable),
            )
        };
        let from_printed = Row::told(
            format!("{work}: the same with the kernel's own delay before it can be read"),
            printed[0].with_p99(),
            others(&printed),
        );
        vec![from_readable, from_printed]
    }

    /// Records for all of them in turns, one at a time.
    fn have_happen(&self, times: usize) {
        let mut log = KernelLog::from_now();
        for round in 0..times {
            for turn in 0..NAMES.len() {
                let kind = (round + turn) % NAMES.len();
                // At any moment between two ticks: so many microseconds are prime to them all.
                sleep(Duration::from_micros(
                    5_000 + (round * 7_919 % 4_001) as u64,
                ));
                self.records.happens_to(kind as u64);
                wait_for_drop(&mut log, NAMES[kind]);
            }
        }
    }

    /// One for each record of this kind.
    fn reactions(&self, kind: usize, events: &[Event]) -> Vec<Times> {
        let text = self.records.text(kind as u64);
        let writes =
            |event: &&Event| event.thread == self.writers[kind] && event.name.starts_with("sys_");
        let woken = format!(" pid={} ", self.readers[kind]);
        let wakes = |event: &&Event| event.name == "sched_waking" && event.text.contains(&woken);
        let records = events.iter().enumerate();
        let records =
            records.filter(|(_, event)| event.name == "console" && event.text.contains(&text));
        let times = records.filter_map(|(at, record)| {
            let write = events[at..].iter().find(writes)?;
            // It may be awake already, for another record.
            let woken = events[at..]
                .iter()
                .take_while(|event| event.at < write.at)
                .find(wakes);
            Some(Times {
                printed: record.at,
                readable: woken.map_or(record.at, |event| event.at),
                write: write.at,
            })
        });
        times.collect()
    }
}

/// Of one record, in seconds since boot.
struct Times {
    printed: f64,
    readable: f64,
    write: f64,
}

fn seconds(times: &[Times], of: impl Fn(&Times) -> f64) -> Samples {
    // The trace tells microseconds.
    Samples::new(
        Unit::Seconds,
        times.iter().map(|time| of(time).max(1e-6)).collect(),
    )
}

fn wait_for_drop(log: &mut KernelLog, who: &str) {
    let deadline = Instant::now() + PATIENCE;
    while log.take("): drop_caches: 2") == 0 {
        assert!(Instant::now() < deadline, "{who} does not drop");
        sleep(Duration::from_micros(500));
    }
}

/// `SOURCE | grep --line-buffered TEXT | while read -r line; do echo 2 >/proc/sys/vm/drop_caches; done`
struct Pipeline {
    source: Child,
    _grep: Child,
    shell: Child,
}

impl Pipeline {
    fn start(source: &mut Command, text: &str) -> Here<Pipeline> {
        let mut source = stage(source.stdin(Stdio::null()).stdout(Stdio::piped()))?;
        let mut grep = Command::new("grep");
        grep.args(["--line-buffered", text]).stdout(Stdio::piped());
        let mut grep = stage(grep.stdin(output(&mut source)))?;
        let mut shell = Command::new("bash");
        shell.args([
            "-c",
            "while read -r line; do echo 2 >/proc/sys/vm/drop_caches; done",
        ]);
        let shell = stage(shell.stdin(output(&mut grep)))?;
        Ok(Pipeline {
            source,
            _grep: grep,
            shell,
        })
    }
}

fn stage(command: &mut Command) -> Here<Child> {
    Child::spawn(command).map_err(NotHere::because)
}

fn output(stage: &mut Child) -> Stdio {
    let output = stage.pipes().stdout.take();
    output.map_or_else(Stdio::null, Stdio::from)
}

/// A syslog daemon at its best: what the kernel says is in the file as soon as it can be read, with
/// no queue and no formatting in between.
struct Syslog {
    thread: u32,
    ends: Arc<AtomicBool>,
    body: Option<JoinHandle<()>>,
}

impl Syslog {
    fn start(path: &Path) -> Here<Syslog> {
        let file = File::create(path).map_err(NotHere::because)?;
        let mut kmsg = File::open("/dev/kmsg").map_err(NotHere::because)?;
        kmsg.seek(SeekFrom::End(0)).map_err(NotHere::because)?;
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let (number, numbers) = std::sync::mpsc::channel();
        let body = thread::spawn(move || {
            let _ = number.send(
                rustix::thread::gettid()
                    .as_raw_nonzero()
                    .get()
                    .unsigned_abs(),
            );
            follow(&mut kmsg, file, &told);
        });
        let thread = numbers.recv().map_err(NotHere::because)?;
        Ok(Syslog {
            thread,
            ends,
            body: Some(body),
        })
    }
}

fn follow(kmsg: &mut File, mut file: File, ends: &AtomicBool) {
    let mut record = [0; 8192];
    let second = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    while !ends.load(Ordering::Relaxed) {
        let mut events = [PollFd::new(kmsg, PollFlags::IN)];
        if poll(&mut events, Some(&second)) == Ok(0) {
            continue;
        }
        // Overwritten records are lost to it, as to any other.
        if let Ok(length) = kmsg.read(&mut record) {
            let text = record[..length].split(|byte| *byte == b';').nth(1);
            file.write_all(text.unwrap_or_default())
                .expect("the log is written");
        }
    }
}

impl Drop for Syslog {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(body) = self.body.take() {
            let _ = body.join();
        }
    }
}

/// A thread for each processor that never rests.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start() -> Busy {
        let ends = Arc::new(AtomicBool::new(false));
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let ends = Arc::clone(&ends);
            thread::spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Busy(ends)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
