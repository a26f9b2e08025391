//! A mounted file system: a sparse file, a loop device, a mount point.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::rundir::{self, Place};
use super::skip::{Here, NotHere};
use super::{GIB, loopdev, tools};

/// What a bed shall be.
#[derive(Debug, Clone)]
pub struct Plan {
    kind: &'static str,
    size: u64,
    mkfs: Vec<String>,
    options: String,
    place: Place,
}

impl Plan {
    /// A file system of type `kind`: `xfs`, `ext4`, `btrfs`. 2 GiB with what its mkfs sets by
    /// default, in memory if there is plenty.
    pub fn of(kind: &'static str) -> Plan {
        Plan {
            kind,
            size: 2 * GIB,
            mkfs: Vec::new(),
            options: String::new(),
            place: Place::quick(),
        }
    }

    /// How large the file system is. Only what is written takes room. `mkfs.xfs` refuses less than
    /// 300 MiB.
    pub fn size(mut self, bytes: u64) -> Plan {
        self.size = bytes;
        self
    }

    /// Further arguments of its mkfs.
    pub fn mkfs(mut self, arguments: &[&str]) -> Plan {
        self.mkfs.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// Mount options (`-o`).
    pub fn options(mut self, options: &str) -> Plan {
        self.options = options.to_owned();
        self
    }

    /// Where its image lies: [`Place::Disk`] for more data than memory should hold, or where the
    /// time that a real disk takes matters.
    pub fn place(mut self, place: Place) -> Plan {
        self.place = place;
        self
    }

    /// Makes and mounts it.
    pub fn make(&self) -> Here<Bed> {
        let dir = Dir::new(self.place)?;
        let image = self.image(&dir.0)?;
        Bed::on(dir, &image, self)
    }

    /// Makes the image in `dir`, not mounted.
    pub(super) fn image(&self, dir: &Path) -> Here<PathBuf> {
        let image = image_in(dir);
        File::create(&image)
            .and_then(|file| file.set_len(self.size))
            .map_err(|e| NotHere::because(format_args!("{}: {e}", image.display())))?;
        let mkfs = format!("mkfs.{}", self.kind);
        tools::run(undisturbed(&mkfs).arg("-q").args(&self.mkfs).arg(&image))?;
        Ok(image)
    }
}

/// A program that sees no beds. mkfs.btrfs looks at what is behind each loop device that is mounted:
/// it would fail with the one that goes at that moment, and hang with the one that is stalled.
fn undisturbed(program: &str) -> Command {
    // In a mount namespace of its own, so that nothing is unmounted for others.
    const SCRIPT: &str = r#"
        for point in $(cut --delimiter=' ' --fields=2 /proc/self/mounts); do
            case $point in
            */fragwatch-bed.*) umount --lazy --no-canonicalize "$point" 2>/dev/null ;;
            esac
        done
        exec "$0" "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT, program]);
    command
}

/// Where the image lies in `dir`. The kernel's list of loop devices shows the name; it tells whose
/// it is.
pub(super) fn image_in(dir: &Path) -> PathBuf {
    dir.join(format!("image-{}", std::process::id()))
}

/// A directory that goes with the last thing in it.
#[derive(Debug)]
pub(super) struct Dir(pub(super) PathBuf);

impl Dir {
    pub(super) fn new(place: Place) -> Here<Dir> {
        if !rustix::process::geteuid().is_root() {
            return Err(NotHere::because("mounting needs root"));
        }
        rundir::new_dir(place).map(Dir).map_err(NotHere::because)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        rundir::remove(&self.0);
    }
}

/// A file system of its own for a test. Unmounted and removed when it goes out of scope, and when
/// the test process dies.
#[derive(Debug)]
pub struct Bed {
    kind: &'static str,
    options: String,
    mount_point: PathBuf,
    image: PathBuf,
    device: PathBuf,
    /// Keeps the loop device while it is not mounted; nothing while it is.
    held: Option<File>,
    _dir: Dir,
}

impl Bed {
    /// XFS as mkfs.xfs makes it by default.
    pub fn xfs() -> Here<Bed> {
        Plan::of("xfs").make()
    }

    /// XFS with arguments for mkfs.xfs: `&["-m", "rmapbt=1"]`, `&["-m", "reflink=0"]`,
    /// `&["-i", "nrext64=1"]`.
    pub fn xfs_with(mkfs: &[&str]) -> Here<Bed> {
        Plan::of("xfs").mkfs(mkfs).make()
    }

    /// XFS of `bytes`, which may be far more than the disk has.
    pub fn xfs_sized(bytes: u64) -> Here<Bed> {
        Plan::of("xfs").size(bytes).make()
    }

    /// XFS in its old format without checksums. Newer kernels can be, and often are, built
    /// without it: see `super::elsewhere`.
    pub fn xfs_v4() -> Here<Bed> {
        Bed::xfs_with(&["-m", "crc=0"])
    }

    /// ext4.
    pub fn ext4() -> Here<Bed> {
        Plan::of("ext4").mkfs(&["-F"]).make()
    }

    /// btrfs.
    pub fn btrfs() -> Here<Bed> {
        Plan::of("btrfs").make()
    }

    /// Mounts `image`.
    pub(super) fn on(dir: Dir, image: &Path, plan: &Plan) -> Here<Bed> {
        let mount_point = dir.0.join("mnt");
        let (device, held) = OpenOptions::new()
            .read(true)
            .write(true)
            .open(image)
            .and_then(|file| fs::create_dir(&mount_point).map(|()| file))
            .map_err(|e| NotHere::because(format_args!("{}: {e}", image.display())))
            .and_then(|file| loopdev::attach(&file))?;
        let mut bed = Bed {
            kind: plan.kind,
            options: plan.options.clone(),
            mount_point,
            image: image.to_owned(),
            device,
            held: Some(held),
            _dir: dir,
        };
        bed.try_mount().map_err(|e| {
            let Plan { kind, mkfs, .. } = plan;
            let with = mkfs.join(" ");
            NotHere::because(format_args!("the kernel does not mount {kind} {with}: {e}"))
        })?;
        Ok(bed)
    }

    fn try_mount(&mut self) -> rustix::io::Result<()> {
        let options = CString::new(self.options.as_str()).expect("options hold no NUL");
        mount(
            &self.device,
            &self.mount_point,
            self.kind,
            MountFlags::empty(),
            options.as_c_str(),
        )?;
        self.held = None;
        Ok(())
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// The file that its blocks are in.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Its block device: `/dev/loop3`. Stays the same as long as the bed lives.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// The kernel's name of it, as in /sys/block and /sys/fs/xfs: `loop3`.
    pub fn loop_device(&self) -> &str {
        let name = self.device.file_name().and_then(OsStr::to_str);
        name.expect("its name is loop and a number")
    }

    /// Makes it read-only. XFS writes everything out.
    pub fn remount_ro(&self) {
        mount_remount(&self.mount_point, MountFlags::RDONLY, c"").expect("it becomes read-only");
    }

    /// Writes out everything that is in memory only.
    pub fn sync(&self) {
        let root = File::open(&self.mount_point).expect("it is mounted");
        rustix::fs::syncfs(root).expect("it is written out");
    }

    /// Unmounts it. The device stays, for tools that want it unmounted.
    ///
    /// # Panics
    /// If somebody has a file of it open.
    pub fn umount(&mut self) {
        let held = File::open(&self.device).expect("its device opens");
        unmount_patiently(&self.mount_point).expect("nobody has a file of it open");
        self.held = Some(held);
    }

    /// Unmounts it from the directory, whoever has files of it open (umount2(2), MNT_DETACH).
    pub fn umount_lazily(&mut self) {
        self.held = Some(File::open(&self.device).expect("its device opens"));
        let lazily = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(&self.mount_point, lazily).expect("it is mounted");
    }

    /// Whether the kernel still has it, mounted or not.
    pub fn is_alive(&self) -> bool {
        Path::new(&format!("/sys/fs/{}/{}", self.kind, self.loop_device())).exists()
    }

    /// Mounts it again after [`Bed::umount`].
    pub fn mount(&mut self) {
        self.try_mount().expect("it mounts again");
    }

    /// Unmounts it and waits until it is gone. It lives on as long as it is mounted in another namespace
    /// (see `undisturbed`): it would come back as it was, and what lies on the disk is not complete.
    pub fn umount_everywhere(&mut self) {
        self.umount();
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.is_alive() {
            assert!(
                Instant::now() < deadline,
                "{} does not go",
                self.device.display()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Unmounts and mounts: the surest way that nothing of it is in memory any more.
    pub fn cold(&mut self) {
        self.umount_everywhere();
        self.mount();
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.held.is_none() {
            unmount_at_last(&self.mount_point);
        }
        self.held = None;
    }
}

/// Unmounts. Patient: a process that was told to end a moment ago may still hold a file, and a
/// stranger may just be looking.
fn unmount_patiently(mount_point: &Path) -> rustix::io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match unmount(mount_point, UnmountFlags::empty()) {
            Err(Errno::BUSY) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            ended => return ended,
        }
    }
}

/// Unmounts, whoever is against it.
pub(super) fn unmount_at_last(mount_point: &Path) {
    if let Err(e) = unmount_patiently(mount_point) {
        eprintln!("{}: {e}", mount_point.display());
        // It goes when whoever uses it goes.
        let _ = unmount(mount_point, UnmountFlags::DETACH);
    }
}

/// Writes `what` to drop_caches: 1 pages, 2 inodes and what hangs on them, 3 both.
pub fn drop_caches(what: u8) {
    fs::write("/proc/sys/vm/drop_caches", what.to_string()).expect("we are root");
}

/// Writes a configuration beside the file system: engines that nothing holds back, and these keys of
/// `[defrag]`.
pub fn config(bed: &Bed, keys: &str) -> PathBuf {
    let all = [
        ("bandwidth", "\"64GiB/s\""),
        ("max_io_pressure", "100"),
        ("max_swap_stall", "\"10m\""),
    ];
    let mut text = String::from("[defrag]\n");
    for (key, value) in all {
        if !keys.contains(key) {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    text.push_str(keys);
    let name = format!("fragwatch-{:x}.toml", keys.len());
    let path = bed.path().parent().unwrap().join(name);
    fs::write(&path, text).unwrap();
    path
}
