//! `fragwatch scan`: counts the images once and shows them.

use std::path::Path;

use anyhow::anyhow;

use super::args::{ScanArguments, SortKey};
use super::command::{block_on, load_config};
use super::images::{self, Found, Image, Probes};
use super::{image_table, map_view, output, scan_json};
use crate::config::Settings;
use crate::model::notation::Unit as _;
use crate::model::{Bytes, ExtentCount};
use crate::probe::sweep::Scope;

pub(super) fn run(arguments: &ScanArguments, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_config(config)?.settings;
    let scope = scope(arguments, &settings)?;
    let found = block_on(scan(arguments, &settings, &scope))?;
    if arguments.json {
        scan_json::print(&found)?;
        return Ok(found.exit_code());
    }
    let mut text = image_table::render(&found, output::width(), output::colours());
    if arguments.map {
        text.push_str(&map_view::render(&found, &settings.sampling));
    }
    output::print(&text)?;
    found.print_errors();
    Ok(found.exit_code())
}

fn scope(arguments: &ScanArguments, settings: &Settings) -> anyhow::Result<Scope> {
    let mut scope = images::scope(settings, &arguments.paths)?;
    if let Some(text) = &arguments.min_size {
        scope.selection.min_size =
            Bytes::parse(text).map_err(|error| anyhow!("--min-size {text} {error}"))?;
    }
    Ok(scope)
}

async fn scan(
    arguments: &ScanArguments,
    settings: &Settings,
    scope: &Scope,
) -> anyhow::Result<Found> {
    let mut probes = Probes::new(settings)?;
    let mut found = probes.count(scope, settings).await?;
    sort(&mut found.images, arguments.sort);
    found.images.truncate(arguments.top.unwrap_or(usize::MAX));
    if arguments.map {
        let cap = match arguments.force {
            true => ExtentCount(u64::MAX),
            false => settings.sampling.map_max_extents,
        };
        for image in &mut found.images {
            found.errors.extend(probes.read_map(image, cap).await.err());
        }
    }
    Ok(found)
}

fn sort(images: &mut [Image], key: SortKey) {
    use std::cmp::Reverse;
    let none_last = |mean: Option<Bytes>| mean.unwrap_or(Bytes(u64::MAX));
    // By path among equals, so that two scans of the same images look the same.
    images.sort_by(|a, b| a.sample.path.cmp(&b.sample.path));
    match key {
        SortKey::Extents => images.sort_by_key(|image| Reverse(image.sample.extents)),
        SortKey::Mean => images.sort_by_key(|Image { sample, .. }| {
            none_last(sample.allocated.per_extent(sample.extents))
        }),
        SortKey::Size => images.sort_by_key(|image| Reverse(image.sample.size)),
        SortKey::Allocated => images.sort_by_key(|image| Reverse(image.sample.allocated)),
        SortKey::Path => {}
    }
}
