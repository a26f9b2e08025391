//! The incident recorder and the stall detector, started and changed as configured.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::{error, info, warn};

use super::history::{HistoryHandle, incident_listener};
use crate::config::settings::Rescue;
use crate::incident::evidence::ImageEvidence;
use crate::incident::gatherer::Findings;
use crate::incident::recorder::{HANGS, Recorder, RecorderSettings};
use crate::model::Trigger;
use crate::rescue::clock::now;
use crate::rescue::exchange::Exchange;
use crate::serve::metrics;
use crate::serve::parts::{Part, State};
use crate::serve::shared_status::SharedStatus;
use crate::stall::{INTERVAL, StallDetector, StallHealth, StallSettings, effective_trigger};

const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(300);

/// The recorder and the detector, and their settings.
pub(super) struct IncidentMonitor {
    board: Arc<SharedStatus>,
    history: HistoryHandle,
    incidents: PathBuf,
    findings: Findings,
    /// `None` if it could not be started.
    pub(super) recorder: Option<Arc<Recorder>>,
    hook: Vec<String>,
    stall_after: Option<Duration>,
    /// `None` if it is off; else the detector, or why there is none.
    detector: Option<Result<StallDetector, String>>,
    down_logged: AtomicBool,
}

impl IncidentMonitor {
    /// Starts neither of them yet.
    pub(super) fn new(
        board: Arc<SharedStatus>,
        history: HistoryHandle,
        incidents: PathBuf,
        findings: Findings,
    ) -> Self {
        IncidentMonitor {
            incidents,
            findings,
            board,
            history,
            recorder: None,
            hook: Vec::new(),
            stall_after: None,
            detector: None,
            down_logged: AtomicBool::new(false),
        }
    }

    /// Applies changed settings. The recorder and its incident always continue; the detector is
    /// restarted if `stall_after` changed.
    pub(super) fn apply(&mut self, settings: &Rescue, exchange: &Arc<Exchange>) {
        match &self.recorder {
            None if settings.enabled => {
                self.recorder = self.start_recorder(&settings.hook).map(Arc::new);
                self.hook.clone_from(&settings.hook);
            }
            Some(recorder) if settings.hook != self.hook => match recorder.set_hook(&settings.hook)
            {
                Ok(()) => self.hook.clone_from(&settings.hook),
                Err(reason) => warn!("rescue.hook unchanged: {reason}"),
            },
            _ => {}
        }
        let stall_after = settings.stall_after.filter(|_| settings.enabled);
        if stall_after != self.stall_after || matches!(self.detector, Some(Err(_))) {
            // Dropping the detector ends it.
            self.detector = None;
            self.stall_after = stall_after;
            self.detector = stall_after.map(|after| self.start_detector(after, exchange));
        }
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let trigger = effective_trigger(&release, matches!(self.detector, Some(Ok(_))));
        self.board.update(|status| {
            if status.rescue.trigger != trigger {
                info!("{trigger}");
                status.rescue.trigger = trigger;
            }
        });
    }

    fn start_detector(
        &self,
        stall_after: Duration,
        exchange: &Arc<Exchange>,
    ) -> Result<StallDetector, String> {
        let settings = StallSettings {
            proc: PathBuf::from("/proc"),
            stall_after,
            interval: INTERVAL,
        };
        let (exchange, recorder) = (Arc::clone(exchange), self.recorder.clone());
        let started = StallDetector::start(settings, move |stuck| {
            exchange.trigger(Trigger::Stall);
            if let Some(recorder) = &recorder {
                recorder.stall(now(), stuck);
            }
        });
        started.map_err(|reason| {
            warn!(
                "stall detector disabled: {reason}; a stall that the kernel does not log will not be noticed"
            );
            reason.to_string()
        })
    }

    /// Publishes both states; while the rescue does not run they are not listed.
    pub(super) fn update_states(&self, runs: bool) {
        if !runs {
            let ours = |part: &Part| matches!(part, Part::IncidentFiles | Part::StallDetector);
            return self.board.retain_parts(|part| !ours(part));
        }
        let files = match &self.recorder {
            None => State::Down("no thread for it could be started".to_owned()),
            Some(recorder) => {
                let health = recorder.health();
                let lost = health.lost.saturating_add(health.hooks_dropped);
                metrics::incident_files(health.files.written, health.files.failed, lost);
                match health.files.hung_for {
                    Some(since) if since > HANGS => State::Down(format!(
                        "its directory has not answered for {} s",
                        since.as_secs()
                    )),
                    _ if health.files.failing => {
                        State::Down("the last file could not be written, see the log".to_owned())
                    }
                    _ => State::Up,
                }
            }
        };
        self.board.set_part(Part::IncidentFiles, files);
        let detector = match &self.detector {
            Some(Ok(detector)) => self.detector_state(detector.health()),
            Some(Err(reason)) => State::Down(reason.clone()),
            None => State::Off("rescue.stall_after = \"never\"".to_owned()),
        };
        self.board.set_part(Part::StallDetector, detector);
    }

    /// While one reader works, hanging readers cost only the tasks at which they hang.
    fn detector_state(&self, health: StallHealth) -> State {
        let down = health.trouble.is_some();
        match (
            &health.trouble,
            self.down_logged.swap(down, Ordering::Relaxed),
        ) {
            (Some(reason), false) => error!("stall detector down: {reason}"),
            (None, true) => info!("stall detector up again"),
            _ => {}
        }
        match (health.trouble, health.left_behind) {
            (Some(reason), _) => State::Down(reason),
            (None, 0) => State::Up,
            (None, some) => State::Impaired(format!(
                "{some} of its readers hang, the last one at the stack of thread {}",
                health.hangs_at.unwrap_or(0)
            )),
        }
    }

    /// Ends both, after writing what the recorder holds.
    pub(super) fn stop(self) {
        drop(self.detector);
        if let Some(recorder) = self.recorder
            && !recorder.stop(SHUTDOWN_TIMEOUT)
        {
            warn!("the last incident file was not written in time");
        }
    }

    fn start_recorder(&self, hook: &[String]) -> Option<Recorder> {
        let board = Arc::clone(&self.board);
        let images = move || {
            let worst = &board.snapshot().worst;
            let evidence = |row: &crate::serve::status::Row| ImageEvidence {
                path: row.path.clone(),
                extents: row.extents.0,
                size_bytes: row.size.0,
            };
            worst.iter().map(evidence).collect()
        };
        let recorder = Recorder::start(RecorderSettings {
            directory: self.incidents.clone(),
            hook: hook.to_vec(),
            images: Arc::new(images),
            findings: Arc::clone(&self.findings),
            on_change: incident_listener(self.history.clone()),
            ..RecorderSettings::default()
        });
        recorder
            .inspect_err(|reason| warn!("incident recorder disabled: {reason}"))
            .ok()
    }
}
