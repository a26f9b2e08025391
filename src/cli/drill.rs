//! `fragwatch drill`: tests the rescue path on this host, from the kernel's log to its counters.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::command::load_config;
use super::output::{self, FAILURE, SUCCESS};
use crate::daemon::rescue::fast_settings;
use crate::klog::Rules;
use crate::klog::kmsg::{KMSG, Kmsg};
use crate::model::{Monotonic, Outcome};
use crate::rescue::clock::now;
use crate::rescue::drill;
use crate::rescue::entry::{Notice, Report};
use crate::rescue::exchange::clear_wakeup;
use crate::rescue::settings::FastSettings;
use crate::rescue::thread::{FastSide, Setup};
use crate::sys::realtime::SchedPolicy;

const DRILL_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn run(act: bool, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_config(config)?.settings;
    let kmsg = Path::new(KMSG);
    let rules = Rules::compile(&settings.klog.rules).context("klog.rule")?;
    let (log, no_log) = match Kmsg::open(kmsg, Duration::ZERO) {
        Ok(log) => (Some(Arc::new(log)), None),
        Err(error) => (None, Some(error)),
    };
    let mut fast = FastSide::start(Setup {
        settings: FastSettings {
            enabled: true,
            // In a real emergency the daemon acts.
            dry_run: true,
            ..fast_settings(&settings, Arc::new(rules), log)
        },
        proc: PathBuf::from("/proc"),
        watchdog: None,
    })?;
    let mut text = start_report(&fast, no_log.as_ref());
    let began = now();
    let nonce = began.0.max(1);
    fast.exchange.expect_drill(nonce, act);
    drill::write(kmsg, nonce).with_context(|| format!("cannot write to {KMSG}"))?;
    let written = now();
    let outcome = wait(&mut fast, nonce, written);
    fast.stop();
    let took = Some(written.since(began));
    stage(&mut text, true, "record written to the kernel's log", took);
    let success = stages(&mut text, &outcome, began, act);
    output::print(&text)?;
    Ok(if success { SUCCESS } else { FAILURE })
}

fn start_report(fast: &FastSide, no_log: Option<&std::io::Error>) -> String {
    let mut text = String::new();
    let report = &fast.start_report;
    let memory = report.memory.as_ref().err();
    for (name, error) in [
        ("/dev/kmsg is open", no_log.map(ToString::to_string)),
        ("memory is locked", memory.map(ToString::to_string)),
    ] {
        let fine = error.is_none();
        let error = error.map_or_else(String::new, |error| format!(": {error}"));
        stage(&mut text, fine, &format!("{name}{error}"), None);
    }
    let (fine, priority) = match report.priority {
        SchedPolicy::RealTime => (true, "real-time priority"),
        SchedPolicy::Raised => (false, "raised priority (real-time was not permitted)"),
        SchedPolicy::Ordinary => (
            false,
            "ordinary priority (neither real-time nor nice was permitted)",
        ),
    };
    stage(&mut text, fine, priority, None);
    text
}

#[derive(Default)]
struct Progress {
    seen: Option<Monotonic>,
    report: Option<Report>,
}

fn wait(fast: &mut FastSide, nonce: u64, since: Monotonic) -> Progress {
    let mut progress = Progress::default();
    while progress.report.is_none() {
        let left = DRILL_TIMEOUT.saturating_sub(now().since(since));
        if left.is_zero() {
            return progress;
        }
        let events = fast.exchange.slow_side();
        let timeout = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        // The rings are read whatever poll(2) returns.
        let _ = poll(&mut [PollFd::new(events, PollFlags::IN)], Some(&timeout));
        clear_wakeup(events);
        while let Some(notice) = fast.notices.pop() {
            if let Notice::DrillSeen { nonce: seen, at } = notice
                && seen == nonce
            {
                progress.seen = Some(at);
            }
        }
        while let Some(report) = fast.reports.pop() {
            // The warm-up at the start also reports, before any record was seen.
            if report.drill && report.order.number > 0 {
                progress.report = Some(report);
            }
        }
    }
    progress
}

fn stages(text: &mut String, progress: &Progress, began: Monotonic, act: bool) -> bool {
    let after = |at: Monotonic| Some(at.since(began));
    let (seen, at) = (progress.seen.is_some(), progress.seen.and_then(after));
    stage(text, seen, "record read back by the reader", at);
    let Some(report) = &progress.report else {
        stage(text, false, "no order was carried out", None);
        return false;
    };
    let began = after(report.began);
    stage(text, true, "ladder ordered drop_slab, actor began", began);
    let done = match report.outcome {
        Outcome::DryRun => "all but the write done (--act really drops)".to_owned(),
        Outcome::Done => "the kernel's own counter confirms the drop".to_owned(),
        Outcome::Failed if report.error != 0 => {
            std::io::Error::from_raw_os_error(report.error.cast_signed()).to_string()
        }
        Outcome::Failed => "the kernel's own counter did not move".to_owned(),
    };
    let fine = report.outcome != Outcome::Failed;
    stage(text, fine, &done, after(report.ended));
    if act && fine {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    {}", report.after.compared_with(&report.before));
    }
    seen && fine
}

fn stage(text: &mut String, fine: bool, what: &str, after: Option<Duration>) {
    let mark = if fine { "ok  " } else { "FAIL" };
    // Writing to a String cannot fail.
    let _ = match after {
        Some(after) => writeln!(text, "{mark}  {:>9} µs  {what}", after.as_micros()),
        None => writeln!(text, "{mark}  {:>12}  {what}", ""),
    };
}
