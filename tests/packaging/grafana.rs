//! The dashboard, against a Prometheus that scrapes a daemon.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::prometheus::{Prometheus, tool};
use crate::support::rundir::{self, Place};
use crate::support::{self, Bed, RunningDaemon, free_address, guest};
use crate::{names, tree};

/// How long a daemon and a Prometheus may take to their first numbers, on a machine that has much
/// else to do.
const PATIENCE: Duration = Duration::from_secs(180);

pub fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(tree("packaging/grafana/fragwatch.json")).unwrap())
        .unwrap()
}

/// Every query in it, whereever it stands.
fn queries(json: &Value, found: &mut Vec<String>) {
    match json {
        Value::Object(members) => {
            for (key, value) in members {
                match value.as_str() {
                    Some(query) if key == "expr" || key == "query" => found.push(query.to_owned()),
                    _ => queries(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

/// What Prometheus can be asked: not the name of the data source's type.
fn asked() -> Vec<String> {
    let mut found = Vec::new();
    queries(&dashboard(), &mut found);
    found.retain(|query| query != "prometheus");
    assert!(found.len() > 30, "{found:#?}");
    found
}

#[test]
fn its_queries_ask_for_metrics_that_there_are() {
    let known = names::known();
    for query in asked() {
        let names = names::asked_for(&query);
        let unknown: BTreeSet<_> = names.difference(&known).collect();
        assert!(
            !names.is_empty() && unknown.is_empty(),
            "{query}: {unknown:?}"
        );
    }
}

#[test]
fn its_panels_do_not_overlap_and_have_names_of_their_own() {
    let json = dashboard();
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in json["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(x + w <= 24, "{panel}");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "{cell:?} in {panel}");
        }
    }
}

/// Waits for what `poll` gives.
pub fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "not seen: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_real_prometheus_answers_each_of_its_queries() {
    let program = support::require!(tool("prometheus"));
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("db-1.raw");
    guest::alternate_blocks(&image, 100);
    let dir = rundir::new_dir(Place::Disk).unwrap();
    let address = free_address();
    let config = dir.join("fragwatch.toml");
    // The rescue is off: it would act on what other tests do to this machine.
    let text = format!(
        "[images]\npaths = [{:?}]\nmin_size = \"0B\"\n[sampling]\ninterval = \"1s\"\n\
         probe_timeout = \"1s\"\nmap_interval = \"never\"\n\
         [metrics]\nlisten = \"{address}\"\n[rescue]\nenabled = false\n",
        bed.path()
    );
    fs::write(&config, text).unwrap();
    let daemon = RunningDaemon::start(&config, address);
    let prometheus = Prometheus::start(&program, address);
    wait_for("the image", || {
        let images = prometheus.query("fragwatch_image_extents")?;
        (images.first()?.1 == "100").then_some(())
    });
    for query in asked() {
        let plain = query
            .replace("$instance", &address.to_string())
            .replace("$__rate_interval", "1m");
        // The variable's: a function of Grafana, with a metric in it.
        let plain = plain
            .strip_prefix("label_values(")
            .map_or(plain.clone(), |rest| {
                rest.split(',').next().unwrap().to_owned()
            });
        let answer = wait_for(&plain, || prometheus.ask(&plain));
        assert_eq!(answer["status"], "success", "{query}: {answer}");
    }
    // And some of them find what is there.
    for (part, value) in [
        ("topk(20, fragwatch_worst_image_extents", "100"),
        ("count(fragwatch_build_info)", "1"),
    ] {
        let query = asked()
            .into_iter()
            .find(|query| query.starts_with(part))
            .unwrap();
        wait_for(&query, || {
            (prometheus.query(&query)?.first()?.1 == value).then_some(())
        });
    }
    drop(daemon);
    rundir::remove(&dir);
}
