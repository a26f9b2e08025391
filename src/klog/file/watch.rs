//! The watcher thread: runs linemux, which wakes the follower when the file changes.

use std::future::Future as _;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread::Builder;
use std::time::Duration;

use linemux::MuxedEvents;
use tokio::runtime::Runtime;

use super::shared::{Shared, Wanted};

/// Pause after each wake: a busy log is read 50 times a second instead of at every line.
const PAUSE: Duration = Duration::from_millis(20);
/// Number of events within one pause from which on linemux is stopped.
const FLOOD: u32 = 1000;
/// Time without linemux after such a flood.
const FLOOD_REST: Duration = Duration::from_secs(10);
/// Pause between two instances of linemux.
const REST: Duration = Duration::from_millis(100);

/// Why linemux was stopped.
enum End {
    /// What is to be watched has changed.
    Changed,
    Failed,
    Flooded,
}

pub(super) fn run(runtime: &Runtime, shared: &Shared, path: &Path, check: Duration) {
    runtime.block_on(async {
        while !shared.is_stopping() {
            let wanted = shared.wanted();
            if !wanted.watch {
                shared.wanted_changed.notified().await;
                continue;
            }
            let end = watch(shared, path, wanted).await;
            let rest = match end {
                End::Changed => REST.min(check),
                End::Failed => check,
                End::Flooded => FLOOD_REST,
            };
            let until = tokio::time::Instant::now() + rest;
            while !shared.is_stopping()
                && tokio::time::timeout_at(until, shared.wanted_changed.notified())
                    .await
                    .is_ok()
            {}
        }
    });
}

/// Wakes the follower at every event of linemux.
async fn watch(shared: &Shared, path: &Path, wanted: Wanted) -> End {
    // notify, which linemux uses, starts a thread and panics later if that failed.
    let trial = Builder::new().name("klog-trial".to_owned()).spawn(|| ());
    if trial
        .map_err(drop)
        .and_then(|trial| trial.join().map_err(drop))
        .is_err()
    {
        return End::Failed;
    }
    let Ok(mut events) = MuxedEvents::new() else {
        return End::Failed;
    };
    if events.add_file(path).await.is_err() {
        return End::Failed;
    }
    // For what was written before the watch began.
    shared.wake();
    loop {
        tokio::select! {
            () = shared.wanted_changed.notified() => {
                if shared.is_stopping() || shared.wanted() != wanted {
                    return End::Changed;
                }
                continue;
            }
            event = events.next_event() => {
                // None: linemux watches nothing any more.
                let Ok(Some(_)) = event else { return End::Failed };
            }
        }
        shared.wake();
        tokio::time::sleep(PAUSE).await;
        match drain(&mut events) {
            Ok(0) => {}
            Ok(count) if count < FLOOD => shared.wake(),
            Ok(_) => return End::Flooded,
            Err(end) => return end,
        }
    }
}

/// Takes all pending events, but at most [`FLOOD`].
fn drain(events: &mut MuxedEvents) -> Result<u32, End> {
    let mut context = Context::from_waker(Waker::noop());
    for count in 0..FLOOD {
        let next = pin!(tokio::task::unconstrained(events.next_event()));
        match next.poll(&mut context) {
            Poll::Pending => return Ok(count),
            Poll::Ready(Ok(Some(_))) => {}
            Poll::Ready(_) => return Err(End::Failed),
        }
    }
    Ok(FLOOD)
}
