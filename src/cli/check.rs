//! `fragwatch check`: one line and an exit code, as Icinga, Nagios and Checkmk expect of a plugin
//! (Monitoring Plugins Development Guidelines: 0 ok, 1 warning, 2 critical, 3 unknown; performance
//! data after `|`).

use std::path::Path;

use serde::Serialize;

use super::client;
use super::command::load_to_ask;
use super::output::{self, SCHEMA, UNKNOWN};
use crate::config::settings::Thresholds;
use crate::model::Severity;
use crate::serve::status::{Row, Status};

#[derive(Debug, Serialize)]
struct CheckResult {
    schema: u32,
    /// 0 to 3.
    code: u8,
    summary: String,
    performance: Vec<Measured>,
}

#[derive(Debug, Serialize)]
struct Measured {
    name: &'static str,
    value: u64,
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    critical: Option<u64>,
}

pub(super) fn run(json: bool, config: Option<&Path>) -> anyhow::Result<u8> {
    let result = match ask(config) {
        Ok((status, thresholds)) => judge(&status, &thresholds),
        Err(error) => CheckResult {
            schema: SCHEMA,
            code: UNKNOWN,
            summary: one_line(&format!("{error:#}")),
            performance: Vec::new(),
        },
    };
    match json {
        true => output::print_json(&result)?,
        false => output::print(&format!("{}\n", line(&result)))?,
    }
    Ok(result.code)
}

fn ask(config: Option<&Path>) -> anyhow::Result<(Status, Thresholds)> {
    let settings = load_to_ask(config);
    Ok((client::get(&settings, "/v1/status")?, settings.thresholds))
}

fn judge(status: &Status, thresholds: &Thresholds) -> CheckResult {
    let (code, mut found) = problems(status);
    if found.is_empty() {
        let plural = if status.images.total == 1 { "" } else { "s" };
        found.push(format!("{} image{plural} ok", status.images.total));
        let worst = status.worst.first();
        found.extend(worst.map(|it| format!("worst {} extents in {}", it.extents, image(it))));
    }
    // Not a problem, but should be visible.
    let off = status.parts.iter().filter(|part| part.is_off());
    found.extend(off.map(ToString::to_string));
    CheckResult {
        schema: SCHEMA,
        code,
        summary: one_line(&found.join("; ")),
        performance: performance(status, thresholds),
    }
}

/// The problems and the worst code; without current counts UNKNOWN, unless a problem is critical.
fn problems(status: &Status) -> (u8, Vec<String>) {
    let (images, rescue) = (&status.images, &status.rescue);
    let mut found = Vec::new();
    let mut code = 0;
    let mut add = |severity: u8, what: String| {
        code = code.max(severity);
        found.push(what);
    };
    if rescue.incident {
        let what = "INCIDENT: XFS waits for memory, see `fragwatch incidents`";
        add(2, what.to_owned());
    }
    let bad = status.worst.iter().filter(|it| it.severity > Severity::Ok);
    for row in bad.take(if rescue.incident { 2 } else { 3 }) {
        let reason = row.reason.iter().map(|reason| format!(", {reason}"));
        let (severity, extents, reason) = (row.severity, row.extents, reason.collect::<String>());
        let what = format!("{} {severity} ({extents} extents{reason})", image(row));
        add(severity.as_number(), what);
    }
    if images.critical + images.warning > 0 {
        let what = format!(
            "{} critical and {} warning of {} images",
            images.critical, images.warning, images.total
        );
        add(if images.critical > 0 { 2 } else { 1 }, what);
    }
    if let Some(reason) = &status.host.reason {
        let severity = status.host.severity;
        add(severity.as_number(), format!("memory {severity}: {reason}"));
    }
    let bad = status.parts.iter().filter(|it| it.severity > Severity::Ok);
    for part in bad {
        add(part.severity.as_number(), part.to_string());
    }
    if rescue.armed && rescue.drilled.is_some() && rescue.roundtrip_seconds.is_none() {
        add(1, "the last drill of the rescue failed".to_owned());
    }
    if status.daemon.config_refused.is_some() {
        add(1, status.daemon.config_in_force.text().to_owned());
    }
    // The part `sampler` gives the reason.
    let mut unknown = status.daemon.sweep_overdue_seconds.is_some();
    unknown |= !status.stalled.is_empty();
    found.extend(status.stalled.iter().map(|stalled| {
        let (mount, seconds) = (&stalled.mount, stalled.seconds);
        format!("file system {mount} does not answer for {seconds} s")
    }));
    if unknown && code < 2 {
        code = UNKNOWN;
    }
    (code, found)
}

fn image(row: &Row) -> String {
    match &row.vm {
        Some(vm) => format!("{} (VM {vm})", row.path),
        None => row.path.clone(),
    }
}

fn performance(status: &Status, thresholds: &Thresholds) -> Vec<Measured> {
    let images = &status.images;
    let mut measured = [
        ("images", images.total as u64, ""),
        ("images_warning", images.warning as u64, ""),
        ("images_critical", images.critical as u64, ""),
        ("extents", images.extents.0, ""),
        ("worst_extents", images.most_extents.0, ""),
        ("extent_map_memory", images.extent_map_memory.0, "B"),
    ]
    .map(|(name, value, unit)| Measured {
        name,
        value,
        unit,
        warning: None,
        critical: None,
    });
    measured[4].warning = Some(thresholds.warning.extents.0);
    measured[4].critical = Some(thresholds.critical.extents.0);
    measured.into()
}

fn line(result: &CheckResult) -> String {
    let word = match result.code {
        0 => "OK",
        1 => "WARNING",
        2 => "CRITICAL",
        _ => "UNKNOWN",
    };
    let mut line = format!("FRAGWATCH {word} - {}", result.summary);
    for (number, measured) in result.performance.iter().enumerate() {
        line.push_str(if number == 0 { " | " } else { " " });
        let (name, value, unit) = (measured.name, measured.value, measured.unit);
        line.push_str(&format!("{name}={value}{unit}"));
        if let (Some(warning), Some(critical)) = (measured.warning, measured.critical) {
            line.push_str(&format!(";{warning};{critical}"));
        }
    }
    line
}

/// Performance data begins at the first `|`, and a second line is not displayed.
fn one_line(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "¦")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Bytes, ExtentCount, UnixTime};
    use crate::serve::parts::{Part, Parts, State};
    use crate::serve::status::{Host, Images, Rescue, Stalled};

    fn host(severity: Severity, extents: u64) -> Status {
        let count = |of| usize::from(severity == of);
        Status {
            images: Images {
                total: 1,
                ok: count(Severity::Ok),
                warning: count(Severity::Warning),
                critical: count(Severity::Critical),
                extents: ExtentCount(extents),
                most_extents: ExtentCount(extents),
                extent_map_memory: Bytes(160),
                unprotected: 0,
                unprotected_by: crate::serve::status::Unprotected::default(),
            },
            worst: vec![Row {
                path: "/a|b.img".to_owned(),
                extents: ExtentCount(extents),
                severity,
                ..Row::default()
            }],
            ..Status::default()
        }
    }

    fn checked(status: &Status) -> (u8, String) {
        let result = judge(status, &Thresholds::default());
        (result.code, line(&result))
    }

    #[test]
    fn one_line_says_it_all() {
        assert_eq!(
            checked(&host(Severity::Ok, 10)),
            (
                0,
                "FRAGWATCH OK - 1 image ok; worst 10 extents in /a¦b.img | images=1 images_warning=0 \
                 images_critical=0 extents=10 worst_extents=10;500000;5000000 extent_map_memory=160B"
                    .to_owned()
            )
        );
        let (code, line) = checked(&host(Severity::Critical, 6_000_000));
        assert_eq!(code, 2);
        assert!(
            line.starts_with(
                "FRAGWATCH CRITICAL - /a¦b.img critical (6,000,000 extents); 1 critical"
            ),
            "{line}"
        );
    }

    #[test]
    fn old_counts_are_unknown_but_never_hide_what_is_bad() {
        let mut status = host(Severity::Ok, 10);
        status.stalled.push(Stalled {
            mount: "/srv".to_owned(),
            seconds: 12,
        });
        assert_eq!(checked(&status).0, UNKNOWN);
        status.rescue.incident = true;
        assert_eq!(checked(&status).0, 2);
        let mut critical = host(Severity::Critical, 6_000_000);
        critical.daemon.sweep_overdue_seconds = Some(5);
        assert_eq!(checked(&critical).0, 2);
    }

    #[test]
    fn the_vm_is_named_and_so_is_the_threshold() {
        let mut status = host(Severity::Warning, 6_000);
        status.worst[0].vm = Some("db-1".to_owned());
        status.worst[0].reason = Some("the threshold is 5,000 extents".to_owned());
        let (code, line) = checked(&status);
        assert_eq!(code, 1);
        let said = "/a¦b.img (VM db-1) warning (6,000 extents, the threshold is 5,000 extents);";
        assert!(line.contains(said), "{line}");
    }

    #[test]
    fn what_all_maps_take_of_the_host_counts_too() {
        let mut status = host(Severity::Ok, 10);
        status.host = Host {
            severity: Severity::Critical,
            reason: Some("extent maps take 1 GiB of 16 GiB, the threshold is 5%".to_owned()),
        };
        let (code, line) = checked(&status);
        assert_eq!(code, 2);
        assert!(
            line.contains("- memory critical: extent maps take 1 GiB"),
            "{line}"
        );
    }

    #[test]
    fn a_part_counts_as_much_as_in_the_metrics_and_what_is_off_is_named() {
        let mut status = host(Severity::Ok, 10);
        let mut parts = Parts::default();
        parts.set(Part::KernelLog, State::Off("klog.kmsg = false".to_owned()));
        status.parts = parts.status();
        let (code, line) = checked(&status);
        assert_eq!(code, 0);
        assert!(
            line.contains("in /a¦b.img; kernel log off: klog.kmsg = false |"),
            "{line}"
        );
        parts.set(Part::IncidentFiles, State::Down("full".to_owned()));
        status.parts = parts.status();
        assert_eq!(checked(&status).0, 1);
        parts.set(Part::Rescue, State::Down("read-only".to_owned()));
        status.parts = parts.status();
        let (code, line) = checked(&status);
        assert_eq!(code, 2);
        assert!(
            line.contains("CRITICAL - rescue down: read-only;"),
            "{line}"
        );
    }

    #[test]
    fn a_failed_drill_warns() {
        let mut status = host(Severity::Ok, 10);
        status.rescue = Rescue {
            armed: true,
            drilled: Some(UnixTime(5)),
            ..Rescue::default()
        };
        assert_eq!(checked(&status).0, 1);
        status.rescue.roundtrip_seconds = Some(1e-4);
        assert_eq!(checked(&status).0, 0);
    }
}
