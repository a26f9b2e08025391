//! Work that may hang with a disk.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Runs `work` on a blocking thread. Returns `None`, and leaves the thread behind, after `time`.
pub(super) async fn within<T: Send + 'static>(
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let working = tokio::task::spawn_blocking(work);
    tokio::time::timeout(time, working).await.ok()?.ok()
}

/// Runs `work` on a new thread, whose result can be received. For the time before the runtime.
pub(super) fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<mpsc::Receiver<T>> {
    let (sender, result) = mpsc::channel();
    let thread = thread::Builder::new().name(name.to_owned());
    // Sending fails when nothing waits any longer.
    thread.spawn(move || drop(sender.send(work())))?;
    Ok(result)
}
