//! What ends a copy early, or comes in between: the VM keeps its image, and nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::libvirt::{DISK, Libvirt, until};
use super::support::child::Child;
use super::support::groups::{Groups, within};
use super::support::rundir::{self, Place};
use super::support::skip::{Here, NotHere};
use super::support::{self, Bed, MIB, guest, tools};
use super::{defrag, inode, names, noted, recover, report};

pub const VM: &str = "idle";
/// Slow enough that something can come in between.
const SLOW: &str = "bandwidth = \"16MiB/s\"";

/// A VM whose guest does not boot, and so writes nothing.
pub struct Trial {
    pub bed: Bed,
    pub libvirt: Libvirt,
    pub image: PathBuf,
    pub sum: String,
    pub old: u64,
}

pub fn trial() -> Here<Trial> {
    trial_with(&[])
}

/// With these at these places in the namespace of libvirtd.
fn trial_with(mounts: &[(&Path, &Path)]) -> Here<Trial> {
    let bed = Bed::xfs_with(&["-m", "reflink=0"])?;
    let libvirt = Libvirt::start_with(mounts)?;
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
        self.copying_as(&mut defrag(&self.libvirt, &self.bed, &self.image, SLOW))
    }

    fn copying_as(&self, run: &mut Command) -> Child {
        let child = Child::spawn(run).unwrap();
        until("the copy", || {
            self.libvirt.writes(VM, self.bed.path()).len() == 2
        });
        child
    }

    /// Waits until libvirt shows the job: what it was about to begin when it dies, or when somebody asks
    /// for something else, it may not begin.
    fn copying_for_certain(&self) -> Child {
        let child = self.copying();
        let job = ["blockjob", VM, DISK, "--raw"];
        until("the job", || !self.libvirt.virsh(&job).trim().is_empty());
        child
    }

    /// Starts the VM anew with a second disk, `vdb`. Returns a directory for what belongs to it.
    fn add_disk(&self) -> &Path {
        let directory = self.bed.path().parent().unwrap();
        let other = directory.join("other.raw");
        fs::File::create(&other).unwrap().set_len(MIB).unwrap();
        let disk = format!(
            "<disk type='file' device='disk'><driver name='qemu' type='raw'/>\
             <source file='{}'/><target dev='vdb' bus='virtio'/></disk>",
            other.display()
        );
        self.libvirt.virsh(&["destroy", VM]);
        self.libvirt.virsh(&["undefine", VM]);
        self.libvirt.define(VM, &self.image, "", &disk);
        self.libvirt.power_on(VM);
        directory
    }

    pub fn is_as_it_was(&self) {
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
    let child = trial.copying_for_certain();
    trial.libvirt.kill_daemon();
    trial.libvirt.start_daemon();
    let output = output(child);
    assert_eq!(report(&output)["outcome"], "improved", "{output:?}");
    assert_eq!(tools::checksum(&trial.image), trial.sum);
    assert_eq!(trial.libvirt.source(VM, &["--inactive"]), trial.image);
}

/// Others beside the run wait for the disks, as far as it is told.
#[test]
fn others_who_wait_hold_it_up_and_it_goes_on_after_them() {
    let groups = support::require!(Groups::new());
    let told = support::require!(rundir::new_dir(Place::Disk).map_err(NotHere::because));
    let told = told.join("io.pressure");
    let waits = |percent| {
        let some = format!("some avg10={percent}.00 avg60=0.00 avg300=0.00 total=0\n");
        fs::write(&told, &some).unwrap();
    };
    waits(0);
    let place = groups.beside().join("io.pressure");
    let trial = support::require!(trial_with(&[(&told, &place)]));
    let Trial { libvirt, bed, .. } = &trial;
    let keys = format!("{SLOW}\nmax_io_pressure = 40");
    let mut run = within(&groups.own(), &defrag(libvirt, bed, &trial.image, &keys));
    run.stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = trial.copying_as(&mut run);
    waits(90);
    let job = || libvirt.virsh(&["blockjob", VM, DISK, "--raw", "--bytes"]);
    let is_held = || job().contains("bandwidth=1\n");
    until("that it is held", is_held);
    // A copy that is not held ends in this time.
    thread::sleep(Duration::from_secs(8));
    assert!(is_held());
    assert_eq!(child.wait(Duration::ZERO), None);
    assert_eq!(libvirt.writes(VM, bed.path()).len(), 2);
    waits(0);
    let output = output(child);
    assert_eq!(report(&output)["outcome"], "improved", "{output:?}");
    assert_eq!(tools::checksum(&trial.image), trial.sum);
    assert_eq!(libvirt.writes(VM, bed.path()), [inode(&trial.image)]);
    rundir::remove(told.parent().unwrap());
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
fn a_disk_that_others_detach_keeps_its_image() {
    let trial = support::require!(trial());
    let child = trial.copying_for_certain();
    // libvirt takes a disk with a job from the definition only.
    let detach = |whence| trial.libvirt.try_virsh(&["detach-disk", VM, DISK, whence]);
    let live = detach("--live");
    assert!(!live.status.success(), "{live:?}");
    let defined = detach("--config");
    assert!(defined.status.success(), "{defined:?}");
    let output = output(child);
    assert_eq!(report(&output)["outcome"], "refused", "{output:?}");
    trial.is_as_it_was();
}

/// Begins what backup programs begin: blocks of these disks as they are now are kept until it is ended.
fn begin_backup(trial: &Trial, directory: &Path, disks: &[&str]) -> Output {
    let disk = |name| {
        let scratch = directory.join(format!("{name}.scratch"));
        match disks.contains(&name) {
            true => format!(
                "<disk name='{name}' type='file'><scratch file='{}'/></disk>",
                scratch.display()
            ),
            false => format!("<disk name='{name}' backup='no'/>"),
        }
    };
    let xml = format!(
        "<domainbackup mode='pull'><server transport='unix' socket='/run/backup'/>\
         <disks>{}{}</disks></domainbackup>",
        disk(DISK),
        disk("vdb")
    );
    let file = directory.join("backup.xml");
    fs::write(&file, xml).unwrap();
    let file = file.to_str().unwrap();
    trial.libvirt.try_virsh(&["backup-begin", VM, file])
}

#[test]
fn a_backup_that_begins_meanwhile_keeps_the_image_as_it_is() {
    let trial = support::require!(trial());
    let directory = trial.add_disk();
    let child = trial.copying_for_certain();
    let both = begin_backup(&trial, directory, &[DISK, "vdb"]);
    assert!(!both.status.success(), "{both:?}");
    let other = begin_backup(&trial, directory, &["vdb"]);
    assert!(other.status.success(), "{other:?}");
    let output = output(child);
    assert_eq!(report(&output)["outcome"], "refused", "{output:?}");
    let job = trial.libvirt.virsh(&["domjobinfo", VM]);
    assert!(job.contains("Backup"), "{job} {output:?}");
    trial.libvirt.virsh(&["domjobabort", VM]);
    trial.is_as_it_was();
}

#[test]
fn a_job_of_another_disk_goes_on() {
    let trial = support::require!(trial());
    let directory = trial.add_disk();
    let child = trial.copying_for_certain();
    let to = directory.join("other.copy");
    let to = to.to_str().unwrap();
    let other = ["blockcopy", VM, "vdb", to, "--transient-job"];
    trial.libvirt.virsh(&other);
    let output = output(child);
    assert_eq!(report(&output)["outcome"], "improved", "{output:?}");
    let job = trial.libvirt.virsh(&["blockjob", VM, "vdb", "--raw"]);
    assert!(job.contains("type="), "{job}");
    assert_eq!(tools::checksum(&trial.image), trial.sum);
    assert_eq!(trial.libvirt.source(VM, &["--inactive"]), trial.image);
    assert_ne!(inode(&trial.image), trial.old);
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
fn an_order_ends_the_wait_for_a_reader() {
    let trial = support::require!(trial());
    let child = trial.copying();
    let reader = fs::File::open(&trial.image).unwrap();
    until("the end of the copying", || {
        let xml = trial.libvirt.virsh(&["dumpxml", VM]);
        xml.contains("ready='yes'")
    });
    // Until it waits for the reader.
    thread::sleep(Duration::from_secs(2));
    child.signal(Signal::TERM);
    let output = output(child);
    drop(reader);
    assert_eq!(report(&output)["outcome"], "stopped", "{output:?}");
    trial.is_as_it_was();
}

#[test]
fn a_full_file_system_ends_it() {
    let trial = support::require!(trial());
    let child = trial.copying();
    let filler = trial.bed.path().join("filler");
    let filler_file = fs::File::create(&filler).unwrap();
    let free = rustix::fs::statvfs(trial.bed.path()).unwrap();
    // What the copy takes meanwhile is less than that, and that is less than what stays free.
    let length = free.f_bavail * free.f_frsize - 10 * MIB;
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
