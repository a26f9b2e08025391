//! A host as an operator finds it: images on a real XFS, a month of history, a VM, a past incident.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fragwatch::internals::generation;
use fragwatch::internals::history::{
    ImageRef, IncidentRow, Record, SampleRow, SeverityRow, Store, Sweep,
};
use fragwatch::internals::model::{
    Bytes, Engine, ExtentCount, Format, ImageKey, Outcome, OutcomeKind, RunRecord, Severity,
    Stalls, Trigger, UnixTime,
};
use serde_json::{Value, json};

use crate::support::child::Child;
use crate::support::qemu::Vm;
use crate::support::rundir::{self, Place};
use crate::support::{self, Bed, Here, RunningDaemon, guest, tools};

pub const DAY: i64 = 86_400;
/// Names that would be markup.
pub const HOSTILE: [&str; 2] = [
    "<script>alert(1)<script>.img",
    "\"><img src=x onerror=alert(2)>.img",
];
/// The name of the incident, ten days ago.
pub static INCIDENT: LazyLock<String> = LazyLock::new(|| {
    let at = jiff::Timestamp::from_second(now().0 - 10 * DAY).unwrap();
    at.strftime("%Y%m%dT%H%M%S.123Z-1").to_string()
});
const RETENTION: Duration = Duration::from_secs(90 * 86_400);

/// A daemon that watches such a host.
pub struct World {
    pub daemon: RunningDaemon,
    pub address: SocketAddr,
    pub images: PathBuf,
    pub config: PathBuf,
    dir: PathBuf,
    _vm: Child,
    // Unmounted last.
    _bed: Bed,
}

impl World {
    /// Makes it, and waits until all images are counted.
    pub fn start() -> Here<World> {
        World::with(0)
    }

    /// As [`World::start`], with so many further images that are warned of.
    pub fn with(many: usize) -> Here<World> {
        let bed = Bed::xfs()?;
        let images = bed.path().to_owned();
        let named = [
            ("db-1.img", 6000),
            ("web-1.img", 1600),
            ("mail.img", 700),
            ("idle.raw", 3),
        ];
        let named = named.into_iter().chain(HOSTILE.map(|name| (name, 1200)));
        for (name, extents) in named {
            backwards(&images.join(name), extents);
        }
        let further = (0..many).map(|n| images.join(format!("vm-{n:04}-system-disk.img")));
        let further: Vec<_> = further.collect();
        further
            .iter()
            .for_each(|image| guest::alternate_blocks(image, 12));
        bed.sync();
        let dir = rundir::new_dir(Place::Disk).unwrap();
        write_history(&dir, &images, &further);
        write_incident(&dir);
        let vm = Vm::named("db-1 <b>").start(&images.join("db-1.img"))?;
        let address = support::free_address();
        let config = dir.join("fragwatch.toml");
        fs::write(&config, settings(&images, address)).unwrap();
        let mut command = support::fragwatch();
        command.arg("run").arg("--config").arg(&config);
        command
            .env("STATE_DIRECTORY", &dir)
            .env("RUNTIME_DIRECTORY", &dir);
        let daemon = RunningDaemon::spawn(&mut command, address);
        let world = World {
            daemon,
            address,
            images,
            config,
            dir,
            _vm: vm,
            _bed: bed,
        };
        world.until("the images are counted", |status| {
            status["images"]["total"] == 6 + many
        });
        world.until("their growth is known", |status| {
            status["worst"][0]["growth_per_day"].is_number()
        });
        let map = world.link("db-1.img").replace("/image", "/api/history");
        world.until("a map is recorded", |_| {
            world.daemon.get(&map).body.contains("\"map\"")
        });
        Ok(world)
    }

    /// Ends the daemon; everything else stays.
    pub fn without_daemon(mut self) -> World {
        self.daemon.signal(rustix::process::Signal::TERM);
        self.daemon.wait(Duration::from_secs(30));
        self
    }

    /// `fragwatch SUBCOMMAND`, of this daemon.
    pub fn ask(&self, subcommand: &str) -> Command {
        let mut command = support::fragwatch();
        command.arg(subcommand).arg("--config").arg(&self.config);
        command
            .env("STATE_DIRECTORY", &self.dir)
            .env("RUNTIME_DIRECTORY", &self.dir);
        command
    }

    /// What `fragwatch status --json` prints.
    pub fn status(&self) -> Value {
        let output = self.ask("status").arg("--json").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Pauses defragmentation, and waits until the plan leaves all images alone.
    pub fn pause(&self) {
        let output = self.ask("pause").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        self.until("the plan is paused", |_| {
            let plan = self.daemon.get("/plan").body;
            plan.contains("<p>Nothing is to be defragmented.")
        });
    }

    fn until(&self, what: &str, is: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is(&self.status()) {
            assert!(
                Instant::now() < deadline,
                "not seen: {what}: {}",
                self.status()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The page of an image.
    pub fn link(&self, name: &str) -> String {
        let key = key(&self.images.join(name), &uuid(&self.images));
        format!(
            "/image?fs={}&ino={}&gen={}",
            key.filesystem, key.inode, key.generation
        )
    }
}

impl Drop for World {
    fn drop(&mut self) {
        rundir::remove(&self.dir);
    }
}

/// An image whose blocks were written from the last to the first, so that none follows its neighbour.
fn backwards(image: &Path, blocks: u64) {
    fs::File::create(image)
        .unwrap()
        .set_len(blocks * guest::BLOCK)
        .unwrap();
    let file = guest::open_direct(image).unwrap();
    let mut block = guest::Aligned::block();
    for number in (0..blocks).rev() {
        guest::stamp(&mut block, number, 1);
        file.write_all_at(&block, number * guest::BLOCK).unwrap();
    }
}

fn settings(images: &Path, address: SocketAddr) -> String {
    let days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    format!(
        "[images]\npaths = [{images:?}]\nmin_size = \"0B\"\n\
         [metrics]\nlisten = \"{address}\"\n[rescue]\nenabled = false\n\
         [sampling]\ninterval = \"1s\"\nmap_interval = \"1s\"\n\
         [thresholds]\nwarning = {{ extents = 1000, growth_per_day = 1000000, time_to_critical = \"1m\" }}\n\
         critical = {{ extents = 5000 }}\n\
         [[thresholds.override]]\nimages = [\"vm-*\"]\nwarning = {{ extents = 10 }}\n\
         [maintenance]\ntimezone = \"UTC\"\n\
         [[maintenance.window]]\ndays = {days:?}\nstart = \"{:02}:00\"\nduration = \"3h\"\n",
        // Not open while the tests run.
        (now().0 / 3600 + 6) % 24
    )
}

pub fn now() -> UnixTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    UnixTime(now.as_secs() as i64)
}

fn uuid(image: &Path) -> String {
    let findmnt = tools::have("findmnt").unwrap();
    let mut command = Command::new(findmnt);
    command.args(["-no", "UUID", "--target"]).arg(image);
    let uuid = String::from_utf8(command.output().unwrap().stdout).unwrap();
    uuid.trim().to_owned()
}

fn key(image: &Path, uuid: &str) -> ImageKey {
    ImageKey {
        filesystem: uuid.to_owned(),
        inode: fs::metadata(image).unwrap().ino(),
        generation: generation(File::open(image).unwrap()).unwrap(),
    }
}

/// Of the last 30 days: db-1 grows, is defragmented 12 days ago, and grows again; web-1 grows slowly; old
/// was critical until it was deleted 20 days ago; the
/// file system of away has not answered for three hours.
fn write_history(dir: &Path, images: &Path, further: &[PathBuf]) {
    let mut store = Store::open(&dir.join("history.db"), RETENTION, &|| {})
        .unwrap()
        .0;
    let uuid = uuid(images);
    let reference = |image: &Path| ImageRef {
        key: key(image, &uuid),
        path: image.to_owned(),
    };
    let [db, web] = ["db-1.img", "web-1.img"].map(|name| reference(&images.join(name)));
    let further: Vec<_> = further.iter().map(|image| reference(image)).collect();
    let old = ImageRef {
        key: ImageKey {
            filesystem: uuid.clone(),
            inode: 1 << 40,
            generation: 1,
        },
        path: images.join("old.img"),
    };
    let away = ImageRef {
        key: ImageKey {
            filesystem: "9c1ff0a2-0000-4000-8000-000000000000".to_owned(),
            inode: 131,
            generation: 1,
        },
        path: PathBuf::from("/srv/away/away.img"),
    };
    let sample = |image: &ImageRef, extents: i64| SampleRow {
        image: image.clone(),
        format: Format::Raw,
        extents: ExtentCount(extents as u64),
        size: Bytes(48 << 20),
        allocated: Bytes(24 << 20),
    };
    let end = now().0;
    let mut at = end - 30 * DAY;
    while at < end {
        let hours = (at - (end - 30 * DAY)) / 3600;
        let of_db = if hours < 432 {
            500 + hours * 9
        } else {
            120 + (hours - 432) * 20
        };
        let mut images = vec![sample(&db, of_db), sample(&web, 1000 + hours * 600 / 720)];
        if end - at > 20 * DAY {
            images.push(sample(&old, 9000));
        }
        if end - at > 3 * 3600 {
            images.push(sample(&away, 1100));
        }
        // Enough for a week in small, which shows the last count in six hours.
        let step = if end - at > DAY { 3600 } else { 600 };
        if end - at < 7 * DAY && at / 21_600 != (at + step) / 21_600 {
            images.extend(further.iter().map(|image| sample(image, 2 + hours / 72)));
        }
        store
            .write(&Record::Sweep(Sweep {
                at: UnixTime(at),
                images,
            }))
            .unwrap();
        // An hour, and on the last day ten minutes.
        at += step;
    }
    let change = |days: i64, image: &ImageRef, from, to, extents| {
        Record::Severity(SeverityRow {
            image: image.clone(),
            at: UnixTime(end - days * DAY),
            from,
            to,
            extents: ExtentCount(extents),
            reason: format!("the threshold is {extents} extents"),
        })
    };
    let run = RunRecord {
        image: db.clone(),
        at: UnixTime(end - 12 * DAY),
        engine: Engine::XfsFsr,
        from: ExtentCount(4388),
        to: ExtentCount(120),
        bytes: Bytes(24 << 20),
        took: Duration::from_secs(754),
        stalls: None,
        outcome: OutcomeKind::Improved,
        reason: "not by blockcopy: its VM acme-payroll is transient".to_owned(),
    };
    let online = RunRecord {
        at: UnixTime(end - 11 * DAY),
        engine: Engine::Online,
        from: ExtentCount(700),
        stalls: Some(Stalls {
            calls: 8642,
            longest: Duration::from_micros(17_340),
            total: Duration::from_millis(73_000),
        }),
        reason: String::new(),
        ..run.clone()
    };
    let incident = IncidentRow {
        name: INCIDENT.clone(),
        at: UnixTime(end - 10 * DAY),
        ended: Some(UnixTime(end - 10 * DAY + 72)),
        trigger: Some(Trigger::KernelLog),
        actions: 2,
        outcome: Some(Outcome::Done),
        freed: Bytes(620 << 20),
    };
    for record in [
        change(25, &old, Severity::Ok, Severity::Critical, 9000),
        change(18, &db, Severity::Ok, Severity::Warning, 1000),
        Record::Run(run),
        Record::Run(online),
        change(12, &db, Severity::Warning, Severity::Ok, 120),
        Record::Incident(incident),
        change(5, &db, Severity::Ok, Severity::Warning, 1000),
        change(3, &db, Severity::Warning, Severity::Critical, 5000),
        change(2, &web, Severity::Ok, Severity::Warning, 1000),
    ] {
        store.write(&record).unwrap();
    }
    store.upkeep().unwrap();
}

fn write_incident(dir: &Path) {
    let began: jiff::Timestamp = INCIDENT.trim_end_matches("-1").parse().unwrap();
    let at = |ms: i64| format!("{:.3}", began + jiff::SignedDuration::from_millis(ms));
    let blocks = |large: u64| json!([90_000, 4000, 300, 20, large, 2, 0, 0, 0, 0, 0]);
    let action = |number: u32, after_ms: i64, slab: [u64; 2]| {
        json!({
            "at": at(after_ms), "after_ms": after_ms, "kind": "action",
            "step": "drop_slab", "number": number, "outcome": "done", "reaction_us": 87,
            "duration_us": 812_345, "before_age_ms": 40,
            "before": { "slab_reclaimable_kib": slab[0], "available_kib": 2_100_000,
                        "free_blocks": blocks(3) },
            "after": { "slab_reclaimable_kib": slab[1], "available_kib": 2_600_000,
                       "free_blocks": blocks(900) },
        })
    };
    let line = |after_ms: i64| {
        json!({
            "at": at(after_ms), "after_ms": after_ms, "kind": "line",
            "rule": "xfs_deadlock", "text": "XFS: qemu<b>(77) possible memory allocation deadlock",
        })
    };
    let incident = json!({
        "schema": 1, "id": *INCIDENT, "state": "ended", "trigger": "kernel_log",
        "began": at(0), "ended": at(72_000),
        "duration_ms": 72_000, "kernel": "5.10.0", "host": "kvm-7", "matches": 3, "actions": 2,
        "slab_freed_kib": 634_880,
        "events": [line(0), action(1, 90, [700 << 10, 300 << 10]), line(2010),
                   action(2, 2100, [300 << 10, 80 << 10]), line(4000)],
        "evidence": [{ "moment": "begin", "at": at(77), "tasks_blocked": 4,
            "meminfo_kib": { "MemAvailable": 2_000_000, "Slab": 750 << 10 },
            "tasks": [{ "tid": 78, "pid": 77, "comm": "CPU 0/KVM", "wchan": "kmem_alloc",
                        "stack": ["kmem_alloc", "xfs_iext_insert"] }] },
            { "moment": "end", "at": at(72_000), "tasks_blocked": 0,
              "meminfo_kib": { "MemAvailable": 2_700_000, "Slab": 120 << 10 } }],
    });
    let incidents = dir.join("incidents");
    fs::create_dir_all(&incidents).unwrap();
    fs::write(
        incidents.join(format!("{}.json", *INCIDENT)),
        incident.to_string(),
    )
    .unwrap();
}
