//! A file system that hangs, is slow, or loses its power when it is told to.
//!
//! An XFS on a loop device, whose image lies on a FUSE file system, whose server is stopped with
//! SIGSTOP. Whatever then needs a block that is not in memory waits in state D, which no signal ends:
//! what a broken disk or a stuck allocation looks like from outside. The server can also be told to
//! take its time, and a copy of its file while it is stopped is what a power cut would leave.
//!
//! The server is a process of its own: the test binary once more, told by an environment variable
//! to be the server. A test crate that uses a stall lets it in with
//!
//! ```ignore
//! support::stall_server!();
//! ```
//!
//! in its root; a benchmark, which has its own `main`, calls [`serve_if_asked`] first in it.
//!
//! While it is stopped, everything that waits for *all* file systems hangs too: sync(2), and
//! whoever evicts dirty inodes of this one. So a stall should last for seconds, not minutes. What
//! could hang for ever is kept apart: the server touches only its backing file, which lies in
//! memory or in the temporary directory, and its memory is not taken from the stalled file system
//! (`PR_SET_IO_FLUSHER`); the test looks at its own threads only through /proc; and whatever ends
//! the test resumes or kills the server first.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::bed::{Bed, Dir, Plan, image_in, unmount_at_last};
use super::child::Child;
use super::rundir::Place;
use super::skip::{Here, NotHere};
use super::{fuse, tools};

const BACKING: &str = "FRAGWATCH_STALL_BACKING";
const MOUNT_POINT: &str = "FRAGWATCH_STALL_MOUNT_POINT";
const PACE: &str = "FRAGWATCH_STALL_PACE";

/// Lets the server into a test crate. Ignored, so that nobody counts it as a test.
macro_rules! stall_server {
    () => {
        #[test]
        #[ignore = "not a test: the server of support::stall, which is started when it is needed"]
        fn stall_server() {
            $crate::support::stall::serve_if_asked();
        }
    };
}

pub(crate) use stall_server;

/// Becomes the server, if that is what this process was started for.
pub fn serve_if_asked() {
    let told = [BACKING, MOUNT_POINT, PACE].map(|name| std::env::var_os(name).map(PathBuf::from));
    let [Some(backing), Some(mount_point), Some(pace)] = told else {
        return;
    };
    let ended = fuse::serve(&backing, &mount_point, &pace);
    if let Err(e) = &ended {
        eprintln!("fuse: {e}");
    }
    std::process::exit(i32::from(ended.is_err()));
}

/// An XFS that can be stalled. Out of scope it is resumed first, then removed.
#[derive(Debug)]
pub struct Stall {
    // In the order in which they have to go.
    bed: Bed,
    server: Server,
    backing: PathBuf,
    dir: Dir,
}

impl Stall {
    /// Makes one; it is not stalled yet.
    pub fn new() -> Here<Stall> {
        Stall::with(&[])
    }

    /// With arguments for mkfs.xfs.
    pub fn with(mkfs: &[&str]) -> Here<Stall> {
        let place = Place::quick();
        let dir = Dir::new(place)?;
        let plan = Plan::of("xfs").mkfs(mkfs).place(place);
        let backing = plan.image(&dir.0)?;
        let (server, image) = Server::start(&backing, &dir)?;
        let bed = Bed::on(Dir::new(place)?, &image, &plan)?;
        // The root's inode shares a cluster of inodes, read when it is mounted, with those that
        // are made in it. A directory goes to another allocation group, and what is in it too: the
        // first look at it has to read.
        let stall = Stall {
            bed,
            server,
            backing,
            dir,
        };
        fs::create_dir(stall.path()).map_err(NotHere::because)?;
        Ok(stall)
    }

    /// The directory for the files of the test. Only here a file is surely not in memory after
    /// [`Stall::cold`]. An inode is read with its neighbours: if one file shall be open and another
    /// not yet read, give the other a directory of its own.
    pub fn path(&self) -> PathBuf {
        self.bed.path().join("images")
    }

    /// The file system.
    pub fn bed(&self) -> &Bed {
        &self.bed
    }

    /// Unmounts and mounts it, so that nothing of it is in memory.
    pub fn cold(&mut self) {
        self.bed.cold();
    }

    /// From now on it does not answer.
    pub fn stop(&self) {
        self.server.stop();
    }

    /// From now on it takes so long for each page (4 KiB) that is read or written.
    pub fn slow_down(&self, page: Duration) {
        fuse::set_pace(&pace_in(&self.dir), page).expect("it can be told");
    }

    /// What would be there if the power had failed a moment ago: a copy of the disk as it was at
    /// one moment, mounted, so that its log was replayed. The original goes on.
    ///
    /// Every write that the disk has said is done is in it, of those under way some.
    pub fn power_cut(&self) -> Here<Bed> {
        let mut beds = power_cut(&[self])?;
        Ok(beds.remove(0))
    }

    /// A copy of the disk, which is stopped.
    fn copy(&self) -> Here<(Dir, PathBuf)> {
        let dir = Dir::new(Place::quick())?;
        let copy = image_in(&dir.0);
        let mut cp = Command::new("cp");
        tools::run(cp.arg("--sparse=always").args([&self.backing, &copy]))?;
        Ok((dir, copy))
    }

    /// From now on it answers again, also what it was asked meanwhile.
    pub fn resume(&self) {
        self.server.resume();
    }
}

/// As [`Stall::power_cut`], of all disks of a machine. They stop in this order, within milliseconds:
/// what waits for one of them goes no further.
pub fn power_cut(stalls: &[&Stall]) -> Here<Vec<Bed>> {
    stalls.iter().for_each(|stall| stall.stop());
    let copies: Vec<_> = stalls.iter().map(|stall| stall.copy()).collect();
    stalls.iter().for_each(|stall| stall.resume());
    // The originals have the same names.
    let plan = Plan::of("xfs").options("nouuid");
    let mounted = copies.into_iter().map(|copy| {
        let (dir, copy) = copy?;
        Bed::on(dir, &copy, &plan)
    });
    mounted.collect()
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.resume();
    }
}

/// A file that can be stalled, with no file system in it. Out of scope it is resumed first, then
/// removed.
#[derive(Debug)]
pub struct StalledFile {
    server: Server,
    path: PathBuf,
    _dir: Dir,
}

impl StalledFile {
    /// Makes one of a few bytes; it is not stalled yet.
    pub fn new() -> Here<StalledFile> {
        let dir = Dir::new(Place::quick())?;
        let backing = dir.0.join("file");
        fs::write(&backing, "0\n").map_err(NotHere::because)?;
        let (server, path) = Server::start(&backing, &dir)?;
        // The kernel asks to flush at the first close, and never again after ENOSYS: a process that
        // ends while the server is stopped would wait for that in state D (fuse_flush, fs/fuse/file.c).
        drop(fs::File::open(&path).map_err(NotHere::because)?);
        Ok(StalledFile {
            server,
            path,
            _dir: dir,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on reading and writing it waits.
    pub fn stop(&self) {
        self.server.stop();
    }

    /// From now on it answers again.
    pub fn resume(&self) {
        self.server.resume();
    }
}

impl Drop for StalledFile {
    fn drop(&mut self) {
        self.resume();
    }
}

/// Where the server is told how slow to be.
fn pace_in(dir: &Dir) -> PathBuf {
    dir.0.join("pace")
}

/// The state letter of a process (`/proc/PID`) or thread (`/proc/PID/task/TID`): `D` waits for a
/// disk and cannot be interrupted.
pub fn state(proc: &Path) -> Option<char> {
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.trim_start().chars().next()
}

/// The server process and its mount.
#[derive(Debug)]
struct Server {
    mount_point: PathBuf,
    process: Child,
}

impl Server {
    /// Starts it and waits for it: with the path at which `backing` appears.
    fn start(backing: &Path, dir: &Dir) -> Here<(Server, PathBuf)> {
        let mount_point = &dir.0.join("fuse");
        if !Path::new("/dev/fuse").exists() {
            tools::load_module("fuse");
        }
        fs::create_dir(mount_point).map_err(NotHere::because)?;
        let pace = pace_in(dir);
        fuse::set_pace(&pace, Duration::ZERO).map_err(NotHere::because)?;
        let process = Child::spawn(
            Command::new(std::env::current_exe().map_err(NotHere::because)?)
                .args(["--exact", "stall_server", "--ignored", "--nocapture"])
                .env(BACKING, backing)
                .env(MOUNT_POINT, mount_point)
                .env(PACE, &pace)
                // Out of reach of whatever stops and continues the tests at a terminal.
                .process_group(0)
                .stdin(Stdio::null())
                .stdout(Stdio::null()),
        )
        .map_err(NotHere::because)?;
        let mut server = Server {
            mount_point: mount_point.to_owned(),
            process,
        };
        let image = mount_point.join(backing.file_name().unwrap_or_default());
        let deadline = Instant::now() + Duration::from_secs(60);
        while !image.exists() {
            let ended = server.process.wait(Duration::from_millis(2));
            if ended.is_some() || Instant::now() > deadline {
                // Without a test of that name it succeeds.
                return Err(NotHere::because(format_args!(
                    "the FUSE server does not serve ({ended:?}); is there a stall_server!() in \
                     this crate?"
                )));
            }
        }
        // The kernel now knows the attributes of the root too. It asks for nothing then while the
        // server is stopped, and whoever looks at all mount points, as xfs_io does, does not hang.
        fs::metadata(mount_point).map_err(NotHere::because)?;
        Ok((server, image))
    }

    fn stop(&self) {
        self.process.signal(Signal::STOP);
        // Signals take their time: until each of its threads has stopped it may answer once more.
        let deadline = Instant::now() + Duration::from_secs(5);
        let tasks = format!("/proc/{}/task", self.process.id());
        let stopped = || {
            let mut tasks = fs::read_dir(&tasks).expect("it runs").flatten();
            tasks.all(|task| state(&task.path()) == Some('T'))
        };
        while !stopped() {
            assert!(Instant::now() < deadline, "the server does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn resume(&self) {
        self.process.signal(Signal::CONT);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        unmount_at_last(&self.mount_point);
        // That is the end of it; if not, it is killed.
        self.process.wait(Duration::from_secs(2));
    }
}
