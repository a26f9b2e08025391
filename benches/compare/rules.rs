//! What the rules of `packaging/prometheus` cost a Prometheus that scrapes a whole fleet: 1,000
//! simulated hosts with 50 images each, and a day of what the rules look back at.
//!
//! `FRAGWATCH_RULES_BESIDE` may name a directory with other versions of `alerts.yml` and
//! `recording.yml`: the same Prometheus then evaluates both, and the table has them side by side.

mod fleet;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::samples::{Samples, Unit, show};
use super::support::prometheus::{Prometheus, tool};
use super::support::rundir::{self, Place};
use super::support::{Here, NotHere, tools};
use super::table::Row;

/// Alerts and recording rules together.
const AT_MOST: f64 = 1.0;
const FILES: [&str; 2] = ["alerts.yml", "recording.yml"];
const POLL_INTERVAL: Duration = Duration::from_millis(500);

pub fn rows(repetitions: usize) -> Here<Vec<Row>> {
    let [prometheus, promtool] = [tool("prometheus")?, tool("promtool")?];
    let dir = rundir::new_dir(Place::Disk).map_err(NotHere::because)?;
    backfill(&promtool, &dir)?;
    let hosts = fleet::serve().map_err(NotHere::because)?;
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus");
    copy_rules(&ours, &dir, "");
    let beside = std::env::var_os("FRAGWATCH_RULES_BESIDE").map(PathBuf::from);
    if let Some(beside) = &beside {
        copy_rules(beside, &dir, "beside-");
    }
    let prometheus = Prometheus::with_config(&prometheus, dir, &config(hosts));
    while prometheus
        .query("count(fragwatch_image_extents)")
        .map(|found| found.first().map(|one| one.1.clone()))
        != Some(Some((fleet::HOSTS * fleet::IMAGES).to_string()))
    {
        sleep(POLL_INTERVAL);
    }
    let durations = evaluations(&prometheus, repetitions);
    let of = |prefix: &str| FILES.map(|file| &durations[&format!("{prefix}{file}")]);
    let [alerts, recording] = of("");
    let both = alerts.median() + recording.median();
    let beside = beside.map_or_else(String::new, |_| {
        let [alerts, recording] = of("beside-");
        format!("beside: alerts {alerts}, recording rules {recording}")
    });
    Ok(vec![Row::plain(
        format!(
            "rules for {} hosts of {} images, one evaluation",
            fleet::HOSTS,
            fleet::IMAGES
        ),
        format!("alerts {alerts}, recording rules {recording}"),
        beside,
        format!("both below {}", show(Unit::Seconds, AT_MOST)),
        both < AT_MOST,
    )])
}

/// Copies the rule files, all groups at the interval of the Prometheus: a group that is due each
/// five minutes would be measured each five minutes.
fn copy_rules(from: &Path, to: &Path, prefix: &str) {
    for file in FILES {
        let text = fs::read_to_string(from.join(file)).unwrap();
        let lines = text
            .lines()
            .filter(|line| !line.trim().starts_with("interval:"));
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        fs::write(to.join(format!("{prefix}{file}")), text).unwrap();
    }
}

fn config(hosts: SocketAddr) -> String {
    let targets: Vec<_> = (0..fleet::HOSTS)
        .map(|host| format!("\"{}\"", fleet::name(host)))
        .collect();
    format!(
        "global: {{scrape_interval: 1m, evaluation_interval: 15s}}\n\
         rule_files: [\"*.yml\"]\n\
         scrape_configs:\n\
         - job_name: fragwatch\n\
         \x20 static_configs: [{{targets: [{}]}}]\n\
         \x20 relabel_configs:\n\
         \x20 - {{source_labels: [__address__], target_label: __metrics_path__, replacement: /$1}}\n\
         \x20 - {{source_labels: [__address__], target_label: instance}}\n\
         \x20 - {{target_label: __address__, replacement: \"{hosts}\"}}\n",
        targets.join(", ")
    )
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
    tools::run(
        Command::new(promtool)
            .args(["tsdb", "create-blocks-from", "openmetrics"])
            .args([&text, &dir.join("data")]),
    )?;
    fs::remove_file(text).unwrap();
    Ok(())
}

fn series<'a>(labels: &'a [&'a str]) -> impl Iterator<Item = (String, &'a str)> {
    (0..fleet::HOSTS).flat_map(move |host| {
        labels
            .iter()
            .map(move |labels| (fleet::name(host), *labels))
    })
}

/// How long evaluations of each rule file took, by its name.
fn evaluations(prometheus: &Prometheus, repetitions: usize) -> BTreeMap<String, Samples> {
    // By group, as each is evaluated at its own moments.
    let mut taken: BTreeMap<(String, String), BTreeMap<String, f64>> = BTreeMap::new();
    loop {
        let answer = prometheus.get("/api/v1/rules").unwrap_or_default();
        let groups = answer["data"]["groups"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        for group in &groups {
            let text = |key: &str| group[key].as_str().unwrap_or_default().to_owned();
            let Some(took) = group["evaluationTime"].as_f64().filter(|took| *took > 0.0) else {
                continue;
            };
            let file = text("file");
            let file = file.rsplit('/').next().unwrap_or_default().to_owned();
            taken
                .entry((file, text("name")))
                .or_default()
                .insert(text("lastEvaluation"), took);
            if std::env::var_os("FRAGWATCH_RULES_EACH").is_some() {
                each(group);
            }
        }
        if !groups.is_empty()
            && taken.len() >= groups.len()
            && taken.values().all(|times| times.len() > repetitions)
        {
            break;
        }
        sleep(POLL_INTERVAL);
    }
    let mut files: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for ((file, _), times) in taken {
        // The first one found nothing in memory.
        let times = times.into_values().skip(1).take(repetitions);
        let sums = files.entry(file).or_insert_with(|| vec![0.0; repetitions]);
        sums.iter_mut()
            .zip(times)
            .for_each(|(sum, took)| *sum += took);
    }
    files
        .into_iter()
        .map(|(file, values)| (file, Samples::new(Unit::Seconds, values)))
        .collect()
}

fn each(group: &Value) {
    for rule in group["rules"].as_array().unwrap() {
        eprintln!(
            "{} {} {:.4}",
            group["file"].as_str().unwrap().rsplit('/').next().unwrap(),
            rule["name"],
            rule["evaluationTime"].as_f64().unwrap()
        );
    }
}
