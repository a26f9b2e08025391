//! What the guest does: a file system in its memory, an image, its writers, its neighbours, and the
//! engine.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use fragwatch::internals::config::settings::Defrag;
use fragwatch::internals::defrag::{
    self, Event, HostInterfaces, KernelCheck, Region, Request, Survey,
};
use fragwatch::internals::model::{
    Bytes, BytesPerSecond, Engine, Extent, RunOutcome, RunReport, Share, Stop,
};
use fragwatch::internals::probe::{MapReader, ReadPace};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::contents::Wrong;
use super::neighbours::{FREE, Neighbours, free};
use super::support::MIB;
use super::support::guest::BLOCK;
use super::writers::{Writer, Writes};

/// The RAM disk (`super::support::boot::arrive` loads its driver).
const DEVICE: &str = "/dev/ram0";
const MOUNT_POINT: &str = "/mnt";
const IMAGE: u64 = 64 * MIB;
/// Enough that several of them wait whenever the engine has locked the image.
const WRITERS: u64 = 6;
const NEIGHBOURS: u64 = 2;
/// What neighbours take at the beginning. A file that nobody touches takes the rest.
const OF_NEIGHBOURS: u64 = 24 * MIB;
/// The threads of the neighbours remove and make a file after so many writes.
const WRITES_A_NEIGHBOUR: u64 = 200;

/// What came of it.
#[derive(Default)]
pub struct Outcome {
    /// Blocks of the image that held something wrong, when read back at once or at the end.
    pub image: Vec<Wrong>,
    /// Blocks of neighbours that did.
    pub neighbours: Vec<Wrong>,
    /// What xfs_repair found, if it found something.
    pub repair: Option<String>,
    /// Writes to the image.
    pub writes: u64,
    overlapping: u64,
    took: Duration,
    runs: Runs,
    made: u64,
    taken_up: usize,
}

#[derive(Default)]
struct Runs {
    segments: u64,
    moved: Bytes,
    outcomes: Vec<String>,
}

impl Outcome {
    /// Nothing was wrong.
    pub fn is_whole(&self) -> bool {
        self.image.is_empty() && self.neighbours.is_empty() && self.repair.is_none()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} wrong blocks of the image, {} of its neighbours, repair: {:?}; {} writes, {} of them \
             overlapping, in {:.0} s; {} segments, {} in {} runs ({}); {} neighbours, at the end on {} \
             blocks that were the image's",
            self.image.len(),
            self.neighbours.len(),
            self.repair,
            self.writes,
            self.overlapping,
            self.took.as_secs_f32(),
            self.runs.segments,
            self.runs.moved,
            self.runs.outcomes.len(),
            self.runs.outcomes.join(" "),
            self.made,
            self.taken_up,
        )?;
        let wrong = self.image.iter().chain(&self.neighbours);
        wrong.take(10).try_for_each(|wrong| write!(f, "\n{wrong}"))
    }
}

/// A file system with an image in it.
pub struct Scene {
    image: PathBuf,
    writes: Writes,
    neighbours: Vec<Neighbours>,
}

impl Scene {
    /// Makes it. So many writes are wanted.
    pub fn new(wanted: u64) -> Scene {
        let mut mkfs = Command::new("mkfs.xfs");
        mkfs.args(["-q", "-f", "-m", "reflink=1,rmapbt=1", DEVICE]);
        assert!(mkfs.status().unwrap().success());
        fs::create_dir_all(MOUNT_POINT).unwrap();
        mount_it();
        let image = Path::new(MOUNT_POINT).join("vm.img");
        File::create_new(&image).unwrap().set_len(IMAGE).unwrap();
        let neighbours = (0..NEIGHBOURS).map(|seed| Neighbours::new(Path::new(MOUNT_POINT), seed));
        Scene {
            image,
            writes: Writes::new(IMAGE / BLOCK, wanted),
            neighbours: neighbours.collect(),
        }
    }

    /// Writes the image and fills what is left with neighbours.
    pub fn prepare(&mut self) {
        self.writer().shatter().unwrap();
        let rest = File::create_new(Path::new(MOUNT_POINT).join("rest")).unwrap();
        let size = free(Path::new(MOUNT_POINT)).unwrap() - FREE - OF_NEIGHBOURS;
        fallocate(&rest, FallocateFlags::empty(), 0, size).unwrap();
        for neighbours in &mut self.neighbours {
            neighbours.fill().unwrap();
        }
    }

    /// What comes of a run whose kernel is judged, and which ends before its first segment.
    pub fn judged(&self) -> RunOutcome {
        let stop = || Some(Stop::Shutdown);
        self.defrag(KernelCheck::Judge, stop).outcome
    }

    fn defrag(&self, kernel: KernelCheck, mut orders: impl FnMut() -> Option<Stop>) -> RunReport {
        let limits = Defrag {
            keep_free: Share::percent(0),
            max_io_pressure: 100,
            bandwidth: BytesPerSecond(1 << 40),
            // After a call that took longer the engine rests four times as long: an emulated
            // processor is slow, and the writes would be over before the image was moved.
            stall_target: Duration::from_secs(1),
            ..Defrag::default()
        };
        let host = HostInterfaces {
            kernel,
            ..HostInterfaces::new("/tmp".into())
        };
        let mut plan = Vec::new();
        let mut watch = |event| match event {
            Event::Cleared(_) => plan = self.plan(),
            Event::Progress(progress) => {
                let block = position(&plan, progress.done) / BLOCK;
                self.writes.position.store(block, Ordering::Relaxed);
            }
            _ => {}
        };
        let request = Request {
            path: &self.image,
            limits: &limits,
            host: &host,
            orders: &mut orders,
            watch: &mut watch,
        };
        defrag::run(Engine::Online, request)
    }

    /// As the engine makes it, which does not publish it.
    fn plan(&self) -> Vec<Region> {
        let mut survey = Survey::new(Bytes(IMAGE));
        each_extent(&self.image, |extent| survey.push(extent));
        survey.finish().regions
    }

    /// Writers, neighbours and the engine, until there are as many writes as wanted.
    pub fn play(mut self) -> Outcome {
        let began = Instant::now();
        let before = blocks_of([self.image.clone()]);
        let mut neighbours = std::mem::take(&mut self.neighbours);
        let (mut image, runs) = self.act(&mut neighbours);
        let took = began.elapsed();
        let taken_up = blocks_of(neighbours.iter().flat_map(Neighbours::paths));
        // Nothing of it is in memory then.
        unmount(MOUNT_POINT, UnmountFlags::empty()).unwrap();
        mount_it();
        image.extend(self.writer().verify().unwrap());
        for some in &mut neighbours {
            some.verify_all().unwrap();
        }
        unmount(MOUNT_POINT, UnmountFlags::empty()).unwrap();
        Outcome {
            image,
            made: neighbours.iter().map(|some| some.made).sum(),
            neighbours: neighbours.into_iter().flat_map(|some| some.wrong).collect(),
            repair: repair(),
            writes: self.writes.count(),
            overlapping: self.writes.ledger.overlapping(),
            took,
            runs,
            taken_up: taken_up.intersection(&before).count(),
        }
    }

    fn act(&self, neighbours: &mut [Neighbours]) -> (Vec<Wrong>, Runs) {
        let mut runs = Runs::default();
        let wrong = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|_| scope.spawn(|| self.writer().work().unwrap()))
                .collect();
            for some in neighbours {
                scope.spawn(|| self.take_up(some));
            }
            while !self.writes.enough() {
                let orders = || self.writes.enough().then_some(Stop::Shutdown);
                runs.add(&self.defrag(KernelCheck::Overridden, orders));
            }
            let wrong = writers.into_iter().map(|writer| writer.join().unwrap());
            wrong.flatten().collect()
        });
        (wrong, runs)
    }

    fn take_up(&self, neighbours: &mut Neighbours) {
        let mut due = self.writes.count();
        while !self.writes.enough() {
            if self.writes.count() < due {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            neighbours.act().unwrap();
            due += WRITES_A_NEIGHBOUR;
        }
    }

    fn writer(&self) -> Writer<'_> {
        Writer::new(&self.writes, &self.image).unwrap()
    }
}

impl Runs {
    fn add(&mut self, report: &RunReport) {
        self.segments += report.segments.map_or(0, |work| work.segments);
        self.moved.0 += report.written.0;
        self.outcomes.push(match &report.outcome {
            RunOutcome::Refused { guard, .. } => guard.as_str().to_owned(),
            RunOutcome::Failed { reason } => reason.clone(),
            other => other.as_str().to_owned(),
        });
    }
}

/// Where the engine is after so many extents of its plan, in bytes. Nearly: what lies within a region
/// is taken for even.
fn position(plan: &[Region], mut done: u64) -> u64 {
    for region in plan {
        let (start, gain) = (region.start.0, region.gain.0);
        if done < gain {
            return start + (region.end.0 - start) * done / gain;
        }
        done -= gain;
    }
    0
}

fn each_extent(path: &Path, mut act: impl FnMut(Extent)) {
    let file = File::open(path).unwrap();
    let visit = |extent| {
        act(extent);
        ControlFlow::Continue(())
    };
    MapReader::default()
        .read(&file, Bytes(0), ReadPace::QUICK, visit, &mut || {})
        .unwrap();
}

/// The blocks of the device that files lie on.
fn blocks_of(paths: impl IntoIterator<Item = PathBuf>) -> HashSet<u64> {
    let mut blocks = HashSet::new();
    for path in paths {
        each_extent(&path, |extent| {
            let first = extent.physical.0 / BLOCK;
            blocks.extend(first..first + extent.length.0 / BLOCK);
        });
    }
    blocks
}

fn mount_it() {
    mount(DEVICE, MOUNT_POINT, "xfs", MountFlags::empty(), c"").unwrap();
}

fn repair() -> Option<String> {
    let output = Command::new("xfs_repair")
        .args(["-n", DEVICE])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (!output.status.success()).then_some(text)
}
