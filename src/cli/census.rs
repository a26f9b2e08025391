//! `fragwatch scan --census MOUNT`: all files of an XFS.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use super::args::ScanArguments;
use super::progress::Progress;
use super::scan_json::{self, SCHEMA};
use super::{SUCCESS, load_config, map_view, scan, terminal};
use crate::discover::mounts::{FilesystemScope, Mount};
use crate::model::path::{hex_unless_exact, shown};
use crate::model::{Bytes, Census, CensusFile, ExtentCount};
use crate::probe::census::needs_xfs;
use crate::probe::protocol::{CensusRequest, Reply, Request};
use crate::probe::sweep::WorkerPool;

/// Files that are named unless `--top` says how many.
const WORST: usize = 20;
/// Links from one file system to another that are followed before it is called a loop.
const MAX_CROSSINGS: u32 = 40;

pub(super) fn run(
    path: &Path,
    arguments: &ScanArguments,
    config: Option<&Path>,
) -> anyhow::Result<u8> {
    let settings = load_config(config)?.settings;
    let path = scan::absolute(path)?;
    let deadline = settings.sampling.probe_timeout;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let worst = arguments.top.unwrap_or(WORST);
    let (mount, census) = runtime.block_on(follow_and_take(path, worst, deadline))?;
    if arguments.json {
        terminal::print(&json(&mount, &census)?)?;
    } else {
        terminal::print(&render(&mount, &census))?;
    }
    Ok(SUCCESS)
}

/// Takes the census of the file system that the path leads to, through links of others if need be.
async fn follow_and_take(
    mut path: PathBuf,
    worst: usize,
    deadline: Duration,
) -> anyhow::Result<(Mount, Census)> {
    let mut pool = WorkerPool::new(Path::new("/proc"));
    let mounts = pool.mounts().context("cannot read /proc/self/mountinfo")?;
    for _ in 0..MAX_CROSSINGS {
        let device = mounts.of(&path).map(|mount| mount.device);
        let Some(mount) = device.and_then(|device| mounts.principal(device)) else {
            bail!("{} lies on no mounted file system", shown(&path));
        };
        if mount.is_pseudo() {
            bail!("{}: {}", shown(&path), needs_xfs(&mount.type_name));
        }
        let request = Request::Census(CensusRequest {
            path,
            scope: FilesystemScope {
                mounts: mounts.clone(),
                device: mount.device,
            },
            mount: mount.clone(),
            worst,
        });
        match take(&mut pool, mount, &request, deadline).await? {
            Reply::Census(census) => return Ok((mount.clone(), *census)),
            Reply::Elsewhere(root) => path = root.path,
            Reply::Fault(fault) => bail!("{}: {}", shown(&fault.path), fault.error),
            _ => bail!("the probe helper gave no census"),
        }
    }
    bail!("{}: too many levels of symbolic links", shown(&path));
}

/// What the helper of a file system has to say to the request.
async fn take(
    pool: &mut WorkerPool,
    mount: &Mount,
    request: &Request,
    deadline: Duration,
) -> anyhow::Result<Reply> {
    let worker = pool.worker(mount);
    let mut progress = Progress::spinner();
    let mut answer = None;
    let mut beats = 0;
    let on_reply = |reply| match reply {
        Reply::Beat => {
            beats += 1;
            progress.at(
                beats,
                format!("counting the files of {}", shown(&mount.point)),
            );
        }
        reply => answer = Some(reply),
    };
    worker
        .lock()
        .await
        .call(request, deadline, on_reply)
        .await?;
    answer.context("the probe helper gave no answer")
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
            "  {:>16} extents │{:<40} {}",
            class_name(class),
            map_view::bar(files, most),
            ExtentCount(files)
        );
    }
    if !census.worst.is_empty() {
        text.push('\n');
        text.push_str(&worst(census));
        text.push('\n');
    }
    text
}

/// The range of a class of [`Census::classes`]: `0`, `1–9`, `10–99`, `1k–9.9k`.
fn class_name(class: usize) -> String {
    let Some(magnitude) = class.checked_sub(1) else {
        return "0".to_owned();
    };
    // A class is at most that of 2^64, 10^19.
    let from = 10u64.saturating_pow(u32::try_from(magnitude).unwrap_or(u32::MAX));
    let to = from.saturating_mul(10) - 1;
    format!("{}–{}", ExtentCount(from).short(), ExtentCount(to).short())
}

fn worst(census: &Census) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty();
    table.set_header(["FILE", "EXTENTS", "MEAN", "SIZE", "ALLOCATED"]);
    for file in &census.worst {
        let mean = mean(file).map_or_else(|| "–".to_owned(), |mean| mean.to_string());
        let row = [
            name(file),
            file.extents.to_string(),
            mean,
            file.size.to_string(),
            file.allocated.to_string(),
        ];
        table.add_row(row.into_iter().map(Cell::new));
    }
    for (number, column) in table.column_iter_mut().enumerate() {
        let alignment = if number == 0 {
            CellAlignment::Left
        } else {
            CellAlignment::Right
        };
        column.set_padding((0, 2)).set_cell_alignment(alignment);
    }
    table.trim_fmt()
}

fn mean(file: &CensusFile) -> Option<Bytes> {
    file.allocated.0.checked_div(file.extents.0).map(Bytes)
}

fn name(file: &CensusFile) -> String {
    match &file.path {
        Some(path) => shown(path),
        None => format!("inode {} (no name found below the mount point)", file.inode),
    }
}

#[derive(Serialize)]
struct Document {
    schema: u32,
    mount: String,
    files: u64,
    extents: ExtentCount,
    extent_map_memory_bytes: Bytes,
    classes: Vec<ClassObject>,
    worst: Vec<FileObject>,
}

#[derive(Serialize)]
struct ClassObject {
    from_extents: u64,
    to_extents: u64,
    files: u64,
}

#[derive(Serialize)]
struct FileObject {
    inode: u64,
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    extents: ExtentCount,
    size_bytes: Bytes,
    allocated_bytes: Bytes,
}

fn json(mount: &Mount, census: &Census) -> serde_json::Result<String> {
    let class = |(class, files): (usize, &u64)| {
        let bound =
            |magnitude: usize| 10u64.saturating_pow(u32::try_from(magnitude).unwrap_or(u32::MAX));
        ClassObject {
            from_extents: class.checked_sub(1).map_or(0, bound),
            to_extents: bound(class),
            files: *files,
        }
    };
    let file = |file: &CensusFile| FileObject {
        inode: file.inode,
        path: file.path.as_deref().map(shown),
        path_hex: file.path.as_deref().and_then(hex_unless_exact),
        extents: file.extents,
        size_bytes: file.size,
        allocated_bytes: file.allocated,
    };
    scan_json::to_line(&Document {
        schema: SCHEMA,
        mount: shown(&mount.point),
        files: census.files,
        extents: census.extents,
        extent_map_memory_bytes: census.extent_map_memory,
        classes: census.classes.iter().enumerate().map(class).collect(),
        worst: census.worst.iter().map(file).collect(),
    })
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
