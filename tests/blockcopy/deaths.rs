//! Killed at any moment: the VM goes on or starts from the complete image, and nothing is left that the
//! next start does not know. `FRAGWATCH_KILLS` is how often each is tried.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::libvirt::{self, Libvirt, until};
use super::support::child::Child;
use super::support::random::Random;
use super::support::skip::Here;
use super::support::stall;
use super::support::{self, Bed, MIB, guest, tools};
use super::{defrag, inode, is_switching, names, noted, recover, resume, state};

const VM: &str = "idle";

pub fn kills() -> u64 {
    let wanted = std::env::var("FRAGWATCH_KILLS");
    wanted.map_or(2, |wanted| wanted.parse().unwrap())
}

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    Fragwatch,
    Virsh,
    Libvirtd,
    Qemu,
    /// fragwatch and libvirtd.
    Both,
    /// fragwatch with all that it has started, as systemd ends a service.
    Service,
}

#[test]
fn fragwatch_killed() {
    support::require!(killed(Dies::Fragwatch));
}

#[test]
fn virsh_killed() {
    support::require!(killed(Dies::Virsh));
}

#[test]
fn libvirtd_killed() {
    support::require!(killed(Dies::Libvirtd));
}

#[test]
fn qemu_killed() {
    support::require!(killed(Dies::Qemu));
}

#[test]
fn fragwatch_and_libvirtd_killed() {
    support::require!(killed(Dies::Both));
}

#[test]
fn the_whole_service_killed() {
    support::require!(killed(Dies::Service));
}

/// A VM whose guest does not boot, and so writes nothing: what is on its disk is known.
struct Idle {
    image: PathBuf,
    sum: String,
    qemu: u32,
}

/// libvirtd may come back without a VM that runs, and takes it for off. The VM keeps its disk, and
/// nobody else gets that until an operator ends it.
pub fn end_forgotten(qemu: u32, image: &Path, directory: &Path) {
    let written = libvirt::writes_of(qemu, directory);
    if !written.is_empty() {
        eprintln!("libvirtd has forgotten its VM, which writes to {written:?}");
        assert!(written.contains(&inode(image)), "{:?}", names(image));
        signal(qemu, Signal::KILL);
    }
}

impl Idle {
    fn power_on(libvirt: &Libvirt, image: &Path) -> Idle {
        let _ = fs::remove_file(image);
        guest::random_direct_writes(image, 16 * MIB, 1024);
        libvirt.power_on(VM);
        Idle {
            image: image.to_owned(),
            sum: tools::checksum(image),
            qemu: libvirt.qemu(VM),
        }
    }

    /// The VM runs, or runs again, on what the path of the image leads to, and that is complete.
    fn is_whole_and_known(&self, libvirt: &Libvirt, bed: &Bed, context: &str) {
        let Idle { image, sum, .. } = self;
        let said = recover(libvirt, bed);
        if libvirt.state(VM).starts_with("shut off") {
            end_forgotten(self.qemu, image, bed.path());
            libvirt.power_on(VM);
        }
        let context = format!(
            "{context}; {said}; {:?} {}",
            names(image),
            libvirt.state(VM)
        );
        assert!(libvirt.state(VM).starts_with("running"), "{context}");
        let directory = image.parent().unwrap();
        until("the end of the copy's use", || {
            libvirt.writes(VM, directory) == [inode(image)]
        });
        assert_eq!(&tools::checksum(image), sum, "{context}");
        // The watchdog may be at work: then the next start leaves it to that.
        until("the definition's naming the image", || {
            recover(libvirt, bed);
            libvirt.source(VM, &["--inactive"]) == *image
        });
        assert!(names(image).len() <= 2 && noted(bed) <= 1, "{context}");
        libvirt.virsh(&["destroy", VM]);
        until("the end of the copy", || {
            recover(libvirt, bed);
            (names(image).len(), noted(bed)) == (1, 0)
        });
        assert_eq!(&tools::checksum(image), sum, "{context}");
    }
}

/// A run from beginning to end.
fn duration(libvirt: &Libvirt, bed: &Bed, image: &Path) -> Duration {
    let idle = Idle::power_on(libvirt, image);
    let began = Instant::now();
    let output = defrag(libvirt, bed, image, "").output().unwrap();
    let took = began.elapsed();
    assert!(output.status.success(), "{output:?} {}", libvirt.log());
    idle.is_whole_and_known(libvirt, bed, "not killed");
    took
}

fn killed(dies: Dies) -> Here<()> {
    let bed = Bed::xfs_with(&["-m", "reflink=0"])?;
    let mut libvirt = Libvirt::start()?;
    let image = bed.path().join("vm.raw");
    guest::random_direct_writes(&image, MIB, 1);
    libvirt.define(VM, &image, "", "");
    let mut took = duration(&libvirt, &bed, &image);
    let (mut early, mut switched, mut stood_still) = (0, 0, 0);
    for seed in 0..kills() {
        let idle = Idle::power_on(&libvirt, &image);
        let old = inode(&image);
        let mut child = Child::spawn(&mut defrag(&libvirt, &bed, &image, "")).unwrap();
        moment(seed, took, &mut child, || is_switching(&state(&bed)));
        match child.wait(Duration::ZERO) {
            None => early += 1,
            // It is faster than the first was.
            Some(_) => took = took.mul_f64(0.8),
        }
        match dies {
            Dies::Fragwatch => child.signal(Signal::KILL),
            Dies::Virsh => kill_child_of(child.id()),
            Dies::Libvirtd => libvirt.kill_daemon(),
            Dies::Qemu => libvirt.kill_qemu(VM),
            Dies::Both => {
                libvirt.kill_daemon();
                child.signal(Signal::KILL);
            }
            Dies::Service => {
                if child.wait(Duration::ZERO).is_none() {
                    kill_service(child.id());
                }
            }
        }
        if matches!(dies, Dies::Libvirtd | Dies::Both) {
            libvirt.start_daemon();
        }
        child.end();
        if dies == Dies::Service {
            // ExecStopPost= of the service does what the watchdog would have done.
            stood_still += u64::from(libvirt.state(VM).starts_with("paused"));
            resume(&libvirt, &bed);
            assert!(!libvirt.state(VM).starts_with("paused"), "seed {seed}");
        }
        // The watchdog needs no next start.
        until("the guest's going on", || {
            !libvirt.state(VM).starts_with("paused")
        });
        switched += u64::from(inode(&image) != old);
        let context = format!("{dies:?}, seed {seed} of {took:?}");
        idle.is_whole_and_known(&libvirt, &bed, &context);
    }
    eprintln!(
        "{dies:?}: {early} killed, {switched} on the copy when they were, {stood_still} left suspended"
    );
    assert!(early > 0);
    Ok(())
}

/// Waits for a moment of a run: one of its first four fifths, or in turn with that one during the switch or
/// soon after, which end it.
pub fn moment(seed: u64, took: Duration, child: &mut Child, is_switching: impl Fn() -> bool) {
    let mut random = Random::new(seed);
    if seed.is_multiple_of(2) {
        thread::sleep(took.mul_f64(random.below(800) as f64 / 1000.0));
        return;
    }
    until("the switch", || {
        is_switching() || child.wait(Duration::ZERO).is_some()
    });
    thread::sleep(Duration::from_millis(random.below(300)));
}

/// Kills the virsh that a run waits for, if there is one.
fn kill_child_of(pid: u32) {
    for child in children(pid) {
        let comm = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        if comm.trim() == "virsh" {
            signal(child, Signal::KILL);
        }
    }
}

/// Kills a run or a daemon with all that it has started, as if at once: parents are stopped before their
/// children are looked for, and nobody sees another's end.
pub fn kill_service(pid: u32) {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        signal(pid, Signal::STOP);
        let proc = PathBuf::from(format!("/proc/{pid}"));
        until("its stop", || {
            matches!(stall::state(&proc), None | Some('T' | 'Z'))
        });
        all.extend(children(pid));
        at += 1;
    }
    let children_first = all.into_iter().rev();
    children_first.for_each(|pid| signal(pid, Signal::KILL));
}

/// The children of a process.
fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    let children = tasks.map(|task| fs::read_to_string(task.path().join("children")));
    let children = children.flatten().collect::<String>();
    let pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
    pids.collect()
}

fn signal(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    let _ = rustix::process::kill_process(pid, signal);
}
