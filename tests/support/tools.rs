//! What the real tools say of a file: the other opinion that a test compares with.
//!
//! A tool that is missing is a reason to skip ([`have`]); one that fails makes the test fail.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::child::Child;
use super::skip::{Here, NotHere};

/// How many files xfs_io may have open at once: it is left room below the usual limit of 1024.
const MOST_FILES: usize = 512;

/// Where a program is, if it is there.
pub fn have(tool: &str) -> Here<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(tool))
        .find(|file| file.is_file())
        .ok_or_else(|| NotHere::because(format_args!("{tool} is not installed")))
}

/// Runs a program that makes the bed, to its end.
pub fn run(command: &mut Command) -> Here<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |e| NotHere::because(format_args!("{name}: {e}"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = Child::spawn(command.stderr(Stdio::piped())).map_err(failed)?;
    let mut said = String::new();
    let stderr = child.pipes().stderr.take();
    let mut stderr = stderr.expect("it is piped");
    stderr.read_to_string(&mut said).map_err(failed)?;
    if child.end().success() {
        return Ok(());
    }
    let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
    Err(NotHere::because(format_args!(
        "{name} {}: {}",
        arguments.join(" "),
        said.trim()
    )))
}

/// Has the kernel load a module. It may be built in, or not be there: what needs it will see.
pub fn load_module(name: &str) {
    let _ = run(Command::new("modprobe").arg("--quiet").arg(name));
}

/// `nextents` as `xfs_io -c stat` reports it (FS_IOC_FSGETXATTR).
pub fn xfs_io_stat_nextents(path: &Path) -> u64 {
    xfs_io_stat_nextents_of([path])[0]
}

/// As [`xfs_io_stat_nextents`], of many files by few processes.
pub fn xfs_io_stat_nextents_of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Vec<u64> {
    let paths: Vec<_> = paths.into_iter().collect();
    let counts = paths.chunks(MOST_FILES).flat_map(|paths| {
        let lines = lines(
            Command::new("xfs_io")
                .args(["-r", "-c", "stat"])
                .args(paths),
        );
        let counts: Vec<_> = lines
            .iter()
            .filter_map(|line| line.strip_prefix("fsxattr.nextents = "))
            .map(|count| count.parse().expect("stat counts"))
            .collect();
        assert_eq!(counts.len(), paths.len(), "stat counts each");
        counts
    });
    counts.collect()
}

/// Records that `xfs_io -c fiemap` lists, holes left out.
pub fn xfs_io_fiemap_count(path: &Path) -> u64 {
    let lines = xfs_io(path, "fiemap");
    // The first line is the name of the file.
    lines[1..].iter().filter(|l| !l.ends_with(": hole")).count() as u64
}

/// The extent-size hint for what is written to `path` from now on, or to new files in it.
pub fn set_extent_size_hint(path: &Path, bytes: u64) {
    let mut command = Command::new("xfs_io");
    let command = command.arg("-c").arg(format!("extsize {bytes}")).arg(path);
    // It reports an error of the kernel, and exits with 0.
    let said = command.output().expect("xfs_io runs");
    assert!(said.stderr.is_empty(), "{command:?}: {said:?}");
}

fn xfs_io(path: &Path, command: &str) -> Vec<String> {
    lines(Command::new("xfs_io").args(["-r", "-c", command]).arg(path))
}

/// What `filefrag` counts. It merges records that are neighbours in the file and on disk.
pub fn filefrag_count(path: &Path) -> u64 {
    let lines = lines(Command::new("filefrag").arg(path));
    // PATH: 3 extents found
    let (_, said) = lines[0].rsplit_once(": ").expect("filefrag counts");
    let (count, _) = said.split_once(' ').expect("filefrag counts");
    count.parse().expect("filefrag counts")
}

/// One line of `filefrag -v`, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub logical: u64,
    /// Where it begins on the device.
    pub physical: u64,
    /// How long it is.
    pub length: u64,
    /// `last`, `unwritten`, `shared`, `delalloc`, `eof`, …
    pub flags: Vec<String>,
}

/// What `filefrag -v` lists: the records as the kernel hands them out, not merged.
pub fn filefrag_extents(path: &Path) -> Vec<Extent> {
    lines(Command::new("filefrag").args(["-v", "-b1"]).arg(path))
        .iter()
        .filter_map(|line| filefrag_line(line))
        .collect()
}

/// `   0:        0..    4095:     1048576..    1052671:   4096:    1048576: last,eof`; the field
/// before the flags is missing or blank where nothing was expected.
fn filefrag_line(line: &str) -> Option<Extent> {
    let mut fields = line.split(':').map(str::trim);
    let _number: u64 = fields.next()?.parse().ok()?;
    let mut range = || {
        let (from, to) = fields.next()?.split_once("..")?;
        Some((from.trim().parse().ok()?, to.trim().parse().ok()?))
    };
    let (logical, last): (u64, u64) = range()?;
    let (physical, _): (u64, u64) = range()?;
    Some(Extent {
        logical,
        physical,
        // Its column of lengths holds 0 for an extent that has no place on disk yet.
        length: last - logical + 1,
        flags: fields
            .next_back()?
            .split(',')
            .filter(|f| !f.is_empty())
            .map(str::to_owned)
            .collect(),
    })
}

/// What `xfs_db -c "frag -f"` finds on a device: all extents of all files, and how few it could
/// have. It reads the device past the mounted file system, so make that read-only first
/// ([`super::Bed::remount_ro`]): written out, inodes may still be in the log only.
pub fn xfs_db_frag(device: &Path) -> (u64, u64) {
    let lines = lines(
        Command::new("xfs_db")
            .args(["-r", "-c", "frag -f"])
            .arg(device),
    );
    // actual 34694398, ideal 1, fragmentation factor 100.00%
    let number = |name| {
        let said = lines[0].split(", ").find_map(|f| f.strip_prefix(name));
        said.and_then(|n| n.parse().ok()).expect("xfs_db counts")
    };
    (number("actual "), number("ideal "))
}

/// A checksum of the contents of a file.
pub fn checksum(path: &Path) -> String {
    let lines = lines(Command::new("sha256sum").arg(path));
    let (sum, _) = lines[0].split_once(' ').expect("sha256sum sums");
    sum.to_owned()
}

/// Memory of the kernel that nothing gives back, in bytes: extent maps among others.
pub fn slab_unreclaimable() -> u64 {
    meminfo("SUnreclaim")
}

/// A line of /proc/meminfo, in bytes.
pub fn meminfo(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc is mounted");
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = value.and_then(|v| v.trim().strip_suffix(" kB"));
    1024 * kib
        .and_then(|n| n.parse::<u64>().ok())
        .expect("meminfo has it")
}

/// The lines that a program writes.
fn lines(command: &mut Command) -> Vec<String> {
    let shown = format!("{command:?}");
    let mut child = Child::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))
        .unwrap_or_else(|e| panic!("{shown}: {e}"));
    let output = child.pipes().stdout.take().expect("it is piped");
    let lines: Result<_, _> = BufReader::new(output).lines().collect();
    let status = child.end();
    assert!(status.success(), "{shown}: {status}");
    lines.unwrap_or_else(|e| panic!("{shown}: {e}"))
}
