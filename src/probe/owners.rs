//! The search for owners, off the thread that everything else runs on, and with a deadline.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::discover::owner::{Holders, Search};

/// What a pass over /proc may take. It takes milliseconds and asks no file system; so that not even
/// a kernel in trouble holds up the sweep.
const DEADLINE: Duration = Duration::from_secs(5);

type Pass = (Search, Option<Holders>);

/// See the module.
pub(super) struct Owners(State);

enum State {
    Idle(Box<Search>),
    /// It was not waited for to its end.
    Late(JoinHandle<Pass>),
    /// It has panicked, or the runtime ends.
    Gone,
}

impl std::fmt::Debug for Owners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Owners")
    }
}

impl Owners {
    pub(super) fn new(search: Search) -> Self {
        Owners(State::Idle(Box::new(search)))
    }

    /// Who has which files open now; nothing if that cannot be found out in time. A pass that hangs
    /// stays the only one.
    pub(super) async fn look(&mut self) -> Option<Holders> {
        let mut pass = match std::mem::replace(&mut self.0, State::Gone) {
            State::Idle(mut search) => tokio::task::spawn_blocking(move || {
                let holders = search.look().ok();
                (*search, holders)
            }),
            State::Late(pass) if !pass.is_finished() => {
                self.0 = State::Late(pass);
                return None;
            }
            State::Late(pass) => pass,
            State::Gone => return None,
        };
        match timeout(DEADLINE, &mut pass).await {
            Ok(Ok((search, holders))) => {
                self.0 = State::Idle(Box::new(search));
                holders
            }
            Ok(Err(_)) => None,
            Err(_) => {
                self.0 = State::Late(pass);
                None
            }
        }
    }
}
