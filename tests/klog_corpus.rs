//! Every form of the messages that fragwatch knows, as kernels from 2.4 to 7.x print them, with the
//! rule it must match; and what must not match.
//!
//! The forms are those of the kernel's sources and of reports on the mailing list linux-xfs.

use fragwatch::internals::klog::{DRILL_MARKER, Record, Rules};
use fragwatch::internals::model::{RuleAction, RuleDefinition};

struct Known {
    text: &'static str,
    rule: &'static str,
}

const fn known(rule: &'static str, text: &'static str) -> Known {
    Known { text, rule }
}

const fn deadlock(text: &'static str) -> Known {
    known("xfs_deadlock", text)
}

const DEADLOCKS: &[Known] = &[
    // 2.4 and the first of 2.6: no prefix.
    deadlock("possible deadlock in kmem_alloc (mode:0xd0)"),
    deadlock("possible deadlock in kmem_zone_alloc (mode:0xd0)"),
    // 2.6.9-rc.
    deadlock("xfs: possible memory allocation deadlock in kmem_alloc (mode:0xd0)"),
    // To 4.3.
    deadlock("XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)"),
    deadlock("XFS: possible memory allocation deadlock in pagebuf_get (mode:0x250)"),
    deadlock("XFS: possible memory allocation deadlock in xfs_buf_allocate_memory (mode:0x250)"),
    // As a web page quotes it.
    deadlock("XFS: possible memory allocation deadlock in kmem_alloc(mode: 0x250)"),
    // Trees in between: a task, no size.
    deadlock(
        "XFS: kworker/u16:28(381) possible memory allocation deadlock in xfs_buf_allocate_memory (mode:0x250)",
    ),
    deadlock(
        "XFS: xfs-data/sda1(399) possible memory allocation deadlock in kmem_alloc (mode:0x8250)",
    ),
    // 4.4 to 6.8.
    deadlock(
        "XFS: nginx(31293) possible memory allocation deadlock size 65728 in kmem_alloc (mode:0x250)",
    ),
    deadlock(
        "XFS: fs_mark(8414) possible memory allocation deadlock size 1048576 in kmem_realloc (mode:0x2d40)",
    ),
    deadlock(
        "XFS: runc:[1:CHILD](3580) possible memory allocation deadlock in kmem_zone_alloc (mode:0x82d0)",
    ),
    deadlock(
        "XFS: CPU 0/KVM(12345) possible memory allocation deadlock size 65768 in kmem_alloc (mode:0x2d40)",
    ),
    // Vendors append.
    deadlock(
        "XFS: qemu-kvm(7) possible memory allocation deadlock in kmem_zone_alloc (mode:0x2d40, flags: 0x4)",
    ),
    deadlock(
        "XFS: qemu-kvm(7) possible memory allocation deadlock in kmem_alloc (mode:0x2d40), size: 0x100, flags: 0x4",
    ),
    deadlock(
        "XFS: [4242] kmem_alloc failure inum=18446744073709551615 size=625000 flags=0x4 lflags=0x250 retries=100 SLEEP",
    ),
    // No kernel prints a device here; one day one may.
    deadlock("XFS (md0p1): possible memory allocation deadlock in kmem_alloc (mode:0x250)"),
    deadlock(
        "XFS (dm-0): a(12) possible memory allocation deadlock size 5 in kmem_alloc (mode:0x250)",
    ),
    // Names that tasks choose for themselves.
    deadlock("XFS: a(b)(7) possible memory allocation deadlock in kmem_alloc (mode:0x250)"),
    deadlock("XFS: : (1) (7) possible memory allocation deadlock in kmem_alloc (mode:0x250)"),
    deadlock("XFS: possible (1)(7) possible memory allocation deadlock in kmem_alloc (mode:0x250)"),
    deadlock("XFS: [3] kmem_x(7) possible memory allocation deadlock in kmem_alloc (mode:0x250)"),
    deadlock("XFS: a\nb\u{e4}(7) possible memory allocation deadlock in kmem_alloc (mode:0x250)"),
];

const fn shutdown(text: &'static str) -> Known {
    known("xfs_shutdown", text)
}

const fn corruption(text: &'static str) -> Known {
    known("xfs_corruption", text)
}

const OTHERS: &[Known] = &[
    shutdown(
        "XFS (dm-0): Log I/O Error (0x2) detected at xlog_force_shutdown+0x1a/0x120 [xfs] (fs/xfs/xfs_log.c:3870).  Shutting down filesystem.",
    ),
    shutdown(
        "XFS (vdb1): Corruption of in-memory data (0x8) detected at xfs_trans_cancel+0x12b/0x150 [xfs] (fs/xfs/xfs_trans.c:983).  Shutting down filesystem.",
    ),
    shutdown(
        "XFS (vdb1): Corruption of on-disk metadata (0x20) detected at xfs_defer_finish_noroll+0x1/0x2 [xfs] (fs/xfs/libxfs/xfs_defer.c:573).  Shutting down filesystem.",
    ),
    shutdown(
        "XFS (vdb1): Block device removal (0x40) detected at xfs_fs_shutdown+0x1/0x2 [xfs] (fs/xfs/xfs_super.c:1).  Shutting down filesystem.",
    ),
    shutdown(
        "XFS (vdb1): Metadata I/O Error (0x1) detected at xfs_trans_read_buf_map+0x1/0x2 [xfs] (fs/xfs/xfs_trans_buf.c:296).  Shutting down filesystem.",
    ),
    shutdown(
        "XFS (sda2): xfs_do_force_shutdown(0x8) called from line 1024 of file fs/xfs/xfs_trans.c.  Return address = xfs_trans_cancel+0x12b/0x150 [xfs]",
    ),
    shutdown(
        "XFS (sda2): xfs_do_force_shutdown(0x2) called from line 1172 of file fs/xfs/xfs_log.c.  Return address = 0xffffffffa0355c2d",
    ),
    shutdown("XFS (sda2): Corruption of in-memory data detected.  Shutting down filesystem"),
    shutdown("XFS (sda2): Log I/O Error Detected.  Shutting down filesystem"),
    shutdown("XFS (sda2): I/O Error Detected. Shutting down filesystem"),
    shutdown("XFS (sda2): All device paths lost.  Shutting down filesystem."),
    shutdown("XFS (sda2): Please unmount the filesystem and rectify the problem(s)"),
    shutdown("XFS (sda2): Please umount the filesystem and rectify the problem(s)"),
    shutdown("Filesystem \"sda2\": Please umount the filesystem, and rectify the problem(s)"),
    shutdown("XFS (sda2): Filesystem has been shut down due to log error (0x2)."),
    shutdown("XFS (sda2): User initiated shutdown received."),
    shutdown("XFS (sda2): User initiated shutdown received. Shutting down filesystem"),
    shutdown("Filesystem \"sda2\": Log I/O Error Detected.  Shutting down filesystem: sda2"),
    shutdown(
        "xfs_force_shutdown(sda2,0x2) called from line 1056 of file fs/xfs/xfs_log.c.  Return address = 0xf8a2b2d4",
    ),
    known("xfs_log_error", "XFS (dm-3): log I/O error -5"),
    known(
        "xfs_log_error",
        "XFS (dm-3): xfs_log_force: error -5 returned.",
    ),
    known(
        "xfs_log_error",
        "Filesystem \"dm-3\": xfs_log_force: error 5 returned.",
    ),
    known(
        "xfs_metadata_error",
        "XFS (dm-3): metadata I/O error in \"xfs_imap_to_bp+0x5d/0xa0 [xfs]\" at daddr 0x40 len 32 error 74",
    ),
    known(
        "xfs_metadata_error",
        "XFS (dm-3): metadata I/O error in \"xlog_iodone\" at daddr 0x3a9f6e8 len 64 error 5",
    ),
    known(
        "xfs_metadata_error",
        "XFS (dm-3): metadata I/O error: block 0xa02007 (\"xfs_trans_read_buf_map\") error 5 numblks 1",
    ),
    known(
        "xfs_metadata_error",
        "I/O error in filesystem (\"sda2\") meta-data dev sda2 block 0x3a9f6e8       (\"xlog_iodone\") error 5 buf count 3072",
    ),
    known(
        "xfs_write_failure",
        "XFS (dm-3): Failing async write on buffer block 0x77ffff0. Retrying async write.",
    ),
    known(
        "xfs_write_failure",
        "XFS (dm-3): Corruption Alert: Buffer at daddr 0x77ffff0 had permanent write failures!",
    ),
    corruption(
        "XFS (sda1): Internal error XFS_WANT_CORRUPTED_GOTO at line 1503 of file fs/xfs/libxfs/xfs_alloc.c.  Caller xfs_free_ag_extent+0x1/0x2 [xfs]",
    ),
    corruption(
        "XFS (sda1): Internal error i != 1 at line 2117 of file fs/xfs/libxfs/xfs_alloc.c.  Caller xfs_free_ag_extent+0x1/0x2 [xfs]",
    ),
    corruption(
        "Filesystem \"sda1\": XFS internal error xfs_trans_cancel at line 1163 of file fs/xfs/xfs_trans.c.  Caller 0xffffffffa02a5f1d",
    ),
    corruption("XFS (sda1): Corruption detected. Unmount and run xfs_repair"),
    corruption("XFS (sda1): Unmount and run xfs_repair"),
    corruption(
        "XFS (sda1): Metadata corruption detected at xfs_agi_verify+0xcd/0x190 [xfs], xfs_agi block 0x2",
    ),
    corruption(
        "XFS (sda1): Metadata CRC error detected at xfs_agf_read_verify+0xcb/0xf0 [xfs], xfs_agf block 0x1",
    ),
    corruption(
        "XFS (sda1): Metadata corruption detected at xfs_dinode_verify+0x1/0x2 [xfs], inode 0x83 dinode",
    ),
    known(
        "page_allocation_failure",
        "CPU 0/KVM: page allocation failure: order:5, mode:0xcc0(GFP_KERNEL), nodemask=(null),cpuset=emulator,mems_allowed=0",
    ),
    known(
        "page_allocation_failure",
        "qemu-system-x86: page allocation failure. order:4, mode:0xd0",
    ),
    known(
        "page_allocation_failure",
        "a: b: page allocation failure: order:0, mode:0x20",
    ),
    known(
        "page_allocation_failure",
        "mount: vmalloc error: size 4096, page order 0, failed to allocate pages, mode:0xcc0(GFP_KERNEL)",
    ),
    known(
        "page_allocation_failure",
        "mount: vmalloc: allocation failure: 4294967296 bytes, mode:0x14000c0",
    ),
    known(
        "hung_task",
        "INFO: task xfsaild/dm-0:812 blocked for more than 122 seconds.",
    ),
    known(
        "hung_task",
        "INFO: task CPU 0/KVM:12345 blocked in I/O wait for more than 122 seconds.",
    ),
    known(
        "hung_task",
        "INFO: task kworker/0:0:9 is blocked on a mutex likely owned by task kworker/1:66:4095.",
    ),
    known(
        "hung_task",
        "INFO: task qemu-kvm:115 is blocked on a semaphore, but the last holder is not found.",
    ),
    known(
        "hung_task",
        "INFO: task qemu-kvm:115 <writer> blocked on an rw-semaphore likely owned by task fio:99 <reader>",
    ),
    known(
        "hung_task",
        "INFO: task a:1 blocked b:7 blocked for more than 122 seconds.",
    ),
    known(
        "hung_task",
        "Future hung task reports are suppressed, see sysctl kernel.hung_task_warnings",
    ),
    known(
        "soft_lockup",
        "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [kworker/0:1:123]",
    ),
    known(
        "soft_lockup",
        "NMI watchdog: BUG: soft lockup - CPU#13 stuck for 22s! [rm:4711]",
    ),
    known(
        "soft_lockup",
        "BUG: soft lockup - CPU#1 stuck for 67s! [a]b:4711]",
    ),
    known(
        "out_of_memory",
        "Out of memory: Killed process 1234 (qemu-kvm) total-vm:8388608kB, anon-rss:4194304kB, file-rss:0kB, shmem-rss:0kB, UID:107 pgtables:9000kB oom_score_adj:0",
    ),
    known(
        "out_of_memory",
        "Out of memory: Kill process 1234 (a) b) score 901 or sacrifice child",
    ),
    known(
        "out_of_memory",
        "Memory cgroup out of memory: Killed process 1234 (CPU 0/KVM), UID 107, total-vm:8388608kB",
    ),
    known(
        "out_of_memory",
        "Out of memory (oom_kill_allocating_task): Killed process 5 (x) total-vm:1kB",
    ),
    known(
        "out_of_memory",
        "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/machine.slice/a,task=b,pid=1,task=qemu-kvm,pid=1234,uid=107",
    ),
];

/// What other parts of the kernel say, and what only looks like one of ours.
const NONE: &[&str] = &[
    "",
    " ",
    "XFS",
    "XFS: ",
    "XFS (dm-0)",
    // Allocation troubles of other file systems and lock reports.
    "Possible memory allocation deadlock: size=4194304 lflags=0x4210",
    "SPL: Possible memory allocation deadlock: size=4194304 lflags=0x4210",
    "WARNING: possible circular locking dependency detected",
    "WARNING: possible recursive locking detected",
    "possible deadlock in ext4_evict_inode",
    "possible deadlock in xfs_ilock",
    "EXT4-fs (sda1): possible memory allocation deadlock in ext4_alloc (mode:0x250)",
    "BTRFS: kworker(1) possible memory allocation deadlock size 5 in btrfs_alloc (mode:0x250)",
    "JFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)",
    "EXFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)",
    // Quotations: a guest's console, an audit record, a name of a process.
    "qemu: guest said: XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)",
    "qemu-kvm[12]: XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)",
    "[guest] XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)",
    "[12.5s] XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)",
    "audit: type=1327 msg='XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)'",
    "\"XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)\"",
    "grep: XFS: possible memory allocation deadlock",
    "\nXFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)",
    "usb 1-1: Product: XFS (dm-0): Shutting down filesystem",
    "INFO: task XFS: possible",
    // Only a part of the message, or a first failure that is no deadlock yet.
    "XFS: possible memory allocation deadlock",
    "XFS: possible memory allocation deadlock in kmem_alloc",
    "XFS: [4242] kmem_alloc failure inum=128 size=625000 flags=0x4 lflags=0x250",
    "XFS: [4242] kmem_alloc success after 3 retries inum=128 size=625000 flags=0x4 lflags=0x250",
    // XFS in good health, or with troubles that no built-in rule is about.
    "XFS (dm-0): Mounting V5 Filesystem 1b4e28ba-2fa1-11d2-883f-0016d3cca427",
    "XFS (dm-0): Ending clean mount",
    "XFS (dm-0): Unmounting Filesystem 1b4e28ba-2fa1-11d2-883f-0016d3cca427",
    "XFS (dm-0): ctx ticket reservation ran out. Need to up reservation",
    "XFS (dm-0): xlog_verify_tail_lsn: ran out of log space",
    "XFS (dm-0): Reserve blocks depleted! Consider increasing reserve pool size.",
    "XFS (dm-0): Per-AG reservation for AG 2 failed.  Filesystem may run out of space.",
    "XFS (dm-0): page discard on page 00000000f4a3b2c1, inode 0x83, offset 0.",
    "XFS (dm-0): target: inode 0x83 format is incompatible for exchanging.",
    "XFS (dm-0): First 128 bytes of corrupted metadata buffer:",
    "dm-0: writeback error on inode 131, offset 4096, sector 8192",
    // Others' shutdowns and errors.
    "EXT4-fs (sda1): Shutting down filesystem",
    "EXT4-fs error (device sda1): ext4_lookup:1855: inode #2: comm ls: Unmount and run e2fsck",
    "Buffer I/O error on dev dm-0, logical block 5, lost async page write",
    "I/O error, dev sda, sector 2048 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 0",
    "WARNING: CPU: 0 PID: 7 at mm/page_alloc.c:4321 __alloc_pages+0x1/0x2",
    "khugepaged: page allocation stalls for 10000ms, order:0",
    "a name that is longer than any task's: page allocation failure: order:0",
    "rcu: INFO: rcu_sched self-detected stall on CPU",
    "INFO: lockdep is turned off.",
    "drop_caches (77): drop_caches: 2",
    "qemu-kvm invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
];

fn check(rules: &Rules, bytes: &[u8], known: &Known) {
    let line = known.text;
    let found = rules.find(bytes);
    assert_eq!(found.map(|found| found.name), Some(known.rule), "{line:?}");
    let action = found.map(|found| found.action);
    let rescues = known.rule == "xfs_deadlock";
    assert_eq!(action == Some(RuleAction::Rescue), rescues, "{line:?}");
    let id = found.map(|found| found.rule);
    assert_eq!(id.and_then(|id| rules.name(id)), Some(known.rule));
}

/// As the kernel writes it to /dev/kmsg.
fn record(text: &str) -> Vec<u8> {
    let mut bytes = b"3,4711,1234567890,-,caller=T12;".to_vec();
    for byte in text.bytes() {
        if !(b' '..127).contains(&byte) || byte == b'\\' {
            bytes.extend(format!("\\x{byte:02x}").bytes());
        } else {
            bytes.push(byte);
        }
    }
    bytes.extend(b"\n SUBSYSTEM=block\n DEVICE=b254:0\n");
    bytes
}

#[test]
fn every_known_message_is_recognised() {
    let rules = Rules::compile(&[]).unwrap();
    for known in DEADLOCKS.iter().chain(OTHERS) {
        let bytes = record(known.text);
        let record = Record::parse(&bytes).unwrap();
        assert!(record.is_genuine());
        check(&rules, record.text.unescape(&mut [0; 2048]), known);
    }
}

#[test]
fn what_printk_puts_in_front_changes_nothing() {
    let rules = Rules::compile(&[]).unwrap();
    for known in DEADLOCKS.iter().chain(OTHERS) {
        for prefix in [
            "[    1.234567] ",
            "[122377.888123] ",
            "[    1.234567][   T12] ",
            "[   T123] ",
            "[    C1] ",
        ] {
            let line = format!("{prefix}{}", known.text);
            check(&rules, line.as_bytes(), known);
        }
    }
}

#[test]
fn no_end_is_anchored() {
    let rules = Rules::compile(&[]).unwrap();
    for known in DEADLOCKS.iter().chain(OTHERS) {
        for suffix in [" ", ", flags: 0x4", "\r", "\n"] {
            let line = format!("{}{suffix}", known.text);
            let found = rules.find(line.as_bytes()).unwrap();
            assert_eq!(found.name, known.rule, "{line:?}");
        }
    }
}

#[test]
fn a_quotation_is_no_message() {
    let rules = Rules::compile(&[]).unwrap();
    for known in DEADLOCKS.iter().chain(OTHERS) {
        for prefix in ["a long enough prefix: ", "kernel: ", ">", " ", "[x] ", "\n"] {
            let line = format!("{prefix}{}", known.text);
            let found = rules.find(line.as_bytes());
            // Before an allocation failure stands a name that may be anything.
            let name = found.map(|found| found.name);
            assert!(
                matches!(name, None | Some("page_allocation_failure")),
                "{line:?}: {name:?}"
            );
        }
    }
}

#[test]
fn nothing_else_is_recognised() {
    let rules = Rules::compile(&[]).unwrap();
    for line in NONE {
        let found = rules.find(line.as_bytes());
        assert!(
            found.is_none(),
            "{line:?} matches {:?}",
            found.unwrap().name
        );
    }
}

#[test]
fn a_drill_is_no_emergency_for_any_rule() {
    let rules = Rules::compile(&[RuleDefinition {
        name: "everything".to_owned(),
        pattern: "(?s:.)".to_owned(),
        action: RuleAction::Rescue,
    }])
    .unwrap();
    let quoting = "XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)";
    for rest in ["", "17", quoting] {
        let line = [DRILL_MARKER, rest.as_bytes()].concat();
        assert!(rules.find(&line).is_none());
        let line = [b"[    1.234567] ", DRILL_MARKER, rest.as_bytes()].concat();
        assert!(rules.find(&line).is_none());
    }
    assert_eq!(rules.find(b"anything").unwrap().name, "everything");
}

#[test]
fn a_forged_record_is_not_genuine() {
    // What a write of `<3>XFS: …` to /dev/kmsg becomes, measured on 6.18: facility 1.
    let bytes =
        b"11,344,1234,-;XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)\n";
    assert!(!Record::parse(bytes).unwrap().is_genuine());
}
