//! One pass over /proc for the owners of all images, beside fuser and lsof, which operators ask for
//! one.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use fragwatch::internals::discover::OwnerSearch;

use super::run::{command, time};
use super::samples::{Unit, in_turns};
use super::support::child::Child;
use super::support::{Bed, Here, NotHere, tools};
use super::table::Row;

const PROCESSES: u64 = 500;
/// Descriptors of each, three of them its own images, the others what a QEMU has: sockets, eventfds.
const DESCRIPTORS: u64 = 40;
const IMAGES: u64 = 3;
const TO_REACH: f64 = 0.05;

/// A process that has its images and sockets open until its standard input ends.
const HOLDER: &str = r#"
import os, socket, sys
prefix, first, count, images, others = sys.argv[1], *map(int, sys.argv[2:])
hold, release = os.pipe()
for n in range(first, first + count):
    if os.fork() == 0:
        os.close(release)
        have = len(os.listdir("/proc/self/fd")) - 1
        kept = [os.open(f"{prefix}{n}-{i}.raw", os.O_RDWR | os.O_CREAT) for i in range(images)]
        kept += [socket.socket(socket.AF_UNIX) for _ in range(others - images - have)]
        os.read(hold, 1)
        os._exit(0)
os.close(hold)
print("ready", flush=True)
sys.stdin.read()
"#;

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    let bed = Bed::xfs()?;
    let _holder = holder(bed.path())?;
    let mut search = OwnerSearch::new(Path::new("/proc"), Path::new("/run"));
    let mut pass = || {
        let began = Instant::now();
        let holders = search.look().expect("procfs can be read");
        let took = began.elapsed().as_secs_f64();
        assert!(holders.open_files() as u64 >= PROCESSES * IMAGES);
        took
    };
    let work = format!(
        "owners of all images, {PROCESSES} processes with {} descriptors: a pass over /proc",
        descriptors()
    );
    let image = bed.path().join("vm-0-0.raw");
    let tool = ["lsof", "fuser"]
        .into_iter()
        .find(|tool| tools::have(tool).is_ok());
    let Some(tool) = tool else {
        let [ours] = in_turns(Unit::Seconds, repetitions, [&mut pass]);
        let reached = ours.median() < TO_REACH;
        let row = Row::plain(work, ours, "–", "below 50 ms", reached);
        return Ok(vec![row]);
    };
    let [ours, theirs] = in_turns(
        Unit::Seconds,
        repetitions,
        [&mut pass, &mut || time(&mut command(tool, [&image]))],
    );
    let reached = ours.median() < TO_REACH;
    let theirs = format!("`{tool}` of one image {theirs}");
    Ok(vec![Row::plain(work, ours, theirs, "below 50 ms", reached)])
}

/// Descriptors of all processes of this machine.
fn descriptors() -> usize {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let count =
        |process: fs::DirEntry| fs::read_dir(process.path().join("fd")).map_or(0, Iterator::count);
    processes
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .map(count)
        .sum()
}

/// Forks the processes. They end when this one does: it holds the pipe that they read.
fn holder(directory: &Path) -> Here<Child> {
    let python = tools::have("python3")?;
    let mut command = Command::new(python);
    command
        .args(["-c", HOLDER])
        .arg(directory.join("vm-"))
        .args([0, PROCESSES, IMAGES, DESCRIPTORS].map(|n| n.to_string()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut holder = Child::spawn(&mut command).map_err(NotHere::because)?;
    let mut ready = [0; 6];
    let stdout = holder.pipes().stdout.as_mut();
    stdout
        .expect("it is piped")
        .read_exact(&mut ready)
        .map_err(NotHere::because)?;
    Ok(holder)
}
