//! Writes log lines to standard error, which systemd connects to the journal. Logging never waits:
//! a stuck journal or a full pipe would otherwise stop the logging thread, and /metrics with it.
//! Lines go through a bounded queue to a separate thread. When the queue is full they are dropped,
//! and their number is logged as soon as there is room.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use rustix::fs::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::background::{Background, Jobs, SMALL_STACK};

/// Maximum queue length: an hour of trouble, and less than a megabyte.
const CAPACITY: usize = 1024;

const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

/// Waits briefly on drop until the last lines are written.
pub(super) struct Logging(Option<Background<Vec<u8>>>);

impl Drop for Logging {
    fn drop(&mut self) {
        if let Some(queue) = &self.0 {
            queue.drain(FLUSH_TIMEOUT);
        }
    }
}

/// Sets up logging; once per process.
pub(super) fn init() -> Logging {
    let Ok(queue) = Background::start("log", CAPACITY, SMALL_STACK, write_lines) else {
        // Without threads the daemon fails soon, and reports that itself.
        return Logging(None);
    };
    let writer = queue.clone();
    // Fails only if logging was set up before.
    let _ = tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_writer(move || Queue(writer.clone()))
        .event_format(Format {
            journal: is_connected_to_journal(),
        })
        .try_init();
    Logging(Some(queue))
}

/// Whether standard error leads to the journal: JOURNAL_STREAM holds its device and inode
/// (systemd.exec(5)). The variable alone proves nothing, because shells inherit it.
fn is_connected_to_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else {
        return false;
    };
    fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

struct Queue(Background<Vec<u8>>);

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(lines: &mut Jobs<Vec<u8>>) {
    let mut stderr = io::stderr();
    let mut reported = 0;
    while let Some(line) = lines.next() {
        // Fails if standard error is closed: nobody reads it.
        let _ = stderr.write_all(&line);
        let lost = lines.dropped();
        if lost > reported {
            let _ = writeln!(
                stderr,
                "{} log lines were lost: nobody took them",
                lost - reported
            );
            reported = lost;
        }
    }
}

/// A line as the journal expects it (`<priority>text`, sd-daemon(3)), or as people do.
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

/// syslog(3) priorities.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
