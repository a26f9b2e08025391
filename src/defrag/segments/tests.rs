//! Surveys and segments of made-up maps.

use super::*;
use crate::model::extent::tests::extent;
use proptest::prelude::*;

fn shared(page: u64, pages: u64) -> Extent {
    let mut extent = extent(page, pages);
    extent.flags.shared = true;
    extent
}

fn survey(extents: &[Extent], size: u64) -> MovePlan {
    let mut survey = Survey::new(Bytes(size));
    for extent in extents {
        survey.push(*extent);
    }
    survey.finish()
}

#[test]
fn the_largest_gain_comes_first_and_little_gain_not_at_all() {
    let mut extents = Vec::new();
    // Two of 512 KiB, one behind the other, in each of the first 16 MiB's halves: even gain.
    extents.extend([extent(0, 128), extent(128, 128)]);
    // 64 single pages.
    extents.extend((4096..4160).map(|page| extent(page, 1)));
    // A pair that is long already.
    extents.extend([extent(8192, 800), extent(8992, 800)]);
    extents.extend([extent(12_288, 1), shared(12_289, 1), extent(12_290, 1)]);
    let plan = survey(&extents, 4 * REGION);
    let starts: Vec<_> = plan.regions.iter().map(|r| r.start.0 / REGION).collect();
    assert_eq!(starts, [1, 0]);
    assert_eq!(plan.gain, ExtentCount(63 + 1));
    assert_eq!(plan.shared, Bytes(PAGE));
    assert_eq!(plan.extents.0, extents.len() as u64);
    assert!(!plan.regions[0].dense);
}

#[test]
fn what_is_full_is_dense_and_even_gains_keep_their_order() {
    let extents: Vec<_> = (0..3 * 4096).map(|page| extent(page, 1)).collect();
    let plan = survey(&extents, 3 * REGION);
    assert!(plan.regions.iter().all(|region| region.dense));
    assert!(plan.regions.is_sorted_by_key(|region| region.start));
    assert_eq!(plan.gain.0, 3 * 4095);
}

#[test]
fn the_survey_of_a_huge_image_stays_small() {
    let survey = Survey::new(Bytes(1 << 60));
    assert!(survey.tallies.len() as u64 <= MOST_REGIONS);
    assert!(survey.region.is_multiple_of(REGION));
    assert!(Survey::new(Bytes(0)).finish().regions.is_empty());
}

fn moved_to(end: u64, place: Option<Place>) -> Before {
    let end = Some(Bytes(end));
    Before { end, place }
}

#[test]
fn what_has_arrived_stays_and_its_neighbours_come() {
    let mut arrived = [extent(10, 1), extent(13, 2)];
    for extent in &mut arrived {
        extent.physical.0 = extent.logical.0 + 77 * PAGE;
    }
    let before = moved_to(9 * PAGE, Some(Place::of(&arrived[0])));
    let [one, two] = arrived;
    let cut = |extents: &[Extent]| cut(extents, Cost(100), before).map(|s| (s.start.0, s.length.0));
    // Up to the one, as it joins on its left side; behind it; and before the other.
    assert_eq!(cut(&[extent(9, 1), one]), Some((9 * PAGE, PAGE)));
    assert_eq!(
        cut(&[one, extent(11, 1), extent(20, 1)]),
        Some((11 * PAGE, PAGE))
    );
    assert_eq!(cut(&[extent(12, 1), two]), Some((12 * PAGE, PAGE)));
    assert_eq!(cut(&[extent(11, 1), two]), None);
    assert_eq!(cut(&[one, two]), None);
    assert_eq!(cut(&[one, extent(12, 1)]), None);
}

#[test]
fn lone_extents_stay_unless_they_join() {
    let lone = [extent(3, 1), extent(5, 1), shared(6, 1), extent(7, 1)];
    assert_eq!(cut(&lone, Cost(100), Before::default()), None);
    let joined = cut(&lone, Cost(100), moved_to(3 * PAGE, None)).unwrap();
    assert_eq!((joined.start.0, joined.length.0), (3 * PAGE, PAGE));
    let long = [extent(0, 300), extent(300, 300)];
    let first = cut(&long, Cost(100), Before::default()).unwrap();
    assert_eq!(first.length.0, 95 * PAGE);
}

proptest! {
    /// Cutting from front to back never touches what must stay, never takes more than allowed
    /// but for the first page, and takes all that touches another.
    #[test]
    fn segments_are_of_what_may_be_moved(
        steps in prop::collection::vec((0_u64..3, 1_u64..1200, 0_u8..8), 1..120),
        most in 12_u64..4096
    ) {
        let mut extents = Vec::new();
        let mut at = 0;
        for (gap, pages, flags) in steps {
            let mut new = extent(at + gap, pages);
            new.flags.shared = flags == 0;
            new.flags.unwritten = flags == 1;
            new.flags.delayed = flags == 2;
            at += gap + pages;
            extents.push(new);
        }
        let (mut done, mut joins) = (Vec::new(), Before::default());
        let mut rest = extents.clone();
        while let Some(segment) = cut(&rest, Cost(most), joins) {
            prop_assert!(segment.length.0 > 0 && segment.length.0.is_multiple_of(PAGE));
            prop_assert!(segment.cost.0 <= most.max(5 + 1), "{segment:?}");
            done.push(segment);
            joins = moved_to(segment.end().0, None);
            rest = rest.iter().filter(|e| e.end().0 > segment.end().0).copied().collect();
            if let Some(first) = rest.first_mut().filter(|e| e.logical.0 < segment.end().0) {
                first.length.0 = first.end().0 - segment.end().0;
                first.logical = segment.end();
            }
        }
        prop_assert!(done.is_sorted_by_key(|segment| segment.start));
        for pair in done.windows(2) {
            prop_assert!(pair[0].end() <= pair[1].start);
        }
        let covered = |extent: &Extent| -> u64 {
            done.iter().map(|s| {
                let from = s.start.0.max(extent.logical.0);
                s.end().0.min(extent.end().0).saturating_sub(from)
            }).sum()
        };
        for (index, extent) in extents.iter().enumerate() {
            let touches = |other: Option<&Extent>| other.is_some_and(|other| {
                is_movable(other) && (other.end().0 == extent.logical.0 || extent.end().0 == other.logical.0)
            });
            let near = touches(extents.get(index + 1)) || (index > 0 && touches(extents.get(index - 1)));
            let expected = if is_movable(extent) && near { extent.length.0 } else { 0 };
            prop_assert_eq!(covered(extent), expected, "{:?}", extent);
        }
    }
}
