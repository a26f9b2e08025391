//! What `fragwatch doctor` prints: a text for people, a document for programs, the long explanations
//! and the list of the manual page.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::table::{Entry, TABLE, entry};
use crate::model::{CheckId, Diagnosis, Finding, Severity};
use crate::table::counted;

/// Version of the document; keys are only ever added.
const SCHEMA: u32 = 1;
const INDENT: usize = 4;
/// Columns of the labels `Why:`, `Do:` and `Read:`.
const LABEL: usize = 6;

/// The findings in words, in lines of at most `width` columns.
pub fn text(diagnosis: &Diagnosis, width: usize) -> String {
    let mut text = String::new();
    for finding in &diagnosis.findings {
        text.push_str(&finding_text(finding, width));
        text.push('\n');
    }
    text.push_str(&wrapped(&summary(diagnosis), "", "", width));
    for unchecked in &diagnosis.unchecked {
        let title = entry(unchecked.id).map_or("", |entry| entry.title);
        let line = format!("{} {title}: {}", unchecked.id, unchecked.reason);
        text.push_str(&wrapped(&line, "  ", "        ", width));
    }
    if !diagnosis.need_watch.is_empty() {
        let ids: Vec<_> = diagnosis
            .need_watch
            .iter()
            .map(CheckId::to_string)
            .collect();
        let line = format!("Only with --watch SECONDS: {}.", ids.join(", "));
        text.push_str(&wrapped(&line, "", "  ", width));
    }
    text
}

fn finding_text(finding: &Finding, width: usize) -> String {
    let title = entry(finding.id).map_or("", |entry| entry.title);
    let severity = match (&finding.silenced, finding.severity) {
        (Some(_), _) => "SILENCED",
        (None, Severity::Critical) => "CRITICAL",
        (None, Severity::Ok) => "NOTE",
        (None, _) => "WARNING",
    };
    let mut text = format!("{severity} {}: {title}\n", finding.id);
    let pad = " ".repeat(INDENT);
    text.push_str(&wrapped(&finding.what, &pad, &pad, width));
    if let Some(reason) = &finding.silenced {
        let line = format!("Silenced in [doctor]: {reason}");
        text.push_str(&wrapped(&line, &pad, &pad, width));
        return text;
    }
    let mut labelled = |label: &str, line: &str| {
        let first = format!("{pad}{label:<LABEL$}");
        text.push_str(&wrapped(line, &first, &" ".repeat(INDENT + LABEL), width));
    };
    if let Some(entry) = entry(finding.id) {
        labelled("Why:", entry.why);
        labelled("Do:", entry.remedy);
    }
    for line in &finding.read {
        labelled("Read:", line);
    }
    text
}

/// `2 findings: 1 critical, 1 warning (1 silenced); 1 note; … 14 checks made, 1 could not be made:`
fn summary(diagnosis: &Diagnosis) -> String {
    let open = diagnosis.open().count();
    let all = diagnosis.findings.iter();
    let silenced = all.clone().filter(|it| it.silenced.is_some()).count();
    let notes = all.len() - open - silenced;
    let mut text = match open {
        0 => "Nothing found".to_owned(),
        _ => format!(
            "{}: {} critical, {} warning",
            counted(open as u64, "finding"),
            diagnosis.count(Severity::Critical),
            diagnosis.count(Severity::Warning)
        ),
    };
    // Writing to a String cannot fail.
    if silenced > 0 {
        let _ = write!(text, " ({silenced} silenced)");
    }
    if notes > 0 {
        let _ = write!(text, "; {}", counted(notes as u64, "note"));
    }
    if open + notes > 0 {
        text.push_str("; `fragwatch doctor --explain ID` says more");
    }
    let _ = write!(
        text,
        ". {} made",
        counted(diagnosis.checked as u64, "check")
    );
    let _ = match diagnosis.unchecked.len() {
        0 => write!(text, "."),
        number => write!(text, ", {number} could not be made:"),
    };
    text
}

/// The findings as JSON.
pub fn document(diagnosis: &Diagnosis) -> Value {
    let finding = |finding: &Finding| {
        let entry = entry(finding.id);
        json!({
            "id": finding.id,
            "severity": finding.severity,
            "title": entry.map(|it| it.title),
            "what": finding.what,
            "why": entry.map(|it| it.why),
            "do": entry.map(|it| it.remedy),
            "read": finding.read,
            "source": entry.map(|it| it.source),
            "silenced": finding.silenced,
        })
    };
    json!({
        "schema": SCHEMA,
        "severity": diagnosis.severity(),
        "findings": diagnosis.findings.iter().map(finding).collect::<Vec<_>>(),
        "not_checked": diagnosis.unchecked,
        "needs_watch": diagnosis.need_watch,
        "checked": diagnosis.checked,
    })
}

/// The whole text of a check, in lines of at most `width` columns.
pub fn explanation(entry: &Entry, width: usize) -> String {
    let mut text = format!("{}: {} ({})\n\n", entry.id, entry.title, entry.severity);
    for paragraph in entry.explanation.split("\n\n") {
        text.push_str(&wrapped(paragraph, "", "", width));
        text.push('\n');
    }
    for (label, line) in [
        ("Why:", entry.why),
        ("Do:", entry.remedy),
        ("Source:", entry.source),
    ] {
        text.push_str(&wrapped(line, &format!("{label:<8}"), "        ", width));
    }
    text
}

/// The checks as Markdown, for the manual page.
pub fn manual() -> String {
    let mut text = String::from("# Checks\n");
    for Entry {
        id,
        severity,
        title,
        why,
        remedy,
        explanation,
        source,
    } in TABLE
    {
        let _ = write!(
            text,
            "\n## {id} {title}\n\nSeverity: {severity}. {why}\n\n{explanation}\n\nWhat to do: {remedy}\n\n\
             Source: {source}.\n"
        );
    }
    text
}

/// A text in lines of at most `width` columns, unless a word is longer.
fn wrapped(text: &str, first: &str, others: &str, width: usize) -> String {
    let mut lines = String::from(first);
    let (mut column, mut is_empty) = (first.chars().count(), true);
    for word in text.split_ascii_whitespace() {
        let length = word.chars().count();
        if !is_empty && column + 1 + length > width {
            lines.push('\n');
            lines.push_str(others);
            (column, is_empty) = (others.chars().count(), true);
        }
        if !is_empty {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        (column, is_empty) = (column + length, false);
    }
    lines.push('\n');
    lines
}
