//! The slow side of the rescue: starts the fast side, passes on new settings, and reports its
//! actions to the log, the metrics and the recorder. The rescue itself does not depend on it.

mod armed;
mod reporter;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::Instant;

use self::armed::keep_in_memory;
use self::reporter::Reporter;
use super::doctor;
use super::history::HistoryHandle;
use super::incident_monitor::IncidentMonitor;
use super::klog_files::{FileMatch, LogFiles};
use crate::config::Settings;
use crate::model::{RuleAction, Trigger};
use crate::rescue::clock::now;
use crate::rescue::entry::Notice;
use crate::rescue::proof::Files;
use crate::serve::metrics;
use crate::serve::parts::{Part, State};
use crate::serve::shared_status::SharedStatus;

pub(crate) use self::armed::fast_settings;
pub(super) use self::armed::{Armed, start};

const DRILL_INTERVAL: Duration = Duration::from_secs(24 * 3600);
const DRILL_RETRY: Duration = Duration::from_secs(60);
/// Maximum interval at which memory counters, part states and rings are read.
const TICK: Duration = Duration::from_secs(10);
/// An action that takes longer hangs. Dropping a large cache takes seconds.
const ACTION_HANGS: Duration = Duration::from_secs(30);

/// The task of the slow side.
pub(super) struct Rescue {
    /// Those that it has adopted.
    pub(super) settings: watch::Sender<Arc<Settings>>,
    armed: Armed,
    events: Option<UnixStream>,
    reporter: Reporter,
    files: LogFiles,
    monitor: IncidentMonitor,
    memory: Option<Files>,
    /// `None` if the kernel log is not read.
    drill_due: Option<Instant>,
    board: Arc<SharedStatus>,
}

impl Rescue {
    /// Takes over what [`start`] has started. Incident files go to `incidents`.
    pub(super) fn new(
        armed: Armed,
        settings: Arc<Settings>,
        board: Arc<SharedStatus>,
        history: HistoryHandle,
        incidents: PathBuf,
    ) -> Self {
        let settings = watch::Sender::new(settings);
        let findings = doctor::at_incident(settings.subscribe(), Arc::clone(&board));
        let monitor =
            IncidentMonitor::new(Arc::clone(&board), history, incidents, Arc::new(findings));
        let mut rescue = Rescue {
            settings,
            armed,
            events: None,
            reporter: Reporter::new(Arc::clone(&board)),
            files: LogFiles::new(),
            monitor,
            memory: Files::open(Path::new("/proc")).ok(),
            drill_due: None,
            board,
        };
        let settings = Arc::clone(&rescue.settings.borrow());
        rescue.follow_settings(&settings);
        rescue
    }

    /// Runs until `end`; then records what the fast side and the log files have found.
    pub(super) async fn run(
        mut self,
        mut settings: watch::Receiver<Arc<Settings>>,
        mut end: watch::Receiver<bool>,
    ) {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            let due = self.drill_due;
            tokio::select! {
                _ = end.wait_for(|end| *end) => break,
                changed = settings.changed() => match changed {
                    Ok(()) => {
                        let new = Arc::clone(&settings.borrow_and_update());
                        self.reload(new);
                    }
                    Err(_) => break,
                },
                () = readable(self.events.as_ref()) => {}
                found = self.files.next() => self.file_match(&found),
                _ = ticks.tick() => self.tick(),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.begin_drill();
                }
                () = feed_watchdog(), if self.armed.fast.is_none() => {}
            }
            self.take_reports();
        }
        for found in self.files.drain() {
            self.file_match(&found);
        }
        self.take_reports();
        self.monitor.stop();
    }

    fn reload(&mut self, new: Arc<Settings>) {
        let former = Arc::clone(&self.settings.borrow());
        let changed = new.klog != former.klog || new.rescue != former.rescue;
        if changed || self.armed.is_wanting() {
            // Findings under the former settings are reported as such.
            self.take_reports();
            self.armed.apply(&new, Duration::ZERO);
            self.follow_settings(&new);
        }
        self.settings.send_replace(new);
    }

    fn follow_settings(&mut self, settings: &Settings) {
        let armed = self.armed.is_armed();
        self.board.update(|status| {
            status.rescue.armed = armed;
            status.rescue.dry_run = settings.rescue.dry_run;
        });
        let files: &[_] = if armed { &settings.klog.files } else { &[] };
        self.files.follow(files, &self.armed.rules, &self.board);
        if self.events.is_none() {
            self.events = self.armed.events();
        }
        if let Some(fast) = &self.armed.fast {
            let names = self.armed.rules.iter().map(|(_, name, _)| name.to_owned());
            metrics::rescue_begins(&names.collect::<Vec<_>>());
            self.monitor.apply(&settings.rescue, &fast.exchange);
            // Includes the memory of the stall detector.
            keep_in_memory(fast);
        }
        match self.armed.kmsg.is_some() && armed {
            true => self.drill_due = self.drill_due.or_else(|| Some(Instant::now())),
            false => {
                self.drill_due = None;
                self.reporter.forget_drills();
            }
        }
        self.update_states();
    }

    fn tick(&mut self) {
        self.update_states();
        if let Some(memory) = &self.memory {
            let memory = metrics::render_memory(&memory.read(&mut [0; 4096]));
            self.board.post_memory(memory);
        }
    }

    fn update_states(&self) {
        let rescue = self.armed.rescue_state.clone().unwrap_or(State::Up);
        self.board.set_part(Part::Rescue, self.rescue_state(rescue));
        let runs = self.armed.is_armed();
        let kmsg = self.reporter.kmsg_error.as_ref();
        match kmsg.or(self.armed.kmsg_state.as_ref()) {
            Some(state) if runs => self.board.set_part(Part::KernelLog, state.clone()),
            _ => self.board.retain_parts(|part| *part != Part::KernelLog),
        }
        self.files.update_states(&self.board);
        self.monitor.update_states(runs);
    }

    /// `state` is that of its start.
    fn rescue_state(&self, state: State) -> State {
        let (Some(fast), State::Up) = (&self.armed.fast, &state) else {
            return state;
        };
        if !fast.is_alive() {
            let reason = "one of its threads has ended; restart fragwatch";
            return State::Down(reason.to_owned());
        }
        match fast.exchange.acting_for(now()) {
            Some(since) if since > ACTION_HANGS => State::Impaired(format!(
                "its write to /proc/sys/vm has not returned for {} s",
                since.as_secs()
            )),
            _ if self.reporter.limited => {
                let reason =
                    "rescue.max_actions_per_hour is reached; no action until the hour allows one";
                State::Impaired(reason.to_owned())
            }
            _ => state,
        }
    }

    fn file_match(&mut self, found: &FileMatch) {
        self.reporter
            .matched("log file", &found.rule, &found.line, found.times);
        if let Some(recorder) = &self.monitor.recorder {
            recorder.file_line(now(), &found.rule, &found.file, found.line.bytes());
        }
        if found.action == RuleAction::Rescue
            && self.settings.borrow().klog.files_may_rescue
            && let Some(fast) = &self.armed.fast
        {
            fast.exchange.trigger(Trigger::File);
        }
    }

    fn take_reports(&mut self) {
        let Some(fast) = &mut self.armed.fast else {
            return;
        };
        let (limited, kmsg_error) = (self.reporter.limited, self.reporter.kmsg_error.clone());
        let in_use = fast.oldest_in_use();
        while let Some(notice) = fast.notices.pop() {
            let mut rule = "";
            if let Notice::Matched {
                edition,
                rule: id,
                line,
                at,
                ..
            } = &notice
            {
                self.files.kernel_matched(line, *at);
                rule = fast.rule_name(*edition, *id).unwrap_or("unknown");
                self.reporter.matched("kernel log", rule, line, 1);
            }
            if let Some(recorder) = &self.monitor.recorder {
                recorder.notice(&notice, rule);
            }
            self.reporter.notice(&notice);
        }
        fast.forget(in_use);
        while let Some(report) = fast.reports.pop() {
            if let Some(recorder) = &self.monitor.recorder {
                recorder.report(&report);
            }
            self.reporter.report(&report);
        }
        let news_lost = fast.notices.lost().saturating_add(fast.reports.lost());
        metrics::klog_read(fast.exchange.records(), fast.exchange.lost(), news_lost);
        if self.reporter.drill_has_failed() {
            self.drill_due = Some(Instant::now() + DRILL_RETRY);
        }
        if (limited, kmsg_error) != (self.reporter.limited, self.reporter.kmsg_error.clone()) {
            self.update_states();
        }
    }

    fn begin_drill(&mut self) {
        if let Some(fast) = &self.armed.fast {
            self.reporter.begin_drill(fast);
        }
        self.drill_due = Some(Instant::now() + DRILL_INTERVAL);
    }
}

/// Waits until the stream is readable; forever without a stream.
async fn readable(events: Option<&UnixStream>) {
    match events {
        Some(events) if events.readable().await.is_ok() => {
            while events.try_read(&mut [0; 64]).is_ok() {}
        }
        _ => std::future::pending().await,
    }
}

/// Feeds systemd's watchdog while there is no fast side to do it.
async fn feed_watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    loop {
        super::systemd::notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::time::sleep(interval / 3).await;
    }
}
