//! Who writes down what happens in an emergency, and who sees one that the kernel does not tell: the
//! recorder of incidents and the stall detector, started as the settings want them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::chronicle::{Teller, incident_listener};
use super::klog_files::FileMatch;
use crate::config::settings::Rescue;
use crate::model::Trigger;
use crate::rescue::clock::now;
use crate::rescue::entry::{Notice, Report};
use crate::rescue::evidence::ImageEvidence;
use crate::rescue::exchange::Exchange;
use crate::rescue::incident::{Recorder, RecorderSettings};
use crate::serve::board::Board;
use crate::serve::metrics;
use crate::stall::{INTERVAL, StallDetector, StallSettings, effective_trigger};

/// What the last file may take when the daemon ends.
const LAST_FILE: Duration = Duration::from_millis(300);

/// See the module.
pub(super) struct Witness {
    recorder: Option<Arc<Recorder>>,
    detector: Option<StallDetector>,
}

impl Witness {
    /// Starts both. What cannot be started is told and done without.
    pub(super) fn start(
        settings: &Rescue,
        exchange: &Arc<Exchange>,
        board: &Arc<Board>,
        teller: &Teller,
    ) -> Self {
        let recorder = start_recorder(settings, board, teller).map(Arc::new);
        let detector = settings
            .stall_after
            .and_then(|after| start_detector(after, exchange, recorder.clone()));
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let trigger = effective_trigger(&release, detector.is_some());
        info!("{trigger}");
        board.update_rescue(|rescue| rescue.trigger = trigger);
        Witness { recorder, detector }
    }

    pub(super) fn notice(&self, notice: &Notice, rule: &str) {
        if let Some(recorder) = &self.recorder {
            recorder.notice(notice, rule);
        }
    }

    pub(super) fn report(&self, report: &Report) {
        if let Some(recorder) = &self.recorder {
            recorder.report(report);
        }
    }

    pub(super) fn file_line(&self, found: &FileMatch, rule: &str, file: &Path) {
        if let Some(recorder) = &self.recorder {
            recorder.file_line(now(), rule, file, found.line.bytes());
        }
    }

    /// Tells the metrics how both do.
    pub(super) fn tell_states(&self) {
        if let Some(recorder) = &self.recorder {
            let health = recorder.health();
            let lost = health.lost.saturating_add(health.hooks_dropped);
            metrics::incident_files(health.files.written, health.files.failed, lost);
        }
        metrics::klog_source("stall_detector", self.detector.is_some());
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // It holds the recorder too.
        drop(self.detector.take());
        if let Some(recorder) = self.recorder.take().and_then(Arc::into_inner)
            && !recorder.stop(LAST_FILE)
        {
            warn!("the last incident file was not written in time");
        }
    }
}

/// systemd's state directory (systemd.exec(5), StateDirectory=), or where it would be.
fn start_recorder(settings: &Rescue, board: &Arc<Board>, teller: &Teller) -> Option<Recorder> {
    let state = std::env::var_os("STATE_DIRECTORY").unwrap_or("/var/lib/fragwatch".into());
    let board = Arc::clone(board);
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
        directory: PathBuf::from(state).join("incidents"),
        hook: settings.hook.clone(),
        images: Arc::new(images),
        told: incident_listener(teller.clone()),
        ..RecorderSettings::default()
    });
    recorder
        .inspect_err(|reason| warn!("incidents will not be recorded: {reason}"))
        .ok()
}

fn start_detector(
    stall_after: Duration,
    exchange: &Arc<Exchange>,
    recorder: Option<Arc<Recorder>>,
) -> Option<StallDetector> {
    let settings = StallSettings {
        proc: PathBuf::from("/proc"),
        stall_after,
        interval: INTERVAL,
    };
    let exchange = Arc::clone(exchange);
    let detector = StallDetector::start(settings, move |stuck| {
        exchange.trigger(Trigger::Stall);
        if let Some(recorder) = &recorder {
            recorder.stall(now(), stuck);
        }
    });
    detector
        .inspect_err(|reason| {
            warn!("stalls that the kernel does not tell will not be seen: {reason}")
        })
        .ok()
}
