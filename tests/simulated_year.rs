//! A year of windows, growth and defragmenting on made-up file systems, in seconds: what must never
//! happen does not, and what should come of it does.
//!
//! Only the planner and the calendar are real. The engines of this world copy at a speed that they
//! do not know beforehand, are stopped when a window closes, and sometimes bring nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clippy knows the tests, but not what they call"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use fragwatch::internals::Assessor;
use fragwatch::internals::config::settings::{
    Blackout, Defrag, Maintenance, Thresholds, Window, Zone,
};
use fragwatch::internals::maintenance::{
    Active, Allowed, Calendar, Decision, FilesystemFacts, ImageFacts, JitterSeed, LastRun,
    PlanFacts, PlannedRun, Speeds, User, ideal, plan,
};
use fragwatch::internals::model::{
    Bytes, Effect, Engine, ExtentCount, ExtentsPerDay, Features, Filesystem, FilesystemKind,
    ImageKey, ImageRef, OutcomeKind, RunRecord, Severity, UnixTime,
};
use jiff::civil::{Date, Weekday, date, time};
use jiff::{SignedDuration, Timestamp};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// How far the clock of this world moves at once.
const STEP: Duration = Duration::from_secs(300);

/// Numbers that look random and are the same every time (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }
}

/// A run of this world.
struct Running {
    /// Which image, by its number.
    image: usize,
    run: PlannedRun,
    /// What it really copies in a second.
    speed: u64,
    began: Timestamp,
    copied: u64,
    before: ExtentCount,
}

/// How often what happened.
#[derive(Debug, Default, Clone, PartialEq)]
struct Tally {
    improved: BTreeMap<Engine, u32>,
    nothing: u32,
    cut_off: u32,
    plans: u32,
    reasons: BTreeMap<&'static str, u32>,
    log: Vec<(Timestamp, PathBuf, Engine)>,
}

struct World {
    now: Timestamp,
    calendar: Calendar,
    policy: Defrag,
    random: Random,
    images: Vec<ImageFacts>,
    /// What each image gains in a day.
    growth: Vec<f64>,
    /// Extents as a number that can grow by parts of one.
    extents: Vec<f64>,
    filesystems: Vec<FilesystemFacts>,
    /// What is free when no run takes it.
    free: Vec<u64>,
    past: Vec<Vec<RunRecord>>,
    running: Vec<Running>,
    paused: bool,
    incident: bool,
    recent_incident: bool,
    tally: Tally,
}

fn windows() -> Maintenance {
    let window = |days: &[Weekday], hour, minute, hours: u64| Window {
        days: days.to_vec(),
        start: time(hour, minute, 0, 0),
        duration: Duration::from_secs(hours * 3600),
    };
    Maintenance {
        timezone: Zone::named("Europe/Berlin").unwrap(),
        jitter: Duration::from_secs(1800),
        windows: vec![
            window(&[Weekday::Saturday, Weekday::Sunday], 1, 0, 4),
            window(&[Weekday::Wednesday], 22, 30, 3),
        ],
        blackouts: vec![Blackout {
            from: date(2026, 12, 20),
            to: date(2027, 1, 6),
        }],
        ..Maintenance::default()
    }
}

fn filesystem(number: usize) -> FilesystemFacts {
    let features = Features {
        reflink: number != 1,
        rmapbt: number == 2,
        ..Features::default()
    };
    FilesystemFacts {
        id: format!("fs-{number}"),
        info: Filesystem {
            mount: PathBuf::from(format!("/srv/{number}")),
            type_name: "xfs".to_owned(),
            kind: FilesystemKind::Xfs,
            uuid: None,
            features: Some(features),
            size: Bytes(4000 * GIB),
            free: Bytes(800 * GIB),
            block_size: Bytes(4096),
        },
        stalled: false,
        active: None,
        io_pressure: None,
        speeds: Speeds::default(),
        space: None,
    }
}

fn image(number: usize, filesystem: usize, random: &mut Random) -> ImageFacts {
    let gib = 10 + random.below(190);
    ImageFacts {
        path: PathBuf::from(format!("/srv/{filesystem}/{number}.img")),
        filesystem: format!("fs-{filesystem}"),
        severity: Severity::Ok,
        extents: ExtentCount(0),
        ideal: ideal(Bytes(gib * GIB), random.below(100)),
        outlook: None,
        growth: None,
        size: Bytes(gib * GIB),
        allocated: Bytes(gib * GIB),
        user: None,
        shares_blocks: false,
        obstacles: Vec::new(),
        last_run: None,
    }
}

impl World {
    const FILESYSTEMS: usize = 4;
    const IMAGES: usize = 40;

    fn new(seed: u64) -> World {
        let mut random = Random(seed);
        let images: Vec<ImageFacts> = (0..World::IMAGES)
            .map(|number| image(number, number % World::FILESYSTEMS, &mut random))
            .collect();
        let growth = |_| random.below(30_000) as f64;
        let growth: Vec<f64> = (0..World::IMAGES).map(growth).collect();
        World {
            now: "2026-01-01T00:00Z".parse().unwrap(),
            calendar: Calendar::new(&windows(), JitterSeed::from_machine_id("simulated")),
            policy: Defrag::default(),
            extents: vec![1000.0; World::IMAGES],
            growth,
            images,
            filesystems: (0..World::FILESYSTEMS).map(filesystem).collect(),
            free: vec![800 * GIB; World::FILESYSTEMS],
            past: vec![Vec::new(); World::FILESYSTEMS],
            running: Vec::new(),
            paused: false,
            incident: false,
            recent_incident: false,
            tally: Tally::default(),
            random,
        }
    }

    fn filesystem_of(&self, image: usize) -> usize {
        image % World::FILESYSTEMS
    }

    fn step(&mut self) {
        self.now += STEP;
        if self.now.as_second() % 86_400 == 0 {
            self.day();
        }
        self.grow();
        self.advance();
        let open = self.calendar.open_until(self.now).is_some();
        if !open || self.paused || self.incident {
            self.cut_off();
        }
        // Outside a window nothing should begin either, which is worth asking now and then.
        if open || self.now.as_second() % 7200 == 0 {
            self.begin();
        }
        self.check();
    }

    /// What a day brings: VMs come and go, space is filled and freed, and there is trouble.
    fn day(&mut self) {
        for (number, image) in self.images.iter_mut().enumerate() {
            let pid = 1000 + u32::try_from(number).unwrap();
            let name = Some(format!("vm-{number}"));
            // Half of the VMs never end, the others have a day off now and then.
            let is_on = number % 8 < 4 || !self.random.one_in(2);
            image.user = is_on.then_some(User::Vm {
                name,
                pid,
                manager: None,
                node: None,
            });
            image.shares_blocks = number % 10 == 9 && !self.random.one_in(3);
        }
        for (filesystem, free) in std::iter::zip(&mut self.filesystems, &mut self.free) {
            *free = self.random.below(1000) * GIB;
            filesystem.stalled = self.random.one_in(50);
        }
        // A run that is under way keeps what it was promised.
        for running in &self.running {
            let free = &mut self.free[running.image % World::FILESYSTEMS];
            *free = (*free).max(500 * GIB);
        }
        self.paused = self.random.one_in(40);
        self.recent_incident = self.incident;
        self.incident = self.random.one_in(60);
    }

    fn grow(&mut self) {
        let days = STEP.as_secs_f64() / 86_400.0;
        let assessor = Assessor::new(&Thresholds::default());
        for (number, image) in self.images.iter_mut().enumerate() {
            if image.user.is_some() {
                self.extents[number] += self.growth[number] * days;
            }
            image.growth = Some(ExtentsPerDay(self.growth[number]));
            image.extents = ExtentCount(self.extents[number] as u64);
            image.severity = assessor.of_count(&image.path, image.extents);
        }
    }

    fn advance(&mut self) {
        let (done, running): (Vec<Running>, Vec<Running>) = std::mem::take(&mut self.running)
            .into_iter()
            .map(|mut running| {
                running.copied += running.speed * STEP.as_secs();
                running
            })
            .partition(|running| running.copied >= self.images[running.image].allocated.0);
        self.running = running;
        for running in done {
            self.finish(&running);
        }
    }

    fn finish(&mut self, running: &Running) {
        let number = running.image;
        let engine = running.run.engine;
        let took = Duration::try_from(self.now.duration_since(running.began)).unwrap();
        let filesystem = self.filesystem_of(number);
        self.past[filesystem].push(RunRecord {
            image: ImageRef {
                key: ImageKey {
                    filesystem: format!("fs-{filesystem}"),
                    inode: number as u64,
                    generation: 0,
                },
                path: self.images[number].path.clone(),
            },
            at: UnixTime(running.began.as_second()),
            engine,
            from: running.before,
            to: running.before,
            bytes: Bytes(running.copied),
            took,
            stalls: None,
            outcome: OutcomeKind::Improved,
            reason: String::new(),
        });
        let past: Vec<&RunRecord> = self.past[filesystem].iter().collect();
        self.filesystems[filesystem].speeds = Speeds::of(&past);
        let image = &mut self.images[number];
        let before = image.last_run.as_ref();
        let in_vain = before.filter(|last| last.effect == Effect::InVain);
        let in_vain = in_vain.map_or(0, |last| last.times);
        // Somebody opened it in the meantime, for instance.
        let (effect, times) = if self.random.one_in(8) {
            self.tally.nothing += 1;
            (Effect::InVain, in_vain + 1)
        } else {
            *self.tally.improved.entry(engine).or_default() += 1;
            self.extents[number] = image.ideal.0 as f64;
            (Effect::Improved, 1)
        };
        image.last_run = Some(LastRun {
            ended: self.now,
            effect,
            times,
            reason: String::new(),
        });
    }

    fn cut_off(&mut self) {
        for running in std::mem::take(&mut self.running) {
            let image = &mut self.images[running.image];
            if running.run.engine == Engine::XfsFsr {
                self.tally.cut_off += 1;
            } else {
                let share = running.copied as f64 / image.allocated.0 as f64;
                self.extents[running.image] *= 1.0 - share;
            }
            image.last_run = Some(LastRun {
                ended: self.now,
                effect: Effect::Interrupted,
                times: 1,
                reason: String::new(),
            });
        }
    }

    fn facts(&mut self) -> PlanFacts {
        let pressure = self.random.below(50) as f64;
        for (number, filesystem) in self.filesystems.iter_mut().enumerate() {
            let here = |it: &&Running| it.image % World::FILESYSTEMS == number;
            let running = self.running.iter().find(here);
            filesystem.active = running.map(|running| Active {
                path: self.images[running.image].path.clone(),
                ends: running.run.ends,
            });
            let taken = running.map_or(0, taken);
            filesystem.info.free = Bytes(self.free[number].saturating_sub(taken));
            filesystem.io_pressure = Some(pressure);
        }
        PlanFacts {
            now: self.now,
            zone: self.calendar.zone().clone(),
            allowed: Allowed::by(&self.calendar, self.now),
            incident: self.incident,
            recent_incident: self.recent_incident,
            paused: self.paused,
            not_ready: None,
            engines: Vec::new(),
            images: self.images.clone(),
            filesystems: self.filesystems.clone(),
        }
    }

    fn begin(&mut self) {
        let facts = self.facts();
        let plan = plan(&facts, &self.policy);
        self.tally.plans += 1;
        assert_eq!(plan.images.len(), self.images.len());
        for planned in &plan.images {
            if let Decision::Not(reason) = &planned.decision {
                *self.tally.reasons.entry(reason.code.as_str()).or_default() += 1;
            }
        }
        for (planned, run) in plan.due(self.now) {
            let by_path = |image: &ImageFacts| image.path == planned.path;
            let image = self.images.iter().position(by_path).unwrap();
            // Some have disks that turn.
            let is_slow = self.filesystem_of(image).is_multiple_of(3);
            let base = match run.engine {
                Engine::XfsFsr if is_slow => 24 * MIB,
                Engine::XfsFsr => 120 * MIB,
                Engine::Online => 25 * MIB,
                Engine::BlockCopy => 50 * MIB,
            };
            self.may_begin(image, run);
            self.running.push(Running {
                image,
                run,
                speed: base * (90 + self.random.below(20)) / 100,
                began: self.now,
                copied: 0,
                before: planned.extents,
            });
            let entry = (self.now, planned.path.clone(), run.engine);
            self.tally.log.push(entry);
        }
    }

    /// What must be so when a run begins.
    fn may_begin(&self, number: usize, run: PlannedRun) {
        let image = &self.images[number];
        assert!(image.severity >= Severity::Warning, "{image:?}");
        if run.engine == Engine::XfsFsr {
            assert!(image.user.is_none() && !image.shares_blocks, "{image:?}");
        } else {
            assert_ne!(self.filesystem_of(number), 1, "no reflink: {image:?}");
        }
        assert!(!self.filesystems[self.filesystem_of(number)].stalled);
        let last = image.last_run.as_ref();
        if let Some(last) = last.filter(|last| last.effect != Effect::Interrupted) {
            let since = self.now.duration_since(last.ended);
            assert!(since >= SignedDuration::from_hours(7 * 24), "{image:?}");
        }
    }

    /// What must be so at any time.
    fn check(&self) {
        let running = &self.running;
        assert!(running.len() <= self.policy.parallel as usize);
        for (number, filesystem) in self.filesystems.iter().enumerate() {
            let here: Vec<&Running> = running
                .iter()
                .filter(|running| self.filesystem_of(running.image) == number)
                .collect();
            assert!(here.len() <= 1, "{filesystem:?}");
            let taken: u64 = here.iter().map(|running| taken(running)).sum();
            let keeps = filesystem.info.size.0 / 20;
            assert!(
                taken == 0 || self.free[number] >= taken + keeps,
                "{filesystem:?}"
            );
        }
        assert!(running.is_empty() || self.clock_allows(), "{}", self.now);
        assert!(running.is_empty() || !(self.paused || self.incident));
    }

    /// The windows once more, by the hands of the clock.
    fn clock_allows(&self) -> bool {
        let clock = self.calendar.zone().to_datetime(self.now);
        let minutes = i32::from(clock.hour()) * 60 + i32::from(clock.minute());
        // The clock was put forward on the last Sunday of March, and back on that of October.
        let end = match clock.date() {
            day if day == date(2026, 3, 29) => 6 * 60,
            day if day == date(2026, 10, 25) => 4 * 60,
            _ => 5 * 60,
        };
        let in_window = match clock.weekday() {
            Weekday::Saturday | Weekday::Sunday => (60..end).contains(&minutes),
            Weekday::Wednesday => minutes >= 22 * 60 + 30,
            Weekday::Thursday => minutes < 90,
            _ => false,
        };
        let christmas: Date = date(2026, 12, 20);
        in_window && clock.date() < christmas
    }

    fn live(&mut self) {
        let end: Timestamp = "2027-01-01T00:00Z".parse().unwrap();
        while self.now < end {
            self.step();
        }
    }
}

/// The space that a run takes: all that it needs from the beginning, as xfs_fsr does.
fn taken(running: &Running) -> u64 {
    running.run.estimate.needs.0
}

#[test]
fn a_year() {
    let mut world = World::new(5);
    world.live();
    let tally = &world.tally;
    let summary = format!(
        "{} plans, {} runs, improved {:?}, nothing {}, cut off {}, left alone {:?}",
        tally.plans,
        tally.log.len(),
        tally.improved,
        tally.nothing,
        tally.cut_off,
        tally.reasons
    );
    // Both engines had something to do.
    assert!(tally.improved[&Engine::XfsFsr] > 10, "{summary}");
    assert!(tally.improved[&Engine::Online] > 50, "{summary}");
    // Nothing was copied in vain: disks are a tenth slower than measured at worst, and that much is
    // left between the end of a run and that of its window.
    assert_eq!(tally.cut_off, 0, "{summary}");
    // Who can be defragmented has been, in time.
    for (number, image) in world.images.iter().enumerate() {
        let can = world.filesystem_of(number) != 1;
        assert!(
            !can || image.severity < Severity::Critical,
            "{image:?}; {summary}"
        );
    }
    for reason in [
        "below_severity",
        "in_use",
        "cooling_down",
        "no_space",
        "shares_blocks",
        "io_pressure",
        "paused",
        "incident",
        "stalled",
        "almost_full",
        "no_turn",
        "would_not_finish",
        "running_now",
    ] {
        assert!(tally.reasons.contains_key(reason), "no {reason}: {summary}");
    }
    eprintln!("{summary}");
}

#[test]
fn the_same_year_again() {
    let mut worlds = [World::new(11), World::new(11)];
    for world in &mut worlds {
        world.now = "2026-11-20T00:00Z".parse().unwrap();
        // They are to have something to do at once.
        world.extents = vec![700_000.0; World::IMAGES];
        world.live();
    }
    let [one, other] = worlds.map(|world| world.tally);
    assert!(one.log.len() > 10, "{one:?}");
    assert_eq!(one, other);
}
