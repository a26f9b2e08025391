//! Evidence from a made-up /proc and from the real one.

use super::*;
use crate::model::{CheckId, Severity};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::create_dir_all;

const SOON: Duration = Duration::from_secs(2);

fn finding() -> Finding {
    Finding {
        id: CheckId(1),
        severity: Severity::Critical,
        what: "It waits.".to_owned(),
        read: Vec::new(),
        silenced: None,
    }
}

fn no_images() -> Images {
    Arc::new(Vec::new)
}

fn task(proc: &Path, pid: u32, tid: u32, comm: &str, state: char, stack: &str) {
    let path = proc.join(format!("{pid}/task/{tid}"));
    create_dir_all(&path).unwrap();
    let rest = "0 ".repeat(16);
    let stat =
        format!("{tid} ({comm}) {state} 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 9 {rest}3 0\n");
    fs::write(path.join("stat"), stat).unwrap();
    fs::write(path.join("wchan"), "xfs_buf_lock").unwrap();
    fs::write(path.join("stack"), stack).unwrap();
}

fn tree() -> tempfile::TempDir {
    let proc = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(proc.path().join(name), text).unwrap();
    create_dir_all(proc.path().join("pressure")).unwrap();
    create_dir_all(proc.path().join("self")).unwrap();
    write("buddyinfo", "Node 1, zone Normal 1 2 3\n");
    write("vmstat", "nr_dirty 5\nnr_dirty_threshold 9\nnr_mlock 3\n");
    write(
        "meminfo",
        "MemFree: 12 kB\nHugePages_Total: 3\nHugepagesize: 2048 kB\n",
    );
    let pressure = "some avg10=1.00 avg60=0.00 avg300=0.00 total=5\n";
    for of in ["memory", "io", "cpu"] {
        write(&format!("pressure/{of}"), pressure);
    }
    write(
        "slabinfo",
        "a 1 2 64 64 1 : tunables 0 0 0 : slabdata 1 1 0\n",
    );
    write("self/mountinfo", "1 0 253:0 / / rw - xfs /dev/vda rw\n");
    task(proc.path(), 7, 7, "qemu", 'S', "");
    task(
        proc.path(),
        7,
        8,
        "CPU 0/KVM",
        'D',
        "[<0>] xfs_buf_lock+0x1/0x2 [xfs]\n[<0>] b\n",
    );
    task(proc.path(), 9, 9, "kworker/1:0-xfs", 'D', "");
    task(proc.path(), 10, 10, "xfsaild/dm-0", 'D', "");
    proc
}

fn fifo(path: &Path) {
    let _ = fs::remove_file(path);
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[test]
fn everything_is_collected() {
    let proc = tree();
    let image = ImageEvidence {
        path: "/srv/a".to_owned(),
        extents: 5,
        size_bytes: 6,
    };
    let images: Images = {
        let image = image.clone();
        Arc::new(move || vec![image.clone()])
    };
    let gatherer = Gatherer::new(
        proc.path().to_owned(),
        images,
        Arc::new(|| vec![finding()]),
        DEADLINE,
    );
    let mut found = gatherer.gather();
    assert_eq!(found.left_out, []);
    assert_eq!(found.buddyinfo[0].free_blocks, [1, 2, 3]);
    assert_eq!(found.vmstat.len(), 2);
    assert_eq!(found.meminfo_kib["MemFree"], 12);
    assert_eq!(found.meminfo_kib["HugePages_Total"], 3 * 2048);
    assert_eq!(found.pressure["cpu"]["some"].total, 5);
    assert_eq!(found.slabs[0].name, "a");
    assert_eq!(found.mounts[0].type_name, "xfs");
    assert_eq!(found.images, [image]);
    assert_eq!(found.findings, [finding()]);
    assert_eq!(found.tasks_blocked, 3);
    found.tasks.sort_by_key(|task| task.tid);
    let kinds: Vec<_> = found.tasks.iter().map(|task| task.kind).collect();
    assert_eq!(
        kinds,
        [TaskKind::Task, TaskKind::Kworker, TaskKind::Journal]
    );
    let expected = BlockedTask {
        tid: 8,
        pid: 7,
        comm: "CPU 0/KVM".to_owned(),
        kind: TaskKind::Task,
        wchan: Some("xfs_buf_lock".to_owned()),
        stack: vec!["xfs_buf_lock+0x1/0x2 [xfs]".to_owned(), "b".to_owned()],
    };
    assert_eq!(found.tasks[0], expected);
    let json = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<Evidence>(&json).unwrap(), found);
}

#[test]
fn a_collector_that_hangs_is_left_out_and_not_started_twice() {
    let proc = tree();
    let slabinfo = proc.path().join("slabinfo");
    fifo(&slabinfo);
    // The stack of one task hangs: who is blocked is known all the same.
    fifo(&proc.path().join("7/task/8/stack"));
    let gatherer = Gatherer::new(
        proc.path().to_owned(),
        no_images(),
        Arc::new(Vec::new),
        SOON,
    );
    let found = gatherer.gather();
    let silent = |found: &Evidence| {
        let mut names: Vec<_> = found
            .left_out
            .iter()
            .map(|out| out.collector.clone())
            .collect();
        names.sort();
        names
    };
    assert_eq!(silent(&found), ["slabs", "tasks in state D"]);
    assert_eq!(found.left_out[0].reason, "no answer within 2 s");
    assert_eq!(found.tasks.len(), 3);
    assert_eq!(found.buddyinfo.len(), 1);
    let again = gatherer.gather();
    assert_eq!(silent(&again), ["slabs", "tasks in state D"]);
    assert_eq!(again.left_out[0].reason, "an earlier attempt still hangs");
    // Once it answers it is asked again.
    drop(fs::OpenOptions::new().write(true).open(&slabinfo).unwrap());
    drop(
        fs::OpenOptions::new()
            .write(true)
            .open(proc.path().join("7/task/8/stack"))
            .unwrap(),
    );
    fs::remove_file(&slabinfo).unwrap();
    fs::remove_file(proc.path().join("7/task/8/stack")).unwrap();
    fs::write(&slabinfo, "").unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !silent(&gatherer.gather()).is_empty() {
        assert!(Instant::now() < deadline, "it is not asked again");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_is_not_there_is_told() {
    let proc = tempfile::tempdir().unwrap();
    let gatherer = Gatherer::new(
        proc.path().to_owned(),
        no_images(),
        Arc::new(Vec::new),
        DEADLINE,
    );
    let found = gatherer.gather();
    // No task at all is an answer, and so are no image and no finding.
    assert_eq!(
        found.left_out.len(),
        COLLECTORS.len() - 3,
        "{:?}",
        found.left_out
    );
}

#[test]
fn our_own_host_is_understood() {
    let found = Gatherer::new(
        PathBuf::from("/proc"),
        no_images(),
        Arc::new(Vec::new),
        DEADLINE,
    )
    .gather();
    assert!(!found.buddyinfo.is_empty() && !found.mounts.is_empty());
    assert!(
        found.vmstat.contains_key("nr_dirty_threshold"),
        "{:?}",
        found.vmstat
    );
}
