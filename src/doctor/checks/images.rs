//! Images that will shatter, as the daemon has judged them.

use super::waiting::NAMED;
use crate::doctor::files::Reading;
use crate::doctor::outcome::{Checked, Found, NotChecked};
use crate::doctor::readings::Readings;
use crate::model::path::shown;
use crate::serve::status::Unprotected;
use crate::table::counted;

/// What the daemon has counted by cause.
fn counts(readings: &Readings) -> Reading<Unprotected> {
    let daemon = readings.own.daemon.as_ref().map_err(Clone::clone)?;
    let Some(status) = daemon else {
        let why = "no daemon answers that has judged the images";
        return Err(NotChecked::because(why.to_owned()));
    };
    Ok(status.images.unprotected_by)
}

fn found(number: usize, noun: &str, what: &str) -> Vec<Found> {
    let images = counted(number as u64, noun);
    let what = format!("{images} {what}");
    let found = || Found::new(what, vec!["`fragwatch status`".to_owned()]);
    Vec::from_iter((number > 0).then(found))
}

/// Sparse images without a hint.
pub fn sparse(readings: &Readings) -> Checked {
    Ok(found(
        counts(readings)?.holes,
        "image",
        "with holes and without a hint of 512 KiB or more can gain an extent with nearly every new block.",
    ))
}

/// qcow2 with small clusters.
pub fn clusters(readings: &Readings) -> Checked {
    Ok(found(
        counts(readings)?.growth,
        "qcow2 image",
        "can gain an extent with each small cluster.",
    ))
}

/// qcow2 whose clusters are given up by discards.
pub fn discards(readings: &Readings) -> Checked {
    let holders = readings.holders.as_ref().map_err(Clone::clone)?;
    let images = holders.growing_by_discards();
    if images.is_empty() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    let mut read = Vec::new();
    for (path, vm) in images.iter().take(NAMED) {
        let name = vm.name.as_deref().unwrap_or("without a name");
        names.push(format!("{} by the VM {name} (PID {})", shown(path), vm.pid));
        read.push(format!("/proc/{}/cmdline", vm.pid));
    }
    if images.len() > NAMED {
        names.push(format!("{} more", images.len() - NAMED));
    }
    let what = format!(
        "{} {} discarded without discard-no-unref: {}.",
        counted(images.len() as u64, "qcow2 image"),
        if images.len() == 1 { "is" } else { "are" },
        names.join(", ")
    );
    Ok(vec![Found::new(what, read)])
}

#[cfg(test)]
mod tests;
