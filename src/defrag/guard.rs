//! The conditions for a run on an image. They are checked immediately before it and change nothing.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, OFlags, StatVfsMountFlags, fstat, fstatvfs, openat};
use rustix::io::Errno;

use super::gate::Gate;
use super::pressure::{Asked, Gauge, before_runs};
use super::{HostInterfaces, KernelCheck, holders, kernels};
use crate::config::settings::Defrag;
use crate::discover::mounts::{Mount, MountTable};
use crate::model::borders::BorderCount;
use crate::model::path::shown;
use crate::model::sampling::SAMPLED_FROM;
use crate::model::{
    Borders, Bytes, Engine, Extent, ExtentCount, FilesystemKind, NamedProcess, Outlook, ReasonCode,
    Refusal, RunOutcome, Share, Stop, swap_stall,
};
use crate::probe::extents::{MapReader, ReadPace};
use crate::probe::{open as opening, reason, space};
use crate::sys::fsxattr::{self, Attributes};
use crate::sys::{geometry, locks, mounts};

/// FS_XFLAG_* (include/uapi/linux/fs.h).
const REALTIME: u32 = 0x1;
/// Cannot be written, renamed or removed (chattr(1), `i`).
pub(crate) const IMMUTABLE: u32 = 0x8;
const APPEND: u32 = 0x10;
const NODEFRAG: u32 = 0x2000;
/// Mapped from persistent memory.
pub(crate) const DAX: u32 = 0x8000;

const LIST: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// Minimum age of the last modification: ten ticks of the slowest kernel ([`gate`](super::gate)).
const SETTLED: Duration = Duration::from_millis(100);
/// Free space that the online engine needs: two segments, and what the allocator sets aside.
const ROOM: Bytes = Bytes(64 << 20);
/// How long our own probe may have the image open; also the time limit for [`check_settled`].
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a process not shown by /proc may have it open: a killed process has no files there
/// while the kernel still closes them (do_exit, kernel/exit.c).
const UNSEEN_TIMEOUT: Duration = Duration::from_secs(5);
const MAP_TIME: Duration = Duration::from_secs(60);
/// Time limit for reading the free space.
const SPACE_TIME: Duration = Duration::from_secs(10);
/// Maximum length of an extent on XFS (BMBT_BLOCKCOUNT_BITLEN): 2^21 blocks, here of 4 KiB.
const LONGEST_EXTENT: u64 = 8 << 30;

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::new(ReasonCode::Unreadable, reason(&error))
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(error: rustix::io::Errno) -> Refusal {
        io::Error::from(error).into()
    }
}

impl From<io::Error> for RunOutcome {
    fn from(error: io::Error) -> RunOutcome {
        Refusal::from(error).into()
    }
}

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
    pub fn is_gone(&self, host: &HostInterfaces) -> bool {
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
pub fn open(path: &Path, host: &HostInterfaces) -> Result<Target, Refusal> {
    let target = open_anywhere(path, host)?;
    check_xfs(&target.mount)?;
    Ok(target)
}

/// The same on any file system.
pub(super) fn open_anywhere(path: &Path, host: &HostInterfaces) -> Result<Target, Refusal> {
    let (above, name) = walk(path)?;
    let (file, _) =
        opening::regular_file(above.as_fd(), name).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => Refusal::new(ReasonCode::NotAFile, error.to_string()),
            _ => error.into(),
        })?;
    // An O_PATH descriptor cannot be listed.
    let directory = openat(&above, ".", LIST, Mode::empty())?;
    Ok(Target {
        path: path.to_owned(),
        directory,
        mount: check_place(path, &file, host)?,
        file,
    })
}

/// Opens a directory as [`open`] does an image.
pub fn open_directory(path: &Path, host: &HostInterfaces) -> Result<(File, Mount), Refusal> {
    let (above, name) = walk(path)?;
    let opened = openat(above, name, LIST | OFlags::NOFOLLOW, Mode::empty());
    let directory: File = match opened {
        Err(Errno::NOTDIR | Errno::LOOP) => {
            let text = "is no directory, or a symbolic link to one: name it by its real path";
            return Err(Refusal::new(ReasonCode::Link, text));
        }
        other => other?.into(),
    };
    let mount = check_place(path, &directory, host)?;
    check_xfs(&mount)?;
    Ok((directory, mount))
}

fn check_xfs(mount: &Mount) -> Result<(), Refusal> {
    if mount.kind() == FilesystemKind::Xfs {
        return Ok(());
    }
    let text = format!("lies on {}, and only XFS is defragmented", mount.type_name);
    Err(Refusal::new(ReasonCode::NotXfs, text))
}

/// The mount that an open file or directory lies on, writable. Fails if it has another path.
fn check_place(path: &Path, file: &File, host: &HostInterfaces) -> Result<Mount, Refusal> {
    let held = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    // Byte by byte: `/a//b` and `/a/b` are equal as paths, but xfs_fsr takes text.
    if held.as_os_str() != path.as_os_str() {
        let text = format!("the kernel knows it as {}", shown(&held));
        return Err(Refusal::new(ReasonCode::Elsewhere, text));
    }
    let table = MountTable::new(mounts::read(&host.proc)?);
    let id = mounts::of_descriptor(&host.proc, file.as_fd());
    let opened_on = id.ok().and_then(|id| table.with_id(id));
    let mount = opened_on
        .or_else(|| table.of(path))
        .cloned()
        .ok_or_else(|| Refusal::new(ReasonCode::Unreadable, "no mount leads to it"))?;
    if fstatvfs(file)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(ReasonCode::ReadOnly.into());
    }
    Ok(mount)
}

/// The directory that a path lies in (O_PATH), and its name there. Follows no symbolic link.
fn walk(path: &Path) -> Result<(OwnedFd, &OsStr), Refusal> {
    let (Some(name), Some(above)) = (path.file_name(), path.parent()) else {
        return Err(ReasonCode::NotAbsolute.into());
    };
    Ok((descend(above)?, name))
}

/// Opens a directory for reading, following no symbolic link in any part of its path.
pub(crate) fn directory(path: &Path) -> Result<OwnedFd, Refusal> {
    // An O_PATH descriptor cannot be listed.
    Ok(openat(descend(path)?, ".", LIST, Mode::empty())?)
}

/// Opens a directory (O_PATH), following no symbolic link in any part of its path.
fn descend(path: &Path) -> Result<OwnedFd, Refusal> {
    let access = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = openat(CWD, "/", access, Mode::empty())?;
    let mut so_far = PathBuf::from("/");
    let mut components = path.components();
    if components.next() != Some(Component::RootDir) {
        return Err(ReasonCode::NotAbsolute.into());
    }
    for component in components {
        let Component::Normal(part) = component else {
            return Err(ReasonCode::NotAbsolute.into());
        };
        so_far.push(part);
        at = openat(&at, part, access, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&at)?.st_mode) == FileType::Symlink {
            let link = shown(&so_far);
            let text = format!("{link} is a symbolic link: name the image by its real path");
            return Err(Refusal::new(ReasonCode::Link, text));
        }
    }
    Ok(at)
}

/// What a file takes up: `st_blocks` counts units of 512 bytes (inode(7)).
pub(crate) fn allocated(file: &File) -> io::Result<Bytes> {
    Ok(Bytes(file.metadata()?.blocks().saturating_mul(512)))
}

/// Checks the conditions that can be checked at any time: flags, space, the length of the swap.
/// Returns the first that does not hold as an error.
pub fn check_quick(
    target: &Target,
    limits: &Defrag,
    host: &HostInterfaces,
) -> Result<Checked, Refusal> {
    let attributes = check_marks(target, host)?;
    let extents = at_least_two(attributes.extents)?;
    let allocated = allocated(&target.file)?;
    check_space(target, allocated, limits.keep_free)?;
    let geometry = geometry::geometry(&target.file)?;
    let stall = swap_stall(extents, geometry.flags & geometry::FLAG_RMAPBT != 0);
    if stall > limits.max_swap_stall {
        return Err(Refusal::swap_stall(stall, limits.max_swap_stall));
    }
    Ok(Checked {
        extents,
        allocated,
        stall,
    })
}

/// Checks by a fresh reading that the free extents are long enough for a copy: the planner's reading may
/// be hours old. Calls `stop`. An image whose free space cannot be read in time is not refused.
pub fn check_free_extents(
    target: &Target,
    checked: &Checked,
    stop: &mut dyn FnMut() -> Option<Stop>,
) -> Result<(), RunOutcome> {
    let deadline = Instant::now() + SPACE_TIME;
    let mut stopped = None;
    let mut beat = || {
        stopped = stop();
        match stopped.is_some() || Instant::now() > deadline {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(()),
        }
    };
    let read = space::of_open_file(&target.file, &mut beat);
    match (stopped, read) {
        (Some(why), _) => Err(RunOutcome::Stopped { why }),
        (None, Ok(space)) => Ok(space.check_copy(checked.allocated, checked.extents)?),
        (None, Err(_)) => Ok(()),
    }
}

fn check_flags(marks: u32) -> Result<(), Refusal> {
    let flags = [
        (IMMUTABLE, ReasonCode::Immutable),
        (APPEND, ReasonCode::AppendOnly),
        (NODEFRAG, ReasonCode::NoDefrag),
        (REALTIME, ReasonCode::Realtime),
    ];
    match flags.into_iter().find(|(bit, _)| marks & bit != 0) {
        Some((_, obstacle)) => Err(obstacle.into()),
        None => Ok(()),
    }
}

/// Checks that neither its flags nor its use as a swap file forbid touching it.
pub(crate) fn check_marks(target: &Target, host: &HostInterfaces) -> Result<Attributes, Refusal> {
    let attributes = fsxattr::attributes(&target.file)?;
    check_flags(attributes.flags)?;
    match is_swap(&host.proc, &target.path) {
        true => Err(ReasonCode::SwapFile.into()),
        false => Ok(attributes),
    }
}

fn at_least_two(extents: u32) -> Result<ExtentCount, Refusal> {
    match ExtentCount(extents.into()) {
        extents @ ExtentCount(0 | 1) => Err(near_ideal(extents)),
        extents => Ok(extents),
    }
}

pub(crate) fn near_ideal(extents: ExtentCount) -> Refusal {
    let plural = if extents.0 == 1 { "" } else { "s" };
    let text = format!("already near its ideal: {extents} extent{plural}");
    Refusal::new(ReasonCode::NearIdeal, text)
}

/// Checks the conditions of the online engine, as [`check_quick`], but the image may be in use and
/// is copied segment by segment. Returns its extents, or the first condition that does not hold.
pub fn check_online(
    target: &Target,
    limits: &Defrag,
    host: &HostInterfaces,
) -> Result<ExtentCount, Refusal> {
    check_kernel(limits, host)?;
    let attributes = check_marks(target, host)?;
    if attributes.flags & DAX != 0 {
        return Err(ReasonCode::Dax.into());
    }
    if geometry::geometry(&target.file)?.flags & geometry::FLAG_REFLINK == 0 {
        let text =
            "its XFS was made without reflink: use xfs_fsr, or copy the image to one with it";
        return Err(Refusal::new(ReasonCode::NoReflink, text));
    }
    let extents = at_least_two(attributes.extents)?;
    let size = fstatvfs(&target.file)?;
    if u128::from(size.f_bavail) * 20 < u128::from(size.f_blocks) {
        let text = "its file system is more than 95 % full: what is free is in pieces by then, and \
                    moving blocks makes smaller ones of them";
        return Err(Refusal::new(ReasonCode::AlmostFull, text));
    }
    check_space(target, ROOM, limits.keep_free)?;
    Ok(extents)
}

fn check_kernel(limits: &Defrag, host: &HostInterfaces) -> Result<(), Refusal> {
    if host.kernel == KernelCheck::Overridden {
        return Ok(());
    }
    let sources = kernels::Sources::of(&host.proc);
    let judgement = kernels::judge_host(Engine::Online, &sources, &limits.trusted_kernels);
    match judgement.refusal() {
        Some(why) => Err(Refusal::new(ReasonCode::Kernel, why)),
        None => Ok(()),
    }
}

/// Checks that there is enough free space for the online engine to continue.
pub(super) fn check_room(target: &Target, keep_free: Share) -> Result<(), Refusal> {
    check_space(target, ROOM, keep_free)
}

/// Checks that `needs` can be allocated, and `keep_free` of the file system then remains free.
pub(crate) fn check_space(target: &Target, needs: Bytes, keep_free: Share) -> Result<(), Refusal> {
    let size = fstatvfs(&target.file)?;
    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(size.f_frsize));
    let (free, keeps) = (
        bytes(size.f_bavail),
        keep_free.of_bytes(bytes(size.f_blocks)),
    );
    if free >= needs.saturating_add(keeps) {
        return Ok(());
    }
    let text =
        format!("not enough free space: needs {needs}, has {free}, keeps {keeps} ({keep_free})");
    Err(Refusal::new(ReasonCode::NoSpace, text))
}

/// Checks the I/O pressure. If it seems too high, it is read again a second later, unless `again`.
pub(super) fn check_pressure(
    gauge: &mut Gauge,
    most: u32,
    host: &HostInterfaces,
    again: bool,
) -> Result<(), Refusal> {
    let found = match again {
        true => gauge.look(host, Asked::OrHost, true),
        false => before_runs(&mut [gauge], host, most).pop().flatten(),
    };
    match found.map(|found| found.counts) {
        Some(is) if is > f64::from(most) => {
            let text =
                format!("I/O pressure too high: {is:.1} %, and defrag.max_io_pressure is {most}");
            Err(Refusal::new(ReasonCode::IoPressure, text))
        }
        _ => Ok(()),
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
pub fn check_unused(
    target: &Target,
    gate: &mut Gate,
    host: &HostInterfaces,
) -> Result<(), Refusal> {
    let began = Instant::now();
    loop {
        let_in(gate)?;
        let in_use = locks::in_use(&target.file)?;
        if in_use.qemu.any() {
            let holder = holders::holder_of(&host.proc, &target.path);
            return Err(holder.map_or(ReasonCode::QemuLock.into(), |by| used_by(Some(by))));
        }
        match in_use.open {
            Some(false) => return Ok(()),
            None => return Err(ReasonCode::UseUnknown.into()),
            // Possibly a short probe of our own.
            Some(true) if began.elapsed() < PROBE_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Some(true) => {
                let holder = holders::holder_of(&host.proc, &target.path);
                if holder.is_some() || began.elapsed() >= UNSEEN_TIMEOUT {
                    return Err(used_by(holder));
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn used_by(by: Option<NamedProcess>) -> Refusal {
    let text = match by {
        Some(process) => format!("in use by {process}"),
        None => "in use by somebody that /proc does not show: a loop device, the NFS server, or a \
                 process in another namespace"
            .to_owned(),
    };
    Refusal::new(ReasonCode::InUse, text)
}

/// Lets all waiting processes open the image: the run has not begun. One that is not ours uses it.
pub(crate) fn let_in(gate: &mut Gate) -> Result<(), Refusal> {
    match gate.let_all_in()? {
        Some(process) => Err(used_by(Some(process))),
        None => Ok(()),
    }
}

/// Waits, for a limited time, until the last modification is old enough ([`gate`](super::gate)).
pub fn check_settled(target: &Target, gate: &mut Gate) -> Result<(), Refusal> {
    let began = Instant::now();
    while !is_settled(&target.file)? {
        if began.elapsed() > PROBE_TIMEOUT {
            return Err(ReasonCode::Changing.into());
        }
        std::thread::sleep(Duration::from_millis(10));
        let_in(gate)?;
    }
    Ok(())
}

fn is_settled(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let seconds = metadata.ctime().try_into().unwrap_or(0);
    let changed =
        UNIX_EPOCH + Duration::new(seconds, metadata.ctime_nsec().try_into().unwrap_or(0));
    let is_old = |at: SystemTime| match at.elapsed() {
        Ok(age) => age > SETTLED,
        // That time will not come again soon.
        Err(ahead) => ahead.duration() > SETTLED,
    };
    Ok(is_old(metadata.modified()?) && is_old(changed))
}

/// Reads the map as xfs_fsr does, serving the gate and calling `stop`. Returns its extents by
/// border. Fails if blocks are shared, the gain is little, another process opens the image, the run
/// is stopped, or reading takes too long.
pub fn check_map(
    target: &Target,
    extents: ExtentCount,
    gate: &mut Gate,
    stop: &mut dyn FnMut() -> Option<Stop>,
) -> Result<Borders, RunOutcome> {
    let deadline = Instant::now() + MAP_TIME;
    let mut check = || -> Result<(), RunOutcome> {
        if let Some(why) = stop() {
            return Err(RunOutcome::Stopped { why });
        }
        let_in(gate)?;
        if Instant::now() > deadline {
            let text = format!("its map of {extents} extents takes longer than a minute to read");
            return Err(Refusal::new(ReasonCode::MapTooLong, text).into());
        }
        Ok(())
    };
    let checked = RefCell::new(Ok(()));
    let mut beat = || {
        let mut checked = checked.borrow_mut();
        if checked.is_ok() {
            *checked = check();
        }
    };
    let (mut shared, mut pieces, mut end) = (false, 0_u64, Bytes(u64::MAX));
    let mut count = BorderCount::default();
    let visit = |extent: Extent| {
        count.push(&extent);
        shared |= extent.flags.shared;
        pieces += u64::from(extent.logical != end);
        end = extent.end();
        match shared || checked.borrow().is_err() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    MapReader::default().read(&target.file, Bytes(0), ReadPace::QUICK, visit, &mut beat)?;
    checked.into_inner()?;
    if shared {
        return Err(Refusal::from(ReasonCode::SharesBlocks).into());
    }
    let ideal = pieces.saturating_add(breaks(target)?);
    if extents.0 <= ideal {
        return Err(near_ideal(extents).into());
    }
    worth_it(Outlook::of_map(&count.borders), Engine::XfsFsr)?;
    Ok(count.borders)
}

/// Samples a long map before the online engine reads all of it. Fails if the gain is surely little.
pub(super) fn check_gain(target: &Target, extents: ExtentCount) -> Result<(), Refusal> {
    if extents <= SAMPLED_FROM {
        return Ok(());
    }
    let outlook = MapReader::default().sample(&target.file, extents, &mut || {})?;
    worth_it(outlook, Engine::Online)
}

/// Refuses a long map if the gain is surely little. With a short map a run costs little, too.
fn worth_it(outlook: Outlook, engine: Engine) -> Result<(), Refusal> {
    match outlook.extents > SAMPLED_FROM && outlook.is_little(engine) {
        true => Err(Refusal::new(
            ReasonCode::LittleGain,
            outlook.why_little(&[engine]),
        )),
        false => Ok(()),
    }
}

/// How many more extents than contiguous pieces a file of its size must have: an extent has a
/// maximum length and lies within one allocation group.
fn breaks(target: &Target) -> io::Result<u64> {
    let geometry = geometry::geometry(&target.file)?;
    let group = u64::from(geometry.group_blocks) * u64::from(geometry.block_size);
    Ok(allocated(&target.file)?.0 / group.clamp(1, LONGEST_EXTENT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn others_who_wait_for_the_disks_are_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let host = HostInterfaces {
            proc: root.path().to_owned(),
            sys: root.path().to_owned(),
            hints: root.path().to_owned(),
            ..HostInterfaces::to_look_at()
        };
        let mut gauge = Gauge::new("0:40".parse().unwrap());
        assert_eq!(check_pressure(&mut gauge, 1, &host, false), Ok(()));
        fs::create_dir(root.path().join("pressure")).unwrap();
        let text = "some avg10=40.50 avg60=0.00 avg300=0.00 total=0\n";
        fs::write(root.path().join("pressure/io"), text).unwrap();
        for refusal in [
            check_pressure(&mut gauge, 40, &host, false).unwrap_err(),
            check_pressure(&mut gauge, 40, &host, true).unwrap_err(),
        ] {
            assert_eq!(
                refusal.to_string(),
                "I/O pressure too high: 40.5 %, and defrag.max_io_pressure is 40"
            );
        }
        assert_eq!(check_pressure(&mut gauge, 41, &host, false), Ok(()));
    }

    /// A kernel without realtime devices has no such file to try it on.
    #[test]
    fn each_mark_is_a_refusal_of_its_own() {
        let none_of_them = !(IMMUTABLE | APPEND | NODEFRAG | REALTIME);
        assert_eq!(check_flags(none_of_them), Ok(()));
        let obstacles = [
            (0x1, ReasonCode::Realtime),
            (0x8, ReasonCode::Immutable),
            (0x10, ReasonCode::AppendOnly),
            (0x2000, ReasonCode::NoDefrag),
        ];
        for (mark, obstacle) in obstacles {
            assert_eq!(check_flags(mark | 0x2), Err(obstacle.into()));
        }
    }

    #[test]
    fn what_lies_with_one_engine_is_left_to_another() {
        for code in [
            used_by(None).code,
            ReasonCode::SharesBlocks,
            ReasonCode::MapTooLong,
            ReasonCode::Dax,
            ReasonCode::NoXfsFsr,
        ] {
            assert!(code.lies_with_engine(), "{code:?}");
        }
        // A file that nothing is to touch, and one at which nothing is to be gained.
        for code in [
            ReasonCode::Immutable,
            ReasonCode::SwapFile,
            ReasonCode::OtherRun,
            ReasonCode::ReadOnly,
            ReasonCode::AlmostFull,
            near_ideal(ExtentCount(1)).code,
            ReasonCode::IoPressure,
        ] {
            assert!(!code.lies_with_engine(), "{code:?}");
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
