//! A fleet of hypervisors, as far as Prometheus sees it: one small server answers for all of them.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use super::skip::Here;
use super::tools;

pub const HOSTS: usize = 1000;

/// What a host serves.
pub type Page = fn(usize) -> String;

/// The name of a host, as a label `instance`.
pub fn name(host: usize) -> String {
    format!("hypervisor-{host}:9843")
}

/// Adds a line to a page.
pub fn line(page: &mut String, metric: &str, labels: &str, value: usize) {
    let _ = writeln!(page, "fragwatch_{metric}{{{labels}}} {value}");
}

/// Serves `/NAME` for each host, for as long as the process lives.
pub fn serve(page: Page) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream, page));
        }
    });
    Ok(address)
}

/// One request a connection.
fn answer(mut stream: TcpStream, page: Page) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines
        .next()
        .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
    {}
    let number = request
        .split(['-', ':'])
        .nth(1)
        .and_then(|number| number.parse().ok());
    let page = number.map(page).unwrap_or_default();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
        page.len()
    )
}

/// The configuration of a Prometheus that scrapes them all at `address`. `global` are its intervals.
pub fn config(address: SocketAddr, global: &str) -> String {
    let targets: Vec<_> = (0..HOSTS)
        .map(|host| format!("\"{}\"", name(host)))
        .collect();
    format!(
        "global: {{{global}}}\n\
         rule_files: [\"*.yml\"]\n\
         scrape_configs:\n\
         - job_name: fragwatch\n\
         \x20 static_configs: [{{targets: [{}]}}]\n\
         \x20 relabel_configs:\n\
         \x20 - {{source_labels: [__address__], target_label: __metrics_path__, replacement: /$1}}\n\
         \x20 - {{source_labels: [__address__], target_label: instance}}\n\
         \x20 - {{target_label: __address__, replacement: \"{address}\"}}\n",
        targets.join(", ")
    )
}

/// Makes blocks of the past of a file in the format OpenMetrics, for a Prometheus whose directory is `dir`.
pub fn backfill(promtool: &Path, text: &Path, dir: &Path) -> Here<()> {
    tools::run(
        Command::new(promtool)
            .args(["tsdb", "create-blocks-from", "openmetrics"])
            .args([text, &dir.join("data")]),
    )
}
