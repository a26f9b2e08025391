//! What fragwatch adds to xfs_fsr: its time beside that of the bare program, and its own share of the
//! processor time of a run. On a real disk, idle, and with no limit that binds.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::run::{FRAGWATCH, command, stat_field, time};
use super::samples::{Samples, Unit};
use super::support::bed::Plan;
use super::support::rundir::Place;
use super::support::{Bed, Here, MIB, guest, tools};
use super::table::Row;

/// An image of 130,000 extents.
const SIZE: u64 = 512 * MIB;
const BLOCKS: u64 = SIZE / guest::BLOCK;
/// Before a run the image is left alone for so long, as an idle one is.
const IDLE: Duration = Duration::from_millis(500);

/// To reach.
const WALL: f64 = 1.05;
const SHARE: f64 = 0.01;

const KINDS: [(&str, &str); 2] = [("without rmapbt", "rmapbt=0"), ("with rmapbt", "rmapbt=1")];

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    tools::have("xfs_fsr")?;
    let mut rows = Vec::new();
    for (kind, feature) in KINDS {
        let features = format!("reflink=1,{feature}");
        let bed = Plan::of("xfs")
            .size(6 << 30)
            .mkfs(&["-m", &features])
            .place(Place::Disk)
            .make()?;
        rows.extend(measure(&bed, kind, repetitions));
    }
    Ok(rows)
}

fn measure(bed: &Bed, kind: &str, repetitions: usize) -> [Row; 2] {
    let config = config(bed);
    let [mut ours, mut theirs, mut shares] = [const { Vec::new() }; 3];
    for turn in 0..repetitions {
        // In turns, and each is the first as often as the other.
        for who in [turn, turn + 1] {
            let image = fresh(bed);
            if who % 2 == 0 {
                let run = Run::of(&mut fragwatch(&config, &image));
                ours.push(run.wall);
                shares.push(run.own / run.all);
            } else {
                theirs.push(time(&mut command("xfs_fsr", [&"-v", &image])));
            }
            let left = tools::xfs_io_stat_nextents(&image);
            assert!(left < BLOCKS / 1000, "{left} extents are left");
        }
    }
    let [ours, theirs] = [ours, theirs].map(|times| Samples::new(Unit::Seconds, times));
    let work = format!("xfs_fsr on an idle image of 131k extents, guards and all ({kind})");
    let most = shares.iter().copied().fold(0.0, f64::max);
    [
        Row::ratio(work, &ours, "xfs_fsr", &theirs, WALL),
        Row::plain(
            format!("fragwatch's own share of the processor time of that run ({kind})"),
            format!("{:.2} %", most * 100.0),
            "the rest is xfs_fsr's",
            "below 1 %",
            most < SHARE,
        ),
    ]
}

fn config(bed: &Bed) -> PathBuf {
    let config = bed
        .path()
        .parent()
        .expect("it has one")
        .join("compare.toml");
    let text =
        "[defrag]\nbandwidth = \"64GiB/s\"\nmax_io_pressure = 100\nmax_swap_stall = \"10m\"\n";
    fs::write(&config, text).expect("it is written");
    config
}

fn fragwatch(config: &Path, image: &Path) -> Command {
    let arguments: [&dyn AsRef<OsStr>; 8] = [
        &"defrag",
        &"--force-window",
        &"--engine",
        &"xfs_fsr",
        &"--json",
        &"--config",
        &config,
        &image,
    ];
    command(FRAGWATCH, arguments)
}

fn fresh(bed: &Bed) -> PathBuf {
    let image = bed.path().join("vm.img");
    let _ = fs::remove_file(&image);
    guest::random_direct_writes(&image, SIZE, BLOCKS);
    bed.sync();
    std::thread::sleep(IDLE);
    image
}

/// What a command took, in seconds.
struct Run {
    wall: f64,
    /// Processor time of the command itself.
    own: f64,
    /// The same with that of its children.
    all: f64,
}

impl Run {
    fn of(command: &mut Command) -> Run {
        let began = Instant::now();
        let mut child = command.spawn().expect("it starts");
        let pid = Pid::from_child(&child);
        // It has ended, and what it took can still be read.
        waitid(
            WaitId::Pid(pid),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        )
        .expect("it ends");
        let wall = began.elapsed().as_secs_f64();
        let own = own_time(child.id());
        let children = children_time(child.id());
        let status = child.wait().expect("it is a child");
        assert!(status.success(), "{command:?}: {status}");
        let all = own + children;
        Run { wall, own, all }
    }
}

/// To the nanosecond (Documentation/scheduler/sched-stats.rst). It has one thread.
fn own_time(pid: u32) -> f64 {
    let path = format!("/proc/{pid}/schedstat");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let nanoseconds: u64 = text.split(' ').next().unwrap().parse().unwrap();
    nanoseconds as f64 / 1e9
}

/// To a hundredth of a second, of children that were waited for: proc(5), `cutime` and `cstime`.
fn children_time(pid: u32) -> f64 {
    let ticks = [16, 17].map(|field| stat_field(pid, field).unwrap_or_default());
    ticks.iter().sum::<u64>() as f64 / 100.0
}
