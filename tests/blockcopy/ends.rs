//! What ends a copy early, or comes in between: the VM keeps its image, and nothing is left.

use std::fs;
use std::process::Output;

use rustix::process::Signal;

use super::libvirt::{DISK, Libvirt, until};
use super::support::child::Child;
use super::support::skip::Here;
use super::support::{self, Bed, MIB, guest, tools};
use super::{defrag, inode, names, noted, recover, report};

const VM: &str = "idle";
/// Slow enough that something can come in between.
const SLOW: &str = "bandwidth = \"16MiB/s\"";

struct Trial {
    bed: Bed,
    libvirt: Libvirt,
    image: std::path::PathBuf,
    sum: String,
    old: u64,
}

fn trial() -> Here<Trial> {
    let bed = Bed::xfs_with(&["-m", "reflink=0"])?;
    let libvirt = Libvirt::start()?;
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, 64 * MIB, 8192);
    libvirt.define(VM, &image, "", "");
    libvirt.power_on(VM);
    Ok(Trial {
        sum: tools::checksum(&image),
        old: inode(&image),
        bed,
        libvirt,
        image,
    })
}

impl Trial {
    /// Starts a slow run, and returns when QEMU copies.
    fn copying(&self) -> Child {
        let child = Child::spawn(&mut defrag(&self.libvirt, &self.bed, &self.image, SLOW)).unwrap();
        until("the copy", || {
            self.libvirt.writes(VM, self.bed.path()).len() == 2
        });
        child
    }

    fn is_as_it_was(&self) {
        assert_eq!(inode(&self.image), self.old);
        assert_eq!(
            (names(&self.image), noted(&self.bed)),
            (vec!["vm.raw".to_owned()], 0)
        );
        assert_eq!(self.libvirt.writes(VM, self.bed.path()), [self.old]);
        assert_eq!(tools::checksum(&self.image), self.sum);
        assert!(self.libvirt.state(VM).starts_with("running"));
    }
}

pub(super) fn output(mut child: Child) -> Output {
    use std::io::Read as _;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    child
        .pipes()
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut stdout)
        .unwrap();
    child
        .pipes()
        .stderr
        .take()
        .unwrap()
        .read_to_end(&mut stderr)
        .unwrap();
    let status = child.end();
    Output {
        status,
        stdout,
        stderr,
    }
}

#[test]
fn an_order_ends_it_and_a_second_run_waits_its_turn() {
    let trial = support::require!(trial());
    let child = trial.copying();
    let second = defrag(&trial.libvirt, &trial.bed, &trial.image, SLOW)
        .output()
        .unwrap();
    assert_eq!(report(&second)["outcome"], "refused", "{second:?}");
    child.signal(Signal::TERM);
    let output = output(child);
    assert_eq!(report(&output)["outcome"], "stopped", "{output:?}");
    trial.is_as_it_was();
}

#[test]
fn libvirtd_may_be_restarted_meanwhile() {
    let mut trial = support::require!(trial());
    let child = trial.copying();
    // What it was about to begin when it dies, it aborts when it is back.
    let job = ["blockjob", VM, DISK, "--raw"];
    until("the job", || !trial.libvirt.virsh(&job).trim().is_empty());
    trial.libvirt.kill_daemon();
    trial.libvirt.start_daemon();
    let output = output(child);
    assert_eq!(report(&output)["outcome"], "improved", "{output:?}");
    assert_eq!(tools::checksum(&trial.image), trial.sum);
    assert_eq!(trial.libvirt.source(VM, &["--inactive"]), trial.image);
}

#[test]
fn a_job_that_others_end_is_noticed() {
    let trial = support::require!(trial());
    let child = trial.copying();
    trial.libvirt.virsh(&["blockjob", VM, DISK, "--abort"]);
    let output = output(child);
    assert_eq!(report(&output)["outcome"], "failed", "{output:?}");
    trial.is_as_it_was();
}

#[test]
fn a_domain_that_others_undefine_keeps_its_image() {
    let trial = support::require!(trial());
    let child = trial.copying();
    trial.libvirt.virsh(&["undefine", VM]);
    let output = output(child);
    assert_eq!(report(&output)["outcome"], "refused", "{output:?}");
    trial.is_as_it_was();
}

#[test]
fn an_image_that_grew_keeps_its_file() {
    let trial = support::require!(trial());
    let child = trial.copying();
    let image = fs::OpenOptions::new()
        .write(true)
        .open(&trial.image)
        .unwrap();
    image.set_len(65 * MIB).unwrap();
    let output = output(child);
    assert_eq!(report(&output)["outcome"], "refused", "{output:?}");
    assert_eq!(inode(&trial.image), trial.old);
    assert_eq!((names(&trial.image).len(), noted(&trial.bed)), (1, 0));
}

/// As after a kill between the exchange of both files and its undoing, because a VM was being started.
#[test]
fn a_path_that_the_copy_took_in_vain_is_given_back() {
    let trial = support::require!(trial());
    let mut child = trial.copying();
    child.signal(Signal::KILL);
    child.end();
    trial.libvirt.virsh(&["blockjob", VM, DISK, "--abort"]);
    let copy = names(&trial.image).remove(0);
    let copy = trial.image.with_file_name(copy);
    let temporary = format!(".fragwatch-{}.tmp", inode(&copy));
    let temporary = trial.image.with_file_name(temporary);
    fs::rename(&trial.image, &temporary).unwrap();
    fs::hard_link(&copy, &trial.image).unwrap();
    assert_eq!(recover(&trial.libvirt, &trial.bed), "");
    trial.is_as_it_was();
}

/// It would go on reading the old file.
#[test]
fn a_reader_of_the_image_is_waited_for_or_a_reason() {
    let trial = support::require!(trial());
    let reader = fs::File::open(&trial.image).unwrap();
    let run = defrag(&trial.libvirt, &trial.bed, &trial.image, "")
        .output()
        .unwrap();
    let run = report(&run);
    assert_eq!(run["guard"], "hypervisor", "{run}");
    assert!(run.to_string().contains("be it for reading"), "{run}");
    trial.is_as_it_was();
    drop(reader);
    let child = trial.copying();
    let reader = fs::File::open(&trial.image).unwrap();
    until("the end of the copying", || {
        let xml = trial.libvirt.virsh(&["dumpxml", VM]);
        xml.contains("ready='yes'")
    });
    assert_eq!(inode(&trial.image), trial.old);
    drop(reader);
    let output = output(child);
    assert_eq!(report(&output)["outcome"], "improved", "{output:?}");
    assert_eq!(tools::checksum(&trial.image), trial.sum);
}

#[test]
fn a_full_file_system_ends_it() {
    let trial = support::require!(trial());
    let child = trial.copying();
    let filler = trial.bed.path().join("filler");
    let filler_file = fs::File::create(&filler).unwrap();
    let free = rustix::fs::statvfs(trial.bed.path()).unwrap();
    let length = free.f_bavail * free.f_frsize - MIB;
    rustix::fs::fallocate(&filler_file, rustix::fs::FallocateFlags::empty(), 0, length).unwrap();
    let output = output(child);
    assert_eq!(report(&output)["outcome"], "no_space", "{output:?}");
    fs::remove_file(&filler).unwrap();
    trial.is_as_it_was();
}

#[test]
fn what_no_vm_of_libvirt_has_open_is_left_alone() {
    let trial = support::require!(trial());
    trial.libvirt.virsh(&["destroy", VM]);
    let run = defrag(&trial.libvirt, &trial.bed, &trial.image, "")
        .output()
        .unwrap();
    assert_eq!(report(&run)["guard"], "not_libvirt", "{run:?}");
}
