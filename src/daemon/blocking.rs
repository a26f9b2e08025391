//! Work that may hang with a disk.

use std::time::Duration;

/// Runs `work` on a blocking thread. Returns `None`, and leaves the thread behind, after `time`.
pub(super) async fn within<T: Send + 'static>(
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let working = tokio::task::spawn_blocking(work);
    tokio::time::timeout(time, working).await.ok()?.ok()
}
