//! A VM, a writer that fragments its image, and all who can be asked about it: `status`, `history`,
//! `check`, `/metrics`, the textfile, Prometheus. They tell one story.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use crate::prometheus::found;
use crate::scrape::Scrape;
use crate::support::guest::{self, Aligned, BLOCK};
use crate::support::prometheus::{Prometheus, tool};
use crate::support::qemu::Vm;
use crate::support::{self, Bed, GIB, tools};
use crate::watch::{Etc, OFTEN, Watch, until};

const NAME: &str = "db-1";
const EXTENTS: &str = "fragwatch_image_extents";

/// Writes every second block of an image from its begin on, so that its extents only ever become
/// more.
struct Fragmenter {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fragmenter {
    fn start(image: &Path) -> Fragmenter {
        let file = guest::open_direct(image).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let block = Aligned::block();
            let blocks = file.metadata().unwrap().len() / BLOCK / 2;
            for number in (0..blocks).take_while(|_| !stopped.load(Ordering::Relaxed)) {
                file.write_all_at(&block, 2 * number * BLOCK).unwrap();
                thread::sleep(Duration::from_millis(2));
            }
        });
        Fragmenter {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Fragmenter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// A subcommand's JSON, and its exit code.
fn ask(watch: &Watch, subcommand: &str, image: Option<&Path>) -> (Value, i32) {
    let mut command = watch.daemon.ask(subcommand);
    command.args(image).arg("--json");
    command.arg("--config").arg(watch.etc.file());
    let output = command.output().unwrap();
    let json = serde_json::from_slice(&output.stdout);
    let json = json.unwrap_or_else(|e| panic!("{subcommand}: {e}: {output:?}"));
    (json, output.status.code().unwrap())
}

/// What was told of the image after one and the same sweep.
struct Told {
    swept: f64,
    metrics: f64,
    status: Value,
    check: (Value, i32),
}

impl Told {
    /// Asks until no sweep has come in between.
    fn of(watch: &Watch, image: &Path) -> Told {
        until("answers within one sweep", || {
            let before = watch.scrape();
            let status = ask(watch, "status", None).0;
            let check = ask(watch, "check", None);
            let swept = before.swept()?;
            // Counts are told before the end of their sweep is.
            let seen = |now: &Scrape| (now.swept(), now.extents(image));
            (seen(&watch.scrape()) == seen(&before)).then(|| Told {
                swept,
                metrics: before.extents(image).expect("its series"),
                status,
                check,
            })
        })
    }

    /// The value of a performance datum.
    fn performance(&self, name: &str) -> Option<f64> {
        let data = self.check.0["performance"].as_array()?;
        data.iter().find(|one| one["name"] == name)?["value"].as_f64()
    }

    fn agrees(&self) {
        let extents = Some(self.metrics);
        let worst = &self.status["worst"][0];
        assert_eq!(worst["extents"].as_f64(), extents);
        assert_eq!(self.status["images"]["extents"].as_f64(), extents);
        assert_eq!(self.performance("worst_extents"), extents);
        assert_eq!(self.performance("extents"), extents);
        assert_eq!(worst["vm"], NAME);
    }
}

/// Counts with their times, in the order in which they were recorded.
fn readings(watch: &Watch, image: &Path) -> Vec<(f64, f64)> {
    let past = ask(watch, "history", Some(image)).0;
    assert_eq!(past["vm"], NAME);
    assert_eq!(past["path"], image.to_str().unwrap());
    let readings = past["readings"].as_array().unwrap();
    let number = |reading: &Value, key: &str| reading[key].as_f64().unwrap();
    let reading = |one: &Value| (number(one, "at"), number(one, "extents"));
    readings.iter().map(reading).collect()
}

/// The history has the count of the sweep that ended then, or goes on.
fn is_recorded(watch: &Watch, image: &Path, swept: f64, extents: f64) {
    until("the sweep in the history", || {
        let is = |(at, count): &(f64, f64)| (at - swept).abs() <= 60.0 && *count == extents;
        readings(watch, image).iter().any(is).then_some(())
    });
}

fn vm_of(scrape: &Scrape, image: &Path) -> Option<String> {
    let image = image.to_str();
    let mut infos = scrape.named("fragwatch_image_info");
    let info = infos.find(|one| one.label("image") == image)?;
    info.label("vm").map(str::to_owned)
}

#[test]
fn everybody_tells_the_same_story_of_a_vm() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("db-1.raw");
    File::create_new(&image).unwrap().set_len(GIB).unwrap();
    let vm = support::require!(Vm::named(NAME).start(&image));
    let etc = Etc::new();
    let textfile = etc.join("fragwatch.prom");
    let more = format!("{OFTEN}[thresholds]\nwarning = {{ extents = 100 }}\n");
    let text = etc.text(&[bed.path()], &more);
    let key = format!("[metrics]\ntextfile = {textfile:?}\n");
    etc.write(&text.replace("[metrics]\n", &key));
    let watch = Watch::start_with(etc);
    let prometheus = support::require!(tool("prometheus"));
    let prometheus = Prometheus::start(&prometheus, watch.etc.address);

    // While it is being fragmented.
    let fragmenter = Fragmenter::start(&image);
    watch.until("the warning", |now| {
        now.of_image("fragwatch_image_severity", &image) == Some(1.0)
    });
    let mut before = 0.0;
    for _ in 0..3 {
        let told = Told::of(&watch, &image);
        told.agrees();
        assert!(told.metrics >= before && told.metrics >= 100.0);
        assert_eq!(told.check.1, 1);
        assert_eq!(told.status["worst"][0]["severity"], "warning");
        is_recorded(&watch, &image, told.swept, told.metrics);
        before = told.metrics;
        watch.sweeps(0);
    }
    let counts = readings(&watch, &image);
    assert!(counts.is_sorted_by(|a, b| a.1 <= b.1), "{counts:?}");

    // And when it rests: the kernel's own count, everywhere.
    drop(fragmenter);
    let count = tools::xfs_io_stat_nextents(&image) as f64;
    watch.sweeps(1);
    let told = Told::of(&watch, &image);
    told.agrees();
    assert_eq!(told.metrics, count);
    is_recorded(&watch, &image, told.swept, count);
    let filed = until("the textfile", || {
        let filed = Scrape::of(&fs::read_to_string(&textfile).ok()?);
        (filed.extents(&image) == Some(count)).then_some(filed)
    });
    found(&prometheus, EXTENTS, "image", &image, &count.to_string());

    // Whose image it is, they all say.
    assert_eq!(vm_of(&watch.scrape(), &image).as_deref(), Some(NAME));
    assert_eq!(vm_of(&filed, &image).as_deref(), Some(NAME));
    found(
        &prometheus,
        "fragwatch_image_info",
        "vm",
        Path::new(NAME),
        "1",
    );
    let summary = told.check.0["summary"].as_str().unwrap();
    let worst = format!("{} (VM {NAME}) warning (", image.display());
    assert!(summary.starts_with(&worst), "{summary}");
    let said = watch.log(": warning with");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains(&format!("(VM {NAME})")), "{said:?}");

    // It goes: the numbers with it, the past stays.
    drop(vm);
    fs::remove_file(&image).unwrap();
    watch.until("its end", |now| !now.mentions(&image));
    until("its end in Prometheus", || {
        prometheus.query(EXTENTS)?.is_empty().then_some(())
    });
    assert_eq!(ask(&watch, "status", None).0["images"]["total"], 0);
    assert_eq!(ask(&watch, "check", None).1, 0);
    let past = ask(&watch, "history", Some(&image)).0;
    assert_eq!(past["vm"], Value::Null);
    let last = past["readings"].as_array().unwrap().last().unwrap();
    assert_eq!(last["extents"].as_f64(), Some(count));
    assert_eq!(past["severities"].as_array().unwrap().len(), 1);
}
