//! How much of the time the disks below a file system are busy, by /sys/dev/block
//! (Documentation/block/stat.rst). Reading it accesses no disk and no file system.
//!
//! A file system lies on a partition, an LVM volume, an array or a loop device:
//!
//! | device | its disks |
//! |---|---|
//! | partition | the device above it in sysfs |
//! | device mapper, md, bcache | what `slaves/` names |
//! | loop | the device of the file system that the backing file lies on |
//! | NVMe with native multipath | its paths: `nvme0c1n1`, `nvme0c2n1` of `nvme0n1` |
//! | any other | itself |
//!
//! The layers above the disks count as well: dm-crypt, a thin pool or a loop device works partly while
//! the disks are idle, with requests in flight all the time.
//!
//! The disks are unknown where the device number is an anonymous one (btrfs, overlay, tmpfs, NFS: major
//! 0), where /sys does not show the device, and where a disk does not count its I/O (`queue/iostats` is
//! 0, or nothing was ever counted).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Host;
use crate::discover::mounts::MountTable;
use crate::model::DeviceNumber;
use crate::sys::mounts;

/// Most layers from a file system to its disks.
const MAX_LAYERS: u32 = 16;
/// Most disks of one file system.
const MAX_DISKS: usize = 1024;

/// The counters of the devices below a file system, at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counters {
    disks: BTreeMap<PathBuf, Disk>,
    /// The layers above them, as far as they count their I/O: md of older kernels does not.
    layers: BTreeMap<PathBuf, Disk>,
}

/// The counters of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    /// Completed requests.
    done: u64,
    in_flight: u64,
    /// Time with a request in flight (`io_ticks`), in milliseconds.
    busy: u64,
    /// Time of all requests together (`time_in_queue`), in milliseconds.
    queued: u64,
    /// The same as the sum of reads, writes, discards and flushes.
    ticks: u64,
}

impl Counters {
    /// Those of the devices below this one; `None` if its disks are unknown.
    #[must_use]
    pub(super) fn read(device: DeviceNumber, host: &Host) -> Option<Counters> {
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

    /// How much of the time between two readings they were busy, in percent. Of the disks that is the
    /// sum over all of them, 100 at most: a reader that waits for one of twelve disks after the other
    /// keeps each busy for only a twelfth of the time. `None` if they are not the same disks.
    #[must_use]
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

    /// `None` if nothing was counted: a mounted file system was read at least once, so that disk does
    /// not count.
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

    /// `io_ticks` is too large before Linux 6.10 ("block: support to account io_ticks precisely"): a
    /// request that begins on an idle disk counts a whole tick, up to 10 ms (update_io_ticks,
    /// block/blk-core.c), so that 250 short requests a second look like a busy disk. The time of all
    /// requests together is too large where requests overlap. The smaller of the two is nearer.
    /// `time_in_queue` itself is too small from Linux 5.0 to 5.5, which round the time of each request
    /// down to ticks (blk_account_io_done); the sum of its parts is not.
    ///
    /// All of them change only when a request begins or ends: a disk that completes none is busy.
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

/// The block devices below one of them.
struct Tree<'a> {
    host: &'a Host,
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

    /// The device of the file system that a loop device's file lies on, by its path: a call on the file
    /// could hang.
    fn device_of(&self, file: &[u8]) -> Option<DeviceNumber> {
        use std::os::unix::ffi::OsStrExt as _;
        let file = file.strip_suffix(b"\n").unwrap_or(file);
        let mounts = MountTable::new(mounts::read(&self.host.proc).ok()?);
        let mount = mounts.of(Path::new(std::ffi::OsStr::from_bytes(file)))?;
        Some(mount.device)
    }

    /// The hidden disks `nvme0c1n1`, `nvme0c2n1` of the NVMe name space `nvme0n1`
    /// (nvme_mpath_set_disk_name, drivers/nvme/host/multipath.c): they are in /sys/block, but in no
    /// `slaves/`. `nvme0n1` itself counts nothing before Linux 6.3 ("nvme-multipath: support io stats
    /// on the mpath device").
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
mod tests {
    use super::*;
    use crate::defrag::KernelCheck;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    /// A made-up /sys and /proc.
    struct Made(TempDir);

    impl Made {
        fn new(mounts: &str) -> Made {
            let made = Made(tempfile::tempdir().unwrap());
            made.write("proc/self/mountinfo", mounts);
            fs::create_dir_all(made.0.path().join("sys/dev/block")).unwrap();
            fs::create_dir_all(made.0.path().join("sys/block")).unwrap();
            made
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn link(&self, from: &str, to: &str) {
            let from = self.0.path().join(from);
            fs::create_dir_all(from.parent().unwrap()).unwrap();
            symlink(self.0.path().join(to), from).unwrap();
        }

        /// A device at `sys/devices/…`, by its number and by its name if it is a whole one.
        fn device(&self, number: &str, at: &str) {
            self.write(&format!("{at}/stat"), &stat(1, 0, 0));
            self.link(&format!("sys/dev/block/{number}"), at);
            let name = at.rsplit('/').next().unwrap();
            self.link(&format!("sys/block/{name}"), at);
        }

        fn carried(&self, device: &str, by: &str) {
            let name = by.rsplit('/').next().unwrap();
            self.link(&format!("{device}/slaves/{name}"), by);
        }

        fn host(&self) -> Host {
            Host {
                proc: self.0.path().join("proc"),
                sys: self.0.path().join("sys"),
                hints: self.0.path().to_owned(),
                kernel: KernelCheck::Judge,
            }
        }

        /// The names of the disks below a device.
        fn below(&self, number: &str) -> Option<Vec<String>> {
            let counters = Counters::read(number.parse().unwrap(), &self.host())?;
            let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            Some(counters.disks.keys().map(name).collect())
        }
    }

    /// What a disk says that has done so many requests, of 1 ms each.
    fn stat(done: u64, in_flight: u64, busy: u64) -> String {
        format!("{done} 0 8 {busy} 0 0 0 0 {in_flight} {busy} {busy} 0 0 0 0 0 0\n")
    }

    #[test]
    fn partitions_volumes_and_arrays_are_carried_by_disks() {
        let made = Made::new("");
        let [sda, sdb] = ["a", "b"].map(|it| format!("sys/devices/pci/block/sd{it}"));
        made.device("8:0", &sda);
        made.device("8:16", &sdb);
        for (number, disk, name) in [("8:1", &sda, "sda1"), ("8:17", &sdb, "sdb1")] {
            made.device(number, &format!("{disk}/{name}"));
            made.write(&format!("{disk}/{name}/partition"), "1\n");
        }
        let (md, dm) = (
            "sys/devices/virtual/block/md0",
            "sys/devices/virtual/block/dm-3",
        );
        made.device("9:0", md);
        made.device("253:3", dm);
        made.carried(md, &format!("{sda}/sda1"));
        made.carried(md, &format!("{sdb}/sdb1"));
        made.carried(dm, md);
        assert_eq!(made.below("8:0").unwrap(), ["sda"]);
        assert_eq!(made.below("8:17").unwrap(), ["sdb"]);
        assert_eq!(made.below("253:3").unwrap(), ["sda", "sdb"]);
        // One that cannot be told, and all cannot.
        fs::remove_file(made.0.path().join(format!("{sdb}/stat"))).unwrap();
        assert_eq!(made.below("253:3"), None);
        // A device that carries itself has no disks.
        made.carried(&sda, dm);
        assert_eq!(made.below("253:3"), None);
    }

    #[test]
    fn the_paths_of_an_nvme_name_space_carry_it() {
        let made = Made::new("");
        let subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0";
        made.device("259:1", &format!("{subsystem}/nvme0n1"));
        made.write(&format!("{subsystem}/nvme0n1/nvme0n1p2/partition"), "2\n");
        made.device("259:3", &format!("{subsystem}/nvme0n1/nvme0n1p2"));
        for hidden in [
            "nvme0c0n1",
            "nvme0c1n1",
            "nvme0c0n11",
            "nvme1c0n1",
            "nvme10c0n1",
        ] {
            let at = format!("sys/devices/pci/nvme/{hidden}");
            made.write(&format!("{at}/stat"), &stat(1, 0, 0));
            made.link(&format!("sys/block/{hidden}"), &at);
        }
        assert_eq!(made.below("259:3").unwrap(), ["nvme0c0n1", "nvme0c1n1"]);
        // Without multipath, there is only the disk itself.
        made.device("259:8", "sys/devices/pci/nvme/nvme2/nvme2n1");
        assert_eq!(made.below("259:8").unwrap(), ["nvme2n1"]);
    }

    #[test]
    fn a_loop_device_is_carried_by_what_its_file_lies_on() {
        let made = Made::new(
            "1 0 8:0 / / rw - ext4 a rw\n\
             2 1 0:40 / /dev/shm rw - tmpfs b rw\n\
             3 1 7:1 / /srv/a\\040b rw - xfs /dev/loop1 rw\n",
        );
        made.device("8:0", "sys/devices/pci/block/sda");
        for (number, file) in [
            (0, "/srv/a b/image"),
            (1, "/var/image (deleted)"),
            (2, "/dev/shm/x"),
        ] {
            let at = format!("sys/devices/virtual/block/loop{number}");
            made.device(&format!("7:{number}"), &at);
            made.write(&format!("{at}/loop/backing_file"), &format!("{file}\n"));
        }
        assert_eq!(made.below("7:1").unwrap(), ["sda"]);
        assert_eq!(made.below("7:0").unwrap(), ["sda"]);
        assert_eq!(made.below("7:2"), None, "memory is no disk");
    }

    #[test]
    fn what_does_not_count_cannot_be_told() {
        let made = Made::new("");
        let sda = "sys/devices/pci/block/sda";
        made.device("8:0", sda);
        made.write(&format!("{sda}/queue/iostats"), "1\n");
        assert!(made.below("8:0").is_some());
        for missing in ["0:40", "8:16"] {
            assert_eq!(made.below(missing), None);
        }
        for wrong in ["", "1 2 3\n", "a b c d e f g h i j k\n", &stat(0, 0, 0)] {
            made.write(&format!("{sda}/stat"), wrong);
            assert_eq!(made.below("8:0"), None, "{wrong}");
        }
        made.write(&format!("{sda}/stat"), &stat(1, 0, 0));
        made.write(&format!("{sda}/queue/iostats"), "0\n");
        assert_eq!(made.below("8:0"), None);
    }

    fn busy(before: &str, now: &str) -> Option<Duration> {
        let (before, now) = (Disk::parse(before).unwrap(), Disk::parse(now).unwrap());
        now.busy_since(&before, Duration::from_secs(10))
    }

    #[test]
    fn the_smaller_counter_is_nearer() {
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(busy(&stat(5, 0, 100), &stat(9, 0, 1600)), ms(1500));
        // Ten ticks of 4 ms, by ten requests of 0.1 ms; time_in_queue is rounded down.
        let short = "11 0 8 1 0 0 0 0 0 40 0";
        assert_eq!(busy("1 0 8 0 0 0 0 0 0 0 0", short), ms(1));
        // Two at a time.
        let both = "9 0 8 900 9 0 0 900 0 950 1800";
        assert_eq!(busy("1 0 8 0 0 0 0 0 0 0 0", both), ms(950));
        // A device that was replaced by another one.
        assert_eq!(busy(&stat(9, 0, 1600), &stat(5, 0, 100)), None);
        // Never more than the whole time.
        assert_eq!(busy(&stat(5, 0, 0), &stat(9, 0, 60_000)), ms(10_000));
    }

    #[test]
    fn a_disk_that_hangs_is_at_work() {
        let second = Duration::from_secs(10);
        assert_eq!(busy(&stat(5, 1, 100), &stat(5, 1, 100)), Some(second));
        assert_eq!(
            busy(&stat(5, 1, 100), &stat(6, 1, 101)),
            Some(second / 10_000)
        );
        assert_eq!(
            busy(&stat(5, 0, 100), &stat(5, 1, 100)),
            Some(Duration::ZERO)
        );
    }

    #[test]
    fn disks_that_work_by_turns_are_at_work_all_the_time() {
        let made = Made::new("");
        let (sda, sdb) = ("sys/devices/pci/block/sda", "sys/devices/pci/block/sdb");
        made.device("8:0", sda);
        made.device("8:16", sdb);
        let md = "sys/devices/virtual/block/md0";
        made.device("9:0", md);
        made.carried(md, sda);
        made.carried(md, sdb);
        let device = "9:0".parse().unwrap();
        let before = Counters::read(device, &made.host()).unwrap();
        made.write(&format!("{sda}/stat"), &stat(9, 0, 300));
        made.write(&format!("{sdb}/stat"), &stat(9, 0, 500));
        let now = Counters::read(device, &made.host()).unwrap();
        assert_eq!(now.busy_since(&before, Duration::from_secs(1)), Some(80.0));
        assert_eq!(
            now.busy_since(&before, Duration::from_millis(500)),
            Some(100.0)
        );
        // It has requests under way while both are idle.
        made.write(&format!("{md}/stat"), &stat(9, 0, 900));
        let array = Counters::read(device, &made.host()).unwrap();
        assert_eq!(
            array.busy_since(&before, Duration::from_secs(1)),
            Some(90.0)
        );
        // It does not count any more.
        made.write(&format!("{md}/stat"), &stat(0, 0, 0));
        let now = Counters::read(device, &made.host()).unwrap();
        assert_eq!(now.busy_since(&before, Duration::from_secs(1)), Some(80.0));
        // Another disk was taken in meanwhile.
        made.device("8:32", "sys/devices/pci/block/sdc");
        made.carried(md, "sys/devices/pci/block/sdc");
        let with_it = Counters::read(device, &made.host()).unwrap();
        assert_eq!(with_it.busy_since(&now, Duration::from_secs(1)), None);
        assert_eq!(now.busy_since(&with_it, Duration::from_secs(1)), None);
    }
}
