//! The fleet row of the dashboard, against a Prometheus that scrapes a thousand simulated hosts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::grafana::{dashboard, wait_for};
use crate::support;
use crate::support::hypervisors::{self, HOSTS, line, name};
use crate::support::prometheus::{Prometheus, tool};
use crate::support::rundir::{self, Place};

const IMAGES: usize = 3;
const LISTED: usize = 20;
/// Kernels in the fleet.
const RELEASES: usize = 5;

/// Each image of the fleet has another number, in no order. 3001 is a prime.
fn extents(host: usize, image: usize) -> usize {
    (host * IMAGES + image + 1) * 7919 % 3001 * 1000
}

/// Each host has another one, in no order. 1009 is a prime. Of its first image.
fn seconds_to_critical(host: usize) -> usize {
    (host + 1) * 577 % 1009 * 3600
}

/// One image of each tenth host is critical, another one is at warning.
fn severities(host: usize) -> [usize; 3] {
    match host % 10 {
        0 => [1, 1, 1],
        _ => [3, 0, 0],
    }
}

fn release(host: usize) -> String {
    format!("6.{}.0", host % RELEASES)
}

/// On hosts with two kernels.
fn incidents(host: usize) -> usize {
    match host % RELEASES {
        1 if host < 100 => 2,
        3 if host < 50 => 1,
        _ => 0,
    }
}

/// Whether the kernel rules out online, whether blockcopy is configured.
fn engines(host: usize) -> [(&'static str, usize, &'static str); 3] {
    let online = match host % 8 {
        0 => (0, "kernel_known_bad"),
        _ => (1, ""),
    };
    let blockcopy = match host % 4 {
        0 => (1, ""),
        _ => (0, "not_configured"),
    };
    [
        ("xfs_fsr", 1, ""),
        ("online", online.0, online.1),
        ("blockcopy", blockcopy.0, blockcopy.1),
    ]
}

fn failed_requests(host: usize) -> usize {
    if host.is_multiple_of(200) { 3 } else { 0 }
}

fn is_without_rescue(host: usize) -> bool {
    host % 100 == 7
}

fn vm_of(host: usize, image: usize) -> String {
    format!("vm-{host}-{image}")
}

fn path_of(image: usize) -> String {
    format!("/srv/vm/{image}.raw")
}

/// What the counters of a host are called, without `fragwatch_`.
const INCIDENTS: (&str, &str) = ("rescue_incidents_total", "trigger=\"kernel_log\"");
const REQUESTS: (&str, &str) = (
    "maintenance_requests_total",
    "request=\"hold\",outcome=\"failed\"",
);

fn page(host: usize) -> String {
    let mut page = String::from("fragwatch_build_info 1\n");
    let mut sum = 0;
    for image in 0..IMAGES {
        let (path, vm) = (path_of(image), vm_of(host, image));
        let labels = format!("image=\"{path}\",vm=\"{vm}\"");
        line(
            &mut page,
            "worst_image_extents",
            &labels,
            extents(host, image),
        );
        sum += extents(host, image);
    }
    line(&mut page, "filesystem_extents", "filesystem=\"/srv\"", sum);
    let first = format!("image=\"{}\"", path_of(0));
    let seconds = seconds_to_critical(host);
    line(&mut page, "image_seconds_to_critical", &first, seconds);
    for (severity, images) in severities(host).into_iter().enumerate() {
        let severity = format!("severity=\"{severity}\"");
        line(&mut page, "images", &severity, images);
    }
    for (engine, usable, reason) in engines(host) {
        let labels = format!("engine=\"{engine}\",reason=\"{reason}\"");
        line(&mut page, "engine_usable", &labels, usable);
    }
    let release = format!("release=\"{}\"", release(host));
    line(&mut page, "kernel_info", &release, 1);
    let up = usize::from(!is_without_rescue(host));
    line(&mut page, "klog_source_up", "source=\"kmsg\"", up);
    line(&mut page, INCIDENTS.0, INCIDENTS.1, incidents(host));
    line(&mut page, REQUESTS.0, REQUESTS.1, failed_requests(host));
    page
}

/// The counters at 0 for more than an hour, until five minutes ago.
fn past() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = now.as_secs();
    let mut text = String::new();
    for (metric, labels) in [INCIDENTS, REQUESTS] {
        writeln!(text, "# TYPE fragwatch_{metric} gauge").unwrap();
        for host in 0..HOSTS {
            let labels = format!("instance=\"{}\",job=\"fragwatch\",{labels}", name(host));
            for at in (now - 4500..=now - 300).step_by(300) {
                writeln!(text, "fragwatch_{metric}{{{labels}}} 0 {at}").unwrap();
            }
        }
    }
    text + "# EOF\n"
}

/// The fleet row: the queries of each panel by its title.
struct Row {
    panels: BTreeMap<String, Vec<String>>,
    prometheus: Prometheus,
}

impl Row {
    fn new(prometheus: Prometheus) -> Row {
        let dashboard = dashboard();
        let panels = dashboard["panels"].as_array().unwrap().iter();
        let row = panels.skip(1).take_while(|panel| panel["type"] != "row");
        let panels = row.map(|panel| {
            let targets = panel["targets"].as_array().unwrap().iter();
            let queries = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
            (
                panel["title"].as_str().unwrap().to_owned(),
                queries.collect(),
            )
        });
        Row {
            panels: panels.collect(),
            prometheus,
        }
    }

    /// The labels and the number of each series, by the query of a panel at this place.
    fn numbers(&self, title: &str, query: usize) -> Vec<(Value, f64)> {
        let query = &self.panels[title][query];
        let found = self.prometheus.query(query).unwrap();
        let found = found.into_iter();
        found
            .map(|(labels, value)| (labels, value.parse().unwrap()))
            .collect()
    }

    fn number(&self, title: &str) -> f64 {
        let found = self.numbers(title, 0);
        assert_eq!(found.len(), 1, "{title}: {found:?}");
        found[0].1
    }

    /// Rounded, by these labels; no series with 0.
    fn by(&self, title: &str, query: usize, labels: [&str; 2]) -> BTreeMap<[String; 2], usize> {
        let text = |series: &Value, label: &str| series[label].as_str().unwrap_or("").to_owned();
        let found = self.numbers(title, query).into_iter();
        let found =
            found.map(|(series, value)| (labels.map(|it| text(&series, it)), rounded(value)));
        found.filter(|(_, value)| *value > 0).collect()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers of this test are small and positive"
)]
fn rounded(value: f64) -> usize {
    value.round() as usize
}

/// How many hosts have each pair.
fn counted<'a>(pairs: impl Iterator<Item = ([&'a str; 2], usize)>) -> BTreeMap<[String; 2], usize> {
    let mut counts = BTreeMap::new();
    for (pair, number) in pairs.filter(|(_, number)| *number > 0) {
        *counts.entry(pair.map(str::to_owned)).or_default() += number;
    }
    counts
}

fn start(prometheus: &Path, promtool: &Path) -> support::Here<Row> {
    let dir = rundir::new_dir(Place::Disk).unwrap();
    let text = dir.join("past.om");
    fs::write(&text, past()).unwrap();
    hypervisors::backfill(promtool, &text, &dir)?;
    let address = hypervisors::serve(page).unwrap();
    let config = hypervisors::config(address, "scrape_interval: 15s");
    let row = Row::new(Prometheus::with_config(prometheus, dir, &config));
    wait_for("all hosts", || {
        let up = row.prometheus.query("count(fragwatch_build_info)")?;
        (up.first()?.1 == HOSTS.to_string()).then_some(())
    });
    Ok(row)
}

#[test]
fn the_fleet_row_is_right_for_a_thousand_hosts() {
    let prometheus = support::require!(tool("prometheus"));
    let promtool = support::require!(tool("promtool"));
    let row = support::require!(start(&prometheus, &promtool));

    let all = |of: fn(usize) -> usize| (0..HOSTS).map(of).sum::<usize>();
    for (title, expected) in [
        ("Hosts watched", HOSTS),
        ("Images", HOSTS * IMAGES),
        ("Critical images", all(|host| severities(host)[2])),
        ("Images at warning", all(|host| severities(host)[1])),
        ("Incidents, 7 days", all(incidents)),
        (
            "Hosts without rescue",
            all(|host| usize::from(is_without_rescue(host))),
        ),
    ] {
        assert_eq!(rounded(row.number(title)), expected, "{title}");
        assert!(expected > 0, "{title}");
    }

    let images = (0..HOSTS).flat_map(|host| (0..IMAGES).map(move |image| (host, image)));
    let mut worst: Vec<_> = images.collect();
    worst.sort_by_key(|(host, image)| std::cmp::Reverse(extents(*host, *image)));
    let expected = worst[..LISTED].iter().map(|(host, image)| {
        let labels = [name(*host), path_of(*image), vm_of(*host, *image)];
        (labels, extents(*host, *image))
    });
    let found = row
        .numbers("Worst images of all hosts", 0)
        .into_iter()
        .map(|(series, value)| {
            let labels =
                ["instance", "image", "vm"].map(|it| series[it].as_str().unwrap().to_owned());
            (labels, rounded(value))
        });
    assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());

    let mut soonest: Vec<_> = (0..HOSTS).collect();
    soonest.sort_by_key(|host| seconds_to_critical(*host));
    let expected = soonest[..LISTED].iter();
    let expected = expected.map(|host| ([name(*host), path_of(0)], seconds_to_critical(*host)));
    let found = row.by("First to become critical", 0, ["instance", "image"]);
    assert_eq!(found, expected.collect());

    for (query, usable) in [(0, 1), (1, 0)] {
        let states = (0..HOSTS).flat_map(engines);
        let states = states.filter(|(_, is, _)| *is == usable);
        let expected = counted(states.map(|(engine, _, reason)| ([engine, reason], 1)));
        let found = row.by("Hosts by engine", query, ["engine", "reason"]);
        assert_eq!(found, expected);
    }

    let releases: Vec<_> = (0..HOSTS).map(release).collect();
    let expected = (0..HOSTS).map(|host| ([releases[host].as_str(), ""], incidents(host)));
    let found = row.by("Incidents by kernel, an hour", 0, ["release", ""]);
    assert_eq!(found, counted(expected));

    let found = row.by("Lock and hold", 0, ["request", "outcome"]);
    let failed = all(failed_requests);
    assert_eq!(found, counted([(["hold", "failed"], failed)].into_iter()));

    let of_hosts = row.by("Extents per host", 0, ["instance", ""]);
    let sum = |host| (0..IMAGES).map(|image| extents(host, image)).sum();
    let expected = (0..HOSTS).map(|host| ([name(host), String::new()], sum(host)));
    assert_eq!(of_hosts, expected.collect());
}
