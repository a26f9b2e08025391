//! XFS: layout, space, options and quotas of the file systems that hold images.

use std::collections::BTreeSet;
use std::path::Path;

use super::kernel::{is_affected, level, with_xfs};
use super::mounted::options;
use super::own::before_glob;
use crate::discover::mounts::MountTable;
use crate::doctor::outcome::{Checked, Found, NotChecked};
use crate::doctor::readings::Readings;
use crate::doctor::xfs::{Project, Xfs};
use crate::model::path::{printable, shown};
use crate::model::{
    Bytes, DeviceNumber, Engine, ExtentCount, Roughly, Severity, Share, swap_stall,
};
use crate::table::counted;

const GEOMETRY: &str = "XFS_IOC_FSGEOMETRY";
/// XFS has algorithms of its own for less free space (`mp->m_low_space`, fs/xfs/xfs_mount.c).
const LITTLE: Share = Share::percent(5);
const NEXT_TO_NOTHING: Share = Share::percent(1);
/// With less free space all groups may be full.
const MUCH: Share = Share::percent(20);
/// mkfs.xfs makes no smaller log since xfsprogs 5.15 (6e0ed3d19c54), unless the file system is tiny.
const SMALL_LOG: Bytes = Bytes(64 << 20);
/// Before, it made a log of 1/2048: with less than half of that the file system has grown.
const LARGE_FILESYSTEM: Bytes = Bytes(256 << 30);
/// A project is at its limit.
const AT_LIMIT: Share = Share::percent(95);

/// The findings of a check of each XFS. If none is found but one has not answered, it could not be made.
fn each(readings: &Readings, check: impl FnMut(&Xfs) -> Option<Found>) -> Checked {
    readings.mounts.as_ref().map_err(Clone::clone)?;
    let found: Vec<_> = readings.xfs.answered.iter().filter_map(check).collect();
    match readings.xfs.silent.first() {
        Some(silent) if found.is_empty() => {
            if let Some(failed) = &readings.xfs.failed {
                return Err(failed.clone());
            }
            let silent = shown(silent);
            let why = format!("the XFS at {silent} did not answer in time, or cannot be opened");
            Err(NotChecked::because(why))
        }
        _ => Ok(found),
    }
}

/// As [`each`], of those that hold images: by the configuration, or by what a VM has open.
fn each_with_images(readings: &Readings, mut check: impl FnMut(&Xfs) -> Option<Found>) -> Checked {
    each(readings, |xfs| {
        check(xfs).filter(|_| has_images(readings, xfs.device))
    })
}

/// If nothing is found, but something of one was not read, the check could not be made.
fn unless_unread(
    found: Vec<Found>,
    readings: &Readings,
    what: &str,
    is_unread: impl Fn(&Xfs) -> bool,
) -> Checked {
    match readings.xfs.answered.iter().find(|it| is_unread(it)) {
        Some(xfs) if found.is_empty() => {
            let why = format!("the {what} of {} could not be read", shown(&xfs.mount));
            Err(NotChecked::because(why))
        }
        _ => Ok(found),
    }
}

fn has_images(readings: &Readings, device: DeviceNumber) -> bool {
    let mounts = MountTable::new(readings.mounts.as_deref().unwrap_or_default().to_vec());
    let is_here = |path: &Path| mounts.of(path).is_some_and(|mount| mount.device == device);
    let mut paths = readings.own.settings.images.paths.iter();
    let is_open = |it: &crate::discover::owner::Holders| it.held_on(device).next().is_some();
    paths.any(|path| is_here(&before_glob(path))) || readings.holders.as_ref().is_ok_and(is_open)
}

/// A log whose writes can be torn.
pub fn log_roundoff(readings: &Readings) -> Checked {
    const REPAIRED: &[&str] = &[
        "5.15.203", "6.1.167", "6.6.130", "6.12.78", "6.18.19", "6.19.9", "7.0",
    ];
    let Some(kernel) = with_xfs(readings)?.filter(|it| is_affected(it, "5.14", REPAIRED)) else {
        return Ok(Vec::new());
    };
    let found = each(readings, |xfs| {
        let is_it = xfs.log_sector > Bytes(512) && xfs.log_stripe <= Bytes(1);
        let what = format!(
            "The log of the XFS at {} has sectors of {} and no stripe unit, and this kernel ({}) writes it \
             in pieces of 512 bytes.",
            shown(&xfs.mount),
            xfs.log_sector,
            kernel.release
        );
        is_it.then(|| Found::new(what, vec![GEOMETRY.to_owned(), level(kernel)]))
    })?;
    if !found.is_empty() && !kernel.exact {
        let why = "the level of this kernel does not show whether its vendor has repaired it";
        return Err(NotChecked::because(why.to_owned()));
    }
    Ok(found)
}

/// Little free space.
pub fn full(readings: &Readings) -> Checked {
    each_with_images(readings, |xfs| {
        let is_below = |share: Share| xfs.free < share.of_bytes(xfs.size);
        let what = format!(
            "{} of {} are free on {}.",
            xfs.free,
            xfs.size,
            shown(&xfs.mount)
        );
        is_below(LITTLE).then(|| Found {
            severity: is_below(NEXT_TO_NOTHING).then_some(Severity::Critical),
            ..Found::new(what, vec!["XFS_IOC_FSCOUNTS".to_owned()])
        })
    })
}

/// Allocation groups that are full while others are not.
pub fn groups(readings: &Readings) -> Checked {
    let found = each_with_images(readings, |xfs| {
        let full = xfs.full_groups?;
        let is_uneven = full.saturating_mul(2) >= xfs.groups && xfs.free >= MUCH.of_bytes(xfs.size);
        let what = format!(
            "{full} of {} on {} have less than 1 % free, although {} of {} are free.",
            counted(xfs.groups.into(), "allocation group"),
            shown(&xfs.mount),
            xfs.free,
            xfs.size
        );
        is_uneven.then(|| Found::note(what, vec!["XFS_IOC_AG_GEOMETRY".to_owned()]))
    })?;
    let is_unread = |it: &Xfs| it.full_groups.is_none() && has_images(readings, it.device);
    unless_unread(found, readings, "allocation groups", is_unread)
}

/// The small log of a file system that has grown.
pub fn small_log(readings: &Readings) -> Checked {
    each_with_images(readings, |xfs| {
        let is_small = xfs.log < SMALL_LOG && xfs.size >= LARGE_FILESYSTEM;
        let what = format!(
            "The log of the XFS at {} has {}, for {} in {}.",
            shown(&xfs.mount),
            xfs.log,
            xfs.size,
            counted(xfs.groups.into(), "allocation group")
        );
        is_small.then(|| Found::new(what, vec![GEOMETRY.to_owned()]))
    })
}

/// A file system on which images of running VMs cannot be defragmented.
pub fn no_online(readings: &Readings) -> Checked {
    let defrag = &readings.own.settings.defrag;
    // blockcopy needs no reflink.
    let has = |engine| defrag.engines.contains(&engine);
    if !has(Engine::Online) || has(Engine::BlockCopy) || defrag.blockcopy.enabled {
        return Ok(Vec::new());
    }
    each_with_images(readings, |xfs| {
        let Some((extents, severity)) = worst(readings, xfs) else {
            return (!xfs.features.reflink).then(|| no_reflink(xfs, String::new(), Severity::Ok));
        };
        let stall = swap_stall(extents, xfs.features.rmapbt);
        let is_refused = match stall > defrag.max_swap_stall {
            true => ", which is more than defrag.max_swap_stall",
            false => "",
        };
        let swap = format!(
            "; xfs_fsr would stall the worst of them, of {extents} extents, for {} at its end{is_refused}",
            Roughly(stall)
        );
        (!xfs.features.reflink).then(|| no_reflink(xfs, swap, severity))
    })
}

/// The most extents of an image on this file system, and the worst severity.
fn worst(readings: &Readings, xfs: &Xfs) -> Option<(ExtentCount, Severity)> {
    let status = readings.own.daemon.as_ref().ok()?.as_ref()?;
    let mounts = MountTable::new(readings.mounts.as_deref().unwrap_or_default().to_vec());
    let is_here = |path: &str| mounts.of(Path::new(path)).map(|it| it.device) == Some(xfs.device);
    let here = || status.worst.iter().filter(|row| is_here(&row.path));
    let severity = here().map(|row| row.severity).max()?;
    Some((here().map(|row| row.extents).max()?, severity))
}

fn no_reflink(xfs: &Xfs, swap: String, severity: Severity) -> Found {
    let what = format!(
        "The XFS at {} has no reflink, so that images that VMs have open are not defragmented{swap}.",
        shown(&xfs.mount)
    );
    let has = |it: bool| u8::from(it);
    let features = &xfs.features;
    let read = format!(
        "{GEOMETRY}: reflink={} rmapbt={} nrext64={} bigtime={} exchange={}",
        has(features.reflink),
        has(features.rmapbt),
        has(features.nrext64),
        has(xfs.bigtime),
        has(features.exchange_range)
    );
    match severity {
        Severity::Ok => Found::note(what, vec![read]),
        _ => Found::new(what, vec![read]),
    }
}

/// A realtime section.
pub fn realtime(readings: &Readings) -> Checked {
    each_with_images(readings, |xfs| {
        let (mount, size) = (shown(&xfs.mount), xfs.realtime);
        let what = format!("The XFS at {mount} has a realtime section of {size}.");
        (size > Bytes(0)).then(|| Found::note(what, vec![GEOMETRY.to_owned()]))
    })
}

/// The option `discard`.
pub fn discard(readings: &Readings) -> Checked {
    with_option(readings, |it| it == b"discard", Found::new)
}

/// The option `allocsize`.
pub fn allocsize(readings: &Readings) -> Checked {
    with_option(readings, |it| it.starts_with(b"allocsize="), Found::note)
}

/// The mounts of XFS that hold images and have such an option.
fn with_option(
    readings: &Readings,
    is_it: impl Fn(&[u8]) -> bool,
    found: fn(String, Vec<String>) -> Found,
) -> Checked {
    let mounts = readings.mounts.as_ref().map_err(Clone::clone)?;
    let mounts = MountTable::new(mounts.clone());
    let here = options(readings)?
        .into_iter()
        .filter(|it| it.kind == b"xfs");
    let mut seen = BTreeSet::new();
    let here = here.filter_map(|mount| {
        let option = mount
            .options
            .split(|byte| *byte == b',')
            .find(|it| is_it(it))?;
        let device = mounts.of(&mount.point)?.device;
        let what = format!(
            "The XFS at {} is mounted with {}.",
            shown(&mount.point),
            printable(option)
        );
        // One that is mounted in several places is one.
        let is_it = has_images(readings, device) && seen.insert(device);
        is_it.then(|| found(what, vec!["/proc/self/mounts".to_owned()]))
    });
    Ok(here.collect())
}

/// Project quotas at their limit.
pub fn project_quotas(readings: &Readings) -> Checked {
    let mounts = MountTable::new(readings.mounts.clone().unwrap_or_default());
    let mut unenforced = BTreeSet::new();
    for mount in options(readings)? {
        let mut its = mount.options.split(|byte| *byte == b',');
        if its.any(|it| it == b"pqnoenforce") {
            unenforced.extend(mounts.of(&mount.point).map(|it| it.device));
        }
    }
    let found = each(readings, |xfs| {
        if unenforced.contains(&xfs.device) {
            return None;
        }
        let is_it = |it: &&Project| AT_LIMIT.is_reached_by(it.used, it.limit);
        let projects: Vec<_> = xfs.projects.iter().flatten().filter(is_it).collect();
        let worst = projects
            .iter()
            .max_by_key(|it| it.used.0.saturating_mul(1000) / it.limit.0.max(1))?;
        let what = format!(
            "{} on {} {}; the fullest is {}, with {} of {}.",
            counted(projects.len() as u64, "project"),
            shown(&xfs.mount),
            match projects.len() {
                1 => "uses 95 % or more of its limit",
                _ => "use 95 % or more of their limits",
            },
            worst.id,
            worst.used,
            worst.limit
        );
        let severity = (worst.used >= worst.limit).then_some(Severity::Critical);
        let read = vec!["quotactl(2), Q_XGETNEXTQUOTA".to_owned()];
        Some(Found {
            severity,
            ..Found::new(what, read)
        })
    })?;
    unless_unread(found, readings, "project quotas", |it| {
        it.projects.is_none()
    })
}

#[cfg(test)]
mod tests;
