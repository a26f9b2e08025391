//! A made-up /proc, for the tests of this room.

use std::fs;
use std::path::Path;

pub(super) fn stack(frames: &[&str]) -> Vec<u8> {
    let line = |frame: &&str| format!("[<0>] {frame}+0x1f/0x120\n");
    frames.iter().map(line).collect::<String>().into_bytes()
}

pub(super) fn task(
    proc: &Path,
    pid: u32,
    tid: u32,
    threads: u32,
    state: char,
    ticks: u32,
    frames: &[&str],
) {
    let path = proc.join(format!("{pid}/task/{tid}"));
    fs::create_dir_all(&path).unwrap();
    let rest = "0 ".repeat(16);
    let stat = format!(
        "{tid} (CPU {tid}/KVM) {state} 1 1 1 0 -1 0 0 0 0 0 0 {ticks} 0 0 20 0 {threads} 0 9 {rest}0 0\n"
    );
    fs::write(path.join("stat"), &stat).unwrap();
    fs::write(path.join("stack"), stack(frames)).unwrap();
    if pid == tid {
        fs::write(proc.join(format!("{pid}/stat")), stat).unwrap();
    }
}

pub(super) const STARVED: [&str; 3] = ["try_to_free_pages", "__alloc_pages", "xfs_iread_extents"];
pub(super) const HEALTHY: [&str; 2] = ["xfs_ilock", "xfs_file_write_iter"];

pub(super) fn tree() -> tempfile::TempDir {
    let proc = tempfile::tempdir().unwrap();
    let path = proc.path();
    fs::create_dir_all(path.join("pressure")).unwrap();
    fs::create_dir_all(path.join("self")).unwrap();
    fs::write(path.join("self/stack"), "").unwrap();
    fs::write(path.join("pressure/memory"), "some avg10=0.00 total=1\n").unwrap();
    fs::write(
        path.join("vmstat"),
        "allocstall_normal 1\npgscan_direct_throttle 0\n",
    )
    .unwrap();
    task(path, 1, 1, 1, 'S', 0, &[]);
    task(path, 7, 7, 3, 'S', 0, &[]);
    task(path, 7, 8, 3, 'D', 0, &STARVED);
    task(path, 7, 9, 3, 'D', 0, &HEALTHY);
    task(path, 12, 12, 1, 'D', 0, &HEALTHY);
    proc
}
