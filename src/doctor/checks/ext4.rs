//! ext4: what is lost, or shown of others, after a crash.

use crate::doctor::files::Reading;
use crate::doctor::outcome::{Checked, Found};
use crate::doctor::readings::Readings;
use crate::model::path::{printable, shown};
use crate::sys::mounts::Mount;

const OPTIONS: &str = "proc/fs/ext4/*/options";
const JOURNAL: &str = "sys/fs/ext4/*/journal_task";
const DEVICES: &str = "sys/class/block/*/dev";

/// data=writeback, from the mount options or the defaults in the superblock.
pub fn writeback(readings: &Readings) -> Checked {
    let mut found = Vec::new();
    for entry in readings.now.all(OPTIONS)? {
        if has(readings, &entry.star, b"rw")? && has(readings, &entry.star, b"data=writeback")? {
            let what = format!("{} has data=writeback.", place(readings, &entry.star));
            found.push(Found::new(what, vec![format!("/{}", entry.name)]));
        }
    }
    Ok(found)
}

/// No journal at all.
pub fn no_journal(readings: &Readings) -> Checked {
    let mut found = Vec::new();
    for entry in readings.now.all(JOURNAL)? {
        let journal = entry.text.as_deref().unwrap_or_default();
        // The driver of ext4 also serves ext2, which has none by design.
        let is_ext2 = mount(readings, &entry.star).is_some_and(|it| it.type_name == "ext2");
        if journal.trim_ascii() == b"<none>" && !is_ext2 && has(readings, &entry.star, b"rw")? {
            let what = format!("{} has no journal.", place(readings, &entry.star));
            found.push(Found::new(what, vec![format!("/{}: <none>", entry.name)]));
        }
    }
    Ok(found)
}

/// Whether the options in force of a device have this one: /proc/fs/ext4/DEVICE/options has defaults
/// too, one a line (ext4_seq_options_show, fs/ext4/super.c).
fn has(readings: &Readings, device: &str, option: &[u8]) -> Reading<bool> {
    let mut entries = readings.now.all(OPTIONS)?.iter();
    let options = entries.find(|entry| entry.star == device);
    let text = options.and_then(|entry| entry.text.as_deref());
    let mut lines = text.unwrap_or_default().split(|byte| *byte == b'\n');
    Ok(lines.any(|line| line == option))
}

/// `The ext4 on sda1 (/srv)`
fn place(readings: &Readings, device: &str) -> String {
    let point = mount(readings, device).map(|mount| format!(" ({})", shown(&mount.point)));
    let device = printable(device.as_bytes());
    format!("The ext4 on {device}{}", point.unwrap_or_default())
}

/// A mount of a device, by its name.
fn mount<'r>(readings: &'r Readings, device: &str) -> Option<&'r Mount> {
    let mut devices = readings.now.all(DEVICES).ok()?.iter();
    let device = devices.find(|entry| entry.star == device)?;
    let number = String::from_utf8_lossy(device.text.as_deref()?.trim_ascii());
    let mut mounts = readings.mounts.as_ref().ok()?.iter();
    mounts.find(|it| format!("{}:{}", it.device.0, it.device.1) == number)
}
