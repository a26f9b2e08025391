//! What the daemon does by itself in a window with images that are large, that a guest uses, or that
//! cannot be had.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use fragwatch::internals::model::RunRecord;

use crate::maintenance::{ALWAYS, checksum, planned, runs, why_not};
use crate::scrape::Scrape;
use crate::support::child::Child;
use crate::support::emergency::{DEADLOCK, in_a_file};
use crate::support::script::script;
use crate::support::{self, Bed, MIB, Stall, guest, tools};
use crate::watch::{Etc, PATIENCE, Watch, until};

/// Ten times as long as for anything else: much is copied here, and not fast where many tests run.
fn slowly<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    for _ in 0..9 {
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < deadline {
            if let Some(value) = poll() {
                return value;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
    until(what, poll)
}

fn improved(now: &Scrape, engine: &str) -> Option<f64> {
    let labels = [("engine", engine), ("outcome", "improved")];
    now.value("fragwatch_defrag_runs_total", &labels)
}

fn severity(watch: &Watch, image: &Path) -> Option<f64> {
    watch.scrape().of_image("fragwatch_image_severity", image)
}

fn the_run(watch: &Watch) -> RunRecord {
    until("its row in the history", || runs(watch).pop())
}

#[test]
fn an_image_of_half_a_gigabyte_from_threshold_to_one_extent() {
    support::require!(tools::have("xfs_fsr"));
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 512 * MIB, 131_072);
    bed.sync();
    let before = tools::checksum(&image);
    let from = tools::xfs_io_stat_nextents(&image);
    assert!(from > 130_000, "{from}");
    // The final swap is not what is looked at here.
    let config = ALWAYS.replace("[defrag]\n", "[defrag]\nmax_swap_stall = \"10m\"\n");
    let watch = Watch::start(&[bed.path()], &config);
    slowly("a defragmentation", || {
        (improved(&watch.scrape(), "xfs_fsr")? > 0.0).then_some(())
    });
    let to = tools::xfs_io_stat_nextents(&image);
    // One, or as many as allocation groups make of it.
    assert!(to <= 4, "{to}");
    assert_eq!(tools::checksum(&image), before);
    let run = the_run(&watch);
    assert_eq!((run.from.0, run.to.0), (from, to), "{run:?}");
    assert_eq!(
        (run.engine.as_str(), run.outcome.as_str()),
        ("xfs_fsr", "improved")
    );
    assert!(run.bytes.0 >= 512 * MIB, "{run:?}");
    assert_eq!(run.stalls, None, "nobody had it open");
    let now = watch.until("it is ok again", |now| {
        now.of_image("fragwatch_image_severity", &image) == Some(0.0)
    });
    let removed = now.value("fragwatch_defrag_extents_removed_total", &[]);
    assert_eq!(removed, Some((from - to) as f64));
    assert_eq!(now.extents(&image), Some(to as f64));
}

/// Writes all of an image in 4 KiB blocks, without order, over and over, and reads back what it
/// wrote, as a VM's own verification would.
fn verifying_guest(image: &Path) -> support::Here<Child> {
    let fio = tools::have("fio")?;
    let mut command = Command::new(fio);
    command
        .args(["--name=guest", "--rw=randwrite", "--bs=4k", "--direct=1"])
        .args(["--size=64m", "--loops=1000", "--rate_iops=400"])
        .args([
            "--verify=crc32c",
            "--verify_backlog=256",
            "--verify_fatal=1",
        ])
        .args(["--allow_file_create=0", "--thread", "--randseed=7"])
        .arg(format!("--filename={}", image.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Child::spawn(&mut command).map_err(support::skip::NotHere::because)
}

#[test]
fn the_image_of_a_vm_that_never_stops_goes_from_critical_to_ok() {
    let bed = support::require!(Bed::xfs_with(&["-m", "reflink=1"]));
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 64 * MIB, 16_384);
    bed.sync();
    let from = tools::xfs_io_stat_nextents(&image);
    let mut guest = support::require!(verifying_guest(&image));
    let etc = Etc::new();
    let config = ALWAYS.replace("10000000", "10000");
    etc.configure(&[bed.path()], &config);
    // Until it was seen how bad it is.
    fs::write(etc.join("paused"), "").unwrap();
    let watch = Watch::start_with_state(etc);
    watch.until("it is critical, and in use", |now| {
        let of_image = |name: &str| now.of_image(name, &image);
        of_image("fragwatch_image_severity") == Some(2.0)
            && of_image("fragwatch_image_in_use") == Some(1.0)
    });
    assert_eq!(why_not(&watch, &image), "paused");
    let resumed = watch.daemon.ask("resume").output().unwrap();
    assert!(resumed.status.success(), "{resumed:?}");

    slowly("it is ok", || {
        (severity(&watch, &image)? == 0.0).then_some(())
    });
    assert_eq!(
        guest.wait(std::time::Duration::ZERO),
        None,
        "it has read what it has not written"
    );
    // That it is ok is seen before the run has ended.
    let run = the_run(&watch);
    let now = watch.until("it is told", |now| improved(now, "online") == Some(1.0));
    assert_eq!(now.of_image("fragwatch_image_in_use", &image), Some(1.0));
    assert_eq!(
        (run.engine.as_str(), run.outcome.as_str()),
        ("online", "improved")
    );
    let stalls = run.stalls.unwrap();
    assert!(
        stalls.calls > 0 && stalls.longest <= stalls.total,
        "{run:?}"
    );
    // The fewer, the more processor time the machine leaves between two writes of the guest.
    assert!(
        run.from.0 > 10_000 && run.to.0 < run.from.0 / 4,
        "{from} {run:?}"
    );
    assert_eq!(improved(&now, "xfs_fsr"), Some(0.0));
    // It goes on as before.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(
        guest.wait(std::time::Duration::ZERO),
        None,
        "it has read what it has not written"
    );
}

/// Somebody has the image whom /proc does not show, until it goes out of scope.
struct Unseen(#[expect(dead_code, reason = "held, not used")] File);

impl Unseen {
    fn of(image: &Path) -> Unseen {
        let losetup = || Command::new("losetup");
        let output = losetup().args(["--find", "--show"]).arg(image).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        let device = String::from_utf8(output.stdout).unwrap();
        // From here on it goes with its last user, should this test be killed.
        let held = File::open(device.trim());
        let detached = losetup().args(["--detach", device.trim()]).status();
        assert!(detached.unwrap().success());
        Unseen(held.unwrap())
    }
}

fn fragmented() -> support::Here<(Bed, std::path::PathBuf)> {
    tools::have("xfs_fsr")?;
    let bed = Bed::xfs_with(&["-m", "reflink=1"])?;
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 16 * MIB, 4096);
    bed.sync();
    Ok((bed, image))
}

#[test]
fn whom_only_the_guards_see_makes_it_the_next_engine_s_turn() {
    let (bed, image) = support::require!(fragmented());
    let before = checksum(&image);
    let unseen = Unseen::of(&image);
    let watch = Watch::start(&[bed.path()], ALWAYS);
    slowly("a defragmentation", || {
        (improved(&watch.scrape(), "online")? > 0.0).then_some(())
    });
    let run = the_run(&watch);
    assert_eq!(
        (run.engine.as_str(), run.outcome.as_str()),
        ("online", "improved")
    );
    let why = "not by xfs_fsr: in use by somebody that /proc does not show";
    assert!(run.reason.starts_with(why), "{run:?}");
    assert_eq!(improved(&watch.scrape(), "xfs_fsr"), Some(0.0));
    drop(unseen);
    assert_eq!(checksum(&image), before);
}

/// Pieces between holes, on an image in use whose map is too long to be read: it may be tried once,
/// before its map was sampled, and then not for days.
#[test]
fn what_brings_little_is_not_tried_again_and_again() {
    let bed = support::require!(Bed::fragmented(100_000));
    let image = bed.path().join("vm.img");
    let open = File::open(&image).unwrap();
    let short = "map_interval = \"1h\"\nmap_max_extents = 1000\n[thresholds]";
    let config = ALWAYS.replace("map_interval = \"never\"\n[thresholds]", short);
    let config = config.replace("[defrag]\n", "[defrag]\nkeep_free = \"0%\"\n");
    let watch = Watch::start(&[bed.path()], &config);
    let sampled = |now: &Scrape| {
        now.value(
            "fragwatch_probe_duration_seconds_count",
            &[("method", "map")],
        )
    };
    slowly("a sample of its map", || {
        (sampled(&watch.scrape())? >= 1.0).then_some(())
    });
    until("that the plan knows", || {
        (why_not(&watch, &image) == "little_gain").then_some(())
    });
    watch.sweeps(8);
    let rows = runs(&watch);
    assert!(rows.len() <= 1, "{rows:?}");
    for row in &rows {
        assert!(row.reason.starts_with("little to gain: "), "{row:?}");
    }
    let queue = watch.scrape().value("fragwatch_defrag_queue", &[]);
    assert_eq!(queue, Some(0.0));
    drop(open);
}

/// Somebody opens the image while xfs_fsr works: in the same window the next engine has its turn.
#[test]
fn who_opens_an_image_makes_it_the_next_engine_s_turn() {
    let (bed, image) = support::require!(fragmented());
    let before = checksum(&image);
    let etc = Etc::new();
    etc.configure(&[bed.path()], ALWAYS);
    let (bin, flag) = (etc.join("bin"), etc.join("opened"));
    fs::create_dir(&bin).unwrap();
    let stand_in = format!("exec 3<\"$2\"; touch {}; exec sleep 600", flag.display());
    script(&bin.join("xfs_fsr"), &stand_in);
    let path = std::env::var("PATH").unwrap();
    let mut command = etc.run();
    command.env("PATH", format!("{}:{path}", bin.display()));
    let daemon = support::RunningDaemon::spawn(&mut command, etc.address);
    let watch = Watch { daemon, etc };
    slowly("the stand-in of xfs_fsr", || flag.exists().then_some(()));
    let open = File::open(&image).unwrap();
    slowly("a defragmentation", || {
        (improved(&watch.scrape(), "online")? > 0.0).then_some(())
    });
    let run = the_run(&watch);
    let came = (run.engine.as_str(), run.outcome.as_str());
    assert_eq!(came, ("online", "improved"), "{run:?}");
    let us = format!("(pid {}) needed it", std::process::id());
    assert!(run.reason.starts_with("not by xfs_fsr: "), "{run:?}");
    assert!(run.reason.ends_with(&us), "{run:?}");
    drop(open);
    assert_eq!(checksum(&image), before);
}

#[test]
fn what_cannot_be_had_is_put_off_and_the_plan_says_why() {
    let (bed, image) = support::require!(fragmented());
    let unseen = Unseen::of(&image);
    let only = ALWAYS.replace("[defrag]\n", "[defrag]\nengines = [\"xfs_fsr\"]\n");
    let watch = Watch::start(&[bed.path()], &only);
    let run = the_run(&watch);
    assert_eq!(run.outcome.as_str(), "refused", "{run:?}");
    let planned = planned(&watch, &image);
    let why = &planned["why_not"];
    assert_eq!(why["code"], "put_off", "{planned}");
    let text = why["text"].as_str().unwrap();
    assert!(text.starts_with("put off until "), "{text}");
    assert!(text.contains("somebody that /proc does not show"), "{text}");
    // It is not asked for again and again.
    watch.sweeps(8);
    assert_eq!(runs(&watch).len(), 1);
    drop(unseen);
}

#[test]
fn an_incident_ends_a_run_and_the_plan_says_so() {
    let bed = support::require!(Bed::xfs());
    support::require!(tools::have("xfs_fsr"));
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 256 * MIB, 8000);
    bed.sync();
    let etc = Etc::new();
    let log = etc.join("kern.log");
    fs::write(&log, "").unwrap();
    let slow = ALWAYS.replace("[defrag]\n", "[defrag]\nbandwidth = \"1MiB/s\"\n");
    let klog = format!("[klog]\nkmsg = false\nfiles = [{log:?}]\nfiles_may_rescue = true\n{slow}");
    // It acts on nothing, and nothing but the file starts it.
    let rescue = "[rescue]\ndry_run = true\nstall_after = \"never\"\nquiet_after = \"10m\"\n";
    let text = etc.text(&[bed.path()], &klog);
    etc.write(&text.replace("[rescue]\nenabled = false\n", rescue));
    let watch = Watch::start_with(etc);
    let active = |now: &Scrape| now.value("fragwatch_defrag_active", &[]) == Some(1.0);
    watch.until("a run", active);
    let up = |now: &Scrape| {
        let mut sources = now.named("fragwatch_klog_source_up");
        sources.any(|one| one.label("source") == log.to_str() && one.value == 1.0)
    };
    watch.until("the log is followed", up);
    let file = fs::OpenOptions::new().append(true).open(&log);
    file.unwrap()
        .write_all(in_a_file(DEADLOCK).as_bytes())
        .unwrap();
    watch.until("an incident", |now| {
        now.value("fragwatch_rescue_active", &[]) == Some(1.0)
    });
    let run = the_run(&watch);
    assert_eq!(run.outcome.as_str(), "stopped", "{run:?}");
    assert_eq!(run.reason, "a rescue incident began");
    assert_eq!(why_not(&watch, &image), "incident");
}

#[test]
fn an_image_on_a_file_system_that_hangs_is_in_the_plan_too() {
    let mut stall = support::require!(Stall::new());
    let image = stall.path().join("a.raw");
    // Without a hole: it would be as good as can be.
    guest::random_direct_writes(&image, 8 * MIB, 2048);
    stall.bed().sync();
    let etc = Etc::new();
    etc.configure(&[&stall.path()], ALWAYS);
    fs::write(etc.join("paused"), "").unwrap();
    let watch = Watch::start_with_state(etc);
    assert_eq!(why_not(&watch, &image), "paused");
    let mount = stall.bed().path().to_owned();
    watch.between_sweeps(&mount, || {
        stall.cold();
        stall.stop();
    });
    watch.until("the stall", |now| now.stalled(&mount) == Some(1.0));
    let resumed = watch.daemon.ask("resume").output().unwrap();
    assert!(resumed.status.success(), "{resumed:?}");
    let planned = planned(&watch, &image);
    assert_eq!(planned["why_not"]["code"], "stalled", "{planned}");
    stall.resume();
    watch.until("its end", |now| now.stalled(&mount) == Some(0.0));
}
