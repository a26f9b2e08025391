//! The parts of the daemon and their states, as in `status`, `check`, `/metrics` and the alerts.
//!
//! The code that runs a part sets its state (`SharedStatus::set_part`) on a change or every few
//! seconds. A part that no longer exists, such as a log file no longer followed, is removed
//! together with its series.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::Severity;

/// A part of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The threads that decide and act in an emergency.
    Rescue,
    /// The reader of /dev/kmsg.
    KernelLog,
    /// A followed log file, by its path on one line.
    LogFile(String),
    /// The detector of stuck tasks.
    StallDetector,
    /// The recorder of incidents and its files.
    IncidentFiles,
    /// The sweeps over all images.
    Sampler,
    /// The history.
    History,
    /// The scheduler of defragmentations.
    Maintenance,
    /// The pages at `metrics.listen`.
    Http,
    /// The metrics as a file.
    Textfile,
    /// The control socket.
    ControlSocket,
    /// The settings in force.
    Configuration,
}

impl Part {
    /// The severity when down: without the critical parts an emergency may go unnoticed.
    fn when_down(&self) -> Severity {
        match self {
            Part::Rescue | Part::KernelLog | Part::LogFile(_) | Part::StallDetector => {
                Severity::Critical
            }
            _ => Severity::Warning,
        }
    }

    /// The label `source` of `fragwatch_klog_source_up`, if the part is a source.
    pub fn source(&self) -> Option<&str> {
        match self {
            Part::KernelLog => Some("kmsg"),
            Part::LogFile(path) => Some(path),
            Part::StallDetector => Some("stall_detector"),
            _ => None,
        }
    }
}

impl fmt::Display for Part {
    /// The name in the label `part` and in JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Rescue => "rescue",
            Part::KernelLog => "kernel_log",
            Part::LogFile(path) => return write!(f, "log_file {path}"),
            Part::StallDetector => "stall_detector",
            Part::IncidentFiles => "incident_files",
            Part::Sampler => "sampler",
            Part::History => "history",
            Part::Maintenance => "maintenance",
            Part::Http => "http",
            Part::Textfile => "textfile",
            Part::ControlSocket => "control_socket",
            Part::Configuration => "configuration",
        })
    }
}

/// The state of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It works.
    Up,
    /// Switched off, by this setting.
    Off(String),
    /// It works in part, for this reason.
    Impaired(String),
    /// It does not work, for this reason.
    Down(String),
}

impl State {
    /// [`Down`](State::Down) if there is a reason, else [`Up`](State::Up).
    pub fn down(reason: Option<String>) -> State {
        reason.map_or(State::Up, State::Down)
    }
}

/// All parts and their states.
#[derive(Debug, Clone, Default)]
pub struct Parts(BTreeMap<Part, State>);

/// A part in `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartStatus {
    /// Its name.
    pub part: String,
    /// `up`, `off`, `impaired` or `down`.
    pub state: String,
    /// How bad that state is.
    pub severity: Severity,
    /// Why it is not up.
    pub reason: Option<String>,
}

impl Parts {
    /// Sets the state of a part.
    pub fn set(&mut self, part: Part, state: State) {
        self.0.insert(part, state);
    }

    /// Keeps only the parts for which this holds.
    pub fn retain(&mut self, keep: impl Fn(&Part) -> bool) {
        self.0.retain(|part, _| keep(part));
    }

    /// The parts that are not switched off, and the severities of their states.
    pub fn severities(&self) -> impl Iterator<Item = (&Part, Severity)> {
        let parts = self.0.iter();
        let on = parts.filter(|(_, state)| !matches!(state, State::Off(_)));
        on.map(|(part, state)| (part, severity(part, state)))
    }

    /// All parts, for `status` and `check`.
    pub fn status(&self) -> Vec<PartStatus> {
        let status = |(part, state): (&Part, &State)| {
            let (name, reason) = match state {
                State::Up => ("up", None),
                State::Off(reason) => ("off", Some(reason)),
                State::Impaired(reason) => ("impaired", Some(reason)),
                State::Down(reason) => ("down", Some(reason)),
            };
            PartStatus {
                part: part.to_string(),
                state: name.to_owned(),
                severity: severity(part, state),
                reason: reason.cloned(),
            }
        };
        self.0.iter().map(status).collect()
    }
}

fn severity(part: &Part, state: &State) -> Severity {
    match state {
        State::Up | State::Off(_) => Severity::Ok,
        State::Impaired(_) => Severity::Warning,
        State::Down(_) => part.when_down(),
    }
}

impl PartStatus {
    /// Whether it is switched off.
    pub fn is_off(&self) -> bool {
        self.state == "off"
    }
}

impl fmt::Display for PartStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A path keeps its underscores.
        let (part, path) = self
            .part
            .split_at(self.part.find(' ').unwrap_or(self.part.len()));
        write!(f, "{}{path} {}", part.replace('_', " "), self.state)?;
        self.reason
            .iter()
            .try_for_each(|reason| write!(f, ": {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_as_bad_everywhere() {
        let mut parts = Parts::default();
        let file = Part::LogFile("/var/log/kern_1.log".to_owned());
        parts.set(Part::Rescue, State::Down("read-only".to_owned()));
        parts.set(Part::KernelLog, State::Off("klog.kmsg = false".to_owned()));
        parts.set(file.clone(), State::Up);
        parts.set(Part::IncidentFiles, State::Impaired("slow".to_owned()));
        let severities: Vec<_> = parts.severities().collect();
        assert_eq!(
            severities,
            [
                (&Part::Rescue, Severity::Critical),
                (&file, Severity::Ok),
                (&Part::IncidentFiles, Severity::Warning)
            ]
        );
        let texts: Vec<_> = parts.status().iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "rescue down: read-only",
                "kernel log off: klog.kmsg = false",
                "log file /var/log/kern_1.log up",
                "incident files impaired: slow"
            ]
        );
        parts.retain(|part| *part != file);
        assert_eq!(parts.status().len(), 3);
    }
}
