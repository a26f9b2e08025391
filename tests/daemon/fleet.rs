//! `[maintenance.lock]` and `[maintenance.hold]`: what a fleet has to say before a run and during it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fragwatch::internals::fleet::{Denied, FleetLock};
use rustix::process::{Resource, Signal, getrlimit, setrlimit};

use crate::maintenance::{ALWAYS, runs, why_not};
use crate::support::fleetlock::FleetLockServer;
use crate::support::prometheus::{Prometheus, tool};
use crate::support::{self, Bed, MIB, RunningDaemon, free_address, guest, tools};
use crate::watch::{Etc, PATIENCE, Watch, until};

pub const GROUP: &str = "array-7";
const SLOTS: usize = 8;
const HOSTS: usize = 1000;

/// Takes the lock, as often as it must.
async fn taken(lock: &FleetLock) {
    while let Err(why) = lock.take().await {
        if let Denied::Failed(_) = why {
            // It may have been given, and the answer come too late.
            let _ = lock.release().await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Gives it back.
async fn given_back(lock: &FleetLock) {
    while lock.release().await.is_err() {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Has so many hosts take the lock of [`GROUP`] and give it back, all at once. The most that had it at
/// the same time, as far as they know.
pub fn take_turns(url: &str, hosts: usize) -> usize {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let host = |number: usize| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            let lock = FleetLock {
                url: url.to_owned(),
                group: GROUP.to_owned(),
                id: format!("{number:032x}"),
            };
            async move {
                taken(&lock).await;
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // The lock is recursive: it was taken by this host.
                while let Err(why) = lock.take().await {
                    // With so many at once a connection may not come about.
                    assert!(
                        matches!(why, Denied::Failed(_) | Denied::Unsent(_)),
                        "{why}"
                    );
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                now.fetch_sub(1, Ordering::SeqCst);
                given_back(&lock).await;
            }
        };
        let hosts: Vec<_> = (0..hosts)
            .map(|number| tokio::spawn(host(number)))
            .collect();
        for host in hosts {
            host.await.unwrap();
        }
    });
    most.load(Ordering::SeqCst)
}

#[test]
fn of_a_thousand_hosts_never_more_than_there_are_slots_have_the_lock() {
    // Two descriptors for each connection, all in this process.
    let limit = getrlimit(Resource::Nofile);
    let all = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, all).unwrap();
    let server = FleetLockServer::start(SLOTS);
    let most = take_turns(&server.url(), HOSTS);
    assert!(server.holders(GROUP).is_empty());
    // By the server and by the hosts; and it was not one after the other.
    assert_eq!(server.most(), SLOTS);
    assert!((2..=SLOTS).contains(&most), "{most}");
}

/// An image that xfs_fsr takes long for at the bandwidth of [`config`].
pub fn bad_image() -> support::Here<(Bed, PathBuf)> {
    tools::have("xfs_fsr")?;
    let bed = Bed::xfs()?;
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 256 * MIB, 8000);
    bed.sync();
    Ok((bed, image))
}

/// A daemon with a bad image, in a window that is always open.
pub struct Host {
    pub watch: Watch,
    image: PathBuf,
    bed: Bed,
}

impl Host {
    pub fn start(maintenance: &str) -> support::Here<Host> {
        let (bed, image) = bad_image()?;
        let etc = Etc::new();
        etc.configure(&[bed.path()], &config(maintenance));
        let watch = Watch::start_with_state(etc);
        Ok(Host { watch, image, bed })
    }

    pub fn reload(&self, maintenance: &str) {
        let paths = [self.bed.path()];
        self.watch.etc.configure(&paths, &config(maintenance));
        self.watch.daemon.signal(Signal::HUP);
    }

    pub fn waits_for(&self, code: &str) {
        until(code, || {
            (why_not(&self.watch, &self.image) == code).then_some(())
        });
    }

    pub fn runs(&self) {
        self.watch.until("a run", |now| {
            now.value("fragwatch_defrag_active", &[]) == Some(1.0)
        });
    }

    fn requests(&self, request: &str, outcome: &str) -> f64 {
        let labels = [("request", request), ("outcome", outcome)];
        let now = self.watch.scrape();
        let requests = now.value("fragwatch_maintenance_requests_total", &labels);
        requests.unwrap()
    }

    fn note(&self) -> PathBuf {
        self.watch.etc.join("fleet-lock.json")
    }
}

/// Slow runs, so that something can happen meanwhile.
pub fn config(maintenance: &str) -> String {
    ALWAYS
        .replace("[defrag]\n", "[defrag]\nbandwidth = \"1MiB/s\"\n")
        .replace("[[maint", &format!("[maintenance]\n{maintenance}\n[[maint"))
}

pub fn lock(url: &str) -> String {
    format!("lock = {{ url = {url:?}, group = {GROUP:?} }}")
}

pub fn held(server: &FleetLockServer, number: usize) {
    until(&format!("{number} holders"), || {
        (server.holders(GROUP).len() == number).then_some(())
    });
}

#[test]
fn the_lock_is_held_while_a_run_works_and_given_back_in_every_ending() {
    let server = FleetLockServer::start(0);
    let mut host = support::require!(Host::start(&lock(&server.url())));
    host.waits_for("locked");
    assert!(host.requests("lock", "refused") >= 1.0);
    assert_eq!(host.requests("lock", "granted"), 0.0);
    assert_eq!(
        host.watch.scrape().value("fragwatch_defrag_active", &[]),
        Some(0.0)
    );
    let plan = host.watch.daemon.ask("plan").output().unwrap();
    let plan = String::from_utf8(plan.stdout).unwrap().replace('\n', " ");
    assert!(plan.contains("maintenance.lock"), "{plan}");

    // A reload asks anew.
    server.set_slots(1);
    host.reload(&lock(&server.url()));
    host.runs();
    assert_eq!(server.holders(GROUP).len(), 1);
    // The run is stopped.
    assert!(host.watch.daemon.ask("pause").status().unwrap().success());
    held(&server, 0);
    until("its note is removed", || {
        (!host.note().exists()).then_some(())
    });

    // The daemon ends.
    assert!(host.watch.daemon.ask("resume").status().unwrap().success());
    host.runs();
    held(&server, 1);
    host.watch.daemon.signal(Signal::TERM);
    host.watch.daemon.wait(PATIENCE);
    assert!(server.holders(GROUP).is_empty());
    assert!(!host.note().exists());

    // It is killed; the next one gives the lock back, whatever its configuration is.
    let etc = &host.watch.etc;
    host.watch.daemon = RunningDaemon::spawn(&mut etc.run(), etc.address);
    host.runs();
    host.watch.daemon.signal(Signal::KILL);
    host.watch.daemon.wait(PATIENCE);
    assert_eq!(server.holders(GROUP).len(), 1);
    assert!(host.note().exists());
    let etc = &host.watch.etc;
    etc.configure(&[host.bed.path()], "");
    host.watch.daemon = RunningDaemon::spawn(&mut etc.run(), etc.address);
    held(&server, 0);
    until("its note is removed", || {
        (!host.note().exists()).then_some(())
    });
}

#[test]
fn without_an_answer_there_is_no_run() {
    let nobody = format!("http://{}", free_address());
    let host = support::require!(Host::start(&lock(&nobody)));
    host.waits_for("locked");
    assert!(host.requests("lock", "failed") >= 1.0);
    host.reload(&format!("hold = {{ url = {nobody:?}, query = \"up\" }}"));
    host.waits_for("held");
    until("it is counted", || {
        (host.requests("hold", "failed") >= 1.0).then_some(())
    });
    assert_eq!(
        host.watch.scrape().value("fragwatch_defrag_active", &[]),
        Some(0.0)
    );
    assert!(runs(&host.watch).is_empty());
}

#[test]
fn what_a_wrong_server_has_not_given_does_not_prevent_runs_under_the_right_one() {
    let nobody = format!("http://{}", free_address());
    let host = support::require!(Host::start(&lock(&nobody)));
    host.waits_for("locked");
    assert!(host.requests("lock", "failed") >= 1.0);
    let server = FleetLockServer::start(1);
    host.reload(&lock(&format!("{}/wrong", server.url())));
    until("a request that is rejected", || {
        (host.requests("lock", "refused") >= 1.0).then_some(())
    });
    // Nothing was given, so nothing was given back.
    assert_eq!(host.requests("unlock", "granted"), 0.0);
    host.reload(&lock(&server.url()));
    host.runs();
    held(&server, 1);
}

#[test]
fn a_result_of_a_query_holds_runs_and_ends_one_under_way() {
    let program = support::require!(tool("prometheus"));
    let prometheus = Prometheus::start(&program, free_address());
    until("Prometheus", || prometheus.query("vector(1)"));
    let url = prometheus.url();
    let hold = |query: &str| format!("hold = {{ url = {url:?}, query = {query:?} }}");
    let host = support::require!(Host::start(&hold("vector(1)")));
    host.waits_for("held");
    assert!(host.requests("hold", "refused") >= 1.0);
    host.reload(&hold("vector(1) > 1"));
    host.runs();
    assert!(host.requests("hold", "granted") >= 1.0);
    host.reload(&hold("scalar(vector(1))"));
    until("the end of the run", || {
        let run = runs(&host.watch).pop()?;
        assert_eq!(run.outcome.as_str(), "stopped");
        Some(())
    });
    host.waits_for("held");
    host.reload(&hold("no query ("));
    until("a query that is none is counted", || {
        (host.requests("hold", "failed") >= 1.0).then_some(())
    });
    host.waits_for("held");
}
