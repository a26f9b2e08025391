//! The power fails at any moment of a copy. What is on the disks then is mounted in a machine of its own,
//! at the same paths: its libvirtd and fragwatch know nothing else. The VM starts there from the path of
//! its image, and finds all that it had flushed.
//!
//! There are two disks, one of the images and one of the system, with what libvirt and fragwatch keep:
//! what is durable on one of them says nothing about the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::deaths::{kill_service, kills, moment};
use super::libvirt::{Libvirt, until};
use super::support::child::Child;
use super::support::random::Random;
use super::support::skip::{Here, NotHere};
use super::support::{self, Bed, MIB, Stall, boot, guest, rundir, stall};
use super::written::{self, Guest};
use super::{defrag, inode, names, noted_in, restore_hints};

const VM: &str = "guest";
const IMAGE: u64 = 16 * MIB;
/// What of the system's disk libvirt keeps its state in, and where that is mounted.
const OF_LIBVIRT: [(&str, &str); 2] = [("etc", "/etc/libvirt"), ("lib", "/var/lib/libvirt")];

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_flushed() {
    support::require!(power_cuts());
}

fn power_cuts() -> Here<()> {
    let parts = written::parts()?;
    let mut all = Cuts::default();
    // The first is made when the copy has ended.
    for seed in 0..=kills() {
        let host = Host::new()?;
        let before = host.work(seed, &parts, &mut all)?;
        host.recovers(before, seed, &mut all)?;
    }
    eprintln!("power: {all:?}");
    assert!(all.early > 0);
    rundir::remove(&parts.dir);
    Ok(())
}

/// What the cuts came to.
#[derive(Debug, Default)]
struct Cuts {
    /// How long a copy takes.
    took: Duration,
    /// How many were made before the copy had ended.
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
}

/// What is left of a machine.
struct Cut {
    images: Bed,
    system: Bed,
    guest: Guest,
    /// The last write that the guest had flushed before.
    flushed: u64,
}

impl Host {
    fn new() -> Here<Host> {
        let disk = || Stall::with(&["-m", "reflink=0"]);
        let (images, system) = (disk()?, disk()?);
        for (name, _) in OF_LIBVIRT {
            fs::create_dir(system.path().join(name)).map_err(NotHere::because)?;
        }
        Ok(Host { images, system })
    }

    fn image(&self) -> PathBuf {
        self.images.path().join("vm.raw")
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

    /// Copies an image under a guest that works, until the power fails.
    fn work(&self, seed: u64, parts: &boot::Parts, all: &mut Cuts) -> Here<Cut> {
        let (image, state) = (self.image(), self.state());
        guest::random_direct_writes(&image, IMAGE, IMAGE / guest::BLOCK);
        let libvirt = self.switch_on(&[])?;
        let guest = Guest::start(&libvirt, self.images.bed(), &image, parts);
        guest.wait_for_start(1);
        guest.wait_for_more();
        let mut disks = [&self.images, &self.system];
        disks.iter().for_each(|disk| disk.bed().sync());
        let old = inode(&image);
        let began = Instant::now();
        let mut run = defrag(&libvirt, self.images.bed(), &image, "");
        let mut run = Child::spawn(run.env("STATE_DIRECTORY", &state)).unwrap();
        match seed {
            0 => {
                assert!(run.end().success(), "{}", libvirt.log());
                all.took = began.elapsed();
            }
            _ => moment(seed, all.took, &state, &mut run),
        }
        let flushed = guest.turn();
        let system_first = Random::new(!seed).below(2) == 0;
        if system_first {
            disks.reverse();
        }
        let mut beds = stall::power_cut(&disks)?;
        if system_first {
            beds.reverse();
        }
        if run.wait(Duration::ZERO).is_none() {
            all.early += 1;
            kill_service(run.id());
        }
        libvirt.kill_qemu(VM);
        let [images, system] = beds.try_into().unwrap();
        let after = images.path().join("images/vm.raw");
        all.switched += u64::from(inode(&after) != old);
        Ok(Cut {
            images,
            system,
            guest,
            flushed,
        })
    }

    /// Switches it on again, with what is left.
    fn recovers(&self, cut: Cut, seed: u64, all: &mut Cuts) -> Here<()> {
        let libvirt = self.switch_on(&[
            (cut.images.path(), self.images.bed().path()),
            (cut.system.path(), self.system.bed().path()),
        ])?;
        let (image, state) = (self.image(), self.state());
        let seen = libvirt.at(&image);
        let recover = || restore_hints(&libvirt, &state, &[]);
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
        let [found, last] = cut.guest.wait_after_cut(2);
        let flushed = cut.flushed;
        assert!(
            found >= flushed,
            "{context}: {flushed} writes were flushed, {found} are there, and some until {last}"
        );
        all.lost = all.lost.max(last - found);
        until("the definition's naming the image", || {
            recover();
            libvirt.source(VM, &["--inactive"]) == image
        });
        let writes = libvirt.writes(VM, image.parent().unwrap());
        assert_eq!(writes, [inode(&seen)], "{context}");
        cut.guest.wait_for_more();
        libvirt.virsh(&["destroy", VM]);
        until("the end of the copy", || {
            recover();
            (names(&seen).len(), noted_in(&libvirt.at(&state))) == (1, 0)
        });
        Ok(())
    }
}
