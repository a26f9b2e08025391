//! What `fragwatch doctor` found on the host.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Severity;

/// Identifier of a check of the doctor, `FW012`. It never changes and is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CheckId(pub u16);

impl fmt::Display for CheckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FW{:03}", self.0)
    }
}

impl FromStr for CheckId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("FW").filter(|digits| digits.len() == 3);
        let is_number = |digits: &&str| digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.filter(is_number).and_then(|it| it.parse().ok());
        number
            .map(CheckId)
            .ok_or("is no identifier of a check such as FW012")
    }
}

impl From<CheckId> for String {
    fn from(id: CheckId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for CheckId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check.
    pub id: CheckId,
    /// `warning` or `critical`; `ok` for a note, which explains something and counts for nothing.
    pub severity: Severity,
    /// What is, in one sentence.
    pub what: String,
    /// What was read: the file and the part of it that decided.
    pub read: Vec<String>,
    /// Why the operator has silenced the check (`doctor.silence`). Such a finding counts for nothing.
    pub silenced: Option<String>,
}

/// A check that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unchecked {
    /// The check.
    pub id: CheckId,
    /// Why, as a clause.
    pub reason: String,
}

/// The result of all checks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Diagnosis {
    /// The most severe first, those that are silenced last.
    pub findings: Vec<Finding>,
    /// Those that could not be made.
    pub unchecked: Vec<Unchecked>,
    /// Those that need two readings further apart (`--watch`).
    pub need_watch: Vec<CheckId>,
    /// How many checks were made.
    pub checked: usize,
}

impl Diagnosis {
    /// The findings that count: neither silenced nor notes.
    pub fn open(&self) -> impl Iterator<Item = &Finding> {
        let findings = self.findings.iter();
        findings.filter(|it| it.silenced.is_none() && it.severity > Severity::Ok)
    }

    /// The severity of the worst of them.
    pub fn severity(&self) -> Severity {
        let severities = self.open().map(|finding| finding.severity);
        severities.max().unwrap_or_default()
    }

    /// The number of them with this severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.open().filter(|it| it.severity == severity).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_reads_as_it_is_written() {
        assert_eq!(CheckId(12).to_string(), "FW012");
        assert_eq!("FW012".parse(), Ok(CheckId(12)));
        for wrong in ["", "FW12", "FW0012", "fw012", "FW+12", "12", "FWabc"] {
            assert!(wrong.parse::<CheckId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_silenced_finding_counts_for_nothing() {
        let finding = |severity, silenced: Option<&str>| Finding {
            id: CheckId(1),
            severity,
            what: String::new(),
            read: Vec::new(),
            silenced: silenced.map(str::to_owned),
        };
        let mut diagnosis = Diagnosis::default();
        assert_eq!(diagnosis.severity(), Severity::Ok);
        let silenced = finding(Severity::Critical, Some("known"));
        let note = finding(Severity::Ok, None);
        diagnosis.findings = vec![note, finding(Severity::Warning, None), silenced];
        assert_eq!(diagnosis.open().count(), 1);
        assert_eq!(diagnosis.severity(), Severity::Warning);
        assert_eq!(diagnosis.count(Severity::Warning), 1);
        assert_eq!(diagnosis.count(Severity::Critical), 0);
    }
}
