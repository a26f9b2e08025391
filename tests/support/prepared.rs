//! Beds that would take long to make, and are therefore made from something that was prepared.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::bed::{Bed, Dir, Plan, image_in};
use super::child::Child;
use super::rundir::Place;
use super::skip::{Here, NotHere};
use super::{guest, tools};

/// The file in [`Bed::fragmented`].
pub const IMAGE: &str = "vm.img";

/// Cargo's directory for what tests leave for later runs.
const KEPT: &str = env!("CARGO_TARGET_TMPDIR");

impl Bed {
    /// An XFS with one file, [`IMAGE`], of exactly `extents` extents
    /// ([`guest::alternate_blocks`]). The first one of a number takes 20 µs an extent or more and
    /// is kept in Cargo's target directory, where a million takes 65 MB; further ones are copies,
    /// made in a fraction of a second.
    pub fn fragmented(extents: u64) -> Here<Bed> {
        let kept = Path::new(KEPT).join(format!("extents-{extents}.xfs"));
        if !kept.exists() {
            prepare(&kept, extents)?;
        }
        let dir = Dir::new(Place::quick())?;
        let image = image_in(&dir.0);
        copy(&kept, &image)?;
        Bed::on(dir, &image, &copy_of_xfs())
    }

    /// The XFS of which `dump` is an xz-compressed metadump: all its metadata, no data.
    pub fn from_metadump(dump: &Path) -> Here<Bed> {
        let dir = Dir::new(Place::quick())?;
        let image = image_in(&dir.0);
        restore(dump, &image)?;
        Bed::on(dir, &image, &copy_of_xfs())
    }

    /// The file system with the 34,694,398 extents: its one file is `ffc63a70.disk`. Takes about
    /// 20 s and 2.6 GB. Comes with the project's shared data, not with its source: see
    /// [`super::optional`].
    pub fn headline() -> Here<Bed> {
        let name = "ffc63a70.metadump.xz";
        let dump = shared_data(name)
            .ok_or_else(|| NotHere::because(format_args!("{name} is not in the shared data")))?;
        Bed::from_metadump(&dump)
    }
}

/// A file of the project's shared data, which lies in `FRAGWATCH_SHARED` or beside the crate.
pub fn shared_data(name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("FRAGWATCH_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
        PathBuf::from,
    );
    Some(dir.join(name)).filter(|file| file.exists())
}

/// XFS mounts no two file systems with the same UUID unless it is told to.
fn copy_of_xfs() -> Plan {
    Plan::of("xfs").options("nouuid")
}

/// Makes `kept`, or waits for another process that does.
fn prepare(kept: &Path, extents: u64) -> Here<()> {
    let failed = |e: std::io::Error| NotHere::because(format_args!("{}: {e}", kept.display()));
    let lock = File::open(KEPT).map_err(failed)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
    if kept.exists() {
        return Ok(());
    }
    let plan = Plan::of("xfs").size(guest::room_for(extents));
    let mut bed = plan.make()?;
    guest::alternate_blocks(&bed.path().join(IMAGE), extents);
    bed.umount_everywhere();
    // Under its name it is complete.
    let new = kept.with_extension("new");
    copy(bed.image(), &new)?;
    fs::rename(&new, kept).map_err(failed)
}

/// Copies what is not a hole.
fn copy(from: &Path, to: &Path) -> Here<()> {
    let mut cp = Command::new("cp");
    tools::run(
        cp.args(["--sparse=always", "--reflink=auto"])
            .arg(from)
            .arg(to),
    )
}

fn restore(dump: &Path, image: &Path) -> Here<()> {
    let failed = |e: std::io::Error| NotHere::because(format_args!("{}: {e}", dump.display()));
    // Both are children that the janitor knows: they would go on for long.
    let mut xz = Command::new("xz");
    let xz = xz.arg("-dc").arg(dump).stdout(Stdio::piped());
    let mut xz = Child::spawn(xz).map_err(failed)?;
    let dumped = xz.pipes().stdout.take().expect("it is piped");
    let mut mdrestore = Command::new("xfs_mdrestore");
    let mdrestore = mdrestore.arg("-").arg(image).stdin(dumped);
    let ended = Child::spawn(mdrestore)
        .map_err(failed)?
        .wait(Duration::from_secs(600));
    match ended {
        Some(status) if status.success() => Ok(()),
        end => Err(NotHere::because(format_args!(
            "xfs_mdrestore of {}: {end:?}",
            dump.display()
        ))),
    }
}
