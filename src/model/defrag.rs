//! Defragmenting: by what, why it ends, what came of it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::borders::Borders;
use super::history::UnixTime;
use super::image::ImageRef;
use super::reason::ReasonCode;
use super::units::{Bytes, ExtentCount};
use super::words::words;

words! {
    /// What takes the fragmentation away.
    pub enum Engine {
        /// xfs_fsr(8): for an image that nobody has open.
        XfsFsr = "xfs_fsr",
        /// By segments, under a running VM.
        Online = "online",
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether an engine can be used on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineState {
    /// The engine.
    pub engine: Engine,
    /// Why it cannot, on no image at all; `None` if it can.
    pub unusable: Option<Unusable>,
}

/// Why an engine cannot be used on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// Of what kind that is.
    pub reason: UnusableReason,
    /// In a few words.
    pub brief: String,
    /// In a sentence, with what to do.
    pub text: String,
}

words! {
    /// Of what kind the reason is for which an engine cannot be used on this host.
    pub enum UnusableReason {
        /// It is not in `defrag.engines`.
        NotConfigured = "not_configured",
        /// xfs_fsr is not installed.
        NoXfsFsr = "no_xfs_fsr",
        /// The kernel has a defect that endangers images.
        KernelKnownBad = "kernel_known_bad",
        /// The kernel may have one.
        KernelUnknown = "kernel_unknown",
    }
}

words! {
    /// Why a run is ended before its time.
    pub enum Stop {
        /// The maintenance window closes.
        WindowClosed = "window_closed",
        /// The operator has paused defragmentation.
        Paused = "paused",
        /// fragwatch itself is ended.
        Shutdown = "shutdown",
        /// The rescue is at work: the host needs its memory and its disks.
        Incident = "incident",
        /// Somebody wants to open the image and waits for us.
        Opened = "opened",
        /// It has done nothing for too long.
        Stuck = "stuck",
        /// It works on something else than the image.
        Astray = "astray",
        /// The image was removed, or its file system unmounted (`umount --lazy`).
        Gone = "gone",
        /// fragwatch itself was stopped (SIGTSTP, SIGSTOP).
        Suspended = "suspended",
    }
}

impl Stop {
    /// Whether somebody is waiting for the end of the run.
    pub fn is_urgent(self) -> bool {
        matches!(
            self,
            Stop::Opened | Stop::Incident | Stop::Astray | Stop::Gone | Stop::Suspended
        )
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Stop::WindowClosed => "the maintenance window closed",
            Stop::Paused => "defragmentation was paused",
            Stop::Shutdown => "fragwatch was ended",
            Stop::Incident => "a rescue incident began",
            Stop::Opened => "somebody wanted to open the image",
            Stop::Stuck => "it did nothing for too long",
            Stop::Astray => "it worked on something else than the image",
            Stop::Gone => "the image was removed, or its file system unmounted",
            Stop::Suspended => "fragwatch was stopped (SIGTSTP, SIGSTOP)",
        })
    }
}

/// A process that has or opens an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedProcess {
    /// Its number; 0 if it is in another namespace.
    pub pid: i32,
    /// Its name; empty if unknown.
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

/// What came of a run, by our own counts of extents before and after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum RunOutcome {
    /// Fewer extents than before.
    Improved,
    /// It came to its end, and there are no fewer.
    Unchanged {
        /// Where the reason is unknown: what the engine printed, which may be nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// Somebody wanted the image meanwhile.
    Busy {
        /// Who, if that is known.
        by: Option<NamedProcess>,
    },
    /// There was not enough free space in one piece, or at all.
    NoSpace,
    /// Ended before its time.
    Stopped {
        /// Why.
        why: Stop,
    },
    /// A guard did not let it begin.
    Refused {
        /// Which.
        guard: ReasonCode,
        /// In words.
        reason: String,
    },
    /// A dry run: no guard is against it.
    WouldRun {
        /// What it would do.
        forecast: RunForecast,
    },
    /// It went wrong.
    Failed {
        /// How, in words.
        reason: String,
    },
    /// The process that carried it out ended, or had to be left behind, without a report: killed for
    /// want of memory, for instance. Nothing is known against the image.
    NoReport {
        /// How the process ended.
        reason: String,
    },
}

impl RunOutcome {
    /// The value of the label `outcome` of the metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            RunOutcome::Improved => "improved",
            RunOutcome::Unchanged { .. } => "unchanged",
            RunOutcome::Busy { .. } => "busy",
            RunOutcome::NoSpace => "no_space",
            RunOutcome::Stopped { .. } => "stopped",
            RunOutcome::Refused { .. } => "refused",
            RunOutcome::WouldRun { .. } => "would_run",
            RunOutcome::Failed { .. } => "failed",
            RunOutcome::NoReport { .. } => "no_report",
        }
    }

    /// The outcome as the history and the metrics name it.
    pub fn kind(&self) -> OutcomeKind {
        match self {
            RunOutcome::Improved => OutcomeKind::Improved,
            RunOutcome::Unchanged { message: Some(_) } => OutcomeKind::Unexplained,
            // A dry run is not recorded.
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

    /// Why another engine may work on the image, if one may: the reason lies with this engine, or
    /// somebody opened or changed the image.
    pub fn left_to_another(&self) -> Option<String> {
        match self {
            RunOutcome::Refused { guard, .. } if guard.lies_with_engine() => self.reason(),
            RunOutcome::Busy { .. } => self.reason(),
            _ => None,
        }
    }

    /// Why it came out so, in words, where there is more to it than its name.
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
    /// What came of a run: the column `outcome` of the history, and the label of the metrics.
    pub enum OutcomeKind {
        /// Fewer extents than before.
        Improved = "improved",
        /// It came to its end, and there are no fewer.
        Unchanged = "unchanged",
        /// The same, for a reason that is not known.
        Unexplained = "unexplained",
        /// Somebody needed the image.
        Busy = "busy",
        /// There was not enough free space.
        NoSpace = "no_space",
        /// Ended before its time.
        Stopped = "stopped",
        /// A guard did not let it begin.
        Refused = "refused",
        /// A guard did not let it begin: there is too little to gain.
        NoGain = "no_gain",
        /// It went wrong.
        Failed = "failed",
        /// Its process ended without a report.
        NoReport = "no_report",
        /// The daemon was killed while it worked.
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
            // What there is to gain does not change in minutes, and finding it out loads the map.
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
    /// It has fewer extents.
    Improved,
    /// It was stopped before it could do what it could: by the window's end, a pause, an incident.
    Interrupted,
    /// The guards did not let it begin, or somebody wanted the image: that may soon be over.
    PutOff,
    /// It brought nothing.
    InVain,
}

/// What a run would do, by a dry run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunForecast {
    /// By `xfs_fsr`.
    Copy {
        /// So much would be copied.
        copies: Bytes,
        /// For so long the final swap would stall readers.
        stall: Duration,
    },
    /// By `online`.
    Segments {
        /// Extents that could go.
        gain: ExtentCount,
        /// What belongs to another file too, and would stay so.
        shared: Bytes,
    },
}

/// The reason of a run that changed nothing, if that is not known; see [`RunOutcome::Unchanged`].
pub fn unknown_reason(message: &str) -> String {
    match message {
        "" => "unchanged for an unknown reason: xfs_fsr printed nothing; see journalctl -t fsr"
            .to_owned(),
        message => format!("unchanged for an unknown reason: xfs_fsr printed \"{message}\""),
    }
}

/// What became of the extents of an image in a run, as far as that is known: what is left of it is
/// what was not joined, for these reasons.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Extents that became part of others.
    pub joined: ExtentCount,
    /// Left, because a hole is before them.
    pub holes: ExtentCount,
    /// Left, because a snapshot or reflink copy has them as well.
    pub shared: ExtentCount,
    /// Left, because they, or their neighbours, were not written yet.
    pub unwritten: ExtentCount,
    /// Left, because they are as long as is worth it, or as can be.
    pub long: ExtentCount,
    /// Left, because the run ended before, or free space was in pieces itself.
    pub not_reached: ExtentCount,
    /// Came since the run began: the guest's writes tore others.
    pub torn: ExtentCount,
}

impl Account {
    /// Of a run on extents between these borders, of which so many were joined and `to` are left.
    pub fn new(
        before: &Borders,
        can_join: ExtentCount,
        joined: ExtentCount,
        to: ExtentCount,
    ) -> Account {
        let all = ExtentCount(before.total());
        let left = all.saturating_sub(joined);
        // Pieces that were moved may have come to lie beside each other, and be one.
        let more = left.saturating_sub(to);
        // What is between extents that join, but in places where it was not worth it.
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

    /// Of a run of xfs_fsr, after which `to` are left: nobody wrote meanwhile, and it joins all that
    /// no hole keeps apart.
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

/// A run that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunReport {
    /// What it was done by.
    pub engine: Engine,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: RunOutcome,
    /// Extents before; `None` if it did not come so far.
    pub from: Option<ExtentCount>,
    /// Extents after.
    pub to: Option<ExtentCount>,
    /// Read from disk.
    pub read: Bytes,
    /// Written to disk.
    pub written: Bytes,
    /// From its begin to its end.
    pub took: Duration,
    /// How long of that it was made to stand still.
    pub held: Duration,
    /// What became of its extents; `None` if it did not come so far.
    pub account: Option<Account>,
    /// How `online` did it.
    pub segments: Option<SegmentWork>,
}

/// What the engine `online` did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentWork {
    /// Segments that were moved.
    pub segments: u64,
    /// Time in which a segment was at work.
    pub busy: Duration,
    /// The longest call that locked the image.
    pub worst_call: Duration,
    /// Half of these calls took no longer.
    pub median_call: Duration,
    /// What belongs to another file too, and stayed so.
    pub shared: Bytes,
}

/// A run as the history records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRecord {
    /// Of which image.
    pub image: ImageRef,
    /// When it began.
    pub at: UnixTime,
    /// What did it.
    pub engine: Engine,
    /// Extents before.
    pub from: ExtentCount,
    /// Extents after.
    pub to: ExtentCount,
    /// What was copied.
    pub bytes: Bytes,
    /// How long it took.
    pub took: Duration,
    /// What came of it.
    pub outcome: OutcomeKind,
    /// Why, for a person.
    pub reason: String,
}

impl RunRecord {
    /// When it ended.
    pub fn ended(&self) -> UnixTime {
        let seconds = i64::try_from(self.took.as_secs()).unwrap_or(i64::MAX);
        UnixTime(self.at.0.saturating_add(seconds))
    }
}

impl RunReport {
    /// Why it came out so, in words: for a run that changed nothing, what keeps the extents apart.
    pub fn reason(&self) -> Option<String> {
        match (&self.outcome, &self.account) {
            (RunOutcome::Unchanged { message: None }, Some(account)) => Some(account.to_string()),
            (outcome, _) => outcome.reason(),
        }
    }

    /// A run of which nothing is known but what came of it.
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
            segments: None,
        }
    }
}

/// How long the final swap of xfs_fsr keeps everybody from the file. With reverse mapping, one
/// extent after the other is moved under the file's locks: 22,000 a second, measured with 131,000;
/// without, the roots of the maps change places.
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
            segments: None,
        };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["outcome"], "stopped");
        assert_eq!(json["why"], "window_closed");
        assert_eq!(serde_json::from_value::<RunReport>(json).unwrap(), report);
    }
}
