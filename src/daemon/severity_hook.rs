//! Reports a change of severity: a line in the log, and the operator's command (`thresholds.hook`).

use std::time::Duration;

use serde::Serialize;
use tracing::{info, warn};

use super::registry::{SeverityChange, Subject};
use crate::hook::{self, Call, Hook, HookOutcome};
use crate::model::path::{hex_unless_exact, shown};
use crate::model::{Bytes, ExtentCount, Severity};

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

    /// Logs the change and queues a run of the command.
    pub(super) fn report(&self, change: &SeverityChange) {
        log(change);
        let Some(hook) = &self.hook else { return };
        let name = name(change);
        let json = match serde_json::to_vec(&document(change)) {
            Ok(json) => json,
            Err(error) => return warn!("thresholds.hook ({name}): no JSON: {error}"),
        };
        let variables = variables(change);
        if !hook.call(name.clone(), Call { variables, json }) {
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
    let hook = Hook::start(
        "hook-severity",
        command.to_vec(),
        hook::TIMEOUT,
        QUEUE,
        on_end,
    );
    hook.inspect_err(|reason| warn!("thresholds.hook will not be run: {reason}"))
        .ok()
}

fn log(change: &SeverityChange) {
    let SeverityChange { to, reason, .. } = change;
    let what = match &change.subject {
        Subject::Image {
            path, vm, extents, ..
        } => {
            let path = shown(path);
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
        Subject::Image { path, .. } => format!("{} from {from} to {to}", shown(path)),
        Subject::Host { .. } => format!("extent maps from {from} to {to}"),
    }
}

fn variables(change: &SeverityChange) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("FRAGWATCH_EVENT", "severity".to_owned()),
        ("FRAGWATCH_SEVERITY", change.to.to_string()),
        ("FRAGWATCH_SEVERITY_BEFORE", change.from.to_string()),
        ("FRAGWATCH_REASON", change.reason.to_string()),
    ];
    match &change.subject {
        Subject::Image {
            path, vm, extents, ..
        } => {
            variables.push(("FRAGWATCH_IMAGE", shown(path)));
            variables.push(("FRAGWATCH_VM", vm.clone().unwrap_or_default()));
            variables.push(("FRAGWATCH_EXTENTS", extents.0.to_string()));
        }
        Subject::Host { memory } => {
            variables.push(("FRAGWATCH_EXTENT_MAP_MEMORY_BYTES", memory.0.to_string()));
        }
    }
    variables
}

/// The JSON document on the command's standard input. Keys are only ever added.
#[derive(Debug, Default, Serialize)]
struct Document {
    schema: u32,
    event: &'static str,
    severity: Severity,
    severity_before: Severity,
    reason: String,
    /// `None` for the host.
    image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_hex: Option<String>,
    vm: Option<String>,
    extents: Option<ExtentCount>,
    /// `None` while unknown.
    growth_per_day: Option<f64>,
    /// `None` while unknown or far.
    seconds_to_critical: Option<u64>,
    /// In words: `in 3 days`, `unknown: too few samples`.
    forecast: Option<String>,
    /// `None` for an image.
    extent_map_memory_bytes: Option<Bytes>,
}

fn document(change: &SeverityChange) -> Document {
    let document = Document {
        schema: 1,
        event: "severity",
        severity: change.to,
        severity_before: change.from,
        reason: change.reason.to_string(),
        ..Document::default()
    };
    match &change.subject {
        Subject::Image {
            path,
            vm,
            extents,
            growth,
            forecast,
            ..
        } => Document {
            image: Some(shown(path)),
            image_hex: hex_unless_exact(path),
            vm: vm.clone(),
            extents: Some(*extents),
            growth_per_day: growth.rate().map(|rate| rate.0),
            seconds_to_critical: forecast.time_left().map(|left| left.as_secs()),
            forecast: Some(forecast.to_string()),
            ..document
        },
        Subject::Host { memory } => Document {
            extent_map_memory_bytes: Some(*memory),
            ..document
        },
    }
}
