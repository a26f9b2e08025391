//! Which engines can be used on this host: judged on a thread of its own, because the changelog of
//! the kernel's package is read by a program and from a disk that may hang.

use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

use crate::config::settings::Defrag;
use crate::defrag::{Host, usable};
use crate::model::{EngineState, UnusableReason};

/// From one look to the next while an engine is not used: the changelog that was missing may have
/// been installed, or the program that did not answer may answer.
const AGAIN: Duration = Duration::from_secs(3600);

/// See the module.
pub(super) struct Engines {
    states: Option<Vec<EngineState>>,
    judged: mpsc::UnboundedReceiver<Vec<EngineState>>,
    tell: mpsc::UnboundedSender<Vec<EngineState>>,
    /// Whether a thread is at it.
    at_work: bool,
    /// What is to be judged by when it is done.
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
    /// What is known; nothing before they were judged.
    pub(super) fn states(&self) -> Option<&[EngineState]> {
        self.states.as_deref()
    }

    /// Begins to judge them. One thread at a time: one that hangs is not joined by others.
    pub(super) fn judge(&mut self, defrag: &Defrag) {
        if self.at_work {
            self.next = Some(defrag.clone());
            return;
        }
        let (defrag, tell) = (defrag.clone(), self.tell.clone());
        let judge = move || {
            // Nobody listens any more when the daemon ends.
            let _ = tell.send(usable::engines(&defrag, &Host::default()));
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

    /// Whether it is time to judge them again.
    pub(super) fn is_due(&self) -> bool {
        let is_wanted = |state: &EngineState| {
            let reason = state.unusable.as_ref().map(|it| it.reason);
            reason.is_some_and(|reason| reason != UnusableReason::NotConfigured)
        };
        let is_open = self.states().is_none_or(|it| it.iter().any(is_wanted));
        is_open && !self.at_work && self.at.elapsed() >= AGAIN
    }

    /// Waits for a judgement.
    pub(super) async fn judged(&mut self) -> Option<Vec<EngineState>> {
        self.judged.recv().await
    }

    /// They were judged.
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
