//! Tells systemd how the daemon does (sd_notify(3)), and never waits for it.
//!
//! In an emergency systemd may hang like everybody else. Its socket takes a few messages that it
//! does not read, and then whoever sends one waits: if that were the thread of the slow side, there
//! would be neither metrics nor incident files. So messages go through a bounded queue to a thread
//! of their own; when the queue is full they are lost.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::warn;

/// Messages that wait at most: a start, some reloads, and a status now and then.
const WAITING: usize = 64;
/// What the queue may take at the end of the process to be sent.
const LAST_MESSAGES: Duration = Duration::from_millis(200);

static QUEUE: OnceLock<Option<SyncSender<String>>> = OnceLock::new();
/// Messages that were taken and not yet sent.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Tells systemd, if it is there to be told.
pub(super) fn notify(state: &[NotifyState<'_>]) {
    let Some(queue) = QUEUE.get_or_init(start) else {
        return;
    };
    let lines = state.iter().map(ToString::to_string);
    TAKEN.fetch_add(1, Ordering::Relaxed);
    if queue
        .try_send(lines.collect::<Vec<_>>().join("\n"))
        .is_err()
    {
        TAKEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Lets the last messages out, if systemd takes them soon.
pub(super) fn flush() {
    let began = Instant::now();
    while TAKEN.load(Ordering::Relaxed) > 0 && began.elapsed() < LAST_MESSAGES {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Nothing if nobody wants to be told.
fn start() -> Option<SyncSender<String>> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let (queue, messages) = sync_channel(WAITING);
    let sender = std::thread::Builder::new()
        .name("systemd".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || send(&messages));
    sender
        .inspect_err(|reason| warn!("systemd will not be told anything: {reason}"))
        .ok()?;
    Some(queue)
}

fn send(messages: &Receiver<String>) {
    for message in messages {
        if let Err(error) = sd_notify::notify(&[NotifyState::Custom(&message)]) {
            warn!("cannot notify systemd: {error}");
        }
        TAKEN.fetch_sub(1, Ordering::Relaxed);
    }
}
