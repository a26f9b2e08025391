//! Defragmentation runs: engines, reasons to stop, outcomes, reports.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::borders::Borders;
use super::history::UnixTime;
use super::image::ImageRef;
use super::reason::{ReasonCode, Refusal};
use super::time::{Briefly, seconds};
use super::units::{Bytes, ExtentCount};
use super::words::words;

words! {
    /// A defragmentation engine.
    pub enum Engine: Display {
        /// xfs_fsr(8), for images that no process has open.
        XfsFsr = "xfs_fsr",
        /// Moves segments of an image while its VM runs.
        Online = "online",
        /// The hypervisor copies an image under its running VM, which then uses the copy.
        BlockCopy = "blockcopy",
    }
}

/// Whether an engine can be used on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineState {
    /// The engine.
    pub engine: Engine,
    /// Why it cannot be used on any image; `None` if it can.
    pub unusable: Option<Unusable>,
}

/// Why an engine cannot be used on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// The kind of reason.
    pub reason: UnusableReason,
    /// A few words.
    pub brief: String,
    /// A sentence that includes the remedy.
    pub text: String,
}

words! {
    /// The kind of reason why an engine cannot be used on this host.
    pub enum UnusableReason {
        /// It is not in `defrag.engines`.
        NotConfigured = "not_configured",
        NoXfsFsr = "no_xfs_fsr",
        NoVirsh = "no_virsh",
        /// The kernel has a defect that endangers images.
        KernelKnownBad = "kernel_known_bad",
        /// The kernel may have such a defect.
        KernelUnknown = "kernel_unknown",
    }
}

words! {
    /// Why a run is stopped early.
    pub enum Stop: Display {
        WindowClosed = "window_closed" => "the maintenance window closed",
        Paused = "paused" => "defragmentation was paused",
        Held = "held" => "maintenance.hold has a result",
        Shutdown = "shutdown" => "fragwatch was ended",
        /// The host needs its memory and its disks:
        Incident = "incident" => "a rescue incident began",
        Opened = "opened" => "somebody wanted to open the image",
        Stuck = "stuck" => "it did nothing for too long",
        Astray = "astray" => "it worked on something else than the image",
        /// `umount --lazy`:
        Gone = "gone" => "the image was removed, or its file system unmounted",
        Suspended = "suspended" => "fragwatch was stopped (SIGTSTP, SIGSTOP)",
    }
}

impl Stop {
    /// Whether the run must end without delay.
    pub fn is_urgent(self) -> bool {
        matches!(
            self,
            Stop::Opened | Stop::Incident | Stop::Astray | Stop::Gone | Stop::Suspended
        )
    }
}

/// A process that has an image open or is opening it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedProcess {
    /// Process ID; 0 if it is in another PID namespace.
    pub pid: i32,
    /// Name; empty if unknown.
    pub name: String,
}

impl fmt::Display for NamedProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name.as_str(), self.pid) {
            ("", 0) => f.write_str("a process that cannot be seen from here"),
            ("", pid) => write!(f, "pid {pid}"),
            (name, pid) => write!(f, "{name} (pid {pid})"),
        }
    }
}

/// Outcome of a run, by our own counts of extents before and after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum RunOutcome {
    /// Fewer extents than before.
    Improved,
    /// Completed, but the extents are no fewer.
    Unchanged {
        /// If the reason is unknown: what the engine printed, which may be nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// A process opened or changed the image during the run.
    Busy {
        /// The process, if known.
        by: Option<NamedProcess>,
    },
    /// Too little free space, in one piece or at all.
    NoSpace,
    /// Stopped early.
    Stopped {
        /// Why.
        why: Stop,
    },
    /// Refused by a guard before it began.
    Refused {
        /// The guard.
        guard: ReasonCode,
        /// In words.
        reason: String,
    },
    /// Dry run: no guard refuses the run.
    WouldRun {
        /// What it would do.
        forecast: RunForecast,
    },
    /// The run failed.
    Failed {
        /// Why, in words.
        reason: String,
    },
    /// The process of the run ended or was abandoned without a report (killed for lack of memory,
    /// for instance), which implies nothing about the image.
    NoReport {
        /// How the process ended.
        reason: String,
    },
}

impl From<Refusal> for RunOutcome {
    fn from(Refusal { code, text, .. }: Refusal) -> RunOutcome {
        let (guard, reason) = (code, text);
        RunOutcome::Refused { guard, reason }
    }
}

impl RunOutcome {
    /// The word for the outcome, as in JSON and for the hooks.
    pub fn as_str(&self) -> &'static str {
        match self {
            RunOutcome::Unchanged { .. } => "unchanged",
            RunOutcome::Refused { .. } => "refused",
            RunOutcome::WouldRun { .. } => "would_run",
            other => other.kind().as_str(),
        }
    }

    /// The outcome as the history and the metrics name it.
    pub fn kind(&self) -> OutcomeKind {
        match self {
            RunOutcome::Improved => OutcomeKind::Improved,
            RunOutcome::Unchanged { message: Some(_) } => OutcomeKind::Unexplained,
            // Dry runs are not recorded.
            RunOutcome::Unchanged { message: None } | RunOutcome::WouldRun { .. } => {
                OutcomeKind::Unchanged
            }
            RunOutcome::Busy { .. } => OutcomeKind::Busy,
            RunOutcome::NoSpace => OutcomeKind::NoSpace,
            RunOutcome::Stopped { .. } => OutcomeKind::Stopped,
            RunOutcome::Refused { guard, .. } if guard.is_no_gain() => OutcomeKind::NoGain,
            RunOutcome::Refused { .. } => OutcomeKind::Refused,
            RunOutcome::Failed { .. } => OutcomeKind::Failed,
            RunOutcome::NoReport { .. } => OutcomeKind::NoReport,
        }
    }

    /// Why another engine may work on the image, if one may: this engine cannot, or it was in use.
    pub fn left_to_another(&self) -> Option<String> {
        match self {
            RunOutcome::Refused { guard, .. } if guard.lies_with_engine() => self.reason(),
            RunOutcome::Busy { .. } => self.reason(),
            _ => None,
        }
    }

    /// The reason in words, if it adds to the name of the outcome.
    pub fn reason(&self) -> Option<String> {
        match self {
            RunOutcome::Improved
            | RunOutcome::Unchanged { message: None }
            | RunOutcome::NoSpace
            | RunOutcome::WouldRun { .. } => None,
            RunOutcome::Unchanged {
                message: Some(message),
            } => Some(unknown_reason(message)),
            RunOutcome::Busy { by: Some(by) } => Some(format!("{by} needed it")),
            RunOutcome::Busy { by: None } => Some("it was changed meanwhile".to_owned()),
            RunOutcome::Stopped { why } => Some(why.to_string()),
            RunOutcome::Refused { reason, .. }
            | RunOutcome::Failed { reason }
            | RunOutcome::NoReport { reason } => Some(reason.clone()),
        }
    }
}

words! {
    /// Kind of a [`RunOutcome`]: the column `outcome` of the history, and the metric label.
    pub enum OutcomeKind {
        Improved = "improved",
        Unchanged = "unchanged",
        /// Unchanged for an unknown reason.
        Unexplained = "unexplained",
        Busy = "busy",
        NoSpace = "no_space",
        Stopped = "stopped",
        Refused = "refused",
        /// Refused by a guard, because there is too little to gain.
        NoGain = "no_gain",
        Failed = "failed",
        /// Its process ended without a report.
        NoReport = "no_report",
        /// The daemon was killed during the run.
        Interrupted = "interrupted",
    }
}

impl OutcomeKind {
    /// What it means for the next run on the image.
    pub fn effect(self) -> Effect {
        match self {
            OutcomeKind::Improved => Effect::Improved,
            OutcomeKind::Stopped | OutcomeKind::Interrupted => Effect::Interrupted,
            OutcomeKind::Busy
            | OutcomeKind::Refused
            | OutcomeKind::NoReport
            | OutcomeKind::Unexplained => Effect::PutOff,
            // The possible gain does not change within minutes, and determining it loads the map.
            OutcomeKind::Unchanged
            | OutcomeKind::NoSpace
            | OutcomeKind::NoGain
            | OutcomeKind::Failed => Effect::InVain,
        }
    }
}

/// What a run means for the next one on the same image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The image has fewer extents.
    Improved,
    /// Stopped before it was done: by the end of the window, a pause, an incident.
    Interrupted,
    /// Refused by a guard, or the image was needed: a state that may soon end.
    PutOff,
    /// No gain.
    InVain,
}

/// What a run would do, from a dry run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunForecast {
    /// With `xfs_fsr`.
    Copy {
        /// Bytes to copy.
        copies: Bytes,
        /// How long the final swap would stall readers.
        stall: Duration,
    },
    /// With `online`.
    Segments {
        /// Extents that could be removed.
        gain: ExtentCount,
        /// Bytes shared with another file, which would stay shared.
        shared: Bytes,
    },
}

/// Text for [`RunOutcome::Unchanged`] with an unknown reason.
pub fn unknown_reason(message: &str) -> String {
    match message {
        "" => "unchanged for an unknown reason: xfs_fsr printed nothing; see journalctl -t fsr"
            .to_owned(),
        message => format!("unchanged for an unknown reason: xfs_fsr printed \"{message}\""),
    }
}

/// What became of the extents of an image in a run, as far as known: joined, or left for a reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Extents merged into others.
    pub joined: ExtentCount,
    /// Left because a hole precedes them.
    pub holes: ExtentCount,
    /// Left because a snapshot or reflink copy shares them.
    pub shared: ExtentCount,
    /// Left because they or their neighbours are unwritten.
    pub unwritten: ExtentCount,
    /// Left because they are as long as is worthwhile or possible.
    pub long: ExtentCount,
    /// Left because the run ended first, or because free space was itself fragmented.
    pub not_reached: ExtentCount,
    /// New since the run began: split off by the guest's writes.
    pub torn: ExtentCount,
}

impl Account {
    /// Account of a run that joined `joined` of `can_join` extents and left `to`.
    pub fn new(
        before: &Borders,
        can_join: ExtentCount,
        joined: ExtentCount,
        to: ExtentCount,
    ) -> Account {
        let all = ExtentCount(before.total());
        let left = all.saturating_sub(joined);
        // Moved pieces may have become adjacent, and so one extent.
        let more = left.saturating_sub(to);
        // Extents that could be joined, but where it was not worthwhile.
        let passed = ExtentCount(before.joins).saturating_sub(can_join);
        let long = ExtentCount(before.long).saturating_add(passed);
        Account {
            joined: joined.saturating_add(more).min(all),
            holes: ExtentCount(before.holes),
            shared: ExtentCount(before.shared),
            unwritten: ExtentCount(before.unwritten),
            long: long.saturating_sub(more),
            not_reached: can_join.saturating_sub(joined),
            torn: to.saturating_sub(left),
        }
    }

    /// Account of a run of xfs_fsr that left `to`: nothing was written, only holes prevent joins.
    pub fn of_whole_copy(before: &Borders, to: ExtentCount) -> Account {
        let holes = ExtentCount(before.holes);
        Account {
            joined: ExtentCount(before.total()).saturating_sub(to),
            holes,
            long: to.saturating_sub(holes),
            ..Account::default()
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = [
            (self.holes, "behind holes"),
            (self.shared, "shared"),
            (self.unwritten, "unwritten"),
            (self.long, "long enough"),
            (self.not_reached, "not reached"),
        ];
        write!(f, "{} joined", self.joined)?;
        let left = left.into_iter().filter(|(number, _)| number.0 > 0);
        for (place, (number, why)) in left.enumerate() {
            let left = if place == 0 { "; left: " } else { ", " };
            write!(f, "{left}{number} {why}")?;
        }
        match self.torn {
            ExtentCount(0) => Ok(()),
            torn => write!(f, "; {torn} torn anew by the guest"),
        }
    }
}

/// A finished run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunReport {
    /// The engine.
    pub engine: Engine,
    /// Its outcome.
    #[serde(flatten)]
    pub outcome: RunOutcome,
    /// Extents before; `None` if the run did not get that far.
    pub from: Option<ExtentCount>,
    /// Extents after.
    pub to: Option<ExtentCount>,
    /// Bytes read from disk.
    pub read: Bytes,
    /// Bytes written to disk.
    pub written: Bytes,
    /// Duration.
    pub took: Duration,
    /// Part of the duration in which it was suspended.
    pub held: Duration,
    /// What became of its extents; `None` if the run did not get that far.
    pub account: Option<Account>,
    /// What its guest may have waited for; `None` for `xfs_fsr`, whose image nobody has open, and if
    /// the run did not get that far.
    pub stalls: Option<Stalls>,
    /// How long writes of its guest took (`blockcopy`); `None` if the hypervisor does not tell, or the
    /// run did not get that far.
    pub guest_writes: Option<GuestWrites>,
    /// Details of a run of `online`.
    pub segments: Option<SegmentWork>,
}

/// What may stall the guest of a run: calls that lock its image (`online`: a clone and an unshare per
/// segment), pauses of its VM (`blockcopy`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stalls {
    /// How many.
    pub calls: u64,
    /// Duration of the longest.
    #[serde(rename = "worst_call_seconds", with = "seconds")]
    pub longest: Duration,
    /// Duration of all together.
    #[serde(rename = "calls_seconds", with = "seconds")]
    pub total: Duration,
}

impl Stalls {
    /// Adds one.
    pub fn add(&mut self, took: Duration) {
        self.calls += 1;
        self.longest = self.longest.max(took);
        self.total = self.total.saturating_add(took);
    }
}

impl fmt::Display for Stalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (calls, longest) = (ExtentCount(self.calls), Briefly(self.longest));
        let plural = if self.calls == 1 { "" } else { "s" };
        let total = Briefly(self.total);
        write!(
            f,
            "{calls} call{plural}, longest stall {longest}, {total} in all"
        )
    }
}

/// How long a write of the guest took on average, as the hypervisor accounts for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestWrites {
    /// From the start of its VM to the run.
    pub before: Duration,
    /// During the run.
    pub meanwhile: Duration,
}

/// What the engine `online` did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentWork {
    /// Segments moved.
    pub segments: u64,
    /// Time spent on segments.
    pub busy: Duration,
    /// Median duration of the calls that locked the image.
    pub median_call: Duration,
    /// Bytes shared with another file, which stayed shared.
    pub shared: Bytes,
}

/// A run as the history records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRecord {
    /// The image.
    pub image: ImageRef,
    /// When it began.
    pub at: UnixTime,
    /// The engine.
    pub engine: Engine,
    /// Extents before.
    pub from: ExtentCount,
    /// Extents after.
    pub to: ExtentCount,
    /// Bytes copied.
    pub bytes: Bytes,
    /// Duration.
    pub took: Duration,
    /// What its guest may have waited for; `None` if there was no such call, and if
    /// that is not known: before 0.2.0, and of runs that were cut off.
    pub stalls: Option<Stalls>,
    /// Outcome.
    pub outcome: OutcomeKind,
    /// Reason, for people.
    pub reason: String,
}

impl RunRecord {
    /// When it ended.
    pub fn ended(&self) -> UnixTime {
        UnixTime(self.at.0.saturating_add_unsigned(self.took.as_secs()))
    }
}

impl RunReport {
    /// The reason in words; for a run that changed nothing, what keeps the extents apart.
    pub fn reason(&self) -> Option<String> {
        match (&self.outcome, &self.account) {
            (RunOutcome::Unchanged { message: None }, Some(account)) => Some(account.to_string()),
            (outcome, _) => outcome.reason(),
        }
    }

    /// A report of which only the outcome is known.
    pub fn of(engine: Engine, outcome: RunOutcome) -> RunReport {
        RunReport {
            engine,
            outcome,
            from: None,
            to: None,
            read: Bytes(0),
            written: Bytes(0),
            took: Duration::ZERO,
            held: Duration::ZERO,
            account: None,
            stalls: None,
            guest_writes: None,
            segments: None,
        }
    }
}

/// How long the final swap of xfs_fsr blocks access to the file. With reverse mapping, extents are
/// moved one by one under the file's locks: 22,000 a second, measured with 131,000. Without, the
/// roots of the extent maps are swapped.
pub fn swap_stall(extents: ExtentCount, rmapbt: bool) -> Duration {
    let per_second = if rmapbt { 22_000 } else { 450_000 };
    Duration::from_millis(extents.0.saturating_mul(1000) / per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stall_is_as_measured() {
        let stall = |rmapbt| swap_stall(ExtentCount(131_000), rmapbt).as_secs_f64();
        assert!((5.0..7.0).contains(&stall(true)));
        assert!((0.2..0.4).contains(&stall(false)));
        // No number overflows it.
        assert!(swap_stall(ExtentCount(u64::MAX), true) > Duration::from_secs(1_000_000));
    }

    #[test]
    fn each_extent_has_its_reason() {
        let before = Borders {
            joins: 100,
            holes: 20,
            shared: 7,
            unwritten: 3,
            long: 1,
        };
        let count = ExtentCount;
        let account = Account::new(&before, count(90), count(60), count(75));
        let words = "60 joined; left: 20 behind holes, 7 shared, 3 unwritten, 11 long enough, 30 not \
                     reached; 4 torn anew by the guest";
        assert_eq!(account.to_string(), words);
        let left = [
            account.holes,
            account.shared,
            account.unwritten,
            account.long,
        ];
        let left: u64 = left.iter().map(|it| it.0).sum();
        assert_eq!(left + account.not_reached.0 + account.torn.0, 75);
        let account = Account::new(&before, count(90), count(90), count(31));
        let words = "100 joined; left: 20 behind holes, 7 shared, 3 unwritten, 1 long enough";
        assert_eq!(account.to_string(), words);
        let whole = Account::of_whole_copy(&before, count(21));
        let words = "110 joined; left: 20 behind holes, 1 long enough";
        assert_eq!(whole.to_string(), words);
    }

    #[test]
    fn stalls_add_up() {
        let mut stalls = Stalls::default();
        stalls.add(Duration::from_millis(180));
        assert_eq!(
            stalls.to_string(),
            "1 call, longest stall 180.0 ms, 180.0 ms in all"
        );
        (0..1999).for_each(|_| stalls.add(Duration::from_millis(2)));
        assert_eq!(
            stalls.to_string(),
            "2,000 calls, longest stall 180.0 ms, 4.2 s in all"
        );
    }

    #[test]
    fn a_report_is_flat_in_json() {
        let report = RunReport {
            engine: Engine::XfsFsr,
            outcome: RunOutcome::Stopped {
                why: Stop::WindowClosed,
            },
            from: Some(ExtentCount(7)),
            to: Some(ExtentCount(7)),
            read: Bytes(1),
            written: Bytes(2),
            took: Duration::from_secs(1),
            held: Duration::ZERO,
            account: Some(Account::default()),
            stalls: Some(Stalls::default()),
            guest_writes: None,
            segments: None,
        };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["outcome"], "stopped");
        assert_eq!(json["why"], "window_closed");
        assert_eq!(serde_json::from_value::<RunReport>(json).unwrap(), report);
    }
}
