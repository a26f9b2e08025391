//! What the kernel writes into the files of /proc that tell of memory and of tasks. Pure: bytes
//! in, values out; what is not understood is passed over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::klog::record::number;

/// Of /proc/PID/task/TID/stat, as much of it as is needed (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskStat<'a> {
    /// The thread.
    pub tid: u32,
    /// Its name; any bytes.
    pub comm: &'a [u8],
    /// `R`, `S`, `D`, …
    pub state: u8,
    /// PF_* (include/linux/sched.h).
    pub flags: u64,
    /// Clock ticks spent in the kernel.
    pub system_ticks: u64,
    /// Threads of its process.
    pub threads: u64,
    /// Clock ticks after boot at which it began. With its number it names a task for good.
    pub start: u64,
    /// The processor it ran on last.
    pub processor: u64,
}

/// A thread of the kernel's own (include/linux/sched.h).
pub const PF_KTHREAD: u64 = 0x0020_0000;
/// A kworker (include/linux/sched.h).
pub const PF_WQ_WORKER: u64 = 0x20;

/// Understands the one line of the file.
#[must_use]
pub fn task_stat(text: &[u8]) -> Option<TaskStat<'_>> {
    // The name may hold blanks and parentheses; no later field does.
    let open = text.iter().position(|byte| *byte == b'(')?;
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let tid = number(text.get(..open)?.trim_ascii_end())?;
    let comm = text.get(open + 1..close)?;
    let mut fields = words(text.get(close + 1..)?.trim_ascii_end());
    // Fields are counted from 1 in the manual, and `state` is the third.
    let state = *fields.next()?.first()?;
    Some(TaskStat {
        tid: u32::try_from(tid).ok()?,
        comm,
        state,
        flags: number(fields.nth(9 - 4)?)?,
        system_ticks: number(fields.nth(15 - 10)?)?,
        threads: number(fields.nth(20 - 16)?)?,
        start: number(fields.nth(22 - 21)?)?,
        processor: number(fields.nth(39 - 23)?)?,
    })
}

/// Free blocks of a zone, by order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// The NUMA node.
    pub node: u64,
    /// Its name: `DMA32`, `Normal`, …
    pub zone: String,
    /// Free blocks of 2^n pages.
    pub free_blocks: Vec<u64>,
}

/// /proc/buddyinfo: `Node 0, zone   Normal    216     55    189 …`
#[must_use]
pub fn buddyinfo(text: &[u8]) -> Vec<Zone> {
    let zone = |line: &[u8]| {
        let mut words = words(line);
        let node = words.nth(1)?;
        Some(Zone {
            node: number(node.strip_suffix(b",")?)?,
            zone: String::from_utf8_lossy(words.nth(1)?).into_owned(),
            free_blocks: words.map_while(number).collect(),
        })
    };
    lines(text).filter_map(zone).collect()
}

/// Files of lines that begin with a name and a number: /proc/vmstat, /proc/meminfo (there the name
/// loses its colon, and all numbers are KiB). Only names that `wanted` says yes to.
#[must_use]
pub fn named_numbers(text: &[u8], wanted: impl Fn(&str) -> bool) -> BTreeMap<String, u64> {
    let pair = |line| {
        let mut words = words(line);
        let name = std::str::from_utf8(words.next()?).ok()?;
        let name = name.strip_suffix(':').unwrap_or(name);
        let value = number(words.next()?)?;
        wanted(name).then(|| (name.to_owned(), value))
    };
    lines(text).filter_map(pair).collect()
}

/// One line of a file of /proc/pressure: the share of time in which tasks waited, in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// Over the last 10 s.
    pub avg10: f64,
    /// Over the last minute.
    pub avg60: f64,
    /// Over the last 5 minutes.
    pub avg300: f64,
    /// Since boot, in microseconds.
    pub total: u64,
}

/// A file of /proc/pressure (Documentation/accounting/psi.rst): by `some` and `full`.
#[must_use]
pub fn pressure(text: &[u8]) -> BTreeMap<String, Pressure> {
    let line = |line| {
        let mut words = words(line);
        let who = std::str::from_utf8(words.next()?).ok()?;
        let mut pressure = Pressure::default();
        for word in words {
            let (name, value) = std::str::from_utf8(word).ok()?.split_once('=')?;
            let average = || value.parse().ok().filter(|share: &f64| share.is_finite());
            match name {
                "avg10" => pressure.avg10 = average()?,
                "avg60" => pressure.avg60 = average()?,
                "avg300" => pressure.avg300 = average()?,
                "total" => pressure.total = value.parse().ok()?,
                _ => {}
            }
        }
        Some((who.to_owned(), pressure))
    };
    lines(text).filter_map(line).collect()
}

/// `total=` of the line `some`, without allocating.
#[must_use]
pub fn pressure_some_total(text: &[u8]) -> Option<u64> {
    let some = lines(text).find(|line| line.starts_with(b"some "))?;
    words(some).find_map(|word| number(word.strip_prefix(b"total=")?))
}

/// How often a task had to see to free memory itself: the sum of `allocstall*` and `compact_stall`
/// of /proc/vmstat, without allocating.
#[must_use]
pub fn allocation_stalls(text: &[u8]) -> u64 {
    let stalls = |line| {
        let mut words = words(line);
        let name: &[u8] = words.next()?;
        let counts = name.starts_with(b"allocstall") || name == b"compact_stall";
        number(words.next()?).filter(|_| counts)
    };
    lines(text).filter_map(stalls).fold(0, u64::saturating_add)
}

/// How often a task was throttled in direct reclaim: `pgscan_direct_throttle` of /proc/vmstat (since
/// 3.6), without allocating.
#[must_use]
pub fn direct_throttles(text: &[u8]) -> Option<u64> {
    let count = |line| number(words(line).nth(1)?);
    lines(text)
        .find(|line| line.starts_with(b"pgscan_direct_throttle "))
        .and_then(count)
}

/// One cache of the slab allocator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slab {
    /// Its name: `kmalloc-256`, `xfs_inode`, …
    pub name: String,
    /// Objects in use.
    pub active: u64,
    /// Objects there is room for.
    pub objects: u64,
    /// Size of one.
    pub object_bytes: u64,
    /// What all its slabs take.
    pub bytes: u64,
}

/// The `top` largest of /proc/slabinfo (slabinfo(5)), largest first.
#[must_use]
pub fn slabinfo(text: &[u8], page_bytes: u64, top: usize) -> Vec<Slab> {
    let slab = |line: &[u8]| {
        let mut words = words(line);
        let name = std::str::from_utf8(words.next()?).ok()?.to_owned();
        let (active, objects) = (number(words.next()?)?, number(words.next()?)?);
        let object_bytes = number(words.next()?)?;
        let pages = number(words.nth(1)?)?;
        let mut words = words.skip_while(|word| *word != b"slabdata");
        let slabs = number(words.nth(2)?)?;
        Some(Slab {
            name,
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

/// The functions of /proc/PID/stack, innermost first: `xfs_ilock+0x8e/0x120 [xfs]`. The addresses
/// before them are hidden anyway.
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
    fn our_own_kernel_is_understood() {
        let read = |name: &str| fs::read(format!("/proc/{name}")).unwrap();
        let stat = read("self/stat");
        let stat = task_stat(&stat).unwrap();
        assert_eq!(stat.tid, std::process::id());
        assert!(stat.threads >= 1 && stat.start > 0);
        assert!(
            buddyinfo(&read("buddyinfo"))
                .iter()
                .any(|zone| zone.free_blocks.len() >= 10)
        );
        let dirty = |name: &str| name.starts_with("nr_dirty");
        assert_eq!(named_numbers(&read("vmstat"), dirty).len(), 3);
        assert!(named_numbers(&read("meminfo"), |_| true).contains_key("MemFree"));
    }

    #[test]
    fn pressure_in_full_and_in_short() {
        let text = b"some avg10=1.50 avg60=0.20 avg300=0.00 total=123456\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let both = pressure(text);
        assert_eq!(both["some"].total, 123_456);
        assert_eq!(both["full"].total, 7);
        assert!((both["some"].avg10 - 1.5).abs() < 1e-9);
        assert_eq!(pressure_some_total(text), Some(123_456));
        assert_eq!(pressure_some_total(b""), None);
    }

    #[test]
    fn stalls_are_summed() {
        let text = b"allocstall_dma 1\nallocstall_normal 20\ncompact_stall 300\ncompact_fail 9\nallocstall 4000\n";
        assert_eq!(allocation_stalls(text), 4321);
        assert_eq!(direct_throttles(text), None);
        assert_eq!(
            direct_throttles(b"a 1\npgscan_direct_throttle 7\n"),
            Some(7)
        );
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
            let _ = buddyinfo(&text);
            let _ = named_numbers(&text, |_| true);
            let _ = pressure(&text);
            let _ = pressure_some_total(&text);
            let _ = allocation_stalls(&text);
            let _ = direct_throttles(&text);
            let _ = slabinfo(&text, 4096, 1);
            let _ = stack_frames(&text).count();
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
