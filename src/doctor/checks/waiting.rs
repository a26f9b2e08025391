//! Tasks in state D, by what they wait for and whose they are.

use std::collections::BTreeMap;

use crate::discover::owner::Holders;
use crate::doctor::files::Reading;
use crate::doctor::outcome::{Checked, Found};
use crate::doctor::pipes::PipeWriter;
use crate::doctor::readings::Readings;
use crate::doctor::tasks::Task;
use crate::doctor::writers::Writer;
use crate::model::BytesPerSecond;
use crate::table::counted;

/// How many processes, and how many stacks, a finding names.
pub(super) const NAMED: usize = 5;
const STACKS: usize = 3;
/// Functions of a stack that are shown, from the innermost.
const FRAMES: usize = 8;
/// Slower writers are not named: they dirty next to nothing.
const NOTABLE: BytesPerSecond = BytesPerSecond(1 << 20);

/// What a task waits for. A stack may fit several; the first counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Memory,
    Throttled,
    LogSpace,
    Journal,
    XfsLock,
    Remote,
    Pipe,
    Disk,
    Elsewhere,
}

/// Beginnings of the names of functions, without underscores in front.
const PLACES: &[(Cause, &[&str])] = &[
    // mm/page-writeback.c
    (Cause::Throttled, &["balance_dirty_pages"]),
    // fs/xfs/xfs_log.c
    (
        Cause::LogSpace,
        &["xlog_grant_", "xfs_log_reserve", "xfs_log_regrant"],
    ),
    // fs/jbd2
    (
        Cause::Journal,
        &[
            "jbd2_",
            "start_this_handle",
            "wait_transaction_locked",
            "add_transaction_credits",
        ],
    ),
    // fs/xfs/xfs_inode.c, fs/xfs/xfs_file.c, fs/xfs/xfs_buf.c
    (
        Cause::XfsLock,
        &[
            "xfs_ilock",
            "xfs_lock_two_inodes",
            "xfs_buf_lock",
            "xfs_buf_find_lock",
        ],
    ),
    // net/sunrpc, fs/nfs, fs/fuse, fs/ceph, fs/smb
    (
        Cause::Remote,
        &[
            "rpc_",
            "nfs_",
            "nfs4_",
            "fuse_",
            "request_wait_answer",
            "ceph_",
            "cifs_",
            "smb2_",
        ],
    ),
    // fs/pipe.c
    (
        Cause::Pipe,
        &[
            "pipe_write",
            "pipe_read",
            "pipe_lock",
            "pipe_double_lock",
            "pipe_release",
            "pipe_poll",
            "anon_pipe_",
        ],
    ),
    // block, mm/filemap.c, fs/iomap, fs/buffer.c, fs/xfs
    (
        Cause::Disk,
        &[
            "blk_",
            "bio_",
            "submit_bio",
            "rq_qos_wait",
            "wbt_wait",
            "folio_wait",
            "folio_lock",
            "wait_on_page",
            "lock_page",
            "iomap_dio_rw",
            "blockdev_direct_IO",
            "wait_on_buffer",
            "xfs_buf_iowait",
            "xfs_log_force",
            "xlog_wait",
            "io_schedule",
            "filemap_",
        ],
    ),
];

/// Tasks that wait so by design: the parent of a vfork until its child runs another program, and what
/// a cgroup of version 1 has frozen (`docker pause`; kernel/freezer.c).
const BY_DESIGN: &[&str] = &[
    "wait_for_vfork_done",
    "do_fork",
    "kernel_clone",
    "refrigerator",
];

pub fn memory(readings: &Readings) -> Checked {
    waiting(readings, Cause::Memory, "for kernel memory, in XFS")
}

pub fn throttled(readings: &Readings) -> Checked {
    waiting(
        readings,
        Cause::Throttled,
        "because too much memory is dirty",
    )
}

pub fn log_space(readings: &Readings) -> Checked {
    waiting(readings, Cause::LogSpace, "for space in the log of XFS")
}

pub fn journal(readings: &Readings) -> Checked {
    waiting(readings, Cause::Journal, "for the journal of ext4")
}

pub fn xfs_lock(readings: &Readings) -> Checked {
    waiting(readings, Cause::XfsLock, "for a lock of XFS")
}

pub fn disk(readings: &Readings) -> Checked {
    waiting(readings, Cause::Disk, "for a disk")
}

pub fn remote(readings: &Readings) -> Checked {
    waiting(readings, Cause::Remote, "for a remote file system or FUSE")
}

pub fn pipe(readings: &Readings) -> Checked {
    waiting(readings, Cause::Pipe, "for the lock of a pipe")
}

pub fn elsewhere(readings: &Readings) -> Checked {
    waiting(readings, Cause::Elsewhere, "in the kernel")
}

/// Programs that write to pipes that only they could read.
pub fn pipe_loop(readings: &Readings) -> Checked {
    let tasks = readings.tasks.as_ref().map_err(Clone::clone)?;
    let writers = tasks.pipes.deadlocked();
    if writers.is_empty() {
        return Ok(Vec::new());
    }
    let text = |writer: &&PipeWriter| {
        let readers = tasks.pipes.readers.get(&writer.pipe).into_iter().flatten();
        let readers: Vec<_> = readers.map(|pid| format!("PID {pid}")).collect();
        format!(
            "{} (PID {}) for {}",
            writer.comm,
            writer.pid,
            readers.join(" and ")
        )
    };
    let texts: Vec<_> = writers.iter().map(text).collect();
    let what = format!(
        "Writers of full pipes wait for readers that wait themselves: {}.",
        texts.join(", ")
    );
    let read = |writer: &&PipeWriter| format!("/proc/{}/syscall: {}", writer.pid, writer.pipe);
    Ok(vec![Found::new(what, writers.iter().map(read).collect())])
}

fn waiting(readings: &Readings, cause: Cause, for_what: &str) -> Checked {
    let tasks = readings.tasks.as_ref().map_err(Clone::clone)?;
    let is_it = |task: &&Task| task.is_blocked && counts(task, cause) && cause_of(task) == cause;
    let tasks: Vec<&Task> = tasks.waiting.iter().filter(is_it).collect();
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    // Without them the threads are named as the kernel names them.
    let holders = readings.holders.as_ref().ok();
    let (apart, number) = (readings.interval.as_secs_f64(), tasks.len() as u64);
    let (has, was) = [("have", "were"), ("has", "was")][usize::from(number == 1)];
    let (threads, owners) = (counted(number, "thread"), owners(&tasks, holders));
    let mut what = match runs_between(cause) {
        true => format!(
            "{threads} {was} waiting {for_what} at two readings {apart:.1} s apart: {owners}"
        ),
        false => format!("{threads} {has} waited {for_what} for at least {apart:.1} s: {owners}"),
    };
    if cause == Cause::Throttled {
        what.push_str(&writers(readings));
    }
    what.push('.');
    Ok(vec![Found::new(what, stacks(&tasks))])
}

/// A throttled writer and an allocation that is repeated run for a moment between two sleeps, so that
/// how long one sleep has lasted is not known.
fn runs_between(cause: Cause) -> bool {
    matches!(cause, Cause::Memory | Cause::Throttled)
}

fn counts(task: &Task, cause: Cause) -> bool {
    let is_counted = cause != Cause::Elsewhere || !task.is_kernel;
    (task.slept_through || runs_between(cause)) && is_counted && !has(task, BY_DESIGN)
}

fn cause_of(task: &Task) -> Cause {
    if task.is_starved {
        return Cause::Memory;
    }
    let mut places = PLACES.iter();
    let place = places.find(|(_, beginnings)| has(task, beginnings));
    place.map_or(Cause::Elsewhere, |(cause, _)| *cause)
}

fn has(task: &Task, beginnings: &[&str]) -> bool {
    let begins = |frame: &String| {
        let frame = frame.trim_start_matches(['_', '.']);
        beginnings.iter().any(|begin| frame.starts_with(begin))
    };
    task.frames.iter().any(begins)
}

/// Whether a task did not run between the two readings, and does not wait so by design.
pub(super) fn is_stuck(task: &Task) -> bool {
    task.is_blocked && task.slept_through && !has(task, BY_DESIGN)
}

/// The tasks that are throttled.
pub(super) fn throttled_tasks(readings: &Readings) -> Reading<Vec<&Task>> {
    let tasks = readings.tasks.as_ref().map_err(Clone::clone)?;
    let is_it = |task: &&Task| task.is_blocked && cause_of(task) == Cause::Throttled;
    Ok(tasks.waiting.iter().filter(is_it).collect())
}

/// `; most was written by dd (PID 300) 120 MiB/s`: empty if that could not be read.
pub(super) fn writers(readings: &Readings) -> String {
    let writers = readings.writers.as_deref().unwrap_or_default();
    let writer = |it: &Writer| {
        let rate = BytesPerSecond(readings.per_second(it.written));
        (rate >= NOTABLE).then(|| format!("{} (PID {}) {rate}", it.comm, it.pid))
    };
    let names: Vec<_> = writers.iter().filter_map(writer).take(NAMED).collect();
    match names.is_empty() {
        true => String::new(),
        false => format!("; most was written by {}", names.join(", ")),
    }
}

/// `12 of the VM db-1 (PID 4711), 1 of rsync (PID 99), kworker/u8:1+flush-8:0`
pub(super) fn owners(tasks: &[&Task], holders: Option<&Holders>) -> String {
    let mut threads: BTreeMap<u32, Vec<&Task>> = BTreeMap::new();
    for task in tasks {
        threads.entry(task.pid).or_default().push(task);
    }
    let mut owners: Vec<_> = threads.into_iter().collect();
    owners.sort_by_key(|(pid, threads)| (std::cmp::Reverse(threads.len()), *pid));
    let name = |(pid, threads): &(u32, Vec<&Task>)| match holders.and_then(|it| it.process(*pid)) {
        Some((_, Some(vm))) => {
            let vm = vm.name.as_deref().unwrap_or("without a name");
            format!("{} of the VM {vm} (PID {pid})", threads.len())
        }
        Some((name, None)) => format!("{} of {name} (PID {pid})", threads.len()),
        None if threads[0].is_kernel => threads[0].comm.clone(),
        None => format!("{} of {} (PID {pid})", threads.len(), threads[0].comm),
    };
    let mut names: Vec<String> = owners.iter().take(NAMED).map(name).collect();
    let rest = owners.iter().skip(NAMED).map(|(_, threads)| threads.len());
    let rest: usize = rest.sum();
    if rest > 0 {
        names.push(format!("{rest} of others"));
    }
    names.join(", ")
}

/// The most frequent stacks, each with a task that has it.
pub(super) fn stacks(tasks: &[&Task]) -> Vec<String> {
    let mut stacks: BTreeMap<&[String], Vec<&Task>> = BTreeMap::new();
    for task in tasks {
        stacks.entry(&task.frames).or_default().push(task);
    }
    let mut stacks: Vec<_> = stacks.into_iter().collect();
    stacks.sort_by_key(|(_, tasks)| std::cmp::Reverse(tasks.len()));
    let text = |(frames, tasks): &(&[String], Vec<&Task>)| {
        let (first, frames) = (tasks[0], frames.iter().take(FRAMES).map(String::as_str));
        let frames = frames.collect::<Vec<_>>().join(" < ");
        let path = match first.pid == first.tid {
            true => format!("/proc/{}/stack", first.pid),
            false => format!("/proc/{}/task/{}/stack", first.pid, first.tid),
        };
        match tasks.len() {
            1 => format!("{path} ({}): {frames}", first.comm),
            number => format!("{path} ({}, and {} more): {frames}", first.comm, number - 1),
        }
    };
    stacks.iter().take(STACKS).map(text).collect()
}
