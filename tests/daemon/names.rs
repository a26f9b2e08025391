//! Images that come, go and change their names are noticed without waiting for the interval; whose
//! they are is told.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::process::Signal;

use crate::support::guest;
use crate::support::qemu::Vm;
use crate::support::{self, Bed, MIB, Writer};
use crate::watch::{OFTEN, PATIENCE, WHEN_ASKED, Watch};

fn appears(watch: &Watch, image: &Path) {
    let what = format!("{} without a sweep that is due", image.display());
    watch.until(&what, |now| now.extents(image).is_some());
}

fn vanishes(watch: &Watch, image: &Path) {
    let what = format!("the end of {}", image.display());
    watch.until(&what, |now| now.extents(image).is_none());
}

#[test]
fn images_that_come_and_go_are_noticed_at_once() {
    let bed = support::require!(Bed::xfs());
    let images = bed.path().join("images");
    fs::create_dir(&images).unwrap();
    let pattern = bed.path().join("by-name/*.raw");
    fs::create_dir(bed.path().join("by-name")).unwrap();
    let named = bed.path().join("named");
    fs::write(&named, "x").unwrap();
    let watch = Watch::start(&[&images, &pattern, &named], WHEN_ASKED);

    let first = images.join("a.raw");
    guest::alternate_blocks(&first, 3);
    appears(&watch, &first);
    let renamed = images.join("b.raw");
    fs::rename(&first, &renamed).unwrap();
    appears(&watch, &renamed);
    vanishes(&watch, &first);
    // In directories that come later, too.
    let deep = images.join("vm/disks");
    fs::create_dir_all(&deep).unwrap();
    let moved = deep.join("c.raw");
    fs::rename(&renamed, &moved).unwrap();
    appears(&watch, &moved);
    let second = deep.join("d.raw");
    guest::alternate_blocks(&second, 3);
    appears(&watch, &second);
    // Another directory that takes the name of one that is watched.
    fs::rename(&deep, images.join("old")).unwrap();
    fs::create_dir(&deep).unwrap();
    appears(&watch, &images.join("old/c.raw"));
    guest::alternate_blocks(&second, 3);
    appears(&watch, &second);
    fs::remove_dir_all(images.join("old")).unwrap();
    vanishes(&watch, &images.join("old/c.raw"));
    // What a glob matches, and a file that was named.
    let matching = bed.path().join("by-name/x.raw");
    guest::alternate_blocks(&matching, 3);
    appears(&watch, &matching);
    fs::remove_file(&named).unwrap();
    vanishes(&watch, &named);
    guest::alternate_blocks(&named, 3);
    appears(&watch, &named);
}

#[test]
fn what_guests_write_asks_for_no_sweep() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("a.raw");
    guest::preallocated_then_random_writes(&image, 4 * MIB, 10);
    let watch = Watch::start(&[bed.path()], WHEN_ASKED);
    // The last one that is due to how the image was made, if any is.
    watch.sweep();
    let writer = Writer::start(&image, None);
    std::thread::sleep(std::time::Duration::from_secs(3));
    let before = watch.scrape().swept();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(watch.scrape().swept(), before);
    assert!(writer.count() > 1000, "{}", writer.count());
    writer.stop().verify();
    // It was not deaf.
    fs::rename(&image, bed.path().join("b.raw")).unwrap();
    watch.until("the new name", |now| now.swept() > before);
}

#[test]
fn lost_events_lead_to_a_sweep() {
    let bed = support::require!(Bed::xfs());
    let watch = Watch::start(&[bed.path()], WHEN_ASKED);
    let image = bed.path().join("a.raw");
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: u64 = limit.trim().parse().unwrap();
    // The helper sleeps while the queue runs over.
    let helpers = watch.helpers();
    let signal = |signal| {
        for helper in &helpers {
            let pid = rustix::process::Pid::from_raw(helper.pid.cast_signed()).unwrap();
            rustix::process::kill_process(pid, signal).unwrap();
        }
    };
    signal(Signal::STOP);
    let churn = bed.path().join("churn.iso");
    for _ in 0..=limit {
        fs::write(&churn, "").unwrap();
        fs::remove_file(&churn).unwrap();
    }
    // Its event finds no room.
    guest::alternate_blocks(&image, 3);
    signal(Signal::CONT);
    appears(&watch, &image);
    watch.daemon.wait_for_stderr("events were lost", PATIENCE);
}

#[test]
fn an_image_that_was_put_in_the_place_of_another_is_a_new_one() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("vm.raw");
    guest::alternate_blocks(&image, 5);
    let old = fs::metadata(&image).unwrap().ino();
    let watch = Watch::start(&[bed.path()], OFTEN);
    watch.between_sweeps(bed.path(), || {
        // The number of a freed inode is the next to be given.
        for _ in 0..1000 {
            fs::remove_file(&image).unwrap();
            guest::alternate_blocks(&image, 7);
            if fs::metadata(&image).unwrap().ino() == old {
                return;
            }
        }
        panic!("the inode was not used again");
    });
    watch.until("the new one", |now| now.extents(&image) == Some(7.0));
    let name = image.display();
    assert_eq!(watch.log(&format!("image {name} is gone")).len(), 1);
    assert_eq!(watch.log(&format!("new image {name}")).len(), 2);
}

#[test]
fn whose_image_it_is_is_told() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("vm.raw");
    guest::preallocated_then_random_writes(&image, MIB, 5);
    let watch = Watch::start(&[bed.path()], OFTEN);
    let in_use = |now: &crate::scrape::Scrape| now.of_image("fragwatch_image_in_use", &image);
    assert_eq!(in_use(&watch.scrape()), Some(0.0));

    let direct = Vm::named("db-1");
    let vm = support::require!(
        Vm {
            shared: true,
            ..direct
        }
        .start(&image)
    );
    let info = |vm| {
        [
            ("image", image.to_str().unwrap()),
            ("filesystem", bed.path().to_str().unwrap()),
            ("format", "raw"),
            ("vm", vm),
        ]
    };
    watch.until("the VM", |now| {
        now.value("fragwatch_image_info", &info("db-1")) == Some(1.0) && in_use(now) == Some(1.0)
    });
    assert_eq!(watch.log("page cache"), [""; 0]);

    // Somebody else writes to it through the page cache.
    let other = OpenOptions::new().write(true).open(&image).unwrap();
    watch.daemon.wait_for_stderr("page cache", PATIENCE);
    watch.sweeps(2);
    let told = watch.log("page cache");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains(&format!("process {}", vm.id())),
        "{told:?}"
    );
    assert!(told[0].contains("(VM db-1) writes past"), "{told:?}");
    let us = format!("process {} ", std::process::id());
    assert!(told[0].contains(&us), "{told:?}");

    drop((other, vm));
    watch.until("its end", |now| {
        now.value("fragwatch_image_info", &info("")) == Some(1.0) && in_use(now) == Some(0.0)
    });
}

#[test]
fn a_directory_of_very_many_files_ends_the_search() {
    const FILES: u32 = 200_000;
    let bed = support::require!(Bed::xfs());
    let many = bed.path().join("many");
    let few = bed.path().join("few");
    fs::create_dir(&many).unwrap();
    fs::create_dir(&few).unwrap();
    let first = many.join("0");
    fs::write(&first, "").unwrap();
    for n in 1..FILES {
        fs::hard_link(&first, many.join(n.to_string())).unwrap();
    }
    let image = few.join("a.raw");
    guest::alternate_blocks(&image, 3);
    let etc = crate::watch::Etc::new();
    let text = etc.text(&[&many, &few], WHEN_ASKED);
    etc.write(&text.replacen("[images]", "[images]\nlimit = 1000", 1));
    let daemon = crate::support::RunningDaemon::start(&etc.file(), etc.address);
    let watch = Watch { daemon, etc };
    watch.until("the other search", |now| now.extents(&image) == Some(3.0));
    watch.sweep();
    let told = watch.log("images.limit");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains(&format!("{}: ", many.display())),
        "{told:?}"
    );
    assert!(told[0].contains("1,000 files"), "{told:?}");
}
