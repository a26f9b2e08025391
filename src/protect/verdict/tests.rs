//! Tests of [`verdict`](super).

use proptest::prelude::*;

use super::*;
use crate::model::{ExtentMap, FilesystemKind, Opener, Qcow2, Vm};
use crate::protect::fixture::{GIB, Image};

const MIB: u64 = 1 << 20;

fn judged(image: &Image) -> (Option<Risk>, u64, String) {
    let facts = image.facts();
    let verdict = Verdict::of(&facts);
    (verdict.risk, verdict.at_worst.0, verdict.text(&facts))
}

fn used(discards: Option<bool>) -> Opener {
    Opener {
        vm: Some(Vm::default()),
        discards,
        ..Opener::default()
    }
}

#[test]
fn each_cause_has_its_sentence() {
    let sparse = || Image::sparse(100 * GIB, 27 * GIB, 10).mapped(10, 1);
    let hinted = |hint| sparse().with(|it| it.sample.extent_size_hint = Bytes(hint));
    let full = || Image::sparse(100 * GIB, 100 * GIB, 1).mapped(1, 0);
    let map = |image: &mut Image, change: fn(&mut ExtentMap)| change(image.map.as_mut().unwrap());
    let growing = |hint| {
        Image::sparse(10 * GIB, 10 * GIB, 4)
            .mapped(4, 0)
            .with(|it| {
                it.sample.format = Format::Qcow2;
                it.sample.extent_size_hint = Bytes(hint);
                let (cluster, disk) = (Bytes(64 << 10), Bytes(110 * GIB));
                it.sample.qcow2 = Some(Qcow2 { cluster, disk });
            })
    };
    for (image, risk, at_worst, text) in [
        (
            sparse(),
            Risk::Shatters,
            10 + 73 * GIB / 4096,
            "will gain an extent with nearly every new block: sparse, no hint, 73 % holes",
        ),
        (
            hinted(MIB),
            Risk::Bounded,
            10 + 73 * 1024 + 1,
            "can gain an extent for each 1.0 MiB: sparse, hint of 1.0 MiB, 73 % holes",
        ),
        (
            hinted(16 * MIB),
            Risk::Safe,
            10 + 73 * 64 + 1,
            "can gain an extent for each 16.0 MiB: sparse, hint of 16.0 MiB, 73 % holes",
        ),
        (
            full(),
            Risk::Safe,
            1,
            "cannot shatter: fully allocated, one fragment",
        ),
        (
            full().with(|it| map(it, |map| map.unwritten = Bytes(90 * GIB))),
            Risk::Safe,
            1,
            "cannot shatter: preallocated, one fragment, 90.0 GiB not yet written",
        ),
        (
            full().with(|it| map(it, |map| map.fragments = 31_342)),
            Risk::Safe,
            31_342,
            "cannot shatter: fully allocated, 31,342 fragments",
        ),
        (
            growing(0),
            Risk::Shatters,
            4 + 1_638_400,
            "can gain an extent for each cluster of 64.0 KiB: qcow2, 100 GiB to grow",
        ),
        (
            growing(MIB),
            Risk::Shatters,
            4 + 1_638_400,
            "can gain an extent for each cluster of 64.0 KiB: qcow2, 100 GiB to grow",
        ),
        (
            full().with(|it| map(it, |map| map.shared = Bytes(50 * GIB))),
            Risk::Shatters,
            1 + 50 * 8192,
            "can gain an extent for each 128 KiB: shares 50.0 GiB with other files, no copy-on-write hint",
        ),
        (
            full().with(|it| {
                map(it, |map| map.shared = Bytes(50 * GIB));
                it.sample.cow_hint = Bytes(16 * MIB);
            }),
            Risk::Safe,
            1 + 50 * 64,
            "can gain an extent for each 16.0 MiB: shares 50.0 GiB with other files, copy-on-write hint of 16.0 MiB",
        ),
    ] {
        assert_eq!(judged(&image), (Some(risk), at_worst, text.to_owned()));
    }
}

#[test]
fn torn_by_small_holes_a_hint_brings_little() {
    let torn = Image::sparse(GIB, GIB / 2, 131_072).mapped(131_072, 131_072);
    let torn = torn.with(|it| it.sample.extent_size_hint = Bytes(MIB));
    assert_eq!(judged(&torn).0, Some(Risk::Shatters));
    assert_eq!(judged(&torn).1, 131_072 + GIB / 2 / 4096);
}

#[test]
fn what_discards_makes_holes_again() {
    let full = |discards| {
        Image::sparse(GIB, GIB, 1)
            .mapped(1, 0)
            .with(|it| it.owner.openers.push(used(discards)))
    };
    let (risk, _, text) = judged(&full(Some(true)));
    assert_eq!(risk, Some(Risk::Bounded));
    assert_eq!(
        text,
        "can shatter only by discards: fully allocated, one fragment; its VM discards, so that free blocks \
         become holes again"
    );
    for harmless in [Some(false), None] {
        assert_eq!(judged(&full(harmless)).0, Some(Risk::Safe));
    }
}

#[test]
fn without_a_map_the_verdict_says_so() {
    let image = Image::sparse(100 * GIB, 27 * GIB, 34_694_398);
    let (risk, at_worst, text) = judged(&image);
    assert_eq!(risk, Some(Risk::Shatters));
    assert_eq!(at_worst, 34_694_398 + 73 * GIB / 4096);
    assert!(text.ends_with("; its map was not read, so fragments and sharing are not known"));
    // One that was not read to the end is none.
    let part = image
        .mapped(5, 0)
        .with(|it| it.map.as_mut().unwrap().complete = false);
    assert_eq!(judged(&part), (risk, at_worst, text));
}

#[test]
fn other_file_systems_are_not_judged() {
    let image = Image::sparse(GIB, 0, 0).with(|it| {
        it.filesystem.kind = FilesystemKind::Other;
        it.filesystem.type_name = "ext4".to_owned();
    });
    let (risk, _, text) = judged(&image);
    assert_eq!(risk, None);
    assert_eq!(
        text,
        "not judged: lies on ext4, which has no extent-size hints"
    );
}

/// The measurements in the comment of [`hints`](crate::protect::hints), of 65,536 blocks.
#[test]
fn the_prediction_is_what_was_measured() {
    let size = 256 * MIB;
    for (hint, fragments, half) in [
        (0, 65_529, 32_764),
        (64 << 10, 4_089, 34_678),
        (256 << 10, 1_018, 33_158),
        (MIB, 253, 32_759),
        (4 * MIB, 55, 32_669),
        (16 * MIB, 9, 32_639),
    ] {
        let image = Image::sparse(size, 0, 0).with(|it| it.sample.extent_size_hint = Bytes(hint));
        let verdict = Verdict::of(&image.facts());
        // Neighbours on disk join by chance.
        let at_worst = verdict.at_worst.0;
        assert!(
            (fragments..=2 * fragments).contains(&at_worst),
            "{hint}: {at_worst}"
        );
        assert!(
            verdict.meanwhile.0 >= half - half / 10,
            "{hint}: {verdict:?}"
        );
    }
}

proptest! {
    #[test]
    fn the_verdict_is_monotonous(
        size in 0..1_u64 << 46,
        share in 0..=100_u64,
        hint in 0..5_u32,
        extents in 0..1_u64 << 32,
    ) {
        let image = |allocated: u64, hint: u32| {
            let hint = if hint == 0 { 0 } else { MIB << hint };
            let image = Image::sparse(size, allocated, extents);
            image.with(|it| it.sample.extent_size_hint = Bytes(hint))
        };
        let allocated = size / 100 * share;
        let of = |image: &Image| Verdict::of(&image.facts());
        let now = of(&image(allocated, hint));
        prop_assert!(now.at_worst.0 >= extents);
        prop_assert!(now.meanwhile >= now.at_worst);
        // Neither a longer hint nor more space makes it worse.
        prop_assert!(of(&image(allocated, hint + 1)).at_worst <= now.at_worst);
        prop_assert!(of(&image(size, hint)).at_worst <= now.at_worst);
        prop_assert_eq!(of(&image(size, 0)).risk, Some(Risk::Safe));
        // The sentence never fails.
        let image = image(allocated, hint);
        prop_assert!(now.text(&image.facts()).contains(" shatter: ") || now.at_worst.0 > extents);
    }
}
