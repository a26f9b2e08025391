//! An image defragmented while a guest uses it: what is gained, and what the guest notices. The
//! online engine beside xfs_fsr, beside a loop of fixed segments (16 MiB, then 250 ms of rest) as it
//! was proposed for xfsprogs in 2024, and beside nothing at all.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fragwatch::internals::clone_range;
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, ftruncate, openat};
use serde_json::Value;

use super::run::{FRAGWATCH, command, time};
use super::samples::{Samples, Unit, show};
use super::support::bed::Plan;
use super::support::rundir::Place;
use super::support::{Bed, Here, Latencies, MIB, Reader, Writer, guest, tools};
use super::table::Row;

const SIZE: u64 = 512 * MIB;
const BLOCKS: u64 = SIZE / guest::BLOCK;
/// What the guest does a second.
const PER_SECOND: u32 = 500;
/// How long it does so where nothing is defragmented.
const ALONE: Duration = Duration::from_secs(15);
/// Each round makes an image anew for each contender.
const ROUNDS_PER_REPETITION: usize = 5;

/// To reach.
const P999: f64 = 0.040;
const WORST: f64 = 0.100;
const PER_BUSY_SECOND: f64 = 5000.0;

const KINDS: [(&str, &str); 2] = [("without rmapbt", "rmapbt=0"), ("with rmapbt", "rmapbt=1")];

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    tools::have("xfs_fsr")?;
    let rounds = repetitions.div_ceil(ROUNDS_PER_REPETITION);
    let mut rows = Vec::new();
    for (kind, feature) in KINDS {
        let bed = plan(feature).place(Place::quick()).make()?;
        for (load, name) in [(Load::Writer, "writer"), (Load::Reader, "reader")] {
            rows.extend(under(&bed, load, &format!("{kind}, {name}"), rounds));
        }
    }
    Ok(rows)
}

/// The same without anybody who uses it. In memory the copy costs xfs_fsr nothing; on a disk it does.
pub fn idle_rows(repetitions: usize) -> Here<Vec<Row>> {
    tools::have("xfs_fsr")?;
    let mut rows = Vec::new();
    for (kind, feature) in KINDS {
        for (place, name) in [(Place::quick(), "memory"), (Place::Disk, "disk")] {
            let bed = plan(feature).place(place).make()?;
            rows.push(idle(&bed, &format!("{kind}, {name}"), repetitions));
        }
    }
    Ok(rows)
}

fn plan(feature: &str) -> Plan {
    Plan::of("xfs")
        .size(6 << 30)
        .mkfs(&["-m", &format!("reflink=1,{feature}")])
}

#[derive(Debug, Clone, Copy)]
enum Load {
    Writer,
    Reader,
}

/// Who defragments.
#[derive(Debug, Clone, Copy)]
enum Who {
    Online,
    Fsr,
    Fixed,
    Nobody,
}

const ALL: [(Who, &str); 4] = [
    (Who::Online, "online"),
    (Who::Fsr, "xfs_fsr"),
    (Who::Fixed, "16 MiB and 250 ms"),
    (Who::Nobody, "none"),
];

/// What came of one run.
#[derive(Debug, Default)]
struct Runs {
    extents: u64,
    left: Vec<f64>,
    seconds: Vec<f64>,
    per_busy_second: Vec<f64>,
    p999: Vec<f64>,
    worst: Vec<f64>,
}

impl Runs {
    fn one(&mut self, bed: &Bed, load: Load, who: Who) {
        let image = fresh(bed);
        self.extents = tools::xfs_io_stat_nextents(&image);
        let mut said = Value::Null;
        let began = Instant::now();
        let latencies = beside(load, &image, || said = defragment(bed, &image, who));
        self.seconds.push(began.elapsed().as_secs_f64());
        let left = tools::xfs_io_stat_nextents(&image);
        self.left.push(left as f64);
        self.p999.push(latencies.percentile(99.9).as_secs_f64());
        self.worst.push(latencies.worst().as_secs_f64());
        // It takes long; who waits sees something.
        eprintln!(
            "{load:?}, {who:?}: {left} extents left after {:.1} s, p99.9 {:.1} ms, worst {:.1} ms",
            began.elapsed().as_secs_f64(),
            latencies.percentile(99.9).as_secs_f64() * 1e3,
            latencies.worst().as_secs_f64() * 1e3,
        );
        if let Some(busy) = said["runs"][0]["busy_seconds"].as_f64() {
            let gone = self.extents.saturating_sub(left) as f64;
            self.per_busy_second.push(gone / busy);
        }
    }
}

fn fresh(bed: &Bed) -> PathBuf {
    let image = bed.path().join("vm.img");
    let _ = fs::remove_file(&image);
    guest::random_direct_writes(&image, SIZE, BLOCKS);
    bed.sync();
    image
}

fn beside(load: Load, image: &Path, work: impl FnOnce()) -> Latencies {
    match load {
        Load::Writer => {
            let writer = Writer::start(image, Some(PER_SECOND));
            work();
            let written = writer.stop();
            written.verify();
            written.latencies
        }
        Load::Reader => {
            let reader = Reader::start(image, Some(PER_SECOND));
            work();
            reader.stop()
        }
    }
}

fn defragment(bed: &Bed, image: &Path, who: Who) -> Value {
    match who {
        Who::Online => {
            let output = online(bed, image).stdout(Stdio::piped()).output();
            serde_json::from_slice(&output.expect("it runs").stdout).expect("it says JSON")
        }
        Who::Fsr => {
            time(&mut command("xfs_fsr", [&"-v", &image]));
            Value::Null
        }
        Who::Fixed => {
            fixed(bed, image);
            Value::Null
        }
        Who::Nobody => {
            std::thread::sleep(ALONE);
            Value::Null
        }
    }
}

fn online(bed: &Bed, image: &Path) -> Command {
    let beside = bed.path().parent().expect("it has one");
    let config = beside.join("compare.toml");
    // The others know no limits either.
    let text = "[defrag]\nbandwidth = \"64GiB/s\"\nmax_io_pressure = 100\n";
    fs::write(&config, text).expect("it is written");
    let engine: [&dyn AsRef<std::ffi::OsStr>; 8] = [
        &"defrag",
        &"--force-window",
        &"--engine",
        &"online",
        &"--json",
        &"--config",
        &config,
        &image,
    ];
    let mut command = command(FRAGWATCH, engine);
    command.env("STATE_DIRECTORY", beside.join("state"));
    command
}

/// Clone 16 MiB, unshare them, let go of the clone, rest for 250 ms.
fn fixed(bed: &Bed, image: &Path) {
    const SEGMENT: u64 = 16 * MIB;
    let image = OpenOptions::new()
        .read(true)
        .write(true)
        .open(image)
        .expect("it opens");
    let directory = File::open(bed.path()).expect("it opens");
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let temporary = openat(&directory, ".", flags, Mode::RUSR).expect("a file without a name");
    for start in (0..SIZE).step_by(SEGMENT as usize) {
        clone_range(&image, start, SEGMENT, &temporary, 0).expect("it clones");
        let mode = FallocateFlags::UNSHARE_RANGE | FallocateFlags::KEEP_SIZE;
        fallocate(&image, mode, start, SEGMENT).expect("it unshares");
        ftruncate(&temporary, 0).expect("it lets go");
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn under(bed: &Bed, load: Load, name: &str, rounds: usize) -> Vec<Row> {
    let mut all = ALL.map(|_| Runs::default());
    for round in 0..rounds {
        for turn in 0..ALL.len() {
            let who = (round + turn) % ALL.len();
            all[who].one(bed, load, ALL[who].0);
        }
    }
    let extents = all[0].extents as f64;
    let per_busy_second = Samples::new(Unit::Seconds, all[0].per_busy_second.clone()).median();
    let times = |values: &dyn Fn(&Runs) -> Vec<f64>| -> [Samples; 4] {
        [0, 1, 2, 3].map(|who| Samples::new(Unit::Seconds, values(&all[who])))
    };
    let row = |what: &str, of: &dyn Fn(&Runs) -> Vec<f64>, most: f64| {
        let times = times(of);
        let others = others(|who| times[who].to_string());
        let reach = format!("at most {}", show(Unit::Seconds, most));
        let reached = times[0].median() <= most;
        Row::plain(
            format!("{what} ({name})"),
            &times[0],
            others,
            reach,
            reached,
        )
    };
    let left = |who: usize| all[who].left.iter().copied().fold(0.0, f64::max);
    let took = times(&|runs| runs.seconds.clone());
    vec![
        row(
            "p99.9 of the guest's 500 operations a second meanwhile",
            &|r| r.p999.clone(),
            P999,
        ),
        row("worst of them", &|runs| runs.worst.clone(), WORST),
        Row::plain(
            format!("extents left of {extents} ({name})"),
            left(0),
            others(|who| format!("{}", left(who))),
            "below 0.5 %",
            left(0) < extents / 200.0,
        ),
        Row::plain(
            format!("extents removed a second of work, and time in all ({name})"),
            format!("{per_busy_second:.0}; {}", took[0]),
            others(|who| took[who].to_string()),
            "at least 5000 a second",
            per_busy_second >= PER_BUSY_SECOND,
        ),
    ]
}

fn others(tell: impl Fn(usize) -> String) -> String {
    let told: Vec<_> = (1..ALL.len())
        .map(|who| format!("{}: {}", ALL[who].1, tell(who)))
        .collect();
    told.join("; ")
}

/// An image that nobody has open.
fn idle(bed: &Bed, kind: &str, repetitions: usize) -> Row {
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..repetitions {
        let image = fresh(bed);
        times[0].push(time(&mut online(bed, &image)));
        let image = fresh(bed);
        times[1].push(time(&mut command("xfs_fsr", [&"-v", &image])));
    }
    let [ours, theirs] = times.map(|times| Samples::new(Unit::Seconds, times));
    let work = format!("an image that nobody uses, 131k extents ({kind})");
    Row::ratio(work, &ours, "xfs_fsr", &theirs, 2.0)
}
