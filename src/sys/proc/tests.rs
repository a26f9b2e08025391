//! The parsers, on made-up texts and on our own kernel.

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
