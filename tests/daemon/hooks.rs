//! `defrag.hook_before` and `defrag.hook_after`: a command that was started is followed by the other
//! one, however the run ends; and what fragwatch itself fails at is held against no image.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::maintenance::{ALWAYS, checksum, runs, why_not};
use crate::support::{self, Bed, MIB, RunningDaemon, guest, tools};
use crate::watch::{Etc, PATIENCE, Watch, until};

/// A daemon whose runs are slow and whose hooks write a line each to a file.
struct Hooked {
    watch: Watch,
    image: PathBuf,
    log: PathBuf,
    // Goes last.
    _bed: Bed,
}

impl Hooked {
    /// `before` and `after` are scripts; `more` is added to `[defrag]`.
    fn start(before: &str, after: &str, more: &str) -> support::Here<Hooked> {
        tools::have("xfs_fsr")?;
        let bed = Bed::xfs()?;
        let image = bed.path().join("vm.raw");
        guest::random_direct_writes(&image, 256 * MIB, 8000);
        bed.sync();
        let etc = Etc::new();
        let log = etc.join("hooks.log");
        let hooks = format!(
            "[defrag]\n{more}\nhook_before = [\"/bin/sh\", \"-c\", {before:?}]\n\
             hook_after = [\"/bin/sh\", \"-c\", {after:?}]\n"
        );
        let text = ALWAYS.replace("[defrag]\n", &hooks);
        let text = text.replace("LOG", log.to_str().unwrap());
        etc.configure(&[bed.path()], &text);
        let watch = Watch::start_with_state(etc);
        Ok(Hooked {
            watch,
            image,
            log,
            _bed: bed,
        })
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_for(&self, line: &str) {
        until(line, || {
            self.log().lines().any(|it| it == line).then_some(())
        });
    }

    fn wait_for_run(&self) {
        self.watch.until("a run", |now| {
            now.value("fragwatch_defrag_active", &[]) == Some(1.0)
        });
        self.wait_for("before");
        until("its process", || {
            let children = crate::watch::children(self.watch.daemon.pid());
            (children.len() >= 2).then_some(())
        });
    }

    fn notes(&self) -> usize {
        let directory = fs::read_dir(self.watch.etc.join("")).unwrap();
        let names = directory.flatten().map(|entry| entry.file_name());
        names
            .filter(|name| name.to_string_lossy().starts_with("running-"))
            .count()
    }

    fn restart(&mut self) {
        self.watch.daemon = RunningDaemon::spawn(&mut self.watch.etc.run(), self.watch.etc.address);
    }
}

const BEFORE: &str = "echo before >> LOG";
const AFTER: &str = "echo after $FRAGWATCH_ENDING $FRAGWATCH_OUTCOME >> LOG";
const SLOW: &str = "bandwidth = \"1MiB/s\"";

#[test]
fn a_pause_ends_a_run_with_its_hook() {
    let it = support::require!(Hooked::start(BEFORE, AFTER, SLOW));
    it.wait_for_run();
    let before = checksum(&it.image);
    assert!(it.watch.daemon.ask("pause").status().unwrap().success());
    it.wait_for("after paused stopped");
    until("its row", || {
        (runs(&it.watch).pop()?.outcome.as_str() == "stopped").then_some(())
    });
    until("no note is left", || (it.notes() == 0).then_some(()));
    assert_eq!(checksum(&it.image), before);
}

#[test]
fn a_window_that_closes_ends_a_run_with_its_hook() {
    let it = support::require!(Hooked::start(BEFORE, AFTER, SLOW));
    it.wait_for_run();
    let text = fs::read_to_string(it.watch.etc.file()).unwrap();
    let (text, _) = text.split_once("[[maintenance.window]]").unwrap();
    it.watch.etc.write(text);
    it.watch.daemon.signal(Signal::HUP);
    it.wait_for("after window_closed stopped");
    // A reload changes the command for runs to come, not for the one under way.
    assert_eq!(it.log(), "before\nafter window_closed stopped\n");
}

#[test]
fn the_end_of_the_daemon_waits_for_hook_after() {
    let after = format!("sleep 3; {AFTER}");
    let mut it = support::require!(Hooked::start(BEFORE, &after, SLOW));
    it.wait_for_run();
    it.watch.daemon.signal(Signal::TERM);
    let status = it.watch.daemon.wait(PATIENCE);
    assert_eq!(status.code(), Some(0), "{status}");
    assert_eq!(it.log(), "before\nafter shutdown stopped\n");
    assert_eq!(it.notes(), 0);
    assert_eq!(runs(&it.watch).len(), 1);
}

#[test]
fn a_daemon_that_is_killed_leaves_hook_after_to_the_next_one() {
    let mut it = support::require!(Hooked::start(BEFORE, AFTER, SLOW));
    it.wait_for_run();
    it.watch.daemon.signal(Signal::KILL);
    it.watch.daemon.wait(PATIENCE);
    assert_eq!(it.log(), "before\n");
    // The command was taken with the settings of the run.
    it.watch.etc.configure(&[it.image.parent().unwrap()], "");
    it.restart();
    it.wait_for("after interrupted interrupted");
    until("its row", || {
        (runs(&it.watch).pop()?.outcome.as_str() == "interrupted").then_some(())
    });
    until("no note is left", || (it.notes() == 0).then_some(()));
    assert_eq!(runs(&it.watch).len(), 1);
}

#[test]
fn a_hook_before_that_outlives_its_daemon_is_waited_for() {
    // It ends with the directory of a test that failed, too.
    let before = "echo before >> LOG; while [ -e LOG ] && [ ! -e LOG.go ]; do sleep 0.05; done; \
                  [ ! -e LOG ] || echo down >> LOG";
    let mut it = support::require!(Hooked::start(before, AFTER, SLOW));
    it.wait_for("before");
    // The note of the process is written a moment after its start.
    until("its process is noted", || {
        let directory = fs::read_dir(it.watch.etc.join("")).ok()?;
        let mut notes = directory.flatten().filter(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with("running-")
        });
        let text = fs::read_to_string(notes.next()?.path()).ok()?;
        (!text.contains("\"process\":null")).then_some(())
    });
    it.watch.daemon.signal(Signal::KILL);
    it.watch.daemon.wait(PATIENCE);
    it.restart();
    it.watch
        .until("the first sweep", |now| now.swept().is_some());
    until("that the plan knows", || {
        (why_not(&it.watch, &it.image) == "not_ready").then_some(())
    });
    assert_eq!(it.log(), "before\n");
    fs::write(it.log.with_extension("log.go"), "").unwrap();
    it.wait_for("after interrupted interrupted");
    assert!(it.log().starts_with("before\ndown\nafter"), "{}", it.log());
}

#[test]
fn a_hook_before_that_cannot_be_started_has_nothing_after_it() {
    let it = support::require!(Hooked::start(BEFORE, AFTER, SLOW));
    it.wait_for_run();
    assert!(it.watch.daemon.ask("pause").status().unwrap().success());
    it.wait_for("after paused stopped");
    let text = fs::read_to_string(it.watch.etc.file()).unwrap();
    let text = text.replace("hook_before = [\"/bin/sh\"", "hook_before = [\"/nowhere\"");
    it.watch.etc.write(&text);
    it.watch.daemon.signal(Signal::HUP);
    it.watch
        .daemon
        .wait_for_stderr("configuration reloaded", PATIENCE);
    assert!(it.watch.daemon.ask("resume").status().unwrap().success());
    until("the run that was not begun", || {
        let runs = runs(&it.watch);
        runs.iter()
            .find(|run| run.outcome.as_str() == "refused")
            .map(drop)
    });
    assert_eq!(it.log(), "before\nafter paused stopped\n");
}

#[test]
fn a_half_edited_file_does_not_touch_runs() {
    let bed = support::require!(Bed::xfs());
    support::require!(tools::have("xfs_fsr"));
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 16 * MIB, 4096);
    bed.sync();
    let etc = Etc::new();
    etc.configure(&[bed.path()], ALWAYS);
    fs::write(etc.join("paused"), "").unwrap();
    let watch = Watch::start_with_state(etc);
    until("that it is paused", || {
        (why_not(&watch, &image) == "paused").then_some(())
    });
    // Edited, not reloaded.
    watch.etc.write("[defrag]\ndry_run = true\nengin");
    assert!(watch.daemon.ask("resume").status().unwrap().success());
    let run = until("its row", || runs(&watch).pop());
    assert_eq!(run.outcome.as_str(), "improved", "{run:?}");
}

/// Leaves no block free, and until it is dropped takes those that are freed later: ext4 holds blocks for
/// files that grow, and frees those of removed files when it commits, each five seconds.
struct Full(Arc<AtomicBool>, Option<thread::JoinHandle<()>>);

impl Full {
    fn new(directory: &Path) -> Full {
        let mut file = fs::File::create(directory.join("filler")).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 1 << 16]).is_ok() {}
        file.sync_all().unwrap();
        let directory = directory.to_owned();
        // As a note takes them, by files of their own.
        let block = move |n: u32| {
            let mut file = fs::File::create(directory.join(format!("filler.{n}")))?;
            std::io::Write::write_all(&mut file, &[0; 512])?;
            file.sync_all()
        };
        let done = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&done);
        let mut number = 0;
        let thread = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                match block(number) {
                    Ok(()) => number += 1,
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        // Two commits.
        thread::sleep(Duration::from_secs(11));
        Full(done, Some(thread))
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().map(thread::JoinHandle::join);
    }
}

#[test]
fn a_full_state_directory_is_held_against_no_image() {
    let bed = support::require!(Bed::xfs());
    support::require!(tools::have("xfs_fsr"));
    let state = support::require!(Bed::ext4());
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 16 * MIB, 4096);
    bed.sync();
    let etc = Etc::new();
    etc.configure(&[bed.path()], ALWAYS);
    fs::write(state.path().join("paused"), "").unwrap();
    let mut command = etc.run();
    command.env("STATE_DIRECTORY", state.path());
    let daemon = RunningDaemon::spawn(&mut command, etc.address);
    let watch = Watch { daemon, etc };
    watch.until("the first sweep", |now| now.swept().is_some());
    let full = Full::new(state.path());
    // The pause is lifted in memory; that it cannot be removed from a full disk is no matter.
    let _ = watch.daemon.ask("resume").status().unwrap();
    until("that the plan knows", || {
        (why_not(&watch, &image) == "not_ready").then_some(())
    });
    watch.sweeps(7);
    let log = watch.daemon.stderr();
    let told = log.matches("no defragmentation can begin").count();
    assert_eq!(told, 1, "{log}");
    drop(full);
    fs::remove_file(state.path().join("filler")).unwrap();
    assert_eq!(runs(&watch).len(), 0);
}
