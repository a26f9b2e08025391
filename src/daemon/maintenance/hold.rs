//! `[maintenance.hold]`: asks Prometheus, while a window is open, whether runs are held. Until it has
//! answered, and while it does not answer, none begins; only a result ends one that is under way.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::request::{self, Request};
use crate::config::settings::Hold as Settings;
use crate::fleet::{Denied, hold};
use crate::model::{ReasonCode, Refusal};

/// Time between two questions.
const INTERVAL: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Hold {
    asking: Option<JoinHandle<Result<(), Denied>>>,
    asked: Option<Instant>,
    answer: Option<Result<(), Denied>>,
}

impl Hold {
    /// Asks again, if the last answer is old. For each tick of an open window.
    pub(super) fn ask(&mut self, settings: &Settings) {
        let early = |at: Instant| at.elapsed() < INTERVAL;
        if settings.url.is_empty() || self.asking.is_some() || self.asked.is_some_and(early) {
            return;
        }
        let Settings { url, query } = settings.clone();
        self.asked = Some(Instant::now());
        self.asking = Some(tokio::spawn(async move { hold::ask(&url, &query).await }));
    }

    /// Forgets the answer: it is old when the next window opens, or the settings are others.
    pub(super) fn forget(&mut self) {
        *self = Hold::default();
    }

    /// Waits for the answer; forever if none is to come. Cancel-safe.
    pub(super) async fn answered(&mut self) {
        let answer = request::join(self.asking.as_mut()).await;
        self.asking = None;
        request::report(Request::Hold, &answer, self.answer.as_ref());
        self.answer = Some(answer);
    }

    /// Whether a run under way is to end.
    pub(super) fn stops(&self) -> bool {
        matches!(self.answer, Some(Err(Denied::Refused(_))))
    }

    /// Why no run may begin; `None` if it may, or if no window is open.
    pub(super) fn why_not(&self) -> Option<Refusal> {
        let why = match &self.answer {
            Some(Ok(())) => return None,
            Some(Err(why)) => why.to_string(),
            None => self.asking.as_ref().map(|_| "being asked".to_owned())?,
        };
        let text = format!("no run can begin: maintenance.hold: {why}");
        Some(Refusal::new(ReasonCode::Held, text))
    }
}
