//! How it starts and ends.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::process::Output;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::child::Child;
use crate::support::emergency::wait_for_thread;
use crate::support::halt::Halted;
use crate::support::{self, Bed, NotHere, RunningDaemon, fragwatch, guest};
use crate::watch::{Etc, WHEN_ASKED, Watch, children, until};

/// SIGTERM and SIGINT end it within this time, whatever happens.
pub const END: Duration = Duration::from_secs(2);

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
    daemon.wait_for_stderr("configuration reloaded", END);
    daemon.signal(Signal::TERM);
    let status = daemon.wait(END);
    assert_eq!(status.code(), Some(0), "{status}");
}

/// Runs a daemon that cannot start.
fn fails(etc: &Etc) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = etc.run().output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(stdout.is_empty());
    said
}

#[test]
fn a_wrong_configuration_is_diagnosed_at_the_start() {
    let etc = Etc::new();
    let text = etc.text(&[], "[sampling]\nprobe_timeout = \"5s\"\ncolour = 1\n");
    etc.write(&text);
    let said = fails(&etc);
    let line = text.lines().count();
    let place = format!("fragwatch: {}:{line}:1:", etc.file().display());
    assert!(said.starts_with(&place), "{said}");
    assert!(said.contains("colour = 1\n    ^^^^^^\n"), "{said}");
    assert!(TcpListener::bind(etc.address).is_ok());
}

#[test]
fn a_configuration_that_is_not_there_is_an_error() {
    let etc = Etc::new();
    let said = fails(&etc);
    assert!(
        said.contains("fragwatch.toml") && said.contains("no such file"),
        "{said}"
    );
}

#[test]
fn an_address_in_use_is_an_error() {
    let etc = Etc::new();
    let _theirs = TcpListener::bind(etc.address).unwrap();
    etc.configure(&[], WHEN_ASKED);
    let said = fails(&etc);
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("fragwatch: cannot listen on"), "{said}");
    assert!(
        last.contains(&etc.address.to_string()) && last.contains("in use"),
        "{said}"
    );
}

#[test]
fn nothing_to_watch_is_no_error() {
    let watch = Watch::start(&[], WHEN_ASKED);
    assert_eq!(watch.scrape().errors(), 0.0);
    assert_eq!(watch.scrape().named("fragwatch_image_extents").count(), 0);
    assert_eq!(watch.daemon.get("/healthz").status, 200);
    assert!(watch.daemon.get("/").body.contains("0 images"));
    assert!(children(watch.daemon.pid()).is_empty());
}

#[test]
fn only_it_may_start_a_helper() {
    let output = fragwatch().arg("probe-helper").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("is started by fragwatch itself"), "{said}");
}
