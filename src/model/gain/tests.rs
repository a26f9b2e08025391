//! The estimate of a sample against whole made-up maps.

use super::*;
use crate::model::borders::BorderCount;
use crate::model::extent::tests::{PAGE, extent};
use crate::model::sampling::next_random;
use crate::model::{Bytes, Extent};
use proptest::prelude::*;

fn counted(extents: &[Extent]) -> Borders {
    let mut count = BorderCount::default();
    extents.iter().for_each(|extent| count.push(extent));
    count.borders
}

/// A part of a made-up map: so many extents with a chance of each border.
#[derive(Debug, Clone)]
struct Stretch {
    extents: u64,
    pages: u64,
    holes: u64,
    unwritten: u64,
    shared: u64,
    /// Pages of a hole behind it.
    gap: u64,
}

fn map(stretches: &[Stretch], seed: u64) -> (Vec<Extent>, u64) {
    let mut random = seed;
    let mut chance = |percent: u64| next_random(&mut random) % 100 < percent;
    let (mut at, mut extents) = (0, Vec::new());
    for stretch in stretches {
        for _ in 0..stretch.extents {
            at += u64::from(chance(stretch.holes));
            let mut new = extent(at, stretch.pages);
            new.flags.unwritten = chance(stretch.unwritten);
            new.flags.shared = chance(stretch.shared);
            extents.push(new);
            at += stretch.pages;
        }
        at += stretch.gap;
    }
    (extents, at * PAGE)
}

/// What a reader of the windows sees.
fn sampled(extents: &[Extent], size: u64) -> Outlook {
    let sampling = Sampling {
        size: Bytes(size),
        extents: ExtentCount(extents.len() as u64),
    };
    let count = |(start, end): (Bytes, Bytes)| {
        let first = extents.partition_point(|it| it.logical < start);
        let mut count = BorderCount::default();
        if let Some(before) = first.checked_sub(1) {
            count.skip(&extents[before]);
        }
        let inside = extents[first..].iter().take_while(|it| it.logical < end);
        inside.for_each(|it| count.push(it));
        count.borders
    };
    let counts: Vec<_> = sampling.windows().map(count).collect();
    Outlook::of_sample(&counts, &sampling)
}

fn stretch() -> impl Strategy<Value = Stretch> {
    let percent = || prop_oneof![3 => Just(0_u64), 1 => Just(100), 2 => 0_u64..100];
    let gap = prop_oneof![2 => Just(0_u64), 1 => 0_u64..2_000_000];
    let holes = percent();
    (1_u64..40_000, 1_u64..40, holes, percent(), percent(), gap).prop_map(
        |(extents, pages, holes, unwritten, shared, gap)| Stretch {
            extents,
            pages,
            holes,
            unwritten,
            shared,
            gap,
        },
    )
}

fn parts(outlook: &Outlook, whole: &Borders) -> [(Between, u64); 5] {
    [
        (outlook.borders.joins, whole.joins),
        (outlook.borders.holes, whole.holes),
        (outlook.borders.shared, whole.shared),
        (outlook.borders.unwritten, whole.unwritten),
        (outlook.borders.long, whole.long),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_sample_is_in_order_and_never_surer_than_what_it_saw(
        stretches in prop::collection::vec(stretch(), 1..12),
        seed in any::<u64>(), more in 0_u64..100_000
    ) {
        let (extents, size) = map(&stretches, seed);
        let outlook = sampled(&extents, size);
        let whole = counted(&extents);
        let all = extents.len() as u64;
        for outlook in [outlook, outlook.with(ExtentCount(all + more)),
                        outlook.with(ExtentCount(all.saturating_sub(more)))] {
            for (part, _) in parts(&outlook, &whole) {
                prop_assert!(part.low <= part.likely && part.likely <= part.high);
                prop_assert!(part.high <= outlook.extents);
            }
        }
        prop_assert_eq!(outlook.with(outlook.extents), outlook);
        let exact = Outlook::of_map(&whole);
        prop_assert_eq!(exact.borders.joins, Between::exactly(whole.joins));
        prop_assert_eq!(exact.gain(Engine::XfsFsr), Between::exactly(all - whole.holes));
    }
}

/// Against whole maps of every structure: nineteen of twenty intervals hold the truth.
#[test]
fn the_truth_lies_within_the_interval() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let maps = prop::collection::vec(stretch(), 1..12);
    let (mut held, mut all, mut widths) = (0_u32, 0_u32, 0.0);
    for seed in 0..120 {
        let stretches = maps.new_tree(&mut runner).unwrap().current();
        let (extents, size) = map(&stretches, seed);
        let outlook = sampled(&extents, size);
        for (part, truth) in parts(&outlook, &counted(&extents)) {
            let truth = ExtentCount(truth);
            held += u32::from(part.low <= truth && truth <= part.high);
            all += 1;
            widths += (part.high.0 - part.low.0) as f64 / extents.len() as f64;
        }
    }
    let (share, width) = (f64::from(held) / f64::from(all), widths / f64::from(all));
    assert!(share >= 0.95, "{share} of {all}, mean width {width}");
    // An interval that holds everything would hold the truth as well.
    assert!(width < 0.12, "mean width {width}");
}

#[test]
fn one_pattern_over_the_whole_file_is_known_to_a_hundredth() {
    let stretch = |holes, unwritten| Stretch {
        extents: 1_000_000,
        pages: 1,
        holes,
        unwritten,
        shared: 0,
        gap: 0,
    };
    let (extents, size) = map(&[stretch(100, 100)], 7);
    let outlook = sampled(&extents, size);
    assert!(outlook.is_little(Engine::Online) && outlook.is_little(Engine::XfsFsr));
    assert!(
        outlook.borders.joins.high < ExtentCount(10_000),
        "{outlook:?}"
    );
    let (extents, size) = map(&[stretch(50, 0)], 7);
    let joins = sampled(&extents, size).borders.joins;
    assert!(joins.high.0 - joins.low.0 < 30_000, "{joins:?}");
    assert!((480_000..520_000).contains(&joins.likely.0), "{joins:?}");
    // What is fragmented in one place that no window met is not known to be whole.
    let quiet = Stretch {
        extents: 40_000,
        pages: 1000,
        ..stretch(0, 0)
    };
    let (extents, size) = map(&[quiet, stretch(100, 0)], 7);
    let outlook = sampled(&extents, size);
    assert!(outlook.borders.holes.high.0 > 900_000, "{outlook:?}");
}
