//! Where log lines go: to standard error, which systemd connects to the journal.
//!
//! Logging never waits: a journal that is stuck, or a pipe that nobody reads, would otherwise stop the
//! thread that logs, and /metrics with it. Lines go through a bounded queue to a thread of their own;
//! when the queue is full they are lost, and their number is logged as soon as there is room.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::fs::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// Lines that wait at most: an hour of trouble, and less than a megabyte.
const CAPACITY: usize = 1024;

/// What the queue may take at the end of the process to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

/// When dropped, waits a moment until the last lines are written.
pub(super) struct Logging(Arc<Count>);

impl Drop for Logging {
    fn drop(&mut self) {
        let began = Instant::now();
        while self.0.waiting.load(Ordering::Relaxed) > 0 && began.elapsed() < FLUSH_TIMEOUT {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[derive(Debug, Default)]
struct Count {
    /// Lines that were taken and not yet written.
    waiting: AtomicU64,
    lost: AtomicU64,
}

/// Sets up logging; once a process.
pub(super) fn init() -> Logging {
    let (queue, lines) = sync_channel(CAPACITY);
    let count = Arc::new(Count::default());
    let queue = Queue {
        queue,
        count: Arc::clone(&count),
    };
    let counted = Arc::clone(&count);
    let writer = std::thread::Builder::new()
        .name("log".to_owned())
        .stack_size(64 * 1024);
    if writer.spawn(move || write_lines(&lines, &counted)).is_err() {
        // Without threads the daemon fails soon, and reports that itself.
        return Logging(count);
    }
    // Fails only if logging was set up before.
    let _ = tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_writer(queue)
        .event_format(Format {
            journal: is_connected_to_journal(),
        })
        .try_init();
    Logging(count)
}

/// Whether standard error leads to the journal: JOURNAL_STREAM names its device and inode
/// (systemd.exec(5)). The variable alone proves nothing: shells inherit it.
fn is_connected_to_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else {
        return false;
    };
    fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// The way to the writing thread.
#[derive(Debug, Clone)]
struct Queue {
    queue: SyncSender<Vec<u8>>,
    count: Arc<Count>,
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.count.waiting.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(line.to_vec()).is_err() {
            self.count.waiting.fetch_sub(1, Ordering::Relaxed);
            self.count.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Queue;

    fn make_writer(&'a self) -> Queue {
        self.clone()
    }
}

fn write_lines(lines: &Receiver<Vec<u8>>, count: &Count) {
    let mut stderr = io::stderr();
    for line in lines {
        // Closed, or its reader gone.
        let _ = stderr.write_all(&line);
        count.waiting.fetch_sub(1, Ordering::Relaxed);
        let lost = count.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(stderr, "{lost} log lines were lost: nobody took them");
        }
    }
}

/// A line as the journal wants it (`<priority>text`, sd-daemon(3)), or as a person does.
struct Format {
    journal: bool,
}

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        if self.journal {
            let priority = priority(level);
            for line in text.lines() {
                writeln!(writer, "<{priority}>{line}")?;
            }
            return Ok(());
        }
        SystemTime.format_time(&mut writer)?;
        writeln!(writer, " {level:>5} {text}")
    }
}

/// As syslog(3) numbers them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
