use std::time::Duration;

use crate::doctor::tests::Tree;

const DIRTY: &[&str] = &["balance_dirty_pages", "generic_perform_write"];

#[test]
fn a_device_at_its_own_limit() {
    let tree = Tree::healthy();
    tree.put("sys/class/block/sdb/dev", "8:16\n");
    tree.put("sys/class/bdi/8:16/max_ratio", "1\n");
    tree.put("sys/class/bdi/8:16/strict_limit", "1\n");
    tree.put("sys/class/bdi/0:53-fuse/max_ratio", "1\n");
    assert_eq!(tree.diagnosis().findings, [], "nobody waits");
    tree.thread(300, 300, "dd", 'D', DIRTY);
    let found = tree.of(13);
    assert_eq!(
        found[0].what,
        "Writers are throttled, and sdb (8:16) may hold at most 1 % of the dirty memory, which holds at any \
         time (strict_limit)."
    );
    assert_eq!(
        (found.len(), &*found[0].read[0]),
        (1, "/sys/class/bdi/8:16/max_ratio: 1")
    );
    tree.put("sys/class/bdi/8:16/max_ratio", "100\n");
    tree.put("sys/class/bdi/8:16/strict_limit", "0\n");
    assert_eq!(tree.of(13), []);
    let stats = |used: u32| {
        format!(
            "BdiWriteback:       1024 kB\nBdiReclaimable:       {used} kB\nBdiDirtyThresh:      10240 kB\n\
             DirtyThresh:      999999 kB\nBdiWriteBandwidth:    1024 kBps\n"
        )
    };
    tree.put("sys/kernel/debug/bdi/8:16/stats", &stats(7167));
    assert_eq!(tree.of(13), []);
    tree.put("sys/kernel/debug/bdi/8:16/stats", &stats(7168));
    assert_eq!(
        tree.of(13)[0].what,
        "Writers are throttled, and sdb (8:16) is near the limit of its share of the dirty memory; 8.0 MiB of its \
         10.0 MiB are used, which takes 8 s to write at 1.0 MiB/s."
    );
    // The host itself is at its limit.
    let vmstat = |dirty: u32| {
        format!("nr_dirty {dirty}\nnr_writeback 0\nnr_written 5\nnr_dirty_threshold 100000\n")
    };
    tree.put("proc/vmstat", &vmstat(80_000));
    assert_eq!((tree.of(10).len(), tree.of(13)), (1, Vec::new()));
    tree.put("proc/vmstat", &vmstat(100));
    assert_eq!(tree.of(13).len(), 1);
    // A device that is idle.
    let idle = "BdiWriteback: 0 kB\nBdiReclaimable: 0 kB\nBdiDirtyThresh: 0 kB\nBdiWriteBandwidth: 9 kBps\n";
    tree.put("sys/kernel/debug/bdi/8:16/stats", idle);
    assert_eq!(tree.of(13), []);
    tree.block("sys/class/bdi/8:16/max_ratio");
    let reason = "/sys/class/bdi/8:16/max_ratio: Is a directory (os error 21)";
    assert_eq!(tree.unchecked(13), reason);
}

#[test]
fn a_journal_that_commits_most_of_the_time() {
    const INFO: &str = "proc/fs/jbd2/sda1-8/info";
    let tree = Tree::healthy();
    let info = |commits: u32, requested: u32| {
        format!(
            "{commits} transactions ({requested} requested), each up to 8192 blocks\naverage: \n  0ms waiting \
             for transaction\n  20ms running transaction\n  8000us average transaction commit time\n"
        )
    };
    tree.put(INFO, &info(100, 90));
    let ten = Duration::from_secs(10);
    assert_eq!(tree.later(ten, &[(INFO, &info(599, 90))]), []);
    tree.put(INFO, &info(100, 90));
    let found = tree.later(ten, &[(INFO, &info(600, 580))]);
    assert_eq!((found.len(), found[0].id.0), (1, 14));
    assert_eq!(
        found[0].what,
        "The journal of sda1 committed for 40 % of the time: 50 times a second, of which 49 by fsync, each in \
         8.0 ms."
    );
    assert_eq!(tree.later(ten, &[(INFO, "no numbers")]), []);
}

/// Beside those who wait.
#[test]
fn who_writes_is_named() {
    let tree = Tree::healthy();
    tree.process(301, "dd", 1);
    tree.thread(300, 300, "rsync", 'D', DIRTY);
    let mut readings = tree.readings();
    let writer = |pid, comm: &str, written| crate::doctor::writers::Writer {
        pid,
        comm: comm.to_owned(),
        written,
    };
    readings.interval = Duration::from_secs(10);
    readings.writers = Ok(vec![
        writer(301, "dd", 1200 << 20),
        writer(302, "sshd", 4096),
    ]);
    let found = crate::doctor::examine(&readings).findings;
    assert_eq!(
        found[0].what,
        "1 thread was waiting because too much memory is dirty at two readings 10.0 s apart: 1 of rsync (PID \
         300); most was written by dd (PID 301) 120 MiB/s."
    );
}
