//! Notifies systemd (sd_notify(3)) without ever waiting for it. In an emergency systemd may hang;
//! its socket then blocks after a few messages, which would delay metrics and incident files. So
//! messages go through a bounded queue to a separate thread and are dropped when the queue is full.

use std::sync::LazyLock;
use std::time::Duration;

use sd_notify::NotifyState;
use tracing::warn;

use crate::background::{Background, Jobs, SMALL_STACK};

/// Maximum queue length: a start, some reloads, and an occasional status.
const CAPACITY: usize = 64;
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

static QUEUE: LazyLock<Option<Background<String>>> = LazyLock::new(start);

/// Notifies systemd, if it started this process.
pub(super) fn notify(state: &[NotifyState<'_>]) {
    if let Some(queue) = &*QUEUE {
        let lines = state.iter().map(ToString::to_string);
        queue.push(lines.collect::<Vec<_>>().join("\n"));
    }
}

/// Waits briefly until the last messages are sent.
pub(super) fn flush() {
    if let Some(queue) = &*QUEUE {
        queue.drain(FLUSH_TIMEOUT);
    }
}

/// `None` without NOTIFY_SOCKET.
fn start() -> Option<Background<String>> {
    std::env::var_os("NOTIFY_SOCKET")?;
    Background::start("systemd", CAPACITY, SMALL_STACK, send)
        .inspect_err(|reason| warn!("sd_notify disabled: {reason}"))
        .ok()
}

fn send(messages: &mut Jobs<String>) {
    for message in messages {
        if let Err(error) = sd_notify::notify(&[NotifyState::Custom(&message)]) {
            warn!("cannot notify systemd: {error}");
        }
    }
}
