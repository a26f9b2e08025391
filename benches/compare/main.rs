//! fragwatch beside the tools that operators use today, on the same machine, the same files and in
//! the same run. Prints one table, in Markdown.
//!
//! ```text
//! cargo bench --bench compare                                everything, about twenty minutes
//! cargo bench --bench compare -- --only census --reps 9      one row of the table, measured longer
//! ```
//!
//! It needs root, loop devices, mkfs.xfs, xfs_io, xfs_db, filefrag, and for the daemon's row the
//! Debian package prometheus-node-exporter, which it downloads and unpacks but does not install; for
//! the reaction, tracefs and bash; for blockcopy, libvirtd, virsh and QEMU.
//!
//! | file | idea |
//! |---|---|
//! | `count`, `census`, `map`, `space`, `scan`, `owner`, `page`, `daemon`, `history`, `reaction`, `rest`, `online`, `blockcopy`, `fsr`, `rules`, `protect` | rows of the table each |
//! | `scale` | two more: ten thousand images, and a long history |
//! | `samples` | repetitions of a measurement, and how they are taken in turns |
//! | `run`     | runs a command and takes its time or its memory |
//! | `table`   | the table |
//! | `machine` | what it was measured on |
//! | `scrape`  | asks for metrics as Prometheus does |
//! | `exporter`| the node exporter |
//! | `trace`   | the kernel's own trace of who did what when |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot measure has nobody to report to but who started it"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "measured values are far from the limits of their types"
)]
#![allow(clippy::print_stdout, reason = "the table is its output")]
#![allow(unreachable_pub, reason = "a benchmark has no outside")]

#[path = "../../tests/support/mod.rs"]
mod support;

// A libvirtd of its own.
#[path = "../../tests/blockcopy/libvirt.rs"]
#[allow(dead_code, reason = "the tests ask it for more")]
mod libvirt;

mod blockcopy;
mod census;
mod count;
mod daemon;
mod exporter;
mod fsr;
mod history;
mod machine;
mod map;
mod online;
mod owner;
mod page;
mod protect;
mod reaction;
mod rest;
mod rules;
mod run;
mod samples;
mod scale;
mod scan;
mod scrape;
mod space;
mod table;
mod trace;

use support::Here;
use table::Row;

/// Measures with so many repetitions.
type Measure = fn(usize) -> Here<Vec<Row>>;

/// What is measured, by the name that `--only` takes.
const ROWS: [(&str, Measure); 19] = [
    ("count", count::rows),
    ("census", census::rows),
    ("map", map::rows),
    ("space", space::rows),
    ("scan", scan::rows),
    ("owner", owner::rows),
    ("daemon", daemon::rows),
    ("history", history::rows),
    ("scrape", scale::scrape),
    ("memory", scale::memory),
    ("page", page::rows),
    ("reaction", reaction::rows),
    ("rest", rest::rows),
    ("online", online::rows),
    ("blockcopy", blockcopy::rows),
    ("idle", online::idle_rows),
    ("fsr", fsr::rows),
    ("rules", rules::rows),
    ("protect", protect::rows),
];

/// How the numbers are to be read.
const NOTES: &str = "\
Median (least–most) of the repetitions; all that are compared take turns in each of them. Caches \
are warm unless a line says cold: the file system unmounted and mounted again before each run. \
Times are of whole commands, from before they are started until they have ended, except where the \
line says otherwise. Memory of a command is the peak of what its processes occupy together, pages \
that they share counted once (Pss, looked at all the time in runs of their own); memory of a daemon \
is looked at each second. The daemon is at its default \
interval of a minute and reads no extent maps (`map_interval = \"never\"`); it and the node exporter \
are scraped at the same moments, every 15 s, as Prometheus does. A reaction is to a record of XFS \
itself, by a real drop of the slab cache, timed by the kernel's own trace; the kernel lets its log be \
read only at the next tick of its timer, up to 4 ms later at 250 a second, by whomever. The file that \
`tail` follows is written by the benchmark as soon as it can read the record: a syslog daemon at its \
best.";

/// Repetitions unless `--reps` says how many.
const REPETITIONS: usize = 5;

struct Options {
    repetitions: usize,
    only: Vec<String>,
}

fn main() {
    if support::boot::is_guest() {
        return blockcopy::guest();
    }
    let Some(options) = options() else {
        let names = ROWS.map(|(name, _)| name).join(" ");
        eprintln!("usage: [--reps N] [--only ROW]…   with ROW one of: {names}");
        std::process::exit(2);
    };
    println!("{}\n", machine::describe());
    println!("{}", table::HEAD);
    for (name, rows) in ROWS {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        eprintln!("measuring: {name}");
        match rows(options.repetitions) {
            Ok(rows) => rows.iter().for_each(|row| println!("{row}")),
            Err(why) => println!("| {name} | {why} | | | | not measured |"),
        }
    }
    println!("\n{NOTES}\n\n{}", machine::load());
}

/// Nothing if the command line is not understood.
fn options() -> Option<Options> {
    let mut options = Options {
        repetitions: REPETITIONS,
        only: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // What cargo adds.
            "--bench" => {}
            "--reps" => options.repetitions = arguments.next()?.parse().ok().filter(|n| *n > 0)?,
            "--only" => {
                let only = arguments.next()?;
                ROWS.iter().find(|(name, _)| *name == only)?;
                options.only.push(only);
            }
            _ => return None,
        }
    }
    Some(options)
}
