//! Helpers that are killed, and what must not pile up.

use std::fs;

use crate::support::{self, Bed, guest};
use crate::watch::{OFTEN, Process, WHEN_ASKED, Watch, children, until};

#[test]
fn a_helper_that_is_killed_is_replaced() {
    const ROUNDS: u32 = 7;
    let beds = [(); 3].map(|()| Bed::xfs());
    let [a, b, c] = beds;
    let beds = [a, b, c].into_iter().collect::<Result<Vec<_>, _>>();
    let beds = support::require!(beds);
    let images: Vec<_> = beds.iter().map(|bed| bed.path().join("a.raw")).collect();
    for image in &images {
        guest::alternate_blocks(image, 10);
    }
    let paths: Vec<_> = beds.iter().map(Bed::path).collect();
    let watch = Watch::start(&paths, OFTEN);
    let mut errors = watch.scrape().errors();
    for round in 1..=ROUNDS {
        // They wait for their next request, or have just begun with it: each third round kills the
        // new ones as soon as they are there.
        let helpers = until("as many helpers as file systems", || {
            Some(watch.helpers()).filter(|helpers| helpers.len() == 3)
        });
        helpers.iter().for_each(Process::kill);
        let new = until("new helpers", || {
            let new: Vec<_> = watch.helpers();
            let all = new.len() == 3 && new.iter().all(|one| !helpers.contains(one));
            all.then_some(new)
        });
        if round % 3 == 0 {
            new.iter().for_each(Process::kill);
        }
        for image in &images {
            guest::discard_block(image, 2 * u64::from(round));
        }
        let extents = Some(10.0 - f64::from(round));
        let now = watch.until("new counts", |now| {
            images.iter().all(|image| now.extents(image) == extents)
        });
        assert!(
            now.errors() >= errors + 3.0,
            "{} after {errors}",
            now.errors()
        );
        errors = now.errors();
        let zombies = |child: &&Process| child.state() == Some('Z');
        assert!(watch.helpers().iter().filter(zombies).count() <= 1);
    }
    until("an end to it", || {
        let before = watch.scrape().errors();
        (watch.sweeps(0).errors() == before).then_some(())
    });
    assert_eq!(watch.helpers().len(), 3);
    let said = watch.log("the probe helper failed");
    assert!(
        !said.is_empty() && said.iter().all(|line| line.contains("ERROR")),
        "{said:?}"
    );
}

#[test]
fn nothing_piles_up_while_images_and_file_systems_come_and_go() {
    let stays = support::require!(Bed::xfs());
    let mut goes = support::require!(Bed::xfs());
    let here = stays.path().join("here.raw");
    let comes = stays.path().join("comes.raw");
    guest::alternate_blocks(&here, 10);
    guest::alternate_blocks(&goes.path().join("there.raw"), 20);
    let watch = Watch::start(&[stays.path(), goes.path()], WHEN_ASKED);
    let first = watch.helpers();
    let mut cycle = || {
        guest::alternate_blocks(&comes, 5);
        goes.umount();
        let now = watch.sweep();
        assert_eq!(now.named("fragwatch_image_extents").count(), 2);
        fs::remove_file(&comes).unwrap();
        goes.mount();
        let now = watch.sweep();
        assert_eq!(now.named("fragwatch_image_extents").count(), 2);
    };
    let open = || {
        let helpers = children(watch.daemon.pid());
        let one = helpers.iter().find(|one| first.contains(one));
        let helper = one.expect("the helper of what stays is the same");
        let daemon = fs::read_dir(format!("/proc/{}/fd", watch.daemon.pid()));
        let is_still_sweeping = helper.holds(stays.path());
        (!is_still_sweeping).then(|| (daemon.unwrap().count(), helper.descriptors().len()))
    };
    for _ in 0..3 {
        cycle();
    }
    let before = until("nothing of the file system is held", open);
    for _ in 0..25 {
        cycle();
    }
    // A connection for a scrape may be closing, now or when it was counted before.
    until("as few descriptors as before", || {
        open().filter(|now| now.0 <= before.0 && now.1 <= before.1)
    });
    let helpers = watch.helpers();
    assert!(
        helpers.len() <= 3,
        "two, and one not yet waited for: {helpers:?}"
    );
    assert_eq!(watch.scrape().errors(), 0.0);
}
