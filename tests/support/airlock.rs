//! airlock (<https://github.com/coreos/airlock>), a server of FleetLock, with an etcd of its own.
//! `tests/run` builds it from `tests/data/airlock`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::child::Child;
use super::daemon::free_address;
use super::prometheus::tool;
use super::rundir::{self, Place};
use super::skip::Here;

#[derive(Debug)]
pub struct Airlock {
    program: PathBuf,
    address: SocketAddr,
    dir: PathBuf,
    // End before their directory goes.
    processes: Vec<Child>,
}

impl Airlock {
    /// Starts one with these groups and their numbers of slots. It may not answer yet.
    pub fn start(groups: &[(&str, usize)]) -> Here<Airlock> {
        let [program, etcd] = [tool("airlock")?, tool("etcd")?];
        let dir = rundir::new_dir(Place::Disk).expect("the run directory");
        let [address, client, peer] = [(); 3].map(|()| free_address());
        let mut config = format!(
            "[service]\naddress = \"{}\"\nport = {}\ntls = false\n[status]\nenabled = false\n\
             [etcd3]\nendpoints = [\"http://{client}\"]\n",
            address.ip(),
            address.port()
        );
        for (name, slots) in groups {
            writeln!(
                config,
                "[[lock.groups]]\nname = \"{name}\"\nslots = {slots}"
            )
            .unwrap();
        }
        fs::write(dir.join("airlock.toml"), config).unwrap();
        let mut airlock = Airlock {
            program,
            address,
            dir,
            processes: Vec::new(),
        };
        let mut store = Command::new(etcd);
        store.arg("--data-dir").arg(airlock.dir.join("etcd"));
        for (flag, address) in [
            ("--listen-client-urls", client),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer),
            ("--initial-advertise-peer-urls", peer),
        ] {
            store.arg(flag).arg(format!("http://{address}"));
        }
        store
            .arg("--initial-cluster")
            .arg(format!("default=http://{peer}"));
        airlock.spawn(store, "etcd.log");
        let serve = airlock.command(&["serve"]);
        airlock.spawn(serve, "airlock.log");
        Ok(airlock)
    }

    fn spawn(&mut self, mut command: Command, log: &str) {
        let log = File::create(self.dir.join(log)).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.processes.push(Child::spawn(&mut command).unwrap());
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        let config = self.dir.join("airlock.toml");
        command.arg("--config").arg(config).args(arguments);
        command
    }

    /// What `maintenance.lock.url` is to be.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The hosts of a group that have the lock, by its own account.
    pub fn holders(&self, group: &str) -> BTreeSet<String> {
        let output = self.command(&["ex", "get", "slots"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let of_group = format!("group: {group}\n");
        let groups = text.split("---\n").map(str::trim_start);
        let mut lines = groups.filter_map(|text| text.strip_prefix(&of_group));
        let lines = lines.next().unwrap_or_else(|| panic!("no {group}: {text}"));
        let owners = lines.lines().filter_map(|line| line.strip_prefix(" - "));
        owners.map(str::to_owned).collect()
    }
}

impl Drop for Airlock {
    fn drop(&mut self) {
        // The last one first.
        while let Some(process) = self.processes.pop() {
            drop(process);
        }
        rundir::remove(&self.dir);
    }
}
