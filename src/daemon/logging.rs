//! Where log lines go: to the journal when systemd has connected us to it, else to standard error.

use std::io;

use rustix::fs::fstat;
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Sets up logging; once a process.
pub(super) fn init() {
    let level = LevelFilter::from_level(Level::INFO);
    let journal = is_connected_to_journal()
        .then(|| tracing_journald::layer().ok())
        .flatten();
    let stderr = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_target(false)
            .with_ansi(false)
    });
    // Fails only if logging was set up before.
    let _ = tracing_subscriber::registry()
        .with(level)
        .with(journal)
        .with(stderr)
        .try_init();
}

/// Whether standard error leads to the journal: JOURNAL_STREAM names its device and inode
/// (systemd.exec(5)). The variable alone says nothing: shells inherit it.
fn is_connected_to_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else {
        return false;
    };
    fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}
