//! `[maintenance.lock]` and `[maintenance.hold]` for `fragwatch defrag` by hand.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::fleet::{GROUP, bad_image, config, held, lock};
use crate::maintenance::ALWAYS;
use crate::support::child::Child;
use crate::support::fleetlock::FleetLockServer;
use crate::support::prometheus::{Prometheus, tool};
use crate::support::{self, Bed, RunningDaemon, free_address, tools};
use crate::watch::{Etc, until};

/// A bad image in a window that is always open, and no daemon.
struct Host {
    etc: Etc,
    image: PathBuf,
    bed: Bed,
}

impl Host {
    fn new() -> support::Here<Host> {
        let (bed, image) = bad_image()?;
        let etc = Etc::new();
        Ok(Host { etc, image, bed })
    }

    fn configure(&self, text: &str) {
        self.etc.configure(&[self.bed.path()], text);
    }

    fn defrag(&self, arguments: &[&str]) -> Command {
        let mut command = self.etc.run_subcommand("defrag");
        command.args(arguments).arg(&self.image);
        command
    }

    fn succeeds(&self, arguments: &[&str]) {
        let output = self.defrag(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// What it writes to stderr.
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.defrag(arguments).output().unwrap();
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// A slow run that holds the only lock.
    fn holds(&self, server: &FleetLockServer) -> Child {
        let mut command = self.defrag(&[]);
        let run = Child::spawn(command.stdout(Stdio::null()).stderr(Stdio::null())).unwrap();
        let its = format!("-{}-", run.id());
        until("a lock with the id of the process", || {
            let holders = server.holders(GROUP);
            holders
                .first()
                .is_some_and(|id| id.contains(&its))
                .then_some(())
        });
        assert_eq!((server.holders(GROUP).len(), self.notes()), (1, 1));
        run
    }

    fn notes(&self) -> usize {
        let notes = fs::read_dir(self.etc.join("defrag")).into_iter().flatten();
        let names = notes.map(|note| note.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().ends_with(".fleet-lock"))
            .count()
    }
}

fn ends(mut run: Child, signal: Signal) {
    run.signal(signal);
    run.end();
}

#[test]
fn a_run_by_hand_holds_a_lock_of_its_own_until_it_ends() {
    let server = FleetLockServer::start(0);
    let host = support::require!(Host::new());
    host.configure(&config(&lock(&server.url())));
    for arguments in [&[][..], &["--force-window"]] {
        let text = host.fails(arguments);
        assert!(
            text.contains("maintenance.lock: ") && text.contains("--force-lock"),
            "{text}"
        );
    }
    assert_eq!(host.notes(), 0);
    // It begins nothing.
    host.succeeds(&["--dry-run"]);

    server.set_slots(1);
    ends(host.holds(&server), Signal::INT);
    assert_eq!((server.holders(GROUP).len(), host.notes()), (0, 0));

    // Killed: the next one releases its lock, or there would be no slot.
    ends(host.holds(&server), Signal::KILL);
    assert_eq!((server.holders(GROUP).len(), host.notes()), (1, 1));
    ends(host.holds(&server), Signal::KILL);
    // Or the daemon, whatever its configuration is.
    host.configure("");
    let daemon = RunningDaemon::spawn(&mut host.etc.run(), host.etc.address);
    held(&server, 0);
    until("its note is removed", || (host.notes() == 0).then_some(()));
    drop(daemon);

    server.set_slots(0);
    host.configure(&quick(&lock(&server.url())));
    host.succeeds(&["--force-lock"]);
    assert_eq!(server.most(), 1);
}

/// A server that receives requests and answers none. The endpoints that were asked for.
fn mute_server() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let ours = Arc::clone(&asked);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (mut line, mut reader) = (String::new(), BufReader::new(stream));
            drop(reader.read_line(&mut line));
            // The client waits until the reader is dropped.
            ours.lock().unwrap().push(line);
        }
    });
    (url, asked)
}

#[test]
fn a_lock_that_may_be_granted_later_is_released_by_a_later_run() {
    let (url, asked) = mute_server();
    let host = support::require!(Host::new());
    host.configure(&quick(&lock(&url)));
    host.fails(&[]);
    // A release would come before the late grant.
    assert_eq!(*asked.lock().unwrap(), ["POST /v1/pre-reboot HTTP/1.1\r\n"]);
    assert_eq!(host.notes(), 1);
    // Which is without that server.
    host.succeeds(&["--force-lock"]);
    assert_eq!(asked.lock().unwrap().len(), 1);
    assert_eq!(host.notes(), 1);
    host.fails(&[]);
    assert!(asked.lock().unwrap()[1].contains("/v1/steady-state"));
}

/// Ctrl-Z at a terminal.
#[test]
fn a_run_by_hand_does_not_stop_with_its_lock() {
    support::require!(tools::have("script"));
    let server = FleetLockServer::start(1);
    let host = support::require!(Host::new());
    host.configure(&config(&lock(&server.url())));
    let run = host.defrag(&[]);
    let words = [run.get_program()].into_iter().chain(run.get_args());
    let words: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
    let mut script = Command::new("script");
    script.args(["-qec", &words.join(" "), "/dev/null"]);
    let given = run
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    script.envs(given).stdin(Stdio::null());
    let mut script = Child::spawn(script.stdout(Stdio::null())).unwrap();
    held(&server, 1);
    let id = server.holders(GROUP).pop_first().unwrap();
    let pid = id.split('-').nth(1).unwrap().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TSTP).unwrap();
    held(&server, 0);
    script.end();
    assert_eq!(host.notes(), 0);
}

#[test]
fn a_note_that_is_none_is_reported_with_the_way_out() {
    let host = support::require!(Host::new());
    host.configure(ALWAYS);
    fs::create_dir(host.etc.join("defrag")).unwrap();
    fs::write(host.etc.join("defrag/0123-7-8.fleet-lock"), "{").unwrap();
    let output = host.defrag(&[]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    for part in ["0123-7-8.fleet-lock", "/v1/steady-state", "remove it"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn no_run_by_hand_begins_if_its_server_does_not_answer() {
    let host = support::require!(Host::new());
    let nobody = format!("http://{}", free_address());
    host.configure(&config(&lock(&nobody)));
    let text = host.fails(&[]);
    assert!(
        text.contains("no connection") && text.contains("--force-lock"),
        "{text}"
    );
    assert_eq!(host.notes(), 0);
    host.configure(&config(&format!(
        "hold = {{ url = {nobody:?}, query = \"up\" }}"
    )));
    let text = host.fails(&[]);
    assert!(
        text.contains("maintenance.hold: ") && text.contains("--force-window"),
        "{text}"
    );
}

#[test]
fn a_result_of_a_query_holds_runs_by_hand() {
    let program = support::require!(tool("prometheus"));
    let prometheus = Prometheus::start(&program, free_address());
    until("Prometheus", || prometheus.query("vector(1)"));
    let url = prometheus.url();
    let hold = |query: &str| format!("hold = {{ url = {url:?}, query = {query:?} }}");
    let host = support::require!(Host::new());
    host.configure(&quick(&hold("vector(7)")));
    let text = host.fails(&[]);
    assert!(
        text.contains("maintenance.hold: the query has a result"),
        "{text}"
    );
    host.succeeds(&["--dry-run"]);
    host.configure(&quick(&hold("vector(7) > 7")));
    host.succeeds(&[]);
    host.configure(&quick(&hold("vector(7)")));
    host.succeeds(&["--force-window"]);
}

/// As `online` is used if it is named and `engines` does not list it.
#[test]
fn blockcopy_need_not_be_enabled_if_it_is_named() {
    let host = support::require!(Host::new());
    host.configure(ALWAYS);
    let arguments = ["--json", "--dry-run", "--engine", "blockcopy"];
    let output = host.defrag(&arguments).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let run = &report["runs"][0];
    // Judged by the engine: no VM has it open.
    assert_eq!(run["engine"], "blockcopy", "{run}");
    assert_eq!(run["guard"], "not_libvirt", "{run}");
}

fn quick(maintenance: &str) -> String {
    ALWAYS.replace("[[maint", &format!("[maintenance]\n{maintenance}\n[[maint"))
}
