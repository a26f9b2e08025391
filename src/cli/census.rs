//! `fragwatch scan --census MOUNT`: counts all files of an XFS.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde_json::{Value, json};

use super::args::ScanArguments;
use super::command::{block_on, load_config};
use super::images::{Probes, absolute};
use super::output::{self, SCHEMA, SUCCESS, linear_bar};
use super::progress::Progress;
use crate::config::Settings;
use crate::discover::mounts::{FilesystemScope, Mount};
use crate::model::path::{PlainPath, shown};
use crate::model::{Census, CensusFile, ExtentCount};
use crate::probe::census::needs_xfs;
use crate::probe::protocol::{CensusRequest, Reply, Request};
use crate::serve::of_file;
use crate::table::{TextTable, or_dash};

/// How many files are named without `--top`.
const WORST: usize = 20;
/// Maximum number of links between file systems to follow.
const MAX_CROSSINGS: u32 = 40;

pub(super) fn run(
    path: &Path,
    arguments: &ScanArguments,
    config: Option<&Path>,
) -> anyhow::Result<u8> {
    let settings = load_config(config)?.settings;
    let worst = arguments.top.unwrap_or(WORST);
    let (mount, census) = block_on(count(absolute(path)?, worst, &settings))?;
    match arguments.json {
        true => output::print_json(&document(&mount, &census))?,
        false => output::print(&render(&mount, &census))?,
    }
    Ok(SUCCESS)
}

/// Counts the file system that the path leads to, following links across other file systems.
async fn count(
    mut path: PathBuf,
    worst: usize,
    settings: &Settings,
) -> anyhow::Result<(Mount, Census)> {
    let mut probes = Probes::new(settings)?;
    for _ in 0..MAX_CROSSINGS {
        let device = probes.mounts.of(&path).map(|mount| mount.device);
        let mount = device.and_then(|device| probes.mounts.principal(device));
        let Some(mount) = mount.cloned() else {
            bail!("{} lies on no mounted file system", shown(&path));
        };
        if mount.is_pseudo() {
            bail!("{}: {}", shown(&path), needs_xfs(&mount.type_name));
        }
        let request = Request::Census(CensusRequest {
            path,
            scope: FilesystemScope {
                mounts: probes.mounts.clone(),
                device: mount.device,
            },
            mount: mount.clone(),
            worst,
        });
        let on_beat = Progress::beats(format!("counting the files of {}", shown(&mount.point)));
        match probes.call(&mount, &request, on_beat).await? {
            Reply::Census(census) => return Ok((mount, *census)),
            Reply::Elsewhere(root) => path = root.path,
            Reply::Fault(fault) => bail!("{}: {}", shown(&fault.path), fault.error),
            _ => bail!("the probe helper gave no census"),
        }
    }
    bail!("{}: too many levels of symbolic links", shown(&path));
}

fn render(mount: &Mount, census: &Census) -> String {
    let mut text = format!(
        "{}: {} files with {} extents; if all their maps were loaded they would take {} of kernel memory.\n\n",
        shown(&mount.point),
        ExtentCount(census.files),
        census.extents,
        census.extent_map_memory
    );
    let most = census.classes.iter().copied().max().unwrap_or(0);
    for (class, &files) in census.classes.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {:>16} extents │{} {}",
            class_name(class),
            linear_bar(files, most),
            ExtentCount(files)
        );
    }
    if !census.worst.is_empty() {
        text.push('\n');
        text.push_str(&worst(census));
    }
    text
}

/// The range of a class of [`Census::classes`]: `0`, `1–9`, `10–99`, `1k–9.9k`.
fn class_name(class: usize) -> String {
    let Some(magnitude) = class.checked_sub(1) else {
        return "0".to_owned();
    };
    let (from, to) = (power_of_ten(magnitude), power_of_ten(class) - 1);
    format!("{}–{}", ExtentCount(from).short(), ExtentCount(to).short())
}

fn power_of_ten(magnitude: usize) -> u64 {
    10u64.saturating_pow(u32::try_from(magnitude).unwrap_or(u32::MAX))
}

fn worst(census: &Census) -> String {
    let mut table = TextTable::new(&["FILE", ">EXTENTS", ">MEAN", ">SIZE", ">ALLOCATED"]);
    for file in &census.worst {
        table.row([
            name(file),
            file.extents.to_string(),
            or_dash(file.allocated.per_extent(file.extents)),
            file.size.to_string(),
            file.allocated.to_string(),
        ]);
    }
    table.render()
}

fn name(file: &CensusFile) -> String {
    match &file.path {
        Some(PlainPath(path)) => shown(path),
        None => format!("inode {} (no name found below the mount point)", file.inode),
    }
}

fn document(mount: &Mount, census: &Census) -> Value {
    let class = |(class, files): (usize, &u64)| {
        let from = class.checked_sub(1).map_or(0, power_of_ten);
        json!({ "from_extents": from, "to_extents": power_of_ten(class), "files": files })
    };
    json!({
        "schema": SCHEMA,
        "mount": shown(&mount.point),
        "files": census.files,
        "extents": census.extents,
        "extent_map_memory_bytes": census.extent_map_memory,
        "classes": census.classes.iter().enumerate().map(class).collect::<Vec<_>>(),
        "worst": census.worst.iter().map(file_object).collect::<Vec<_>>(),
    })
}

fn file_object(file: &CensusFile) -> Value {
    let mut keys = json!({
        "inode": file.inode,
        "extents": file.extents,
        "size_bytes": file.size,
        "allocated_bytes": file.allocated,
    });
    match &file.path {
        Some(PlainPath(path)) => of_file(path, keys),
        None => {
            keys["path"] = Value::Null;
            keys
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_named_by_their_range() {
        assert_eq!(class_name(0), "0");
        assert_eq!(class_name(1), "1–9");
        assert_eq!(class_name(2), "10–99");
        assert_eq!(class_name(4), "1.0k–9.9k");
        assert_eq!(class_name(8), "10.0M–99.9M");
    }
}
