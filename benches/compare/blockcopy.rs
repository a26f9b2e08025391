//! An image copied under the running VM of libvirt: what is gained, and what the guest notices. The
//! engine blockcopy beside the engine online and beside nothing.
//!
//! The guest writes 500 blocks a second and prints how long each took by its own clock, which stands
//! still with it. So the host looks how long no line comes: the guest prints one every 10 ms.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use super::libvirt::{Libvirt, until};
use super::run::FRAGWATCH;
use super::samples::{Samples, Unit, show};
use super::support::bed::Plan;
use super::support::boot::{self, Machine};
use super::support::guest::{self, Aligned, BLOCK};
use super::support::random::Random;
use super::support::rundir::{self, Place};
use super::support::{Bed, Here, MIB, tools};
use super::table::Row;

const SIZE: u64 = 512 * MIB;
const BLOCKS: u64 = SIZE / BLOCK;
const VM: &str = "guest";
/// One write every so often: 500 a second.
const INTERVAL: Duration = Duration::from_millis(2);
/// So many times are in a line.
const PER_LINE: usize = 5;
/// How long it does so where nothing is defragmented.
const ALONE: Duration = Duration::from_secs(15);
const ROUNDS_PER_REPETITION: usize = 5;

/// To reach.
const STANDSTILL: f64 = 0.300;
const WORST: f64 = 0.100;
const TIMES_ALONE: f64 = 3.0;

/// Who defragments.
const ALL: [Option<&str>; 3] = [Some("blockcopy"), Some("online"), None];

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    let bed = Plan::of("xfs")
        .size(6 << 30)
        .mkfs(&["-m", "reflink=1,rmapbt=0"])
        .place(Place::quick())
        .make()?;
    let libvirt = Libvirt::start()?;
    let machine = Machine {
        test: "guest",
        disk: None,
        files: &[],
        memory: 384,
        kernel: boot::Kernel::Usual,
        processors: 1,
    };
    let parts = machine.parts()?;
    let mut all = ALL.map(|_| Runs::default());
    for round in 0..repetitions.div_ceil(ROUNDS_PER_REPETITION) {
        for turn in 0..ALL.len() {
            let who = (round + turn) % ALL.len();
            all[who].one(&libvirt, &bed, &parts, ALL[who]);
        }
    }
    rundir::remove(&parts.dir);
    Ok(table(&all))
}

/// What came of the runs of one engine.
#[derive(Debug, Default)]
struct Runs {
    extents: u64,
    left: f64,
    seconds: Vec<f64>,
    p999: Vec<f64>,
    worst: Vec<f64>,
    silence: Vec<f64>,
}

impl Runs {
    fn one(&mut self, libvirt: &Libvirt, bed: &Bed, parts: &boot::Parts, engine: Option<&str>) {
        let image = bed.path().join("vm.img");
        let _ = fs::remove_file(&image);
        guest::random_direct_writes(&image, SIZE, BLOCKS);
        bed.sync();
        self.extents = tools::xfs_io_stat_nextents(&image);
        let log = power_on(libvirt, bed, &image, parts);
        until("the guest's writes", || size(&log) > 1000);
        let (from, began) = (size(&log), Instant::now());
        let silence = longest_silence(&log, || match engine {
            Some(engine) => defragment(libvirt, bed, &image, engine),
            None => thread::sleep(ALONE),
        });
        let seconds = began.elapsed().as_secs_f64();
        let mut times = times(&log, from);
        libvirt.virsh(&["destroy", VM]);
        libvirt.virsh(&["undefine", VM]);
        remove_copies(bed.path());
        let left = tools::xfs_io_stat_nextents(&image);
        times.sort_by(f64::total_cmp);
        let worst = *times.last().expect("it wrote");
        let p999 = times[(times.len() * 999 / 1000).min(times.len() - 1)];
        let writes = times.len() as f64 / seconds;
        // It takes long; who waits sees something.
        eprintln!(
            "{engine:?}: {left} extents left after {seconds:.1} s, {writes:.0} writes a second, p99.9 \
             {:.1} ms, worst {:.1} ms, longest silence {:.1} ms",
            p999 * 1e3,
            worst * 1e3,
            silence * 1e3,
        );
        self.left = self.left.max(left as f64);
        self.seconds.push(seconds);
        self.p999.push(p999);
        self.worst.push(worst);
        self.silence.push(silence);
    }
}

fn power_on(libvirt: &Libvirt, bed: &Bed, image: &Path, parts: &boot::Parts) -> PathBuf {
    let log = bed.path().parent().expect("it has one").join("serial");
    let _ = fs::remove_file(&log);
    let words = parts.words.replace('&', "&amp;").replace('<', "&lt;");
    let (kernel, memory) = (parts.kernel.display(), parts.memory.display());
    let os =
        format!("<kernel>{kernel}</kernel><initrd>{memory}</initrd><cmdline>{words}</cmdline>");
    let serial = format!(
        "<serial type='file'><source path='{}'/></serial>",
        log.display()
    );
    libvirt.define(VM, image, &os, &serial);
    libvirt.power_on(VM);
    log
}

/// Removes the second name of the last copy: another image may get its inode, which the name has.
fn remove_copies(directory: &Path) {
    let entries = fs::read_dir(directory).expect("it is mounted").flatten();
    let hidden = entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"."));
    hidden.for_each(|entry| fs::remove_file(entry.path()).expect("it is removed"));
}

fn size(log: &Path) -> u64 {
    fs::metadata(log).map_or(0, |log| log.len())
}

/// The times that the guest printed after this place, in seconds.
fn times(log: &Path, from: u64) -> Vec<f64> {
    let text = fs::read_to_string(log).expect("it is text");
    assert!(!text.contains("panic"), "{text}");
    let lines = text[from as usize..].lines().skip(1);
    let words = lines.filter_map(|line| line.strip_prefix("us "));
    let microseconds = words.flat_map(str::split_whitespace);
    microseconds
        .filter_map(|word| Some(word.parse::<f64>().ok()? / 1e6))
        .collect()
}

/// For how long no line came while `work` was done, in seconds.
fn longest_silence(log: &Path, work: impl FnOnce()) -> f64 {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let longest = scope.spawn(|| {
            let (mut longest, mut before, mut since) = (Duration::ZERO, size(log), Instant::now());
            while !done.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
                let now = size(log);
                if now != before {
                    longest = longest.max(since.elapsed());
                    (before, since) = (now, Instant::now());
                }
            }
            longest.as_secs_f64()
        });
        work();
        done.store(true, Ordering::Relaxed);
        longest.join().expect("it ends")
    })
}

fn defragment(libvirt: &Libvirt, bed: &Bed, image: &Path, engine: &str) {
    let beside = bed.path().parent().expect("it has one");
    let state = beside.join("state");
    let _ = fs::remove_dir_all(&state);
    let config = beside.join("compare.toml");
    let text = "[defrag]\nmax_io_pressure = 100\n";
    fs::write(&config, text).expect("it is written");
    let mut command = libvirt.command(FRAGWATCH);
    command
        .args([
            "defrag",
            "--force-window",
            "--engine",
            engine,
            "--json",
            "--config",
        ])
        .arg(&config)
        .arg(image)
        .env("STATE_DIRECTORY", &state)
        .stdout(Stdio::piped());
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("\"improved\""), "{output:?}");
}

fn table(all: &[Runs; 3]) -> Vec<Row> {
    let samples = |of: fn(&Runs) -> &Vec<f64>| {
        [0, 1, 2].map(|who| Samples::new(Unit::Seconds, of(&all[who]).clone()))
    };
    let others = |of: &dyn Fn(usize) -> String| format!("online: {}; none: {}", of(1), of(2));
    let row = |work: &str, of, most: &dyn Fn(&[Samples; 3]) -> f64| {
        let times = samples(of);
        let most = most(&times);
        let reach = format!("at most {}", show(Unit::Seconds, most));
        let reached = times[0].median() <= most;
        let others = others(&|who| times[who].to_string());
        Row::plain(work, &times[0], others, reach, reached)
    };
    let extents = all[0].extents as f64;
    let took = samples(|runs| &runs.seconds);
    vec![
        row(
            "blockcopy: p99.9 of the guest's 500 writes a second meanwhile, by its clock",
            |runs| &runs.p999,
            &|times| times[2].median() * TIMES_ALONE,
        ),
        row("blockcopy: worst of them", |runs| &runs.worst, &|_| WORST),
        row(
            "blockcopy: longest time in which the guest, seen from outside, does nothing",
            |runs| &runs.silence,
            &|_| STANDSTILL,
        ),
        Row::plain(
            format!("blockcopy: extents left of {extents}"),
            all[0].left,
            others(&|who| all[who].left.to_string()),
            "at most 0.5 %",
            all[0].left <= extents / 200.0,
        ),
        Row::told(
            "blockcopy: time in all, guards and all",
            &took[0],
            format!("online: {}", took[1]),
        ),
    ]
}

/// What the VM does.
pub fn guest() {
    boot::arrive();
    println!();
    let mut file = guest::open_direct(&boot::disk()).expect("it opens");
    let blocks = file.seek(SeekFrom::End(0)).expect("it has an end") / BLOCK;
    let (mut random, mut buffer) = (Random::new(1), Aligned::block());
    let mut next = Instant::now();
    for turn in 1.. {
        let mut line = String::from("us");
        for _ in 0..PER_LINE {
            let block = random.below(blocks);
            guest::stamp(&mut buffer, block, turn);
            // A guest that is late does not catch up.
            next = (next + INTERVAL).max(Instant::now());
            thread::sleep(next.saturating_duration_since(Instant::now()));
            let began = Instant::now();
            file.write_all_at(&buffer, block * BLOCK)
                .expect("it is written");
            line += &format!(" {}", began.elapsed().as_micros());
        }
        println!("{line}");
    }
}
