//! Others wait: for the image's disk, which holds up a run; and for nothing that a disk could bring,
//! as QEMU does in io_uring, which does not.
//!
//! Both happen in control groups: one for the program under test, one beside it for the others. The
//! disk is this machine's own, and what else it is busy with is waited for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use serde_json::Value;

use super::support::bed::Plan;
use super::support::child::Child;
use super::support::daemon::fragwatch;
use super::support::groups::{Groups, PATIENCE, within};
use super::support::rundir::Place;
use super::support::skip::{Here, NotHere};
use super::support::{self, Bed, MIB, guest, tools};
use super::{config, finish, said, state};

const WAITS: &str = "FRAGWATCH_TEST_WAITS_IN_IO_URING";
const LIMIT: &str = "max_io_pressure = 40\n";
const TOO_HIGH: &str = "I/O pressure too high";
const SECOND: Duration = Duration::from_secs(1);

#[test]
#[ignore = "not a test: the process that waits in io_uring, which is started when it is needed"]
#[allow(unsafe_code, reason = "the kernel is given a buffer")]
fn waits_in_io_uring() {
    use std::os::fd::AsRawFd as _;
    if std::env::var_os(WAITS).is_none() {
        return;
    }
    let (empty, _writer) = rustix::pipe::pipe().unwrap();
    let mut ring = IoUring::new(4).unwrap();
    let mut buffer = [0_u8; 8];
    let read = opcode::Read::new(types::Fd(empty.as_raw_fd()), buffer.as_mut_ptr(), 8).build();
    // SAFETY: the buffer and the pipe outlive the ring's use of them: the wait has no end.
    unsafe { ring.submission().push(&read).unwrap() };
    ring.submit_and_wait(1).unwrap();
}

/// A process beside the program that waits in io_uring for what never comes.
fn wait_in_io_uring(groups: &mut Groups) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "pressure::waits_in_io_uring", "--ignored"]);
    groups.start(command.arg("--nocapture").env(WAITS, "1"));
}

/// A file system on this machine's disk.
struct Disk {
    bed: Bed,
    /// Its block device's counters.
    stat: PathBuf,
}

impl Disk {
    fn new() -> Here<Disk> {
        tools::have("xfs_fsr")?;
        let bed = Plan::of("xfs").place(Place::Disk).make()?;
        let beside = bed.path().parent().unwrap();
        let device = rustix::fs::stat(beside).map_err(NotHere::because)?.st_dev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let stat = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
        if !stat.exists() {
            return Err(NotHere::because("the temporary directory lies on no disk"));
        }
        Ok(Disk { bed, stat })
    }

    fn image(&self, name: &str, size: u64) -> PathBuf {
        let image = self.bed.path().join(name);
        guest::random_direct_writes(&image, size, size / guest::BLOCK);
        self.bed.sync();
        image
    }

    /// For how long it was at work until now.
    fn worked(&self) -> Duration {
        let stat = fs::read_to_string(&self.stat).unwrap();
        let ticks = stat.split_ascii_whitespace().nth(9).unwrap();
        Duration::from_millis(ticks.parse().unwrap())
    }

    /// How much of a second it is at work.
    fn busy(&self) -> f32 {
        let (began, before) = (Instant::now(), self.worked());
        std::thread::sleep(SECOND);
        self.busy_since(began, before)
    }

    fn busy_since(&self, began: Instant, before: Duration) -> f32 {
        (self.worked() - before).as_secs_f32() / began.elapsed().as_secs_f32()
    }

    fn await_idle(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.busy() > 0.05 {
            assert!(Instant::now() < deadline, "it has always something to do");
        }
    }

    /// What a command says, as often as something else keeps the disk busy and holds it up.
    fn undisturbed<T>(&self, run: impl Fn() -> T, is_held_up: impl Fn(&T) -> bool) -> T {
        loop {
            self.await_idle();
            let (began, before) = (Instant::now(), self.worked());
            let said = run();
            if !is_held_up(&said) || self.busy_since(began, before) < 0.1 {
                return said;
            }
        }
    }

    /// `fragwatch defrag` of one image in a group.
    fn defragmented(&self, group: &Path, keys: &str, engine: &str, image: &Path) -> Value {
        let run = || said(&mut defrag(group, &config(&self.bed, keys), engine, image));
        self.undisturbed(run, |run| run["guard"] == "io_pressure")
    }

    /// The guards of both engines and the planner leave the image alone because of the pressure. It
    /// need not be above the limit all the time.
    fn refuses(&self, group: &Path, image: &Path) {
        let deadline = Instant::now() + PATIENCE;
        let config = config(&self.bed, LIMIT);
        for engine in ["xfs_fsr", "online"] {
            loop {
                let run = said(defrag(group, &config, engine, image).arg("--dry-run"));
                if run["guard"] == "io_pressure" {
                    let reason = run["reason"].as_str().unwrap();
                    assert!(reason.starts_with(TOO_HIGH), "{run}");
                    break;
                }
                assert!(Instant::now() < deadline, "{run}");
            }
        }
        while self.why_not(group, image)["code"] != "io_pressure" {
            assert!(Instant::now() < deadline, "{image:?} is planned");
        }
    }

    /// Why the planner would leave the image alone, if it would.
    fn why_not(&self, group: &Path, image: &Path) -> Value {
        let days = r#"["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]"#;
        let path = self.bed.path().parent().unwrap().join("plan.toml");
        let text = format!(
            "[images]\npaths = [{:?}]\nmin_size = \"0B\"\n\
             [thresholds]\nwarning = {{ extents = 1000 }}\n[defrag]\n{LIMIT}\
             [[maintenance.window]]\ndays = {days}\nstart = \"00:00\"\nduration = \"24h\"\n",
            self.bed.path()
        );
        fs::write(&path, text).unwrap();
        let mut command = fragwatch();
        command.args(["plan", "--json", "--config"]).arg(&path);
        command.env("STATE_DIRECTORY", path.with_extension("state"));
        command.env("RUNTIME_DIRECTORY", path.with_extension("state"));
        let output = within(group, &command).output().unwrap();
        let plan: Value = serde_json::from_slice(&output.stdout).expect("it is a plan");
        let mut images = plan["images"].as_array().unwrap().iter();
        let planned = images.find(|it| it["path"] == image.to_str().unwrap());
        planned.unwrap_or_else(|| panic!("{plan}"))["why_not"].clone()
    }
}

fn defrag(group: &Path, config: &Path, engine: &str, image: &Path) -> Command {
    let mut command = fragwatch();
    command.args(["defrag", "--engine", engine, "--force-window", "--json"]);
    command.arg("--config").arg(config).arg(image);
    command.env("STATE_DIRECTORY", state(config));
    let mut within = within(group, &command);
    within.stdout(Stdio::piped());
    within
}

/// Those who wait for the disk, each for each of its writes.
fn fio(disk: &Disk) -> Command {
    let mut fio = Command::new("fio");
    fio.args(["--name=wait", "--rw=randwrite", "--bs=4k", "--direct=1"])
        .args(["--size=16m", "--time_based", "--runtime=600"])
        .args(["--thread", "--numjobs=4"])
        .arg(format!("--directory={}", disk.bed.path().display()));
    fio
}

#[test]
fn who_waits_in_io_uring_holds_up_nothing_and_who_waits_for_the_disk_does() {
    support::require!(tools::have("fio"));
    let disk = support::require!(Disk::new());
    let mut groups = support::require!(Groups::new());
    let images = ["fsr.img", "online.img", "held.img", "late.img"];
    let images = images.map(|name| disk.image(name, 8 * MIB));
    let [fsr, online, held, late] = &images;
    let own = groups.own();

    wait_in_io_uring(&mut groups);
    let began = Instant::now();
    groups.await_pressure(|is| is > 60.0);
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );

    for (engine, image) in [("xfs_fsr", fsr), ("online", online)] {
        let run = disk.defragmented(&own, LIMIT, engine, image);
        assert_eq!(run["outcome"], "improved", "{run}");
    }
    assert!(groups.pressure() > 60.0);
    // Other reasons than the pressure have nothing to do with it.
    let why_not = || disk.why_not(&own, held);
    let why_not = disk.undisturbed(why_not, |why_not| why_not["code"] == "io_pressure");
    assert_ne!(why_not["code"], "io_pressure", "{why_not}");
    // It is told, once.
    let mut loud = Command::new(env!("CARGO_BIN_EXE_fragwatch"));
    loud.args([
        "defrag",
        "--engine",
        "xfs_fsr",
        "--force-window",
        "--config",
    ]);
    let config = config(&disk.bed, LIMIT);
    loud.env("STATE_DIRECTORY", state(&config));
    loud.arg(config).arg(late);
    let told = || {
        let told = within(&own, &loud).output().unwrap();
        String::from_utf8(told.stderr).unwrap()
    };
    let told = disk.undisturbed(told, |told| told.contains(TOO_HIGH));
    let words = "without I/O does not count: the disks were at work";
    assert_eq!(told.matches(words).count(), 1, "{told}");

    // Both at once: now the disk is at work.
    groups.start(&fio(&disk));
    disk.refuses(&own, held);
    // And no longer.
    groups.others.pop();
    let run = disk.defragmented(&own, LIMIT, "online", held);
    assert_eq!(run["outcome"], "improved", "{run}");
}

/// A run that keeps the disks at work itself, for longer than what it knew before is remembered.
#[test]
fn a_run_goes_on_beside_those_who_wait_for_nothing() {
    let disk = support::require!(Disk::new());
    let mut groups = support::require!(Groups::new());
    let image = disk.image("vm.img", 20 * MIB);
    wait_in_io_uring(&mut groups);
    groups.await_pressure(|is| is > 80.0);
    // 40 MiB are read and written.
    let slowly = format!("{LIMIT}bandwidth = \"1MiB/s\"\n");
    let run = disk.defragmented(&groups.own(), &slowly, "online", &image);
    assert_eq!(run["outcome"], "improved", "{run}");
    assert!(run["seconds"].as_f64().unwrap() > 35.0, "{run}");
    assert!(groups.pressure() > 80.0);
}

/// Without anybody who waits for nothing, as it always was.
#[test]
fn a_run_stands_still_while_others_wait_for_the_disk() {
    support::require!(tools::have("fio"));
    let disk = support::require!(Disk::new());
    let mut groups = support::require!(Groups::new());
    let image = disk.image("vm.img", 24 * MIB);
    disk.await_idle();
    let slowly = config(&disk.bed, &format!("{LIMIT}bandwidth = \"1MiB/s\"\n"));
    let mut run = Child::spawn(&mut defrag(&groups.own(), &slowly, "online", &image)).unwrap();
    let extents = || tools::xfs_io_stat_nextents(&image);
    let whole = extents();
    let deadline = Instant::now() + PATIENCE;
    while extents() == whole {
        assert!(Instant::now() < deadline, "it does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    groups.start(&fio(&disk));
    // By itself it moves something every second.
    let (mut last, mut since) = (extents(), Instant::now());
    while since.elapsed() < 5 * SECOND {
        assert_eq!(
            run.wait(Duration::from_millis(100)),
            None,
            "it did not stand still"
        );
        let now = extents();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    assert!(last > 1);
    groups.others.clear();
    let run = finish(&mut run);
    assert_eq!(run["outcome"], "improved", "{run}");
}
