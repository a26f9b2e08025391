//! Writes log lines to standard error, which systemd connects to the journal. Logging never waits:
//! a stuck journal or a full pipe would otherwise stop the logging thread, and /metrics with it.
//! Lines go through a bounded queue to a separate thread. When the queue is full they are dropped,
//! and their number is logged as soon as there is room.

use std::io::{self, Write};
use std::time::Duration;

use rustix::fs::fstat;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

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
    let journal = is_connected_to_journal();
    let lines = Lines {
        queue: queue.clone(),
        journal,
    };
    let logger = tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_ansi(false)
        .with_target(false)
        .with_writer(lines);
    // Fails only if logging was set up before.
    let _ = match journal {
        true => logger.without_time().with_level(false).try_init(),
        false => logger.try_init(),
    };
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

struct Lines {
    queue: Background<Vec<u8>>,
    /// Whether the lines are as the journal expects them (`<priority>text`, sd-daemon(3)).
    journal: bool,
}

struct Line<'a>(&'a Lines, Level);

impl Write for Line<'_> {
    /// `text` is that of one event.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let Line(lines, level) = self;
        let mut job = Vec::with_capacity(text.len() + 3);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            if lines.journal {
                write!(job, "<{}>", priority(*level))?;
            }
            job.extend_from_slice(line);
        }
        lines.queue.push(job);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self, Level::INFO)
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line<'a> {
        Line(self, *event.level())
    }
}

fn write_lines(lines: &mut Jobs<Vec<u8>>) {
    let mut stderr = io::stderr();
    let mut reported = 0;
    while let Some(line) = lines.next() {
        // Fails if standard error is closed.
        let _ = stderr.write_all(&line);
        let lost = lines.dropped();
        if lost > reported {
            let _ = writeln!(
                stderr,
                "{} log lines were lost: standard error was not read in time",
                lost - reported
            );
            reported = lost;
        }
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
