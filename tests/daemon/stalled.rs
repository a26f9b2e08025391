//! File systems that do not answer: each takes nothing with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{self, Bed, MIB, RunningDaemon, Stall, Writer, fragwatch, guest, tools};
use crate::watch::{Etc, OFTEN, PATIENCE, Process, WHEN_ASKED, Watch, until};

/// Empties the memory of the stall, has `prepare` fetch some of it again, and stops it: all that
/// between two sweeps.
fn hang(watch: &Watch, stall: &mut Stall, prepare: impl FnOnce()) {
    let mount = stall.bed().path().to_owned();
    watch.between_sweeps(&mount, || {
        stall.cold();
        prepare();
        stall.stop();
    });
}

fn stalls(watch: &Watch, mount: &Path) {
    watch.until("the stall", |now| now.stalled(mount) == Some(1.0));
}

fn answers(watch: &Watch, mount: &Path) {
    watch.until("its end", |now| now.stalled(mount) == Some(0.0));
}

/// Those that wait for a disk.
fn hanging(processes: &[Process]) -> usize {
    let hangs = |process: &&Process| process.state() == Some('D');
    processes.iter().filter(hangs).count()
}

/// Waits until so many hang and all others have ended. That takes them a moment, in which they wait
/// as well: the kernel takes down their watch of directories (fsnotify_destroy_group).
fn are_left_hanging(processes: &[Process], number: usize) {
    until("the end of those that do not hang", || {
        let ended = processes.iter().filter(|process| process.has_ended());
        (ended.count() + number == processes.len()).then_some(())
    });
    assert_eq!(hanging(processes), number, "nothing can help it");
}

/// A stall and a sound file system with an image each.
fn beds() -> support::Here<(Stall, Bed, [PathBuf; 2])> {
    let (stall, sound) = (Stall::new()?, Bed::xfs()?);
    let images = [stall.path(), sound.path().to_owned()].map(|dir| dir.join("a.raw"));
    guest::alternate_blocks(&images[0], 100);
    guest::random_direct_writes(&images[1], 256 * MIB, 50);
    Ok((stall, sound, images))
}

#[test]
fn a_stall_takes_nothing_with_it() {
    let (mut stall, sound, [stuck, follows]) = support::require!(beds());
    let mount = stall.bed().path().to_owned();
    let watch = Watch::start(&[&stall.path(), sound.path()], OFTEN);
    let before = watch.scrape();
    assert_eq!(before.extents(&stuck), Some(100.0));
    assert_eq!(before.stalled(&mount), Some(0.0));
    let helpers = watch.helpers();
    assert_eq!(helpers.len(), 2);

    hang(&watch, &mut stall, || {});
    stalls(&watch, &mount);
    // Answers are asked for all the time from here on, over several sweeps.
    let asker = Asker::start(&watch);
    let writer = Writer::start(&follows, Some(500));
    let mut count = watch.scrape().extents(&follows);
    for _ in 0..4 {
        // The other one is sampled on.
        let now = watch.until("its next count", |now| now.extents(&follows) > count);
        count = now.extents(&follows);
        assert_eq!(now.stalled(sound.path()), Some(0.0));
        // What was known stays.
        assert_eq!(now.stalled(&mount), Some(1.0));
        assert_eq!(now.extents(&stuck), Some(100.0));
        let sum = now.of_filesystem("fragwatch_filesystem_extents", &mount);
        assert_eq!(sum, Some(100.0));
        // However many sweeps there are, one call hangs and no other is made.
        assert_eq!(watch.helpers(), helpers);
        assert_eq!(hanging(&helpers), 1);
        assert_eq!(watch.daemon.get("/healthz").status, 200);
    }
    writer.stop();
    asker.assert_answered_soon();
    let landing = watch.daemon.get("/").body;
    assert!(landing.contains("has not answered for"), "{landing}");
    assert!(watch.scrape().errors() >= before.errors() + 4.0);
    let said = watch.log("does not answer");
    let [line] = &said[..] else {
        panic!("{said:?}")
    };
    for part in [
        "ERROR",
        mount.to_str().unwrap(),
        stall.path().to_str().unwrap(),
    ] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }

    stall.resume();
    answers(&watch, &mount);
    watch.daemon.wait_for_stderr("answers again", PATIENCE);
    guest::alternate_blocks(&stall.path().join("b.raw"), 7);
    fs::File::create(&stuck).unwrap();
    let now = watch.until("new counts", |now| now.extents(&stuck) == Some(0.0));
    assert_eq!(now.extents(&stall.path().join("b.raw")), Some(7.0));
    assert_eq!(watch.helpers(), helpers, "the one that hung goes on");
    assert!(!watch.daemon.get("/").body.contains("has not answered"));
    assert_eq!(watch.log("does not answer").len(), 1);

    // Another stall is told anew.
    hang(&watch, &mut stall, || {});
    stalls(&watch, &mount);
    watch.sweeps(0);
    assert_eq!(watch.log("does not answer").len(), 2);
}

/// Every page that is led to from the first screen, from the table of images and from the chart.
fn pages(watch: &Watch) -> Vec<String> {
    let links = ["/", "/images"].map(|page| {
        let body = watch.daemon.get(page).body;
        let links = body.split("href=\"/").skip(1);
        let link =
            |text: &str| format!("/{}", text.split('"').next().unwrap().replace("&#38;", "&"));
        links.map(link).collect::<Vec<_>>()
    });
    let mut pages = links.concat();
    let charts = pages.iter().filter(|page| page.starts_with("/image?"));
    let charts: Vec<_> = charts
        .map(|page| page.replace("/image?", "/api/history?"))
        .collect();
    assert!(charts.len() >= 2, "{pages:?}");
    pages.extend(charts);
    pages.sort();
    pages.dedup();
    pages
}

#[test]
fn every_page_answers_during_a_stall_and_touches_nothing_of_it() {
    let (mut stall, sound, [stuck, _]) = support::require!(beds());
    let mount = stall.bed().path().to_owned();
    let watch = Watch::start(&[&stall.path(), sound.path()], OFTEN);
    let pages = pages(&watch);
    for page in ["/plan", "/runs", "/incidents", "/metrics", "/healthz"] {
        assert!(pages.iter().any(|it| it == page), "no {page} in {pages:?}");
    }
    hang(&watch, &mut stall, || {});
    stalls(&watch, &mount);
    let daemon = Process::of(watch.daemon.pid());
    let tasks = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", watch.daemon.pid())).unwrap();
        let states = tasks
            .flatten()
            .map(|task| support::stall::state(&task.path()));
        states.collect::<Vec<_>>()
    };
    for page in &pages {
        let answer = watch.daemon.get(page);
        assert_eq!(answer.status, 200, "{page}: {}", answer.body);
        assert!(
            !answer.body.contains("Not shown"),
            "{page}: {}",
            answer.body
        );
        // A request that had opened something there would wait for it as long as it hangs.
        assert!(!daemon.holds(&mount), "{page}: {:?}", daemon.descriptors());
    }
    // One that waits for the disk of the history ends at once.
    until("no task that hangs", || {
        (!tasks().contains(&Some('D'))).then_some(())
    });
    let first = watch.daemon.get("/").body;
    let sentence = format!("The file system {} has not answered for", mount.display());
    assert!(first.contains(&sentence), "{first}");
    // What was known of its images stays.
    let images = watch.daemon.get("/images").body;
    let name = stuck.file_name().unwrap().to_str().unwrap();
    assert_eq!(
        images.matches(&format!(">{name}</a>")).count(),
        2,
        "{images}"
    );
}

/// Resumes a stall before the daemon ends, whose own threads it keeps from ending.
struct Resumed<'s>(&'s Stall);

impl Drop for Resumed<'_> {
    fn drop(&mut self) {
        self.0.resume();
    }
}

#[test]
fn every_page_answers_while_the_disk_of_the_history_hangs() {
    let (stall, sound) = (
        support::require!(Stall::new()),
        support::require!(Bed::xfs()),
    );
    guest::alternate_blocks(&sound.path().join("a.raw"), 100);
    let etc = Etc::new();
    etc.configure(&[sound.path()], OFTEN);
    let state = stall.path();
    let mut command = fragwatch();
    command.arg("run").arg("--config").arg(etc.file());
    command
        .env("STATE_DIRECTORY", &state)
        .env("RUNTIME_DIRECTORY", etc.join(""));
    let watch = Watch {
        daemon: RunningDaemon::spawn(&mut command, etc.address),
        etc,
    };
    let database = state.join("history.db");
    watch.sweeps(2);
    until("the history", || {
        database.metadata().ok().filter(|it| it.len() > 0)
    });
    let file = fs::File::open(&database).unwrap();
    file.sync_all().unwrap();
    let resumed = Resumed(&stall);
    stall.stop();
    // What of it is in memory could still be read.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    for page in ["/", "/images", "/runs", "/incidents", "/plan"] {
        let answer = watch.daemon.get(page);
        assert_eq!(answer.status, 200, "{page}: {}", answer.body);
        let is_whole = page == "/plan";
        assert_eq!(
            !is_whole,
            answer.body.contains("its disk may hang"),
            "{page}: {}",
            answer.body
        );
    }
    watch.sweeps(1);
    assert!(watch.daemon.get("/images").body.contains(">a.raw</a>"));
    drop(resumed);
    until("its answer", || {
        let body = watch.daemon.get("/runs").body;
        (!body.contains("Not shown")).then_some(())
    });
}

/// Asks for /metrics fifty times.
struct Asker(thread::JoinHandle<Vec<Duration>>);

impl Asker {
    fn start(watch: &Watch) -> Asker {
        let address = watch.etc.address;
        Asker(thread::spawn(move || {
            let ask = |_| {
                thread::sleep(Duration::from_millis(60));
                let asked = Instant::now();
                let answer = support::http_get(address, "/metrics").unwrap();
                assert_eq!(answer.status, 200);
                asked.elapsed()
            };
            (0..50).map(ask).collect()
        }))
    }

    fn assert_answered_soon(self) {
        let mut times = self.0.join().unwrap();
        times.sort();
        // Less than a probe may take.
        assert!(times[24] <= Duration::from_millis(400), "{times:?}");
    }
}

#[test]
fn it_ends_and_starts_during_a_stall() {
    let (mut stall, sound, [stuck, well]) = support::require!(beds());
    let mount = stall.bed().path().to_owned();
    let mut watch = Watch::start(&[&stall.path(), sound.path()], OFTEN);
    hang(&watch, &mut stall, || {});
    stalls(&watch, &mount);
    let mut helpers = watch.helpers();
    watch.daemon.signal(Signal::TERM);
    assert_eq!(watch.daemon.wait(PATIENCE).code(), Some(0));
    are_left_hanging(&helpers, 1);

    // The next one knows nothing of it and says so; of the other it knows all.
    watch.daemon = RunningDaemon::start(&watch.etc.file(), watch.etc.address);
    stalls(&watch, &mount);
    let now = watch.scrape();
    assert_eq!(now.extents(&stuck), None);
    assert_eq!(
        now.extents(&well),
        Some(tools::xfs_io_stat_nextents(&well) as f64)
    );
    assert_eq!(watch.daemon.get("/healthz").status, 200);
    helpers.extend(watch.helpers());
    watch.daemon.signal(Signal::INT);
    assert_eq!(watch.daemon.wait(PATIENCE).code(), Some(0));

    // In the middle of its first sweep, which waits for the deadline.
    let patient = OFTEN.replace("1s", "30s");
    watch
        .etc
        .configure(&[&stall.path(), sound.path()], &patient);
    watch.daemon = RunningDaemon::start(&watch.etc.file(), watch.etc.address);
    let now = watch.until("the other images", |now| now.extents(&well).is_some());
    assert_eq!((now.swept(), now.stalled(&mount)), (None, None));
    helpers.extend(watch.helpers());
    watch.daemon.signal(Signal::TERM);
    assert_eq!(watch.daemon.wait(PATIENCE).code(), Some(0));

    are_left_hanging(&helpers, 3);
    stall.resume();
    until("the end of all helpers", || {
        helpers.iter().all(Process::has_ended).then_some(())
    });
}

#[test]
fn a_reload_during_a_stall_does_not_begin_a_second_call() {
    let (mut stall, sound, [stuck, well]) = support::require!(beds());
    let mount = stall.bed().path().to_owned();
    let (both, one) = ([&stall.path(), sound.path()], [sound.path()]);
    let watch = Watch::start(&both, OFTEN);
    hang(&watch, &mut stall, || {});
    stalls(&watch, &mount);
    let helpers = watch.helpers();

    // Who takes it out of the configuration wants to hear of it no more.
    watch.etc.configure(&one, OFTEN);
    watch.daemon.signal(Signal::HUP);
    let now = watch.until("its end", |now| !now.mentions(&mount));
    assert!(!now.mentions(&stuck) && now.extents(&well).is_some());
    watch.etc.configure(&both, OFTEN);
    watch.daemon.signal(Signal::HUP);
    stalls(&watch, &mount);
    watch.sweeps(1);
    assert_eq!(watch.helpers(), helpers);

    stall.resume();
    answers(&watch, &mount);
    watch.until("its image", |now| now.extents(&stuck) == Some(100.0));
}

#[test]
fn what_was_counted_before_the_hang_counts() {
    let (mut stall, sound, [a, _]) = support::require!(beds());
    let mount = stall.bed().path().to_owned();
    // A directory has its inode elsewhere: reading it hangs when its parent was read already.
    fs::create_dir(stall.path().join("apart")).unwrap();
    let b = stall.path().join("apart/b.raw");
    guest::alternate_blocks(&b, 30);
    let watch = Watch::start(&[&stall.path(), sound.path()], OFTEN);
    assert_eq!(watch.scrape().extents(&b), Some(30.0));

    hang(&watch, &mut stall, || {
        // In memory again, and other than it was.
        fs::remove_file(&a).unwrap();
        guest::alternate_blocks(&a, 60);
    });
    stalls(&watch, &mount);
    let now = watch.scrape();
    assert_eq!((now.extents(&a), now.extents(&b)), (Some(60.0), Some(30.0)));
    let said = until("its line in the log", || {
        Some(watch.log("does not answer")).filter(|said| !said.is_empty())
    });
    let [line] = &said[..] else {
        panic!("{said:?}")
    };
    assert!(
        line.contains(stall.path().join("apart").to_str().unwrap()),
        "{line}"
    );

    stall.resume();
    answers(&watch, &mount);
    let now = watch.sweeps(0);
    assert_eq!((now.extents(&a), now.extents(&b)), (Some(60.0), Some(30.0)));
    assert_eq!(now.named("fragwatch_image_extents").count(), 3);
}

#[test]
fn a_map_that_hangs_is_named_and_read_again() {
    let (mut stall, sound, [a, well]) = support::require!(beds());
    let mount = stall.bed().path().to_owned();
    fs::remove_file(&a).unwrap();
    // So many that reading the map may take longer than sweeps wait for their turn: the first of
    // them find the worker busy.
    guest::alternate_blocks(&a, 30_000);
    let more = OFTEN.replace("never", "2s");
    let watch = Watch::start(&[&stall.path(), sound.path()], &more);
    let fragments = |image| watch.scrape().of_image("fragwatch_image_fragments", image);
    until("both maps", || fragments(&a).and(fragments(&well)));
    hang(&watch, &mut stall, || {
        read_inode(&a);
    });
    stalls(&watch, &mount);
    watch.sweeps(2);
    assert_eq!(fragments(&a), Some(30_000.0), "the old one is served on");
    until("its name in the log", || {
        (!watch.log("does not answer").is_empty()).then_some(())
    });
    watch.sweeps(1);
    let said = watch.log("does not answer");
    let [line] = &said[..] else {
        panic!("{said:?}")
    };
    assert!(line.contains(a.to_str().unwrap()), "{line}");
    assert_eq!(watch.helpers().len(), 2);

    stall.resume();
    answers(&watch, &mount);
    fs::File::create(&a).unwrap();
    until("its new map", || (fragments(&a) == Some(0.0)).then_some(()));
}

/// Fetches all that a count needs. The extent map stays on disk.
fn read_inode(image: &Path) {
    fs::read_dir(image.parent().unwrap()).unwrap().count();
    fs::metadata(image).unwrap();
}

#[test]
fn a_map_that_hung_once_is_read_after_the_stall_though_the_interval_is_long() {
    let (mut stall, _sound, [a, _]) = support::require!(beds());
    let mount = stall.bed().path().to_owned();
    fs::remove_file(&a).unwrap();
    // So many that nobody looks into the file.
    guest::alternate_blocks(&a, 12_000);
    let watch = Watch::start(&[&stall.path()], OFTEN);
    hang(&watch, &mut stall, || {
        read_inode(&a);
    });
    let seldom = OFTEN.replace("never", "12h");
    watch.etc.configure(&[&stall.path()], &seldom);
    watch.daemon.signal(Signal::HUP);
    stalls(&watch, &mount);
    watch.sweeps(1);
    stall.resume();
    let map = |now: &crate::scrape::Scrape| now.of_image("fragwatch_image_fragments", &a);
    watch.until("its map", |now| map(now) == Some(12_000.0));
}

#[test]
fn what_does_not_tell_its_size_is_a_stall_too() {
    let stall = support::require!(Stall::new());
    let sound = support::require!(Bed::xfs());
    let image = sound.path().join("a.raw");
    guest::alternate_blocks(&image, 10);
    // The file system below the stall: it passes statfs(2) on to its server.
    let below = backing_mount(stall.bed());
    let watch = Watch::start(&[&below, sound.path()], OFTEN);
    assert_eq!(watch.scrape().stalled(&below), Some(0.0));
    stall.stop();
    stalls(&watch, &below);
    fs::File::create(&image).unwrap();
    let now = watch.until("the other one", |now| now.extents(&image) == Some(0.0));
    assert_eq!(now.stalled(sound.path()), Some(0.0));
    let said = until("its line in the log", || {
        Some(watch.log("does not answer")).filter(|said| !said.is_empty())
    });
    let [line] = &said[..] else {
        panic!("{said:?}")
    };
    let named = format!("a probe on {} has hung", below.display());
    assert!(line.contains(&named), "{line}");
    stall.resume();
    answers(&watch, &below);
}

/// Where the file of a bed's loop device lies.
fn backing_mount(bed: &Bed) -> PathBuf {
    let file = format!("/sys/block/{}/loop/backing_file", bed.loop_device());
    let file = fs::read_to_string(file).unwrap();
    Path::new(file.trim_end()).parent().unwrap().to_owned()
}

#[test]
fn a_daemon_that_was_stopped_itself_does_not_blame_the_file_system() {
    let bed = support::require!(Bed::xfs());
    for n in 0..1000 {
        guest::alternate_blocks(&bed.path().join(format!("{n}.raw")), 1);
    }
    // Long enough for a helper that waits for a processor.
    let more = WHEN_ASKED.replace("10s", "2s");
    let watch = Watch::start(&[bed.path()], &more);
    for after in 0..6 {
        let before = watch.scrape().swept();
        watch.daemon.signal(Signal::HUP);
        // Each time in another part of its sweep, and for longer than a probe may take.
        thread::sleep(Duration::from_millis(5 * after));
        watch.daemon.signal(Signal::STOP);
        thread::sleep(Duration::from_millis(2200));
        watch.daemon.signal(Signal::CONT);
        watch.until("the end of the sweep", |now| now.swept() > before);
    }
    assert_eq!(watch.log("does not answer"), [""; 0]);
    assert_eq!(watch.scrape().errors(), 0.0);
}

#[test]
fn a_scan_reports_what_answers() {
    let (mut stall, sound, [stuck, well]) = support::require!(beds());
    let etc = Etc::new();
    etc.configure(&[&stall.path(), sound.path()], OFTEN);
    stall.cold();
    stall.stop();
    let scan = |argument: Option<&str>| {
        let mut command = fragwatch();
        let file = etc.file();
        command.arg("scan").arg("--config").arg(file).args(argument);
        let (told, end) = mpsc::channel();
        // Reads both pipes to their end, which must not wait for a helper that hangs.
        thread::spawn(move || told.send(command.output().unwrap()));
        let output = end.recv_timeout(PATIENCE).expect("it ends");
        assert_eq!(output.status.code(), Some(1));
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap())
    };
    let [table, said] = scan(None);
    let well = well.to_str().unwrap();
    assert!(
        table.contains("a.raw") && !table.contains(stuck.to_str().unwrap()),
        "{table}"
    );
    let lines: Vec<_> = said.lines().collect();
    let [line] = &lines[..] else { panic!("{said}") };
    let mount = stall.bed().path().to_str().unwrap();
    for part in [mount, "does not answer", stall.path().to_str().unwrap()] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }

    let [json, _] = scan(Some("--json"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["images"].as_array().unwrap().len(), 1);
    assert_eq!(json["images"][0]["path"], well);
    assert_eq!(json["errors"].as_array().unwrap().len(), 1);
    assert_eq!(json["errors"][0]["path"], mount);
}
