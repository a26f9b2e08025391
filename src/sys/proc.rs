//! Text files of /proc: process and thread state, memory counters, pressure.
//!
//! Parsers take bytes and skip what they do not understand; those that return an iterator or a
//! `Copy` value do not allocate. Functions that read files take the path of /proc.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::io::pread;
use serde::{Deserialize, Serialize};

/// Parses decimal digits and nothing else; `None` if the number does not fit.
pub fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Reads a procfs file from its beginning in parts of whole lines, without allocating. A read ends
/// within a line if the buffer is smaller than that of the kernel, which has at least a page
/// (seq_read_iter, fs/seq_file.c): 64 KiB on some kernels.
///
/// # Errors
/// Those of pread(2); InvalidData if a line does not fit into the buffer.
pub fn each_part(file: &File, buffer: &mut [u8], mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let (mut offset, mut kept) = (0, 0);
    loop {
        // pread(2) returns at most the size of the rest of the buffer.
        let length = pread(file, &mut buffer[kept..], offset)?;
        let filled = kept + length;
        let end = buffer[..filled].iter().rposition(|byte| *byte == b'\n');
        let whole = match length {
            // The last line of a file may lack its end.
            0 => filled,
            _ => end.map_or(0, |end| end + 1),
        };
        if whole > 0 {
            take(&buffer[..whole]);
        }
        if length == 0 {
            return Ok(());
        }
        buffer.copy_within(whole..filled, 0);
        kept = filled - whole;
        if kept == buffer.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        offset = offset.saturating_add(length as u64);
    }
}

/// Size of a page of memory in bytes (sysconf(3)): 4096 on x86-64, up to 65536 on others.
pub fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

/// The line of /proc/PID/stat (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy)]
pub struct Stat<'a> {
    /// Process or thread ID.
    pub id: u32,
    /// Its name, which may contain any bytes.
    pub comm: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Stat<'a> {
    /// Parses the line.
    pub fn parse(text: &'a [u8]) -> Option<Stat<'a>> {
        // The name may contain blanks and parentheses; no later field does.
        let open = text.iter().position(|byte| *byte == b'(')?;
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let id = number(text.get(..open)?.trim_ascii_end())?;
        Some(Stat {
            id: u32::try_from(id).ok()?,
            comm: text.get(open + 1..close)?,
            rest: text.get(close + 1..)?.trim_ascii_end(),
        })
    }

    /// `R`, `S`, `D`, …
    pub fn state(&self) -> Option<u8> {
        words(self.rest).next()?.first().copied()
    }

    /// Field `N` as the manual numbers them, from 4 on; `None` if it is missing or negative.
    pub fn field<const N: usize>(&self) -> Option<u64> {
        const { assert!(N > 3) };
        number(words(self.rest).nth(N - 3)?)
    }
}

/// A field of /proc/PID/stat; see [`Stat::field`].
pub fn stat_field<const N: usize>(proc: &Path, pid: u32) -> Option<u64> {
    let text = std::fs::read(proc.join(pid.to_string()).join("stat")).ok()?;
    Stat::parse(&text)?.field::<N>()
}

/// Start time of a process in clock ticks after boot. With the PID it identifies the process.
pub fn start_time(proc: &Path, pid: u32) -> Option<u64> {
    stat_field::<22>(proc, pid)
}

/// A process, identified by its PID and its start time in clock ticks after boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its PID.
    pub pid: u32,
    /// Its start time.
    pub start: u64,
}

impl ProcessId {
    /// The process with this PID; `None` if it has ended, also if its parent has not waited for it.
    pub fn of(pid: u32) -> Option<ProcessId> {
        let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = Stat::parse(&text).filter(|stat| stat.state() != Some(b'Z'))?;
        let start = stat.field::<22>()?;
        Some(ProcessId { pid, start })
    }

    /// Whether it still runs. After a reboot another process may have the same PID and start time.
    pub fn runs(self) -> bool {
        ProcessId::of(self.pid) == Some(self)
    }
}

/// The required fields of /proc/PID/task/TID/stat (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskStat<'a> {
    /// Thread ID.
    pub tid: u32,
    /// Its name, which may contain any bytes.
    pub comm: &'a [u8],
    /// `R`, `S`, `D`, …
    pub state: u8,
    /// PF_* (include/linux/sched.h).
    pub flags: u64,
    /// Clock ticks in kernel mode.
    pub system_ticks: u64,
    /// Number of threads of its process.
    pub threads: u64,
    /// Start time in clock ticks after boot. With the TID it identifies the task.
    pub start: u64,
    /// The processor it last ran on.
    pub processor: u64,
}

/// Kernel thread (include/linux/sched.h).
pub const PF_KTHREAD: u64 = 0x0020_0000;
/// Kworker (include/linux/sched.h).
pub const PF_WQ_WORKER: u64 = 0x20;

/// Parses the single line of the file.
pub fn task_stat(text: &[u8]) -> Option<TaskStat<'_>> {
    let stat = Stat::parse(text)?;
    let mut fields = words(stat.rest);
    // The manual counts fields from 1; `state` is the third.
    let state = *fields.next()?.first()?;
    Some(TaskStat {
        tid: stat.id,
        comm: stat.comm,
        state,
        flags: number(fields.nth(9 - 4)?)?,
        system_ticks: number(fields.nth(15 - 10)?)?,
        threads: number(fields.nth(20 - 16)?)?,
        start: number(fields.nth(22 - 21)?)?,
        processor: number(fields.nth(39 - 23)?)?,
    })
}

/// A zone of /proc/buddyinfo: `Node 0, zone   Normal    216     55    189 …`
#[derive(Debug, Clone, Copy)]
pub struct BuddyZone<'a> {
    /// The NUMA node.
    pub node: u64,
    /// Its name: `DMA32`, `Normal`, …
    pub name: &'a [u8],
    line: &'a [u8],
}

impl<'a> BuddyZone<'a> {
    /// Free blocks of 2^n pages, from n = 0 on.
    pub fn free_blocks(&self) -> impl Iterator<Item = u64> + use<'a> {
        words(self.line).skip(4).map_while(number)
    }
}

/// The zones of /proc/buddyinfo.
pub fn buddyinfo(text: &[u8]) -> impl Iterator<Item = BuddyZone<'_>> {
    lines(text).filter_map(|line| {
        let mut words = words(line);
        let node = number(words.nth(1)?.strip_suffix(b",")?)?;
        let name = words.nth(1)?;
        Some(BuddyZone { node, name, line })
    })
}

/// Lines of a name and a number: /proc/vmstat; /proc/meminfo (name without colon, sizes in KiB).
pub fn counters(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    lines(text).filter_map(|line| {
        let mut words = words(line);
        let name = words.next()?;
        let name = name.strip_suffix(b":").unwrap_or(name);
        Some((name, number(words.next()?)?))
    })
}

/// A line of a /proc/pressure file: the share of time in which tasks waited, in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// Over the last 10 s.
    pub avg10: f64,
    /// Over the last minute.
    pub avg60: f64,
    /// Over the last 5 minutes.
    pub avg300: f64,
    /// Total time since boot, in microseconds.
    pub total: u64,
}

/// The line `some` or `full` of a /proc/pressure file (Documentation/accounting/psi.rst); `None` if
/// it is missing or lacks `avg10` or `total`.
pub fn pressure(text: &[u8], of: &str) -> Option<Pressure> {
    let line = lines(text).find_map(|line| line.strip_prefix(of.as_bytes())?.strip_prefix(b" "))?;
    let line = std::str::from_utf8(line).ok()?;
    let field = |name: &str| {
        let mut words = line.split(' ');
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let average = |name| {
        let share: f64 = field(name)?.parse().ok()?;
        share.is_finite().then_some(share)
    };
    Some(Pressure {
        avg10: average("avg10")?,
        avg60: average("avg60").unwrap_or(0.0),
        avg300: average("avg300").unwrap_or(0.0),
        total: number(field("total")?.as_bytes())?,
    })
}

/// Bytes of memory that slabs can take: `MemTotal` of /proc/meminfo without the pages of hugetlbfs.
/// It includes them (gather_bootmem_prealloc, mm/hugetlb.c), but they cannot be used for anything
/// else (Documentation/admin-guide/mm/hugetlbpage.rst), and hypervisors reserve most memory so.
pub fn memory_for_slabs(meminfo: &[u8]) -> Option<u64> {
    let value = |of: &[u8]| counters(meminfo).find_map(|(name, kib)| (name == of).then_some(kib));
    // `Hugetlb` counts pages of all sizes (since 4.15), the others those of the default size.
    let of_default_size =
        || Some(value(b"HugePages_Total")?.saturating_mul(value(b"Hugepagesize")?));
    let reserved = value(b"Hugetlb").or_else(of_default_size).unwrap_or(0);
    let available = value(b"MemTotal")?.saturating_sub(reserved);
    Some(available.saturating_mul(1024))
}

/// A slab cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slab {
    /// Its name: `kmalloc-256`, `xfs_inode`, …
    pub name: String,
    /// Objects in use.
    pub active: u64,
    /// Objects there is room for.
    pub objects: u64,
    /// Size of an object.
    pub object_bytes: u64,
    /// Size of all its slabs.
    pub bytes: u64,
}

/// The `top` largest of /proc/slabinfo (slabinfo(5)), largest first.
pub fn slabinfo(text: &[u8], page_bytes: u64, top: usize) -> Vec<Slab> {
    let slab = |line: &[u8]| {
        let (mut front, slabdata) = std::str::from_utf8(line).ok()?.split_once(" : slabdata ")?;
        let slabs = number(words(slabdata.as_bytes()).nth(1)?)?;
        (front, _) = front.rsplit_once(" : tunables ")?;
        // From the right: a name may contain blanks (kmem_cache_create accepts any name).
        let mut last = || {
            let (rest, column) = front.trim_end().rsplit_once(' ')?;
            front = rest;
            number(column.as_bytes())
        };
        let (pages, _objects_per_slab, object_bytes) = (last()?, last()?, last()?);
        let (objects, active) = (last()?, last()?);
        Some(Slab {
            name: front.trim_end().to_owned(),
            active,
            objects,
            object_bytes,
            bytes: slabs.saturating_mul(pages).saturating_mul(page_bytes),
        })
    };
    let mut slabs: Vec<Slab> = lines(text).filter_map(slab).collect();
    slabs.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    slabs.truncate(top);
    slabs
}

/// Functions of /proc/PID/stack, innermost first (`xfs_ilock+0x8e/0x120 [xfs]`), without addresses.
pub fn stack_frames(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    lines(text).map(|line| match line.iter().position(|byte| *byte == b']') {
        Some(end) if line.starts_with(b"[<") => {
            line.get(end + 1..).unwrap_or_default().trim_ascii()
        }
        _ => line.trim_ascii(),
    })
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests;
