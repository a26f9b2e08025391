//! Whether a file system lies on thin-provisioned storage, which can be full before it is. From
//! /sys/dev/block; no disk is accessed.
//!
//! | device | thin if |
//! |---|---|
//! | LVM | a device below it is a pool: `dm/uuid` ends in `-tpool` (dm-thin) or `-vpool` (VDO) (lib/activate/dev_manager.c of LVM) |
//! | SCSI | the disk says so: `device/scsi_disk/*/thin_provisioning` (drivers/scsi/sd.c) |
//! | partition, LVM, dm-crypt, multipath, md | one of those below it is |
//! | NVMe | not known: a namespace can be (NSFEAT), and sysfs does not show it |
//! | any other (virtio, loop, network) | not known |

use std::fs;
use std::path::{Path, PathBuf};

use crate::model::DeviceNumber;

const MAX_LAYERS: u32 = 16;

/// How storage is provisioned. In order of precedence, of several devices below one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Provisioning {
    /// All of its space exists.
    Full,
    NotKnown,
    /// It promises more than it has.
    Thin,
}

/// How the device of a file system is provisioned. `sys` is where sysfs is mounted.
pub fn provisioning(sys: &Path, device: DeviceNumber) -> Provisioning {
    let link = sys.join("dev/block").join(device.to_string());
    fs::canonicalize(link).map_or(Provisioning::NotKnown, |path| of(&path, MAX_LAYERS))
}

fn of(device: &Path, left: u32) -> Provisioning {
    let Some(left) = left.checked_sub(1) else {
        return Provisioning::NotKnown;
    };
    if device.join("partition").exists() {
        return device
            .parent()
            .map_or(Provisioning::NotKnown, |disk| of(disk, left));
    }
    let uuid = fs::read_to_string(device.join("dm/uuid")).unwrap_or_default();
    let uuid = uuid.trim_end();
    if uuid.ends_with("-tpool") || uuid.ends_with("-vpool") || uuid.starts_with("VDO-") {
        return Provisioning::Thin;
    }
    let below = entries(&device.join("slaves"));
    if below.is_empty() {
        return scsi(device);
    }
    let known = ["LVM-", "CRYPT-", "mpath-", "part"];
    let is_known = device.join("md").exists() || known.iter().any(|it| uuid.starts_with(it));
    let below = below.iter().map(|entry| {
        let device = fs::canonicalize(entry);
        device.map_or(Provisioning::NotKnown, |device| of(&device, left))
    });
    let least = if is_known {
        Provisioning::Full
    } else {
        Provisioning::NotKnown
    };
    below
        .max()
        .map_or(Provisioning::NotKnown, |it| it.max(least))
}

fn scsi(device: &Path) -> Provisioning {
    let disks = entries(&device.join("device/scsi_disk"));
    let flag = |disk: &PathBuf| fs::read_to_string(disk.join("thin_provisioning")).ok();
    match disks.iter().find_map(flag).as_deref().map(str::trim_end) {
        Some("0") => Provisioning::Full,
        Some("1") if has_all_its_space(device) => Provisioning::Full,
        Some("1") => Provisioning::Thin,
        _ => Provisioning::NotKnown,
    }
}

/// Whether a disk that can unmap blocks has the space of all of them: `thin_provisioning` says only the
/// former (LBPME), and libata sets it for each SSD with TRIM (ata_scsiop_read_cap,
/// drivers/ata/libata-scsi.c). Type 1 in page B2 is "resource provisioned" (SBC-4, 6.6.7).
fn has_all_its_space(device: &Path) -> bool {
    let vendor = fs::read_to_string(device.join("device/vendor"));
    let page = fs::read(device.join("device/vpd_pgb2")).unwrap_or_default();
    vendor.is_ok_and(|it| it.trim_end() == "ATA") || page.get(6).is_some_and(|it| it & 7 == 1)
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A made-up sysfs, in which 253:1 is `device`.
    struct Sys(tempfile::TempDir);

    impl Sys {
        fn of(device: &str) -> Sys {
            let sys = Sys(tempfile::tempdir().unwrap());
            let links = sys.0.path().join("dev/block");
            fs::create_dir_all(&links).unwrap();
            fs::create_dir_all(sys.path(device)).unwrap();
            symlink(sys.path(device), links.join("253:1")).unwrap();
            sys
        }

        fn path(&self, device: &str) -> PathBuf {
            self.0.path().join("block").join(device)
        }

        fn set(self, file: &str, text: &str) -> Sys {
            let path = self.path(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        fn on(self, above: &str, below: &str) -> Sys {
            let slaves = self.path(above).join("slaves");
            fs::create_dir_all(&slaves).unwrap();
            fs::create_dir_all(self.path(below)).unwrap();
            symlink(self.path(below), slaves.join(below)).unwrap();
            self
        }

        fn provisioning(&self) -> Provisioning {
            let device = DeviceNumber {
                major: 253,
                minor: 1,
            };
            provisioning(self.0.path(), device)
        }
    }

    #[test]
    fn a_volume_in_a_pool_is_thin() {
        let sys = Sys::of("dm-1")
            .set("dm-1/dm/uuid", "LVM-abc\n")
            .on("dm-1", "dm-0");
        let sys = sys.set("dm-0/dm/uuid", "LVM-def-tpool\n");
        assert_eq!(sys.provisioning(), Provisioning::Thin);
    }

    #[test]
    fn a_disk_says_whether_it_is_thin() {
        let flag = "sda/device/scsi_disk/0:0:0:0/thin_provisioning";
        for (text, expected) in [("1\n", Provisioning::Thin), ("0\n", Provisioning::Full)] {
            let disk = || Sys::of("dm-1").set(flag, text);
            let volume = |uuid| disk().set("dm-1/dm/uuid", uuid).on("dm-1", "sda");
            assert_eq!(volume("LVM-abc").provisioning(), expected);
            assert_eq!(volume("CRYPT-LUKS2-abc").provisioning(), expected);
        }
        // What an unknown target does with the space is its own affair.
        let sys = Sys::of("dm-1").set(flag, "0\n").on("dm-1", "sda");
        assert_eq!(sys.provisioning(), Provisioning::NotKnown);
        let partition = Sys::of("sda/sda1")
            .set("sda/sda1/partition", "1\n")
            .set(flag, "0\n");
        assert_eq!(partition.provisioning(), Provisioning::Full);
    }

    #[test]
    fn a_disk_that_only_unmaps_has_all_its_space() {
        let thin = || Sys::of("sda").set("sda/device/scsi_disk/0/thin_provisioning", "1");
        assert_eq!(thin().provisioning(), Provisioning::Thin);
        for (vendor, page, expected) in [
            ("ATA     \n", "", Provisioning::Full),
            ("SEAGATE \n", "......\u{1}", Provisioning::Full),
            ("LIO-ORG \n", "......\u{2}", Provisioning::Thin),
        ] {
            let sys = thin().set("sda/device/vendor", vendor);
            let sys = sys.set("sda/device/vpd_pgb2", page);
            assert_eq!(sys.provisioning(), expected, "{vendor}");
        }
    }

    #[test]
    fn the_worst_of_several_counts() {
        let flag = |disk| format!("{disk}/device/scsi_disk/0/thin_provisioning");
        let sys = Sys::of("md0")
            .set("md0/md/level", "raid0")
            .set(&flag("sda"), "0");
        let sys = sys.set(&flag("sdb"), "1").on("md0", "sda").on("md0", "sdb");
        assert_eq!(sys.provisioning(), Provisioning::Thin);
    }

    #[test]
    fn what_does_not_say_is_not_known() {
        assert_eq!(Sys::of("vda").provisioning(), Provisioning::NotKnown);
        let missing = tempfile::tempdir().unwrap();
        let device = DeviceNumber {
            major: 0,
            minor: 40,
        };
        assert_eq!(provisioning(missing.path(), device), Provisioning::NotKnown);
        // A circle, which only a made-up tree has.
        let sys = Sys::of("dm-1").on("dm-1", "dm-1");
        assert_eq!(sys.provisioning(), Provisioning::NotKnown);
    }
}
