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
            shared among the \
            devices by how fast they have written lately (FW013): a slow disk (USB, NFS, a degraded array) \
            holds back writers to it first, but all dirty memory counts. Named beside those who wait are \
            those who wrote most between the two readings, by /proc/PID/io; direct writes count there too.\n\n\
            VMs with cache=none or cache=directsync do not write through the page cache and are not \
            throttled; those with cache=writeback, writethrough or unsafe are.",
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
                 fsync often (`strace -fc -e fsync,fdatasync -p PID`); a journal on another disk \
                 helps against many small commits; a longer `commit=` does not, because fsync \
                 commits at once.",
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
        why: "A healthy disk answers a read or a write sooner; only a flush of its cache or a discard \
              may take so long.",
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
        why: "A server or daemon does not answer, and until it does the task ends by SIGKILL at most, \
              and not always by that.",
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
        why: "Such a task can at most be killed, and often not even that; it counts into the load, and \
              what it holds is held until it goes on.",
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
        id: CheckId(11),
        severity: Severity::Warning,
        title: "Tasks wait for I/O although the disks are idle",
        why: "The load and the I/O pressure look like a slow disk and are none, so that time is \
              lost on the wrong thing.",
        remedy: "If tasks in io_uring are named, nothing has to be done: they wait for events, \
            not for a disk; else look at FW006, FW007 and FW012 and at the stack of what \
            `top` shows in state D.",
        explanation: "The kernel counts a task that sleeps in io_uring_enter(2) for its next \
            completion as waiting for I/O, whatever it waits for: QEMU 10.2 and newer, \
            databases and runtimes with io_uring hold io.pressure near 100 on idle disks. \
            One process that waits for a read of an empty pipe this way takes `some` from \
            0 to 65 within twenty seconds. A kworker or jbd2 at \"90 % I/O\" in iotop with \
            an idle disk waits for its device to flush a cache, or for a request that does \
            not return.\n\n\
            It is a note if tasks in io_uring are all that waits. Read are the rise of `total` in /proc/pressure/io, or iowait where the kernel \
            has no PSI, and the time that the busiest disk or partition had a request in \
            flight.",
        source: "io_cqring_wait, io_uring/io_uring.c; kernel list 2026-04; \
            Documentation/accounting/psi.rst",
    },
    Entry {
        id: CheckId(12),
        severity: Severity::Warning,
        title: "A hypervisor below this host takes processor time",
        why: "The VMs of this host stand still in that time, and everything in them looks \
            slow without any reason inside.",
        remedy: "Ask whoever runs the hypervisor below for processors that are not \
            overcommitted.",
        explanation: "This host is itself a virtual machine. Its hypervisor ran others while a \
            processor of this host had work to do. From 5 % of all processor time on it is \
            reported.",
        source: "/proc/stat, steal (proc(5))",
    },
    Entry {
        id: CheckId(13),
        severity: Severity::Warning,
        title: "A device is at its own limit of dirty memory",
        why: "Writers to this device wait although the host could hold more dirty memory, and \
            nobody finds the reason in vm.dirty_bytes.",
        remedy: "Look at the disk first (`iostat -x 1`); if the limit was set by hand or by a udev \
            rule, write 100 to max_ratio and 0 to strict_limit in /sys/class/bdi/MAJOR:MINOR.",
        explanation: "Each device has a share of the dirty limit, by how fast it has written lately, and \
            at most max_ratio percent of it. With strict_limit the share counts at any time, \
            else only when the host as a whole has passed half of the way to its limit. Reported \
            while writers are throttled (FW002), of devices with such a setting, and of those \
            that have used 80 % of their share. What a device has used, and how fast it writes \
            by the kernel's own measurement, is in /sys/kernel/debug/bdi, if debugfs is mounted.",
        source: "wb_calc_thresh, wb_dirty_limits, mm/page-writeback.c; \
            Documentation/ABI/testing/sysfs-class-bdi",
    },
    Entry {
        id: CheckId(14),
        severity: Severity::Warning,
        title: "The journal of an ext4 commits most of the time",
        why: "Every fsync waits for a commit, and a commit for the data of all others, so that \
            small fsyncs slow everything on this file system down.",
        remedy: "Look for the program that calls fsync (`strace -fc -e fsync,fdatasync -p PID`) and \
            have it collect its writes; a journal on a faster disk helps, a longer `commit=` \
            does not.",
        explanation: "jbd2 counts the transactions, how many of them somebody waited for, and the average \
            time of a commit. Reported if commits take 40 % of the time of --watch. The thread \
            jbd2/DEVICE then shows at high I/O in iotop while the disk seems idle: most of a \
            commit is waiting for the flush of the disk's cache.",
        source: "jbd2_seq_info_show, fs/jbd2/journal.c; jbd2_journal_commit_transaction, \
            fs/jbd2/commit.c",
    },
    Entry {
        id: CheckId(15),
        severity: Severity::Warning,
        title: "Free memory is in small pieces",
        why: "Allocations of contiguous memory fail or wait for compaction, although memory is free; \
              this is how XFS of old kernels begins to hang.",
        remedy: "Run `echo 1 > /proc/sys/vm/compact_memory` now, and raise vm.min_free_kbytes and \
                 vm.watermark_scale_factor (FW111).",
        explanation: "/proc/buddyinfo counts the free blocks of each order in the zone Normal of \
            each node. Page cache and slab fill what is free; what stays free is in single pages \
            after weeks. On the host of a report from 2019 no block of 64 KiB was left, with 57 GB \
            of page cache, while XFS repeated its allocation for ever. Warning below 64 blocks of \
            64 KiB or more; critical at none before Linux 4.15, where XFS needs them for the extent list of \
            a fragmented image. Later kernels allocate it in single pages.",
        source: "/proc/buddyinfo (proc(5)); linux-xfs 2019-11; mm/page_alloc.c",
    },
    Entry {
        id: CheckId(16),
        severity: Severity::Warning,
        title: "Allocations of memory have to wait",
        why: "A program or a VM that needs a page reclaims or compacts memory itself before \
            it gets it, which takes milliseconds each time.",
        remedy: "Raise vm.min_free_kbytes and vm.watermark_scale_factor (FW111), and look at \
            FW015 and FW017 for what holds the memory.",
        explanation: "kswapd reclaims in the background and normally keeps up. allocstall counts the \
            allocations that found nothing free and reclaimed themselves, compact_fail the \
            compactions that made no block of the size wanted. Reported from ten a second \
            on, over the whole time of --watch.",
        source: "__alloc_pages_direct_reclaim, __alloc_pages_direct_compact, mm/page_alloc.c; \
            /proc/vmstat",
    },
    Entry {
        id: CheckId(17),
        severity: Severity::Warning,
        title: "Much slab cannot be reclaimed",
        why: "This memory is missing to the VMs and the page cache, and no drop of caches \
            frees it.",
        remedy: "If kmalloc-256 leads and images have millions of extents, defragment them \
            (`fragwatch scan`): an extent map stays in memory as long as its image is \
            open.",
        explanation: "XFS keeps the extent map of every file that was read or written since it was \
            opened, 17 to 34 bytes an extent, in kmalloc-256 (15 extents an object). It is \
            freed when the last program closes the file and the inode is evicted, not \
            before. Other users are network buffers, open files and leaks: \
            watch whether a cache only grows. Reported from 10 % of the memory that is not \
            in huge pages, and from 1 GiB.",
        source: "fs/xfs/libxfs/xfs_iext_tree.c; /proc/meminfo, SUnreclaim; slabinfo(5)",
    },
    Entry {
        id: CheckId(18),
        severity: Severity::Warning,
        title: "Programs wait for each other to read from pipes",
        why: "None of them can ever go on: each writes to a full pipe that only another of \
            them would empty.",
        remedy: "End one of the programs named; then look at how they were connected, or start \
            the reader with a buffer (`mbuffer`, a file) between.",
        explanation: "A pipe holds 64 KiB unless a program has changed that (fcntl(2), \
            F_SETPIPE_SZ). A program that writes to a pipe and does not read its own input \
            meanwhile stops when the next one does the same: a shell that feeds a filter \
            and reads its output only afterwards, a backup through two fifos, a splice(2) \
            loop. Reported are programs of one thread that slept in a write to a pipe at \
            both readings and whose pipe only such programs can read.",
        source: "anon_pipe_write, fs/pipe.c; pipe(7), Pipe capacity",
    },
    Entry {
        id: CheckId(101),
        severity: Severity::Warning,
        title: "A kernel with a defect that an engine must not meet",
        why: "The engine is refused on this kernel, so that images of running VMs are not \
            defragmented; other programs that clone and unshare blocks can meet the \
            defect.",
        remedy: "Update the kernel to a level with the repair, see fragwatch-defrag(1); if the \
            vendor has repaired it without a new level, name the release in \
            defrag.trusted_kernels.",
        explanation: "fragwatch knows the defects of XFS and iomap that can damage an image while it \
            is moved, with the level that repaired each. Listed are those that the sources \
            of this exact level have. They need an XFS with reflink, or one that \
            has not answered. A kernel of a vendor that adds repairs without a new \
            level is not judged by its level; `fragwatch status` has the judgement with \
            the changelog of its package.",
        source: "the commit that is named; fragwatch-defrag(1)",
    },
    Entry {
        id: CheckId(102),
        severity: Severity::Critical,
        title: "A kernel that can write into another file (CVE-2026-64600)",
        why: "A direct write to blocks that are shared by a reflink copy can land in blocks \
            of another file: the image of another VM or another tenant is damaged without \
            any error.",
        remedy: "Update the kernel; until then make no reflink copies (`cp --reflink`, \
            snapshots by FICLONE) of images on XFS that are written to.",
        explanation: "A direct write to shared blocks looks up the mapping, waits for a lock and \
            goes on with the old mapping, although another thread has changed it \
            meanwhile. Affected are 4.11 and later; repaired in 5.15.212, 6.1.178, \
            6.6.145, 6.12.96, 6.18.39 and 7.1.4. Without shared blocks (`xfs_info`: \
            reflink=0, or no copies made) nothing can happen. Reported if an XFS with \
            reflink is mounted, or one that has not answered, and the level of the kernel is exact.",
        source: "CVE-2026-64600; 2f4acd0fcd86 \"xfs: resample the data fork mapping after \
            cycling ILOCK\"",
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
            host boots. Unless somebody has set it to 0, this host has had ten such reports.",
        source: "check_hung_task, kernel/hung_task.c; Documentation/admin-guide/sysctl/kernel.rst",
    },
    Entry {
        id: CheckId(110),
        severity: Severity::Warning,
        title: "A flush of dirty memory can take very long",
        why: "At the limit all that write through the page cache go on at the pace of the disks, and \
            a sync returns only when all of it is written.",
        remedy: "Set vm.dirty_background_bytes = 314572800 and vm.dirty_bytes = 629145600 in \
            /etc/sysctl.d, or what your disks write in two and in four seconds.",
        explanation: "vm.dirty_ratio is a share of the free memory and the page cache, 20 % by \
            default and 40 % with tuned's throughput-performance. On a host with much \
            memory that is minutes of writing. Reported if a flush takes more than 5 s \
            at the rate that was measured with --watch while the kernel was flushing. Where none was, it is \
            a note from 4 GiB on: VMs with cache=none dirty nothing, and many hosts have the default.",
        source: "SUSE TID 7010287; Documentation/admin-guide/sysctl/vm.rst, dirty_bytes",
    },
    Entry {
        id: CheckId(111),
        severity: Severity::Warning,
        title: "Little memory is kept free for bursts",
        why: "A burst of allocations finds nothing free and has to reclaim first; contiguous \
            blocks become rare between two bursts.",
        remedy: "Set vm.watermark_scale_factor = 100 (1 % of the memory), or vm.min_free_kbytes \
            to about 1 % of the memory, in /etc/sysctl.d.",
        explanation: "vm.min_free_kbytes grows with the root of the memory by default, to 256 MiB \
            at most (64 MiB on old kernels). kswapd begins to reclaim when less is free than that and \
            vm.watermark_scale_factor (0.1 % of the memory by default) together. Reported \
            if this is less than 0.5 % on a host with more than 64 GiB outside of huge pages; as a note, \
            unless allocations had to wait during --watch (FW016): every large host with the defaults is \
            meant.",
        source: "__setup_per_zone_wmarks, mm/page_alloc.c; \
            Documentation/admin-guide/sysctl/vm.rst",
    },
    Entry {
        id: CheckId(113),
        severity: Severity::Warning,
        title: "Proactive compaction is off",
        why: "Contiguous memory is made only when an allocation has already missed it.",
        remedy: "Remove vm.compaction_proactiveness = 0; the default is 20.",
        explanation: "Since Linux 5.9 kcompactd also compacts memory that is fragmented before \
            anybody needs it. 0 switches that off, which can be right for guests that must \
            not see the latency of moved pages.",
        source: "Documentation/admin-guide/sysctl/vm.rst, compaction_proactiveness",
    },
    Entry {
        id: CheckId(114),
        severity: Severity::Warning,
        title: "Memory of other NUMA nodes is used last",
        why: "A node that is full reclaims page cache and stalls, while another node has \
            memory free.",
        remedy: "Remove vm.zone_reclaim_mode; the default is 0.",
        explanation: "The setting is for jobs that are divided among the nodes by hand. A VM whose \
            memory is on one node makes that node reclaim for ever.",
        source: "Documentation/admin-guide/sysctl/vm.rst, zone_reclaim_mode",
    },
    Entry {
        id: CheckId(115),
        severity: Severity::Warning,
        title: "Page faults wait for huge pages",
        why: "Any program that touches new memory may stop for compaction of that memory, \
            for milliseconds, under fragmentation again and again.",
        remedy: "Run `echo madvise > /sys/kernel/mm/transparent_hugepage/defrag`: QEMU asks for \
            huge pages itself.",
        explanation: "`enabled` = always makes huge pages for every program; `defrag` = always makes \
            each page fault reclaim and compact for them. QEMU marks the memory of its \
            guests with madvise(2), so that `madvise` is enough for them.",
        source: "Documentation/admin-guide/mm/transhuge.rst; QEMU, system/physmem.c \
            (QEMU_MADV_HUGEPAGE)",
    },
    Entry {
        id: CheckId(116),
        severity: Severity::Warning,
        title: "Swap is used too late",
        why: "Programs, VMs among them, can be killed for want of memory while swap is free.",
        remedy: "Set vm.swappiness = 1 or more.",
        explanation: "With 0 the kernel swaps only when free memory and page cache of a zone \
            together are below its high watermark. Without swap the value means nothing, \
            and is not reported.",
        source: "fe35004fbf9e \"mm: avoid swapping out with swappiness==0\"; get_scan_count, \
            mm/vmscan.c",
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
        id: CheckId(203),
        severity: Severity::Warning,
        title: "A file system without write barriers",
        why: "After a power cut the file system can be damaged, unless every cache below it \
            has a battery.",
        remedy: "Remove nobarrier or barrier=0 from /etc/fstab.",
        explanation: "Without barriers the cache of the disk is not flushed where the journal needs \
            it, and what the disk reorders is lost in the wrong order. The block layer \
            drops the flush for a device without a volatile cache, so that the option \
            gains nothing where it is safe. XFS has refused it since 4.19.",
        source: "Documentation/admin-guide/ext4.rst, barrier; \
            Documentation/admin-guide/xfs.rst, removed mount options",
    },
    Entry {
        id: CheckId(204),
        severity: Severity::Critical,
        title: "An XFS whose log writes can be torn (CVE-2026-43365)",
        why: "The log can become unreadable; the next mount, even after an orderly stop, may fail.",
        remedy: "Back the images up before the next unmount or reboot, then update the kernel; do not use \
            `xfs_repair -L` without a copy of the device.",
        explanation: "The log is written in multiples of its stripe unit. Without one, affected kernels \
            take 512 bytes even if the sectors of the log are larger, so that a write covers a \
            part of a sector. mkfs.xfs normally sets the stripe unit to a block on disks with \
            sectors of 4 KiB; some versions left it 0 (`xfs_info`: log sectsz=4096 sunit=0). \
            Affected are 5.14 and later; repaired in 5.15.203, 6.1.167, 6.6.130, 6.12.78, \
            6.18.19, 6.19.9 and 7.0.",
        source: "CVE-2026-43365; 52a8a1ba883d \"xfs: fix undersized l_iclog_roundoff values\"",
    },
    Entry {
        id: CheckId(205),
        severity: Severity::Warning,
        title: "An XFS with images is nearly full",
        why: "Writes become slow while XFS searches for space, no run is possible, and at the end \
            VMs stop with ENOSPC.",
        remedy: "Remove or move images, or grow the device and run `xfs_growfs`; `fragwatch space` \
            shows what is left, and in which pieces.",
        explanation: "From 5 % free on XFS uses its algorithms for low space: preallocation is cut and \
            delayed writes are flushed early. defrag.keep_free leaves as much by default. \
            Critical below 1 %. Sparse images can need more than is free: compare `du` with `du \
            --apparent-size`.",
        source: "xfs_set_low_space_thresholds, fs/xfs/xfs_mount.c; linux-xfs 2024-07, Dave Chinner",
    },
    Entry {
        id: CheckId(206),
        severity: Severity::Warning,
        title: "Allocation groups are unevenly full",
        why: "New extents of an image in a full group are placed in another group after a search, \
            and writers share the locks of the few groups that have space.",
        remedy: "Nothing has to be done; for new images use several directories, because XFS places \
            each new directory in another group.",
        explanation: "XFS divides the device into allocation groups and fills first the group of the \
            directory that an image lies in. Images in one directory therefore fill group after \
            group, which is normal. It is a note, shown if half of the groups have less than 1 % \
            free while a fifth of the file system is free.",
        source: "ioctl_xfs_ag_geometry(2); xfs_dialloc, fs/xfs/libxfs/xfs_ialloc.c",
    },
    Entry {
        id: CheckId(207),
        severity: Severity::Warning,
        title: "An XFS with a small log",
        why: "With many writers transactions wait for space in the log (FW003), which shows as \
            stalls of all VMs on this file system.",
        remedy: "Make the file system anew with the defaults of mkfs.xfs at its present size, or move \
            images to one that was; the log cannot be enlarged.",
        explanation: "mkfs.xfs chooses the log by the size at that time. An image of a cloud that was made \
            at a few GiB and grown to TiB with `xfs_growfs` keeps its log of some MiB and its \
            many small allocation groups. Since xfsprogs 5.15 no log is smaller than 64 MiB. \
            Reported from 256 GiB on.",
        source: "6e0ed3d19c54 \"mkfs: increase the minimum log size to 64MB when possible\"; \
            xfs_growfs(8)",
    },
    Entry {
        id: CheckId(208),
        severity: Severity::Warning,
        title: "An XFS without reflink",
        why: "The engine for images of running VMs clones and unshares pieces of them, which needs \
            reflink, so only idle images, unless blockcopy is configured, are \
            defragmented here.",
        remedy: "Shut VMs down in a window for xfs_fsr, or move their disks with `virsh blockcopy` to \
            an XFS made with reflink=1, the default of mkfs.xfs since 5.1.",
        explanation: "The feature is chosen when the file system is made and cannot be added. The final \
            swap of xfs_fsr takes a step for each extent if the file system has reverse mapping \
            (rmapbt, the default since xfsprogs 6.5): 22,000 extents a second, during which \
            readers wait; without it 450,000. What else was read matters less: nrext64 allows \
            more than 2,147,483,647 extents, bigtime timestamps beyond 2038, exchange an atomic \
            exchange of contents since Linux 6.10. A note as long as no image on it needs \
            attention.",
        source: "ioctl_xfs_fsgeometry(2); mkfs.xfs(8), reflink; fragwatch-defrag(1)",
    },
    Entry {
        id: CheckId(209),
        severity: Severity::Warning,
        title: "An XFS with a realtime section",
        why: "Free space, fullness and fragmentation are reported of the data section only, and \
            files of the realtime section are not defragmented.",
        remedy: "Nothing has to be done if no image has the realtime flag (`xfs_io -c stat IMAGE`: \
            realtime).",
        explanation: "The realtime section has an allocator of its own and, before Linux 6.14, no reflink. \
            It is a note.",
        source: "mkfs.xfs(8), realtime section options; ioctl_xfs_fsgeometry(2)",
    },
    Entry {
        id: CheckId(210),
        severity: Severity::Warning,
        title: "An XFS with online discard",
        why: "Every freed extent is discarded on the disk at once, so that deleting or unsharing a \
            fragmented image sends millions of discards before the writes of VMs.",
        remedy: "Remove discard from /etc/fstab and enable fstrim.timer, which discards weekly and in \
            larger pieces.",
        explanation: "The extents that a transaction has freed are discarded when it is on the disk, and \
            cannot be allocated before. Many disks take milliseconds for a discard, whatever its \
            length. xfs(5) and fstrim(8) recommend fstrim instead.",
        source: "xfs(5), discard; xlog_cil_committed, fs/xfs/xfs_log_cil.c; fs/xfs/xfs_discard.c",
    },
    Entry {
        id: CheckId(211),
        severity: Severity::Warning,
        title: "An XFS with allocsize",
        why: "The option does nothing for VMs with cache=none, whose images it is often \
            recommended for.",
        remedy: "Remove it, unless other programs append to files here, and use extent-size hints: \
            `fragwatch protect`.",
        explanation: "allocsize= is how much is preallocated behind the end of a file that grows through \
            the page cache. Direct writes and writes into holes are not concerned. It is a note.",
        source: "xfs(5), allocsize; xfs_iomap_prealloc_size, fs/xfs/xfs_iomap.c",
    },
    Entry {
        id: CheckId(212),
        severity: Severity::Warning,
        title: "A project quota is at its limit",
        why: "At the limit writes fail as on a full disk: QEMU stops the VM or reports an error to \
            the guest, while df of the host shows free space.",
        remedy: "Raise the limit (`xfs_quota -x -c 'limit -p bhard=SIZE ID' MOUNT`) or remove files \
            of the project (`xfs_quota -x -c 'report -p' MOUNT`).",
        explanation: "A project quota limits the files of a directory tree, as container runtimes and \
            hosting panels set it. Preallocation and a copy of xfs_fsr count as well. Reported \
            from 95 % of the hard limit on, critical at the limit.",
        source: "xfs_quota(8); quotactl(2); xfs_trans_dqresv, fs/xfs/xfs_trans_dquot.c",
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
        id: CheckId(302),
        severity: Severity::Warning,
        title: "xfs_fsr is scheduled on a kernel before 6.13",
        why: "A write of a VM that falls into the last moment of a run can be lost.",
        remedy: "Remove the job that is named; fragwatch runs xfs_fsr itself, only on images \
            that no process has open.",
        explanation: "xfs_fsr copies a file and exchanges the extents if change and modification \
            time have not changed. Before Linux 6.13 these times were as coarse as a timer \
            tick: of 200 writes that came in the same tick as the end of the copy, 196 \
            were lost in a test on HZ=250. Since 6.13 the times are fine enough \
            (multigrain timestamps).",
        source: "1cf7e834a6fb \"xfs: switch to multigrain timestamps\"; xfs_swap_extents, \
            fs/xfs/xfs_bmap_util.c",
    },
    Entry {
        id: CheckId(303),
        severity: Severity::Warning,
        title: "Sparse images without a hint",
        why: "Each new block of a guest becomes an extent of its own, so that the image has \
            hundreds of thousands of them within months.",
        remedy: "Run `fragwatch protect`, which names the images, and `fragwatch protect --apply` for \
            the directories of new ones; existing ones are filled with --fill or written anew \
            with --rewrite.",
        explanation: "XFS allocates what is written. A guest writes 4 KiB here and there, and each write \
            into a hole is an extent. An extent-size hint of 1 MiB allocates a whole MiB around \
            it; a preallocated image needs none. Counted are images of which an extent can be \
            gained for less than 512 KiB.",
        source: "fragwatch-protect(1); xfsctl(3), FS_IOC_FSSETXATTR",
    },
    Entry {
        id: CheckId(304),
        severity: Severity::Warning,
        title: "qcow2 images that grow by small clusters",
        why: "Each new cluster of 64 KiB can become an extent of its own, whatever the hint, \
            because QEMU writes zeroes around it.",
        remedy: "Make such images with `qemu-img create -o preallocation=falloc`, or with \
            `cluster_size=1M`; `fragwatch protect` names those that there are.",
        explanation: "The cluster size is chosen when an image is made; the default is 64 KiB. An image \
            that was allocated in full does not grow.",
        source: "fragwatch-protect(1); qemu-img(1), cluster_size",
    },
    Entry {
        id: CheckId(305),
        severity: Severity::Warning,
        title: "qcow2 that is discarded without discard-no-unref",
        why: "A discard gives clusters up, new data takes them in another order, and the file can \
            grow beyond the size of its disk.",
        remedy: "Add discard_no_unref='on' to the driver in libvirt (9.5 or later), or \
            discard-no-unref=on in QEMU (8.1 or later).",
        explanation: "Without the option a discarded cluster is free in the qcow2 and is used for any \
            later write, so that the image is fragmented inside itself, which no engine repairs. \
            With it the cluster keeps its place, and the hole in the file is filled there. Read \
            from the command line of QEMU; disks that were plugged in later are not on it.",
        source: "QEMU 42a2890a76f4 \"qcow2: add discard-no-unref option\"; libvirt formatdomain, \
            discard_no_unref",
    },
    Entry {
        id: CheckId(401),
        severity: Severity::Critical,
        title: "The rescue is not armed",
        why: "If XFS waits for memory tonight, nobody frees it, and the VMs hang until somebody logs \
              in.",
        remedy: "Read `journalctl -u fragwatch` for the reason, and set rescue.enabled = true if it was not \
            switched off on purpose.",
        explanation: "The daemon answers, but the threads that read the kernel's log and drop the \
            slab cache do not run, because they could not be started. \
            A note if rescue.enabled is false: somebody has decided so.",
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
    Entry {
        id: CheckId(405),
        severity: Severity::Warning,
        title: "The history is on the file system of the images",
        why: "When that file system hangs, the daemon can record nothing, and a full one \
            stops both.",
        remedy: "Put history.path on another file system.",
        explanation: "The rescue does not depend on it: it is in memory and writes nothing. But \
            incident files and samples are written beside the database, and are lost if \
            its file system hangs.",
        source: "fragwatch.toml(5), history.path",
    },
    Entry {
        id: CheckId(406),
        severity: Severity::Warning,
        title: "Images need attention and no window is configured",
        why: "Nothing is defragmented automatically, so that they get worse until somebody \
            does it by hand.",
        remedy: "Add a [[maintenance.window]], or run `fragwatch defrag IMAGE`.",
        explanation: "Images are at warning or critical by the thresholds. The daemon defragments \
            only inside of maintenance windows, and none is configured by default.",
        source: "fragwatch.toml(5), maintenance.window",
    },
    Entry {
        id: CheckId(407),
        severity: Severity::Warning,
        title: "No window is long enough",
        why: "xfs_fsr copies an image as a whole and begins anew in each window, so that a larger \
            image is never defragmented.",
        remedy: "Make a window longer, raise defrag.bandwidth, or make online usable (`fragwatch \
            status` names what is missing), which continues in the next window.",
        explanation: "The time is that of what the image occupies at half of defrag.bandwidth, because half \
            is for reading, in the longest window less maintenance.jitter. A slower disk takes \
            longer. `fragwatch plan` has the estimate for each image.",
        source: "fragwatch.toml(5), maintenance.window; fragwatch-plan(1)",
    },
    Entry {
        id: CheckId(408),
        severity: Severity::Warning,
        title: "The clock or the time zone of the windows is uncertain",
        why: "A window can open in the working hours of the VMs.",
        remedy: "Run chronyd with `rtcsync` or systemd-timesyncd; set the zone with `timedatectl \
            set-timezone`, or maintenance.timezone.",
        explanation: "Windows open by the clock of the host. The kernel reports a clock that no program \
            has set for nine hours as not synchronised; chronyd without rtcsync never reports it: \
            silence the check then. The daemon may not read it. The time zone is read from /etc/localtime, and is UTC \
            without it.",
        source: "adjtimex(2), STA_UNSYNC; localtime(5)",
    },
];
