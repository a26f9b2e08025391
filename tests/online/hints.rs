//! The hint of an image is put back, unless somebody else has set another since.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::engine::noted;
use super::engine::state;
use super::support::child::Child;
use super::support::daemon::fragwatch;
use super::support::{self, Bed, MIB, guest};
use super::{bed, command, cow_hint, defrag, finish, set_cow_hint};

/// What an operator sets: nothing that a run would.
const THEIRS: u64 = 128 << 10;

/// A run that has set its own hint and is still at work.
pub fn at_work(bed: &Bed, path: &Path, hint: u64) -> Child {
    guest::random_direct_writes(path, 32 * MIB, 8192);
    set_cow_hint(path, hint);
    // Slow enough not to be done before it is looked at.
    let keys = "bandwidth = \"4MiB/s\"\nstall_target = \"1ms\"\n";
    let child = Child::spawn(&mut command(bed, path, keys)).unwrap();
    wait_until(|| cow_hint(path) != hint);
    child
}

#[track_caller]
pub fn wait_until(holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "it does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_hint_that_an_operator_sets_meanwhile_stays() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    for (name, hint) in [("none.img", 0), ("some.img", 65_536)] {
        let path = bed.path().join(name);
        let child = at_work(&bed, &path, hint);
        set_cow_hint(&path, THEIRS);
        child.signal(Signal::TERM);
        let said = finish(child);
        assert_eq!(said["outcome"], "stopped", "{said}");
        assert_eq!((cow_hint(&path), noted(&bed)), (THEIRS, 0));
    }
}

#[test]
fn a_hint_that_an_operator_sets_after_a_kill_stays() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let other = bed.path().join("other.img");
    guest::sequential(&other, 64 << 10);
    for (name, theirs) in [
        ("changed.img", Some(THEIRS)),
        ("taken.img", Some(0)),
        ("ours.img", None),
    ] {
        let path = bed.path().join(name);
        let mut child = at_work(&bed, &path, 65_536);
        child.signal(Signal::KILL);
        child.end();
        if let Some(theirs) = theirs {
            set_cow_hint(&path, theirs);
        }
        assert_eq!(noted(&bed), 1);
        assert_eq!(defrag(&bed, &other)["guard"], "near_ideal");
        assert_eq!(
            (cow_hint(&path), noted(&bed)),
            (theirs.unwrap_or(65_536), 0),
            "{name}"
        );
    }
}

/// The daemon looks where a run that was started by hand notes it: in the directory of
/// `history.path`, wherever that is.
#[test]
fn the_daemon_restores_the_hint_of_a_run_by_hand_beside_another_database() {
    let bed = support::require!(bed(&["-m", "reflink=1"]));
    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, 32 * MIB, 8192);
    set_cow_hint(&path, 65_536);
    let elsewhere = bed.path().parent().unwrap().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let history = format!("[history]\npath = {:?}\n", elsewhere.join("past.db"));
    let keys = format!("bandwidth = \"4MiB/s\"\nstall_target = \"1ms\"\n{history}");
    let mut run = command(&bed, &path, &keys);
    let mut child = Child::spawn(run.env_remove("STATE_DIRECTORY")).unwrap();
    wait_until(|| cow_hint(&path) != 65_536);
    child.signal(Signal::KILL);
    child.end();
    assert_ne!(cow_hint(&path), 65_536);

    let config = elsewhere.join("fragwatch.toml");
    let text =
        "[images]\npaths = []\n[rescue]\nenabled = false\n[metrics]\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(&config, format!("{text}{history}")).unwrap();
    let mut daemon = fragwatch();
    daemon.args(["run", "--config"]).arg(&config);
    // As systemd starts it.
    daemon.env("STATE_DIRECTORY", state(&bed));
    daemon.env("RUNTIME_DIRECTORY", &elsewhere);
    let _daemon = Child::spawn(daemon.stderr(std::process::Stdio::null())).unwrap();
    wait_until(|| cow_hint(&path) == 65_536);
}
