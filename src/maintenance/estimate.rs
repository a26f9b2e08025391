//! Estimates a run from past runs on its file system or else measurements elsewhere; states which.

use std::time::Duration;

use super::facts::{FilesystemFacts, ImageFacts};
use crate::config::settings::Defrag;
use crate::model::{Bytes, BytesPerSecond, Engine, swap_stall};

/// Assumed speed of `xfs_fsr`. An SSD is three times as fast; it does no harm if a run ends early.
const ASSUMED_FSR: BytesPerSecond = BytesPerSecond(100 << 20);
/// Assumed speed of `online`: 512 MiB took 31 s while another process made 500 writes per second.
const ASSUMED_ONLINE: BytesPerSecond = BytesPerSecond(16 << 20);
/// Assumed speed of `blockcopy`: that of copies at 50 MiB/s, of 700 MiB in 14 s.
const ASSUMED_BLOCK_COPY: BytesPerSecond = BytesPerSecond(50 << 20);
/// How long `blockcopy` suspends the guest: 138 ms, measured with libvirt 9.0 and QEMU 7.2.
const SUSPENDED: Duration = Duration::from_millis(140);
/// Time besides copying and swapping.
const AROUND_IT: Duration = Duration::from_secs(2);

/// Space that `online` needs besides the image: one segment, with a generous margin.
const ONLINE_NEEDS: Bytes = Bytes(64 << 20);

/// The estimated cost of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Duration from start to end.
    pub about: Duration,
    /// Free space needed during the run.
    pub needs: Bytes,
    /// Copying speed.
    pub speed: BytesPerSecond,
    /// Past runs on this file system that the speed is based on; 0 if it is that of other hosts.
    pub measured_runs: u32,
    /// How long readers are blocked at the end, or the guest is suspended; zero for `online`.
    pub stall: Duration,
}

/// Estimates a run on an image.
pub fn estimate(
    engine: Engine,
    image: &ImageFacts,
    filesystem: &FilesystemFacts,
    policy: &Defrag,
) -> Estimate {
    let (measured, assumed) = match engine {
        Engine::XfsFsr => (filesystem.speeds.xfs_fsr, ASSUMED_FSR),
        Engine::Online => (filesystem.speeds.online, ASSUMED_ONLINE),
        Engine::BlockCopy => (filesystem.speeds.blockcopy, ASSUMED_BLOCK_COPY),
    };
    // Past runs may have had a higher limit. Half of the bandwidth is for reading.
    let speed = measured.map_or(assumed, |speed| speed.median);
    let speed = speed.min(BytesPerSecond(policy.bandwidth.0 / 2));
    // rmapbt is the default, so it is assumed unless known to be absent.
    let rmapbt = filesystem.info.features.is_none_or(|it| it.rmapbt);
    let stall = match engine {
        Engine::XfsFsr => swap_stall(image.extents, rmapbt),
        Engine::Online => Duration::ZERO,
        Engine::BlockCopy => SUSPENDED,
    };
    let copying = speed.time_for(image.allocated);
    Estimate {
        about: copying.saturating_add(stall).saturating_add(AROUND_IT),
        needs: match engine {
            Engine::XfsFsr | Engine::BlockCopy => image.allocated,
            Engine::Online => ONLINE_NEEDS,
        },
        speed,
        measured_runs: measured.map_or(0, |speed| speed.runs),
        stall,
    }
}
