//! What the rules of `packaging/prometheus` cost a Prometheus that scrapes a whole fleet: 1,000
//! simulated hosts with 50 images each, and a day of what the rules look back at.
//!
//! `FRAGWATCH_RULES_BESIDE` may name a directory with other versions of `alerts.yml` and
//! `recording.yml`: the same Prometheus then evaluates both, and the table has them side by side.

mod fleet;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::samples::{Samples, Unit, show};
use super::support::hypervisors;
use super::support::prometheus::{Prometheus, tool};
use super::support::rundir::{self, Place};
use super::support::{Here, NotHere};
use super::table::Row;

/// Seconds of evaluation in a minute, alerts and recording rules together.
const AT_MOST: f64 = 1.0;
const FILES: [&str; 2] = ["alerts.yml", "recording.yml"];
/// Of scrapes and evaluations.
const INTERVALS: &str = "scrape_interval: 1m, evaluation_interval: 15s";
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How often Prometheus evaluates a group that sets no interval, in minutes (`evaluation_interval`).
const DEFAULT_INTERVAL: f64 = 1.0;

/// A group of rules: its file and its name.
type Group = (String, String);

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    let [prometheus, promtool] = [tool("prometheus")?, tool("promtool")?];
    let dir = rundir::new_dir(Place::Disk).map_err(NotHere::because)?;
    backfill(&promtool, &dir)?;
    let hosts = hypervisors::serve(fleet::page).map_err(NotHere::because)?;
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus");
    let mut intervals = copy_rules(&ours, &dir, "");
    let beside = std::env::var_os("FRAGWATCH_RULES_BESIDE").map(PathBuf::from);
    if let Some(beside) = &beside {
        intervals.extend(copy_rules(beside, &dir, "beside-"));
    }
    let prometheus =
        Prometheus::with_config(&prometheus, dir, &hypervisors::config(hosts, INTERVALS));
    let all = (hypervisors::HOSTS * fleet::IMAGES).to_string();
    let scraped = || {
        let found = prometheus.query("count(fragwatch_image_extents)")?;
        Some(found.first()?.1 == all)
    };
    while scraped() != Some(true) {
        sleep(POLL_INTERVAL);
    }
    let groups = evaluations(&prometheus, repetitions);
    ask_dashboard(&prometheus);
    let (a_minute, ours) = summary(&groups, &intervals, "");
    let against = match beside {
        Some(_) => summary(&groups, &intervals, "beside-").1,
        None => "–".to_owned(),
    };
    Ok(vec![Row::plain(
        format!(
            "Prometheus, {} hosts of {} images: evaluating the rules",
            hypervisors::HOSTS,
            fleet::IMAGES
        ),
        ours,
        against,
        format!("below {} a minute", show(Unit::Seconds, AT_MOST)),
        a_minute < AT_MOST,
    )])
}

/// Seconds of evaluation a minute, and that in words, with the duration of one evaluation of each file.
fn summary(
    groups: &BTreeMap<Group, Samples>,
    intervals: &BTreeMap<Group, f64>,
    prefix: &str,
) -> (f64, String) {
    let mut a_minute = 0.0;
    let mut once = Vec::new();
    for file in FILES {
        let file = format!("{prefix}{file}");
        let of_file = groups.iter().filter(|((of, _), _)| *of == file);
        let mut sum = 0.0;
        for (group, samples) in of_file {
            sum += samples.median();
            a_minute += samples.median() / intervals[group];
        }
        once.push(format!("{file} {}", show(Unit::Seconds, sum)));
    }
    let text = format!(
        "{} a minute; once: {}",
        show(Unit::Seconds, a_minute),
        once.join(", ")
    );
    (a_minute, text)
}

/// Copies the rule files, all groups at the interval of the Prometheus, because a group that is due each
/// four minutes would be measured each four minutes. Returns the intervals that they had, in minutes.
fn copy_rules(from: &Path, to: &Path, prefix: &str) -> BTreeMap<Group, f64> {
    let mut intervals = BTreeMap::new();
    for name in FILES {
        let file = format!("{prefix}{name}");
        let mut text = String::new();
        let mut group = String::new();
        for line in fs::read_to_string(from.join(name)).unwrap().lines() {
            if let Some(minutes) = line.strip_prefix("    interval: ") {
                let minutes = minutes.strip_suffix('m').expect("a number of minutes");
                let minutes: f64 = minutes.parse().expect("a number of minutes");
                intervals.insert((file.clone(), group.clone()), minutes);
                continue;
            }
            if let Some(name) = line.strip_prefix("  - name: ") {
                name.clone_into(&mut group);
                intervals.insert((file.clone(), group.clone()), DEFAULT_INTERVAL);
            }
            text.push_str(line);
            text.push('\n');
        }
        fs::write(to.join(file), text).unwrap();
    }
    intervals
}

/// A day of the series that rules look back at, one sample each five minutes, until ten minutes ago.
fn backfill(promtool: &Path, dir: &Path) -> Here<()> {
    const STEP: u64 = 300;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let text = dir.join("past.om");
    let mut out = BufWriter::new(File::create(&text).unwrap());
    for (metric, labels) in fleet::LOOKED_BACK_AT {
        writeln!(out, "# TYPE {metric} gauge").unwrap();
        for (host, labels) in series(labels) {
            for at in (now - 86_400..now - 600).step_by(STEP as usize) {
                writeln!(
                    out,
                    "{metric}{{instance=\"{host}\",job=\"fragwatch\"{labels}}} 1 {at}"
                )
                .unwrap();
            }
        }
    }
    writeln!(out, "# EOF").unwrap();
    out.into_inner().unwrap();
    hypervisors::backfill(promtool, &text, dir)?;
    fs::remove_file(text).unwrap();
    Ok(())
}

fn series<'a>(labels: &'a [&'a str]) -> impl Iterator<Item = (String, &'a str)> {
    (0..hypervisors::HOSTS).flat_map(move |host| {
        labels
            .iter()
            .map(move |labels| (hypervisors::name(host), *labels))
    })
}

/// How long evaluations of each group took.
fn evaluations(prometheus: &Prometheus, repetitions: usize) -> BTreeMap<Group, Samples> {
    // By the moments at which they began.
    let mut taken: BTreeMap<Group, BTreeMap<String, f64>> = BTreeMap::new();
    loop {
        let answer = prometheus.get("/api/v1/rules").unwrap_or_default();
        let groups = answer["data"]["groups"].as_array();
        for group in groups.into_iter().flatten() {
            let text = |key: &str| group[key].as_str().unwrap_or_default();
            let took = group["evaluationTime"].as_f64().unwrap_or_default();
            let file = text("file").rsplit('/').next().unwrap_or_default();
            let times = taken.entry((file.to_owned(), text("name").to_owned()));
            let times = times.or_default();
            if took > 0.0 {
                times.insert(text("lastEvaluation").to_owned(), took);
            }
        }
        // The first one of each is left out: it reads from disk what the others have in memory.
        if !taken.is_empty() && taken.values().all(|times| times.len() > repetitions) {
            print_costliest(&answer);
            break;
        }
        sleep(POLL_INTERVAL);
    }
    let samples = |times: BTreeMap<String, f64>| {
        Samples::new(Unit::Seconds, times.into_values().skip(1).collect())
    };
    taken
        .into_iter()
        .map(|(group, times)| (group, samples(times)))
        .collect()
}

/// Asks what the fleet rows of the dashboard ask, and prints how long each query took.
fn ask_dashboard(prometheus: &Prometheus) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/grafana/fragwatch.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    // The first row; the others are about one host.
    let fleet = panels.skip(1).take_while(|panel| panel["type"] != "row");
    for target in fleet.flat_map(|panel| panel["targets"].as_array().unwrap()) {
        let query = target["expr"].as_str().unwrap();
        let began = Instant::now();
        let answer = prometheus.ask(query).unwrap_or_default();
        let took = began.elapsed().as_secs_f64();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        eprintln!("{} {query}", show(Unit::Seconds, took));
    }
}

/// Prints the rules that took longest in their last evaluation.
fn print_costliest(answer: &Value) {
    let groups = answer["data"]["groups"].as_array().into_iter().flatten();
    let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
    let took = |rule: &Value| rule["evaluationTime"].as_f64().unwrap_or_default();
    let mut rules: Vec<_> = rules.collect();
    rules.sort_by(|a, b| took(b).total_cmp(&took(a)));
    for rule in rules.iter().take(10) {
        eprintln!("{} {}", show(Unit::Seconds, took(rule)), rule["name"]);
    }
}
