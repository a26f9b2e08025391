//! Judges which engines are usable on this host. On a blocking thread, because a program reads the
//! changelog of the kernel's package, from a disk that may hang.

use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;
use tracing::warn;

use crate::config::settings::Defrag;
use crate::defrag::{HostInterfaces, usable};
use crate::model::{EngineState, Unusable, UnusableReason};

/// Retry interval while an engine is unusable: a missing changelog may be installed, or a hanging
/// program may answer.
const AGAIN: Duration = Duration::from_secs(3600);

/// The usable engines, and the task that judges them.
#[derive(Default)]
pub(super) struct Engines {
    states: Option<Vec<EngineState>>,
    /// Only one at a time, so that hanging ones do not accumulate.
    judging: Option<JoinHandle<Vec<EngineState>>>,
    /// Settings to judge by when the task is done.
    next: Option<Defrag>,
    judged: Option<Instant>,
}

impl Engines {
    /// The last result; `None` until there is one.
    pub(super) fn states(&self) -> Option<&[EngineState]> {
        self.states.as_deref()
    }

    pub(super) fn judge(&mut self, defrag: &Defrag) {
        let defrag = defrag.clone();
        if self.judging.is_some() {
            self.next = Some(defrag);
            return;
        }
        self.judged = Some(Instant::now());
        self.judging = Some(spawn_blocking(move || {
            usable::engines(&defrag, &HostInterfaces::to_look_at())
        }));
    }

    pub(super) fn is_due(&self) -> bool {
        let is_wanted = |state: &EngineState| {
            let reason = state.unusable.as_ref().map(|it| it.reason);
            reason.is_some_and(|reason| reason != UnusableReason::NotConfigured)
        };
        let is_open = self.states().is_none_or(|it| it.iter().any(is_wanted));
        let is_early = |at: Instant| at.elapsed() < AGAIN;
        is_open && self.judging.is_none() && !self.judged.is_some_and(is_early)
    }

    /// Waits for a result, and stores and logs it; forever if none is to come. Cancel-safe.
    pub(super) async fn judged(&mut self) {
        let Some(judging) = &mut self.judging else {
            return std::future::pending().await;
        };
        let judged = judging.await;
        self.judging = None;
        if let Ok(states) = judged {
            self.take_in(states);
        }
        if let Some(defrag) = self.next.take() {
            self.judge(&defrag);
        }
    }

    fn take_in(&mut self, states: Vec<EngineState>) {
        let before = self.states.take().unwrap_or_default();
        for state in states.iter().filter(|state| !before.contains(state)) {
            let wanted = |it: &&Unusable| it.reason != UnusableReason::NotConfigured;
            if let Some(why) = state.unusable.as_ref().filter(wanted) {
                warn!("{} is not used: {}", state.engine, why.text);
            }
        }
        self.states = Some(states);
    }
}
