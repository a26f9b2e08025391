//! Reports a change of severity: a line in the log, and the operator's command (`thresholds.hook`).

use std::time::Duration;

use serde_json::json;
use tracing::{info, warn};

use super::registry::{SeverityChange, Subject};
use crate::hook::{self, Call, Hook, HookOutcome};
use crate::model::Severity;
use crate::model::path::{hex_unless_exact, shown};

/// Maximum queued runs: a threshold that is too low makes every image change at once.
const QUEUE: usize = 64;

/// The command of `thresholds.hook`, if any.
#[derive(Debug, Default)]
pub(super) struct SeverityHook {
    command: Vec<String>,
    hook: Option<Hook<String>>,
}

impl SeverityHook {
    /// Uses this command from now on. Runs already queued are still done.
    pub(super) fn configure(&mut self, command: &[String]) {
        if self.command == command {
            return;
        }
        self.command = command.to_vec();
        self.hook = (!command.is_empty()).then(|| start(command)).flatten();
    }

    pub(super) fn report(&self, change: &SeverityChange) {
        log(change);
        let Some(hook) = &self.hook else { return };
        let name = name(change);
        if !hook.push((name.clone(), call(change))) {
            let dropped = hook.dropped();
            warn!(
                "thresholds.hook is not run for {name}: {QUEUE} runs wait already ({dropped} left out so far); make it faster"
            );
        }
    }
}

fn start(command: &[String]) -> Option<Hook<String>> {
    let on_end = |name: String, outcome: HookOutcome, _: Duration| {
        if outcome == HookOutcome::Exited(0) {
            info!("thresholds.hook ({name}) {outcome}");
        } else {
            warn!("thresholds.hook ({name}) {outcome}");
        }
    };
    let command = command.to_vec();
    let hook = hook::start("hook-severity", command, hook::TIMEOUT, QUEUE, on_end);
    hook.inspect_err(|reason| warn!("thresholds.hook will not be run: {reason}"))
        .ok()
}

fn log(change: &SeverityChange) {
    let SeverityChange { to, reason, .. } = change;
    let what = match &change.subject {
        Subject::Image {
            image, vm, extents, ..
        } => {
            let path = shown(&image.path);
            let vm = vm.as_ref();
            let vm = vm.map(|name| format!(" (VM {name})")).unwrap_or_default();
            match to {
                Severity::Ok => format!("image {path}{vm}: ok again with {extents} extents"),
                _ => format!("image {path}{vm}: {to} with {extents} extents"),
            }
        }
        Subject::Host { memory } => match to {
            Severity::Ok => format!("extent maps: ok again, they take {memory}"),
            _ => format!("extent maps: {to}, they pin kernel memory while VMs have images open"),
        },
    };
    match to {
        Severity::Ok => info!("{what}; {reason}"),
        _ => warn!("{what}; {reason}"),
    }
}

fn name(change: &SeverityChange) -> String {
    let SeverityChange { from, to, .. } = change;
    match &change.subject {
        Subject::Image { image, .. } => format!("{} from {from} to {to}", shown(&image.path)),
        Subject::Host { .. } => format!("extent maps from {from} to {to}"),
    }
}

/// The input of the command. Keys of the JSON document are only ever added.
fn call(change: &SeverityChange) -> Call {
    let (from, to, reason) = (change.from, change.to, change.reason.to_string());
    let mut variables = vec![
        ("FRAGWATCH_EVENT", "severity".to_owned()),
        ("FRAGWATCH_SEVERITY", to.to_string()),
        ("FRAGWATCH_SEVERITY_BEFORE", from.to_string()),
        ("FRAGWATCH_REASON", reason.clone()),
    ];
    let mut json = json!({
        "schema": 1,
        "event": "severity",
        "severity": to,
        "severity_before": from,
        "reason": reason,
        // Null for the host.
        "image": null,
        "vm": null,
        "extents": null,
        // Null while unknown, in extents.
        "growth_per_day": null,
        // Null while unknown or far.
        "seconds_to_critical": null,
        // In words: `in 3 days`, `unknown: too few samples`.
        "forecast": null,
        // Null for an image.
        "extent_map_memory_bytes": null,
    });
    match &change.subject {
        Subject::Image {
            image,
            vm,
            extents,
            growth,
            forecast,
        } => {
            let path = shown(&image.path);
            json["image"] = json!(path);
            if let Some(hex) = hex_unless_exact(&image.path) {
                json["image_hex"] = json!(hex);
            }
            json["vm"] = json!(vm);
            json["extents"] = json!(extents);
            json["growth_per_day"] = json!(growth.rate().map(|rate| rate.0));
            json["seconds_to_critical"] = json!(forecast.time_left().map(|left| left.as_secs()));
            json["forecast"] = json!(forecast.to_string());
            variables.push(("FRAGWATCH_IMAGE", path));
            variables.push(("FRAGWATCH_VM", vm.clone().unwrap_or_default()));
            variables.push(("FRAGWATCH_EXTENTS", extents.0.to_string()));
        }
        Subject::Host { memory } => {
            json["extent_map_memory_bytes"] = json!(memory);
            variables.push(("FRAGWATCH_EXTENT_MAP_MEMORY_BYTES", memory.0.to_string()));
        }
    }
    Call {
        variables,
        json: json.to_string().into_bytes(),
    }
}
