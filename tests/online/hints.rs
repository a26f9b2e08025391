//! The hint of an image is put back, unless somebody else has set another since.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::engine::noted;
use super::support::child::Child;
use super::support::{self, Bed, MIB, guest};
use super::{bed, command, cow_hint, defrag, finish, set_cow_hint};

/// What an operator sets: nothing that a run would.
const THEIRS: u64 = 128 << 10;

/// A run that has set its own hint and is still at work.
fn at_work(bed: &Bed, path: &Path, hint: u64) -> Child {
    guest::random_direct_writes(path, 32 * MIB, 8192);
    set_cow_hint(path, hint);
    // Slow enough not to be done before it is looked at.
    let keys = "bandwidth = \"4MiB/s\"\nstall_target = \"1ms\"\n";
    let child = Child::spawn(&mut command(bed, path, keys)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while cow_hint(path) == hint {
        assert!(Instant::now() < deadline, "no hint of its own");
    }
    child
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
