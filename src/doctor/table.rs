//! The checks: their identifiers, which never change, and their texts. The manual page and
//! `--explain` are made from this table.

use crate::model::{CheckId, Severity};

/// A check.
#[derive(Debug)]
pub struct Entry {
    /// Its identifier.
    pub id: CheckId,
    /// The severity of its findings, unless a finding has another.
    pub severity: Severity,
    /// What it looks for.
    pub title: &'static str,
    /// Why it matters: one sentence.
    pub why: &'static str,
    /// What to do: one sentence.
    pub remedy: &'static str,
    /// The rest: paragraphs.
    pub explanation: &'static str,
    /// Kernel source file, commit, CVE record or manual page.
    pub source: &'static str,
}

/// The check with this identifier.
pub fn entry(id: CheckId) -> Option<&'static Entry> {
    TABLE.iter().find(|entry| entry.id == id)
}

/// All checks, by identifier.
pub static TABLE: &[Entry] = &[
    Entry {
        id: CheckId(1),
        severity: Severity::Critical,
        title: "XFS waits for kernel memory",
        why: "The thread holds locks of XFS while it waits, so that writes to the file system hang, \
              VM after VM, although memory seems to be free.",
        remedy: "Run `fragwatch drill --act`, which drops the slab cache once and proves that the \
                 rescue works; then look at `fragwatch incidents` and defragment the images that \
                 `fragwatch scan` lists first.",
        explanation: "An allocation that must not fail is tried again for ever. Before Linux 6.9 \
            XFS then logs \"possible memory allocation deadlock\" every hundredth time; since then \
            nothing is logged, and only the stack shows it: a function of XFS that called the page \
            or slab allocator, in state D at both readings.\n\n\
            Before Linux 4.15 the extent list of a fragmented image needs one contiguous block of \
            memory, which is missing while memory as a whole is not. On later kernels the \
            allocations are small, and the host is really short of memory or its reclaim is stuck.",
        source: "fs/xfs/kmem.c before 6.9; __alloc_pages_slowpath, mm/page_alloc.c",
    },
    Entry {
        id: CheckId(2),
        severity: Severity::Warning,
        title: "Writers are throttled",
        why: "The page cache holds as much unwritten data as it may, so that every program that \
              writes through it waits for the disks, whichever file system it writes to.",
        remedy: "Find the writer among those named (a backup, a copy, an image of a VM with \
                 cache=writeback) and slow it down (`ionice` does not help, `systemd-run -p \
                 IOWriteBandwidthMax=` or a direct copy does); then lower vm.dirty_bytes, see FW110.",
        explanation: "A program that dirties pages faster than the disks write them is put to sleep \
            in balance_dirty_pages, up to 200 ms at a time. The limit is one for the whole host, \
            shared among the devices by how fast they have written lately: a slow disk (USB, NFS, a \
            degraded array) holds back writers to it first, but all dirty memory counts.\n\n\
            VMs with cache=none or cache=directsync do not write through the page cache and are not \
            throttled; those with cache=writeback or cache=unsafe are.",
        source: "balance_dirty_pages, mm/page-writeback.c",
    },
    Entry {
        id: CheckId(3),
        severity: Severity::Warning,
        title: "Threads wait for space in the log of XFS",
        why: "Nothing that changes the file system can go on until older changes are written to \
              their places on the disk.",
        remedy: "Look first for a disk that answers slowly (`iostat -x 1`) and for FW001; if it \
                 comes back at high load, the log is too small: it can only be enlarged by making \
                 the file system anew (`mkfs.xfs -l size=`).",
        explanation: "A transaction reserves space in the log before it begins. If the log is full, \
            it waits until the AIL pusher (xfsaild) has written back the oldest changes. That takes \
            long on a slow disk, with a small log and much metadata (unlinking or truncating images \
            with millions of extents), or while xfsaild itself waits for a buffer that somebody \
            else holds.",
        source: "xlog_grant_head_wait, fs/xfs/xfs_log.c",
    },
    Entry {
        id: CheckId(4),
        severity: Severity::Warning,
        title: "Threads wait for the journal of ext4",
        why: "A commit writes everything that the transaction has touched, so that a small fsync \
              waits for the writes of others.",
        remedy: "Look for the disk that answers slowly (`iostat -x 1`) and for a program that calls \
                 fsync often (`strace -fc -e fsync,fdatasync -p PID`); a journal on another disk or \
                 a longer `commit=` helps against many small commits, not against a slow disk.",
        explanation: "ext4 collects changes in one running transaction, which jbd2 commits every \
            `commit=` seconds (5) or when somebody calls fsync. While it is locked for the commit, \
            new changes wait. In data=ordered, the data of new blocks is written first.",
        source: "wait_transaction_locked, fs/jbd2/transaction.c; jbd2_log_wait_commit, \
                 fs/jbd2/journal.c",
    },
    Entry {
        id: CheckId(5),
        severity: Severity::Warning,
        title: "Threads wait for a lock of XFS",
        why: "Somebody else holds the lock of the inode or of a buffer, and everything that needs \
              the same image or the same metadata queues behind it.",
        remedy: "Look for the holder: another thread in state D whose stack is in XFS but not in a \
                 lock (FW001, FW003, FW006), or a long operation on the image such as a reflink \
                 copy, a truncation, an unlink or xfs_fsr.",
        explanation: "XFS has a lock for the data of each file (IOLOCK) and one for its extent map \
            (ILOCK). Reading the map of an image with millions of extents for the first time, a \
            reflink copy (`cp --reflink`, 100,000 extents a second) and the final swap of xfs_fsr \
            (22,000 extents a second with reverse mapping) hold them for seconds to minutes, during \
            which the VM's disk stands still.",
        source: "xfs_ilock, fs/xfs/xfs_inode.c; xfs_buf_lock, fs/xfs/xfs_buf.c",
    },
    Entry {
        id: CheckId(6),
        severity: Severity::Warning,
        title: "Threads wait for a disk",
        why: "A request that has not been answered for so long is beyond what a healthy disk needs.",
        remedy: "Look at `iostat -x 1` for the device with the longest waits, at the kernel's log \
                 for resets and timeouts, and at the array, path or controller behind it.",
        explanation: "The task has issued a read or a write, or waits for a free slot in the queue \
            of the device, and did not run between the two readings. If the disks are idle \
            meanwhile, the request is lost in a layer between: multipath without a path \
            (`queue_if_no_path`), a suspended device mapper target, a full thin pool, a loop device \
            whose file system hangs.",
        source: "blk_mq_get_tag, block/blk-mq-tag.c; folio_wait_bit, mm/filemap.c; \
                 __iomap_dio_rw, fs/iomap/direct-io.c",
    },
    Entry {
        id: CheckId(7),
        severity: Severity::Warning,
        title: "Threads wait for a remote file system or FUSE",
        why: "A server or daemon does not answer, and the task cannot be ended until it does.",
        remedy: "Check the server and the network to it; `umount -f` of NFS fails its requests, and \
                 /sys/fs/fuse/connections/N/abort those of FUSE.",
        explanation: "A hard NFS mount waits for ever. A FUSE file system waits for its daemon, \
            which may itself wait for the file system that is asked.",
        source: "rpc_wait_bit_killable, net/sunrpc/sched.c; request_wait_answer, fs/fuse/dev.c",
    },
    Entry {
        id: CheckId(8),
        severity: Severity::Warning,
        title: "Threads wait for the lock of a pipe",
        why: "Whoever holds a pipe's lock sleeps with it, and every reader and writer of that pipe \
              hangs, even one that only wants to close it.",
        remedy: "Look for the task that sleeps in splice(2) or sendfile(2) on the same pipe: what \
                 that waits for is the cause.",
        explanation: "splice(2) from a pipe to a file holds the lock of the pipe during the write \
            (iter_file_splice_write). If the file system is stuck, so is the pipe. A pipe that is \
            merely full or empty does not show here: that is an interruptible sleep.",
        source: "pipe_lock, fs/pipe.c; iter_file_splice_write, fs/splice.c",
    },
    Entry {
        id: CheckId(9),
        severity: Severity::Warning,
        title: "Programs wait in an uninterruptible sleep elsewhere",
        why: "Such a task cannot be ended, counts into the load, and what it holds is held until it \
              goes on.",
        remedy: "Read the functions named: the innermost that is no lock or wait names the part of \
                 the kernel that does not go on.",
        explanation: "State D and no progress between the two readings, in a place that the other \
            checks do not know. Threads of the kernel are not counted here: many of them wait so by \
            design.",
        source: "proc_pid_stat(5), state",
    },
    Entry {
        id: CheckId(10),
        severity: Severity::Warning,
        title: "Dirty memory is near its limit",
        why: "At the limit every writer through the page cache waits for the disks (FW002), and a \
              sync or a snapshot of the host has to wait for all of it.",
        remedy: "Lower the limits so that a flush takes seconds: vm.dirty_background_bytes = \
                 314572800 and vm.dirty_bytes = 629145600 are the usual values for large hosts.",
        explanation: "The kernel compares dirty pages and pages under write-back with \
            nr_dirty_threshold. It begins to slow writers down half-way between the background \
            threshold and that limit. The limits of vm.dirty_ratio are shares of the memory that is \
            free or page cache: 20 % of a host with 512 GiB are up to 100 GiB, which a disk of \
            200 MiB/s needs nine minutes to write.",
        source: "balance_dirty_pages, domain_dirty_freerun, mm/page-writeback.c; SUSE TID 7010287",
    },
    Entry {
        id: CheckId(15),
        severity: Severity::Warning,
        title: "Free memory is in small pieces",
        why: "Allocations of contiguous memory fail or wait for compaction, although memory is free; \
              this is how XFS of old kernels begins to hang.",
        remedy: "Run `echo 1 > /proc/sys/vm/compact_memory` now, and raise vm.min_free_kbytes and \
                 vm.watermark_scale_factor (FW111, FW112).",
        explanation: "/proc/buddyinfo counts the free blocks of each order in the zone Normal of \
            each node. Page cache and slab fill what is free; what stays free is in single pages \
            after weeks. On the host of a report from 2019 no block of 64 KiB was left, with 57 GB \
            of page cache, while XFS repeated its allocation for ever. Warning below 64 blocks of \
            64 KiB or more, critical at none.",
        source: "/proc/buddyinfo (proc(5)); linux-xfs 2019-11; mm/page_alloc.c",
    },
    Entry {
        id: CheckId(104),
        severity: Severity::Warning,
        title: "A kernel on which statfs of XFS can hang",
        why: "df, monitoring agents and libvirt's pool refresh hang for minutes to hours, while \
              large files are deleted.",
        remedy: "Update the kernel; until then keep agents from calling statfs on this file system \
                 while images are deleted.",
        explanation: "Since Linux 5.14 XFS frees the blocks of deleted files in the background, and \
            statfs waited for that to end. An image of millions of extents takes minutes. Repaired \
            in 5.19 (5e672cd69f0a) and in 5.15.134; 5.16 to 5.18 ended without the repair.",
        source: "xfs_fs_statfs, fs/xfs/xfs_super.c; 5e672cd69f0a \"xfs: introduce xfs_inodegc_push()\"",
    },
    Entry {
        id: CheckId(105),
        severity: Severity::Warning,
        title: "The kernel reports no more hung tasks",
        why: "The next hang leaves no trace in the kernel's log, and rules that watch for it stay \
              silent.",
        remedy: "Run `sysctl kernel.hung_task_warnings=10`, or -1 for no limit, after you have read \
                 the reports in the log.",
        explanation: "The kernel logs a task that has been in state D for hung_task_timeout_secs \
            (120), and counts kernel.hung_task_warnings down with each report. At 0 it logs \"Future \
            hung task reports are suppressed\" and nothing more until the value is set again or the \
            host boots. That it is 0 also shows that this host has had ten such reports.",
        source: "check_hung_task, kernel/hung_task.c; Documentation/admin-guide/sysctl/kernel.rst",
    },
    Entry {
        id: CheckId(201),
        severity: Severity::Warning,
        title: "ext4 with data=writeback",
        why: "After a crash a file can contain old data of other, deleted files, of another tenant \
              for example.",
        remedy: "Remove data=writeback from /etc/fstab, or from the defaults of the file system with \
                 `tune2fs -o ^journal_data_writeback DEVICE`, and mount it anew.",
        explanation: "In this mode new blocks of a file can be recorded in the journal before their \
            data is written. It is recommended as tuning in many places. What it saves is the order \
            between data and journal; data=ordered, the default, keeps it and costs little with \
            delayed allocation. The option can come from /etc/fstab, from the kernel's command line \
            (rootflags=) or from the superblock (tune2fs -o); read here is what is in force.",
        source: "Documentation/admin-guide/ext4.rst, data=writeback; /proc/fs/ext4/DEVICE/options",
    },
    Entry {
        id: CheckId(202),
        severity: Severity::Warning,
        title: "ext4 without a journal",
        why: "After a crash the file system needs a full check, and files can contain old data or \
              be lost.",
        remedy: "Add a journal with `tune2fs -j DEVICE` while it is unmounted, unless everything on \
                 it can be made again.",
        explanation: "Recommended as tuning for flash in many places. Without a journal nothing \
            orders the writes of metadata: directories, sizes and block lists can contradict each \
            other after a power cut.",
        source: "/sys/fs/ext4/DEVICE/journal_task; tune2fs(8)",
    },
    Entry {
        id: CheckId(301),
        severity: Severity::Warning,
        title: "An image is open past and through the page cache at once",
        why: "The program that reads through the page cache can get old contents: a backup made \
              this way may be wrong without any error.",
        remedy: "Let the other program read with O_DIRECT (`qemu-img -T none`, `dd iflag=direct`), \
                 or read from a snapshot, or ask QEMU for the data (a backup job, an NBD export).",
        explanation: "A direct write drops the cached copy of what it has written. If it cannot, \
            because the page is mapped or being read, the kernel logs \"Page cache invalidation \
            failure on direct I/O. Possible data corruption due to collision with buffered I/O!\" \
            and the reader keeps the old page. The manual page of open(2) advises against mixing \
            both.",
        source: "open(2), O_DIRECT; dio_warn_stale_pagecache, mm/filemap.c",
    },
    Entry {
        id: CheckId(401),
        severity: Severity::Critical,
        title: "The rescue is not armed",
        why: "If XFS waits for memory tonight, nobody frees it, and the VMs hang until somebody logs \
              in.",
        remedy: "Set rescue.enabled = true, unless it was switched off on purpose, and read \
                 `journalctl -u fragwatch` for the reason if it is true.",
        explanation: "The daemon answers, but the threads that read the kernel's log and drop the \
            slab cache do not run, because they are switched off or could not be started.",
        source: "fragwatch.toml(5), rescue.enabled",
    },
    Entry {
        id: CheckId(402),
        severity: Severity::Warning,
        title: "The daemon does not run",
        why: "Nothing counts the extents of the images, warns before one is critical, or rescues the \
              host.",
        remedy: "Run `systemctl enable --now fragwatch` and look at `systemctl status fragwatch`.",
        explanation: "Nobody answers on the control socket. A daemon that listens on another socket \
            is found with --config.",
        source: "fragwatch.toml(5), control.socket",
    },
    Entry {
        id: CheckId(403),
        severity: Severity::Warning,
        title: "A part of the daemon does not work",
        why: "What the part does is missing, and the counts or the rescue may be blind without it.",
        remedy: "See the table of parts in fragwatch-status(1).",
        explanation: "`fragwatch status` shows the same. The severity is that of the part: rescue, \
            kernel log, log files and stall detector are critical.",
        source: "fragwatch-status(1)",
    },
    Entry {
        id: CheckId(404),
        severity: Severity::Critical,
        title: "The last drill of the rescue failed",
        why: "The path from the kernel's log to the actor was interrupted when it was last tried, so \
              that an emergency would not be noticed.",
        remedy: "Run `fragwatch drill` as root: the first line that does not begin with ok names the \
                 place.",
        explanation: "The daemon writes a record to the kernel's log once a day and follows it \
            through reader and ladder to the actor.",
        source: "fragwatch-drill(1)",
    },
];
