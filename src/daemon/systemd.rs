//! Notifies systemd (sd_notify(3)), and never waits for it.
//!
//! In an emergency systemd may hang, and then its socket blocks after a few messages: on the thread
//! of the slow side that would cost metrics and incident files. So messages go through a bounded
//! queue to a thread of their own; when the queue is full they are lost.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::warn;

/// Messages that wait at most: a start, some reloads, and a status now and then.
const CAPACITY: usize = 64;
/// What the queue may take at the end of the process to be sent.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

static QUEUE: OnceLock<Option<SyncSender<String>>> = OnceLock::new();
/// Messages that were queued and not yet sent.
static QUEUED: AtomicU64 = AtomicU64::new(0);

/// Queues a message, if the process was started by systemd.
pub(super) fn notify(state: &[NotifyState<'_>]) {
    let Some(queue) = QUEUE.get_or_init(start) else {
        return;
    };
    let lines = state.iter().map(ToString::to_string);
    QUEUED.fetch_add(1, Ordering::Relaxed);
    if queue
        .try_send(lines.collect::<Vec<_>>().join("\n"))
        .is_err()
    {
        QUEUED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits a moment until the last messages are sent.
pub(super) fn flush() {
    let began = Instant::now();
    while QUEUED.load(Ordering::Relaxed) > 0 && began.elapsed() < FLUSH_TIMEOUT {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// `None` without NOTIFY_SOCKET.
fn start() -> Option<SyncSender<String>> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let (queue, messages) = sync_channel(CAPACITY);
    let sender = std::thread::Builder::new()
        .name("systemd".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || send(&messages));
    sender
        .inspect_err(|reason| warn!("sd_notify disabled: {reason}"))
        .ok()?;
    Some(queue)
}

fn send(messages: &Receiver<String>) {
    for message in messages {
        if let Err(error) = sd_notify::notify(&[NotifyState::Custom(&message)]) {
            warn!("cannot notify systemd: {error}");
        }
        QUEUED.fetch_sub(1, Ordering::Relaxed);
    }
}
