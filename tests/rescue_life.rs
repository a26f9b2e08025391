//! The rescue across reloads, at the start where something is missing, and at the end. Records, drops
//! and /proc are the kernel's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use support::StalledFile;
use support::emergency::{DEADLOCK, Event, Host, PATIENCE, Plan, Refusals, alone, in_a_file};

support::stall_server!();

fn until(what: &str, host: &Host, condition: impl FnMut() -> bool) {
    until_within(PATIENCE, what, host, condition);
}

fn until_within(time: Duration, what: &str, host: &Host, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + time;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "not seen: {what}\n{}",
            host.daemon.stderr()
        );
        thread::sleep(Duration::from_millis(10));
    }
}

fn count(host: &Host, text: &str) -> usize {
    host.daemon.stderr().matches(text).count()
}

/// Replaces its configuration as a whole: one that is half written would be read as such.
fn configure(host: &Host, plan: &Plan) {
    let config = host.directory.path().join("fragwatch.toml");
    let draft = host.directory.path().join("draft");
    fs::write(&draft, plan.configuration(host.address)).unwrap();
    fs::rename(&draft, &config).unwrap();
}

/// Has it take on another configuration.
fn reload(host: &Host, plan: &Plan) {
    const DONE: &str = "configuration reloaded";
    configure(host, plan);
    let before = count(host, DONE);
    host.daemon.signal(Signal::HUP);
    until("the reload", host, || count(host, DONE) > before);
}

/// The threads of a daemon but those of its runtime, which come and go as files are read.
fn threads(host: &Host) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", host.daemon.pid())).unwrap();
    let names = tasks
        .flatten()
        .map(|task| fs::read_to_string(task.path().join("comm")));
    names
        .flatten()
        .filter(|name| name.trim() != "tokio-rt-worker")
        .count()
}

fn has_series(host: &Host, name: &str) -> bool {
    let body = host.daemon.get("/metrics").body;
    body.lines().any(|line| line.starts_with(name))
}

/// What `fragwatch check` says, and its exit status.
fn check(host: &Host) -> (i32, String) {
    ask(host, &["check"])
}

fn ask(host: &Host, arguments: &[&str]) -> (i32, String) {
    let (subcommand, rest) = arguments.split_first().unwrap();
    let mut command = host.daemon.ask(subcommand);
    command.args(rest).arg("--config");
    command.arg(host.directory.path().join("fragwatch.toml"));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code().unwrap(), text)
}

fn status(host: &Host) -> Value {
    serde_json::from_str(&ask(host, &["status", "--json"]).1).unwrap()
}

/// The state of a part, as `status` has it.
fn part(host: &Host, name: &str) -> Option<String> {
    let status = status(host);
    let parts = status["parts"].as_array().unwrap();
    let part = parts.iter().find(|part| part["part"] == name)?;
    Some(part["state"].as_str().unwrap().to_owned())
}

/// Incident files, oldest first.
fn incidents(host: &Host) -> Vec<Value> {
    let Ok(entries) = fs::read_dir(host.directory.path().join("incidents")) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "json"));
    paths.sort();
    let read =
        |path: &std::path::PathBuf| serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    paths.iter().map(read).collect()
}

#[test]
fn reloads_miss_no_record_and_leave_no_thread_behind() {
    let _alone = alone();
    let refusals = support::require!(Refusals::new());
    // Those of other tests of this process are of another kind, and within the look-back.
    let kind = 7;
    let pattern = format!("^XFS.*: {}", refusals.text(kind));
    let plan = |number: usize| {
        let rescue = format!("dry_run = true\nquiet_after = \"{}s\"", 60 + number % 2);
        let klog = if number.is_multiple_of(3) {
            "files_may_rescue = true"
        } else {
            ""
        };
        Plan::of(pattern.clone()).klog(klog).rescue(&rescue)
    };
    let host = plan(1).start();
    reload(&host, &plan(2));
    let before = threads(&host);
    const MATCHES: &str = "fragwatch_klog_matches_total{rule=\"test_event\"}";
    for number in 0..30 {
        configure(&host, &plan(number));
        refusals.happens_to(kind);
        host.daemon.signal(Signal::HUP);
        refusals.happens_to(kind);
        thread::sleep(Duration::from_millis(20));
    }
    host.wait(MATCHES, 60.0);
    assert_eq!(host.metric(MATCHES), 60.0);
    // The counters went on as well, and nothing began anew.
    assert!(host.metric("fragwatch_klog_records_total") >= 60.0);
    assert_eq!(host.incidents(), 1.0);
    reload(&host, &plan(1));
    until("no more threads than before", &host, || {
        threads(&host) <= before
    });
}

#[test]
fn a_reload_in_mid_incident_keeps_the_incident_its_limits_and_its_end() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let told = tempfile::NamedTempFile::new().unwrap();
    let hook = |word: &str| {
        let script = format!(
            "echo \"{word} $FRAGWATCH_EVENT $FRAGWATCH_INCIDENT\" >> {}; cat > /dev/null",
            told.path().display()
        );
        format!("hook = [\"/bin/sh\", \"-c\", '{script}']")
    };
    let plan = |quiet: u32, word: &str| {
        let keys = "min_interval = \"0s\"\nmax_actions_per_hour = 2\ndry_run = true";
        let rescue = format!("{keys}\nquiet_after = \"{quiet}s\"\n{}", hook(word));
        Plan::of(event.pattern()).rescue(&rescue)
    };
    let [first, second, last] = [plan(60, "one"), plan(59, "two"), plan(2, "two")];
    let host = first.start();
    const DONE: &str = "fragwatch_rescue_actions_total{step=\"drop_slab\",outcome=\"dry_run\"}";
    event.happens();
    host.wait_for_incident();
    // The command gets the evidence, which takes a moment to collect.
    until("the hook at its begin", &host, || {
        fs::read_to_string(told.path()).unwrap().lines().count() == 1
    });
    reload(&host, &second);
    assert_eq!(host.metric("fragwatch_rescue_active"), 1.0);
    assert_eq!(status(&host)["rescue"]["incident"], true);
    // Two actions an hour, whatever is reloaded meanwhile.
    for records in 2..5 {
        event.happens();
        host.wait(
            "fragwatch_klog_matches_total{rule=\"test_event\"}",
            f64::from(records),
        );
        reload(&host, if records % 2 == 0 { &first } else { &second });
    }
    host.wait(DONE, 2.0);
    assert_eq!(host.metric(DONE), 2.0);
    assert_eq!(host.incidents(), 1.0);
    // Its end is that of the same incident.
    reload(&host, &last);
    host.daemon.wait_for_stderr("incident 1 ended", PATIENCE);
    until("both runs of the hook", &host, || {
        fs::read_to_string(told.path()).unwrap().lines().count() == 2
    });
    let heard = fs::read_to_string(told.path()).unwrap();
    let lines: Vec<Vec<&str>> = heard
        .lines()
        .map(|line| line.split(' ').collect())
        .collect();
    assert_eq!((lines[0][0], lines[0][1]), ("one", "begin"));
    assert_eq!((lines[1][0], lines[1][1]), ("two", "end"));
    assert_eq!(lines[0][2], lines[1][2]);
    until("its file", &host, || {
        let incidents = incidents(&host);
        incidents.len() == 1 && incidents[0]["state"] == "ended"
    });
    assert_eq!(incidents(&host)[0]["matches"], 4);
    assert_eq!(incidents(&host)[0]["actions"], 2);
    assert_eq!(status(&host)["rescue"]["incident"], false);
}

#[test]
fn switched_off_in_mid_incident_it_ends_and_switched_on_again_it_acts() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let on = Plan::of(event.pattern()).rescue("min_interval = \"0s\"");
    let off = on.clone().rescue("enabled = false");
    let mut host = on.start();
    let before = threads(&host);
    event.happens();
    host.wait_for_incident();
    host.wait_done("drop_slab", "done");
    reload(&host, &off);
    host.daemon.wait_for_stderr("incident 1 ended", PATIENCE);
    assert_eq!(part(&host, "rescue").as_deref(), Some("off"));
    assert_eq!(part(&host, "kernel_log"), None);
    assert!(!has_series(&host, "fragwatch_klog_source_up"));
    let (code, text) = check(&host);
    assert!(
        code == 0 && text.contains("rescue off: rescue.enabled = false"),
        "{text}"
    );
    let drops = host.drops();
    event.happens();
    reload(&host, &on);
    host.wait("fragwatch_klog_source_up{source=\"kmsg\"}", 1.0);
    assert_eq!(host.incidents(), 1.0, "what was before is not acted upon");
    assert_eq!(host.drops(), drops);
    event.happens();
    host.wait(
        "fragwatch_rescue_incidents_total{trigger=\"kernel_log\"}",
        2.0,
    );
    host.wait(
        "fragwatch_rescue_actions_total{step=\"drop_slab\",outcome=\"done\"}",
        2.0,
    );
    until("no more threads than before", &host, || {
        threads(&host) <= before
    });
}

#[test]
fn at_the_hourly_limit_a_hundred_lines_are_one_error() {
    let _alone = alone();
    let refusals = support::require!(Refusals::new());
    let rescue = |limit: u32, quiet: u32| {
        let keys = format!("dry_run = true\nmin_interval = \"0s\"\nquiet_after = \"{quiet}s\"");
        Plan::of(refusals.pattern()).rescue(&format!("{keys}\nmax_actions_per_hour = {limit}"))
    };
    let host = rescue(1, 60).start();
    const MATCHES: &str = "fragwatch_klog_matches_total{rule=\"test_event\"}";
    refusals.happens();
    host.wait_done("drop_slab", "dry_run");
    for _ in 0..100 {
        refusals.happens();
    }
    host.wait(MATCHES, 101.0);
    const REACHED: &str = "rescue.max_actions_per_hour is reached";
    until("it is reported", &host, || count(&host, REACHED) > 0);
    assert_eq!(part(&host, "rescue").as_deref(), Some("impaired"));
    let (code, text) = check(&host);
    assert!(code == 2 && text.contains(REACHED), "{text}");
    reload(&host, &rescue(1, 1));
    host.daemon.wait_for_stderr("incident 1 ended", PATIENCE);
    assert_eq!(count(&host, REACHED), 1, "{}", host.daemon.stderr());
    let log = host.daemon.stderr();
    let over = log
        .lines()
        .find(|line| line.contains("incident 1 ended"))
        .unwrap();
    assert!(over.contains("101 signs (100 of them held back"), "{over}");
    until("its file", &host, || {
        incidents(&host)
            .first()
            .is_some_and(|one| one["state"] == "ended")
    });
    let incident = incidents(&host).remove(0);
    let events = incident["events"].as_array().unwrap();
    let limits: Vec<_> = events.iter().filter(|of| of["kind"] == "limited").collect();
    assert_eq!(limits.len(), 1, "{limits:?}");
    assert_eq!(limits[0]["times"], 100);
    // A limit that is raised is over at once.
    reload(&host, &rescue(10, 1));
    host.daemon
        .wait_for_stderr("allows actions again", PATIENCE);
    until("it is well", &host, || {
        part(&host, "rescue").as_deref() == Some("up")
    });
}

#[test]
fn a_log_file_that_is_no_longer_followed_has_no_series_and_the_others_go_on() {
    let _alone = alone();
    let event = support::require!(Event::new());
    let files = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
    let plan = |paths: &[&Path], rule: &str| {
        let klog = format!("files = {paths:?}\n{rule}");
        Plan::of(event.pattern()).klog(&klog)
    };
    let [kept, gone] = files.each_ref().map(tempfile::NamedTempFile::path);
    let host = plan(&[kept, gone], "").start();
    let up = |path: &Path| format!("fragwatch_klog_source_up{{source=\"{}\"}}", path.display());
    host.wait(&up(kept), 1.0);
    host.wait(&up(gone), 1.0);
    let before = threads(&host);
    fs::remove_file(gone).unwrap();
    // Rules and files change in the same reload; the file that is kept is read by the new rules.
    let rule = "[[klog.rule]]\nname = \"new_rule\"\npattern = \"something new\"";
    reload(&host, &plan(&[kept], rule));
    assert!(!has_series(&host, &up(gone)));
    assert!(has_series(&host, &up(kept)));
    assert_eq!(count(&host, &format!("following {}", kept.display())), 1);
    let mut file = files[0].as_file();
    file.write_all(in_a_file("something new").as_bytes())
        .unwrap();
    file.write_all(in_a_file(DEADLOCK).as_bytes()).unwrap();
    host.wait("fragwatch_klog_matches_total{rule=\"new_rule\"}", 1.0);
    host.wait("fragwatch_klog_matches_total{rule=\"xfs_deadlock\"}", 1.0);
    until("fewer threads", &host, || threads(&host) < before);
}

#[test]
fn without_the_kernel_log_there_is_neither_its_source_nor_a_drill() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let with = |kmsg: bool| {
        let plan = Plan::of(event.pattern()).rescue("min_interval = \"0s\"\nquiet_after = \"1s\"");
        plan.klog(&format!("kmsg = {kmsg}"))
    };
    let (on, off) = (with(true), with(false));
    let host = off.start_under(&[]);
    host.wait("fragwatch_part_severity{part=\"rescue\"}", 0.0);
    let nothing = |host: &Host| {
        assert!(!has_series(
            host,
            "fragwatch_klog_source_up{source=\"kmsg\"}"
        ));
        assert!(!has_series(host, "fragwatch_klog_roundtrip"));
        assert!(!has_series(
            host,
            "fragwatch_part_severity{part=\"kernel_log\"}"
        ));
        assert_eq!(part(host, "kernel_log").as_deref(), Some("off"));
        let (code, text) = check(host);
        assert!(
            code == 0 && text.contains("kernel log off: klog.kmsg = false"),
            "{text}"
        );
        let (_, text) = ask(host, &["status"]);
        assert!(text.contains("kernel log off: klog.kmsg = false"), "{text}");
    };
    nothing(&host);
    // A drill that could not come back would have failed after five seconds.
    thread::sleep(Duration::from_secs(6));
    assert_eq!(count(&host, "drill"), 0, "{}", host.daemon.stderr());
    event.happens();
    reload(&host, &on);
    host.wait("fragwatch_klog_roundtrip_success", 1.0);
    assert_eq!(host.incidents(), 0.0, "what was before is not acted upon");
    event.happens();
    host.wait_for_incident();
    assert_eq!(host.metric("fragwatch_klog_lost_total"), 0.0);
    reload(&host, &off);
    until("no drill is known", &host, || {
        !has_series(&host, "fragwatch_klog_roundtrip")
    });
    host.daemon.wait_for_stderr("incident 1 ended", PATIENCE);
    nothing(&host);
}

#[test]
fn a_stall_detector_that_is_off_is_no_source_that_is_down() {
    let _alone = alone();
    let event = support::require!(Event::new());
    let host = Plan::of(event.pattern())
        .rescue("stall_after = \"never\"")
        .start();
    assert!(!has_series(
        &host,
        "fragwatch_klog_source_up{source=\"stall_detector\"}"
    ));
    assert!(has_series(
        &host,
        "fragwatch_klog_source_up{source=\"kmsg\"} 1"
    ));
    assert_eq!(part(&host, "stall_detector").as_deref(), Some("off"));
    let (code, text) = check(&host);
    assert!(code == 0 && text.contains("stall detector off"), "{text}");
    reload(&host, &Plan::of(event.pattern()));
    assert!(has_series(
        &host,
        "fragwatch_klog_source_up{source=\"stall_detector\"} 1"
    ));
}

#[test]
fn a_rescue_that_cannot_start_is_down_everywhere() {
    let _alone = alone();
    let event = support::require!(Event::new());
    let plan = Plan::of(event.pattern());
    // As in a container, or with ProtectKernelTunables=.
    let script = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$0\" \"$@\"";
    let host = plan.start_under(&["unshare", "--mount", "sh", "-c", script]);
    host.wait("fragwatch_part_severity{part=\"rescue\"}", 2.0);
    let (code, text) = check(&host);
    assert_eq!(code, 2, "{text}");
    assert!(
        text.contains("rescue down: ") && text.contains("drop_caches"),
        "{text}"
    );
    assert!(text.contains("Read-only file system"), "{text}");
    assert_eq!(part(&host, "rescue").as_deref(), Some("down"));
    let (_, text) = ask(&host, &["status"]);
    assert!(text.contains("! rescue down: "), "{text}");
    // Nothing is said of what would only run with it.
    assert_eq!(part(&host, "stall_detector"), None);
    assert!(!has_series(&host, "fragwatch_klog_source_up"));
    // It is tried again at a reload, and counted meanwhile.
    reload(&host, &plan);
    assert_eq!(count(&host, "rescue failed to start"), 2);
}

#[test]
fn what_was_accepted_is_in_the_incident_file_at_the_end() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    let file = tempfile::NamedTempFile::new().unwrap();
    let klog = format!("files = [{:?}]", file.path());
    let mut host = Plan::of(event.pattern()).klog(&klog).start();
    let up = format!(
        "fragwatch_klog_source_up{{source=\"{}\"}}",
        file.path().display()
    );
    host.wait(&up, 1.0);
    event.happens();
    host.wait_for_incident();
    until("the file", &host, || !incidents(&host).is_empty());
    event.happens();
    host.wait("fragwatch_klog_matches_total{rule=\"test_event\"}", 2.0);
    file.as_file()
        .write_all(in_a_file(DEADLOCK).as_bytes())
        .unwrap();
    host.wait("fragwatch_klog_matches_total{rule=\"xfs_deadlock\"}", 1.0);
    host.daemon.signal(Signal::TERM);
    assert_eq!(host.daemon.wait(PATIENCE).code(), Some(0));
    let incident = incidents(&host).remove(0);
    let events = incident["events"].as_array().unwrap();
    let lines: Vec<_> = events.iter().filter(|of| of["kind"] == "line").collect();
    assert_eq!(lines.len(), 3, "{lines:#?}\n{}", host.daemon.stderr());
}

/// Writing drop_caches runs the shrinkers in the writer, and one of them may wait for a file system. A
/// file whose server has stopped stands in for it.
#[test]
fn a_write_that_hangs_stops_neither_reader_nor_detector_nor_the_daemons_end() {
    let _alone = alone();
    let refusals = support::require!(Refusals::new());
    support::require!(support::tools::have("unshare"));
    let stand_in = support::require!(StalledFile::new());
    let script = format!(
        "mount --bind {} /proc/sys/vm/drop_caches && exec \"$0\" \"$@\"",
        stand_in.path().display()
    );
    // The daemon has a namespace of its own, in which an event's file system would stay mounted.
    let kind = 9;
    let pattern = format!("^XFS.*: {}", refusals.text(kind));
    let plan = Plan::of(pattern).rescue("min_interval = \"0s\"");
    let mut host = plan.start_under(&["unshare", "--mount", "sh", "-c", &script]);
    host.wait("fragwatch_klog_roundtrip_success", 1.0);
    let impaired = |host: &Host| part(host, "rescue").as_deref() == Some("impaired");

    stand_in.stop();
    refusals.happens_to(kind);
    host.wait_for_incident();
    // Records are read and counted, long before the write is reported to hang and after.
    const MATCHES: &str = "fragwatch_klog_matches_total{rule=\"test_event\"}";
    refusals.happens_to(kind);
    host.wait(MATCHES, 2.0);
    until_within(4 * PATIENCE, "the hang is reported", &host, || {
        impaired(&host)
    });
    host.wait("fragwatch_part_severity{part=\"rescue\"}", 1.0);
    let (code, text) = check(&host);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("has not returned for"), "{text}");
    let (_, text) = ask(&host, &["status"]);
    assert!(text.contains("has not returned for"), "{text}");
    refusals.happens_to(kind);
    host.wait(MATCHES, 3.0);
    assert_eq!(host.incidents(), 1.0);
    assert_eq!(part(&host, "kernel_log").as_deref(), Some("up"));
    // On a busy machine one of its readers may be late.
    until("the detector is up", &host, || {
        part(&host, "stall_detector").as_deref() == Some("up")
    });

    // The write returns; the kernel has dropped nothing, and that is seen.
    stand_in.resume();
    host.wait_done("drop_slab", "failed");
    until("it is well", &host, || {
        part(&host, "rescue").as_deref() == Some("up")
    });

    // The end does not wait for the next one, and what was accepted is kept.
    stand_in.stop();
    refusals.happens_to(kind);
    host.wait(MATCHES, 4.0);
    host.daemon.signal(Signal::TERM);
    assert_eq!(host.daemon.wait(PATIENCE).code(), Some(0));
    let incident = incidents(&host).remove(0);
    assert_eq!(incident["matches"], 4, "{incident:#}");
    assert_eq!(incident["actions"], 1, "{incident:#}");
}

/// The kernel stamps its records by a clock of its own. A time namespace moves ours away from it, as
/// months do (time_namespaces(7)).
#[test]
fn the_age_of_a_record_is_told_by_the_kernels_own_clock() {
    let _alone = alone();
    let mut event = support::require!(Event::new());
    support::require!(support::tools::have("unshare"));
    let in_namespace = |offset: &str, plan: &Plan| {
        let host = plan.start_under(&["unshare", "--time", "--monotonic", offset]);
        host.wait("fragwatch_klog_roundtrip_success", 1.0);
        host
    };
    let plan = Plan::of(event.pattern());
    event.happens();
    let host = in_namespace("1000", &plan);
    host.wait_for_incident();
    drop(host);
    // Older than what is looked back for, though not by our clock.
    thread::sleep(Duration::from_secs(11));
    let host = in_namespace("-60", &plan);
    assert_eq!(host.incidents(), 0.0, "{}", host.daemon.stderr());
}
