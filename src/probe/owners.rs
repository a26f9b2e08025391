//! Runs the search for owners on a separate thread, with a deadline.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::discover::owner::{Holders, OwnerSearch};

/// Maximum wait for a pass over /proc, which normally takes milliseconds and accesses no other file
/// system. Not even a kernel in trouble then blocks the sweep.
const DEADLINE: Duration = Duration::from_secs(5);

type Pass = (OwnerSearch, Option<Holders>);

/// Searches for owners; see the module documentation.
#[derive(Debug)]
pub(super) struct Owners {
    /// `None` while a pass runs, and after one that panicked.
    idle: Option<OwnerSearch>,
    /// A pass that exceeded the deadline.
    late: Option<JoinHandle<Pass>>,
}

impl Owners {
    pub(super) fn new(search: OwnerSearch) -> Self {
        Owners {
            idle: Some(search),
            late: None,
        }
    }

    /// Which process has which files open; `None` if that takes too long. No second pass is started
    /// while one hangs; the next call after its end returns its result.
    pub(super) async fn look(&mut self) -> Option<Holders> {
        let mut pass = match self.late.take() {
            Some(pass) if !pass.is_finished() => {
                self.late = Some(pass);
                return None;
            }
            Some(pass) => pass,
            None => {
                let mut search = self.idle.take()?;
                tokio::task::spawn_blocking(move || {
                    let holders = search.look().ok();
                    (search, holders)
                })
            }
        };
        match timeout(DEADLINE, &mut pass).await {
            Ok(ended) => {
                let (search, holders) = ended.ok()?;
                self.idle = Some(search);
                holders
            }
            Err(_) => {
                self.late = Some(pass);
                None
            }
        }
    }
}
