//! The power, or QEMU alone, fails at any moment of a copy. After a power cut, what is on the disks is mounted
//! in a machine of its own, at the same paths: its libvirtd and fragwatch know nothing else. The VM starts
//! from the path of its image, and finds all that it had flushed.
//!
//! There are two disks, one of the images and one of the system, with what libvirt and fragwatch keep:
//! what is durable on one of them says nothing about the other.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::deaths::{kill_service, kills, moment};
use super::libvirt::{Libvirt, until};
use super::support::child::Child;
use super::support::random::Random;
use super::support::skip::{Here, NotHere};
use super::support::{self, Bed, MIB, Stall, boot, guest, rundir, stall};
use super::written::{self, Guest};
use super::{defrag, inode, is_switching, names, noted_in, qcow2, report, restore_hints, second};

const VM: &str = "guest";
const IMAGE: u64 = 16 * MIB;
/// What of the system's disk libvirt keeps its state in, and where that is mounted.
const OF_LIBVIRT: [(&str, &str); 2] = [("etc", "/etc/libvirt"), ("lib", "/var/lib/libvirt")];

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_flushed() {
    support::require!(failures(Fails::Power, "vm.raw"));
}

/// The guest has clusters allocated all the time.
#[test]
fn a_power_cut_loses_nothing_of_a_thin_qcow2() {
    support::require!(failures(Fails::Power, "vm.qcow2"));
}

#[test]
fn qemu_killed_under_load_loses_nothing_of_a_thin_qcow2() {
    support::require!(failures(Fails::Qemu, "vm.qcow2"));
}

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    Power,
    Qemu,
}

fn failures(fails: Fails, name: &'static str) -> Here<()> {
    let mut parts = written::parts()?;
    if name.ends_with("qcow2") {
        parts.words.insert_str(0, written::THIN);
    }
    let mut all = Failures::default();
    // The first is made when the copy has ended.
    for seed in 0..=kills() {
        let host = Host::new(name)?;
        let left = host.work(fails, seed, &parts, &mut all)?;
        host.recovers(left, seed, &mut all)?;
    }
    eprintln!("{fails:?}, {name}: {all:?}");
    assert!(all.early > 0);
    rundir::remove(&parts.dir);
    Ok(())
}

/// What they came to.
#[derive(Debug, Default)]
struct Failures {
    /// How long a copy takes.
    took: Duration,
    /// How many were before the copy had ended.
    early: u64,
    /// In how many the path of the image led to the copy.
    switched: u64,
    /// The most writes after the last flush that one has taken.
    lost: u64,
}

/// A machine with two disks.
struct Host {
    images: Stall,
    system: Stall,
    /// Of the image.
    name: &'static str,
}

/// What is left of a machine.
struct Left {
    libvirt: Libvirt,
    /// After a power cut, what is on its disks; unmounted after libvirtd has ended.
    _disks: Option<[Bed; 2]>,
    guest: Guest,
    /// The inode of the image before.
    old: u64,
    /// The last write that the guest had flushed before.
    flushed: u64,
}

impl Host {
    fn new(name: &'static str) -> Here<Host> {
        let disk = || Stall::with(&["-m", "reflink=0"]);
        let (images, system) = (disk()?, disk()?);
        for (of_libvirt, _) in OF_LIBVIRT {
            fs::create_dir(system.path().join(of_libvirt)).map_err(NotHere::because)?;
        }
        Ok(Host {
            images,
            system,
            name,
        })
    }

    fn image(&self) -> PathBuf {
        self.images.path().join(self.name)
    }

    fn create_image(&self) -> Here<()> {
        let image = self.image();
        if !self.name.ends_with("qcow2") {
            guest::random_direct_writes(&image, IMAGE, IMAGE / guest::BLOCK);
            return Ok(());
        }
        let raw = self.images.bed().path().parent().unwrap().join("thin");
        guest::random_direct_writes(&raw, IMAGE, 16);
        qcow2::shattered(&raw, &image, &["-o", "cluster_size=4k"])
    }

    fn state(&self) -> PathBuf {
        self.system.path().join("state")
    }

    /// Switches it on, with these file systems in place of its own.
    fn switch_on(&self, others: &[(&Path, &Path)]) -> Here<Libvirt> {
        let places = OF_LIBVIRT.map(|(name, at)| (self.system.path().join(name), Path::new(at)));
        let mut mounts = others.to_vec();
        mounts.extend(places.iter().map(|(what, at)| (what.as_path(), *at)));
        Libvirt::start_with(&mounts)
    }

    /// Copies an image under a guest that works, until something fails. Switches the machine on again if it
    /// was the power.
    fn work(&self, fails: Fails, seed: u64, parts: &boot::Parts, all: &mut Failures) -> Here<Left> {
        let (image, state) = (self.image(), self.state());
        self.create_image()?;
        let libvirt = self.switch_on(&[])?;
        let guest = Guest::start(&libvirt, self.images.bed(), &image, parts);
        guest.wait_for_start(1);
        guest.wait_for_more();
        // Some during a second copy of a VM that was not shut down.
        if seed & 2 != 0 && !self.name.ends_with("qcow2") {
            let mut first = defrag(&libvirt, self.images.bed(), &image, "");
            let first = first.env("STATE_DIRECTORY", &state).output().unwrap();
            assert_eq!(report(&first)["outcome"], "improved", "{first:?}");
            second::fragment(&image);
            guest.wait_for_more();
        }
        for disk in [&self.images, &self.system] {
            disk.bed().sync();
        }
        let old = inode(&image);
        let began = Instant::now();
        let mut run = defrag(&libvirt, self.images.bed(), &image, "");
        let mut run = Child::spawn(run.env("STATE_DIRECTORY", &state)).unwrap();
        match seed {
            0 => {
                let said = io::read_to_string(run.pipes().stdout.take().unwrap()).unwrap();
                run.end();
                // A thin image need not be in fewer extents then.
                assert_ne!(inode(&image), old, "{said} {}", libvirt.log());
                all.took = began.elapsed();
            }
            _ => moment(seed, all.took, &mut run, || is_switching(&state)),
        }
        let flushed = guest.turn();
        let is_early = run.wait(Duration::ZERO).is_none();
        all.early += u64::from(is_early);
        let disks = match fails {
            Fails::Power => Some(self.cut(seed)?),
            Fails::Qemu => None,
        };
        if is_early && disks.is_some() {
            kill_service(run.id());
        }
        libvirt.kill_qemu(VM);
        run.end();
        let libvirt = match &disks {
            None => libvirt,
            Some([images, system]) => {
                drop(libvirt);
                self.switch_on(&[
                    (images.path(), self.images.bed().path()),
                    (system.path(), self.system.bed().path()),
                ])?
            }
        };
        Ok(Left {
            libvirt,
            _disks: disks,
            guest,
            old,
            flushed,
        })
    }

    /// What is on the disks when the power fails.
    fn cut(&self, seed: u64) -> Here<[Bed; 2]> {
        let mut disks = [&self.images, &self.system];
        let system_first = Random::new(!seed).below(2) == 0;
        if system_first {
            disks.reverse();
        }
        let mut beds = stall::power_cut(&disks)?;
        if system_first {
            beds.reverse();
        }
        Ok(beds.try_into().unwrap())
    }

    /// The VM is started again, with what is left.
    fn recovers(&self, left: Left, seed: u64, all: &mut Failures) -> Here<()> {
        let Left {
            libvirt,
            guest,
            flushed,
            ..
        } = &left;
        let (image, state) = (self.image(), self.state());
        let seen = libvirt.at(&image);
        all.switched += u64::from(inode(&seen) != left.old);
        let recover = || restore_hints(libvirt, &state, &[]);
        let before = names(&seen);
        // libvirt may have started its VMs before.
        let starts_first = Random::new(seed).below(2) == 0;
        if starts_first {
            libvirt.power_on(VM);
        }
        let context = format!("seed {seed}: {before:?}, {starts_first}, {}", recover());
        if !starts_first {
            libvirt.power_on(VM);
        }
        let [found, last] = guest.wait_after_cut(2);
        assert!(
            found >= *flushed,
            "{context}: {flushed} writes were flushed, {found} are there, and some until {last}"
        );
        all.lost = all.lost.max(last - found);
        until("the definition's naming the image", || {
            recover();
            libvirt.source(VM, &["--inactive"]) == image
        });
        let writes = libvirt.writes(VM, image.parent().unwrap());
        assert_eq!(writes, [inode(&seen)], "{context}");
        guest.wait_for_more();
        libvirt.virsh(&["destroy", VM]);
        until("the end of the copy", || {
            recover();
            (names(&seen).len(), noted_in(&libvirt.at(&state))) == (1, 0)
        });
        qcow2::check_after_cut(&seen);
        Ok(())
    }
}
