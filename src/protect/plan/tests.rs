//! Tests of [`plan`](super).

use super::*;
use crate::model::ExtentCount;
use crate::protect::fixture::{GIB, Image, filesystem};

const MIB: u64 = 1 << 20;

fn place(filesystem: &Filesystem) -> Place<'_> {
    Place {
        filesystem,
        keeps: Bytes(50 * GIB),
        provisioning: Provisioning::Full,
        kernel: None,
    }
}

fn plan(place: &Place<'_>, images: &[Image], forced: bool) -> Plan {
    let images: Vec<_> = images.iter().map(Image::facts).collect();
    Plan::new(place, &images, &[], forced)
}

/// Path, hint, from and to in MiB.
fn in_short(plan: &Plan) -> Vec<(&str, Hint, u64, u64)> {
    let short = |change: &Change| (change.hint, change.has.0 / MIB, change.wanted.0 / MIB);
    let changes = plan.changes.iter().map(|change| {
        let (hint, has, wanted) = short(change);
        (change.path.to_str().unwrap(), hint, has, wanted)
    });
    changes.collect()
}

#[test]
fn a_directory_takes_the_hint_of_its_largest_image() {
    let filesystem = filesystem();
    let small = Image::sparse(GIB, GIB, 1).with(|it| it.sample.path = "/srv/vm/b.raw".into());
    let images = [Image::sparse(100 * GIB, GIB, 7), small];
    let plan = plan(&place(&filesystem), &images, false);
    assert_eq!(plan.obstacle, None);
    assert_eq!(
        in_short(&plan),
        [
            ("/srv/vm", Hint::Inherited, 0, 16),
            ("/srv/vm/a.raw", Hint::CopyOnWrite, 0, 16),
            ("/srv/vm/b.raw", Hint::CopyOnWrite, 0, 1),
        ]
    );
}

#[test]
fn what_has_a_hint_keeps_it() {
    let filesystem = filesystem();
    let image = Image::sparse(100 * GIB, GIB, 7).with(|it| {
        it.sample.directory_hint = Bytes(32 * MIB);
        it.sample.cow_hint = Bytes(16 * MIB);
    });
    assert_eq!(in_short(&plan(&place(&filesystem), &[image], false)), []);
    // Copy on write takes the longer of both.
    let image = Image::sparse(100 * GIB, GIB, 7).with(|it| {
        it.sample.directory_hint = Bytes(MIB);
        it.sample.extent_size_hint = Bytes(16 * MIB);
    });
    let plan = plan(&place(&filesystem), &[image], false);
    assert_eq!(in_short(&plan), [("/srv/vm", Hint::Inherited, 1, 16)]);
}

#[test]
fn an_image_without_extents_takes_one_of_its_own() {
    let mut filesystem = filesystem();
    let empty = [Image::sparse(20 * GIB, 0, 0)];
    let expected = [
        ("/srv/vm", Hint::Inherited, 0, 4),
        ("/srv/vm/a.raw", Hint::Own, 0, 4),
    ];
    assert_eq!(
        in_short(&plan(&place(&filesystem), &empty, false)),
        expected
    );
    filesystem.features = None;
    let plan_of = |images: &[Image]| plan(&place(&filesystem), images, false);
    assert_eq!(in_short(&plan_of(&empty)), expected);
    // Nothing is ever copied on write without reflink.
    let used = [Image::sparse(20 * GIB, GIB, 1)];
    assert_eq!(in_short(&plan_of(&used)), expected[..1]);
}

#[test]
fn a_directory_without_images_expects_large_ones() {
    let filesystem = filesystem();
    let bare = [Bare {
        path: "/srv/new".into(),
        hint: Bytes(0),
    }];
    let plan = Plan::new(&place(&filesystem), &[], &bare, false);
    assert_eq!(in_short(&plan), [("/srv/new", Hint::Inherited, 0, 16)]);
}

#[test]
fn obstacles_that_can_be_forced() {
    let images = [Image::sparse(GIB, GIB, 1)];
    let mut full = filesystem();
    full.free = Bytes(50 * GIB + 999 * MIB);
    let refused = plan(&place(&full), &images, false);
    assert!(
        refused
            .obstacle
            .as_ref()
            .is_some_and(|why| why.contains("defrag.keep_free"))
    );
    assert!(refused.changes.is_empty() && refused.can_be_forced);
    let forced = plan(&place(&full), &images, true);
    assert_eq!((forced.obstacle, forced.changes.len()), (None, 2));

    // Where nothing is missing, nothing is refused.
    let done = images[0].clone().with(|it| {
        it.sample.directory_hint = Bytes(MIB);
        it.sample.cow_hint = Bytes(MIB);
    });
    assert_eq!(plan(&place(&full), &[done], false).obstacle, None);

    let filesystem = filesystem();
    let thin = Place {
        provisioning: Provisioning::Thin,
        ..place(&filesystem)
    };
    let refused = plan(&thin, &images, false);
    assert!(
        refused
            .obstacle
            .is_some_and(|why| why.contains("thin-provisioned"))
    );
    assert_eq!(plan(&thin, &images, true).obstacle, None);

    // More than there is can be shared, by several images.
    let shared = images[0].clone().mapped(1, 0).with(|it| {
        it.map.as_mut().unwrap().shared = Bytes(500 * GIB);
    });
    let refused = plan(&place(&filesystem), &[shared], false);
    assert!(
        refused
            .obstacle
            .is_some_and(|why| why.contains("can cost 500 GiB"))
    );
}

#[test]
fn obstacles_that_cannot_be_forced() {
    let images = [Image::sparse(GIB, GIB, 1)];
    let mut other = filesystem();
    (other.kind, other.type_name) = (FilesystemKind::Other, "ext4".to_owned());
    for forced in [false, true] {
        let refused = plan(&place(&other), &images, forced);
        let why = "it is ext4, which has no extent-size hints";
        assert_eq!(
            (refused.obstacle.as_deref(), refused.can_be_forced),
            (Some(why), false)
        );
    }
    let mut filesystem = filesystem();
    let on_bad = |filesystem: &Filesystem| {
        let place = Place {
            kernel: Some("kernel 5.3.0 is bad"),
            ..place(filesystem)
        };
        plan(&place, &images, true)
    };
    assert_eq!(
        on_bad(&filesystem).obstacle.as_deref(),
        Some("kernel 5.3.0 is bad")
    );
    filesystem.features = None;
    assert_eq!(on_bad(&filesystem).changes.len(), 1);
}

#[test]
fn an_image_with_a_long_map_is_planned_for_too() {
    let filesystem = filesystem();
    let image = Image::sparse(265 * GIB, 132 * GIB, 34_694_398);
    assert_eq!(image.sample.extents, ExtentCount(34_694_398));
    assert_eq!(plan(&place(&filesystem), &[image], false).changes.len(), 2);
}
