//! Copies under a VM that is not shut down between them: it knows its image by the path of the last copy,
//! and is started with that of the image. Both lead to the current file at every moment.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FallocateFlags, XattrFlags, fallocate, getxattr, removexattr, setxattr};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::deaths::{end_forgotten, kills, moment};
use super::ends::output;
use super::libvirt::{Libvirt, until};
use super::support::child::Child;
use super::support::guest::BLOCK;
use super::support::skip::Here;
use super::support::{self, Bed, MIB, guest, rundir, tools};
use super::written::{self, Guest};
use super::{defrag, inode, names, noted, recover, report};

const VM: &str = "idle";
const LABEL: &str = "security.selinux";
/// Slow enough that something can come in between.
const SLOW: &str = "bandwidth = \"16MiB/s\"";

/// Gives an image more extents: behind its end, where its guest does not write.
pub fn fragment(image: &Path) {
    let file = File::options().write(true).open(image).unwrap();
    let end = file.metadata().unwrap().len();
    for number in 1..=8 {
        let at = end + number * 32 * MIB;
        fallocate(&file, FallocateFlags::KEEP_SIZE, at, BLOCK).unwrap();
    }
}

fn copies(libvirt: &Libvirt, bed: &Bed, image: &Path) {
    improves(libvirt, &mut defrag(libvirt, bed, image, ""));
}

fn improves(libvirt: &Libvirt, command: &mut Command) {
    let output = command.output().unwrap();
    let run = report(&output);
    assert_eq!(run["outcome"], "improved", "{output:?} {}", libvirt.log());
    eprintln!("{run}");
}

/// A running VM uses what the path of its image leads to; it knows it by another name, and is started
/// with that path.
fn is_settled(libvirt: &Libvirt, bed: &Bed, name: &str, image: &Path) {
    let current = inode(image);
    assert_eq!(libvirt.writes(name, bed.path()), [current]);
    assert_eq!(libvirt.source(name, &["--inactive"]), image);
    let known = libvirt.source(name, &[]);
    assert_ne!(known, image);
    assert_eq!(inode(&known), current);
    assert_eq!((names(image).len(), noted(bed)), (2, 1));
}

#[test]
fn a_vm_that_never_stops_is_copied_again() {
    support::require!(copied_again());
}

fn copied_again() -> Here<()> {
    let bed = Bed::xfs_with(&["-m", "reflink=0"])?;
    let libvirt = Libvirt::start()?;
    let image = bed.path().join("vm.raw");
    let blocks = written::IMAGE / BLOCK;
    guest::random_direct_writes(&image, written::IMAGE, blocks);
    let parts = written::parts()?;
    let guest = Guest::start(&libvirt, &bed, &image, &parts);
    guest.wait_for_start(1);
    for _ in 0..3 {
        guest.wait_for_more();
        fragment(&image);
        let before = inode(&image);
        copies(&libvirt, &bed, &image);
        assert_ne!(inode(&image), before);
        is_settled(&libvirt, &bed, "guest", &image);
    }
    guest.wait_for_more();
    // One that is given up leaves all as the last one has left it.
    fragment(&image);
    let (before, known) = (inode(&image), libvirt.source("guest", &[]));
    let child = Child::spawn(&mut defrag(&libvirt, &bed, &image, SLOW)).unwrap();
    until("the copy", || {
        libvirt.writes("guest", bed.path()).len() == 2
    });
    child.signal(Signal::TERM);
    let run = report(&output(child));
    assert_eq!(run["outcome"], "stopped", "{run}");
    is_settled(&libvirt, &bed, "guest", &image);
    assert_eq!(
        (inode(&image), libvirt.source("guest", &[])),
        (before, known)
    );

    libvirt.virsh(&["reset", "guest"]);
    let written = guest.turn();
    assert!(guest.wait_for_start(2) >= written);
    copies(&libvirt, &bed, &image);
    guest.wait_for_more();
    libvirt.virsh(&["destroy", "guest"]);
    let written = guest.turn();
    assert_eq!(recover(&libvirt, &bed), "");
    assert_eq!((names(&image).len(), noted(&bed)), (1, 0));
    libvirt.power_on("guest");
    assert!(guest.wait_for_start(3) >= written);
    rundir::remove(&parts.dir);
    Ok(())
}

/// A VM whose guest does not boot, which has been copied once.
struct Once {
    bed: Bed,
    libvirt: Libvirt,
    image: PathBuf,
    /// The process of the VM.
    qemu: u32,
}

impl Once {
    fn new() -> Here<Once> {
        let bed = Bed::xfs_with(&["-m", "reflink=0"])?;
        let libvirt = Libvirt::start()?;
        let image = bed.path().join("vm.raw");
        guest::random_direct_writes(&image, MIB, 1);
        libvirt.define(VM, &image, "", "");
        Ok(Once {
            bed,
            libvirt,
            image,
            qemu: 0,
        })
    }

    /// Starts the VM with a new image. Returns its checksum.
    fn start(&mut self) -> String {
        let _ = fs::remove_file(&self.image);
        guest::random_direct_writes(&self.image, 16 * MIB, 1024);
        self.libvirt.power_on(VM);
        self.qemu = self.libvirt.qemu(VM);
        tools::checksum(&self.image)
    }

    /// The same, and copies it.
    fn copy(&mut self) -> String {
        let sum = self.start();
        copies(&self.libvirt, &self.bed, &self.image);
        is_settled(&self.libvirt, &self.bed, VM, &self.image);
        fragment(&self.image);
        sum
    }

    /// The VM runs on what both paths lead to, and that is complete; when it is off, nothing is left.
    fn is_whole_and_known(&self, sum: &str, context: &str) {
        let Once {
            bed,
            libvirt,
            image,
            qemu,
        } = self;
        let said = recover(libvirt, bed);
        if libvirt.state(VM).starts_with("shut off") {
            end_forgotten(*qemu, image, bed.path());
            libvirt.power_on(VM);
        }
        let context = format!(
            "{context}; {said}; {:?} {}",
            names(image),
            libvirt.state(VM)
        );
        assert!(libvirt.state(VM).starts_with("running"), "{context}");
        until("the end of the copy's use", || {
            libvirt.writes(VM, bed.path()) == [inode(image)]
        });
        assert_eq!(tools::checksum(image), sum, "{context}");
        // The watchdog may be at work: then the next start leaves it to that.
        until("the definition's naming the image", || {
            recover(libvirt, bed);
            libvirt.source(VM, &["--inactive"]) == *image
        });
        assert_eq!(inode(&libvirt.source(VM, &[])), inode(image), "{context}");
        until("the end of the copy that is not used", || {
            recover(libvirt, bed);
            names(image).len() <= 2 && noted(bed) <= 2
        });
        libvirt.virsh(&["destroy", VM]);
        until("the end of the copies", || {
            recover(libvirt, bed);
            (names(image).len(), noted(bed)) == (1, 0)
        });
        assert_eq!(tools::checksum(image), sum, "{context}");
    }
}

/// QEMU has the image open by a path in another directory then.
#[test]
fn the_copies_lie_in_another_directory() {
    support::require!(copies_elsewhere());
}

fn copies_elsewhere() -> Here<()> {
    let once = Once::new()?;
    let Once {
        bed,
        libvirt,
        image,
        ..
    } = &once;
    let elsewhere = bed.path().join("copies");
    fs::create_dir(&elsewhere).unwrap();
    libvirt.power_on(VM);
    let sum = tools::checksum(image);
    for _ in 0..3 {
        fragment(image);
        let before = inode(image);
        let mut command = defrag(libvirt, bed, image, "");
        let config = super::config(bed, "");
        let mut options = File::options();
        let mut config = options.append(true).open(config).unwrap();
        writeln!(config, "directory = \"{}\"", elsewhere.display()).unwrap();
        improves(libvirt, &mut command);
        assert_ne!(inode(image), before);
        let known = libvirt.source(VM, &[]);
        assert_eq!(known.parent(), Some(elsewhere.as_path()));
        assert_eq!(inode(&known), inode(image));
        assert_eq!(names(image), ["copies", "vm.raw"]);
        assert_eq!((names(&known).len(), noted(bed)), (1, 1));
    }
    libvirt.virsh(&["destroy", VM]);
    assert_eq!(recover(libvirt, bed), "");
    assert_eq!((names(&elsewhere.join("none")).len(), noted(bed)), (0, 0));
    assert_eq!(tools::checksum(image), sum);
    Ok(())
}

#[test]
fn fragwatch_killed() {
    support::require!(killed("fragwatch", |_, child| child.signal(Signal::KILL)));
}

#[test]
fn libvirtd_killed() {
    support::require!(killed("libvirtd", |libvirt, _| {
        libvirt.kill_daemon();
        libvirt.start_daemon();
    }));
}

#[test]
fn qemu_killed() {
    support::require!(killed("QEMU", |libvirt, _| libvirt.kill_qemu(VM)));
}

#[test]
fn fragwatch_and_libvirtd_killed() {
    support::require!(killed("both", |libvirt, child| {
        libvirt.kill_daemon();
        child.signal(Signal::KILL);
        libvirt.start_daemon();
    }));
}

fn killed(what: &str, kill: impl Fn(&mut Libvirt, &Child)) -> Here<()> {
    let kills = kills();
    let mut once = Once::new()?;
    let sum = once.copy();
    let began = Instant::now();
    copies(&once.libvirt, &once.bed, &once.image);
    let mut took = began.elapsed();
    once.is_whole_and_known(&sum, "not killed");
    let (mut early, mut switched) = (0, 0);
    for seed in 0..kills {
        let sum = once.copy();
        let old = inode(&once.image);
        let command = &mut defrag(&once.libvirt, &once.bed, &once.image, "");
        let mut child = Child::spawn(command).unwrap();
        moment(seed, took, &mut child, || is_switching(&once.bed));
        match child.wait(Duration::ZERO) {
            None => early += 1,
            Some(_) => took = took.mul_f64(0.8),
        }
        kill(&mut once.libvirt, &child);
        child.end();
        until("the guest's going on", || {
            !once.libvirt.state(VM).starts_with("paused")
        });
        switched += u64::from(inode(&once.image) != old);
        once.is_whole_and_known(&sum, &format!("{what}, seed {seed} of {took:?}"));
    }
    eprintln!("{what}: {early} killed, {switched} on the copy when they were");
    assert!(early > 0);
    Ok(())
}

/// The notes, that of the last copy first: the file, and what is noted.
fn notes(bed: &Bed) -> Vec<(PathBuf, Value)> {
    let notes = fs::read_dir(super::state(bed).join("defrag")).unwrap();
    let read = |path: PathBuf| {
        let note: Value = serde_json::from_str(&fs::read_to_string(&path).ok()?).ok()?;
        Some((path, note))
    };
    let mut notes: Vec<_> = notes.flatten().filter_map(|it| read(it.path())).collect();
    notes.sort_by_key(|(_, note)| note["former"] == "");
    notes
}

/// Whether a copy after the first is taken into use.
fn is_switching(bed: &Bed) -> bool {
    let mut notes = notes(bed).into_iter();
    notes.any(|(_, note)| note["former"] != "" && !note["step"]["switching"].is_null())
}

/// libvirtd dies between QEMU's pivot and its own note: it then takes the pivot for an abort, and names
/// the path of the first copy as long as the VM runs.
#[test]
fn a_pivot_that_libvirt_has_not_noted() {
    support::require!(misfiled());
}

fn misfiled() -> Here<()> {
    let mut once = Once::new()?;
    let sum = once.copy();
    let (old, first) = (inode(&once.image), once.libvirt.source(VM, &[]));
    setxattr(&once.image, LABEL, b"ours\0", XattrFlags::empty()).unwrap();
    let copy = once.pivot_unnoted(|_| ());
    // As libvirt does to a copy that it takes for given up.
    removexattr(&copy, LABEL).unwrap();
    once.libvirt.start_daemon();
    until("the end of the job", || {
        !once.libvirt.virsh(&["dumpxml", VM]).contains("<mirror")
    });
    let said = recover(&once.libvirt, &once.bed);
    let current = inode(&once.image);
    assert_ne!(current, old, "{said}");
    assert_eq!(once.libvirt.source(VM, &[]), first, "{said}");
    assert_eq!(inode(&first), current, "{said}");
    let mut label = [0; 8];
    let length = getxattr(&once.image, LABEL, label.as_mut_slice()).unwrap();
    assert_eq!(&label[..length], b"ours\0");
    // No third one yet: libvirt does not know that of the second.
    let third = defrag(&once.libvirt, &once.bed, &once.image, "").output();
    let third = report(&third.unwrap());
    assert_eq!(third["guard"], "hypervisor", "{third}");
    once.is_whole_and_known(&sum, &said);
    Ok(())
}

/// The same of the first copy, whose name is removed, by which QEMU would open it again.
#[test]
fn a_first_pivot_that_libvirt_has_not_noted() {
    support::require!(misfiled_first());
}

fn misfiled_first() -> Here<()> {
    let mut once = Once::new()?;
    let sum = once.start();
    let old = inode(&once.image);
    // It has no lock of QEMU, and counts for nothing.
    let mut writer = None;
    once.pivot_unnoted(|once| {
        writer = Some(File::options().write(true).open(&once.image).unwrap());
    });
    once.libvirt.start_daemon();
    until("the end of the copy", || {
        recover(&once.libvirt, &once.bed);
        (names(&once.image).len(), noted(&once.bed)) == (1, 0)
    });
    drop(writer);
    let current = inode(&once.image);
    assert_ne!(current, old);
    assert_eq!(tools::checksum(&once.image), sum);
    fragment(&once.image);
    let run = defrag(&once.libvirt, &once.bed, &once.image, "").output();
    let run = report(&run.unwrap());
    assert_eq!(run["guard"], "hypervisor", "{run}");
    assert!(run.to_string().contains("(deleted)"), "{run}");
    assert_eq!(once.libvirt.writes(VM, once.bed.path()), [current]);
    once.libvirt.virsh(&["destroy", VM]);
    once.libvirt.power_on(VM);
    copies(&once.libvirt, &once.bed, &once.image);
    assert_eq!(tools::checksum(&once.image), sum);
    Ok(())
}

/// Somebody resumes the guest by hand between the pivot and the link, and QEMU ends before the link.
#[test]
fn a_guest_that_is_resumed_by_hand() {
    let (once, copy) = support::require!(resumed_by_hand());
    let (old, sum) = (inode(&once.image), tools::checksum(&copy));
    let said = recover(&once.libvirt, &once.bed);
    assert_ne!(inode(&once.image), old, "{said}");
    assert_eq!(tools::checksum(&once.image), sum, "{said}");
    assert_eq!(
        (names(&once.image).len(), noted(&once.bed)),
        (1, 0),
        "{said}"
    );
}

/// Then the VM is started with the old file, and writes to that: each of both has what the other lacks.
#[test]
fn a_guest_that_is_started_again_after_it_was_resumed_by_hand() {
    let (once, copy) = support::require!(resumed_by_hand());
    let (old, sum) = (inode(&once.image), tools::checksum(&copy));
    once.libvirt.power_on(VM);
    let guest = File::options().write(true).open(&once.image).unwrap();
    guest.write_all_at(b"written later", 8192).unwrap();
    drop(guest);
    let before = tools::checksum(&once.image);
    let both_stay = || {
        let said = recover(&once.libvirt, &once.bed);
        assert!(said.contains("both stay"), "{said}");
        assert_eq!((inode(&once.image), inode(&copy) == old), (old, false));
        assert_eq!(tools::checksum(&once.image), before, "{said}");
        assert_eq!(tools::checksum(&copy), sum, "{said}");
    };
    both_stay();
    once.libvirt.virsh(&["destroy", VM]);
    both_stay();
}

/// The path of the copy is returned, which nothing but a note leads to.
fn resumed_by_hand() -> Here<(Once, PathBuf)> {
    let mut once = Once::new()?;
    once.copy();
    // What fragwatch does while the guest stands still.
    let copy = once.pivot_unnoted(|once| {
        let (file, mut note) = notes(&once.bed).remove(0);
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seconds = Duration::from_secs(seconds.as_secs());
        note["step"] = json!({"switching": {"suspends": true}});
        note["mark"] = json!({"seconds": seconds.as_secs()});
        for path in [&once.image, Path::new(note["copy"].as_str().unwrap())] {
            let file = File::options().write(true).open(path).unwrap();
            file.set_modified(UNIX_EPOCH + seconds).unwrap();
        }
        fs::write(file, note.to_string()).unwrap();
    });
    let guest = File::options().write(true).open(&copy).unwrap();
    guest.write_all_at(b"written since", 4096).unwrap();
    drop(guest);
    let qemu = Pid::from_raw(once.libvirt.qemu(VM).try_into().unwrap()).unwrap();
    kill_process(qemu, Signal::KILL).unwrap();
    once.libvirt.start_daemon();
    until("its end", || once.libvirt.state(VM).starts_with("shut off"));
    Ok((once, copy))
}

impl Once {
    /// Kills fragwatch while it copies, and libvirtd when the copy is complete; then
    /// has QEMU change to it. `before` is done before that. Returns the path of the copy.
    fn pivot_unnoted(&mut self, before: impl FnOnce(&Once)) -> PathBuf {
        let command = &mut defrag(&self.libvirt, &self.bed, &self.image, SLOW);
        let mut child = Child::spawn(command).unwrap();
        let writes = |once: &Once| once.libvirt.writes(VM, once.bed.path());
        until("the copy", || writes(self).len() == 2);
        child.signal(Signal::KILL);
        child.end();
        until("the end of the copying", || {
            let xml = self.libvirt.virsh(&["dumpxml", VM]);
            xml.contains("ready='yes'")
        });
        self.libvirt.kill_daemon();
        before(self);
        let old = inode(&self.image);
        pivot(&self.libvirt);
        until("the pivot", || {
            let written = writes(self);
            written.len() == 1 && written != [old]
        });
        let (_, note) = notes(&self.bed).remove(0);
        PathBuf::from(note["copy"].as_str().unwrap())
    }
}

/// Has QEMU complete the copy, on the monitor that libvirtd has left.
fn pivot(libvirt: &Libvirt) {
    let domains = fs::read_dir(libvirt.at(Path::new("/var/lib/libvirt/qemu"))).unwrap();
    let mut sockets = domains.flatten().map(|it| it.path().join("monitor.sock"));
    let socket = sockets.find(|socket| socket.exists()).unwrap();
    let mut monitor = UnixStream::connect(socket).unwrap();
    let mut lines = BufReader::new(monitor.try_clone().unwrap()).lines();
    let mut ask = |request: Value| -> Value {
        writeln!(monitor, "{request}").unwrap();
        let mut answers = lines.by_ref().map(|line| line.unwrap());
        let answer = answers.find(|line| line.contains("\"return\"") || line.contains("\"error\""));
        let answer: Value = serde_json::from_str(&answer.unwrap()).unwrap();
        assert!(answer["error"].is_null(), "{answer}");
        answer["return"].clone()
    };
    ask(json!({"execute": "qmp_capabilities"}));
    let jobs = ask(json!({"execute": "query-jobs"}));
    let id = &jobs[0]["id"];
    ask(json!({"execute": "job-complete", "arguments": {"id": id}}));
}
