//! `fragwatch space`: how long the free extents of the file systems of images are, in which allocation
//! groups, and in how many extents each image would lie at best.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::args::SpaceArguments;
use super::command::{block_on, load_config};
use super::images::{Found, Image, Probes, scope};
use super::output::{self, INCOMPLETE, SCHEMA, SUCCESS, linear_bar};
use crate::config::Settings;
use crate::model::free_space::{Class, Group};
use crate::model::path::shown;
use crate::model::{Bytes, DeviceNumber, ExtentCount, Filesystem, FreeSpace, Placement};
use crate::serve::of_file;
use crate::table::TextTable;

/// How many images, and how many allocation groups, the text names for each file system.
const IMAGES: usize = 20;
const GROUPS: usize = 32;

/// A file system with images, and its free space.
struct FilesystemSpace<'f> {
    filesystem: &'f Filesystem,
    space: FreeSpace,
    /// What a defragmentation leaves free.
    keeps: Bytes,
    /// The images with the most extents first.
    images: Vec<&'f Image>,
}

pub(super) fn run(arguments: &SpaceArguments, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_config(config)?.settings;
    let scope = scope(&settings, &arguments.paths)?;
    let (found, spaces) = block_on(async {
        let mut probes = Probes::new(&settings)?;
        let found = probes.count(&scope, &settings).await?;
        let mut spaces = Vec::new();
        for device in found.filesystems.keys() {
            spaces.push(probes.free_space(*device).await);
        }
        anyhow::Ok((found, spaces))
    })?;
    let mut complete = found.errors.is_empty();
    let mut places = Vec::new();
    for ((device, filesystem), space) in found.filesystems.iter().zip(spaces) {
        match space {
            Ok(space) => places.push(FilesystemSpace::new(
                &found, *device, filesystem, space, &settings,
            )),
            Err(error) => {
                complete = false;
                output::eprint_error(&format!("{}: {error:#}", shown(&filesystem.mount)));
            }
        }
    }
    if arguments.json {
        let filesystems: Vec<_> = places.iter().map(document).collect();
        output::print_json(&json!({ "schema": SCHEMA, "filesystems": filesystems }))?;
    } else {
        let texts: Vec<_> = places.iter().map(render).collect();
        output::print(&texts.join("\n"))?;
    }
    found.print_errors();
    Ok(if complete { SUCCESS } else { INCOMPLETE })
}

impl<'f> FilesystemSpace<'f> {
    fn new(
        found: &'f Found,
        device: DeviceNumber,
        filesystem: &'f Filesystem,
        space: FreeSpace,
        settings: &Settings,
    ) -> FilesystemSpace<'f> {
        let images = found.images.iter().filter(|image| image.device == device);
        let mut images: Vec<_> = images.collect();
        images.sort_by_key(|image| std::cmp::Reverse(image.sample.extents));
        FilesystemSpace {
            keeps: settings.defrag.keep_free.of_bytes(filesystem.size),
            filesystem,
            space,
            images,
        }
    }

    fn placement(&self, image: &Image) -> Placement {
        self.space.placement(image.sample.allocated, self.keeps)
    }
}

fn render(place: &FilesystemSpace<'_>) -> String {
    let space = &place.space;
    let mut text = format!(
        "{} ({}): {} of {} free, in {} extents; the longest has {}.\n\n",
        shown(&place.filesystem.mount),
        place.filesystem.type_name,
        space.bytes(),
        place.filesystem.size,
        space.extents(),
        space.longest(),
    );
    text.push_str(&histogram(space));
    if space.groups.len() > 1 {
        text.push_str(&groups(&space.groups));
    }
    if !place.images.is_empty() {
        text.push_str(&verdicts(place));
    }
    text
}

fn histogram(space: &FreeSpace) -> String {
    let most = space.classes.iter().map(|class| class.bytes.0).max();
    let mut table = TextTable::new(&[">FREE EXTENTS OF", ">COUNT", "SPACE", ""]);
    for (class, it) in space
        .classes
        .iter()
        .enumerate()
        .filter(|(_, it)| it.extents.0 > 0)
    {
        table.row([
            format!("{} and more", Bytes(1 << class)),
            it.extents.to_string(),
            linear_bar(it.bytes.0, most.unwrap_or(0)),
            it.bytes.to_string(),
        ]);
    }
    table.render()
}

/// Bars of the free space of each group, the one with the shortest longest extent named.
fn groups(groups: &[Group]) -> String {
    let most = groups.iter().map(|group| group.free.0).max().unwrap_or(0);
    let mut table = TextTable::new(&[">GROUP", "FREE", "", ">EXTENTS", ">LONGEST"]);
    for (number, group) in groups.iter().enumerate().take(GROUPS) {
        table.row([
            number.to_string(),
            linear_bar(group.free.0, most),
            group.free.to_string(),
            group.extents.to_string(),
            group.longest.to_string(),
        ]);
    }
    let mut text = format!("\n{}", table.render());
    if groups.len() > GROUPS {
        let more = groups.len() - GROUPS;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "and {more} more; --json has all");
    }
    let worst = groups
        .iter()
        .enumerate()
        .min_by_key(|(_, group)| group.longest);
    if let Some((number, group)) = worst {
        let longest = group.longest;
        let _ = writeln!(
            text,
            "Worst: group {number}, whose longest free extent has {longest}."
        );
    }
    text
}

fn verdicts(place: &FilesystemSpace<'_>) -> String {
    let mut table = TextTable::new(&["IMAGE", ">ALLOCATED", ">EXTENTS", "WOULD GET"]);
    for image in place.images.iter().take(IMAGES) {
        let verdict = match place.placement(image) {
            Placement::AtLeast(ExtentCount(0)) => "nothing to place".to_owned(),
            Placement::AtLeast(extents) => format!("at least {extents}"),
            Placement::Missing(bytes) => format!("no room: {bytes} missing"),
        };
        table.row([
            shown(&image.sample.path),
            image.sample.allocated.to_string(),
            image.sample.extents.to_string(),
            verdict,
        ]);
    }
    format!(
        "\nIn the longest free extents, with {} kept free (defrag.keep_free):\n{}",
        place.keeps,
        table.render()
    )
}

fn document(place: &FilesystemSpace<'_>) -> Value {
    let space = &place.space;
    let class = |(class, it): (usize, &Class)| {
        let from = 1_u64 << class;
        json!({
            "from_bytes": from,
            // The upper end of the class of 2^63 does not fit.
            "to_bytes": from.saturating_mul(2),
            "extents": it.extents,
            "bytes": it.bytes,
        })
    };
    let group = |group: &Group| {
        json!({
            "size_bytes": group.size,
            "free_bytes": group.free,
            "free_extents": group.extents,
            "longest_free_extent_bytes": group.longest,
        })
    };
    let classes = space.classes.iter().enumerate();
    let classes = classes.filter(|(_, class)| class.extents.0 > 0);
    json!({
        "mount": shown(&place.filesystem.mount),
        "type": place.filesystem.type_name,
        "size_bytes": place.filesystem.size,
        "block_size_bytes": space.block_size,
        "free_bytes": space.bytes(),
        "free_extents": space.extents(),
        "longest_free_extent_bytes": space.longest(),
        "keep_free_bytes": place.keeps,
        "histogram": classes.map(class).collect::<Vec<_>>(),
        "groups": space.groups.iter().map(group).collect::<Vec<_>>(),
        "images": place.images.iter().map(|image| image_object(place, image)).collect::<Vec<_>>(),
    })
}

/// `at_least_extents` is `null` if the image has no room; then `missing_bytes` is set.
fn image_object(place: &FilesystemSpace<'_>, image: &Image) -> Value {
    let (extents, missing) = match place.placement(image) {
        Placement::AtLeast(extents) => (Some(extents), None),
        Placement::Missing(bytes) => (None, Some(bytes)),
    };
    let keys = json!({
        "extents": image.sample.extents,
        "allocated_bytes": image.sample.allocated,
        "at_least_extents": extents,
        "missing_bytes": missing,
    });
    of_file(&image.sample.path, keys)
}
