//! Why an image is left alone: the vocabulary shared by the planner and the guards.

use std::fmt;
use std::time::Duration;

use super::time::Roughly;
use super::words::words;

words! {
    /// Why an image is left alone: `code` in a plan, `guard` in the report of a run.
    pub enum ReasonCode {
        /// A run on it is in progress.
        RunningNow = "running_now",
        /// Its severity is below `defrag.from`.
        BelowSeverity = "below_severity",
        /// It has as few extents as possible, or nearly.
        NearIdeal = "near_ideal",
        /// Holes, sharing or unwritten parts keep its extents apart.
        LittleGain = "little_gain",
        /// It is immutable (chattr(1), `i`).
        Immutable = "immutable",
        /// It can only be appended to (`a`).
        AppendOnly = "append_only",
        /// It is marked as not to be defragmented (xfs_io(8), `chattr +f`).
        NoDefrag = "no_defrag",
        /// Its data is on the realtime device.
        Realtime = "realtime",
        /// It is a swap file.
        SwapFile = "swap_file",
        /// It is mapped straight from persistent memory.
        Dax = "dax",
        /// Its file system is not XFS.
        NotXfs = "not_xfs",
        /// Its file system has not been examined yet.
        NothingKnown = "nothing_known",
        /// Defragmentation is paused.
        Paused = "paused",
        /// The rescue is active.
        Incident = "incident",
        /// fragwatch itself cannot start a run.
        NotReady = "not_ready",
        /// No window is configured.
        NoWindow = "no_window",
        /// All windows of the next year are in blackouts.
        NoWindowInSight = "no_window_in_sight",
        /// Its file system does not respond.
        Stalled = "stalled",
        /// Its file system is too full.
        AlmostFull = "almost_full",
        /// Its last run is too recent.
        CoolingDown = "cooling_down",
        /// A recent run could not be done; it is retried soon.
        PutOff = "put_off",
        /// No engine is configured.
        NoEngine = "no_engine",
        /// xfs_fsr is not installed.
        NoXfsFsr = "no_xfs_fsr",
        /// The kernel is not known to be safe for the engine.
        Kernel = "kernel",
        /// A process has it open.
        InUse = "in_use",
        /// A QEMU process, possibly on another host, holds a lock on it.
        QemuLock = "qemu_lock",
        /// The kernel does not report whether it is open elsewhere.
        UseUnknown = "use_unknown",
        /// It was modified very recently.
        Changing = "changing",
        /// Some of its blocks are shared with another file.
        SharesBlocks = "shares_blocks",
        /// Reading its map takes too long.
        MapTooLong = "map_too_long",
        /// There is too little free space.
        NoSpace = "no_space",
        /// A copy would be nearly as fragmented: the free extents are short.
        FreeSpaceFragmented = "free_space_fragmented",
        /// The final swap of xfs_fsr would stall readers.
        SwapStall = "swap_stall",
        /// Its file system cannot share blocks.
        NoReflink = "no_reflink",
        /// The disks are busy: other tasks wait for I/O.
        IoPressure = "io_pressure",
        /// It would take longer than the window remains open.
        WouldNotFinish = "would_not_finish",
        /// The window is taken up by other images.
        NoTurn = "no_turn",
        /// The path is relative or contains `..`.
        NotAbsolute = "not_absolute",
        /// A component of the path is a symbolic link.
        Link = "link",
        /// It cannot be opened, or the kernel does not answer a query about it.
        Unreadable = "unreadable",
        /// It is not a regular file.
        NotAFile = "not_a_file",
        /// The kernel reports another path for it.
        Elsewhere = "elsewhere",
        /// It has several names.
        HardLinks = "hard_links",
        /// The old file of an earlier rewrite is beside it.
        KeptFile = "kept_file",
        /// Its file system is mounted read-only.
        ReadOnly = "read_only",
        /// Another run is in progress on its file system.
        OtherRun = "other_run",
        /// Openers cannot be made to wait during a run.
        NoGate = "no_gate",
        /// `defrag.hook_before` failed.
        Hook = "hook",
    }
}

impl ReasonCode {
    /// The reason as text, where it needs no values; else the word.
    fn text(self) -> &'static str {
        use ReasonCode as R;
        match self {
            R::RunningNow => "is being defragmented now",
            R::Immutable => "is immutable (chattr +i)",
            R::AppendOnly => "can only be appended to (chattr +a)",
            R::NoDefrag => "is marked as not to be defragmented (xfs_io -c 'chattr +f')",
            R::Realtime => "lies on the realtime device",
            R::SwapFile => "is a swap file in use",
            R::Dax => "is mapped from persistent memory (DAX)",
            R::NothingKnown => "nothing is known of its file system yet",
            R::Paused => "defragmentation paused (fragwatch resume)",
            R::Incident => "rescue incident active",
            R::NoWindow => "no window configured ([[maintenance.window]])",
            R::NoWindowInSight => "no window opens within a year: blackouts",
            R::Stalled => "file-system worker stalled",
            R::NoEngine => "no engine configured (engines in [defrag])",
            R::NoXfsFsr => "xfs_fsr is not installed: it comes with xfsprogs, or xfsdump on RHEL",
            R::QemuLock => "a QEMU has locked it",
            R::UseUnknown => {
                "whether somebody has it open is not visible: run as root, with CAP_LEASE"
            }
            R::Changing => "it was modified a moment ago",
            R::SharesBlocks => "shares blocks with a reflink copy",
            R::NoReflink => "the file system has no reflink",
            R::NotAbsolute => "its path is not absolute and without ..",
            R::ReadOnly => "its file system is mounted read-only",
            R::OtherRun => "another run is at work on its file system",
            other => other.as_str(),
        }
    }

    /// Whether the file itself forbids that it is touched, and not only by one engine.
    pub fn is_obstacle(self) -> bool {
        use ReasonCode as R;
        matches!(
            self,
            R::Immutable | R::AppendOnly | R::NoDefrag | R::Realtime | R::SwapFile
        )
    }

    /// Whether the reason concerns only the engine, so that another one may work on the image.
    pub fn lies_with_engine(self) -> bool {
        use ReasonCode as R;
        matches!(
            self,
            R::InUse
                | R::QemuLock
                | R::UseUnknown
                | R::Changing
                | R::SharesBlocks
                | R::LittleGain
                | R::MapTooLong
                | R::NoSpace
                | R::SwapStall
                | R::NoReflink
                | R::Dax
                | R::Kernel
                | R::NoGate
                | R::NoEngine
                | R::NoXfsFsr
                | R::WouldNotFinish
        )
    }

    /// Whether there is too little to gain, which does not change soon.
    pub fn is_no_gain(self) -> bool {
        matches!(self, ReasonCode::NearIdeal | ReasonCode::LittleGain)
    }
}

/// Why an image is left alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// For programs.
    pub code: ReasonCode,
    /// For people.
    pub text: String,
    /// For an image that is in use: why the engine `online`, which allows that, is not used.
    pub online: Option<Box<Refusal>>,
}

impl From<ReasonCode> for Refusal {
    fn from(code: ReasonCode) -> Refusal {
        Refusal::new(code, code.text())
    }
}

impl Refusal {
    /// A reason with this text.
    pub fn new(code: ReasonCode, text: impl Into<String>) -> Refusal {
        Refusal {
            code,
            text: text.into(),
            online: None,
        }
    }

    /// The final swap of xfs_fsr would take longer than `limit`.
    pub fn swap_stall(stall: Duration, limit: Duration) -> Refusal {
        let (stall, limit) = (Seconds(stall), Seconds(limit));
        let text = format!(
            "the final swap would stall readers for about {stall} (max_swap_stall is {limit})"
        );
        Refusal::new(ReasonCode::SwapStall, text)
    }
}

/// A short duration with adaptive precision: `9 s`, `0.4 s`, `3 min`.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        if self.0.as_secs() >= 60 {
            Roughly(self.0).fmt(f)
        } else if seconds < 5.0 && self.0.subsec_millis() != 0 {
            write!(f, "{seconds:.1} s")
        } else {
            write!(f, "{seconds:.0} s")
        }
    }
}
