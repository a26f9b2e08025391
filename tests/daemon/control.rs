//! The control socket and the textfile: they tell what `/metrics` tells, and clients that mean no
//! good take nothing from the others.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::Value;

use crate::support::child::Child;
use crate::support::{self, Bed, fragwatch, guest, tools};
use crate::watch::{Etc, OFTEN, PATIENCE, WHEN_ASKED, Watch, until};

/// More than there may be.
const CROWD: usize = 1000;

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

#[test]
fn all_tell_the_same_story() {
    let bed = support::require!(Bed::xfs());
    let (a, b) = (bed.path().join("a.raw"), bed.path().join("b.raw"));
    guest::alternate_blocks(&a, 700);
    guest::alternate_blocks(&b, 300);
    let etc = Etc::new();
    let file = etc.join("fragwatch.prom");
    let more = format!(
        "{OFTEN}[thresholds]\nwarning = {{ extents = 200 }}\ncritical = {{ extents = 500 }}\n"
    );
    let text = etc.text(&[bed.path()], &more);
    let key = format!("[metrics]\ntextfile = {file:?}\n");
    etc.write(&text.replace("[metrics]\n", &key));
    let mut watch = Watch::start_with(etc);

    let status = watch.daemon.ask("status").arg("--json").output().unwrap();
    assert!(status.status.success(), "{status:?}");
    let status = json(&status);
    assert_eq!(status["schema"], 1);
    assert_eq!(status["daemon"]["pid"], watch.daemon.pid());
    let now = watch.scrape();
    for (row, image) in [&a, &b].into_iter().enumerate() {
        let row = &status["worst"][row];
        assert_eq!(row["path"], image.to_str().unwrap());
        let extents = now.of_image("fragwatch_image_extents", image).unwrap();
        assert_eq!(row["extents"].as_f64(), Some(extents));
    }
    assert_eq!(status["worst"][0]["severity"], "critical");
    assert_eq!(status["worst"][1]["severity"], "warning");
    assert_eq!(status["images"]["extents"], 1000);
    assert_eq!(status["rescue"]["armed"], false);

    let people = watch.daemon.ask("status").output().unwrap();
    let people = String::from_utf8(people.stdout).unwrap();
    for part in ["2 images: 1 critical, 1 warning, 0 ok\n", "a.raw", "700"] {
        assert!(people.contains(part), "no {part:?}: {people}");
    }

    let check = watch.daemon.ask("check").output().unwrap();
    assert_eq!(check.status.code(), Some(2), "{check:?}");
    let line = String::from_utf8(check.stdout).unwrap();
    assert!(line.starts_with("FRAGWATCH CRITICAL - "), "{line}");
    assert!(line.contains(" | images=2 images_warning=1 images_critical=1"));
    assert_eq!(line.lines().count(), 1);
    let check = watch.daemon.ask("check").arg("--json").output().unwrap();
    assert_eq!(
        (check.status.code(), &json(&check)["code"]),
        (Some(2), &2.into())
    );

    let in_file = until("the textfile with both images", || {
        let text = fs::read_to_string(&file).ok()?;
        (text.matches("fragwatch_image_extents{").count() == 2).then_some(text)
    });
    for image in [&a, &b] {
        let extents = now.of_image("fragwatch_image_extents", image).unwrap();
        let line = format!("fragwatch_image_extents{{image={image:?}}} {extents}");
        assert!(in_file.contains(&line), "no {line}: {in_file}");
    }
    watch.daemon.signal(Signal::TERM);
    watch.daemon.wait(PATIENCE);
    assert!(
        !file.exists(),
        "a file that stays would be scraped for ever"
    );
    assert!(!watch.daemon.directory().join("control.sock").exists());
}

#[test]
fn without_a_daemon_they_say_so() {
    let etc = Etc::new();
    let ask = |subcommand| {
        let mut command = fragwatch();
        command
            .arg(subcommand)
            .env("RUNTIME_DIRECTORY", etc.join(""));
        command.output().unwrap()
    };
    let status = ask("status");
    assert_eq!(status.status.code(), Some(2));
    let said = String::from_utf8(status.stderr).unwrap();
    assert!(said.contains("no daemon answers at"), "{said}");
    assert!(said.contains("systemctl status fragwatch"), "{said}");
    let check = ask("check");
    assert_eq!(check.status.code(), Some(3));
    let said = String::from_utf8(check.stdout).unwrap();
    assert!(
        said.starts_with("FRAGWATCH UNKNOWN - no daemon answers"),
        "{said}"
    );
}

#[test]
fn a_daemon_that_was_killed_leaves_a_socket_that_is_in_nobodys_way() {
    let etc = Etc::new();
    etc.configure(&[], WHEN_ASKED);
    let start = || {
        let daemon = support::RunningDaemon::spawn(&mut etc.run(), etc.address);
        let socket = etc.join("control.sock");
        until("the socket", || UnixStream::connect(&socket).ok());
        let mode = fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        daemon
    };
    let mut killed = start();
    killed.signal(Signal::KILL);
    killed.wait(PATIENCE);
    assert!(etc.join("control.sock").exists());
    let _again = start();
}

#[test]
fn clients_that_mean_no_good() {
    let bed = support::require!(Bed::xfs());
    for n in 0..200 {
        guest::alternate_blocks(&bed.path().join(format!("{n}.raw")), 1);
    }
    let watch = Watch::start(&[bed.path()], WHEN_ASKED);
    let socket = watch.daemon.directory().join("control.sock");
    let address = watch.etc.address;

    // Garbage; half a request; a request whose answer is not read.
    let mut clients = Vec::new();
    for text in [
        &b"\xff\x00 garbage\r\n\r\n"[..],
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX-Endless: ",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let mut client = UnixStream::connect(&socket).unwrap();
        client.write_all(text).unwrap();
        clients.push(client);
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(text).unwrap();
        // Keeps its connection, reads nothing.
        std::mem::forget(client);
    }
    let mut header = vec![b'x'; 1 << 20];
    header[..40].copy_from_slice(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long-Header: ");
    let _ = UnixStream::connect(&socket).unwrap().write_all(&header);

    // All at once, none of them says anything.
    let files = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        ..files
    };
    setrlimit(Resource::Nofile, most).unwrap();
    let crowd: Vec<_> = (0..CROWD)
        .filter_map(|_| TcpStream::connect(address).ok())
        .collect();
    for stream in &crowd {
        stream.set_nonblocking(true).unwrap();
    }
    let status = watch.daemon.ask("status").output().unwrap();
    assert!(status.status.success(), "{status:?}");
    // They are shown the door one after the other, and whoever asks gets his turn.
    let answer = until("an answer in the crowd", || {
        support::http_get(address, "/metrics").ok()
    });
    assert_eq!(answer.body.matches("fragwatch_image_extents{").count(), 200);
    let files = fs::read_dir(format!("/proc/{}/fd", watch.daemon.pid())).unwrap();
    assert!(files.count() < 300, "connections are bounded");
    let mut garbage = String::new();
    clients[0]
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let _ = clients[0].read_to_string(&mut garbage);
    assert!(garbage.starts_with("HTTP/1.1 400"), "{garbage:?}");
}

#[test]
fn what_listens_there_already_is_left_alone() {
    let etc = Etc::new();
    etc.configure(&[], WHEN_ASKED);
    fs::write(etc.join("control.sock"), "precious").unwrap();
    let daemon = support::RunningDaemon::spawn(&mut etc.run(), etc.address);
    daemon.wait_for_stderr("no control socket at", Duration::from_secs(5));
    assert_eq!(daemon.get("/healthz").status, 200, "it counts all the same");
    assert_eq!(fs::read(etc.join("control.sock")).unwrap(), b"precious");
}

#[test]
fn a_reload_moves_the_socket_and_tells_what_was_refused() {
    let watch = Watch::start(&[], WHEN_ASKED);
    let ask = || json(&watch.daemon.ask("status").arg("--json").output().unwrap());
    assert_eq!(ask()["daemon"]["config_refused"], Value::Null);
    watch.etc.write("[sampling]\ninterval = 5");
    watch.daemon.signal(Signal::HUP);
    let refused = until("the refusal", || {
        ask()["daemon"]["config_refused"]
            .as_str()
            .map(str::to_owned)
    });
    assert!(refused.contains("fragwatch.toml:2:12"), "{refused}");

    let elsewhere = watch.etc.join("elsewhere.sock");
    let more = format!("[control]\nsocket = {elsewhere:?}\n{WHEN_ASKED}");
    watch.etc.configure(&[], &more);
    watch.daemon.signal(Signal::HUP);
    until("the socket elsewhere", || {
        UnixStream::connect(&elsewhere).ok()
    });
    let before = watch.daemon.directory().join("control.sock");
    until("the end of the former one", || {
        (!before.exists()).then_some(())
    });
    let mut command = fragwatch();
    command.arg("status").arg("--config").arg(watch.etc.file());
    assert!(command.output().unwrap().status.success());
}

/// Those who have asked do not wait for those who have not, who are put off after ten seconds.
#[test]
fn half_a_request_keeps_nobody_out() {
    let watch = Watch::start(&[], WHEN_ASKED);
    let socket = watch.daemon.directory().join("control.sock");
    let half = b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX-Endless: ";
    let mut crowd = Vec::new();
    for _ in 0..500 {
        let mut client = UnixStream::connect(&socket).unwrap();
        // It may have been shown the door already.
        let _ = client.write_all(half);
        crowd.push(client);
    }
    for subcommand in ["status", "check"] {
        let began = std::time::Instant::now();
        let output = watch.daemon.ask(subcommand).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let took = began.elapsed();
        assert!(took < Duration::from_secs(8), "{subcommand} took {took:?}");
    }
    let mut crowd: Vec<_> = (0..500)
        .map(|_| TcpStream::connect(watch.etc.address).unwrap())
        .collect();
    crowd
        .iter_mut()
        .for_each(|client| drop(client.write_all(half)));
    let began = std::time::Instant::now();
    assert_eq!(watch.daemon.get("/metrics").status, 200);
    assert!(began.elapsed() < Duration::from_secs(8));
    // A byte now and then is not enough for a place for good.
    let mut slow = UnixStream::connect(&socket).unwrap();
    let began = std::time::Instant::now();
    while slow.write_all(b"x").is_ok() {
        assert!(began.elapsed() < Duration::from_secs(60), "it may stay");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_status_that_is_watched_is_drawn_again_and_again() {
    let script = support::require!(tools::have("script"));
    let watch = Watch::start(&[], WHEN_ASKED);
    let file = watch.etc.join("typescript");
    let program = env!("CARGO_BIN_EXE_fragwatch");
    let mut command = Command::new(script);
    command
        .args(["-qefc", &format!("'{program}' status --watch 1")])
        .arg(&file)
        .env("STATE_DIRECTORY", watch.daemon.directory())
        .env("RUNTIME_DIRECTORY", watch.daemon.directory())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let _shown = Child::spawn(&mut command).unwrap();
    until("three times", || {
        let text = String::from_utf8_lossy(&fs::read(&file).ok()?).into_owned();
        let times = text.matches("fragwatch 0.").count();
        (times >= 3 && text.contains("0 images")).then_some(())
    });
}
