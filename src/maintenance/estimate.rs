//! How long a run takes and what it needs: judged by past runs on the same file system, and where
//! there are none, by what was measured elsewhere; which of the two is always stated.

use std::time::Duration;

use super::facts::{FilesystemFacts, ImageFacts};
use super::policy::Policy;
use super::speed::Speed;
use crate::model::{Bytes, BytesPerSecond, Engine, swap_stall};

/// What `xfs_fsr` copies where nothing was measured. An SSD does three times that; a run that takes
/// less long than it was told is no harm.
const ASSUMED_FSR: BytesPerSecond = BytesPerSecond(100 << 20);
/// What `online` copies where nothing was measured: 512 MiB in 31 s underneath a writer of 500
/// writes a second.
const ASSUMED_ONLINE: BytesPerSecond = BytesPerSecond(16 << 20);
/// What a run takes beside copying and swapping.
const AROUND_IT: Duration = Duration::from_secs(2);

/// What `online` needs beside what the image has: one segment, generously.
const ONLINE_NEEDS: Bytes = Bytes(64 << 20);

/// What a speed was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// So many runs on this file system.
    Measured {
        /// How many.
        runs: u32,
    },
    /// Runs on other hosts.
    Assumed,
}

/// What a run would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Time, from its beginning to its end.
    pub about: Duration,
    /// Free space, for as long as it lasts.
    pub needs: Bytes,
    /// How fast it copies.
    pub speed: BytesPerSecond,
    /// How that is known.
    pub basis: Basis,
    /// For how long readers are held up at the end; nothing for `online`.
    pub stall: Duration,
}

/// What a run on an image would take.
pub fn estimate(
    engine: Engine,
    image: &ImageFacts,
    filesystem: &FilesystemFacts,
    policy: &Policy,
) -> Estimate {
    let (measured, assumed) = match engine {
        Engine::XfsFsr => (filesystem.speeds.xfs_fsr, ASSUMED_FSR),
        Engine::Online => (filesystem.speeds.online, ASSUMED_ONLINE),
    };
    let basis = measured.map_or(Basis::Assumed, |Speed { runs, .. }| Basis::Measured {
        runs,
    });
    // What was measured may have been measured with a higher limit. Of that, half is reading.
    let speed = measured.map_or(assumed, |speed| speed.median);
    let speed = speed.min(BytesPerSecond(policy.bandwidth.0 / 2));
    // Reverse mapping is the default, so it is there unless it is known not to be.
    let rmapbt = filesystem.features.is_none_or(|it| it.rmapbt);
    let stall = match engine {
        Engine::XfsFsr => swap_stall(image.extents, rmapbt),
        Engine::Online => Duration::ZERO,
    };
    let copying = speed.time_for(image.allocated);
    Estimate {
        about: copying.saturating_add(stall).saturating_add(AROUND_IT),
        needs: match engine {
            Engine::XfsFsr => image.allocated,
            Engine::Online => ONLINE_NEEDS,
        },
        speed,
        basis,
        stall,
    }
}
