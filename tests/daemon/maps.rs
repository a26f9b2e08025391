//! Which extent maps are read and which are not.

use std::path::Path;

use crate::scrape::Scrape;
use crate::support::{self, Bed, guest};
use crate::watch::Watch;

fn fragments(now: &Scrape, image: &Path) -> Option<f64> {
    now.of_image("fragwatch_image_fragments", image)
}

fn maps_read(now: &Scrape) -> Option<f64> {
    let maps = [("method", "map")];
    now.value("fragwatch_probe_duration_seconds_count", &maps)
}

#[test]
fn maps_are_read_after_the_start_and_each_interval() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("a.raw");
    guest::alternate_blocks(&image, 10);
    let more = "[sampling]\ninterval = \"1s\"\nprobe_timeout = \"1s\"\nmap_interval = \"2s\"\n";
    let watch = Watch::start_soon(&[bed.path()], more);
    let now = watch.until("its map", |now| fragments(now, &image).is_some());
    assert_eq!(fragments(&now, &image), Some(10.0));
    guest::discard_block(&image, 4);
    watch.until("its next map", |now| fragments(now, &image) == Some(9.0));
    // What a map leaves behind is no occasion to say that there was no sweep.
    for _ in 0..50 {
        assert!(watch.scrape().swept().is_some());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn free_space_is_read_and_served() {
    let bed = support::require!(Bed::xfs());
    guest::alternate_blocks(&bed.path().join("a.raw"), 10);
    let more = "[sampling]\ninterval = \"1s\"\nprobe_timeout = \"1s\"\nmap_interval = \"2s\"\n";
    let watch = Watch::start_soon(&[bed.path()], more);
    let longest = "fragwatch_filesystem_largest_free_extent_bytes";
    let is_served = |now: &Scrape| now.of_filesystem(longest, bed.path()).is_some();
    let now = watch.until("the free space", is_served);
    let of = |name| now.of_filesystem(name, bed.path()).unwrap();
    let all = of("fragwatch_filesystem_free_extents_sum");
    assert!(of(longest) <= all && all <= of("fragwatch_filesystem_size_bytes"));
    let count = of("fragwatch_filesystem_free_extents_count");
    assert!(count >= 10.0 && of(longest) * count >= all, "{count}");
}

#[test]
fn no_map_is_read_above_the_cap() {
    let bed = support::require!(Bed::xfs());
    let [at, above] = ["at.raw", "above.raw"].map(|name| bed.path().join(name));
    guest::alternate_blocks(&at, 100);
    guest::alternate_blocks(&above, 101);
    let more = "[sampling]\ninterval = \"1s\"\nprobe_timeout = \"1s\"\nmap_interval = \"1s\"\n\
                map_max_extents = 100\n";
    let watch = Watch::start(&[bed.path()], more);
    // The turn of the other would have come between these two.
    let now = watch.until("three maps", |now| maps_read(now) >= Some(3.0));
    assert_eq!(fragments(&now, &at), Some(100.0));
    assert_eq!(fragments(&now, &above), None);
    assert_eq!(now.extents(&above), Some(101.0));
    assert_eq!(now.errors(), 0.0);
}

#[test]
fn no_map_is_read_where_that_is_turned_off() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("a.raw");
    guest::alternate_blocks(&image, 10);
    let text = |map_interval: &str| {
        format!(
            "[sampling]\ninterval = \"1s\"\nprobe_timeout = \"1s\"\nmap_interval = \"{map_interval}\"\n"
        )
    };
    let watch = Watch::start(&[bed.path()], &text("never"));
    // Reading begins after a sweep, and ends by the next.
    let now = watch.sweeps(3);
    assert_eq!(fragments(&now, &image), None);
    assert_eq!(maps_read(&now), None);
    // It was not for want of time.
    watch.etc.configure(&[bed.path()], &text("1s"));
    watch.daemon.signal(rustix::process::Signal::HUP);
    watch.until("its map", |now| fragments(now, &image) == Some(10.0));
}
