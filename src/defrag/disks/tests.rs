//! Devices of a made-up /sys.

use super::*;
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

    fn host(&self) -> HostInterfaces {
        HostInterfaces {
            proc: self.0.path().join("proc"),
            sys: self.0.path().join("sys"),
            hints: self.0.path().to_owned(),
            ..HostInterfaces::to_look_at()
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
