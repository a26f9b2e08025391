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
/// It includes them (gather_bootmem_prealloc, mm/hugetlb.c), but the kernel uses them for nothing
/// else, and hypervisors reserve most of their memory so.
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    #[test]
    fn the_stat_of_a_task() {
        let text =
            b"28 (CPU 0/KVM) D) (x) D 2 0 0 0 -1 69238880 1 2 3 4 500 600 7 8 20 0 9 0 1234 0 0 \
            18446744073709551615 0 0 0 0 0 0 0 2147483647 0 1 0 0 17 3 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        let expected = TaskStat {
            tid: 28,
            comm: b"CPU 0/KVM) D) (x",
            state: b'D',
            flags: 69_238_880,
            system_ticks: 600,
            threads: 9,
            start: 1234,
            processor: 3,
        };
        assert_eq!(task_stat(text), Some(expected));
        assert_eq!(task_stat(b"28 (a) D 2 0"), None);
    }

    #[test]
    fn fields_are_read_past_any_name() {
        let stat = Stat::parse(b"5 (a) 1 2 (\xff) S) T 4 33 -1 0").unwrap();
        assert_eq!(
            (stat.id, stat.comm, stat.state()),
            (5, &b"a) 1 2 (\xff) S"[..], Some(b'T'))
        );
        assert_eq!((stat.field::<4>(), stat.field::<5>()), (Some(4), Some(33)));
        assert_eq!((stat.field::<6>(), stat.field::<8>()), (None, None));
        assert!(Stat::parse(b"").is_none() && Stat::parse(b"5 (a").is_none());
        assert_eq!(Stat::parse(b"5 (a)").unwrap().state(), None);
    }

    #[test]
    fn our_own_kernel_is_understood() {
        let read = |name: &str| fs::read(format!("/proc/{name}")).unwrap();
        let stat = read("self/stat");
        let stat = task_stat(&stat).unwrap();
        assert_eq!(stat.tid, std::process::id());
        assert!(stat.threads >= 1 && stat.start > 0);
        assert_eq!(start_time(Path::new("/proc"), stat.tid), Some(stat.start));
        assert!(buddyinfo(&read("buddyinfo")).any(|zone| zone.free_blocks().count() >= 10));
        let vmstat = read("vmstat");
        let dirty = counters(&vmstat).filter(|(name, _)| name.starts_with(b"nr_dirty"));
        assert_eq!(dirty.count(), 3);
        assert!(counters(&read("meminfo")).any(|(name, _)| name == b"MemFree"));
    }

    #[test]
    fn both_lines_of_pressure() {
        let text = b"some avg10=1.50 avg60=0.20 avg300=0.00 total=123456\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let some = pressure(text, "some").unwrap();
        assert_eq!(some.total, 123_456);
        assert!((some.avg10 - 1.5).abs() < 1e-9);
        assert_eq!(pressure(text, "full").unwrap().total, 7);
        for other in [
            &b""[..],
            b"some nonsense\n",
            b"some avg10=nan total=1\n",
            b"some avg10=1.0\n",
        ] {
            assert_eq!(pressure(other, "some"), None);
        }
    }

    #[test]
    fn huge_pages_are_no_memory_for_slabs() {
        // One GiB of 2 MiB pages and four pages of 1 GiB.
        let new = b"MemTotal:       16777216 kB\nHugePages_Total:     512\nHugepagesize:       2048 kB\nHugetlb:        5242880 kB\n";
        assert_eq!(memory_for_slabs(new), Some(11 << 30));
        // Before 4.15.
        let old =
            b"MemTotal:       16777216 kB\nHugePages_Total:     512\nHugepagesize:       2048 kB\n";
        assert_eq!(memory_for_slabs(old), Some(15 << 30));
        let none = b"MemTotal:       16777216 kB\n";
        assert_eq!(memory_for_slabs(none), Some(16 << 30));
        assert_eq!(memory_for_slabs(b"MemFree: 1 kB\n"), None);
    }

    #[test]
    fn a_name_of_a_slab_may_have_blanks() {
        let text = b"slabinfo - version: 2.1\n\
            # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>\n\
            nvme tcp 7 queue      3      4    192   21    1 : tunables    0    0    0 : slabdata      1      2      0\n\
            dentry             10     20    192   21    1 : tunables  120   60    8 : slabdata      7      9      0 : globalstat    1    2 : cpustat      3      4\n";
        let slabs = slabinfo(text, 65536, 15);
        let slab = |name: &str, active, objects, slabs: u64| Slab {
            name: name.to_owned(),
            active,
            objects,
            object_bytes: 192,
            bytes: slabs * 65536,
        };
        let expected = [slab("dentry", 10, 20, 9), slab("nvme tcp 7 queue", 3, 4, 2)];
        assert_eq!(slabs, expected);
    }

    #[test]
    fn a_line_longer_than_the_buffer_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "a 1\nlonger 2\n").unwrap();
        let read = |size: usize| {
            let mut text = Vec::<u8>::new();
            let file = File::open(file.path()).unwrap();
            each_part(&file, &mut vec![0; size], |part| text.extend(part)).map(|()| text)
        };
        assert_eq!(read(8).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(9).unwrap(), b"a 1\nlonger 2\n");
    }

    #[test]
    fn the_largest_slabs_come_first() {
        let text = b"slabinfo - version: 2.1\n# name            <active_objs> <num_objs>\n\
            small  1 2 64 64 1 : tunables 0 0 0 : slabdata 1 1 0\n\
            xfs_inode  30 40 1024 8 2 : tunables 0 0 0 : slabdata 5 6 0\n";
        let slabs = slabinfo(text, 4096, 15);
        assert_eq!(slabs.len(), 2);
        assert_eq!(
            (slabs[0].name.as_str(), slabs[0].bytes),
            ("xfs_inode", 6 * 2 * 4096)
        );
        assert_eq!(
            (slabs[0].active, slabs[0].objects, slabs[0].object_bytes),
            (30, 40, 1024)
        );
    }

    #[test]
    fn frames_are_bare() {
        let text = b"[<0>] a+0x1/0x2\n[<ffffffff81000000>] b+0x1/0x2 [xfs]\nc+0x0/0x1\n";
        let frames: Vec<_> = stack_frames(text).collect();
        assert_eq!(
            frames,
            [&b"a+0x1/0x2"[..], b"b+0x1/0x2 [xfs]", b"c+0x0/0x1"]
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(text: Vec<u8>) {
            let _ = task_stat(&text);
            let _ = buddyinfo(&text).flat_map(|zone| zone.free_blocks()).count();
            let _ = counters(&text).count();
            let _ = pressure(&text, "some");
            let _ = memory_for_slabs(&text);
            let _ = slabinfo(&text, 4096, 1);
            let _ = stack_frames(&text).count();
        }

        /// However the reads cut the text: the parts are whole lines, and together the text.
        #[test]
        fn lines_that_reads_cut_are_joined(
            lines in proptest::collection::vec("[a-z_]{1,20} [0-9]{1,9}", 0..40),
            last in proptest::option::of("[a-z]{1,20}"),
            size in 31_usize..200,
        ) {
            let mut text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
            text.extend(last);
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), &text).unwrap();
            let mut parts: Vec<Vec<u8>> = Vec::new();
            let mut buffer = vec![0; size];
            each_part(file.as_file(), &mut buffer, |part| parts.push(part.to_vec())).unwrap();
            prop_assert_eq!(parts.concat(), text.as_bytes());
            for part in parts.iter().rev().skip(1) {
                prop_assert!(part.ends_with(b"\n"));
            }
            let sum = |text: &[u8]| counters(text).map(|(_, count)| count).sum::<u64>();
            prop_assert_eq!(parts.iter().map(|part| sum(part)).sum::<u64>(), sum(text.as_bytes()));
        }

        #[test]
        fn slabs_are_read_past_any_name(name in "[!-~]([ -~]{0,30}[!-~])?", numbers: [u32; 5]) {
            let [active, objects, size, per_slab, pages] = numbers;
            let text = format!("{name:<17} {active:>6} {objects:>6} {size:>6} {per_slab:>4} {pages:>4} : tunables    0    0    0 : slabdata      5      6      0\n");
            let slabs = slabinfo(text.as_bytes(), 4096, 1);
            prop_assert_eq!(&slabs[0].name, &name);
            let read = (slabs[0].active, slabs[0].objects, slabs[0].object_bytes);
            prop_assert_eq!(read, (active.into(), objects.into(), size.into()));
            prop_assert_eq!(slabs[0].bytes, 6 * 4096 * u64::from(pages));
        }

        #[test]
        fn a_name_never_passes_for_a_field(comm in "[ -~]{0,15}", state in "[RSDZTtI]") {
            let text = format!("7 ({comm}) {state} 1 1 1 0 -1 32 0 0 0 0 0 5 0 0 20 0 1 0 99 {} 0 0", "0 ".repeat(16));
            let stat = task_stat(text.as_bytes()).unwrap();
            prop_assert_eq!(stat.comm, comm.as_bytes());
            prop_assert_eq!((stat.state, stat.start), (state.as_bytes()[0], 99));
        }
    }
}
