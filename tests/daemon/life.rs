//! How it starts and ends.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::child::Child;
use crate::support::emergency::wait_for_thread;
use crate::support::halt::Halted;
use crate::support::{self, Bed, NotHere, RunningDaemon, fragwatch, guest};
use crate::watch::{Etc, PATIENCE, WHEN_ASKED, Watch, children, until};

/// SIGTERM and SIGINT end it within this time, whatever happens.
const END: Duration = Duration::from_secs(2);

#[test]
fn a_signal_ends_it() {
    let bed = support::require!(Bed::xfs());
    guest::alternate_blocks(&bed.path().join("a.raw"), 10);
    for signal in [Signal::TERM, Signal::INT] {
        let mut watch = Watch::start(&[bed.path()], WHEN_ASKED);
        let helpers = watch.helpers();
        assert_eq!(helpers.len(), 1);
        watch.daemon.signal(signal);
        let status = watch.daemon.wait(END);
        assert_eq!(status.code(), Some(0), "{signal:?}: {status}");
        until("the end of its helper", || {
            helpers[0].has_ended().then_some(())
        });
        assert_eq!(watch.daemon.stdout(), "");
    }
}

#[test]
fn a_signal_ends_it_in_its_first_sweep() {
    let bed = support::require!(Bed::xfs());
    for n in 0..2000 {
        guest::alternate_blocks(&bed.path().join(format!("{n}.raw")), 1);
    }
    let mut watch = Watch::start_soon(&[bed.path()], WHEN_ASKED);
    watch.daemon.signal(Signal::TERM);
    let status = watch.daemon.wait(END);
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn the_second_signal_ends_it_at_once() {
    let etc = Etc::new();
    etc.configure(&[], WHEN_ASKED);
    let stderr = File::create(etc.join("stderr")).unwrap();
    let mut daemon = Child::spawn(etc.run().stderr(stderr)).unwrap();
    wait_for_thread(daemon.id(), "signals");
    // As if it hung.
    let halted = Halted::thread(daemon.id()).map_err(NotHere::because);
    let _halted = support::require!(halted);
    daemon.signal(Signal::TERM);
    assert!(daemon.wait(Duration::from_millis(300)).is_none());
    daemon.signal(Signal::INT);
    let status = daemon.wait(END).expect("it ends");
    assert_eq!(status.code(), Some(1), "{status}");
}

#[test]
fn a_systemd_that_hangs_keeps_it_from_nothing() {
    let etc = Etc::new();
    etc.configure(&[], WHEN_ASKED);
    // It takes no messages any more.
    let path = etc.join("notify");
    let _systemd = UnixDatagram::bind(&path).unwrap();
    let full = UnixDatagram::unbound().unwrap();
    full.set_nonblocking(true).unwrap();
    while full.send_to(b"X=1", &path).is_ok() {}
    let mut daemon = RunningDaemon::spawn(etc.run().env("NOTIFY_SOCKET", path), etc.address);
    assert_eq!(daemon.get("/metrics").status, 200);
    daemon.signal(Signal::HUP);
    daemon.wait_for_stderr("configuration reloaded", PATIENCE);
    daemon.signal(Signal::TERM);
    let status = daemon.wait(END);
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn nothing_to_watch_is_no_error() {
    let watch = Watch::start(&[], WHEN_ASKED);
    assert_eq!(watch.scrape().errors(), 0.0);
    assert_eq!(watch.scrape().named("fragwatch_image_extents").count(), 0);
    assert_eq!(watch.daemon.get("/healthz").status, 200);
    assert!(watch.daemon.get("/").body.contains("0 images"));
    // At the start it looks in a child for what killed runs have left.
    until("no helper runs", || {
        children(watch.daemon.pid()).is_empty().then_some(())
    });
}

#[test]
fn only_it_may_start_a_helper() {
    let output = fragwatch().arg("probe-helper").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("is started by fragwatch itself"), "{said}");
}
