//! Defragmenting: by what, why it ends, what came of it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::borders::Borders;
use super::units::{Bytes, ExtentCount};

/// What takes the fragmentation away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// xfs_fsr(8): for an image that nobody has open.
    XfsFsr,
    /// By segments, under a running VM.
    Online,
}

impl Engine {
    /// All of them.
    pub const ALL: [Engine; 2] = [Engine::XfsFsr, Engine::Online];

    /// The name in configuration, metrics and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Engine::XfsFsr => "xfs_fsr",
            Engine::Online => "online",
        }
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
    /// Why it cannot, on no image at all; nothing if it can.
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

/// Of what kind the reason is for which an engine cannot be used on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnusableReason {
    /// It is not in `defrag.engines`.
    NotConfigured,
    /// xfs_fsr is not installed.
    NoXfsFsr,
    /// The kernel has a defect that endangers images.
    KernelKnownBad,
    /// The kernel may have one.
    KernelUnknown,
}

impl UnusableReason {
    /// One word for programs, which stays as it is.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            UnusableReason::NotConfigured => "not_configured",
            UnusableReason::NoXfsFsr => "no_xfs_fsr",
            UnusableReason::KernelKnownBad => "kernel_known_bad",
            UnusableReason::KernelUnknown => "kernel_unknown",
        }
    }
}

/// Why a run is ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The maintenance window closes.
    WindowClosed,
    /// The operator has said `fragwatch pause`.
    Paused,
    /// fragwatch itself is ended.
    Shutdown,
    /// The rescue is at work: the host needs its memory and its disks.
    Incident,
    /// Somebody wants to open the image and waits for us.
    Opened,
    /// It has done nothing for too long.
    Stuck,
    /// It works on something else than the image.
    Astray,
    /// The image was removed, or its file system unmounted (`umount --lazy`).
    Gone,
    /// fragwatch itself was stopped (SIGTSTP, SIGSTOP).
    Suspended,
}

impl Stop {
    /// All of them.
    pub const ALL: [Stop; 9] = [
        Stop::WindowClosed,
        Stop::Paused,
        Stop::Shutdown,
        Stop::Incident,
        Stop::Opened,
        Stop::Stuck,
        Stop::Astray,
        Stop::Gone,
        Stop::Suspended,
    ];

    /// The name in JSON, and for the operator's commands.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Stop::WindowClosed => "window_closed",
            Stop::Paused => "paused",
            Stop::Shutdown => "shutdown",
            Stop::Incident => "incident",
            Stop::Opened => "opened",
            Stop::Stuck => "stuck",
            Stop::Astray => "astray",
            Stop::Suspended => "suspended",
            Stop::Gone => "gone",
        }
    }

    /// Whether somebody is waiting for the end of the run.
    #[must_use]
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
        /// Which: `in_use`, `shared` and so on.
        guard: String,
        /// In words.
        reason: String,
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
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            RunOutcome::Improved => "improved",
            RunOutcome::Unchanged { .. } => "unchanged",
            RunOutcome::Busy { .. } => "busy",
            RunOutcome::NoSpace => "no_space",
            RunOutcome::Stopped { .. } => "stopped",
            RunOutcome::Refused { .. } => "refused",
            RunOutcome::Failed { .. } => "failed",
            RunOutcome::NoReport { .. } => "no_report",
        }
    }

    /// The outcome as the history and the metrics name it. A refusal for want of anything to gain has
    /// a name of its own, for the image is not to be tried again soon; so has a run that changed nothing
    /// for a reason that is not known, for it is.
    #[must_use]
    pub fn recorded_as(&self) -> &'static str {
        match self {
            RunOutcome::Refused { guard, .. } if NO_GAIN.contains(&guard.as_str()) => "no_gain",
            RunOutcome::Unchanged { message: Some(_) } => "unexplained",
            outcome => outcome.as_str(),
        }
    }

    /// Why it came out so, in words, where there is more to it than its name.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match self {
            RunOutcome::Improved
            | RunOutcome::Unchanged { message: None }
            | RunOutcome::NoSpace => None,
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

/// The guards that refuse an image at which too little can be gained.
const NO_GAIN: [&str; 2] = ["near_ideal", "little_gain"];

/// The reason of a run that changed nothing, if that is not known; see [`RunOutcome::Unchanged`].
#[must_use]
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
    #[must_use]
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
    #[must_use]
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
    /// Extents before; nothing if it did not come so far.
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
    /// What became of its extents; nothing if it did not come so far.
    #[serde(default)]
    pub account: Option<Account>,
}

impl RunReport {
    /// Why it came out so, in words: for a run that changed nothing, what keeps the extents apart.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match (&self.outcome, &self.account) {
            (RunOutcome::Unchanged { message: None }, Some(account)) => Some(account.to_string()),
            (outcome, _) => outcome.reason(),
        }
    }

    /// A run of which nothing is known but what came of it.
    #[must_use]
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
        }
    }
}

/// How long the final swap of xfs_fsr keeps everybody from the file. With reverse mapping, one
/// extent after the other is moved under the file's locks: 22,000 a second, measured with 131,000;
/// without, the roots of the maps change places.
#[must_use]
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
        };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["outcome"], "stopped");
        assert_eq!(json["why"], "window_closed");
        assert_eq!(serde_json::from_value::<RunReport>(json).unwrap(), report);
    }
}
