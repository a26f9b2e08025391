//! Why an image is left alone, in one word: the same vocabulary for the planner and the guards.

use std::fmt;

use super::words::words;

words! {
    /// Why an image is left alone: `code` in a plan, `guard` in the report of a run.
    pub enum ReasonCode {
        /// A run on it is under way.
        RunningNow = "running_now",
        /// Its severity is below `defrag.from`.
        BelowSeverity = "below_severity",
        /// It has as few extents as it can have, or nearly.
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
        /// Its file system was not looked at yet.
        NothingKnown = "nothing_known",
        /// Defragmentation is paused.
        Paused = "paused",
        /// The rescue is at work.
        Incident = "incident",
        /// fragwatch itself cannot begin a run.
        NotReady = "not_ready",
        /// No window is configured.
        NoWindow = "no_window",
        /// All windows of the next year are in blackouts.
        NoWindowInSight = "no_window_in_sight",
        /// Its file system does not answer.
        Stalled = "stalled",
        /// Its file system is too full.
        AlmostFull = "almost_full",
        /// It had a run not long ago.
        CoolingDown = "cooling_down",
        /// A run could not have it not long ago.
        PutOff = "put_off",
        /// No engine is configured.
        NoEngine = "no_engine",
        /// xfs_fsr is not installed.
        NoXfsFsr = "no_xfs_fsr",
        /// The kernel is not proven good for the engine.
        Kernel = "kernel",
        /// Somebody has it open.
        InUse = "in_use",
        /// A QEMU has locked it, perhaps on another host.
        QemuLock = "qemu_lock",
        /// The kernel does not tell whether somebody has it open.
        UseUnknown = "use_unknown",
        /// It was modified a moment ago.
        Changing = "changing",
        /// Some of its blocks belong to another file as well.
        SharesBlocks = "shares_blocks",
        /// Reading its map takes too long.
        MapTooLong = "map_too_long",
        /// There is too little free space.
        NoSpace = "no_space",
        /// The final swap of xfs_fsr would stall readers.
        SwapStall = "swap_stall",
        /// Its file system cannot share blocks.
        NoReflink = "no_reflink",
        /// Others wait for the disks.
        IoPressure = "io_pressure",
        /// It would take longer than the window is open.
        WouldNotFinish = "would_not_finish",
        /// The window is full.
        NoTurn = "no_turn",
        /// The path is not absolute, or has `..` in it.
        NotAbsolute = "not_absolute",
        /// A part of the path is a symbolic link.
        Link = "link",
        /// It cannot be opened, or the kernel does not answer a question.
        Unreadable = "unreadable",
        /// It is no regular file.
        NotAFile = "not_a_file",
        /// The kernel has another path for it.
        Elsewhere = "elsewhere",
        /// Its file system is mounted read-only.
        ReadOnly = "read_only",
        /// Another run is at work on its file system.
        OtherRun = "other_run",
        /// Openers cannot be held during a run.
        NoGate = "no_gate",
        /// `defrag.hook_before` did not succeed.
        Hook = "hook",
    }
}

impl ReasonCode {
    /// Whether it lies with the engine, not with the image, its file system or the host: another
    /// engine may work on the image.
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

    /// Whether there is too little to gain: that does not change soon.
    pub fn is_no_gain(self) -> bool {
        matches!(self, ReasonCode::NearIdeal | ReasonCode::LittleGain)
    }
}

/// What forbids touching an image, in the order in which it is stated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// It is immutable (chattr(1), `i`).
    Immutable,
    /// It can only be appended to (`a`).
    AppendOnly,
    /// It is marked as not to be defragmented (xfs_io(8), `chattr +f`).
    NoDefrag,
    /// Its data is on the realtime device.
    Realtime,
    /// It is a swap file.
    SwapFile,
    /// It is mapped straight from persistent memory.
    Dax,
}

impl Obstacle {
    /// Its word for programs.
    pub fn code(self) -> ReasonCode {
        match self {
            Obstacle::Immutable => ReasonCode::Immutable,
            Obstacle::AppendOnly => ReasonCode::AppendOnly,
            Obstacle::NoDefrag => ReasonCode::NoDefrag,
            Obstacle::Realtime => ReasonCode::Realtime,
            Obstacle::SwapFile => ReasonCode::SwapFile,
            Obstacle::Dax => ReasonCode::Dax,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Obstacle::Immutable => "is immutable (chattr +i)",
            Obstacle::AppendOnly => "can only be appended to (chattr +a)",
            Obstacle::NoDefrag => "is marked as not to be defragmented (xfs_io -c 'chattr +f')",
            Obstacle::Realtime => "lies on the realtime device",
            Obstacle::SwapFile => "is a swap file in use",
            Obstacle::Dax => "is mapped from persistent memory (DAX)",
        })
    }
}
