//! The test bed is tested before anything is tested with it.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use support::bed::Plan;
use support::child::Child;
use support::guest::{self, BLOCK};
use support::rundir::{self, Place};
use support::{Bed, MIB, Reader, RunningDaemon, Stall, Writer, prepared, stall, tools};

/// However busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

fn keeps_a_file(mut bed: Bed, kind: &str) {
    let file = bed.path().join("file");
    fs::write(&file, "text").unwrap();
    bed.cold();
    assert_eq!(fs::read(&file).unwrap(), b"text");
    assert_eq!(mounted_as(bed.device()), Some(kind.to_owned()));
    bed.sync();
    bed.remount_ro();
    let refused = File::create(bed.path().join("other")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));

    let device = bed.device().to_owned();
    let dir = bed.path().parent().unwrap().to_owned();
    drop(bed);
    assert_eq!(mounted_as(&device), None);
    assert!(!dir.exists());
}

/// The type of the file system that /proc/mounts shows for a device.
fn mounted_as(device: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mut lines = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
    let line = lines.find(|fields| Path::new(fields[0]) == device)?;
    Some(line[2].to_owned())
}

#[test]
fn xfs() {
    keeps_a_file(support::require!(Bed::xfs()), "xfs");
}

#[test]
fn ext4() {
    keeps_a_file(support::require!(Bed::ext4()), "ext4");
}

#[test]
fn btrfs() {
    keeps_a_file(support::require!(Bed::btrfs()), "btrfs");
}

#[test]
fn xfs_of_the_old_format() {
    support::here_or_elsewhere!(Bed::xfs_v4(), |bed| keeps_a_file(bed, "xfs"));
}

#[test]
fn xfs_as_its_maker_is_told() {
    for features in [
        &["-m", "rmapbt=1"],
        &["-m", "reflink=0"],
        &["-i", "nrext64=1"],
    ] {
        keeps_a_file(support::require!(Bed::xfs_with(features)), "xfs");
    }
}

#[test]
fn what_the_kernel_refuses_is_told_and_removed() {
    let bed = support::require!(Bed::xfs());
    let size = 777 * MIB;
    let plan = Plan::of("xfs").size(size).options("no_such_option");
    let why = plan.make().unwrap_err().to_string();
    assert!(
        why.starts_with("not possible here because the kernel does not mount xfs"),
        "{why}"
    );
    // Other tests may have their beds there; none has an image of that size.
    let run = bed.path().ancestors().nth(2).unwrap();
    let dirs = fs::read_dir(run).unwrap().map(|dir| dir.unwrap().path());
    let images = dirs.flat_map(fs::read_dir).flatten();
    let mut sizes = images.filter_map(|image| Some(image.ok()?.metadata().ok()?.len()));
    assert!(sizes.all(|s| s != size));
}

#[test]
fn alternate_blocks_are_as_many_extents() {
    let extents = 20_000;
    for make in [Bed::xfs, Bed::ext4] {
        let bed = support::require!(make());
        let file = bed.path().join("vm.img");
        guest::alternate_blocks(&file, extents);
        assert_eq!(tools::xfs_io_fiemap_count(&file), extents);
    }
}

#[test]
fn a_million_extents() {
    let extents = 1_000_000;
    let bed = support::require!(Bed::fragmented(extents));
    let again = support::require!(Bed::fragmented(extents));
    for bed in [&bed, &again] {
        let file = bed.path().join(prepared::IMAGE);
        assert_eq!(tools::xfs_io_stat_nextents(&file), extents);
    }
    let file = bed.path().join(prepared::IMAGE);
    assert_eq!(tools::xfs_io_fiemap_count(&file), extents);
    bed.remount_ro();
    assert_eq!(tools::xfs_db_frag(bed.device()).0, extents);
}

#[test]
fn the_headline_image() {
    let bed = support::optional!(Bed::headline());
    let file = bed.path().join("ffc63a70.disk");
    assert_eq!(tools::xfs_io_stat_nextents(&file), 34_694_398);
}

#[test]
fn random_writes_fragment_and_are_the_same_every_time() {
    let bed = support::require!(Bed::xfs());
    let [one, two] = ["one", "two"].map(|name| bed.path().join(name));
    guest::random_direct_writes(&one, 64 * MIB, 4096);
    guest::random_direct_writes(&two, 64 * MIB, 4096);
    assert_eq!(tools::checksum(&one), tools::checksum(&two));
    for file in [&one, &two] {
        let extents = tools::filefrag_extents(file);
        // A quarter of the blocks: some of them are neighbours in the file.
        assert!((2900..=4096).contains(&extents.len()), "{}", extents.len());
        assert_eq!(extents.len() as u64, tools::xfs_io_stat_nextents(file));
        assert_eq!(extents.iter().map(|e| e.length).sum::<u64>(), 4096 * BLOCK,);
        assert!(extents.last().unwrap().flags.contains(&"last".to_owned()));
    }
}

#[test]
fn a_preallocated_file_has_many_extents_and_one_run() {
    let bed = support::require!(Bed::xfs());
    let file = bed.path().join("vm.img");
    guest::preallocated_then_random_writes(&file, 64 * MIB, 1024);
    let extents = tools::filefrag_extents(&file);
    assert!(extents.len() > 1500, "{}", extents.len());
    assert!(extents.iter().any(|e| e.flags == ["unwritten"]));
    assert!(extents.is_sorted_by(|a, b| a.physical + a.length == b.physical));
    assert_eq!(tools::filefrag_count(&file), 1);
}

#[test]
fn each_discard_splits_an_extent() {
    for bed in [Bed::xfs(), Bed::ext4()] {
        let bed = support::require!(bed);
        let file = bed.path().join("vm.img");
        guest::sequential(&file, 64 * MIB);
        let before = tools::filefrag_extents(&file).len();
        guest::discard_holes(&file, 500);
        assert_eq!(tools::filefrag_extents(&file).len(), before + 500);
    }
}

#[test]
fn a_reflink_copy_shares() {
    for bed in [Bed::xfs_with(&["-m", "reflink=1"]), Bed::btrfs()] {
        let bed = support::require!(bed);
        let [file, copy] = ["vm.img", "copy.img"].map(|name| bed.path().join(name));
        guest::sequential(&file, MIB);
        guest::reflink_copy(&file, &copy);
        for extent in tools::filefrag_extents(&file) {
            assert!(extent.flags.contains(&"shared".to_owned()), "{extent:?}");
        }
        assert_eq!(tools::checksum(&file), tools::checksum(&copy));
    }
}

#[test]
fn delayed_blocks_have_no_place_yet() {
    let bed = support::require!(Bed::xfs());
    let file = bed.path().join("vm.img");
    guest::buffered_delalloc(&file, 100);
    let delayed = tools::filefrag_extents(&file);
    assert_eq!(delayed.len(), 100);
    assert!(
        delayed
            .iter()
            .all(|e| e.flags.contains(&"delalloc".to_owned()))
    );
    bed.sync();
    let placed = tools::filefrag_extents(&file);
    assert_eq!(placed.len(), 100);
    assert!(
        !placed
            .iter()
            .any(|e| e.flags.contains(&"delalloc".to_owned()))
    );
}

#[test]
fn an_extent_size_hint_is_inherited() {
    let bed = support::require!(Bed::xfs());
    tools::set_extent_size_hint(bed.path(), MIB);
    let file = bed.path().join("vm.img");
    guest::random_direct_writes(&file, 64 * MIB, 4096);
    assert!(tools::filefrag_count(&file) <= 64);
}

#[test]
fn load_is_timed_and_nothing_is_lost() {
    let bed = support::require!(Bed::xfs());
    let file = bed.path().join("vm.img");
    guest::sequential(&file, 16 * MIB);
    let writer = Writer::start(&file, Some(500));
    let reader = Reader::start(&file, None);
    while reader.count() < 1000 || writer.count() < 200 {
        thread::sleep(Duration::from_millis(5));
    }
    let (written, read) = (writer.stop(), reader.stop());
    written.verify();
    for times in [&written.latencies, &read] {
        assert!(times.percentile(50.0) > Duration::ZERO);
        assert!(times.percentile(50.0) <= times.percentile(99.9));
        assert_eq!(times.worst(), *times.sorted().last().unwrap());
    }
}

support::stall_server!();

/// A thread that acts, and what /proc knows of it.
struct Probe {
    thread: JoinHandle<io::Result<u64>>,
    proc: PathBuf,
}

impl Probe {
    fn start(act: impl FnOnce() -> io::Result<u64> + Send + 'static) -> Probe {
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            tell.send(rustix::thread::gettid()).unwrap();
            act()
        });
        let tid = told.recv().unwrap().as_raw_nonzero();
        let proc = PathBuf::from(format!("/proc/self/task/{tid}"));
        Probe { thread, proc }
    }

    /// Waits until it is in state D and then a while, in which it must not come out of it.
    fn assert_hangs(&self) {
        let deadline = Instant::now() + PATIENCE;
        while stall::state(&self.proc) != Some('D') {
            assert!(!self.thread.is_finished(), "it did not hang");
            assert!(Instant::now() < deadline, "it did not begin to hang");
            thread::sleep(Duration::from_millis(1));
        }
        for _ in 0..50 {
            assert_eq!(stall::state(&self.proc), Some('D'));
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_stall_hangs_what_needs_the_disk_and_nothing_else() {
    let mut stall = support::require!(Stall::new());
    let other = support::require!(Bed::xfs());
    fs::create_dir(stall.path().join("apart")).unwrap();
    let [opened, unseen] = ["opened", "apart/unseen"].map(|name| stall.path().join(name));
    guest::random_direct_writes(&opened, 8 * MIB, 1024);
    guest::alternate_blocks(&unseen, 5000);
    let first_hole = |file: File| Ok(rustix::fs::seek(file, SeekFrom::Hole(0))?);
    let expected = first_hole(File::open(&opened).unwrap()).unwrap();
    let extents = tools::xfs_io_fiemap_count(&opened);
    stall.cold();
    let file = File::open(&opened).unwrap();
    stall.stop();

    // The inode of one has to be read; of the other the extent map.
    let path = unseen.clone();
    let inode = Probe::start(move || Ok(File::open(path)?.metadata()?.len()));
    let map = Probe::start(move || first_hole(file));
    inode.assert_hangs();
    map.assert_hangs();
    guest::random_direct_writes(&other.path().join("vm.img"), MIB, 100);
    stall.resume();
    assert_eq!(inode.thread.join().unwrap().unwrap(), 9999 * BLOCK);
    assert_eq!(map.thread.join().unwrap().unwrap(), expected);
    assert_eq!(tools::xfs_io_stat_nextents(&unseen), 5000);
    assert_eq!(tools::xfs_io_fiemap_count(&opened), extents);
}

#[test]
fn beds_are_made_while_another_one_hangs() {
    let stall = support::require!(Stall::new());
    stall.stop();
    let (made, told) = mpsc::channel();
    let maker = thread::spawn(move || {
        for make in [Bed::xfs, Bed::ext4, Bed::btrfs] {
            let result = make().map(drop).map_err(|why| why.to_string());
            made.send(result).unwrap();
        }
    });
    let results: Vec<_> = (0..3)
        .map(|_| told.recv_timeout(Duration::from_secs(20)))
        .collect();
    stall.resume();
    maker.join().unwrap();
    assert_eq!(results, [Ok(Ok(())), Ok(Ok(())), Ok(Ok(()))]);
}

#[test]
fn a_stall_that_is_forgotten_is_removed() {
    let mut stall = support::require!(Stall::new());
    let file = stall.path().join("vm.img");
    guest::random_direct_writes(&file, MIB, 100);
    stall.cold();
    stall.stop();
    let probe = Probe::start(move || Ok(file.metadata()?.len()));
    probe.assert_hangs();
    let device = stall.bed().device().to_owned();
    drop(stall);
    assert_eq!(mounted_as(&device), None);
    assert_eq!(probe.thread.join().unwrap().unwrap(), MIB);
}

/// Says what `owner` shall own, and that it was meant.
const OWNER: &str = "FRAGWATCH_BED_OWNER";

/// Not a test: a process with beds, to be killed.
#[test]
#[ignore = "not a test: a process that the tests of the janitor kill"]
fn owner() {
    let Some(what) = std::env::var_os(OWNER) else {
        return;
    };
    let bed = Bed::xfs().unwrap();
    let _open = File::create(bed.path().join("open")).unwrap();
    let mut sleep = Command::new("sleep");
    // Not in the group that is killed.
    let child = Child::spawn(sleep.arg("1000").process_group(0)).unwrap();
    let stall = (what == "stall").then(|| {
        let mut stall = Stall::new().unwrap();
        let file = stall.path().join("vm.img");
        guest::random_direct_writes(&file, MIB, 100);
        stall.cold();
        stall.stop();
        let probe = Probe::start(move || Ok(file.metadata()?.len()));
        probe.assert_hangs();
        stall
    });
    println!("\nowns {} {}", child.id(), rundir::janitor());
    thread::sleep(Duration::from_secs(1000));
    drop((stall, bed));
}

/// A process that owns a bed.
struct Owner {
    process: Child,
    child: u32,
    janitor: u32,
}

impl Owner {
    fn start(what: &str) -> Owner {
        let mut process = Child::spawn(
            Command::new(std::env::current_exe().unwrap())
                .args(["owner", "--exact", "--ignored", "--nocapture"])
                .env(OWNER, what)
                .process_group(0)
                .stdout(Stdio::piped()),
        )
        .unwrap();
        let output = BufReader::new(process.pipes().stdout.take().unwrap());
        let mut lines = output.lines().map(Result::unwrap);
        let line = lines.find(|line| line.starts_with("owns ")).unwrap();
        let mut pids = line.split(' ').skip(1).map(|pid| pid.parse().unwrap());
        Owner {
            child: pids.next().unwrap(),
            janitor: pids.next().unwrap(),
            process,
        }
    }

    /// What there still is of it.
    fn left(&self) -> Vec<String> {
        let pid = self.process.id();
        let run = format!(".{pid}.");
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mut left: Vec<String> = mounts
            .lines()
            .filter(|line| line.contains("fragwatch-bed.") && line.contains(&run))
            .map(str::to_owned)
            .collect();
        for place in [Place::Disk, Place::Memory] {
            let own = rundir::of_process(place);
            let entries = fs::read_dir(own.parent().unwrap()).unwrap();
            let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
            left.extend(names.filter(|n| n.starts_with("fragwatch-bed.") && n.contains(&run)));
        }
        let image = format!("image-{pid}");
        for device in fs::read_dir("/sys/block").unwrap() {
            let file = device.unwrap().path().join("loop/backing_file");
            // Most are no loop devices, or loop devices of nothing.
            let image_of = fs::read_to_string(file).unwrap_or_default();
            left.extend(image_of.contains(&image).then_some(image_of));
        }
        let child = stall::state(Path::new(&format!("/proc/{}", self.child)));
        // A zombie waits for an init that may not be there in a container.
        left.extend(
            child
                .filter(|s| *s != 'Z')
                .map(|s| format!("the child, {s}")),
        );
        left
    }

    /// Otherwise it would prove nothing that they go.
    fn assert_has(&self, things: &[&str]) {
        let left = self.left().join("\n");
        for thing in things {
            assert!(left.contains(thing), "no {thing}:\n{left}");
        }
    }

    fn assert_goes(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.left().is_empty() {
            assert!(Instant::now() < deadline, "{:?}", self.left());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn nothing_is_left_of_a_killed_test() {
    drop(support::require!(Bed::xfs()));
    let owner = Owner::start("bed");
    owner.assert_has(&["/mnt xfs", "/image-", "the child"]);
    let group = Pid::from_raw(owner.process.id().cast_signed()).unwrap();
    kill_process_group(group, Signal::KILL).unwrap();
    owner.assert_goes();
}

#[test]
fn nothing_is_left_of_a_test_killed_while_it_hangs() {
    drop(support::require!(Stall::new()));
    let owner = Owner::start("stall");
    owner.assert_has(&["/mnt xfs", "/fuse fuse", "/image-", "the child"]);
    owner.process.signal(Signal::KILL);
    owner.assert_goes();
}

#[test]
fn what_a_killed_janitor_left_goes_with_the_next_test() {
    drop(support::require!(Bed::xfs()));
    let owner = Owner::start("bed");
    let janitor = Pid::from_raw(owner.janitor.cast_signed()).unwrap();
    kill_process(janitor, Signal::KILL).unwrap();
    owner.process.signal(Signal::KILL);
    let mut owner = owner;
    assert!(owner.process.wait(PATIENCE).is_some());
    rundir::sweep();
    owner.assert_goes();
}

#[test]
fn an_http_server_is_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let asked = lines.next().unwrap().unwrap();
        // All of it: what is left unread resets the connection.
        while !lines.next().unwrap().unwrap().is_empty() {}
        write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nX-Like: it\r\n\r\nNo.\r\n"
        )
        .unwrap();
        asked
    });
    let answer = support::http_get(address, "/metrics?a=b").unwrap();
    assert_eq!(server.join().unwrap(), "GET /metrics?a=b HTTP/1.0");
    assert_eq!(answer.status, 404);
    assert_eq!(answer.header("x-like"), Some("it"));
    assert_eq!(answer.body, "No.\r\n");
    // Nobody listens there now.
    assert!(support::http_get(address, "/").is_err());
}

#[test]
fn a_daemon_is_waited_for_and_stopped() {
    // Something else that answers and writes to stderr.
    let python = support::require!(tools::have("python3"));
    let address = support::free_address();
    let mut command = Command::new(python);
    command.args(["-m", "http.server", "--bind", "127.0.0.1"]);
    command.arg(address.port().to_string());
    let mut daemon = RunningDaemon::spawn(&mut command, address);
    assert_eq!(daemon.get("/nothing").status, 404);
    daemon.wait_for_stderr("GET /nothing", Duration::from_secs(5));
    daemon.signal(Signal::TERM);
    let status = daemon.wait(Duration::from_secs(5));
    assert_eq!(status.signal(), Some(Signal::TERM.as_raw()));
}

#[test]
fn a_daemon_that_fails_is_told_with_its_words() {
    let mut command = Command::new("sh");
    command.args(["-c", "echo it is too late >&2; exit 3"]);
    let start = || drop(RunningDaemon::spawn(&mut command, support::free_address()));
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(start)).unwrap_err();
    let message = panic.downcast::<String>().unwrap();
    assert!(message.contains("it is too late"), "{message}");
    assert!(message.contains("exit status: 3"), "{message}");
}
