//! What it was measured on.

use std::fs;
use std::process::Command;

use super::run::FRAGWATCH;
use super::support::tools::meminfo;

/// One paragraph: the machine, its kernel, the tools.
pub fn describe() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = meminfo("MemTotal") as f64 / f64::from(1 << 30);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let tools = [
        version(FRAGWATCH, "--version"),
        version("xfs_io", "-V"),
        version("xfs_db", "-V"),
        version("filefrag", "-V"),
    ];
    format!(
        "Measured on {model}, {cores} cores, {memory:.0} GiB of memory, Linux {}; {}. {}",
        kernel.trim(),
        tools.join(", "),
        load()
    )
}

/// How busy the machine is: others' work would be in the numbers.
pub fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let minute = load.split(' ').next().unwrap_or_default();
    format!("Load average of the last minute: {minute}.")
}

/// The first line of what a program says of its version.
pub fn version(program: &str, option: &str) -> String {
    let said = Command::new(program).arg(option).output();
    let line = said.ok().and_then(|said| {
        // filefrag and node_exporter tell it on standard error.
        let text = String::from_utf8([said.stdout, said.stderr].concat()).ok()?;
        text.lines().next().map(|line| line.trim().to_owned())
    });
    line.unwrap_or_else(|| format!("no {program}"))
}
