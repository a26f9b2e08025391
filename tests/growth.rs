//! Growth and forecast against what really comes: a guest that writes without order into a sparse
//! image on a real XFS, counted as the daemon counts. The times alone are made up: each batch of
//! writes is ten minutes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "images of the bed are small"
)]

mod support;

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fragwatch::internals::growth::{Recent, forecast};
use fragwatch::internals::model::{
    ExtentCount, FilesystemKind, Forecast, Growth, Pace, Point, UnixTime, Unknown,
};
use fragwatch::internals::probe;

use support::guest::{self, Aligned, BLOCK};
use support::{Bed, MIB};

const WINDOW: Duration = Duration::from_secs(86_400);
/// What a batch takes, as we say.
const BATCH: Duration = Duration::from_secs(600);

/// A guest that writes blocks of its image, any of them at any time, and what is known of it.
struct Guest {
    image: PathBuf,
    file: File,
    blocks: u64,
    random: u64,
    batches: i64,
    recent: Recent,
}

impl Guest {
    fn new(bed: &Bed, size: u64) -> Guest {
        let image = bed.path().join("guest.raw");
        File::create_new(&image).unwrap().set_len(size).unwrap();
        Guest {
            file: guest::open_direct(&image).unwrap(),
            image,
            blocks: size / BLOCK,
            random: 1,
            batches: 0,
            recent: Recent::default(),
        }
    }

    /// So many writes, and a count.
    fn batch(&mut self, writes: u64) -> ExtentCount {
        let mut block = Aligned::block();
        for _ in 0..writes {
            // Knuth's; its upper bits are good.
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005);
            self.random = self.random.wrapping_add(1_442_695_040_888_963_407);
            let number = (self.random >> 33) % self.blocks;
            guest::stamp(&mut block, number, self.random);
            self.file.write_all_at(&block, number * BLOCK).unwrap();
        }
        self.batches += 1;
        let extents = count(&self.image);
        let at = self.now();
        self.recent.push(Point { at, extents }, WINDOW);
        extents
    }

    fn now(&self) -> UnixTime {
        UnixTime(1_700_000_000 + self.batches * BATCH.as_secs() as i64)
    }

    fn growth(&self) -> Growth {
        self.recent.growth(WINDOW, self.now())
    }

    fn forecast(&self, critical: u64) -> Forecast {
        let extents = self.recent.points().last().unwrap().extents;
        forecast(&self.growth(), extents, ExtentCount(critical))
    }
}

/// As the daemon counts.
fn count(image: &Path) -> ExtentCount {
    let file = File::open(image).unwrap();
    let directory = File::open(image.parent().unwrap()).unwrap();
    let mut probe = probe::Probe::new(FilesystemKind::Xfs);
    let count = probe.count(&file, directory.as_fd(), &mut || {});
    count.unwrap().extents
}

/// The time left as a forecast says, in batches.
fn batches_left(told: Forecast) -> f64 {
    let Forecast::In(left) = told else {
        panic!("{told:?}")
    };
    left.as_secs_f64() / BATCH.as_secs_f64()
}

/// A large image: hardly any block is written twice, the rise is nearly steady. A fifth off at most.
#[test]
fn what_was_forecast_comes() {
    const CRITICAL: u64 = 10_000;
    let bed = support::require!(Bed::xfs());
    let mut guest = Guest::new(&bed, 512 * MIB);
    let mut told = Vec::new();
    let came = loop {
        let extents = guest.batch(128);
        if extents.0 >= CRITICAL {
            break guest.batches;
        }
        told.push((guest.batches, guest.forecast(CRITICAL)));
        assert!(guest.batches < 200, "{extents}");
    };
    for (batch, forecast) in &told {
        let truth = (came - batch) as f64;
        match batch {
            // Ten counts make nine times ten minutes.
            ..10 => assert_eq!(*forecast, Forecast::Unknown(Unknown::TooFewSamples)),
            // It reaches four times as far as it has seen.
            ..15 => assert!(matches!(forecast, Forecast::NotWithin(_)), "{forecast:?}"),
            22.. => {
                let left = batches_left(*forecast);
                assert!(
                    (left - truth).abs() <= 0.2 * truth + 1.0,
                    "{batch}: {left}, not {truth}"
                );
            }
            _ => {}
        }
    }
    assert!(told.len() > 60, "{}", told.len());

    // It is restored in place: everything begins anew, and soon it is known again.
    guest.file.set_len(0).unwrap();
    guest.file.set_len(512 * MIB).unwrap();
    guest.batch(128);
    assert_eq!(guest.growth().trend, Err(Unknown::TooFewSamples));
    let extents: Vec<u64> = (0..20).map(|_| guest.batch(128).0).collect();
    let truth = (extents[19] - extents[9]) as f64 / 10.0 * 144.0;
    let rate = guest.growth().rate().unwrap().0;
    assert!((rate - truth).abs() <= 0.05 * truth, "{rate}, not {truth}");
}

/// A small image: the more of it is written the fewer new extents come, as after a defragmentation.
#[test]
fn a_rise_that_tapers_off_cries_no_wolf() {
    let bed = support::require!(Bed::xfs());
    let mut guest = Guest::new(&bed, 16 * MIB);
    let blocks = guest.blocks;
    // A quarter above what there can be.
    let never = blocks + blocks / 4;
    let soon = blocks * 4 / 5;
    let mut told = Vec::new();
    let mut came = None;
    let mut tapered = 0;
    for batch in 1..=160 {
        let extents = guest.batch(64);
        let far = guest.forecast(never);
        assert_eq!(
            far.time_left(),
            None,
            "batch {batch}, {extents}: {:?}",
            guest.growth()
        );
        if extents.0 >= soon {
            came = came.or(Some(batch));
        }
        told.push(guest.forecast(soon));
        let trend = guest.growth().trend;
        tapered += usize::from(trend.is_ok_and(|t| matches!(t.pace, Pace::Tapering { .. })));
    }
    assert!(tapered > 100, "{tapered}");
    let came = came.expect("it has so many in the end");
    // What does come is told, half as soon to one and a half times as late as it comes.
    let mut known = 0;
    for batch in 40..came - 5 {
        let truth = f64::from(came - batch);
        match told[batch as usize - 1] {
            told @ Forecast::In(_) => {
                let left = batches_left(told);
                assert!(
                    (left - truth).abs() <= 0.5 * truth,
                    "{batch}: {left}, not {truth}"
                );
                known += 1;
            }
            told => assert_eq!(told, Forecast::Unknown(Unknown::TapersOff), "{batch}"),
        }
    }
    assert!(known > 20, "{known}");
}
