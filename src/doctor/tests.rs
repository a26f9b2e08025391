//! The checks on made-up trees, and what holds for all of them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::files::Host;
use super::outcome::NotChecked;
use super::readings::{Own, Readings, Timing};
use super::table::{TABLE, entry};
use super::xfs::Xfs;
use super::{checks, examine, report};
use crate::config::Settings;
use crate::config::settings::Silence;
use crate::model::{
    Bytes, CheckId, DeviceNumber, Diagnosis, Features, Finding, Severity, UnixTime,
};
use crate::serve::parts::PartStatus;
use crate::serve::status::Status;

/// A host in a directory.
pub(super) struct Tree {
    dir: TempDir,
    pub(super) own: Own,
}

/// Nothing in a made-up tree can hang, however busy the machine is.
const AT_ONCE: Timing = Timing {
    interval: Duration::ZERO,
    deadline: Duration::from_secs(300),
};

impl Tree {
    /// A host without findings.
    pub(super) fn healthy() -> Tree {
        let mut status = Status::default();
        status.rescue.armed = true;
        let mut settings = Settings::default();
        settings.images.paths = vec!["/srv/vm/*.raw".to_owned()];
        let dir = TempDir::new().unwrap();
        let own = Own {
            settings,
            daemon: Ok(Some(Box::new(status))),
            clock_is_set: Some(true),
            helper: vec!["cat".into(), dir.path().join("xfs").into()],
            // Other tests run at the same time.
            helper_runs: Box::leak(Box::default()),
        };
        let tree = Tree { dir, own };
        tree.xfs(|_| ());
        for (name, text) in [
            (
                "proc/buddyinfo",
                "Node 0, zone      DMA      0      0      0      0      2\n\
                 Node 0, zone   Normal   1046    527    128     36     17    40    19    12\n",
            ),
            (
                "proc/vmstat",
                "nr_dirty 100\nnr_writeback 0\nnr_written 5\nnr_dirty_threshold 100000\n",
            ),
            (
                "proc/self/mountinfo",
                "36 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 36 8:16 / /srv/vm rw - xfs /dev/sdb rw\n",
            ),
            ("proc/sys/kernel/osrelease", "6.12.120\n"),
            ("proc/version", "Linux version 6.12.120 (gcc) #1 SMP\n"),
            ("proc/fs/ext4/sda1/options", "rw\nbsddf\ndata=ordered\n"),
            ("sys/fs/ext4/sda1/journal_task", "345\n"),
            ("sys/class/block/sda1/dev", "8:1\n"),
            (
                "proc/meminfo",
                "MemTotal: 134217728 kB\nSReclaimable: 2097152 kB\nSUnreclaim: 1048576 kB\n\
                 SwapTotal: 1024 kB\n",
            ),
            ("proc/sys/vm/min_free_kbytes", "67584\n"),
            ("proc/sys/vm/watermark_scale_factor", "100\n"),
            ("proc/sys/vm/compaction_proactiveness", "20\n"),
            ("proc/sys/vm/zone_reclaim_mode", "0\n"),
            ("proc/sys/vm/swappiness", "60\n"),
            ("proc/sys/vm/dirty_bytes", "629145600\n"),
            ("proc/sys/vm/dirty_ratio", "0\n"),
            (
                "sys/kernel/mm/transparent_hugepage/enabled",
                "[always] madvise never\n",
            ),
            (
                "sys/kernel/mm/transparent_hugepage/defrag",
                "always defer defer+madvise [madvise] never\n",
            ),
            (
                "proc/pressure/io",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n",
            ),
            ("proc/stat", "cpu  100 0 100 800 10 0 0 0 0 0\n"),
            ("etc/localtime", "TZif2"),
            ("sys/class/bdi/8:16/max_ratio", "100\n"),
            ("sys/class/bdi/8:16/strict_limit", "0\n"),
            ("proc/diskstats", "   8   0 sda 9 0 9 9 9 0 9 9 0 5000 9\n"),
        ] {
            tree.put(name, text);
        }
        tree
    }

    /// What the helper process reports of the XFS on /srv/vm.
    pub(super) fn xfs(&self, change: impl FnOnce(&mut Xfs)) {
        let tib = 1 << 40;
        let mut xfs = Xfs {
            device: DeviceNumber {
                major: 8,
                minor: 16,
            },
            mount: PathBuf::from("/srv/vm"),
            size: Bytes(2 * tib),
            free: Bytes(tib),
            groups: 4,
            log: Bytes(1 << 30),
            log_sector: Bytes(4096),
            log_stripe: Bytes(4096),
            realtime: Bytes(0),
            features: Features {
                reflink: true,
                rmapbt: true,
                nrext64: true,
                exchange_range: false,
            },
            bigtime: true,
            full_groups: Some(1),
            projects: Some(Vec::new()),
        };
        change(&mut xfs);
        self.put(
            "xfs",
            &format!("{}\n", serde_json::to_string(&xfs).unwrap()),
        );
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn put(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Makes a file unreadable even for root: a directory in its place.
    pub(super) fn block(&self, name: &str) {
        let path = self.path(name);
        let _ = fs::remove_file(&path);
        fs::create_dir_all(path).unwrap();
    }

    /// A process with a command name and the number of its threads.
    pub(super) fn process(&self, pid: u32, comm: &str, threads: u32) {
        self.put(&format!("proc/{pid}/comm"), &format!("{comm}\n"));
        self.put(
            &format!("proc/{pid}/stat"),
            &stat(pid, comm, 'S', 0, threads),
        );
    }

    pub(super) fn thread(&self, pid: u32, tid: u32, comm: &str, state: char, frames: &[&str]) {
        let directory = match pid == tid {
            true => format!("proc/{pid}"),
            false => format!("proc/{pid}/task/{tid}"),
        };
        // Kernel threads are those of kthreadd, here below 100.
        let flags = if pid < 100 { 0x20_0000 } else { 0 };
        self.put(
            &format!("{directory}/stat"),
            &stat(tid, comm, state, flags, 1),
        );
        let line = |frame: &&str| format!("[<0>] {frame}+0x1f/0x120\n");
        let stack: String = frames.iter().map(line).collect();
        self.put(&format!("{directory}/stack"), &stack);
        let wchan = frames.first().copied().unwrap_or("0");
        self.put(&format!("{directory}/wchan"), wchan);
        let switches = "voluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t1\n";
        self.put(&format!("{directory}/status"), switches);
    }

    /// Gives a process an open file: descriptor, path, flags in octal; on the mount 40.
    pub(super) fn open(&self, pid: u32, fd: u32, path: &str, flags: &str) {
        let directory = self.path(&format!("proc/{pid}/fd"));
        fs::create_dir_all(&directory).unwrap();
        symlink(path, directory.join(fd.to_string())).unwrap();
        let info = format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t40\nino:\t131\n");
        self.put(&format!("proc/{pid}/fdinfo/{fd}"), &info);
    }

    pub(super) fn vm(&self, pid: u32, name: &str) {
        self.process(pid, "qemu-system-x86", 2);
        let program = self.path(&format!("proc/{pid}/exe"));
        symlink("/usr/bin/qemu-system-x86_64", program).unwrap();
        self.put(
            &format!("proc/{pid}/cmdline"),
            &format!("qemu\0-name\0{name}\0"),
        );
        self.open(pid, 9, &format!("/srv/vm/{name}.raw"), "0140002");
    }

    pub(super) fn readings(&self) -> Readings {
        let host = Host(self.dir.path().to_owned());
        Readings::take(&host, AT_ONCE, self.own.clone())
    }

    pub(super) fn diagnosis(&self) -> Diagnosis {
        examine(&self.readings())
    }

    /// The findings after the files have changed between two readings a while apart.
    pub(super) fn later(&self, interval: Duration, changed: &[(&str, &str)]) -> Vec<Finding> {
        let mut readings = self.readings();
        for (name, text) in changed {
            self.put(name, text);
        }
        let now = self.readings();
        readings.before = std::mem::replace(&mut readings.now, now.now);
        readings.interval = interval;
        let diagnosis = examine(&readings);
        assert_eq!(diagnosis.need_watch, []);
        diagnosis.findings
    }

    /// The only finding, which is of this check.
    pub(super) fn only(&self, number: u16) -> Finding {
        let diagnosis = self.diagnosis();
        assert_eq!(diagnosis.findings.len(), 1, "{diagnosis:#?}");
        assert_eq!(diagnosis.unchecked, [], "{number}");
        let finding = diagnosis.findings[0].clone();
        assert_eq!(finding.id, CheckId(number));
        finding
    }

    /// All findings of this check.
    pub(super) fn of(&self, number: u16) -> Vec<Finding> {
        let mut findings = self.diagnosis().findings;
        findings.retain(|finding| finding.id == CheckId(number));
        findings
    }

    /// Why a check could not be made.
    pub(super) fn unchecked(&self, number: u16) -> String {
        let unchecked = self.diagnosis().unchecked;
        let is_it = |it: &&crate::model::Unchecked| it.id == CheckId(number);
        unchecked
            .iter()
            .find(is_it)
            .expect("it was checked")
            .reason
            .clone()
    }
}

/// A line of /proc/PID/stat.
fn stat(id: u32, comm: &str, state: char, flags: u32, threads: u32) -> String {
    let rest = "0 ".repeat(16);
    format!(
        "{id} ({comm}) {state} 1 1 1 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 {threads} 0 9 {rest}0 0\n"
    )
}

#[test]
fn a_healthy_host_has_no_findings() {
    let tree = Tree::healthy();
    tree.vm(4711, "db-1");
    tree.thread(4711, 4712, "CPU 0/KVM", 'S', &["kvm_vcpu_block"]);
    // It runs again between the readings, or waits by design.
    tree.thread(
        300,
        300,
        "sh",
        'D',
        &["wait_for_vfork_done", "kernel_clone"],
    );
    tree.thread(9, 9, "khungtaskd", 'D', &["watchdog"]);
    let diagnosis = tree.diagnosis();
    assert_eq!(diagnosis.findings, []);
    assert_eq!(diagnosis.unchecked, []);
    assert_eq!(
        diagnosis.checked + diagnosis.need_watch.len(),
        checks::CHECKS.len()
    );
}

#[test]
fn threads_in_state_d_are_named_by_what_they_wait_for_and_whose_they_are() {
    for (number, frames, what) in [
        (
            1,
            &["try_to_free_pages", "__alloc_pages", "xfs_iread_extents"][..],
            "for kernel memory, in XFS",
        ),
        (
            2,
            &["balance_dirty_pages", "generic_perform_write"],
            "because too much memory is dirty",
        ),
        (
            3,
            &["xlog_grant_head_wait", "xfs_log_reserve"],
            "for space in the log of XFS",
        ),
        (
            4,
            &["wait_transaction_locked", "start_this_handle"],
            "for the journal of ext4",
        ),
        (
            5,
            &[
                "rwsem_down_write_slowpath",
                "xfs_ilock",
                "xfs_file_dio_write_unaligned",
            ],
            "for a lock of XFS",
        ),
        (
            6,
            &["blk_mq_get_tag", "__blk_mq_alloc_requests"],
            "for a disk",
        ),
        (
            7,
            &["rpc_wait_bit_killable", "nfs4_run_open_task"],
            "for a remote file system or FUSE",
        ),
        (
            8,
            &["__mutex_lock.constprop.0", "pipe_write", "vfs_write"],
            "for the lock of a pipe",
        ),
        (9, &["some_driver_wait", "vfs_ioctl"], "in the kernel"),
    ] {
        let tree = Tree::healthy();
        tree.vm(4711, "db-1");
        tree.thread(4711, 4712, "CPU 0/KVM", 'D', frames);
        tree.thread(4711, 4713, "worker", 'S', frames);
        tree.thread(300, 300, "rsync", 'D', frames);
        let finding = tree.only(number);
        let waited = match number {
            1 | 2 => format!("were waiting {what} at two readings 0.0 s apart"),
            _ => format!("have waited {what} for at least 0.0 s"),
        };
        let who = "1 of rsync (PID 300), 1 of the VM db-1 (PID 4711)";
        assert_eq!(finding.what, format!("2 threads {waited}: {who}."));
        let frames = frames.iter().map(|it| it.trim_end_matches(".constprop.0"));
        let frames = frames.collect::<Vec<_>>().join(" < ");
        let read = format!("/proc/300/stack (rsync, and 1 more): {frames}");
        assert_eq!(finding.read, [read], "{number}");
    }
}

#[test]
fn a_stack_that_cannot_be_read_leaves_the_task_out() {
    let tree = Tree::healthy();
    tree.thread(300, 300, "rsync", 'D', &["blk_mq_get_tag"]);
    tree.block("proc/300/stack");
    assert_eq!(tree.diagnosis().findings, []);
    fs::remove_dir_all(tree.path("proc")).unwrap();
    tree.put("proc", "");
    assert_eq!(tree.unchecked(6), "/proc: Not a directory (os error 20)");
}

#[test]
fn dirty_memory_near_its_limit() {
    let tree = Tree::healthy();
    let vmstat = |dirty: u32| {
        format!("nr_dirty {dirty}\nnr_writeback 20000\nnr_written 9\nnr_dirty_threshold 100000\n")
    };
    tree.put("proc/vmstat", &vmstat(59_999));
    assert_eq!(tree.diagnosis().findings, []);
    tree.put("proc/vmstat", &vmstat(60_000));
    let finding = tree.only(10);
    assert_eq!(
        finding.what,
        "312 MiB are dirty or being written, of at most 390 MiB at which every writer waits."
    );
    let read = "/proc/vmstat: nr_dirty 60000, nr_writeback 20000, nr_dirty_threshold 100000";
    assert_eq!(finding.read, [read]);
    tree.block("proc/vmstat");
    assert_eq!(
        tree.unchecked(10),
        "/proc/vmstat: Is a directory (os error 21)"
    );
}

#[test]
fn free_memory_in_small_pieces() {
    let tree = Tree::healthy();
    let line = |large: u32| format!("Node 1, zone   Normal  900000  500  100  30  {large}  0  0\n");
    tree.put("proc/buddyinfo", &line(64));
    assert_eq!(tree.diagnosis().findings, []);
    tree.put("proc/buddyinfo", &line(63));
    let finding = tree.only(15);
    let what = "Node 1 has 63 free blocks of 64.0 KiB or more in the zone Normal.";
    assert_eq!(
        (finding.what.as_str(), finding.severity),
        (what, Severity::Warning)
    );
    tree.put("proc/buddyinfo", &line(0));
    let finding = tree.only(15);
    let what = "Node 1 has no free block of 64.0 KiB or more in the zone Normal.";
    assert_eq!(
        (finding.what.as_str(), finding.severity),
        (what, Severity::Warning)
    );
    // XFS needs such blocks before 4.15.
    tree.put("proc/sys/kernel/osrelease", "4.14.336\n");
    assert_eq!(tree.of(15)[0].severity, Severity::Critical);
    tree.put("proc/sys/kernel/osrelease", "6.12.120\n");
    assert_eq!(
        finding.read,
        ["/proc/buddyinfo: node 1: 900000 500 100 30 0 0 0"]
    );
    tree.block("proc/buddyinfo");
    assert_eq!(
        tree.unchecked(15),
        "/proc/buddyinfo: Is a directory (os error 21)"
    );
}

/// Each setting: a bad value, the finding, what was read, and whether another file than its own can
/// make it impossible.
#[test]
fn settings_that_will_hurt() {
    const THP: &str = "sys/kernel/mm/transparent_hugepage/defrag";
    for (number, name, bad, what) in [
        (
            111,
            "proc/sys/vm/watermark_scale_factor",
            "10",
            "The kernel begins to reclaim when 197 MiB of 128 GiB are free, less than 0.5 %.",
        ),
        (
            113,
            "proc/sys/vm/compaction_proactiveness",
            "0",
            "Background compaction is switched off.",
        ),
        (
            114,
            "proc/sys/vm/zone_reclaim_mode",
            "1",
            "A NUMA node that is full is reclaimed before memory of another node is used.",
        ),
        (
            115,
            THP,
            "[always] defer madvise never",
            "Every page fault of every program may wait until memory is compacted.",
        ),
        (
            116,
            "proc/sys/vm/swappiness",
            "0",
            "There is swap, but the kernel uses it only when nearly all page cache is gone.",
        ),
    ] {
        let tree = Tree::healthy();
        tree.put(name, &format!("{bad}\n"));
        let finding = tree.only(number);
        assert_eq!(finding.what, what);
        let read = format!("/{name} = {bad}");
        assert!(finding.read.contains(&read), "{finding:?}");
        tree.block(name);
        let reason = format!("/{name}: Is a directory (os error 21)");
        assert_eq!(tree.unchecked(number), reason);
        // A kernel without the setting.
        fs::remove_dir_all(tree.path(name)).unwrap();
        let others = tree.diagnosis();
        assert!(
            others.unchecked.is_empty() && others.findings.len() <= 1,
            "{others:?}"
        );
    }
    let tree = Tree::healthy();
    tree.put("proc/sys/vm/swappiness", "0\n");
    tree.put("proc/meminfo", "MemTotal: 134217728 kB\nSwapTotal: 0 kB\n");
    assert_eq!(tree.diagnosis().findings, []);
}

#[test]
fn a_dirty_limit_of_which_a_flush_takes_long() {
    let vmstat = |threshold: u32| {
        format!(
            "nr_dirty 90000\nnr_writeback 0\nnr_written 5\nnr_dirty_background_threshold 80000\n\
             nr_dirty_threshold {threshold}\n"
        )
    };
    let tree = Tree::healthy();
    // 4 GiB in pages of 4 KiB.
    tree.put("proc/vmstat", &vmstat(1 << 20));
    assert_eq!(tree.diagnosis().findings, []);
    tree.put("proc/vmstat", &vmstat((1 << 20) + 1));
    let finding = tree.only(110);
    let what = "Up to 4.0 GiB may be dirty, which takes 20 s to write at 200 MiB/s.";
    assert_eq!(
        (finding.what.as_str(), finding.severity),
        (what, Severity::Ok)
    );
    let read = [
        "/proc/vmstat: nr_dirty_threshold 1048577",
        "/proc/sys/vm/dirty_bytes = 629145600",
        "/proc/sys/vm/dirty_ratio = 0",
    ];
    assert_eq!(finding.read, read);
    // 100 MiB a second in ten seconds, of 1 GiB.
    tree.put("proc/vmstat", &vmstat(1 << 18));
    let later = vmstat(1 << 18).replace("nr_written 5", "nr_written 256005");
    let findings = tree.later(Duration::from_secs(10), &[("proc/vmstat", &later)]);
    let what = "Up to 1.0 GiB may be dirty, which takes 10 s to write at the measured 100 MiB/s.";
    assert_eq!((findings.len(), findings[0].what.as_str()), (1, what));
    assert_eq!(findings[0].severity, Severity::Warning);
    tree.block("proc/vmstat");
    assert_eq!(
        tree.unchecked(110),
        "/proc/vmstat: Is a directory (os error 21)"
    );
}

#[test]
fn slab_that_cannot_be_reclaimed() {
    let tree = Tree::healthy();
    let meminfo = |slab: u64| {
        format!("MemTotal: 134217728 kB\nSReclaimable: 2097152 kB\nSUnreclaim: {slab} kB\n")
    };
    tree.put("proc/meminfo", &meminfo(13_421_772));
    assert_eq!(tree.diagnosis().findings, []);
    tree.put("proc/meminfo", &meminfo(13_421_773));
    tree.put(
        "proc/slabinfo",
        "slabinfo - version: 2.1\n\
         kmalloc-256 100 100 256 32 2 : tunables 0 0 0 : slabdata 1000000 1000000 0\n\
         dentry 100 100 192 42 2 : tunables 0 0 0 : slabdata 1000 1000 0\n",
    );
    assert_eq!(
        tree.only(17).what,
        "12.8 GiB of 128 GiB are slab that cannot be reclaimed; dropping would free at most the other \
         2.0 GiB; the largest caches are kmalloc-256 7.6 GiB, dentry 7.8 MiB."
    );
    tree.block("proc/slabinfo");
    assert_eq!(
        tree.unchecked(17),
        "/proc/slabinfo: Is a directory (os error 21)"
    );
}

#[test]
fn what_shows_only_over_time() {
    let tree = Tree::healthy();
    let ids = [11, 12, 14, 16].map(CheckId);
    assert_eq!(tree.diagnosis().need_watch, ids);
    let text = report::text(&tree.diagnosis(), 80);
    assert!(
        text.ends_with("Only with --watch SECONDS: FW011, FW012, FW014, FW016.\n"),
        "{text}"
    );
    let ten = Duration::from_secs(10);
    assert_eq!(tree.later(ten, &[]), []);
    let found = |changed: &[(&str, &str)]| {
        let tree = Tree::healthy();
        tree.process(300, "mysqld", 2);
        tree.open(300, 4, "/srv/vm/a", "0100000");
        tree.thread(300, 301, "worker", 'S', &["io_cqring_wait"]);
        let findings = tree.later(ten, changed);
        findings
            .into_iter()
            .map(|it| (it.id.0, it.what))
            .collect::<Vec<_>>()
    };
    let pressed = "some avg10=60.00 avg60=0.00 avg300=0.00 total=7500000\n";
    let what = "I/O pressure was 65 %, but the busiest disk (sda) worked 1.0 % of the time; waiting in \
                io_uring: 1 of mysqld (PID 300).";
    let idle = ("proc/diskstats", "   8   0 sda 9 0 9 9 9 0 9 9 0 5100 9\n");
    let pressure = ("proc/pressure/io", pressed);
    assert_eq!(found(&[pressure, idle]), [(11, what.to_owned())]);
    // With a disk that works it is a slow disk, if anything.
    let busy = ("proc/diskstats", "   8   0 sda 9 0 9 9 9 0 9 9 0 7100 9\n");
    assert_eq!(found(&[pressure, busy]), []);
    let stolen = ("proc/stat", "cpu  180 0 200 1600 10 0 0 20 0 0\n");
    let what = "10 % of the processor time was taken by a hypervisor below this host.";
    let more = ("proc/stat", "cpu  180 0 200 1600 10 0 0 109 0 0\n");
    assert_eq!(found(&[stolen]), []);
    assert_eq!(found(&[more]), [(12, what.to_owned())]);
    let stalls = (
        "proc/vmstat",
        "nr_dirty 100\nnr_writeback 0\nnr_dirty_threshold 100000\nallocstall_normal 60\n\
         allocstall_movable 40\ncompact_fail 7\n",
    );
    let what = "10 allocations a second had to reclaim memory themselves, and 0 compactions a second failed.";
    assert_eq!(found(&[stalls]), [(16, what.to_owned())]);
}

#[test]
fn a_kernel_whose_statfs_hangs() {
    let tree = Tree::healthy();
    for (release, is_bad) in [
        ("5.13.19", false),
        ("5.14.0", true),
        // RHEL keeps the number: unknown.
        ("5.14.0-611.el9.x86_64", false),
        ("5.15.133", true),
        ("5.15.134", false),
        ("5.18.19", true),
        ("5.19.0", false),
        ("6.1.100", false),
    ] {
        tree.put("proc/sys/kernel/osrelease", &format!("{release}\n"));
        tree.put(
            "proc/version",
            &format!("Linux version {release} (gcc) #1\n"),
        );
        if !is_bad {
            assert_eq!(tree.of(104), [], "{release}");
            continue;
        }
        let what =
            format!("On this kernel ({release}), statfs of an XFS can wait for deleted files.");
        assert_eq!(tree.of(104)[0].what, what);
    }
    tree.put("proc/sys/kernel/osrelease", "5.14.0\n");
    fs::remove_file(tree.path("proc/self/mountinfo")).unwrap();
    let missing = "/proc/self/mountinfo: No such file or directory (os error 2)";
    assert_eq!(tree.unchecked(104), missing);
}

#[test]
fn a_kernel_with_defects_of_the_table() {
    let tree = Tree::healthy();
    let kernel = |release: &str| {
        tree.put("proc/sys/kernel/osrelease", &format!("{release}\n"));
        tree.put(
            "proc/version",
            &format!("Linux version {release} (gcc) #1\n"),
        );
    };
    kernel("6.12.95");
    let finding = tree.only(102);
    assert_eq!(
        finding.what,
        "This kernel (6.12.95) lacks 2f4acd0fcd86 \"xfs: resample the data fork mapping after cycling \
         ILOCK\": a direct write to blocks that a reflink copy shares can land in another file."
    );
    assert_eq!(finding.severity, Severity::Critical);
    // Nothing can be shared.
    tree.xfs(|xfs| xfs.features.reflink = false);
    assert_eq!((tree.of(101), tree.of(102)), (Vec::new(), Vec::new()));
    tree.xfs(|_| ());
    kernel("6.1.90");
    let found: Vec<_> = tree.of(101).into_iter().map(|it| it.what).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[1].starts_with("This kernel (6.1.90) lacks 304a68b9c63b \"xfs: use iomap_valid"));
    // The vendor may have repaired it.
    kernel("6.1.90-150.amzn2023.x86_64");
    assert_eq!(tree.diagnosis().findings, []);
    kernel("6.12.95");
    tree.put(
        "proc/self/mountinfo",
        "36 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
    );
    assert_eq!(tree.of(102), []);
    let mut tree = tree;
    tree.put(
        "proc/self/mountinfo",
        "36 1 8:1 / / rw - xfs /dev/sda1 rw\n",
    );
    assert_eq!(tree.of(102).len(), 1);
    tree.own.settings.defrag.trusted_kernels = vec!["6.12.95".to_owned()];
    assert_eq!(tree.of(102), []);
    fs::remove_file(tree.path("proc/self/mountinfo")).unwrap();
    let missing = "/proc/self/mountinfo: No such file or directory (os error 2)";
    assert_eq!([tree.unchecked(101), tree.unchecked(102)], [missing; 2]);
}

#[test]
fn a_file_system_without_barriers() {
    let tree = Tree::healthy();
    tree.put(
        "proc/self/mounts",
        "/dev/sda1 / ext4 rw,relatime 0 0\n/dev/sdb /srv/a\\040b ext4 rw,nobarrier,data=ordered 0 0\n",
    );
    let finding = tree.only(203);
    assert_eq!(
        finding.what,
        "The ext4 at /srv/a b is mounted with nobarrier."
    );
    assert_eq!(finding.read, ["/proc/self/mounts"]);
    tree.block("proc/self/mounts");
    assert_eq!(
        tree.unchecked(203),
        "/proc/self/mounts: Is a directory (os error 21)"
    );
}

#[test]
fn a_scheduled_xfs_fsr() {
    let tree = Tree::healthy();
    tree.put(
        "etc/crontab",
        "# 0 3 * * 6 root xfs_fsr\n17 * * * * root run-parts\n",
    );
    tree.put("etc/systemd/system/multi-user.target.wants/a.service", "");
    assert_eq!(tree.diagnosis().findings, []);
    tree.put(
        "etc/cron.d/fsr",
        "0 3 * * 6 root /usr/sbin/xfs_fsr -t 7200\n",
    );
    let finding = tree.only(302);
    assert_eq!(finding.what, "/etc/cron.d/fsr runs xfs_fsr.");
    assert_eq!(finding.read, ["0 3 * * 6 root /usr/sbin/xfs_fsr -t 7200"]);
    tree.put("proc/sys/kernel/osrelease", "6.18.60\n");
    tree.put("proc/version", "Linux version 6.18.60 (gcc) #1\n");
    assert_eq!(tree.diagnosis().findings, []);
    tree.put("proc/sys/kernel/osrelease", "6.12.120\n");
    tree.block("etc/crontab");
    assert_eq!(
        tree.unchecked(302),
        "/etc/crontab: Is a directory (os error 21)"
    );
}

#[test]
fn programs_that_wait_for_each_other_at_pipes() {
    let tree = Tree::healthy();
    let program = |pid: u32, comm: &str, writes: u32, reads: u32| {
        tree.thread(pid, pid, comm, 'S', &["anon_pipe_write"]);
        tree.put(
            &format!("proc/{pid}/syscall"),
            "1 0x4 0x7ffd 0x1000 0x0 0x0 0x0 0x7ffd 0x7f\n",
        );
        let directory = tree.path(&format!("proc/{pid}/fd"));
        fs::create_dir_all(&directory).unwrap();
        for (fd, pipe, flags) in [(4, writes, "01"), (5, reads, "00")] {
            let _ = fs::remove_file(directory.join(fd.to_string()));
            symlink(format!("pipe:[{pipe}]"), directory.join(fd.to_string())).unwrap();
            tree.put(
                &format!("proc/{pid}/fdinfo/{fd}"),
                &format!("pos:\t0\nflags:\t{flags}\n"),
            );
        }
    };
    program(300, "tar", 1, 2);
    program(301, "gzip", 3, 1);
    // Somebody reads from the third pipe, so that all go on in time.
    tree.process(302, "sh", 1);
    fs::create_dir_all(tree.path("proc/302/fd")).unwrap();
    symlink("pipe:[3]", tree.path("proc/302/fd/0")).unwrap();
    tree.put("proc/302/fdinfo/0", "pos:\t0\nflags:\t00\n");
    assert_eq!(tree.diagnosis().findings, []);
    program(301, "gzip", 2, 1);
    let finding = tree.only(18);
    assert_eq!(
        finding.what,
        "Writers of full pipes wait for readers that wait themselves: tar (PID 300) for PID 301, gzip \
         (PID 301) for PID 300."
    );
    let read = ["/proc/300/syscall: pipe:[1]", "/proc/301/syscall: pipe:[2]"];
    assert_eq!(finding.read, read);
}

#[test]
fn a_history_beside_the_images_and_images_without_a_window() {
    let mut tree = Tree::healthy();
    tree.own.settings.history.path = PathBuf::from("/srv/vm/history.db");
    let what = "/srv/vm/history.db and /srv/vm/*.raw are both on the file system /srv/vm.";
    assert_eq!(tree.only(405).what, what);
    fs::remove_file(tree.path("proc/self/mountinfo")).unwrap();
    let missing = "/proc/self/mountinfo: No such file or directory (os error 2)";
    assert_eq!(tree.unchecked(405), missing);
    let mut tree = Tree::healthy();
    let mut status = Status::default();
    status.rescue.armed = true;
    status.images.warning = 2;
    tree.own.daemon = Ok(Some(Box::new(status)));
    let what = "2 images are at warning or critical, and no maintenance window is configured.";
    assert_eq!(tree.only(406).what, what);
    tree.own.settings.maintenance.windows = vec![crate::config::settings::Window {
        days: vec![jiff::civil::Weekday::Saturday],
        start: jiff::civil::time(1, 0, 0, 0),
        duration: Duration::from_secs(3600),
    }];
    assert_eq!(tree.diagnosis().findings, []);
}

#[test]
fn an_ext4_that_shows_old_data_after_a_crash() {
    let tree = Tree::healthy();
    tree.put("proc/fs/ext4/sda1/options", "rw\nbsddf\ndata=writeback\n");
    let finding = tree.only(201);
    assert_eq!(finding.what, "The ext4 on sda1 (/) has data=writeback.");
    assert_eq!(finding.read, ["/proc/fs/ext4/sda1/options"]);
    tree.put("proc/fs/ext4/sda1/options", "ro\ndata=writeback\n");
    assert_eq!(tree.diagnosis().findings, []);
    tree.block("proc/fs/ext4/sda1/options");
    let reason = "/proc/fs/ext4/sda1/options: Is a directory (os error 21)";
    assert_eq!(tree.unchecked(201), reason);
}

#[test]
fn an_ext4_without_a_journal() {
    let tree = Tree::healthy();
    tree.put("sys/fs/ext4/sda1/journal_task", "<none>\n");
    let finding = tree.only(202);
    assert_eq!(finding.what, "The ext4 on sda1 (/) has no journal.");
    assert_eq!(finding.read, ["/sys/fs/ext4/sda1/journal_task: <none>"]);
    tree.block("sys/fs/ext4/sda1/journal_task");
    let reason = "/sys/fs/ext4/sda1/journal_task: Is a directory (os error 21)";
    assert_eq!(tree.unchecked(202), reason);
}

#[test]
fn an_image_that_is_read_past_and_through_the_page_cache() {
    let tree = Tree::healthy();
    tree.vm(4711, "db-1");
    tree.process(300, "dd", 1);
    tree.open(300, 3, "/srv/vm/db-1.raw", "0140000");
    assert_eq!(tree.diagnosis().findings, []);
    tree.open(300, 4, "/srv/vm/db-1.raw", "0100000");
    let finding = tree.only(301);
    assert_eq!(
        finding.what,
        "/srv/vm/db-1.raw is open with O_DIRECT by dd (PID 300), the VM db-1 (PID 4711) and through \
         the page cache by dd (PID 300)."
    );
    fs::remove_file(tree.path("proc/self/mountinfo")).unwrap();
    assert_eq!(
        tree.unchecked(301),
        "/proc: No such file or directory (os error 2)"
    );
}

#[test]
fn a_kernel_without_reports_of_hung_tasks() {
    const WARNINGS: &str = "proc/sys/kernel/hung_task_warnings";
    let tree = Tree::healthy();
    for plenty in ["10\n", "-1\n"] {
        tree.put(WARNINGS, plenty);
        assert_eq!(tree.diagnosis().findings, []);
    }
    tree.put(WARNINGS, "0\n");
    let finding = tree.only(105);
    assert_eq!(
        finding.what,
        "The kernel has no report of a hung task left."
    );
    assert_eq!(finding.read, ["/proc/sys/kernel/hung_task_warnings = 0"]);
    tree.put(WARNINGS, "many\n");
    let reason = "/proc/sys/kernel/hung_task_warnings is no number";
    assert_eq!(tree.unchecked(105), reason);
}

#[test]
fn fragwatch_itself() {
    let mut tree = Tree::healthy();
    let mut status = Status::default();
    status.daemon.pid = 7;
    status.rescue.drilled = Some(UnixTime(1));
    status.parts = vec![PartStatus {
        part: "stall_detector".to_owned(),
        state: "down".to_owned(),
        severity: Severity::Critical,
        reason: Some("no stacks".to_owned()),
    }];
    tree.own.daemon = Ok(Some(Box::new(status)));
    let findings = tree.diagnosis().findings;
    let found: Vec<_> = findings
        .iter()
        .map(|it| (it.id.0, it.what.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (401, "The rescue of the daemon (PID 7) is not armed."),
            (403, "stall detector down: no stacks."),
            (
                404,
                "The last drill of the rescue, from the kernel's log to the actor, failed."
            ),
        ]
    );
    tree.own.settings.rescue.enabled = false;
    let finding = &tree.of(401)[0];
    let what = "The rescue is switched off: rescue.enabled = false.";
    assert_eq!(
        (finding.what.as_str(), finding.severity),
        (what, Severity::Ok)
    );
    tree.own.daemon = Ok(None);
    let what = "No daemon answers at /run/fragwatch/control.sock.";
    assert_eq!(tree.of(402)[0].what, what);
    tree.own.daemon = Err(NotChecked::because("no permission".to_owned()));
    for number in 401..=404 {
        assert_eq!(tree.unchecked(number), "no permission");
    }
}

#[test]
fn a_silenced_check_is_shown_and_counts_for_nothing() {
    let mut tree = Tree::healthy();
    tree.put("sys/fs/ext4/sda1/journal_task", "<none>\n");
    tree.own.settings.doctor.silence = vec![Silence {
        id: CheckId(202),
        reason: "a scratch disk".to_owned(),
    }];
    let diagnosis = tree.diagnosis();
    assert_eq!(diagnosis.severity(), Severity::Ok);
    let text = report::text(&diagnosis, 80);
    assert_eq!(
        text.split("Nothing").next().unwrap(),
        "SILENCED FW202: ext4 without a journal\n    The ext4 on sda1 (/) has no journal.\n    \
         Silenced in [doctor]: a scratch disk\n\n"
    );
}

#[test]
fn every_check_has_its_texts_and_its_function() {
    let numbers = |ids: &mut dyn Iterator<Item = u16>| ids.collect::<Vec<_>>();
    let listed = numbers(&mut TABLE.iter().map(|entry| entry.id.0));
    let made = numbers(&mut checks::CHECKS.iter().map(|(number, _)| *number));
    assert_eq!(listed, made);
    assert!(listed.is_sorted() && listed.iter().collect::<BTreeSet<_>>().len() == listed.len());
    let manual = report::manual();
    for row in TABLE {
        let id = row.id;
        assert_eq!(entry(id).map(|it| it.id), Some(id));
        assert!(row.severity > Severity::Ok, "{id}");
        assert!(manual.contains(&format!("## {id} {}\n", row.title)), "{id}");
        for text in [row.why, row.remedy] {
            // One sentence each, which may hold commands and dots of names.
            assert!(
                text.ends_with('.') && text.chars().count() < 400,
                "{id}: {text}"
            );
            assert_eq!(
                text.matches(". ").count(),
                0,
                "{id} is no single sentence: {text}"
            );
        }
        assert!(!row.title.ends_with('.') && !row.source.is_empty(), "{id}");
        for text in [row.why, row.remedy, row.explanation] {
            let named = text.match_indices("FW").map(|(at, _)| &text[at..at + 5]);
            let known = |name: &str| name.parse().is_ok_and(|id| entry(id).is_some());
            for name in named {
                assert!(known(name), "{id} names {name}");
            }
        }
        let explained = report::explanation(row, 80);
        let first = format!("{id}: {} ({})\n\n", row.title, row.severity);
        assert!(explained.starts_with(&first), "{explained}");
        let widest = explained.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(80), "{explained}");
    }
}

#[test]
fn the_document_has_the_texts_of_each_finding() {
    let tree = Tree::healthy();
    tree.put("sys/fs/ext4/sda1/journal_task", "<none>\n");
    let document = report::document(&tree.diagnosis());
    assert_eq!(document["schema"], 1);
    assert_eq!(document["severity"], "warning");
    let finding = &document["findings"][0];
    assert_eq!(finding["id"], "FW202");
    assert_eq!(finding["what"], "The ext4 on sda1 (/) has no journal.");
    assert_eq!(finding["do"], entry(CheckId(202)).unwrap().remedy);
}

/// As the operator sees it.
#[test]
fn the_text_says_what_is_why_it_matters_and_what_to_do() {
    let tree = Tree::healthy();
    tree.put("sys/fs/ext4/sda1/journal_task", "<none>\n");
    tree.block("proc/buddyinfo");
    let text = report::text(&tree.diagnosis(), 80);
    let expected = "\
WARNING FW202: ext4 without a journal
    The ext4 on sda1 (/) has no journal.
    Why:  After a crash the file system needs a full check, and files can
          contain old data or be lost.
    Do:   Add a journal with `tune2fs -j DEVICE` while it is unmounted, unless
          everything on it can be made again.
    Read: /sys/fs/ext4/sda1/journal_task: <none>

1 finding: 0 critical, 1 warning; `fragwatch doctor --explain ID` says more. ";
    assert!(text.starts_with(expected), "{text}");
    let words = text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    let unread =
        "FW015 Free memory is in small pieces: /proc/buddyinfo: Is a directory (os error 21)";
    assert!(words.contains(unread), "{text}");
}

fn fifo(path: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    Ok(mknodat(
        CWD,
        path,
        FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )?)
}

/// A file that does not answer, like a stuck kernel.
#[test]
fn what_hangs_is_given_up_at_the_deadline() {
    let tree = Tree::healthy();
    let mounts = tree.path("proc/self/mountinfo");
    fs::remove_file(&mounts).unwrap();
    fifo(&mounts).unwrap();
    let timing = Timing {
        interval: Duration::ZERO,
        deadline: Duration::from_millis(200),
    };
    let host = Host(tree.dir.path().to_owned());
    let readings = Readings::take(&host, timing, tree.own.clone());
    let late = NotChecked::because("mounts could not be read in time".to_owned());
    assert_eq!(readings.mounts, Err(late));
    let reason = "mounts could not be read in time";
    let unchecked = examine(&readings).unchecked;
    let of = |number| unchecked.iter().find(|it| it.id == CheckId(number));
    assert_eq!(of(104).expect("it was checked").reason, reason);
    // Released.
    fs::write(&mounts, "").unwrap();
}

/// What stands in the place of a file.
#[derive(Debug, Clone)]
enum Thing {
    Text(Vec<u8>),
    Directory,
    Fifo,
    Loop,
}

fn things() -> impl proptest::strategy::Strategy<Value = Thing> {
    use proptest::prelude::{Just, Strategy as _, any, prop_oneof};
    let bytes = proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        4 => "[0-9a-z_<>=,.:/ \n()\"{}-]{0,80}".prop_map(|text| Thing::Text(text.into_bytes())),
        2 => bytes.prop_map(Thing::Text),
        1 => Just(Thing::Directory),
        1 => Just(Thing::Fifo),
        1 => Just(Thing::Loop),
    ]
}

impl Tree {
    fn place(&self, name: &str, thing: &Thing) {
        let path = self.path(name);
        if fs::create_dir_all(path.parent().unwrap()).is_err() {
            // Something else stands in its way.
            return;
        }
        let _ = fs::remove_file(&path);
        // Fails where a directory is.
        let _ = match thing {
            Thing::Text(text) => fs::write(&path, text),
            // The kernel has none in /proc.
            Thing::Fifo if name.starts_with("proc/") => Ok(()),
            Thing::Directory => fs::create_dir_all(&path),
            Thing::Loop => symlink(&path, &path),
            Thing::Fifo => fifo(&path),
        };
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    /// Nor does a reader of it hang, which would be reported as such.
    #[test]
    fn no_tree_makes_it_panic_or_wait(
        changes in proptest::collection::vec((things(), 0..40_usize), 0..30)
    ) {
        let tree = Tree::healthy();
        tree.vm(4711, "db-1");
        tree.thread(300, 300, "dd", 'D', &["balance_dirty_pages"]);
        let names = [
            "proc/buddyinfo", "proc/vmstat", "proc/self/mountinfo", "proc/sys/kernel/osrelease",
            "proc/version", "proc/fs/ext4/sda1/options", "sys/fs/ext4/sda1/journal_task",
            "proc/4711/stat", "proc/4711/comm", "proc/4711/cmdline", "proc/300/stat", "proc/meminfo",
            "proc/stat", "proc/diskstats", "proc/slabinfo", "proc/pressure/io",
            "proc/4711/fdinfo/9", "proc/300/task/301/stat", "proc/300/task/301/stack",
            "sys/class/block/sda1/dev", "proc/sys/vm/dirty_ratio", "sys/class/bdi/8:0/max_ratio",
            "sys/class/bdi/8:16/strict_limit", "sys/kernel/debug/bdi/8:16/stats", "proc/300/io",
            "proc/fs/jbd2/sda1-8/info", "proc/self/mounts", "etc/localtime", "etc/crontab", "etc/cron.d/a",
        ];
        for (thing, at) in &changes {
            tree.place(names[at % names.len()], thing);
        }
        if let Some((Thing::Text(text), _)) = changes.first() {
            tree.place("xfs", &Thing::Text(text.clone()));
        }
        let mut readings = tree.readings();
        readings.interval = Duration::from_secs(5);
        let diagnosis = examine(&readings);
        let late = |it: &&crate::model::Unchecked| it.reason.ends_with("read in time");
        proptest::prop_assert_eq!(diagnosis.unchecked.iter().find(late), None);
        report::text(&diagnosis, 80);
        report::document(&diagnosis);
    }
}
