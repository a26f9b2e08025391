//! Mount options.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use crate::doctor::files::Reading;
use crate::doctor::outcome::{Checked, Found};
use crate::doctor::readings::Readings;
use crate::model::path::{printable, shown};
use crate::sys::mounts::unescape;

const MOUNTS: &str = "proc/self/mounts";

/// A mount with its options.
pub(super) struct Options<'r> {
    /// The type of the file system.
    pub(super) kind: &'r [u8],
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// Separated by commas.
    pub(super) options: &'r [u8],
}

/// All mounts (fstab(5): device, point, type, options).
pub(super) fn options(readings: &Readings) -> Reading<Vec<Options<'_>>> {
    let text = readings.now.bytes(MOUNTS)?.unwrap_or_default();
    let mounts = text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(1);
        let point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
        let (kind, options) = (fields.next()?, fields.next()?);
        Some(Options {
            kind,
            point,
            options,
        })
    });
    Ok(mounts.collect())
}

/// File systems that do not flush the cache of their disk.
pub fn no_barriers(readings: &Readings) -> Checked {
    let found = options(readings)?.into_iter().filter_map(|mount| {
        let mut options = mount.options.split(|byte| *byte == b',');
        let option = options.find(|it| *it == b"nobarrier" || *it == b"barrier=0")?;
        let (kind, point, option) = (
            printable(mount.kind),
            shown(&mount.point),
            printable(option),
        );
        let what = format!("The {kind} at {point} is mounted with {option}.");
        Some(Found::new(what, vec![format!("/{MOUNTS}")]))
    });
    Ok(found.collect())
}
