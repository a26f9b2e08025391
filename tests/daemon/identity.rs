//! What the history knows an image by: its own file system, whatever the mount table said.

use std::collections::BTreeSet;
use std::process::Command;

use fragwatch::internals::history::{ImageInfo, Reader};
use fragwatch::internals::model::ImageKey;
use rustix::process::Signal;

use crate::support::bed::Plan;
use crate::support::{self, Bed, RunningDaemon, failing, guest, tools};
use crate::watch::{Etc, PATIENCE, Process, WHEN_ASKED, Watch, until};

/// The rows of the table `images`.
fn rows(etc: &Etc) -> Vec<ImageInfo> {
    let reader = Reader::open(&etc.join("history.db"));
    reader.and_then(|reader| reader.images()).unwrap()
}

/// Which rows there are, and which images they stand for.
fn identities(rows: &[ImageInfo]) -> Vec<(i64, &ImageKey)> {
    rows.iter().map(|row| (row.id, &row.key)).collect()
}

/// Ends it, with all written.
fn ended(watch: Watch) -> Etc {
    let Watch { mut daemon, etc } = watch;
    daemon.signal(Signal::TERM);
    assert!(daemon.wait(PATIENCE).success(), "{}", daemon.stderr());
    etc
}

/// A file system that is mounted after the sweep has read the mount table, and before the directory
/// is searched: at boot, a mount with `nofail` comes while the daemon makes its first sweep.
#[test]
fn an_image_is_not_recorded_as_one_of_the_file_system_below_the_mount_point() {
    let stays = support::require!(Bed::xfs());
    let mut comes = support::require!(Bed::xfs());
    let [here, there] = [&stays, &comes].map(|bed| bed.path().join("a.raw"));
    guest::alternate_blocks(&here, 10);
    guest::alternate_blocks(&there, 20);
    let etc = Etc::new();
    etc.configure(&[stays.path(), comes.path()], WHEN_ASKED);
    let watch = Watch::start_with_state(etc);
    until("both in the history", || {
        (rows(&watch.etc).len() == 2).then_some(())
    });
    let before = rows(&watch.etc);

    // Now the directory below the mount point is empty, and has a helper of its own.
    let known: BTreeSet<_> = watch.helpers().into_iter().collect();
    comes.umount();
    // Long enough for a helper that is stopped.
    let slow = WHEN_ASKED.replace("10s", "30s");
    watch.etc.configure(&[stays.path(), comes.path()], &slow);
    assert_eq!(watch.sweep().extents(&there), None);
    let new = |helper: &Process| !known.contains(helper);
    let below: Vec<_> = watch.helpers().into_iter().filter(new).collect();
    assert_eq!(below.len(), 1, "{below:?}");

    // The sweep has read the mount table before the other image is counted.
    below[0].signal(Signal::STOP);
    guest::discard_block(&here, 0);
    watch.daemon.signal(Signal::HUP);
    watch.until("the sweep", |now| now.extents(&here) == Some(9.0));
    comes.mount();
    let swept = watch.scrape().swept();
    below[0].signal(Signal::CONT);
    let now = watch.until("its end", |now| now.swept() > swept);
    assert_eq!(now.extents(&there), None, "nothing is known of it yet");

    assert_eq!(watch.sweep().extents(&there), Some(20.0));
    let after = rows(&ended(watch));
    assert_eq!(identities(&after), identities(&before));
}

/// `FS_IOC_GETVERSION` with the argument of a `long` (include/uapi/linux/fs.h).
const GETVERSION: u32 = 0x8008_7601;

#[test]
fn an_image_that_cannot_be_identified_is_not_recorded() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("a.raw");
    guest::alternate_blocks(&image, 10);
    let etc = Etc::new();
    etc.configure(&[bed.path()], WHEN_ASKED);
    let watch = Watch::start_with_state(etc);
    until("its row", || (rows(&watch.etc).len() == 1).then_some(()));
    let before = rows(&watch.etc);
    let etc = ended(watch);

    let mut run = etc.run();
    failing::ioctl(&mut run, GETVERSION, libc::EIO);
    let daemon = RunningDaemon::spawn(&mut run, etc.address);
    let watch = Watch { daemon, etc };
    watch.until("the first sweep", |now| now.swept().is_some());
    watch.sweep();
    let said = watch.log("cannot be identified");
    assert_eq!(said.len(), 1, "once, and not each sweep: {said:?}");
    assert!(
        said[0].contains("WARN")
            && said[0].contains("FS_IOC_GETVERSION failed: Input/output error"),
        "{said:?}"
    );
    let etc = ended(watch);
    assert_eq!(rows(&etc), before);

    guest::discard_block(&image, 0);
    let watch = Watch::start_with_state(etc);
    let etc = ended(watch);
    let after = rows(&etc);
    assert_eq!(identities(&after), identities(&before));
    assert_eq!(after[0].last.unwrap().point.extents.0, 9);
}

/// tune2fs gives a mounted ext4 another UUID, as images of clouds do at their first boot.
#[test]
fn an_ext4_is_known_by_the_uuid_that_is_on_its_disk() {
    let plan = Plan::of("ext4").mkfs(&["-F", "-O", "metadata_csum_seed"]);
    let mut bed = support::require!(plan.make());
    let tune = support::require!(tools::have("tune2fs"));
    let image = bed.path().join("a.raw");
    guest::random_direct_writes(&image, 1 << 20, 5);
    let mut command = Command::new(tune);
    let tuned = command
        .args(["-U", "random"])
        .arg(bed.device())
        .output()
        .unwrap();
    assert!(tuned.status.success(), "{tuned:?}");
    let etc = Etc::new();
    etc.configure(&[bed.path()], WHEN_ASKED);
    let etc = ended(Watch::start_with_state(etc));
    let before = rows(&etc);
    assert_eq!(before.len(), 1);

    bed.cold();
    let etc = ended(Watch::start_with_state(etc));
    assert_eq!(identities(&rows(&etc)), identities(&before));
}
