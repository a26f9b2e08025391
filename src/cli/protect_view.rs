//! What `fragwatch protect` prints, as text and as JSON. Keys are only added.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::output::{SCHEMA, counted};
use super::protect_audit::{Audit, AuditedPlace};
use crate::model::path::shown;
use crate::model::{Bytes, ExtentCount, Opener, Owner, Vm};
use crate::protect::apply::{Applied, Undone};
use crate::protect::facts::Facts;
use crate::protect::journal::Entry;
use crate::protect::plan::Change;
use crate::protect::thin::Provisioning;
use crate::protect::verdict::{Risk, Verdict};
use crate::serve::of_file;
use crate::sys::fsxattr::Hint;
use crate::table::{TextTable, or_dash};

/// How many changes the text names for each file system.
const CHANGES: usize = 40;

/// The images with their verdicts, and what `--apply` would do.
pub(super) fn audit(audit: &Audit, width: Option<u16>) -> String {
    let judged = audit.judged();
    if judged.is_empty() {
        return format!("No disk image found.\n{}", plans(audit, width));
    }
    let mut table = TextTable::new(&[">AT WORST", "RISK", "IMAGE"]).wrapped(width);
    for (facts, verdict) in &judged {
        let image = format!(
            "{}\n{}.\n{}.",
            shown(&facts.sample.path),
            verdict.text(facts),
            details(facts, verdict)
        );
        let at_worst = verdict.risk.map(|_| verdict.at_worst);
        table.row([or_dash(at_worst), or_dash(verdict.risk), image]);
    }
    format!(
        "{}\n{}{}",
        table.render(),
        summary(&judged),
        plans(audit, width)
    )
}

fn summary(judged: &[(Facts<'_>, Verdict)]) -> String {
    let of = |risk| {
        judged
            .iter()
            .filter(|(_, it)| it.risk == Some(risk))
            .count()
    };
    let [safe, bounded, shatters] = Risk::ALL.map(of);
    format!(
        "{}: {shatters} can shatter, {bounded} can gain extents within a bound, {safe} cannot.\n",
        counted(judged.len() as u64, "image")
    )
}

/// Measures of an image, hints, and how its VM uses it.
fn details(facts: &Facts<'_>, verdict: &Verdict) -> String {
    let sample = facts.sample;
    let mut text = format!("{} {}", sample.size, sample.format);
    // Writing to a String cannot fail, here and below.
    if let Some(header) = sample.qcow2 {
        let _ = write!(text, " with clusters of {}", header.cluster);
    }
    let _ = write!(text, ", {}", counted(sample.extents.0, "extent"));
    if verdict.meanwhile.0 > verdict.at_worst.0.max(sample.extents.0) {
        let _ = write!(text, ", up to {} while it fills", verdict.meanwhile);
    }
    if facts.is_xfs() {
        let hint = |hint| or_dash(Some(hint).filter(|hint: &Bytes| hint.0 > 0));
        let _ = write!(
            text,
            "; hints: own {}, copy on write {}, directory {}",
            hint(sample.extent_size_hint),
            hint(sample.cow_hint),
            hint(sample.directory_hint),
        );
    }
    if let Some(vm) = facts.owner.and_then(Owner::vm) {
        let _ = write!(text, "; VM {}, {}", name(vm), modes(facts));
    }
    text
}

fn name(vm: &Vm) -> String {
    match &vm.name {
        Some(name) => shown(Path::new(name)),
        None => format!("pid {}", vm.pid),
    }
}

/// How the processes that have it open use it.
fn modes(facts: &Facts<'_>) -> String {
    let openers = facts.owner.map_or(&[][..], |owner| &owner.openers);
    let any = |is: fn(&Opener) -> bool| openers.iter().any(is);
    let cache = match (any(|it| it.direct), any(|it| it.buffered)) {
        (true, false) => "past the page cache",
        (false, _) => "through the page cache",
        (true, true) => "past the page cache and through it",
    };
    let discards = match facts.discards() {
        Some(true) => "discard unmap",
        Some(false) => "discard ignore",
        None => "discard not known",
    };
    format!("{cache}, {discards}")
}

/// What `--apply` does on each file system, and what that can cost.
pub(super) fn plans(audit: &Audit, width: Option<u16>) -> String {
    let texts: Vec<_> = audit
        .places
        .iter()
        .map(|place| plan(place, width))
        .collect();
    texts.concat()
}

fn plan(place: &AuditedPlace, width: Option<u16>) -> String {
    let (filesystem, plan) = (&place.filesystem, &place.plan);
    let head = format!(
        "\n{} ({}), {} of {} free: ",
        shown(&filesystem.mount),
        filesystem.type_name,
        filesystem.free,
        filesystem.size
    );
    if let Some(obstacle) = &plan.obstacle {
        let force = ["", "; --force overrules that"][usize::from(plan.can_be_forced)];
        return format!("{head}no hint is set: {obstacle}{force}.\n");
    }
    if plan.changes.is_empty() {
        return format!("{head}no hint is missing.\n");
    }
    let mut table = TextTable::new(&["--apply SETS", "FOR", ">FROM", ">TO"]).wrapped(width);
    for change in plan.changes.iter().take(CHANGES) {
        table.row([
            shown(&change.path),
            purpose(change.hint).to_owned(),
            or_dash(Some(change.has).filter(|has| has.0 > 0)),
            change.wanted.to_string(),
        ]);
    }
    let mut text = format!("{head}hints are missing.\n\n{}", table.render());
    if let Some(more) = plan.changes.len().checked_sub(CHANGES).filter(|it| *it > 0) {
        let _ = writeln!(text, "and {more} more; --json has all");
    }
    text + &costs(place)
}

/// What the space of the changes can come to, in sentences.
fn costs(place: &AuditedPlace) -> String {
    let changes = &place.plan.changes;
    let of = |hint| changes.iter().filter(move |change| change.hint == hint);
    let sum = |hint| of(hint).filter_map(|change| change.cost).sum::<Bytes>();
    let mut text = String::new();
    if let Some(longest) = of(Hint::Inherited).map(|change| change.wanted).max() {
        let _ = writeln!(
            text,
            "New files in such a directory are allocated in pieces of up to {longest}: a sparse one takes up \
             more of its size, at most all of it. Files that exist are not changed."
        );
    }
    if of(Hint::Own).next().is_some() {
        let _ = writeln!(
            text,
            "Images without extents can take up their full size early: {} in all.",
            sum(Hint::Own)
        );
    }
    if of(Hint::CopyOnWrite).next().is_some() {
        let _ = writeln!(
            text,
            "Copy on write reserves whole pieces around shared blocks for a time; known to be shared now: {}.",
            sum(Hint::CopyOnWrite)
        );
    }
    if place.provisioning == Provisioning::NotKnown {
        text.push_str(
            "Whether its storage is thin-provisioned is not known; if it is, watch the pool.\n",
        );
    }
    text
}

fn purpose(hint: Hint) -> &'static str {
    match hint {
        Hint::Own => "itself",
        Hint::Inherited => "new files in it",
        Hint::CopyOnWrite => "copy on write",
    }
}

/// What became of the changes.
pub(super) fn applied(audit: &Audit) -> String {
    let applied: Vec<_> = audit
        .places
        .iter()
        .flat_map(|place| &place.applied)
        .collect();
    let mut text = String::from("\n");
    let set = applied.iter().filter(|(_, it)| matches!(it, Applied::Set));
    for (change, done) in &applied {
        let path = shown(&change.path);
        let _ = match done {
            Applied::Set => Ok(()),
            Applied::Already(hint) => writeln!(text, "{path}: has a hint of {hint} by now"),
            Applied::Refused(refusal) => writeln!(text, "{path}: not changed: {refusal}"),
        };
    }
    let set = match set.count() {
        0 => return text + "No hint was set.\n",
        number => counted(number as u64, "hint"),
    };
    text + &format!("{set} set; `fragwatch protect --undo` restores the former ones.\n")
}

/// What became of the journal.
pub(super) fn undone(undone: &[(Entry, Undone)]) -> String {
    let mut text = String::new();
    let in_words = |hint: &Option<Bytes>| match hint {
        Some(hint) => format!("a hint of {hint}"),
        None => "no hint".to_owned(),
    };
    for (entry, done) in undone {
        let (path, purpose) = (shown(&entry.at.path), purpose(entry.hint));
        let done = match done {
            Undone::Restored(hint) => format!("has {} again", in_words(hint)),
            Undone::AsBefore => "was restored before".to_owned(),
            Undone::ChangedMeanwhile(hint) => {
                format!("has {} since, which is left as it is", in_words(hint))
            }
            Undone::HasExtents => {
                "keeps its hint: it has extents by now, so the kernel changes none".to_owned()
            }
            Undone::Gone => "no longer exists".to_owned(),
            Undone::Failed(refusal) => format!("not restored: {refusal}"),
        };
        let _ = writeln!(text, "{path} ({purpose}): {done}");
    }
    if undone.is_empty() {
        text.push_str("There is nothing to undo.\n");
    }
    text
}

/// The JSON of what was undone.
pub(super) fn undone_document(undone: &[(Entry, Undone)]) -> Value {
    let entry = |(entry, done): &(Entry, Undone)| {
        let (result, has, error) = match done {
            Undone::Restored(hint) => ("restored", *hint, None),
            Undone::AsBefore => ("as_before", None, None),
            Undone::ChangedMeanwhile(hint) => ("changed_meanwhile", *hint, None),
            Undone::HasExtents => ("has_extents", None, None),
            Undone::Gone => ("gone", None, None),
            Undone::Failed(refusal) => ("failed", None, Some(refusal.to_string())),
        };
        let keys = json!({
            "hint": entry.hint,
            "result": result,
            "has_bytes": has,
            "set_bytes": entry.set,
            "before_bytes": entry.before,
            "error": error,
        });
        of_file(&entry.at.path, keys)
    };
    json!({ "schema": SCHEMA, "undone": undone.iter().map(entry).collect::<Vec<_>>() })
}

/// The JSON of an audit, and of what was set.
pub(super) fn document(audit: &Audit) -> Value {
    let judged = audit.judged();
    let images = judged.iter().map(|(facts, verdict)| image(facts, verdict));
    let errors = audit.found.errors.iter();
    let errors = errors.map(|fault| of_file(&fault.path, json!({ "error": fault.error })));
    json!({
        "schema": SCHEMA,
        "images": images.collect::<Vec<_>>(),
        "filesystems": audit.places.iter().map(filesystem).collect::<Vec<_>>(),
        "errors": errors.collect::<Vec<_>>(),
    })
}

fn image(facts: &Facts<'_>, verdict: &Verdict) -> Value {
    let (sample, map) = (facts.sample, facts.whole_map());
    let of_xfs = |number: ExtentCount| verdict.risk.map(|_| number);
    let keys = json!({
        "risk": verdict.risk,
        "text": verdict.text(facts),
        "at_worst_extents": of_xfs(verdict.at_worst),
        "meanwhile_extents": of_xfs(verdict.meanwhile),
        "extents": sample.extents,
        "size_bytes": sample.size,
        "allocated_bytes": sample.allocated,
        "hole_bytes": facts.holes(),
        "holes": map.map(|map| map.holes),
        "fragments": map.map(|map| map.fragments),
        "unwritten_bytes": map.map(|map| map.unwritten),
        "shared_bytes": map.map(|map| map.shared),
        "format": sample.format,
        "cluster_bytes": sample.qcow2.map(|header| header.cluster),
        "disk_bytes": sample.qcow2.map(|header| header.disk),
        "extent_size_hint_bytes": sample.extent_size_hint,
        "cow_extent_size_hint_bytes": sample.cow_hint,
        "directory_extent_size_hint_bytes": sample.directory_hint,
        "vm": facts.owner.and_then(Owner::vm),
        "direct": facts.owner.map(|owner| owner.openers.iter().any(|it| it.direct)),
        "discards": facts.discards(),
    });
    of_file(&sample.path, keys)
}

fn filesystem(place: &AuditedPlace) -> Value {
    let changes = place.plan.changes.iter();
    json!({
        "mount": shown(&place.filesystem.mount),
        "type": place.filesystem.type_name,
        "free_bytes": place.filesystem.free,
        "reflink": place.filesystem.features.map(|it| it.reflink),
        "thin_provisioned": match place.provisioning {
            Provisioning::Full => Some(false),
            Provisioning::Thin => Some(true),
            Provisioning::NotKnown => None,
        },
        "obstacle": place.plan.obstacle,
        "can_be_forced": place.plan.can_be_forced,
        "changes": changes.map(|it| change(place, it)).collect::<Vec<_>>(),
    })
}

/// `result` is `null` unless it was to be set.
fn change(place: &AuditedPlace, change: &Change) -> Value {
    let done = place.applied.iter().find(|(it, _)| it == change);
    let (result, error) = match done.map(|(_, done)| done) {
        None => (None, None),
        Some(Applied::Set) => (Some("set"), None),
        Some(Applied::Already(_)) => (Some("already"), None),
        Some(Applied::Refused(refusal)) => (Some("refused"), Some(refusal.to_string())),
    };
    let keys = json!({
        "hint": change.hint,
        "from_bytes": change.has,
        "to_bytes": change.wanted,
        "cost_bytes": change.cost,
        "result": result,
        "error": error,
    });
    of_file(&change.path, keys)
}
