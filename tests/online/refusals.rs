//! What it must not touch, and what it cannot make better.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate};

use super::support::bed::Plan;
use super::support::guest::Aligned;
use super::support::skip::{Here, NotHere};
use super::support::{self, Bed, GIB, MIB, guest, loopdev, tools};
use super::{bed, defrag, free};

#[test]
fn what_it_must_not_touch_is_refused() {
    let bed = support::require!(bed(&["-m", "reflink=0"]));
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, MIB, 256);
    assert_eq!(defrag(&bed, &path)["guard"], "no_reflink");
    drop(bed);
    let bed = support::require!(super::bed(&["-m", "reflink=1"]));
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, MIB, 256);
    for (flag, name) in [("+i", "immutable"), ("+a", "append_only")] {
        let chattr = |how: &str| Command::new("chattr").arg(how).arg(&path).status();
        assert!(chattr(flag).unwrap().success());
        let said = defrag(&bed, &path);
        assert_eq!(said["guard"], name, "{said}");
        assert!(chattr(&flag.replace('+', "-")).unwrap().success());
    }
    let filler = File::create(bed.path().join("filler")).unwrap();
    let size = rustix::fs::statvfs(bed.path()).unwrap();
    let most = free(&bed) - size.f_blocks * size.f_frsize / 25;
    fallocate(&filler, FallocateFlags::empty(), 0, most).unwrap();
    assert_eq!(defrag(&bed, &path)["guard"], "almost_full");
    // XFS frees the blocks of a removed file some time later (inodegc).
    filler.set_len(0).unwrap();
    fs::remove_file(bed.path().join("filler")).unwrap();
    // Islands in holes: nothing can join them.
    let sparse = bed.path().join("sparse.img");
    guest::random_direct_writes(&sparse, MIB, 1);
    assert_eq!(defrag(&bed, &sparse)["guard"], "near_ideal");
    let open = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    drop(open.unwrap());
    assert_eq!(defrag(&bed, &path)["outcome"], "improved");
}

#[test]
fn another_file_system_is_refused() {
    let bed = support::require!(Bed::ext4());
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, MIB, 256);
    assert_eq!(defrag(&bed, &path)["guard"], "not_xfs");
}

/// `xfs_io -c "chattr FLAG"`: +x for DAX, +f for no-defrag, +r for realtime.
fn chattr(path: &Path, flag: &str) {
    let mut command = Command::new("xfs_io");
    let said = command
        .args(["-c", &format!("chattr {flag}")])
        .arg(path)
        .output()
        .unwrap();
    assert!(said.status.success() && said.stderr.is_empty(), "{said:?}");
}

#[test]
fn what_is_marked_is_refused() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, MIB, 256);
    for (flag, guard, word) in [
        ("f", "no_defrag", "not to be defragmented"),
        ("x", "dax", "DAX"),
    ] {
        chattr(&path, &format!("+{flag}"));
        let said = defrag(&bed, &path);
        assert_eq!(said["guard"], guard, "{said}");
        assert!(said["reason"].as_str().unwrap().contains(word), "{said}");
        chattr(&path, &format!("-{flag}"));
    }
    assert_eq!(defrag(&bed, &path)["outcome"], "improved");
}

/// A file that the kernel swaps to.
struct Swap(PathBuf);

impl Swap {
    fn on(path: &Path) -> Here<Swap> {
        tools::run(Command::new("mkswap").arg(path))?;
        // The last to be used: whoever is short of memory shall not wait for a test's.
        tools::run(Command::new("swapon").args(["--priority", "0"]).arg(path))?;
        Ok(Swap(path.to_owned()))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if let Err(why) = tools::run(Command::new("swapoff").arg(&self.0)) {
            eprintln!("{why}");
        }
    }
}

#[test]
fn swap_space_is_refused() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let path = bed.path().join("swap file");
    guest::random_direct_writes(&path, 4 * MIB, 1024);
    let extents = tools::xfs_io_stat_nextents(&path);
    let swap = support::require!(Swap::on(&path));
    let said = defrag(&bed, &path);
    assert_eq!(said["guard"], "swap_file", "{said}");
    assert_eq!(tools::xfs_io_stat_nextents(&path), extents);
    drop(swap);
    assert_eq!(defrag(&bed, &path)["outcome"], "improved");
}

/// An XFS with a realtime device, and what holds that.
fn realtime() -> Here<(Bed, File, File)> {
    let data = tempfile::tempfile().map_err(NotHere::because)?;
    data.set_len(GIB).map_err(NotHere::because)?;
    let (device, held) = loopdev::attach(&data)?;
    let device = format!("rtdev={}", device.display());
    let mkfs = ["-m", "reflink=0,rmapbt=0", "-r", &device];
    let bed = Plan::of("xfs").mkfs(&mkfs).options(&device).make()?;
    Ok((bed, held, data))
}

#[test]
fn a_file_on_a_realtime_device_is_refused() {
    support::here_or_elsewhere!(realtime(), realtime_is_refused);
}

fn realtime_is_refused((bed, ..): (Bed, File, File)) {
    let path = bed.path().join("vm.img");
    File::create(&path).unwrap();
    chattr(&path, "+r");
    let file = guest::open_direct(&path).unwrap();
    let block = Aligned::zeroed(MIB as usize);
    for n in [2, 0, 1] {
        file.write_all_at(&block, n * 2 * MIB).unwrap();
    }
    let said = defrag(&bed, &path);
    assert_eq!(said["guard"], "realtime", "{said}");
    assert!(
        said["reason"].as_str().unwrap().contains("realtime"),
        "{said}"
    );
}
