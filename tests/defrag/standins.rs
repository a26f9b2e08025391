//! Programs that are called xfs_fsr and are not, or not as we know it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::support::child::Child;
use super::support::{self, Bed, MIB, guest, tools};
use super::{bed, config, defrag, finish, leftovers, processes_with, said, stand_in};

/// A bed with a fragmented image, and a script in the place of xfs_fsr.
struct Stage {
    bed: Bed,
    image: PathBuf,
    config: PathBuf,
    checksum: String,
    extents: u64,
}

impl Stage {
    fn new() -> support::Here<Stage> {
        let bed = bed(&[])?;
        let image = bed.path().join("vm.img");
        guest::random_direct_writes(&image, 4 * MIB, 1024);
        Ok(Stage {
            config: config(&bed, ""),
            checksum: tools::checksum(&image),
            extents: tools::xfs_io_stat_nextents(&image),
            image,
            bed,
        })
    }

    fn with(&self, script: &str) -> Command {
        let mut command = defrag(&self.image, &self.config);
        stand_in(&self.bed, &mut command, script);
        command
    }

    /// It says so, the image is as before, and nothing is left.
    fn left_alone(&self, said: &Value, outcome: &str, words: &str) {
        assert_eq!(said["outcome"], outcome, "{said}");
        let reason = said["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(words), "{said}");
        assert_eq!((&said["from"], &said["to"]), (&said["to"], &said["from"]));
        assert_eq!(said["to"], self.extents);
        assert_eq!(tools::checksum(&self.image), self.checksum);
        self.nothing_is_left();
    }

    fn nothing_is_left(&self) {
        // One that was killed may take a moment to go.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !processes_with(&self.image).is_empty() {
            let alive = processes_with(&self.image);
            assert!(Instant::now() < deadline, "{alive:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(leftovers(self.bed.path()).is_empty());
    }
}

#[test]
fn one_that_lies() {
    let stage = support::require!(Stage::new());
    let run = said(&mut stage.with("echo \"extents before:1024 after:1 DONE $2\""));
    stage.left_alone(&run, "unchanged", "");
}

#[test]
fn one_that_prints_nonsense() {
    let stage = support::require!(Stage::new());
    let script = "head --bytes=3000000 /dev/urandom; head --bytes=100000 /dev/urandom >&2";
    stage.left_alone(&said(&mut stage.with(script)), "unchanged", "");
}

#[test]
fn one_that_ends_at_once() {
    let stage = support::require!(Stage::new());
    let run = said(&mut stage.with("echo 'what is that?' >&2; exit 3"));
    stage.left_alone(&run, "failed", "ended with status 3: what is that?");
    let run = said(&mut stage.with("kill -SEGV $$"));
    stage.left_alone(&run, "failed", "ended by signal 11");
}

#[test]
fn one_that_cannot_be_started() {
    let stage = support::require!(Stage::new());
    let mut command = stage.with("exit 0");
    let program = stage.bed.path().parent().unwrap().join("bin/xfs_fsr");
    fs::write(&program, "#!/no/such/shell\n").unwrap();
    let run = said(&mut command);
    assert_eq!(run["outcome"], "failed", "{run}");
    let reason = run["reason"].as_str().unwrap();
    assert!(
        reason.contains("cannot be started: No such file"),
        "{reason}"
    );
    stage.nothing_is_left();
}

#[test]
fn one_of_other_words() {
    let stage = support::require!(Stage::new());
    let run = said(&mut stage.with("echo \"insufficient freespace for: $2: size=1: ignoring\""));
    stage.left_alone(&run, "no_space", "");
    let run = said(&mut stage.with("echo \"$2: file busy\""));
    stage.left_alone(&run, "busy", "");
    // From 6.12 on the error has the wrong sign, and the line of success follows.
    let refused = |error: &str| {
        let refused = format!("XFS_IOC_SWAPEXT failed: $2: {error}");
        stage.with(&format!(
            "echo \"{refused}\"; echo \"extents before:1024 after:1 DONE $2\""
        ))
    };
    let run = said(&mut refused("Unknown error -16"));
    stage.left_alone(&run, "busy", "");
    let run = said(&mut refused("Unknown error -28"));
    stage.left_alone(&run, "no_space", "");
    let run = said(&mut refused("Invalid argument"));
    stage.left_alone(&run, "failed", "Invalid argument");
    let run = said(&mut stage.with("echo \"$2: deferred\""));
    stage.left_alone(&run, "unchanged", "vm.img: deferred\"");
}

/// Somebody opens the image while xfs_fsr works: the next engine has its turn at once.
#[test]
fn one_that_has_to_give_way() {
    let stage = support::require!(Stage::new());
    let flag = stage.bed.path().parent().unwrap().join("opened");
    let script = format!("exec 3<\"$2\"; touch {}; exec sleep 600", flag.display());
    let mut command = stage.with(&script);
    command.args(["--engine", "online"]);
    let mut child = Child::spawn(&mut command).unwrap();
    wait_for(|| flag.exists());
    let open = fs::File::open(&stage.image).unwrap();
    let run = finish(&mut child);
    assert_eq!(run["outcome"], "improved", "{run}");
    assert_eq!(run["engine"], "online", "{run}");
    let passed = &run["passed_over"][0];
    assert_eq!(passed["engine"], "xfs_fsr", "{run}");
    let us = format!("(pid {}) needed it", std::process::id());
    assert!(passed["reason"].as_str().unwrap().ends_with(&us), "{run}");
    assert_eq!(tools::checksum(&stage.image), stage.checksum);
    stage.nothing_is_left();
    drop(open);
}

#[test]
fn one_that_hangs_and_does_not_listen() {
    let stage = support::require!(Stage::new());
    let flag = stage.bed.path().parent().unwrap().join("here");
    // With a child, which does not listen either.
    let script = format!(
        "trap '' TERM INT; (trap '' TERM; exec sleep 600) & touch {}; while :; do sleep 1; done",
        flag.display()
    );
    let mut child = Child::spawn(&mut stage.with(&script)).unwrap();
    wait_for(|| flag.exists());
    child.signal(Signal::TERM);
    let run = finish(&mut child);
    stage.left_alone(&run, "stopped", "shutdown");
}

#[test]
fn one_that_works_on_something_else() {
    let stage = support::require!(Stage::new());
    let other = stage.bed.path().join("other");
    let script = format!(
        "while :; do dd if=/dev/zero of={} bs=1M count=16 conv=fsync; done",
        other.display()
    );
    let run = said(&mut stage.with(&script));
    stage.left_alone(&run, "failed", "something else than the image");
}

#[test]
fn one_that_asks_a_terminal() {
    let stage = support::require!(Stage::new());
    // As the real one, it speaks only if its standard input is a terminal; and reads from it.
    let run = said(&mut stage.with("test -t 0 || exit 9; echo question >&2; exit 4"));
    stage.left_alone(&run, "failed", "status 4: question");
}

fn wait_for(mut come: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !come() {
        assert!(Instant::now() < deadline, "it does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn who_opens_it_waits_for_its_end_and_no_longer() {
    let stage = support::require!(Stage::new());
    let flag = stage.bed.path().parent().unwrap().join("here");
    let script = format!(
        "trap '' TERM; touch {}; while :; do sleep 1; done",
        flag.display()
    );
    let mut child = Child::spawn(&mut stage.with(&script)).unwrap();
    wait_for(|| flag.exists());
    let is_there = || {
        processes_with(&stage.image)
            .iter()
            .any(|(_, name)| name == "xfs_fsr")
    };
    assert!(is_there());
    // One of ours may look.
    let scan = support::fragwatch()
        .args(["scan", "--json"])
        .arg(&stage.image)
        .output();
    assert!(scan.unwrap().status.success());
    assert!(is_there());
    fs::OpenOptions::new()
        .write(true)
        .open(&stage.image)
        .unwrap();
    assert!(!is_there());
    let run = finish(&mut child);
    stage.left_alone(&run, "busy", "");
    assert_eq!(run["by"]["pid"], std::process::id());
}

#[test]
fn a_second_run_is_refused_and_the_first_goes_on() {
    let stage = support::require!(Stage::new());
    let flag = stage.bed.path().parent().unwrap().join("here");
    let go = stage.bed.path().parent().unwrap().join("go");
    let script = format!(
        "touch {}; until [ -e {} ]; do sleep 0.01; done; exec {} \"$@\"",
        flag.display(),
        go.display(),
        support::tools::have("xfs_fsr")
            .unwrap_or_default()
            .display()
    );
    let mut first = Child::spawn(&mut stage.with(&script)).unwrap();
    wait_for(|| flag.exists());
    let second = said(&mut defrag(&stage.image, Path::new(&stage.config)));
    assert_eq!(second["guard"], "other_run", "{second}");
    fs::write(&go, "").unwrap();
    let run = finish(&mut first);
    assert_eq!(run["outcome"], "improved", "{run}");
    assert_eq!(tools::checksum(&stage.image), stage.checksum);
}
