//! Mount options.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use crate::doctor::outcome::{Checked, Found};
use crate::doctor::readings::Readings;
use crate::model::path::{printable, shown};
use crate::sys::mounts::unescape;

const MOUNTS: &str = "proc/self/mounts";

/// File systems that do not flush the cache of their disk (fstab(5): device, point, type, options).
pub fn no_barriers(readings: &Readings) -> Checked {
    let text = readings.now.bytes(MOUNTS)?.unwrap_or_default();
    let found = text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(1);
        let (point, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let mut options = options.split(|byte| *byte == b',');
        let option = options.find(|it| *it == b"nobarrier" || *it == b"barrier=0")?;
        let point = OsString::from_vec(unescape(point));
        let (point, option) = (shown(Path::new(&point)), printable(option));
        let what = format!(
            "The {} at {point} is mounted with {option}.",
            printable(kind)
        );
        Some(Found::new(what, vec![format!("/{MOUNTS}")]))
    });
    Ok(found.collect())
}
