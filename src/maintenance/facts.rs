//! All that a plan depends on beside what the operator wants.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::calendar::{Calendar, Opening, between};
use super::speed::Speeds;
use crate::model::{
    Bytes, Effect, Engine, EngineState, ExtentCount, ExtentsPerDay, Features, FilesystemKind,
    Obstacle, Outlook, Severity, Unusable,
};

/// How many times a cooldown is doubled at most.
const MAX_DOUBLINGS: u32 = 4;
/// An image that a run could not have is tried again so much later, and later each time.
const AGAIN: Duration = Duration::from_secs(600);
/// The least cooldown after a run that brought nothing, whatever is configured: the next one would
/// hardly bring more.
const LEAST_BACK_OFF: Duration = Duration::from_secs(86_400);

/// What opens later is not planned for.
const IN_SIGHT: Duration = Duration::from_secs(366 * 86_400);

/// All that a plan depends on.
#[derive(Debug, Clone)]
pub struct PlanFacts {
    /// The time.
    pub now: Timestamp,
    /// Where the clock hangs that times are told by.
    pub zone: TimeZone,
    /// When something may run.
    pub allowed: Allowed,
    /// Whether the rescue is at work.
    pub incident: bool,
    /// Whether it was not long ago: then the images with the most extents come first.
    pub recent_incident: bool,
    /// Whether the operator has paused everything.
    pub paused: bool,
    /// Why fragwatch itself cannot begin a run, if it cannot.
    pub not_ready: Option<String>,
    /// Which engines can be used on this host. Of one that is not named nothing is known against it.
    pub engines: Vec<EngineState>,
    /// The images.
    pub images: Vec<ImageFacts>,
    /// Their file systems.
    pub filesystems: Vec<FilesystemFacts>,
}

impl PlanFacts {
    /// Why an engine cannot be used on this host.
    pub fn unusable(&self, engine: Engine) -> Option<&Unusable> {
        let mut states = self.engines.iter();
        states.find(|it| it.engine == engine)?.unusable.as_ref()
    }
}

/// When something may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// No window is configured.
    Never,
    /// There are windows, but none that opens within a year.
    NotInSight,
    /// In this window, which is open or opens next.
    During(Opening),
    /// At any time: the operator has asked for it by hand.
    Always,
}

impl Allowed {
    /// What the calendar says.
    pub fn by(calendar: &Calendar, now: Timestamp) -> Allowed {
        let is_in_sight = |opening: &Opening| between(now, opening.opens) < IN_SIGHT;
        match calendar.next(now, 1).pop().filter(is_in_sight) {
            Some(opening) => Allowed::During(opening),
            None if calendar.has_windows() => Allowed::NotInSight,
            None => Allowed::Never,
        }
    }
}

/// An image.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageFacts {
    /// Where it is.
    pub path: PathBuf,
    /// The [`id`](FilesystemFacts::id) of its file system.
    pub filesystem: String,
    /// How bad it is.
    pub severity: Severity,
    /// What it has.
    pub extents: ExtentCount,
    /// What is left when it is defragmented; see [`ideal`].
    pub ideal: ExtentCount,
    /// What could be gained, if its map was looked at.
    pub outlook: Option<Outlook>,
    /// How fast it gets worse, if that is known.
    pub growth: Option<ExtentsPerDay>,
    /// Its length as a file.
    pub size: Bytes,
    /// What it occupies: what a copy of it takes.
    pub allocated: Bytes,
    /// Who has it open.
    pub user: Option<User>,
    /// Whether it shares blocks with another file.
    pub shares_blocks: bool,
    /// What forbids touching it.
    pub obstacles: Vec<Obstacle>,
    /// How its last run went.
    pub last_run: Option<LastRun>,
}

/// How many extents are left of an image at best: one for every 8 GiB, which is the longest that
/// XFS has with blocks of 4 KiB, and its holes with the data between them, which no engine fills.
pub fn ideal(size: Bytes, holes: u64) -> ExtentCount {
    let full = size.0.div_ceil(8 << 30);
    ExtentCount(full.max(1).saturating_add(holes))
}

/// Who has an image open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// A virtual machine.
    Vm {
        /// Its name, if it has one.
        name: Option<String>,
        /// Its process.
        pid: u32,
    },
    /// Any other process.
    Process {
        /// Its name.
        name: String,
        /// Its number.
        pid: u32,
    },
    /// Somebody, by a lock or a lease. Another host, for instance.
    Unknown,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Vm {
                name: Some(name),
                pid,
            } => write!(f, "VM {name} (pid {pid})"),
            User::Vm { name: None, pid } => write!(f, "a VM (pid {pid})"),
            User::Process { name, pid } => write!(f, "{name} (pid {pid})"),
            User::Unknown => write!(f, "somebody who cannot be seen from here"),
        }
    }
}

/// How the last run on an image went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastRun {
    /// When it ended.
    pub ended: Timestamp,
    /// What it means for the next one.
    pub effect: Effect,
    /// So many runs in a row had this effect, this one included.
    pub times: u32,
    /// Why it came out so, in words.
    pub reason: String,
}

impl LastRun {
    /// Until when the image is left alone.
    pub fn cools_until(&self, cooldown: Duration) -> Timestamp {
        let doubled = |times: u32| 2_u32.pow(times.min(MAX_DOUBLINGS));
        let wait = match self.effect {
            Effect::Interrupted => Duration::ZERO,
            Effect::Improved => cooldown,
            Effect::PutOff => AGAIN * doubled(self.times.saturating_sub(1)),
            Effect::InVain => {
                let least = cooldown.max(LEAST_BACK_OFF);
                least.saturating_mul(doubled(self.times))
            }
        };
        self.ended.checked_add(wait).unwrap_or(Timestamp::MAX)
    }
}

/// A file system.
#[derive(Debug, Clone, PartialEq)]
pub struct FilesystemFacts {
    /// Its UUID, or what stands for it.
    pub id: String,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The kernel's name of its type.
    pub type_name: String,
    /// What that means.
    pub kind: FilesystemKind,
    /// What it can, if it is an XFS that told.
    pub features: Option<Features>,
    /// Its size.
    pub size: Bytes,
    /// What is free.
    pub free: Bytes,
    /// Whether it does not answer.
    pub stalled: bool,
    /// The run that is under way there.
    pub active: Option<Active>,
    /// Percent of the last ten seconds in which some task waited for I/O, without what its disks
    /// cannot be the reason of; nothing if the kernel does not tell.
    pub io_pressure: Option<f64>,
    /// How fast past runs were.
    pub speeds: Speeds,
}

/// A run that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Active {
    /// The image.
    pub path: PathBuf,
    /// When it is expected to end.
    pub ends: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_brought_nothing_is_tried_less_and_less() {
        let day = Duration::from_secs(86_400);
        let seconds = |effect, times, cooldown| {
            let last = LastRun {
                ended: Timestamp::UNIX_EPOCH,
                effect,
                times,
                reason: String::new(),
            };
            last.cools_until(cooldown).as_second()
        };
        let days = |effect, times, cooldown| seconds(effect, times, cooldown) / 86_400;
        assert_eq!(days(Effect::Improved, 1, 7 * day), 7);
        assert_eq!(days(Effect::Interrupted, 1, 7 * day), 0);
        let in_vain = |times| days(Effect::InVain, times, 7 * day);
        assert_eq!(
            [1, 2, 3, 4, 5, 99].map(in_vain),
            [14, 28, 56, 112, 112, 112]
        );
        assert_eq!(days(Effect::Improved, 1, Duration::ZERO), 0);
        assert_eq!(days(Effect::InVain, 1, Duration::ZERO), 2);
        // What could not be had is asked for again in the same window.
        let minutes = |times| seconds(Effect::PutOff, times, 7 * day) / 60;
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 99].map(minutes),
            [10, 10, 20, 40, 80, 160, 160]
        );
        // For ever is not too long.
        assert!(in_vain(4) < days(Effect::InVain, 1, Duration::MAX));
    }

    #[test]
    fn the_ideal_keeps_the_holes() {
        assert_eq!(ideal(Bytes(0), 0), ExtentCount(1));
        assert_eq!(ideal(Bytes(8 << 30), 0), ExtentCount(1));
        assert_eq!(ideal(Bytes((8 << 30) + 1), 20_900), ExtentCount(20_902));
    }

    #[test]
    fn a_user_is_named_as_well_as_can_be() {
        let vm = |name: Option<&str>| User::Vm {
            name: name.map(str::to_owned),
            pid: 4711,
        };
        assert_eq!(vm(Some("db-1")).to_string(), "VM db-1 (pid 4711)");
        assert_eq!(vm(None).to_string(), "a VM (pid 4711)");
        let name = "qemu-img".to_owned();
        assert_eq!(
            User::Process { name, pid: 7 }.to_string(),
            "qemu-img (pid 7)"
        );
    }
}
