//! The conditions for a run on an image. They are checked immediately before it and change nothing.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, OFlags, StatVfsMountFlags, fstat, fstatvfs, openat};

use super::gate::Gate;
use super::pressure::{Asked, Found, Gauge, Pressure};
use super::refusal::{Halt, Refusal};
use super::{Host, KernelCheck, holders, kernels};
use crate::config::settings::Defrag;
use crate::discover::mounts::{Mount, MountTable};
use crate::model::borders::BorderCount;
use crate::model::sampling::SAMPLED_FROM;
use crate::model::{
    Borders, Bytes, Engine, Extent, ExtentCount, FilesystemKind, Obstacle, Outlook, Share, Stop,
    swap_stall,
};
use crate::probe::extents::{MapReader, ReadPace};
use crate::probe::open as opening;
use crate::sys::{fsxattr, geometry, locks, mounts};

/// FS_XFLAG_* (include/uapi/linux/fs.h).
const REALTIME: u32 = 0x1;
const IMMUTABLE: u32 = 0x8;
const APPEND: u32 = 0x10;
const NODEFRAG: u32 = 0x2000;
const DAX: u32 = 0x8000;

/// Minimum age of the last modification: ten ticks of the slowest kernel ([`gate`](super::gate)).
const SETTLED: Duration = Duration::from_millis(100);
/// Free space that the online engine needs: two segments, and what the allocator sets aside.
const ROOM: Bytes = Bytes(64 << 20);
/// How long our own probe may have the image open; also the time limit for [`check_settled`].
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a process not shown by /proc may have it open: a killed process has no files there
/// while the kernel still closes them (do_exit, kernel/exit.c).
const UNSEEN_TIMEOUT: Duration = Duration::from_secs(5);
const MAP_TIME: Duration = Duration::from_secs(60);
/// Maximum length of an extent on XFS (BMBT_BLOCKCOUNT_BITLEN): 2^21 blocks, here of 4 KiB.
const LONGEST_EXTENT: u64 = 8 << 30;

/// An image, held by a descriptor.
#[derive(Debug)]
pub struct Target {
    /// Absolute, canonical, and that of the descriptor when it was opened.
    pub path: PathBuf,
    /// Its directory.
    pub directory: OwnedFd,
    /// Open for reading.
    pub file: File,
    /// The mount of its file system.
    pub mount: Mount,
}

impl Target {
    /// Whether the image was removed, or its file system unmounted lazily, in which case the run
    /// keeps the space or the device in use. Does not block on the image: fstat(2) takes none of
    /// its locks on XFS (xfs_vn_getattr, fs/xfs/xfs_iops.c), and procfs uses no other file system.
    pub fn is_gone(&self, host: &Host) -> bool {
        if fstat(&self.file).is_ok_and(|stat| stat.st_nlink == 0) {
            return true;
        }
        let ours = mounts::of_descriptor(&host.proc, self.file.as_fd());
        let all = mounts::read(&host.proc);
        matches!((ours, all), (Ok(ours), Ok(all)) if all.iter().all(|mount| mount.id != ours))
    }
}

/// Measures of an image that passed [`check_quick`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Its extents.
    pub extents: ExtentCount,
    /// What it occupies, which is what is copied.
    pub allocated: Bytes,
    /// Predicted stall of the final swap.
    pub stall: Duration,
}

/// Opens an image, following no symbolic link in any part of its path. Fails if it is not a regular
/// file on a writable XFS, or has another path.
pub fn open(path: &Path, host: &Host) -> Result<Target, Refusal> {
    let (directory, file) = walk(path)?;
    let held = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    // Byte by byte: `/a//b` and `/a/b` are equal as paths, but xfs_fsr takes text.
    if held.as_os_str() != path.as_os_str() {
        return Err(Refusal::Elsewhere(held));
    }
    let table = MountTable::new(mounts::read(&host.proc)?);
    let id = mounts::of_descriptor(&host.proc, file.as_fd());
    let opened_on = id.ok().and_then(|id| table.with_id(id));
    let mount = opened_on
        .or_else(|| table.of(path))
        .cloned()
        .ok_or_else(|| Refusal::Unreadable("no mount leads to it".to_owned()))?;
    if mount.kind() != FilesystemKind::Xfs {
        return Err(Refusal::NotXfs(mount.type_name));
    }
    if fstatvfs(&file)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(Refusal::ReadOnly);
    }
    Ok(Target {
        path: path.to_owned(),
        directory,
        file,
        mount,
    })
}

fn walk(path: &Path) -> Result<(OwnedFd, File), Refusal> {
    let name = path.file_name().ok_or(Refusal::NotAbsolute)?;
    let above = path.parent().ok_or(Refusal::NotAbsolute)?;
    let access = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = openat(CWD, "/", access, Mode::empty())?;
    let mut so_far = PathBuf::from("/");
    let mut components = above.components();
    if components.next() != Some(Component::RootDir) {
        return Err(Refusal::NotAbsolute);
    }
    for component in components {
        let Component::Normal(part) = component else {
            return Err(Refusal::NotAbsolute);
        };
        so_far.push(part);
        at = openat(&at, part, access, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&at)?.st_mode) == FileType::Symlink {
            return Err(Refusal::Link(so_far));
        }
    }
    let (file, _) =
        opening::regular_file(at.as_fd(), name).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => Refusal::NotAFile(error.to_string()),
            _ => error.into(),
        })?;
    // An O_PATH descriptor cannot be listed.
    let list = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(&at, ".", list, Mode::empty())?;
    Ok((directory, file))
}

/// Checks the conditions that can be checked at any time: flags, space, the length of the swap.
/// Returns the first that does not hold as an error.
pub fn check_quick(target: &Target, limits: &Defrag, host: &Host) -> Result<Checked, Refusal> {
    let attributes = fsxattr::attributes(&target.file)?;
    check_flags(attributes.flags)?;
    check_swap(target, host)?;
    let extents = at_least_two(attributes.extents)?;
    let allocated = Bytes(target.file.metadata()?.blocks().saturating_mul(512));
    check_space(target, allocated, limits.keep_free)?;
    let geometry = geometry::geometry(&target.file)?;
    let stall = swap_stall(extents, geometry.flags & geometry::FLAG_RMAPBT != 0);
    if stall > limits.max_swap_stall {
        let most = limits.max_swap_stall;
        return Err(Refusal::SwapStall { stall, most });
    }
    Ok(Checked {
        extents,
        allocated,
        stall,
    })
}

fn check_flags(marks: u32) -> Result<(), Refusal> {
    let flags = [
        (IMMUTABLE, Obstacle::Immutable),
        (APPEND, Obstacle::AppendOnly),
        (NODEFRAG, Obstacle::NoDefrag),
        (REALTIME, Obstacle::Realtime),
    ];
    let mut marked = flags.into_iter().filter(|(bit, _)| marks & bit != 0);
    match marked.next() {
        Some((_, obstacle)) => Err(Refusal::Forbidden(obstacle)),
        None => Ok(()),
    }
}

fn check_swap(target: &Target, host: &Host) -> Result<(), Refusal> {
    match is_swap(&host.proc, &target.path) {
        true => Err(Refusal::Forbidden(Obstacle::SwapFile)),
        false => Ok(()),
    }
}

fn at_least_two(extents: u32) -> Result<ExtentCount, Refusal> {
    let extents = ExtentCount(extents.into());
    match extents.0 {
        0 | 1 => Err(Refusal::NearIdeal(extents)),
        _ => Ok(extents),
    }
}

/// Checks the conditions of the online engine, as [`check_quick`], but the image may be in use and
/// is copied segment by segment. Returns its extents, or the first condition that does not hold.
pub fn check_online(target: &Target, limits: &Defrag, host: &Host) -> Result<ExtentCount, Refusal> {
    check_kernel(limits, host)?;
    let attributes = fsxattr::attributes(&target.file)?;
    check_flags(attributes.flags)?;
    check_swap(target, host)?;
    if attributes.flags & DAX != 0 {
        return Err(Refusal::Forbidden(Obstacle::Dax));
    }
    if geometry::geometry(&target.file)?.flags & geometry::FLAG_REFLINK == 0 {
        return Err(Refusal::NoReflink);
    }
    let extents = at_least_two(attributes.extents)?;
    let size = fstatvfs(&target.file)?;
    if u128::from(size.f_bavail) * 20 < u128::from(size.f_blocks) {
        return Err(Refusal::TooFull);
    }
    check_space(target, ROOM, limits.keep_free)?;
    Ok(extents)
}

fn check_kernel(limits: &Defrag, host: &Host) -> Result<(), Refusal> {
    if host.kernel == KernelCheck::Overridden {
        return Ok(());
    }
    let sources = kernels::Sources::of(&host.proc);
    let judgement = kernels::judge_host(Engine::Online, &sources, &limits.trusted_kernels);
    judgement
        .refusal()
        .map_or(Ok(()), |why| Err(Refusal::Kernel(why)))
}

/// Checks that there is enough free space to continue.
pub(super) fn check_room(target: &Target, keep_free: Share) -> Result<(), Refusal> {
    check_space(target, ROOM, keep_free)
}

pub(super) fn check_space(target: &Target, needs: Bytes, keep_free: Share) -> Result<(), Refusal> {
    let size = fstatvfs(&target.file)?;
    let bytes = |blocks: u64| u128::from(blocks) * u128::from(size.f_frsize);
    let (free, total) = (bytes(size.f_bavail), bytes(size.f_blocks));
    let keeps = total * u128::from(keep_free.0) / u128::from(Share::WHOLE.0);
    if free >= u128::from(needs.0) + keeps {
        return Ok(());
    }
    let bytes = |number: u128| Bytes(u64::try_from(number).unwrap_or(u64::MAX));
    Err(Refusal::NoSpace {
        needs,
        free: bytes(free),
        keeps: (bytes(keeps), keep_free),
    })
}

/// Checks the I/O pressure; takes a second if it seems too high.
pub(super) fn check_pressure(gauge: &mut Gauge, most: u32, host: &Host) -> Result<(), Refusal> {
    judge_pressure(gauge.before_a_run(host, Asked::OrHost, most), most)
}

/// Checks the pressure again without delay, because processes may wait at the gate.
pub(super) fn recheck_pressure(gauge: &mut Gauge, most: u32, host: &Host) -> Result<(), Refusal> {
    judge_pressure(gauge.look(host, Asked::OrHost, true), most)
}

fn judge_pressure(found: Option<Found>, most: u32) -> Result<(), Refusal> {
    let counts = found.map(|found| found.counts);
    match counts.filter(|counts| counts.is_above(most)) {
        Some(Pressure(is)) => Err(Refusal::Pressure { is, most }),
        None => Ok(()),
    }
}

/// /proc/swaps lists swap files in its first column, with blanks escaped as in mount tables.
pub(super) fn is_swap(proc: &Path, path: &Path) -> bool {
    let Ok(text) = std::fs::read(proc.join("swaps")) else {
        return false;
    };
    text.split(|byte| *byte == b'\n')
        .skip(1)
        .filter_map(|line| line.split(|byte| matches!(byte, b' ' | b'\t')).next())
        .any(|name| mounts::unescape(name) == path.as_os_str().as_encoded_bytes())
}

/// Checks behind a raised gate, serving it, that no other process has the image open.
pub fn check_unused(target: &Target, gate: &mut Gate, host: &Host) -> Result<(), Refusal> {
    let began = Instant::now();
    loop {
        let_in(gate)?;
        let in_use = locks::in_use(&target.file)?;
        if in_use.qemu.any() {
            let holder = holders::holder_of(&host.proc, &target.path);
            return Err(holder.map_or(Refusal::QemuLock, |by| Refusal::InUse(Some(by))));
        }
        match in_use.open {
            Some(false) => return Ok(()),
            None => return Err(Refusal::UseUnknown),
            // Possibly a short probe of our own.
            Some(true) if began.elapsed() < PROBE_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Some(true) => {
                let holder = holders::holder_of(&host.proc, &target.path);
                if holder.is_some() || began.elapsed() >= UNSEEN_TIMEOUT {
                    return Err(Refusal::InUse(holder));
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Lets all waiting processes open the image: the run has not begun. One that is not ours uses it.
fn let_in(gate: &mut Gate) -> Result<(), Refusal> {
    match gate.let_all_in()? {
        Some(process) => Err(Refusal::InUse(Some(process))),
        None => Ok(()),
    }
}

/// Waits, for a limited time, until the last modification is old enough ([`gate`](super::gate)).
pub fn check_settled(target: &Target, gate: &mut Gate) -> Result<(), Refusal> {
    let began = Instant::now();
    while !is_settled(&target.file)? {
        if began.elapsed() > PROBE_TIMEOUT {
            return Err(Refusal::Changing);
        }
        std::thread::sleep(Duration::from_millis(10));
        let_in(gate)?;
    }
    Ok(())
}

fn is_settled(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let is_old = |seconds: i64, nanoseconds: i64| {
        let at = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        // Also one in the future: that time will not come again soon.
        i128::try_from(now).is_ok_and(|now| (now - at).unsigned_abs() > SETTLED.as_nanos())
    };
    Ok(is_old(metadata.mtime(), metadata.mtime_nsec())
        && is_old(metadata.ctime(), metadata.ctime_nsec()))
}

/// Reads the map as xfs_fsr does, serving the gate and calling `stop`. Returns its extents by
/// border. Fails if blocks are shared, the gain is little, another process opens the image, the run
/// is stopped, or reading takes too long.
pub fn check_map(
    target: &Target,
    extents: ExtentCount,
    gate: &mut Gate,
    stop: &mut dyn FnMut() -> Option<Stop>,
) -> Result<Borders, Halt> {
    let deadline = Instant::now() + MAP_TIME;
    let mut came = Ok(());
    let enough = Cell::new(false);
    let mut beat = || {
        if came.is_ok() {
            let stopped = stop().map_or(Ok(()), |why| Err(Halt::Stopped(why)));
            came = stopped.and_then(|()| Ok(let_in(gate)?));
        }
        enough.set(came.is_err() || Instant::now() > deadline);
    };
    let (mut shared, mut pieces, mut end) = (false, 0_u64, Bytes(u64::MAX));
    let mut count = BorderCount::default();
    let visit = |extent: Extent| {
        count.push(&extent);
        shared |= extent.flags.shared;
        pieces += u64::from(extent.logical != end);
        end = extent.end();
        match shared || enough.get() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    MapReader::new().read(&target.file, Bytes(0), ReadPace::QUICK, visit, &mut beat)?;
    came?;
    if Instant::now() > deadline {
        return Err(Refusal::MapTooLong(extents).into());
    }
    if shared {
        return Err(Refusal::Shared.into());
    }
    let ideal = pieces.saturating_add(breaks(target)?);
    if extents.0 <= ideal {
        return Err(Refusal::NearIdeal(extents).into());
    }
    worth_it(Outlook::of_map(&count.borders), Engine::XfsFsr)?;
    Ok(count.borders)
}

/// Samples a long map before the online engine reads all of it. Fails if the gain is surely little.
pub(super) fn check_gain(target: &Target, extents: ExtentCount) -> Result<(), Refusal> {
    if extents <= SAMPLED_FROM {
        return Ok(());
    }
    let outlook = MapReader::new().sample(&target.file, extents, &mut || {})?;
    worth_it(outlook, Engine::Online)
}

/// Refuses a long map if the gain is surely little. With a short map a run costs little, too.
fn worth_it(outlook: Outlook, engine: Engine) -> Result<(), Refusal> {
    match outlook.extents > SAMPLED_FROM && outlook.is_little(engine) {
        true => Err(Refusal::LittleGain(outlook.why_little(&[engine]))),
        false => Ok(()),
    }
}

/// How many more extents than contiguous pieces a file of its size must have: an extent has a
/// maximum length and lies within one allocation group.
fn breaks(target: &Target) -> io::Result<u64> {
    let geometry = geometry::geometry(&target.file)?;
    let group = u64::from(geometry.group_blocks) * u64::from(geometry.block_size);
    let allocated = target.file.metadata()?.blocks().saturating_mul(512);
    Ok(allocated / group.clamp(1, LONGEST_EXTENT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn others_who_wait_for_the_disks_are_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let host = Host {
            proc: root.path().to_owned(),
            sys: root.path().to_owned(),
            hints: root.path().to_owned(),
            kernel: KernelCheck::Judge,
        };
        let mut gauge = Gauge::new("0:40".parse().unwrap());
        assert_eq!(check_pressure(&mut gauge, 1, &host), Ok(()));
        fs::create_dir(root.path().join("pressure")).unwrap();
        let text = "some avg10=40.50 avg60=0.00 avg300=0.00 total=0\n";
        fs::write(root.path().join("pressure/io"), text).unwrap();
        for refusal in [
            check_pressure(&mut gauge, 40, &host).unwrap_err(),
            recheck_pressure(&mut gauge, 40, &host).unwrap_err(),
        ] {
            assert_eq!(
                refusal.to_string(),
                "I/O pressure too high: 40.5 %, and defrag.max_io_pressure is 40"
            );
        }
        assert_eq!(check_pressure(&mut gauge, 41, &host), Ok(()));
    }

    /// A kernel without realtime devices has no such file to try it on.
    #[test]
    fn each_mark_is_a_refusal_of_its_own() {
        let none_of_them = !(IMMUTABLE | APPEND | NODEFRAG | REALTIME);
        assert_eq!(check_flags(none_of_them), Ok(()));
        let obstacles = [
            (0x1, Obstacle::Realtime),
            (0x8, Obstacle::Immutable),
            (0x10, Obstacle::AppendOnly),
            (0x2000, Obstacle::NoDefrag),
        ];
        for (mark, obstacle) in obstacles {
            assert_eq!(check_flags(mark | 0x2), Err(Refusal::Forbidden(obstacle)));
        }
    }

    #[test]
    fn what_lies_with_one_engine_is_left_to_another() {
        for refusal in [
            Refusal::InUse(None),
            Refusal::Shared,
            Refusal::MapTooLong(ExtentCount(1)),
            Refusal::Forbidden(Obstacle::Dax),
            Refusal::NoEngine,
        ] {
            assert!(refusal.code().lies_with_engine(), "{refusal}");
        }
        // A file that nothing is to touch, and one at which nothing is to be gained.
        for refusal in [
            Refusal::Forbidden(Obstacle::Immutable),
            Refusal::Forbidden(Obstacle::SwapFile),
            Refusal::OtherRun,
            Refusal::ReadOnly,
            Refusal::TooFull,
            Refusal::NearIdeal(ExtentCount(1)),
            Refusal::Pressure { is: 50.0, most: 40 },
        ] {
            assert!(!refusal.code().lies_with_engine(), "{refusal}");
        }
    }

    #[test]
    fn swap_files_are_known() {
        let root = tempfile::tempdir().unwrap();
        assert!(!is_swap(root.path(), Path::new("/swap file")));
        let text = "Filename\tType\n/dev/sda2 partition 8 0 -2\n/swap\\040file\tfile\t8\t0\n";
        fs::write(root.path().join("swaps"), text).unwrap();
        assert!(is_swap(root.path(), Path::new("/swap file")));
        assert!(!is_swap(root.path(), Path::new("/swap")));
    }
}
