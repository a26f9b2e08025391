//! Runs the search for owners on a separate thread, with a deadline.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::discover::owner::{Holders, OwnerSearch};

/// Maximum wait for a pass over /proc, which normally takes milliseconds and accesses no other file
/// system. Not even a kernel in trouble then blocks the sweep.
const DEADLINE: Duration = Duration::from_secs(5);

/// Searches for owners. Locked while a pass runs, which may exceed the deadline.
#[derive(Debug)]
pub(super) struct Owners(Arc<Mutex<OwnerSearch>>);

impl Owners {
    pub(super) fn new(search: OwnerSearch) -> Self {
        Owners(Arc::new(Mutex::new(search)))
    }

    /// Which process has which files open; `None` if that takes too long, if an earlier pass still
    /// hangs, or after one that panicked.
    pub(super) async fn look(&self) -> Option<Holders> {
        let search = Arc::clone(&self.0);
        let pass = spawn_blocking(move || search.try_lock().ok()?.look().ok());
        timeout(DEADLINE, pass).await.ok()?.ok()?
    }
}
