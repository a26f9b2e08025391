//! Random sequences of what happens to a daemon in its life, against a model of what must hold:
//! reloads of right, wrong and other configurations, pauses, windows, incidents, SIGTERM, kill -9,
//! and starts.
//!
//! - Each `hook_before` that was started is followed by a `hook_after`.
//! - No image is held back without a run that really failed.
//! - A pause that was confirmed is in force until it is lifted, and a restart does not forget it.
//! - A run that was recorded stays recorded.
//! - The rescue is armed whenever the daemon answers.
//! - No thread, descriptor or process is left over.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fragwatch::internals::history::Reader;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::emergency::{DEADLOCK, in_a_file};
use crate::support::random::Random;
use crate::support::{self, Bed, MIB, RunningDaemon, guest, tools};
use crate::watch::{Etc, until};

/// Sequences, shared by so many threads.
const SEQUENCES: u64 = 200;
const THREADS: u64 = 6;
/// What happens in one of them.
const STEPS: u64 = 5;
/// With `hook_after` to be waited for, and much else to do on the machine.
const END: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    ReloadValid,
    ReloadInvalid,
    ReloadOtherPath,
    Pause,
    Resume,
    CloseWindow,
    OpenWindow,
    Incident,
    Terminate,
    Kill,
    AwaitRun,
}

const STEP: [Step; 16] = [
    Step::ReloadValid,
    Step::ReloadInvalid,
    Step::ReloadOtherPath,
    Step::Pause,
    Step::Resume,
    Step::Resume,
    Step::CloseWindow,
    Step::OpenWindow,
    Step::OpenWindow,
    Step::Incident,
    Step::Terminate,
    Step::Kill,
    Step::AwaitRun,
    Step::AwaitRun,
    Step::AwaitRun,
    Step::AwaitRun,
];

/// The world of one sequence, and what must hold in it.
struct World {
    etc: Etc,
    daemon: RunningDaemon,
    paths: [PathBuf; 2],
    /// Which of the paths is watched.
    path: usize,
    open: bool,
    paused: bool,
    /// Runs that the history has shown.
    recorded: usize,
    /// Threads and descriptors after the first sweep of this daemon.
    rest: (usize, usize),
}

impl World {
    fn start(paths: [PathBuf; 2]) -> World {
        let etc = Etc::new();
        let log = etc.join("kern.log");
        fs::write(log, "").unwrap();
        etc.write(&configuration(&etc, &paths[0], true));
        let daemon = RunningDaemon::spawn(&mut etc.run(), etc.address);
        let mut world = World {
            etc,
            daemon,
            paths,
            path: 0,
            open: true,
            paused: false,
            recorded: 0,
            rest: (0, 0),
        };
        world.arrive();
        world
    }

    /// After a start.
    fn arrive(&mut self) {
        let status = until("the daemon's status", || self.status());
        assert_eq!(status["rescue"]["armed"], true, "{status}");
        // Until it has looked for the file it is paused in any case.
        until("the pause that it was left with", || {
            (self.status()?["paused"] == self.paused).then_some(())
        });
        // All its threads have been started by then.
        until("the first sweep", || {
            (!self.status()?["daemon"]["swept"].is_null()).then_some(())
        });
        self.rest = self.load();
    }

    fn status(&self) -> Option<Value> {
        let output = self.daemon.ask("status").arg("--json").output().unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Threads and descriptors of the daemon.
    fn load(&self) -> (usize, usize) {
        let count = |name: &str| {
            let directory = format!("/proc/{}/{name}", self.daemon.pid());
            fs::read_dir(directory).map_or(0, Iterator::count)
        };
        (count("task"), count("fd"))
    }

    fn thread_names(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.daemon.pid())).unwrap();
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
        tasks.flatten().filter_map(name).collect()
    }

    fn step(&mut self, step: Step, random: &mut Random) {
        match step {
            Step::ReloadValid => self.reload(),
            Step::ReloadInvalid => {
                fs::write(self.etc.file(), "[defrag]\nengin").unwrap();
                self.daemon.signal(Signal::HUP);
                thread::sleep(Duration::from_millis(random.below(200)));
                let text = self.text();
                fs::write(self.etc.file(), text).unwrap();
            }
            Step::ReloadOtherPath => {
                self.path = 1 - self.path;
                self.reload();
            }
            Step::Pause => self.pause(true),
            Step::Resume => self.pause(false),
            Step::CloseWindow => {
                self.open = false;
                self.reload();
            }
            Step::OpenWindow => {
                self.open = true;
                self.reload();
            }
            Step::Incident => {
                let log = self.etc.join("kern.log");
                let mut log = fs::OpenOptions::new().append(true).open(log).unwrap();
                log.write_all(in_a_file(DEADLOCK).as_bytes()).unwrap();
            }
            Step::Terminate => {
                self.daemon.signal(Signal::TERM);
                let status = self.daemon.wait(END);
                assert_eq!(status.code(), Some(0), "{}", self.daemon.stderr());
                self.restart();
            }
            Step::Kill => {
                self.daemon.signal(Signal::KILL);
                self.daemon.wait(END);
                self.restart();
            }
            Step::AwaitRun => self.await_run(),
        }
        thread::sleep(Duration::from_millis(random.below(400)));
        let runs = self.runs();
        assert!(runs.len() >= self.recorded, "{runs:?}");
        self.recorded = runs.len();
    }

    /// Waits for a run, if one may begin: the daemon plans every five seconds.
    fn await_run(&self) {
        let deadline = Instant::now() + Duration::from_secs(8);
        let runs = |status: Value| status["runs"].as_array().map_or(0, Vec::len) > 0;
        while self.open && !self.paused && Instant::now() < deadline {
            if self.status().is_some_and(runs) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn text(&self) -> String {
        configuration(&self.etc, &self.paths[self.path], self.open)
    }

    fn reload(&self) {
        self.etc.write(&self.text());
        self.daemon.signal(Signal::HUP);
    }

    fn restart(&mut self) {
        self.etc.write(&self.text());
        self.daemon = RunningDaemon::spawn(&mut self.etc.run(), self.etc.address);
        self.arrive();
    }

    fn pause(&mut self, paused: bool) {
        let verb = if paused { "pause" } else { "resume" };
        let output = self.daemon.ask(verb).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        self.paused = paused;
        let status = self.status().expect("a daemon that runs has a status");
        assert_eq!(status["paused"], paused, "{status}");
        assert_eq!(status["rescue"]["armed"], true, "{status}");
    }

    fn runs(&self) -> Vec<fragwatch::internals::model::RunRecord> {
        let database = self.etc.join("history.db");
        Reader::open(&database)
            .and_then(|reader| reader.runs(None, 1000))
            .unwrap_or_default()
    }

    /// Ends it all in peace and looks at what is left.
    /// Returns the number of commands that were started before a run.
    fn end(mut self) -> usize {
        // A run has two threads and a process with two pipes; a hook, a thread and a pipe. The threads
        // for calls that block stay for ten seconds after the last one (tokio).
        let most = (self.rest.0 + 8, self.rest.1 + 8);
        let deadline = Instant::now() + END;
        loop {
            let (threads, files) = self.load();
            if threads <= most.0 && files <= most.1 {
                break;
            }
            let threads = self.thread_names();
            assert!(
                Instant::now() < deadline,
                "{files} files of {most:?}: {threads:?}"
            );
            thread::sleep(Duration::from_millis(20));
        }
        self.daemon.signal(Signal::TERM);
        let status = self.daemon.wait(END);
        assert_eq!(status.code(), Some(0), "{}", self.daemon.stderr());
        let hooks = fs::read_to_string(self.etc.join("hooks.log")).unwrap_or_default();
        let mut open = false;
        for line in hooks.lines() {
            match line {
                "before" => {
                    assert!(!open, "two commands before: {hooks}");
                    open = true;
                }
                // A daemon that died in it runs it again.
                _ => open = false,
            }
        }
        assert!(!open, "no command after the last one: {hooks}");
        let allowed = ["improved", "stopped", "interrupted", "busy", "refused"];
        let allowed = BTreeSet::from(allowed);
        for run in self.runs() {
            assert!(allowed.contains(run.outcome.as_str()), "{run:?}");
        }
        let directory = self.etc.join("");
        let notes = fs::read_dir(&directory).unwrap().flatten();
        let notes = notes.filter(|it| it.file_name().to_string_lossy().starts_with("running-"));
        assert_eq!(notes.count(), 0, "{}", self.daemon.stderr());
        let marker = format!("STATE_DIRECTORY={}", directory.display());
        until("no process is left", || {
            let left = processes_with(marker.trim_end_matches('/'));
            left.is_empty().then_some(())
        });
        hooks.lines().filter(|line| *line == "before").count()
    }
}

/// Slow runs with hooks, an incident that is soon over, and windows as the sequence wants.
fn configuration(etc: &Etc, path: &std::path::Path, open: bool) -> String {
    let hooks = etc.join("hooks.log");
    let log = etc.join("kern.log");
    let window = "[[maintenance.window]]\ndays = [\"Mon\", \"Tue\", \"Wed\", \"Thu\", \"Fri\", \
                  \"Sat\", \"Sun\"]\nstart = \"00:00\"\nduration = \"24h\"\n";
    format!(
        "[images]\npaths = [{path:?}]\nmin_size = \"0B\"\n\
         [sampling]\ninterval = \"1s\"\nprobe_timeout = \"1s\"\nmap_interval = \"never\"\n\
         [metrics]\nlisten = \"{address}\"\n\
         [rescue]\ndry_run = true\nstall_after = \"never\"\nquiet_after = \"1s\"\nmin_interval = \"1s\"\n\
         [klog]\nkmsg = false\nfiles = [{log:?}]\nfiles_may_rescue = true\n\
         [thresholds]\n\
         warning = {{ extents = 1000, growth_per_day = \"never\", time_to_critical = \"never\" }}\n\
         critical = {{ extents = 10000000 }}\n\
         [defrag]\nmax_io_pressure = 100\nengines = [\"xfs_fsr\"]\nbandwidth = \"1MiB/s\"\n\
         hook_before = [\"/bin/sh\", \"-c\", \"echo before >> {hooks}\"]\n\
         hook_after = [\"/bin/sh\", \"-c\", \"echo after $FRAGWATCH_ENDING >> {hooks}\"]\n\
         {window}",
        address = etc.address,
        hooks = hooks.display(),
        window = if open { window } else { "" },
    )
}

/// Processes whose environment has this.
fn processes_with(marker: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let has_it = |name: &String| {
        let environment = fs::read(format!("/proc/{name}/environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == marker.as_bytes())
    };
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(has_it)
        .collect()
}

fn sequence(number: u64, paths: [PathBuf; 2]) -> usize {
    let mut random = Random::new(number);
    let began = Instant::now();
    let mut world = World::start(paths);
    let mut steps = Vec::new();
    for _ in 0..STEPS {
        let step = usize::try_from(random.below(STEP.len() as u64)).unwrap();
        let step = STEP[step];
        steps.push(step);
        world.step(step, &mut random);
    }
    // Shown if something below fails.
    eprintln!("{number}: {steps:?} {:.1} s", began.elapsed().as_secs_f64());
    world.end()
}

#[test]
fn whatever_happens_every_promise_is_kept() {
    support::require!(tools::have("xfs_fsr"));
    // There is one run at a time on a file system, so each thread has its own.
    let beds = (0..THREADS)
        .map(|_| Bed::xfs())
        .collect::<Result<Vec<_>, _>>();
    let beds = support::require!(beds);
    let next = AtomicU64::new(0);
    let runs = AtomicUsize::new(0);
    thread::scope(|scope| {
        for bed in &beds {
            let paths = ["one", "two"].map(|path| {
                let directory = bed.path().join(path);
                fs::create_dir(&directory).unwrap();
                guest::random_direct_writes(&directory.join("a.raw"), 64 * MIB, 4000);
                directory
            });
            let (next, runs) = (&next, &runs);
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= SEQUENCES {
                        return;
                    }
                    runs.fetch_add(sequence(number, paths.clone()), Ordering::Relaxed);
                }
            });
        }
    });
    let runs = runs.into_inner();
    eprintln!("{runs} runs in {SEQUENCES} sequences");
    // Else nothing was put to the test.
    assert!(runs as u64 > SEQUENCES / 4, "{runs}");
}
