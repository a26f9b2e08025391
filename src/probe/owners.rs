//! The search for owners, off the thread that everything else runs on, and with a deadline.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::discover::owner::{Holders, OwnerSearch};

/// What a pass over /proc may take. It takes milliseconds and asks no file system; so that not even
/// a kernel in trouble holds up the sweep.
const DEADLINE: Duration = Duration::from_secs(5);

type Pass = (OwnerSearch, Option<Holders>);

/// See the module.
#[derive(Debug)]
pub(super) struct Owners {
    /// None while a pass runs, and after one that panicked.
    idle: Option<OwnerSearch>,
    /// A pass that was not waited for to its end.
    late: Option<JoinHandle<Pass>>,
}

impl Owners {
    pub(super) fn new(search: OwnerSearch) -> Self {
        Owners {
            idle: Some(search),
            late: None,
        }
    }

    /// Which process has which files open now. `None` if that takes too long. A pass that hangs stays the only
    /// one.
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
