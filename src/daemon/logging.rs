//! Where log lines go: to the journal when systemd has connected us to it, else to standard error.

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Sets up logging; once a process.
pub(super) fn init() {
    let level = LevelFilter::from_level(Level::INFO);
    // systemd.exec(5): set when standard error is connected to the journal.
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let stderr = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
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
