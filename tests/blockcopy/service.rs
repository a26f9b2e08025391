//! The daemon copies in its windows, beside the libvirt of the host, and stops when it is to.

use std::fs;
use std::path::{Path, PathBuf};

use fragwatch::internals::history::Reader;
use fragwatch::internals::model::RunRecord;
use rustix::process::Signal;
use serde_json::Value;

use super::deaths::kill_service;
use super::ends::{self, Trial};
use super::libvirt::{Libvirt, until};
use super::support::emergency::{Refusals, alone};
use super::support::guest::{self, BLOCK};
use super::support::skip::Here;
use super::support::{self, Bed, MIB, RunningDaemon, free_address, rundir, tools};
use super::written::{self, Guest};
use super::{inode, is_switching, names, noted, resume, state};

const CONFIG: &str = r#"
[sampling]
interval = "1s"
probe_timeout = "1s"
map_interval = "never"
[thresholds]
warning = { extents = 1000, growth_per_day = "never", time_to_critical = "never" }
critical = { extents = 5000 }
[defrag]
max_io_pressure = 100
bandwidth = "BANDWIDTH"
[defrag.blockcopy]
enabled = true
"#;
const WINDOW: &str = r#"
[[maintenance.window]]
days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
start = "00:00"
duration = "24h"
"#;
const NO_RESCUE: &str = "[rescue]\nenabled = false\n";
const FAST: &str = "64GiB/s";
/// Slow enough that something can come in between.
const SLOW: &str = "16MiB/s";

/// A daemon in the namespace of a libvirtd.
struct Service {
    daemon: RunningDaemon,
    /// Its configuration without windows.
    text: String,
    file: PathBuf,
    database: PathBuf,
}

impl Service {
    fn start(libvirt: &Libvirt, bed: &Bed, bandwidth: &str, rescue: &str, more: &str) -> Service {
        let (state, address) = (state(bed), free_address());
        fs::create_dir_all(&state).unwrap();
        let (paths, config) = ([bed.path()], CONFIG.replace("BANDWIDTH", bandwidth));
        let text = format!(
            "[images]\npaths = {paths:?}\nmin_size = \"0B\"\n[metrics]\nlisten = \"{address}\"\n\
             {rescue}{config}"
        );
        let file = state.join("fragwatch.toml");
        fs::write(&file, format!("{text}{more}")).unwrap();
        let mut command = libvirt.command(env!("CARGO_BIN_EXE_fragwatch"));
        command.args(["run", "--config"]).arg(&file);
        command.env("STATE_DIRECTORY", &state);
        command.env("RUNTIME_DIRECTORY", &state);
        Service {
            daemon: RunningDaemon::spawn(&mut command, address),
            text,
            file,
            database: state.join("history.db"),
        }
    }

    /// Has it read its configuration again, with these windows.
    fn reload(&self, windows: &str) {
        fs::write(&self.file, format!("{}{windows}", self.text)).unwrap();
        self.daemon.signal(Signal::HUP);
    }

    fn ask(&self, subcommand: &str) -> Value {
        let output = self.daemon.ask(subcommand).arg("--json").output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// What the status states of an image.
    fn severity(&self, image: &Path) -> String {
        let status = self.ask("status");
        let images = status["worst"].as_array().into_iter().flatten();
        let mut found = images.filter(|row| row["path"] == image.to_str().unwrap());
        let row = found.next().unwrap_or(&Value::Null);
        row["severity"].as_str().unwrap_or_default().to_owned()
    }

    /// Why the plan leaves an image alone.
    fn why_not(&self, image: &Path) -> String {
        let plan = self.ask("plan");
        let images = plan["images"].as_array().into_iter().flatten();
        let mut found = images.filter(|row| row["path"] == image.to_str().unwrap());
        let row = found.next().unwrap_or(&Value::Null);
        let code = row["why_not"]["code"].as_str();
        code.unwrap_or_default().to_owned()
    }

    /// Its runs, the last one first.
    fn runs(&self) -> Vec<RunRecord> {
        let reader = Reader::open(&self.database);
        let runs = reader.and_then(|reader| reader.runs(None, 100));
        runs.unwrap_or_default()
    }

    /// Waits for the end of its next run, of which there have been `before`.
    fn run(&self, before: usize) -> RunRecord {
        until("the end of a run", || self.runs().len() > before);
        let run = self.runs().swap_remove(0);
        assert_eq!(run.engine.as_str(), "blockcopy", "{run:?}");
        run
    }
}

#[test]
fn a_window_takes_the_image_of_a_vm_that_never_stops_from_critical_to_ok() {
    support::require!(critical_to_ok());
}

fn critical_to_ok() -> Here<()> {
    let bed = Bed::xfs_with(&["-m", "reflink=0"])?;
    let libvirt = Libvirt::start()?;
    let parts = written::parts()?;
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 64 * MIB, 64 * MIB / BLOCK);
    let guest = Guest::start(&libvirt, &bed, &image, &parts);
    guest.wait_for_start(1);
    let (qemu, old) = (libvirt.qemu("guest"), inode(&image));
    let service = Service::start(&libvirt, &bed, FAST, NO_RESCUE, "");
    until("it is critical", || service.severity(&image) == "critical");
    until("the plan", || service.why_not(&image) == "no_window");
    guest.wait_for_more();

    service.reload(WINDOW);
    until("it is ok", || service.severity(&image) == "ok");
    let run = service.run(0);
    assert_eq!(run.outcome.as_str(), "improved", "{run:?}");
    assert!(run.from.0 > 5000 && run.to.0 < 100, "{run:?}");
    eprintln!("{run:?}, {} writes until then", guest.turn());
    let new = inode(&image);
    assert_ne!(new, old);
    assert_eq!(libvirt.writes("guest", bed.path()), [new]);
    guest.wait_for_more();
    // It has run, and found what it had written, all the time.
    assert_eq!(libvirt.qemu("guest"), qemu);
    assert_eq!(guest.printed("found").len(), 1);
    let written = guest.turn();
    libvirt.virsh(&["reset", "guest"]);
    assert!(guest.wait_for_start(2) >= written);
    rundir::remove(&parts.dir);
    Ok(())
}

/// A daemon with a run that copies.
fn copying(trial: &Trial, rescue: &str) -> Service {
    let Trial { libvirt, bed, .. } = trial;
    let service = Service::start(libvirt, bed, SLOW, rescue, WINDOW);
    until("the copy", || {
        libvirt.writes(ends::VM, bed.path()).len() == 2
    });
    service
}

/// The run ends for this reason and leaves the image as it was; another one completes when it may.
fn stops_and_goes_on(trial: &Trial, service: &Service, why: &str, again: impl FnOnce()) {
    let run = service.run(0);
    let ended = (run.outcome.as_str(), run.reason.as_str());
    assert_eq!(ended, ("stopped", why), "{run:?}");
    trial.is_as_it_was();
    again();
    let run = service.run(1);
    assert_eq!(run.outcome.as_str(), "improved", "{run:?}");
    let Trial { libvirt, image, .. } = trial;
    assert_ne!(inode(image), trial.old);
    assert_eq!(libvirt.writes(ends::VM, trial.bed.path()), [inode(image)]);
    assert_eq!(libvirt.source(ends::VM, &["--inactive"]), *image);
    assert_eq!(tools::checksum(image), trial.sum);
}

#[test]
fn a_pause_ends_a_copy_and_resume_begins_it_anew() {
    let trial = support::require!(ends::trial());
    let service = copying(&trial, NO_RESCUE);
    let order = |subcommand| {
        let output = service.daemon.ask(subcommand).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    order("pause");
    stops_and_goes_on(&trial, &service, "defragmentation was paused", || {
        assert_eq!(service.why_not(&trial.image), "paused");
        order("resume");
    });
}

#[test]
fn a_window_that_closes_ends_a_copy_and_the_next_begins_it_anew() {
    let trial = support::require!(ends::trial());
    let service = copying(&trial, NO_RESCUE);
    service.reload("");
    stops_and_goes_on(&trial, &service, "the maintenance window closed", || {
        service.reload(WINDOW);
    });
}

/// The record is the kernel's own, and what is a deadlock of it is configured: this kernel has none.
#[test]
fn an_incident_ends_a_copy_and_its_end_begins_it_anew() {
    let _alone = alone();
    let trial = support::require!(ends::trial());
    let record = support::require!(Refusals::new());
    let pattern = record.pattern();
    let rescue = format!(
        "[rescue]\ndry_run = true\nstall_after = \"never\"\nquiet_after = \"3s\"\n\
         [[klog.rule]]\nname = \"test_event\"\npattern = '{pattern}'\naction = \"rescue\"\n"
    );
    let service = copying(&trial, &rescue);
    record.happens();
    stops_and_goes_on(&trial, &service, "a rescue incident began", || ());
}

/// As the kernel or an operator ends a service, and systemd then what is left of its control group.
#[test]
fn a_service_that_is_killed_leaves_no_guest_suspended() {
    let trial = support::require!(ends::trial());
    let Trial {
        libvirt,
        bed,
        image,
        ..
    } = &trial;
    let service = copying(&trial, NO_RESCUE);
    until("the switch", || is_switching(&state(bed)));
    kill_service(service.daemon.pid());
    drop(service);
    resume(libvirt, bed);
    assert!(libvirt.state(ends::VM).starts_with("running"));
    assert_eq!(tools::checksum(image), trial.sum);
    // The next start knows what is left, and whether the image is still to be copied.
    let service = Service::start(libvirt, bed, FAST, NO_RESCUE, WINDOW);
    until("it is ok", || service.severity(image) == "ok");
    until("the definition's naming the image", || {
        libvirt.source(ends::VM, &["--inactive"]) == *image
    });
    assert_ne!(inode(image), trial.old);
    assert_eq!(libvirt.writes(ends::VM, bed.path()), [inode(image)]);
    assert_eq!(tools::checksum(image), trial.sum);
    assert!(names(image).len() <= 2 && noted(bed) <= 1);
}
