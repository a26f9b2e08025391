//! How much others wait for the disks: pressure stall information (Documentation/accounting/psi.rst).
//!
//! The number of the whole host, /proc/pressure/io, counts a run itself: xfs_fsr does nothing but
//! wait for the disk, so it alone would make 90 % of it. While it works, the control groups beside
//! our own are asked instead, and the one that waits most counts. Where there are none, on hosts
//! without cgroup v2, only the host can be asked, and only while no run works.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sys::mounts;

/// Hundredths of the last ten seconds in which somebody waited for a disk.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Pressure(pub f32);

/// Groups that are read at one level at most.
const MOST_GROUPS: usize = 1000;

/// Pressure of the whole host; nothing where the kernel does not say. `proc` is where procfs is
/// mounted.
#[must_use]
pub fn of_host(proc: &Path) -> Option<Pressure> {
    read(&proc.join("pressure/io"))
}

/// Pressure of those who are not in our control group: of the group that has the most.
#[must_use]
pub fn of_others(proc: &Path) -> Option<Pressure> {
    let (root, own) = own_group(proc)?;
    let mut at = root;
    let mut worst: Option<Pressure> = None;
    for name in own.iter() {
        let entries = fs::read_dir(&at).ok()?.flatten().take(MOST_GROUPS);
        let others = entries.filter(|entry| entry.file_name() != name);
        for pressure in others.filter_map(|entry| read(&entry.path().join("io.pressure"))) {
            worst = Some(worst.map_or(pressure, |w| if w < pressure { pressure } else { w }));
        }
        at.push(name);
    }
    worst
}

/// What a run that is to begin would meet: the others, or the host where they cannot be told apart,
/// unless a run is what it is waiting for.
#[must_use]
pub fn before_a_run(proc: &Path, another_works: bool) -> Option<Pressure> {
    let host = || (!another_works).then(|| of_host(proc)).flatten();
    of_others(proc).or_else(host)
}

/// Where cgroup v2 is mounted, and our group in it.
fn own_group(proc: &Path) -> Option<(PathBuf, PathBuf)> {
    let mounts = mounts::read(proc).ok()?;
    let mount = mounts.into_iter().find(|m| m.type_name == "cgroup2")?;
    let groups = fs::read_to_string(proc.join("self/cgroup")).ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some((mount.point, PathBuf::from(own)))
}

fn read(file: &Path) -> Option<Pressure> {
    parse(&fs::read_to_string(file).ok()?)
}

/// `some avg10=5.02 avg60=5.24 avg300=3.68 total=437345315`
fn parse(text: &str) -> Option<Pressure> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let average = some.split(' ').find_map(|f| f.strip_prefix("avg10="))?;
    average.parse().ok().map(Pressure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn some(average: &str) -> String {
        format!("some avg10={average} avg60=99.00 avg300=1.00 total=3\nfull avg10=98.00 total=1\n")
    }

    #[test]
    fn others_are_all_groups_but_our_own() {
        let root = tempfile::tempdir().unwrap();
        let (proc, groups) = (root.path().join("proc"), root.path().join("cgroup"));
        let mount = format!("30 1 0:29 / {} rw - cgroup2 c rw\n", groups.display());
        write(&proc, "self/mountinfo", &mount);
        write(
            &proc,
            "self/cgroup",
            "1:name=x:/y\n0::/system.slice/fragwatch.service\n",
        );
        write(&proc, "pressure/io", &some("93.10"));
        assert_eq!(of_host(&proc), Some(Pressure(93.10)));
        assert_eq!(of_others(&proc), None);
        write(&groups, "io.pressure", &some("93.10"));
        write(&groups, "system.slice/io.pressure", &some("92.00"));
        let own = "system.slice/fragwatch.service/io.pressure";
        write(&groups, own, &some("91.00"));
        write(
            &groups,
            "system.slice/db.service/io.pressure",
            &some("3.50"),
        );
        assert_eq!(of_others(&proc), Some(Pressure(3.5)));
        write(&groups, "machine.slice/io.pressure", &some("12.00"));
        write(&groups, "odd.slice/io.pressure", "some nonsense\n");
        assert_eq!(of_others(&proc), Some(Pressure(12.0)));
    }

    #[test]
    fn a_kernel_that_does_not_say_is_no_pressure_of_zero() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(of_host(root.path()), None);
        assert_eq!(of_others(root.path()), None);
    }
}
