//! The planner's input besides the operator's settings.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::calendar::{Calendar, Opening, between};
use super::speed::Speeds;
use crate::model::{
    Bytes, Effect, Engine, EngineState, ExtentCount, ExtentsPerDay, Filesystem, FreeSpace, Manager,
    Outlook, ReasonCode, Refusal, Severity, Unusable,
};

/// Maximum number of times a cooldown is doubled.
const MAX_DOUBLINGS: u32 = 4;
/// Delay after a run that could not access its image; doubled each time.
const AGAIN: Duration = Duration::from_secs(600);
/// Minimum cooldown after a run without improvement: the next one would hardly do better.
const LEAST_BACK_OFF: Duration = Duration::from_secs(86_400);

/// Windows that open later are not planned for.
const IN_SIGHT: Duration = Duration::from_secs(366 * 86_400);

/// The planner's input besides the settings `[defrag]`.
#[derive(Debug, Clone)]
pub struct PlanFacts {
    /// The current time.
    pub now: Timestamp,
    /// The time zone in which times are displayed.
    pub zone: TimeZone,
    /// When runs are allowed.
    pub allowed: Allowed,
    /// Whether a rescue is in progress.
    pub incident: bool,
    /// Whether there was a rescue recently: then images with the most extents come first.
    pub recent_incident: bool,
    /// Whether the operator has paused defragmentation.
    pub paused: bool,
    /// Why fragwatch cannot start a run; `None` if it can.
    pub not_ready: Option<Refusal>,
    /// The states of engines on this host. An engine that is missing is taken to be usable.
    pub engines: Vec<EngineState>,
    /// The images.
    pub images: Vec<ImageFacts>,
    /// Their file systems.
    pub filesystems: Vec<FilesystemFacts>,
}

impl PlanFacts {
    /// Why an engine is unusable on this host; `None` if it is usable.
    pub fn unusable(&self, engine: Engine) -> Option<&Unusable> {
        let mut states = self.engines.iter();
        states.find(|it| it.engine == engine)?.unusable.as_ref()
    }
}

/// When runs are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// No window is configured.
    Never,
    /// No window opens within a year.
    NotInSight,
    /// In this window, which is open or the next to open.
    During(Opening),
    /// At any time: the operator has started the run by hand.
    Always,
}

impl Allowed {
    /// Looks up the calendar.
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
    /// Its path.
    pub path: PathBuf,
    /// The [`id`](FilesystemFacts::id) of its file system.
    pub filesystem: String,
    /// Its severity.
    pub severity: Severity,
    /// Its number of extents.
    pub extents: ExtentCount,
    /// The number of extents after defragmentation; see [`ideal`].
    pub ideal: ExtentCount,
    /// The possible gain, if its map was examined.
    pub outlook: Option<Outlook>,
    /// How fast its number of extents grows, if known.
    pub growth: Option<ExtentsPerDay>,
    /// Its file size.
    pub size: Bytes,
    /// Its allocated space, which is the size of a copy.
    pub allocated: Bytes,
    /// The process that has it open.
    pub user: Option<User>,
    /// Whether it shares blocks with another file.
    pub shares_blocks: bool,
    /// What forbids touching it.
    pub obstacles: Vec<ReasonCode>,
    /// Its last run.
    pub last_run: Option<LastRun>,
}

/// The minimum number of extents of an image: one per 8 GiB (the maximum on XFS with 4 KiB blocks)
/// plus its holes, each of which separates data and is never filled by an engine.
pub fn ideal(size: Bytes, holes: u64) -> ExtentCount {
    let full = size.0.div_ceil(8 << 30);
    ExtentCount(full.max(1).saturating_add(holes))
}

/// The process that has an image open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// A virtual machine.
    Vm {
        /// Its name, if it has one.
        name: Option<String>,
        /// Its process ID.
        pid: u32,
        /// What runs it, if known.
        manager: Option<Manager>,
        /// The name of the image in the VM, if known.
        node: Option<String>,
    },
    /// Any other process.
    Process {
        /// Its name.
        name: String,
        /// Its process ID.
        pid: u32,
    },
}

impl User {
    /// Whether it is a VM of libvirt.
    pub fn is_of_libvirt(&self) -> bool {
        matches!(
            self,
            User::Vm {
                manager: Some(Manager::Libvirt),
                ..
            }
        )
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Vm {
                name: Some(name),
                pid,
                ..
            } => write!(f, "VM {name} (pid {pid})"),
            User::Vm {
                name: None, pid, ..
            } => write!(f, "a VM (pid {pid})"),
            User::Process { name, pid } => write!(f, "{name} (pid {pid})"),
        }
    }
}

/// The last run on an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastRun {
    /// When it ended.
    pub ended: Timestamp,
    /// What its outcome means for the next run.
    pub effect: Effect,
    /// Number of consecutive runs with this effect, including this one.
    pub times: u32,
    /// The reason of its outcome.
    pub reason: String,
}

impl LastRun {
    /// When the cooldown ends.
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
    /// Its UUID, or a substitute.
    pub id: String,
    /// What is known of it.
    pub info: Filesystem,
    /// Whether it does not respond.
    pub stalled: bool,
    /// The run in progress on it.
    pub active: Option<Active>,
    /// Percentage of the last 10 s in which some task waited for I/O, without pressure that its
    /// disks cannot have caused; `None` if the kernel does not report it.
    pub io_pressure: Option<f64>,
    /// The speeds of past runs.
    pub speeds: Speeds,
    /// Its free extents, if they were read.
    pub space: Option<Arc<FreeSpace>>,
}

/// A run in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Active {
    /// The path of the image.
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
            manager: None,
            node: None,
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
