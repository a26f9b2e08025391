//! `fragwatch space`: how long the free extents of the file systems of images are, in which allocation
//! groups, and in how many extents each image would lie at best.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::args::SpaceArguments;
use super::command::{block_on, load_config};
use super::images::{Found, Image, Probes, scope};
use super::output::{self, INCOMPLETE, SCHEMA, SUCCESS, bar_within, linear_bar};
use crate::config::Settings;
use crate::model::free_space::{Class, Group};
use crate::model::path::shown;
use crate::model::{
    Bytes, DeviceNumber, Filesystem, FilesystemKind, FreeSpace, Placement, ReasonCode, Refusal,
    Severity,
};
use crate::serve::of_file;
use crate::table::TextTable;

/// How many images the text names for each file system, if no more are candidates.
const IMAGES: usize = 20;
/// Maximum number of lines for the allocation groups of a file system.
const GROUP_LINES: usize = 32;
/// Columns of the bar of the group with the most free space.
const GROUP_BAR: usize = 24;

/// A file system with images, and its free space.
struct FilesystemSpace<'f> {
    filesystem: &'f Filesystem,
    space: FreeSpace,
    /// What a defragmentation leaves free.
    keeps: Bytes,
    /// The severity from which an image is a candidate for a defragmentation.
    from: Severity,
    /// Candidates first, then by extents, the most first.
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
        let width = output::width();
        let texts: Vec<_> = places.iter().map(|place| render(place, width)).collect();
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
        let from = settings.defrag.from;
        images
            .sort_by_key(|image| std::cmp::Reverse((image.severity >= from, image.sample.extents)));
        FilesystemSpace {
            keeps: settings.defrag.keep_free.of_bytes(filesystem.size),
            from,
            filesystem,
            space,
            images,
        }
    }

    fn is_candidate(&self, image: &Image) -> bool {
        image.severity >= self.from
    }

    fn placement(&self, image: &Image) -> Placement {
        let (allocated, extents) = (image.sample.allocated, image.sample.extents);
        self.space.placement(allocated, extents, self.keeps)
    }

    /// Why the free space does not suffice for a copy that is worth it.
    fn refusal(&self, image: &Image) -> Option<Refusal> {
        let (extents, allocated) = (image.sample.extents, image.sample.allocated);
        if self.filesystem.kind != FilesystemKind::Xfs {
            let text = "only XFS is defragmented";
            return Some(Refusal::new(ReasonCode::NotXfs, text));
        }
        match self.placement(image) {
            Placement::Missing(bytes) => {
                let text = format!("{bytes} missing");
                Some(Refusal::new(ReasonCode::NoSpace, text))
            }
            Placement::AtLeast(least) if least >= extents => {
                let text = "gains nothing";
                Some(Refusal::new(ReasonCode::NearIdeal, text))
            }
            Placement::AtLeast(_) => self.space.check_copy(allocated, extents).err(),
        }
    }
}

fn render(place: &FilesystemSpace<'_>, width: Option<u16>) -> String {
    let space = &place.space;
    let mut text = format!(
        "{} ({}):\n{} of {} free in {} extents; the longest has {}.\n\n",
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
        text.push_str(&verdicts(place, width));
    }
    text
}

fn histogram(space: &FreeSpace) -> String {
    let most = space.classes.iter().map(|class| class.bytes.0).max();
    let mut table = TextTable::new(&[">EXTENTS FROM", ">COUNT", "FREE", ""]);
    for (class, it) in space
        .classes
        .iter()
        .enumerate()
        .filter(|(_, it)| it.extents.0 > 0)
    {
        table.row([
            Bytes(1 << class).to_string(),
            it.extents.to_string(),
            linear_bar(it.bytes.0, most.unwrap_or(0)),
            it.bytes.to_string(),
        ]);
    }
    table.render()
}

/// Bars of the free space of each group, the one with the shortest longest extent named. Many groups are
/// shown together, several on a line.
fn groups(groups: &[Group]) -> String {
    let together = groups.len().div_ceil(GROUP_LINES).max(1);
    let lines: Vec<Group> = groups.chunks(together).map(sum).collect();
    let most = lines.iter().map(|line| line.free.0).max().unwrap_or(0);
    let mut table = TextTable::new(&[">GROUP", "FREE", "", ">EXTENTS", ">LONGEST"]);
    for (number, line) in lines.iter().enumerate() {
        let first = number * together;
        let last = groups.len().min(first + together) - 1;
        table.row([
            match first == last {
                true => first.to_string(),
                false => format!("{first}–{last}"),
            },
            bar_within(GROUP_BAR, line.free.0, most),
            line.free.to_string(),
            line.extents.to_string(),
            line.longest.to_string(),
        ]);
    }
    let worst = worst(groups).map_or(String::new(), |number| {
        let longest = groups[number].longest;
        format!("Worst: group {number}, whose longest free extent has {longest}.\n")
    });
    format!("\n{}{worst}", table.render())
}

fn sum(groups: &[Group]) -> Group {
    Group {
        size: groups.iter().map(|group| group.size).sum(),
        extents: groups.iter().map(|group| group.extents).sum(),
        free: groups.iter().map(|group| group.free).sum(),
        longest: groups
            .iter()
            .map(|group| group.longest)
            .max()
            .unwrap_or_default(),
    }
}

/// The number of the group with the shortest longest free extent.
fn worst(groups: &[Group]) -> Option<usize> {
    let groups = groups.iter().enumerate();
    let worst = groups.min_by_key(|(_, group)| group.longest);
    worst.map(|(number, _)| number)
}

fn verdicts(place: &FilesystemSpace<'_>, width: Option<u16>) -> String {
    let headers = ["IMAGE", ">ALLOCATED", ">EXTENTS", ">AT LEAST", "FREE SPACE"];
    let mut table = TextTable::new(&headers).wrapped(width);
    let candidates = place
        .images
        .iter()
        .filter(|image| place.is_candidate(image));
    let lines = candidates.count().max(IMAGES);
    for image in place.images.iter().take(lines) {
        let least = match place.placement(image) {
            Placement::AtLeast(extents) => extents.to_string(),
            Placement::Missing(_) => "–".to_owned(),
        };
        table.row([
            shown(&image.sample.path),
            image.sample.allocated.to_string(),
            image.sample.extents.to_string(),
            least,
            match place.refusal(image) {
                None => "suffices".to_owned(),
                Some(refusal) if refusal.code == ReasonCode::FreeSpaceFragmented => {
                    "too fragmented".to_owned()
                }
                Some(refusal) => refusal.to_string(),
            },
        ]);
    }
    let mut text = format!(
        "\nA copy in the longest free extents, {} kept free (defrag.keep_free):\n{}",
        place.keeps,
        table.render()
    );
    if let Some(more @ 1..) = place.images.len().checked_sub(lines) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "and {more} more; --json has all");
    }
    text
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
        "worst_group": worst(&space.groups),
        "images": place.images.iter().map(|image| image_object(place, image)).collect::<Vec<_>>(),
    })
}

/// `at_least_extents` is `null` if the image has no room; then `missing_bytes` is set. `why_not` is `null`
/// if the free space suffices for a copy that is worth it.
fn image_object(place: &FilesystemSpace<'_>, image: &Image) -> Value {
    let (extents, missing) = match place.placement(image) {
        Placement::AtLeast(extents) => (Some(extents), None),
        Placement::Missing(bytes) => (None, Some(bytes)),
    };
    let why_not = place.refusal(image);
    let why_not = why_not.map(|why| json!({ "code": why.code, "text": why.text }));
    let keys = json!({
        "extents": image.sample.extents,
        "candidate": place.is_candidate(image),
        "allocated_bytes": image.sample.allocated,
        "at_least_extents": extents,
        "missing_bytes": missing,
        "why_not": why_not,
    });
    of_file(&image.sample.path, keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::free_space::Summary;

    /// Of 100 TiB, with a free extent of 1 GiB in each group but the fifth, which has one of 1 MiB.
    fn of_groups(count: u64) -> FreeSpace {
        let group = (100 << 40) / count;
        let mut summary = Summary::new(Bytes(group * count), Bytes(4096), Bytes(group));
        for number in 0..count {
            let length = if number == 4 { 1 << 20 } else { 1 << 30 };
            summary.add(number * group, length);
        }
        summary.finish()
    }

    #[test]
    fn groups_fit_the_screen() {
        for count in [4, 32, 33, 500, 1_000_000] {
            let text = groups(&of_groups(count).groups);
            let lines: Vec<&str> = text.trim().lines().collect();
            // With a header, and the line that names the worst.
            assert!(lines.len() <= GROUP_LINES + 2, "{text}");
            let longest = lines.iter().map(|line| line.chars().count()).max();
            assert!(longest.unwrap() <= 80, "{text}");
        }
    }

    #[test]
    fn groups_on_one_line_are_added_up() {
        let text = groups(&of_groups(500).groups);
        let line = text.lines().nth(2).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        // 16 groups, of which one has 1 MiB.
        assert_eq!((words[0], words[1].chars().count()), ("0–15", 23), "{line}");
        assert_eq!(words[2..], ["15.0", "GiB", "16", "1.0", "GiB"], "{line}");
        assert_eq!(text.lines().count(), 1 + 1 + 32 + 1, "{text}");
        let worst = "Worst: group 4, whose longest free extent has 1.0 MiB.";
        assert!(text.contains(worst), "{text}");
    }
}
