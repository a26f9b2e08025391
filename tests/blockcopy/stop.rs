//! The daemon is stopped while QEMU copies: the lock of a fleet is released when the copy has ended.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use super::libvirt::{Libvirt, until};
use super::support::child::Child;
use super::support::fleetlock::FleetLockServer;
use super::support::skip::Here;
use super::support::{self, Bed, MIB, RunningDaemon, free_address, guest};
use super::{config, defrag, inode, names, noted, recover, report, state};

const VM: &str = "idle";
const GROUP: &str = "default";
const SLOW: &str = "bandwidth = \"16MiB/s\"";
/// More than the daemon waits for a copy to be aborted.
const END: Duration = Duration::from_secs(40);
const WINDOW: &str = r#"days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"], start = "00:00", duration = "24h""#;

struct Trial {
    bed: Bed,
    libvirt: Libvirt,
    image: PathBuf,
    server: FleetLockServer,
    address: SocketAddr,
}

impl Trial {
    fn new() -> Here<Trial> {
        let bed = Bed::xfs_with(&["-m", "reflink=0"])?;
        let libvirt = Libvirt::start()?;
        let image = bed.path().join("vm.raw");
        guest::random_direct_writes(&image, 64 * MIB, 8192);
        libvirt.define(VM, &image, "", "");
        libvirt.power_on(VM);
        let server = FleetLockServer::start(1);
        fs::create_dir_all(state(&bed)).unwrap();
        Ok(Trial {
            bed,
            libvirt,
            image,
            server,
            address: free_address(),
        })
    }

    /// A daemon with such windows, in the namespace of libvirtd.
    fn daemon(&self, windows: &str) -> RunningDaemon {
        let text = format!(
            "[images]\npaths = [{:?}]\nmin_size = \"0B\"\n[metrics]\nlisten = \"{}\"\n\
             [rescue]\nenabled = false\n[sampling]\ninterval = \"1s\"\nmap_interval = \"never\"\n\
             [thresholds]\nwarning = {{ extents = 1000 }}\n\
             [maintenance]\nlock = {{ url = {:?} }}\nwindow = [{windows}]\n\
             [defrag]\nengines = [\"blockcopy\"]\nbandwidth = \"16MiB/s\"\nmax_io_pressure = 100\n\
             keep_free = \"1%\"\n[defrag.blockcopy]\nenabled = true\n",
            self.bed.path(),
            self.address,
            self.server.url()
        );
        let config = state(&self.bed).join("fragwatch.toml");
        fs::write(&config, text).unwrap();
        let mut command = self.libvirt.command(env!("CARGO_BIN_EXE_fragwatch"));
        command.args(["run", "--config"]).arg(config);
        command.env("STATE_DIRECTORY", state(&self.bed));
        RunningDaemon::spawn(&mut command, self.address)
    }

    /// A daemon that has QEMU copy.
    fn copying(&self) -> RunningDaemon {
        let daemon = self.daemon(&format!("{{ {WINDOW} }}"));
        until("the copy", || self.writes() == 2);
        assert_eq!(self.server.holders(GROUP).len(), 1);
        daemon
    }

    /// How many files on the file system of the image QEMU writes to.
    fn writes(&self) -> usize {
        self.libvirt.writes(VM, self.bed.path()).len()
    }

    fn is_free(&self) -> bool {
        self.server.holders(GROUP).is_empty()
    }
}

#[test]
fn the_lock_is_released_after_the_copy_is_aborted() {
    let trial = support::require!(Trial::new());
    let old = inode(&trial.image);
    let mut daemon = trial.copying();
    daemon.signal(Signal::TERM);
    until("the release", || trial.is_free());
    assert_eq!(trial.writes(), 1);
    assert!(daemon.wait(END).success(), "{}", daemon.stderr());
    assert_eq!((inode(&trial.image), noted(&trial.bed)), (old, 0));
    assert_eq!(names(&trial.image), ["vm.raw"]);
}

#[test]
fn the_lock_is_kept_while_a_copy_cannot_be_aborted() {
    let mut trial = support::require!(Trial::new());
    let mut daemon = trial.copying();
    trial.libvirt.kill_daemon();
    daemon.signal(Signal::TERM);
    daemon.wait(END);
    assert!(!trial.is_free(), "{}", daemon.stderr());
    assert_eq!(trial.writes(), 2);
    // The next start, before libvirtd is there.
    let next = trial.daemon("");
    until("an attempt to release it", || {
        trial.is_free() || next.stderr().contains("kept until the copy")
    });
    assert!(!trial.is_free());
    trial.libvirt.start_daemon();
    until("the release", || trial.is_free());
    assert_eq!(trial.writes(), 1);
    until("the end of the notes", || noted(&trial.bed) == 0);
}

#[test]
fn a_run_by_hand_keeps_the_lock_while_its_copy_cannot_be_aborted() {
    let mut trial = support::require!(Trial::new());
    let mut command = defrag(&trial.libvirt, &trial.bed, &trial.image, SLOW);
    let config = config(&trial.bed, SLOW);
    let text = fs::read_to_string(&config).unwrap();
    let lock = format!(
        "[maintenance]\nlock = {{ url = {:?} }}\n",
        trial.server.url()
    );
    fs::write(&config, lock + &text).unwrap();
    let mut run = Child::spawn(&mut command).unwrap();
    until("the copy", || trial.writes() == 2);
    assert_eq!(trial.server.holders(GROUP).len(), 1);
    trial.libvirt.kill_daemon();
    run.signal(Signal::TERM);
    run.end();
    assert_eq!((trial.is_free(), trial.writes()), (false, 2));
    trial.libvirt.start_daemon();
    recover(&trial.libvirt, &trial.bed);
    assert!(trial.is_free());
    assert_eq!((trial.writes(), noted(&trial.bed)), (1, 0));
    // The same VM is copied all the same, though its QEMU may have the other file open still.
    let again = defrag(&trial.libvirt, &trial.bed, &trial.image, "").output();
    let again = report(&again.unwrap());
    assert_eq!(again["outcome"], "improved", "{again}");
}
