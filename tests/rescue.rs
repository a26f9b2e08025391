//! The rescue on the real kernel: real records of its log (mounting an XFS writes one) lead to real
//! drops of the slab cache, which the kernel's own counters confirm.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::fs;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::daemon::{fragwatch, free_address};
use support::emergency::{
    DEADLOCK, Event, Host, KernelLog, PATIENCE, Plan, alone, in_a_file, vmstat, wait_for_drop,
    wait_for_thread,
};

fn start(event: &Event, rescue: &str) -> Host {
    Plan::of(event.pattern()).rescue(rescue).start()
}

/// Has it take on other keys of `[rescue]`.
fn reload(host: &Host, event: &Event, rescue: &str) {
    let text = Plan::of(event.pattern())
        .rescue(rescue)
        .configuration(host.address);
    fs::write(host.directory.path().join("fragwatch.toml"), text).unwrap();
    host.daemon.signal(Signal::HUP);
}

fn write_kmsg(record: &str) {
    let mut kmsg = fs::OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .unwrap();
    kmsg.write_all(record.as_bytes()).unwrap();
}

#[test]
fn a_record_of_the_kernel_drops_the_slab_cache() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let host = start(&event, "");
    let before = vmstat("drop_slab");
    assert_eq!(host.incidents(), 0.0);
    event.happens();
    host.wait_for_incident();
    host.wait("fragwatch_rescue_active", 1.0);
    host.wait_done("drop_slab", "done");
    assert!(vmstat("drop_slab") > before, "the kernel has counted it");
    assert!(host.metric("fragwatch_klog_matches_total{rule=\"test_event\"}") >= 1.0);
    // Silence ends the incident.
    reload(&host, &event, "quiet_after = \"2s\"");
    let deadline = Instant::now() + PATIENCE;
    while host.metric("fragwatch_rescue_active") != 0.0 {
        assert!(Instant::now() < deadline, "{}", host.daemon.stderr());
        thread::sleep(Duration::from_millis(50));
    }
    assert!(
        host.daemon.stderr().contains("incident 1 ended"),
        "{}",
        host.daemon.stderr()
    );
}

#[test]
fn an_incident_is_recorded_and_shown_and_the_hook_is_told() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let told = tempfile::NamedTempFile::new().unwrap();
    let hook = format!(
        "hook = [\"/bin/sh\", \"-c\", 'echo \"$FRAGWATCH_EVENT $FRAGWATCH_TRIGGER\" >> {}; cat > /dev/null']",
        told.path().display()
    );
    let host = start(&event, &format!("quiet_after = \"2s\"\n{hook}"));
    event.happens();
    host.daemon.wait_for_stderr("incident 1 ended", PATIENCE);
    let deadline = Instant::now() + PATIENCE;
    let heard = || fs::read_to_string(told.path()).unwrap();
    while heard().lines().count() < 2 {
        assert!(
            Instant::now() < deadline,
            "{:?} {}",
            heard(),
            host.daemon.stderr()
        );
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(heard(), "begin kernel_log\nend kernel_log\n");
    let directory = host.directory.path().join("incidents");
    let show = |arguments: &[&str]| {
        let mut command = fragwatch();
        command
            .arg("incidents")
            .args(arguments)
            .arg("--directory")
            .arg(&directory);
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    while !show(&["1"]).contains("Unmounting Filesystem") {
        assert!(Instant::now() < deadline, "{}", show(&["1"]));
        thread::sleep(Duration::from_millis(20));
    }
    assert!(show(&[]).contains("kernel_log"), "{}", show(&[]));
    assert!(show(&["1"]).contains("drop_slab"), "{}", show(&["1"]));
    let json: serde_json::Value = serde_json::from_str(&show(&["--json"])).unwrap();
    assert_eq!(json["schema"], 1);
}

#[test]
fn as_long_as_it_goes_on_the_ladder_is_climbed() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let host = start(&event, "min_interval = \"50ms\"");
    let dropped = (vmstat("drop_slab"), vmstat("drop_pagecache"));
    let compacted = vmstat("compact_migrate_scanned") + vmstat("compact_free_scanned");
    let deadline = Instant::now() + PATIENCE;
    while host.done("drop_all", "done") < 1.0 {
        assert!(Instant::now() < deadline, "{}", host.daemon.stderr());
        event.happens();
        thread::sleep(Duration::from_millis(60));
    }
    assert!(host.done("drop_slab", "done") >= 2.0);
    assert_eq!(
        host.done("compact_memory", "done"),
        1.0,
        "{}",
        host.daemon.stderr()
    );
    assert_eq!(host.incidents(), 1.0, "one incident");
    assert!(vmstat("drop_slab") >= dropped.0 + 3);
    assert!(vmstat("drop_pagecache") > dropped.1);
    assert!(vmstat("compact_migrate_scanned") + vmstat("compact_free_scanned") > compacted);
}

#[test]
fn a_reload_arms_the_rescue_anew() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let host = start(&event, "enabled = false");
    event.happens();
    reload(&host, &event, "quiet_after = \"2s\"");
    host.daemon.wait_for_stderr("rescue armed", PATIENCE);
    host.wait("fragwatch_klog_roundtrip_success", 1.0);
    assert_eq!(
        host.incidents(),
        0.0,
        "what was before the reload is not acted upon"
    );
    event.happens();
    host.wait_for_incident();
}

#[test]
fn what_happened_just_before_the_start_is_not_lost() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    event.happens();
    let host = start(&event, "");
    host.wait_for_incident();
}

#[test]
fn a_dry_run_does_all_but_the_write() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let mut host = start(&event, "dry_run = true");
    event.happens();
    host.wait_for_incident();
    host.wait_done("drop_slab", "dry_run");
    assert_eq!(host.drops(), 0);
}

#[test]
fn forged_records_do_nothing() {
    let _alone = alone();
    let event = support::require!(Event::new());
    let mut host = start(&event, "");
    let incidents = host.incidents();
    assert_eq!(incidents, 0.0);
    let records = host.metric("fragwatch_klog_records_total");
    write_kmsg("<3>XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)\n");
    write_kmsg("<0>XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)\n");
    write_kmsg("<6>fragwatch drill: 12345\n");
    if Command::new("logger")
        .arg("kernel: XFS: possible memory allocation deadlock")
        .status()
        .is_err()
    {
        eprintln!("no logger here; its records come to /dev/kmsg no other way than ours");
    }
    // The counters are told every ten seconds, or with the next event.
    let deadline = Instant::now() + 2 * PATIENCE;
    while host.metric("fragwatch_klog_records_total") < records + 3.0 {
        assert!(Instant::now() < deadline, "the records are read");
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(host.incidents(), incidents);
    assert_eq!(
        host.metric("fragwatch_klog_matches_total{rule=\"xfs_deadlock\"}"),
        0.0
    );
    assert_eq!(host.drops(), 0);
}

/// Lets everybody write to /dev/kmsg as fast as he can, until it is dropped.
struct Unlimited(String);

impl Unlimited {
    const FILE: &str = "/proc/sys/kernel/printk_devkmsg";

    fn new() -> Unlimited {
        let before = fs::read_to_string(Self::FILE).unwrap();
        fs::write(Self::FILE, "on\n").unwrap();
        Unlimited(before)
    }
}

impl Drop for Unlimited {
    fn drop(&mut self) {
        let _ = fs::write(Self::FILE, &self.0);
    }
}

#[test]
fn a_flood_is_survived_and_its_losses_are_counted() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let _unlimited = Unlimited::new();
    let host = start(&event, "");
    // Stopped, so that the ring is certainly overwritten before it is read.
    host.daemon.signal(Signal::STOP);
    let mut kmsg = fs::OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .unwrap();
    for number in 0..100_000 {
        writeln!(kmsg, "<6>a flood, record {number}").unwrap();
    }
    host.daemon.signal(Signal::CONT);
    event.happens();
    host.wait_for_incident();
    host.wait("fragwatch_klog_lost_total", 1.0);
    host.wait(
        "fragwatch_rescue_actions_total{step=\"drop_slab\",outcome=\"done\"}",
        1.0,
    );
    // Afterwards it is at rest: less than a tenth of a second of processor time in two seconds.
    let reader = host.thread("rescue-reader");
    let used = || processor_ticks(host.daemon.pid(), reader);
    let before = used();
    thread::sleep(Duration::from_secs(2));
    assert!(used() - before < 10, "the reader is at rest");
}

/// utime + stime of a thread, in hundredths of a second (proc_pid_stat(5)).
fn processor_ticks(pid: u32, task: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{task}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let fields: Vec<_> = rest.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn the_fast_side_makes_no_other_system_calls() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    support::require!(support::tools::have("strace"));
    let host = start(&event, "min_interval = \"50ms\"");
    let trace = tempfile::NamedTempFile::new().unwrap();
    let tasks = [host.thread("rescue-reader"), host.thread("rescue-actor")];
    let mut strace = Command::new("strace");
    strace.arg("-o").arg(trace.path());
    for task in tasks {
        strace.arg("-p").arg(task.to_string());
    }
    let mut strace = support::child::Child::spawn(strace.stderr(Stdio::null())).unwrap();
    let traced = |task: u32| {
        let status = fs::read_to_string(format!("/proc/{task}/status")).unwrap_or_default();
        status
            .lines()
            .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    };
    let deadline = Instant::now() + PATIENCE;
    while !tasks.iter().all(|task| traced(*task)) {
        assert!(Instant::now() < deadline, "strace attaches");
        thread::sleep(Duration::from_millis(10));
    }
    while host.done("drop_all", "done") < 1.0 {
        assert!(Instant::now() < deadline, "{}", host.daemon.stderr());
        event.happens();
        thread::sleep(Duration::from_millis(60));
    }
    strace.signal(Signal::INT);
    strace.end();
    let calls = fs::read_to_string(trace.path()).unwrap();
    let names: std::collections::BTreeSet<&str> = calls
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .nth(1)?
                .split_once('(')
                .map(|(name, _)| name)
        })
        .collect();
    let allowed = [
        "poll",
        "ppoll",
        "read",
        "write",
        "pread64",
        "pwrite64",
        "restart_syscall",
    ];
    let others: Vec<_> = names
        .iter()
        .filter(|name| !allowed.contains(name))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(
        names.contains("pwrite64") && names.contains("read"),
        "{names:?}"
    );
}

#[test]
fn a_log_that_takes_no_line_keeps_nothing_from_the_rescue() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    // A pipe that nobody reads, filled to the brim: whoever logs hangs.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut command = Plan::of(event.pattern()).command(directory.path(), free_address());
    fill(&writer);
    command.stdout(Stdio::null()).stderr(writer);
    let mut log = KernelLog::from_now();
    let daemon = support::child::Child::spawn(&mut command).unwrap();
    drop(command);
    let actor = wait_for_thread(daemon.id(), "rescue-actor");
    event.happens();
    wait_for_drop(&mut log, actor);
    drop(reader);
}

fn fill(pipe: &OwnedFd) {
    let flags = rustix::fs::fcntl_getfl(pipe).unwrap();
    rustix::fs::fcntl_setfl(pipe, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    while rustix::io::write(pipe, &[b'x'; 1]).is_ok() {}
    rustix::fs::fcntl_setfl(pipe, flags).unwrap();
}

#[test]
fn the_watchdog_is_fed_with_the_rescue_and_without() {
    let _alone = alone();
    let event = support::require!(Event::new());
    for rescue in ["", "enabled = false"] {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("notify");
        let systemd = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
        systemd.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = Plan::of(event.pattern())
            .rescue(rescue)
            .environment("NOTIFY_SOCKET", &socket)
            .environment("WATCHDOG_USEC", "300000")
            .command(directory.path(), free_address());
        let daemon = support::child::Child::spawn(command.stderr(Stdio::null())).unwrap();
        let mut fed = 0;
        let mut message = [0; 4096];
        while fed < 5 {
            let length = systemd.recv(&mut message).expect("the watchdog is fed");
            let message = String::from_utf8_lossy(&message[..length]);
            fed += usize::from(message.lines().any(|line| line == "WATCHDOG=1"));
        }
        drop(daemon);
    }
}

#[test]
fn without_standard_error_the_rescue_works() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let directory = tempfile::tempdir().unwrap();
    let plain = Plan::of(event.pattern()).command(directory.path(), free_address());
    // The shell closes it; no data from outside is in its command.
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 2>&-"]);
    command.arg(plain.get_program()).args(plain.get_args());
    command.env("STATE_DIRECTORY", directory.path());
    let mut log = KernelLog::from_now();
    let daemon = support::child::Child::spawn(&mut command).unwrap();
    let actor = wait_for_thread(daemon.id(), "rescue-actor");
    event.happens();
    wait_for_drop(&mut log, actor);
}

#[test]
fn a_drill_shows_each_stage() {
    let _alone = alone();
    support::require!(Event::new());
    let mut log = KernelLog::from_now();
    let output = fragwatch().arg("drill").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for stage in [
        "record written",
        "read back",
        "actor began",
        "all but the write",
    ] {
        assert!(text.contains(stage), "{text}");
    }
    assert!(!text.contains("FAIL  /dev/kmsg"), "{text}");
    assert_eq!(log.drops(), 0, "a drill drops nothing");
}

#[test]
fn a_drill_that_acts_drops() {
    let _alone = alone();
    support::require!(Event::new());
    let mut log = KernelLog::from_now();
    let output = fragwatch().args(["drill", "--act"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("counter confirms"), "{text}");
    assert_eq!(log.drops(), 1);
}

fn append(file: &tempfile::NamedTempFile, line: &str) {
    file.as_file().write_all(line.as_bytes()).unwrap();
}

fn following(event: &Event, file: &tempfile::NamedTempFile, keys: &str) -> Host {
    let file = file.path().display();
    let klog = format!("files = [\"{file}\"]\n{keys}");
    let host = Plan::of(event.pattern()).klog(&klog).start();
    let up = format!("fragwatch_klog_source_up{{source=\"{file}\"}}");
    host.wait(&up, 1.0);
    host
}

#[test]
fn a_log_file_reports_and_rescues_only_if_it_may() {
    let _alone = alone();
    let event = support::require!(Event::new());
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut host = following(&event, &file, "");
    append(
        &file,
        "Nov 20 22:58:01 kvm7 qemu: XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)\n",
    );
    append(&file, &in_a_file(DEADLOCK));
    host.wait("fragwatch_klog_matches_total{rule=\"xfs_deadlock\"}", 1.0);
    assert_eq!(host.drops(), 0, "anybody can write to a log file");
    drop(host);

    let host = following(&event, &file, "files_may_rescue = true");
    append(&file, &in_a_file(DEADLOCK));
    host.wait("fragwatch_rescue_incidents_total{trigger=\"file\"}", 1.0);
    host.wait_done("drop_slab", "done");
    assert_eq!(
        host.metric("fragwatch_klog_matches_total{rule=\"xfs_deadlock\"}"),
        1.0
    );
}

#[test]
fn what_the_kernel_and_a_file_both_tell_happened_once() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut host = following(&event, &file, "files_may_rescue = true");
    event.happens();
    host.wait("fragwatch_klog_matches_total{rule=\"test_event\"}", 1.0);
    let pattern = event.pattern();
    let uuid = pattern.rsplit(' ').next().unwrap();
    let mut said = host.log.lines().iter();
    let line = said.find(|line| line.contains("Unmounting") && line.contains(uuid));
    let line = line.unwrap().trim_end();
    append(&file, &in_a_file(line));
    // Another line behind it, to know when it was heard.
    append(&file, &in_a_file(DEADLOCK));
    host.wait("fragwatch_klog_matches_total{rule=\"xfs_deadlock\"}", 1.0);
    assert_eq!(
        host.metric("fragwatch_klog_matches_total{rule=\"test_event\"}"),
        1.0
    );
}
