//! `fragwatch doctor`: what is wrong with this host.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use super::args::DoctorArguments;
use super::client::{self, NotRunning};
use super::command::load_to_ask;
use super::output::{self, SUCCESS, UNKNOWN};
use crate::doctor::files::Host;
use crate::doctor::outcome::NotChecked;
use crate::doctor::readings::{Own, Readings, Timing};
use crate::doctor::{examine, report, table};
use crate::model::{CheckId, Diagnosis, Finding, Roughly, Severity, UnixTime};
use crate::serve::status::{Doctor, Status};

/// Columns if the output is no terminal.
const WIDTH: u16 = 100;

pub(super) fn run(arguments: &DoctorArguments, config: Option<&Path>) -> anyhow::Result<u8> {
    let width = usize::from(output::width().unwrap_or(WIDTH).clamp(40, WIDTH));
    if let Some(id) = &arguments.explain {
        return explain(id, width);
    }
    let settings = load_to_ask(config);
    let daemon = match client::get::<Status>(&settings, "/v1/status") {
        Ok(status) => Ok(Some(Box::new(status))),
        Err(error) if error.is::<NotRunning>() => Ok(None),
        Err(error) => Err(NotChecked::because(format!("{error:#}"))),
    };
    let own = Own::new(settings, daemon);
    let mut timing = Timing::default();
    if let Some(seconds) = arguments.watch {
        timing.interval = Duration::from_secs(seconds);
    }
    let readings = Readings::take(&Host(PathBuf::from("/")), timing, own);
    let diagnosis = examine(&readings);
    match arguments.json {
        true => output::print_json(&report::document(&diagnosis))?,
        false => output::print(&report::text(&diagnosis, width))?,
    }
    Ok(code(&diagnosis))
}

/// As `fragwatch check`: 0, 1 and 2 for the worst finding; 3 if there is none, but not all could be
/// checked.
fn code(diagnosis: &Diagnosis) -> u8 {
    match diagnosis.severity().as_number() {
        0 if !diagnosis.unchecked.is_empty() => UNKNOWN,
        severity => severity,
    }
}

fn explain(id: &str, width: usize) -> anyhow::Result<u8> {
    let known = || {
        let ids: Vec<_> = table::TABLE.iter().map(|it| it.id.to_string()).collect();
        format!("there is no check {id:?}; there are {}", ids.join(", "))
    };
    let parsed = id.to_ascii_uppercase().parse::<CheckId>().ok();
    let entry = parsed.and_then(table::entry).with_context(known)?;
    output::print(&report::explanation(entry, width))?;
    Ok(SUCCESS)
}

/// The line in `fragwatch status`: `! The doctor found FW001 (critical), FW104 3 h ago: `fragwatch doctor` says more.`
pub(super) fn status_line(doctor: &Doctor, now: UnixTime) -> String {
    let Some(examined) = doctor.examined else {
        return String::new();
    };
    let name = |finding: &Finding| match finding.severity {
        Severity::Critical => format!("{} (critical)", finding.id),
        _ => finding.id.to_string(),
    };
    let mut names: Vec<_> = doctor.diagnosis.open().map(name).collect();
    names.dedup();
    let ago = Roughly(now.since(examined));
    match names.is_empty() {
        true => format!("The doctor found nothing {ago} ago.\n"),
        false => format!(
            "! The doctor found {} {ago} ago: `fragwatch doctor` says more.\n",
            names.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_doctor_has_a_line() {
        let finding = |id, severity, silenced: Option<&str>| Finding {
            id: CheckId(id),
            severity,
            what: String::new(),
            read: Vec::new(),
            silenced: silenced.map(str::to_owned),
        };
        let mut last = Doctor::default();
        assert_eq!(status_line(&last, UnixTime(90)), "");
        last.examined = Some(UnixTime(30));
        last.diagnosis.findings = vec![finding(202, Severity::Warning, Some("known"))];
        let nothing = "The doctor found nothing 1 min ago.\n";
        assert_eq!(status_line(&last, UnixTime(90)), nothing);
        let open = [
            (1, Severity::Critical),
            (104, Severity::Warning),
            (104, Severity::Warning),
        ];
        last.diagnosis.findings = open.map(|(id, it)| finding(id, it, None)).to_vec();
        assert_eq!(
            status_line(&last, UnixTime(90)),
            "! The doctor found FW001 (critical), FW104 1 min ago: `fragwatch doctor` says more.\n"
        );
    }
}
