//! Judges which engines are usable on this host. On a separate thread, because a program reads the
//! changelog of the kernel's package, from a disk that may hang.

use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

use crate::config::settings::Defrag;
use crate::defrag::{HostInterfaces, usable};
use crate::model::{EngineState, UnusableReason};

/// Retry interval while an engine is unusable: a missing changelog may be installed, or a hanging
/// program may answer.
const AGAIN: Duration = Duration::from_secs(3600);

/// The usable engines, and the thread that judges them.
pub(super) struct Engines {
    states: Option<Vec<EngineState>>,
    judged: mpsc::UnboundedReceiver<Vec<EngineState>>,
    tell: mpsc::UnboundedSender<Vec<EngineState>>,
    at_work: bool,
    /// Settings to judge by when the thread is done.
    next: Option<Defrag>,
    at: Instant,
}

impl Default for Engines {
    fn default() -> Engines {
        let (tell, judged) = mpsc::unbounded_channel();
        Engines {
            states: None,
            judged,
            tell,
            at_work: false,
            next: None,
            at: Instant::now(),
        }
    }
}

impl Engines {
    /// The last result; `None` until there is one.
    pub(super) fn states(&self) -> Option<&[EngineState]> {
        self.states.as_deref()
    }

    /// Starts judging. Only one thread at a time, so that hanging ones do not accumulate.
    pub(super) fn judge(&mut self, defrag: &Defrag) {
        if self.at_work {
            self.next = Some(defrag.clone());
            return;
        }
        let (defrag, tell) = (defrag.clone(), self.tell.clone());
        let judge = move || {
            // Fails only when the daemon ends.
            let _ = tell.send(usable::engines(&defrag, &HostInterfaces::to_look_at()));
        };
        self.at = Instant::now();
        match thread::Builder::new()
            .name("engines".to_owned())
            .spawn(judge)
        {
            Ok(_) => self.at_work = true,
            Err(error) => warn!("which engines can be used is not known: no thread: {error}"),
        }
    }

    /// Whether to judge again.
    pub(super) fn is_due(&self) -> bool {
        let is_wanted = |state: &EngineState| {
            let reason = state.unusable.as_ref().map(|it| it.reason);
            reason.is_some_and(|reason| reason != UnusableReason::NotConfigured)
        };
        let is_open = self.states().is_none_or(|it| it.iter().any(is_wanted));
        is_open && !self.at_work && self.at.elapsed() >= AGAIN
    }

    /// Waits for a result.
    pub(super) async fn judged(&mut self) -> Option<Vec<EngineState>> {
        self.judged.recv().await
    }

    /// Stores and logs a result.
    pub(super) fn take_in(&mut self, states: Vec<EngineState>) {
        self.at_work = false;
        for state in &states {
            let before = self.states().unwrap_or_default();
            let wanted = |reason| reason != UnusableReason::NotConfigured;
            let unusable = state.unusable.as_ref().filter(|it| wanted(it.reason));
            if let Some(why) = unusable.filter(|_| !before.contains(state)) {
                warn!("{} is not used: {}", state.engine, why.text);
            }
        }
        self.states = Some(states);
        if let Some(defrag) = self.next.take() {
            self.judge(&defrag);
        }
    }
}
