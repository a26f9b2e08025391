//! Measures how busy the disks below a file system are, from /sys/dev/block
//! (Documentation/block/stat.rst). Reading it accesses no disk and no file system.
//!
//! A file system lies on a partition, an LVM volume, an array or a loop device:
//!
//! | device | its disks |
//! |---|---|
//! | partition | the device above it in sysfs |
//! | device mapper, md, bcache | the entries of `slaves/` |
//! | loop | the device of the file system that the backing file lies on |
//! | NVMe with native multipath | its paths: `nvme0c1n1`, `nvme0c2n1` of `nvme0n1` |
//! | any other | itself |
//!
//! The layers above the disks count too: dm-crypt, a thin pool or a loop device may be busy, with
//! requests in flight all the time, while the disks are partly idle. The disks are unknown if the
//! device number is anonymous (btrfs, overlay, tmpfs, NFS: major 0), if /sys does not show the
//! device, or if a disk counts no I/O (`queue/iostats` is 0, or all counters are 0).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HostInterfaces;
use crate::discover::mounts::MountTable;
use crate::model::DeviceNumber;
use crate::sys::mounts;

const MAX_LAYERS: u32 = 16;
const MAX_DISKS: usize = 1024;

/// The counters of the devices below a file system, at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counters {
    disks: BTreeMap<PathBuf, Disk>,
    /// The layers above them that count their I/O; md of older kernels does not.
    layers: BTreeMap<PathBuf, Disk>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    done: u64,
    in_flight: u64,
    /// Time with a request in flight (`io_ticks`), in milliseconds.
    busy: u64,
    /// Total time of all requests (`time_in_queue`), in milliseconds.
    queued: u64,
    /// The same as the sum for reads, writes, discards and flushes.
    ticks: u64,
}

impl Counters {
    /// The counters below this device; `None` if its disks are unknown.
    pub(super) fn read(device: DeviceNumber, host: &HostInterfaces) -> Option<Counters> {
        let mut counters = Counters::default();
        counters.add_number(device, host, MAX_LAYERS)?;
        Some(counters)
    }

    fn add_number(&mut self, device: DeviceNumber, host: &HostInterfaces, left: u32) -> Option<()> {
        let link = host.sys.join("dev/block").join(device.to_string());
        self.add(&fs::canonicalize(link).ok()?, host, left)
    }

    /// Adds a device and, in at most `left` layers, those below it. `None` if a disk is unknown:
    /// the others alone would look too idle.
    fn add(&mut self, device: &Path, host: &HostInterfaces, left: u32) -> Option<()> {
        let left = left.checked_sub(1)?;
        if device.join("partition").exists() {
            return self.add(device.parent()?, host, left);
        }
        let backing_file = fs::read(device.join("loop/backing_file"));
        let mut carriers = entries(&device.join("slaves"));
        carriers.extend(nvme_paths(device, host));
        if backing_file.is_err() && carriers.is_empty() {
            self.disks.insert(device.to_owned(), Disk::read(device)?);
            return (self.disks.len() <= MAX_DISKS).then_some(());
        }
        let layer = Disk::read(device).map(|counted| (device.to_owned(), counted));
        self.layers.extend(layer);
        if let Ok(file) = backing_file {
            return self.add_number(device_of(&file, host)?, host, left);
        }
        carriers
            .iter()
            .try_for_each(|carrier| self.add(&fs::canonicalize(carrier).ok()?, host, left))
    }

    /// The share of the time between two readings in which they were busy, in percent. For the
    /// disks it is the sum over all, at most 100: a reader that waits for twelve disks in turn
    /// keeps each busy for only a twelfth of the time. `None` if the disks are not the same.
    pub(super) fn busy_since(&self, before: &Counters, elapsed: Duration) -> Option<f64> {
        let busy = |(path, now): (&PathBuf, &Disk), before: &BTreeMap<_, _>| {
            now.busy_since(before.get(path)?, elapsed)
        };
        let disks = self.disks.iter().map(|disk| busy(disk, &before.disks));
        let same = self.disks.len() == before.disks.len();
        let disks = disks.sum::<Option<Duration>>().filter(|_| same)?;
        let layers = self.layers.iter();
        let layers = layers.filter_map(|layer| busy(layer, &before.layers));
        let most = layers.fold(disks, Duration::max);
        let share = most.as_secs_f64() / elapsed.as_secs_f64() * 100.0;
        Some(share.min(100.0))
    }
}

impl Disk {
    fn read(directory: &Path) -> Option<Disk> {
        let flag = fs::read_to_string(directory.join("queue/iostats"));
        if flag.is_ok_and(|flag| flag.trim() == "0") {
            return None;
        }
        Disk::parse(&fs::read_to_string(directory.join("stat")).ok()?)
    }

    /// `None` if nothing was counted: reading a mounted file system counts unless counting is off.
    fn parse(stat: &str) -> Option<Disk> {
        let fields = stat.split_ascii_whitespace().map(str::parse);
        let fields: Vec<u64> = fields.collect::<Result<_, _>>().ok()?;
        let field = |number: usize| fields.get(number - 1).copied();
        // Discards since Linux 4.18, flushes since 5.5.
        let sum = |of: [usize; 4]| of.into_iter().filter_map(field).sum();
        let done = sum([1, 5, 12, 16]);
        let disk = Disk {
            done,
            in_flight: field(9)?,
            busy: field(10)?,
            queued: field(11)?,
            ticks: sum([4, 8, 15, 17]),
        };
        (done > 0).then_some(disk)
    }

    /// `io_ticks` is too large before Linux 6.10 ("block: support to account io_ticks precisely"):
    /// a request that begins on an idle disk counts a whole tick, up to 10 ms (update_io_ticks,
    /// block/blk-core.c), so that 250 short requests a second look like a busy disk. The total time
    /// of all requests is too large if requests overlap. The smaller value is more accurate.
    /// `time_in_queue` is too small from Linux 5.0 to 5.5, which round each request's time down to
    /// ticks (blk_account_io_done), but the sum of its parts is not. All change only when a request
    /// begins or ends: a disk with requests in flight that completes none is busy.
    fn busy_since(&self, before: &Disk, elapsed: Duration) -> Option<Duration> {
        let done = self.done.checked_sub(before.done)?;
        let busy = self.busy.checked_sub(before.busy)?;
        let queued = self.queued.checked_sub(before.queued)?;
        let ticks = self.ticks.checked_sub(before.ticks)?;
        let hangs = done == 0 && self.in_flight > 0 && before.in_flight > 0;
        let counted = Duration::from_millis(busy.min(queued.max(ticks)));
        Some(if hangs { elapsed } else { counted.min(elapsed) })
    }
}

/// The device of the file system that holds a loop device's file. By path: a call could hang.
fn device_of(file: &[u8], host: &HostInterfaces) -> Option<DeviceNumber> {
    let file = file.strip_suffix(b"\n").unwrap_or(file);
    let mounts = MountTable::new(mounts::read(&host.proc).ok()?);
    Some(mounts.of(Path::new(OsStr::from_bytes(file)))?.device)
}

/// The hidden disks `nvme0c1n1`, `nvme0c2n1` of the NVMe namespace `nvme0n1`: in /sys/block, but in
/// no `slaves/` (nvme_mpath_set_disk_name, drivers/nvme/host/multipath.c). Before Linux 6.3
/// `nvme0n1` counts nothing ("nvme-multipath: support io stats on the mpath device").
fn nvme_paths(device: &Path, host: &HostInterfaces) -> Vec<PathBuf> {
    // Controller or subsystem, and namespace.
    let parts = |path: &Path| -> Option<(String, String)> {
        let name = path.file_name()?.to_str()?.strip_prefix("nvme")?;
        let (before, space) = name.split_once('n')?;
        Some((before.to_owned(), space.to_owned()))
    };
    let Some((subsystem, space)) = parts(device) else {
        return Vec::new();
    };
    let prefix = format!("{subsystem}c");
    let is_path = |(before, its): (String, String)| before.starts_with(&prefix) && its == space;
    let mut disks = entries(&host.sys.join("block"));
    disks.retain(|path| parts(path).is_some_and(is_path));
    disks
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).take(MAX_DISKS).collect()
}

#[cfg(test)]
mod tests;
