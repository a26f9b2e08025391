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

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HostInterfaces;
use crate::discover::mounts::MountTable;
use crate::model::DeviceNumber;
use crate::sys::mounts;

const MAX_LAYERS: u32 = 16;
const MAX_DISKS: usize = 1024;

/// The counters of the devices below a file system, at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        let mut tree = Tree {
            host,
            disks: BTreeSet::new(),
            layers: BTreeSet::new(),
        };
        tree.number(device, MAX_LAYERS)?;
        let read = |device: PathBuf| Disk::read(&device).map(|disk| (device, disk));
        Some(Counters {
            disks: tree.disks.into_iter().map(read).collect::<Option<_>>()?,
            layers: tree.layers.into_iter().filter_map(read).collect(),
        })
    }

    /// The share of the time between two readings in which they were busy, in percent. For the
    /// disks it is the sum over all, at most 100: a reader that waits for twelve disks in turn
    /// keeps each busy for only a twelfth of the time. `None` if the disks are not the same.
    pub(super) fn busy_since(&self, before: &Counters, elapsed: Duration) -> Option<f32> {
        let busy = |(path, now): (&PathBuf, &Disk), before: &BTreeMap<_, _>| {
            now.busy_since(before.get(path)?, elapsed)
        };
        let disks = self.disks.iter().map(|disk| busy(disk, &before.disks));
        let same = self.disks.len() == before.disks.len();
        let disks = disks.sum::<Option<Duration>>().filter(|_| same)?;
        let layers = self.layers.iter();
        let layers = layers.filter_map(|layer| busy(layer, &before.layers));
        let most = layers.fold(disks, Duration::max);
        let share = most.as_secs_f32() / elapsed.as_secs_f32() * 100.0;
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

struct Tree<'a> {
    host: &'a HostInterfaces,
    disks: BTreeSet<PathBuf>,
    layers: BTreeSet<PathBuf>,
}

impl Tree<'_> {
    fn number(&mut self, device: DeviceNumber, layers: u32) -> Option<()> {
        let link = self.host.sys.join("dev/block").join(device.to_string());
        self.directory(&fs::canonicalize(link).ok()?, layers)
    }

    /// `None` if one of them is unknown: the others alone would look too idle.
    fn directory(&mut self, device: &Path, layers: u32) -> Option<()> {
        let layers = layers.checked_sub(1)?;
        if device.join("partition").exists() {
            return self.directory(device.parent()?, layers);
        }
        if let Ok(file) = fs::read(device.join("loop/backing_file")) {
            self.layers.insert(device.to_owned());
            return self.number(self.device_of(&file)?, layers);
        }
        let mut carriers = entries(&device.join("slaves"));
        carriers.extend(self.paths(device));
        if carriers.is_empty() {
            self.disks.insert(device.to_owned());
            return (self.disks.len() <= MAX_DISKS).then_some(());
        }
        self.layers.insert(device.to_owned());
        carriers
            .iter()
            .try_for_each(|carrier| self.directory(&fs::canonicalize(carrier).ok()?, layers))
    }

    /// The device of the file system that holds a loop device's file. By path: a call could hang.
    fn device_of(&self, file: &[u8]) -> Option<DeviceNumber> {
        use std::os::unix::ffi::OsStrExt as _;
        let file = file.strip_suffix(b"\n").unwrap_or(file);
        let mounts = MountTable::new(mounts::read(&self.host.proc).ok()?);
        let mount = mounts.of(Path::new(std::ffi::OsStr::from_bytes(file)))?;
        Some(mount.device)
    }

    /// The hidden disks `nvme0c1n1`, `nvme0c2n1` of the NVMe namespace `nvme0n1`: in /sys/block,
    /// but in no `slaves/` (nvme_mpath_set_disk_name, drivers/nvme/host/multipath.c). Before Linux
    /// 6.3 `nvme0n1` counts nothing ("nvme-multipath: support io stats on the mpath device").
    fn paths(&self, device: &Path) -> Vec<PathBuf> {
        let name = device.file_name().and_then(|name| name.to_str());
        let parts = name.and_then(|name| name.strip_prefix("nvme")?.split_once('n'));
        let Some((subsystem, space)) = parts else {
            return Vec::new();
        };
        let prefix = format!("nvme{subsystem}c");
        let is_path = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            let rest = name.and_then(|name| name.strip_prefix(&prefix)?.split_once('n'));
            rest.is_some_and(|(_, its_space)| its_space == space)
        };
        let mut disks = entries(&self.host.sys.join("block"));
        disks.retain(is_path);
        disks
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).take(MAX_DISKS).collect()
}

#[cfg(test)]
mod tests;
