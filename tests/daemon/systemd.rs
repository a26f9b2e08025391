//! What it tells systemd, and where its log goes.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use rustix::process::Signal;

use crate::support::{self, Bed, RunningDaemon, guest};
use crate::watch::{Etc, PATIENCE, WHEN_ASKED, Watch};

/// A socket of systemd, and what is sent to it. Read all the time: a sender waits when a few
/// messages are in the queue.
struct Listener(Receiver<String>);

impl Listener {
    fn new(socket: &Path) -> Listener {
        let socket = UnixDatagram::bind(socket).unwrap();
        let (told, messages) = mpsc::channel();
        // Ends with the test process.
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if told.send(text).is_err() {
                    return;
                }
            }
        });
        Listener(messages)
    }

    /// The next message.
    fn next(&self) -> String {
        self.0.recv_timeout(PATIENCE).expect("a message comes")
    }

    /// The next one that begins so. Sweeps, which nobody asked for, may tell of themselves before it.
    fn next_of(&self, begin: &str) -> String {
        loop {
            let message = self.next();
            if message.starts_with(begin) {
                return message;
            }
            assert!(message.starts_with("STATUS="), "{message:?}");
        }
    }
}

#[test]
fn it_tells_what_it_does() {
    let bed = support::require!(Bed::xfs());
    for (name, extents) in [("db-1.raw", 1200), ("a.raw", 10), ("b.raw", 20)] {
        guest::alternate_blocks(&bed.path().join(name), extents);
    }
    let etc = Etc::new();
    etc.configure(&[bed.path()], WHEN_ASKED);
    let socket = etc.join("notify");
    let systemd = Listener::new(&socket);
    let mut daemon = RunningDaemon::spawn(etc.run().env("NOTIFY_SOCKET", &socket), etc.address);
    assert_eq!(systemd.next(), "READY=1\n");
    systemd.next_of("STATUS=3 images, worst 1.2k extents in db-1.raw\n");

    fs::remove_file(bed.path().join("db-1.raw")).unwrap();
    fs::remove_file(bed.path().join("a.raw")).unwrap();
    let before = monotonic_usec();
    daemon.signal(Signal::HUP);
    // As sd_notify(3) wants it: the clock of then, or systemd waits for another READY.
    let reloading = systemd.next_of("RELOADING=1\n");
    let since = reloading
        .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
        .and_then(|rest| rest.trim_end().parse().ok());
    let since: u128 = since.unwrap_or_else(|| panic!("{reloading:?}"));
    assert!((before..=monotonic_usec()).contains(&since));
    systemd.next_of("READY=1\n");
    systemd.next_of("STATUS=1 image, worst 20 extents in b.raw\n");

    // Refused or not, it is ready again.
    etc.write("wrong");
    daemon.signal(Signal::HUP);
    systemd.next_of("RELOADING=1\n");
    systemd.next_of("READY=1\n");

    daemon.signal(Signal::TERM);
    systemd.next_of("STOPPING=1\n");
    assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
}

fn monotonic_usec() -> u128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u128::try_from(now.tv_sec).unwrap() * 1_000_000 + u128::try_from(now.tv_nsec).unwrap() / 1000
}

#[test]
fn without_systemd_it_does_not_complain() {
    let bed = support::require!(Bed::xfs());
    let watch = Watch::start(&[bed.path()], WHEN_ASKED);
    watch.sweep();
    let log = watch.daemon.stderr();
    assert!(log.contains("fragwatch") && !log.contains("ERROR"), "{log}");
    let warnings = watch.log("WARN");
    // That it is off, as it is configured here.
    assert!(warnings.iter().all(|line| line.contains("rescue")), "{log}");
    assert!(!log.contains("systemd") && !log.contains("notify"), "{log}");
}

#[test]
fn a_socket_that_nobody_reads_is_no_reason_to_end() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("a.raw");
    guest::alternate_blocks(&image, 10);
    let etc = Etc::new();
    etc.configure(&[bed.path()], WHEN_ASKED);
    let nobody = etc.join("notify");
    let daemon = RunningDaemon::spawn(etc.run().env("NOTIFY_SOCKET", nobody), etc.address);
    let watch = Watch { daemon, etc };
    watch.until("the image", |now| now.extents(&image) == Some(10.0));
    watch.sweep();
    assert!(!watch.log("cannot notify systemd").is_empty());
}

#[test]
fn a_journal_that_standard_error_does_not_lead_to_gets_nothing() {
    let etc = Etc::new();
    etc.configure(&[], WHEN_ASKED);
    // As a shell under systemd inherits it.
    let daemon = RunningDaemon::spawn(etc.run().env("JOURNAL_STREAM", "8:12345"), etc.address);
    daemon.wait_for_stderr("metrics at", PATIENCE);
}
