//! Examines the host once a day, and for the evidence of an incident.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, warn};

use super::blocking::within;
use super::clock;
use crate::config::Settings;
use crate::doctor::examine;
use crate::doctor::files::Host;
use crate::doctor::readings::{Own, Readings, Timing, WATCHED};
use crate::model::{CheckId, Diagnosis, Finding, Severity};
use crate::serve::shared_status::SharedStatus;
use crate::serve::status::Doctor;

/// After the start, when sweep, history and the judgement of the kernel have their results.
const FIRST: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
/// While something is found that may pass: it must not be shown for a day after it has passed.
const SOON: Duration = Duration::from_secs(600);
/// With rates.
const DAILY: Timing = Timing {
    interval: WATCHED,
    deadline: Duration::from_secs(10),
};
/// Within the time of the other evidence, 2 s.
const AT_INCIDENT: Timing = Timing {
    interval: Duration::from_millis(500),
    deadline: Duration::from_secs(1),
};
/// Readings have a deadline of their own.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Examines the host daily, and soon after a change of `[doctor]`.
pub(super) async fn run(mut settings: watch::Receiver<Arc<Settings>>, status: Arc<SharedStatus>) {
    let mut due = Instant::now() + FIRST;
    let mut used = settings.borrow_and_update().doctor.clone();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            changed = settings.changed() => {
                if changed.is_err() {
                    return;
                }
                let new = settings.borrow_and_update().doctor.clone();
                if new == used {
                    continue;
                }
                used = new;
            }
        }
        let now = Arc::clone(&settings.borrow());
        let board = Arc::clone(&status);
        let mut rest = SOON;
        if let Some(diagnosis) = within(TIMEOUT, move || diagnose(DAILY, &now, &board)).await {
            if diagnosis.open().all(|finding| is_of_settings(finding.id)) {
                rest = DAY;
            }
            publish(&status, diagnosis);
        }
        due = Instant::now() + rest;
    }
}

/// Whether a check is of what changes only by hand: kernel, settings, layout.
fn is_of_settings(id: CheckId) -> bool {
    matches!(id.0, 101..=204 | 207..=211 | 302..=305)
}

/// The findings at an incident, in about a second, for a thread that may hang.
pub(super) fn at_incident(
    settings: watch::Receiver<Arc<Settings>>,
    status: Arc<SharedStatus>,
) -> impl Fn() -> Vec<Finding> {
    move || {
        let settings = Arc::clone(&settings.borrow());
        diagnose(AT_INCIDENT, &settings, &status).findings
    }
}

fn diagnose(timing: Timing, settings: &Settings, status: &SharedStatus) -> Diagnosis {
    let own = Own::new(settings.clone(), Ok(Some(Box::new(status.status()))));
    examine(&Readings::take(&Host(PathBuf::from("/")), timing, own))
}

/// Logs what is new, and shows all of it.
fn publish(status: &SharedStatus, diagnosis: Diagnosis) {
    let known = status.status().doctor.diagnosis.findings;
    let is_new = |finding: &&Finding| !known.iter().any(|it| it.id == finding.id);
    for Finding {
        id, severity, what, ..
    } in diagnosis.open().filter(is_new)
    {
        match severity {
            Severity::Critical => error!("doctor: {id}: {what}"),
            _ => warn!("doctor: {id}: {what}"),
        }
    }
    status.update(|status| {
        status.doctor = Doctor {
            examined: Some(clock::wall()),
            diagnosis,
        };
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UnixTime;
    use crate::serve::metrics::Lifetime;

    #[test]
    fn what_is_found_is_shown_and_served() {
        let status = SharedStatus::new(Lifetime::detached(), UnixTime(0), Duration::MAX / 4);
        let finding = |id, severity| Finding {
            id: CheckId(id),
            severity,
            what: "It is.".to_owned(),
            read: Vec::new(),
            silenced: None,
        };
        let mut findings = vec![
            finding(1, Severity::Critical),
            finding(201, Severity::Warning),
            finding(201, Severity::Warning),
        ];
        findings.push(Finding {
            silenced: Some("known".to_owned()),
            ..finding(202, Severity::Warning)
        });
        let diagnosis = Diagnosis {
            findings,
            ..Diagnosis::default()
        };
        publish(&status, diagnosis.clone());
        let shown = status.status().doctor;
        assert!(shown.examined.is_some());
        assert_eq!(shown.diagnosis, diagnosis);
        let json = serde_json::to_value(&shown).unwrap();
        assert_eq!(json["findings"][0]["id"], "FW001");
        let text = crate::serve::metrics::render_doctor(&diagnosis);
        let series: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            series,
            [
                "fragwatch_doctor_findings{id=\"FW001\",severity=\"critical\"} 1",
                "fragwatch_doctor_findings{id=\"FW201\",severity=\"warning\"} 2",
            ]
        );
    }

    /// This machine may have any findings; the host is really read.
    #[test]
    fn the_host_is_examined() {
        let status = SharedStatus::new(Lifetime::detached(), UnixTime(0), Duration::MAX / 4);
        let diagnosis = diagnose(Timing::default(), &Settings::default(), &status);
        assert!(diagnosis.checked > 5, "{diagnosis:?}");
    }
}
