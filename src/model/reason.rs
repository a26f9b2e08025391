//! Why an image is left alone: the vocabulary shared by the planner and the guards.

use std::fmt;
use std::time::Duration;

use super::time::Roughly;
use super::words::words;

words! {
    /// Why an image is left alone: `code` in a plan, `guard` in the report of a run.
    pub enum ReasonCode {
        RunningNow = "running_now" => "is being defragmented now",
        /// Its severity is below `defrag.from`.
        BelowSeverity = "below_severity",
        /// It has as few extents as possible, or nearly.
        NearIdeal = "near_ideal",
        /// Holes, sharing or unwritten parts keep its extents apart.
        LittleGain = "little_gain",
        Immutable = "immutable" => "is immutable (chattr +i)",
        AppendOnly = "append_only" => "can only be appended to (chattr +a)",
        NoDefrag = "no_defrag" => "is marked as not to be defragmented (xfs_io -c 'chattr +f')",
        Realtime = "realtime" => "lies on the realtime device",
        SwapFile = "swap_file" => "is a swap file in use",
        Dax = "dax" => "is mapped from persistent memory (DAX)",
        /// Its file system is not XFS.
        NotXfs = "not_xfs",
        NothingKnown = "nothing_known" => "nothing is known of its file system yet",
        Paused = "paused" => "defragmentation paused (fragwatch resume)",
        Incident = "incident" => "rescue incident active",
        /// fragwatch itself cannot start a run.
        NotReady = "not_ready",
        /// `maintenance.hold` holds runs.
        Held = "held",
        /// `maintenance.lock` is not to be had.
        Locked = "locked",
        NoWindow = "no_window" => "no window configured ([[maintenance.window]])",
        NoWindowInSight = "no_window_in_sight" => "no window opens within a year: blackouts",
        Stalled = "stalled" => "file-system worker stalled",
        /// Its file system is too full.
        AlmostFull = "almost_full",
        /// Its last run is too recent.
        CoolingDown = "cooling_down",
        /// A recent run could not be done; it is retried soon.
        PutOff = "put_off",
        NoEngine = "no_engine" => "no engine configured (engines in [defrag])",
        NoXfsFsr = "no_xfs_fsr" =>
            "xfs_fsr is not installed: it comes with xfsprogs, or xfsdump on RHEL",
        NoVirsh = "no_virsh" =>
            "virsh is not installed: it comes with libvirt-clients, or libvirt-client on RHEL",
        NotLibvirt = "not_libvirt" => "no VM of libvirt has it open",
        /// The state of its VM, or of a disk of it, does not allow a copy.
        Hypervisor = "hypervisor",
        /// The kernel is not known to be safe for the engine.
        Kernel = "kernel",
        /// A process has it open.
        InUse = "in_use",
        QemuLock = "qemu_lock" => "a QEMU has locked it",
        UseUnknown = "use_unknown" =>
            "whether somebody has it open is not visible: run as root, with CAP_LEASE",
        Changing = "changing" => "it was modified a moment ago",
        SharesBlocks = "shares_blocks" => "shares blocks with a reflink copy",
        /// Reading its map takes too long.
        MapTooLong = "map_too_long",
        /// There is too little free space.
        NoSpace = "no_space",
        /// A copy would be nearly as fragmented: the free extents are short.
        FreeSpaceFragmented = "free_space_fragmented",
        /// The final swap of xfs_fsr would stall readers.
        SwapStall = "swap_stall",
        NoReflink = "no_reflink" => "the file system has no reflink",
        /// The disks are busy: other tasks wait for I/O.
        IoPressure = "io_pressure",
        /// It would take longer than the window remains open.
        WouldNotFinish = "would_not_finish",
        /// The window is taken up by other images.
        NoTurn = "no_turn",
        NotAbsolute = "not_absolute" => "its path is not absolute and without ..",
        /// A component of the path is a symbolic link.
        Link = "link",
        /// It cannot be opened, or the kernel does not answer a query about it.
        Unreadable = "unreadable",
        /// It is not a regular file.
        NotAFile = "not_a_file",
        /// The kernel reports another path for it.
        Elsewhere = "elsewhere",
        HardLinks = "hard_links" => "has several names",
        KeptFile = "kept_file" => "the old file of an earlier rewrite is beside it",
        ReadOnly = "read_only" => "its file system is mounted read-only",
        OtherRun = "other_run" => "another run is at work on its file system",
        /// Openers cannot be made to wait during a run.
        NoGate = "no_gate",
        /// `defrag.hook_before` failed.
        Hook = "hook",
    }
}

impl ReasonCode {
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
                | R::FreeSpaceFragmented
                | R::SwapStall
                | R::NoReflink
                | R::Dax
                | R::Kernel
                | R::NoGate
                | R::NoEngine
                | R::NoXfsFsr
                | R::NoVirsh
                | R::NotLibvirt
                | R::Hypervisor
                | R::HardLinks
                | R::NotXfs
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
    /// Likewise, why `blockcopy` is not used.
    pub blockcopy: Option<Box<Refusal>>,
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
            blockcopy: None,
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
