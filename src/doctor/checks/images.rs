//! Images that will shatter, as the daemon has judged them.

use crate::doctor::outcome::{Checked, Found, NotChecked};
use crate::doctor::readings::Readings;
use crate::model::path::shown;
use crate::serve::status::Unprotected;
use crate::table::counted;

/// What the daemon has counted by cause; `None` if none runs.
fn counts(readings: &Readings) -> Result<Option<Unprotected>, NotChecked> {
    let daemon = readings.own.daemon.as_ref().map_err(Clone::clone)?;
    Ok(daemon.as_ref().map(|status| status.images.unprotected_by))
}

fn found(number: usize, what: &str) -> Vec<Found> {
    let images = counted(number as u64, "image");
    let what = format!("{images} {what}");
    let found = || Found::new(what, vec!["`fragwatch status`".to_owned()]);
    Vec::from_iter((number > 0).then(found))
}

/// Sparse images without a hint.
pub fn sparse(readings: &Readings) -> Checked {
    let number = counts(readings)?.map_or(0, |it| it.holes);
    Ok(found(
        number,
        "with holes and without a hint can gain an extent with nearly every new block.",
    ))
}

/// qcow2 with small clusters.
pub fn clusters(readings: &Readings) -> Checked {
    let number = counts(readings)?.map_or(0, |it| it.growth);
    Ok(found(
        number,
        "of qcow2 can gain an extent with each small cluster.",
    ))
}

/// qcow2 whose clusters are given up by discards.
pub fn discards(readings: &Readings) -> Checked {
    let holders = readings.holders.as_ref().map_err(Clone::clone)?;
    let found = holders.growing_by_discards().into_iter().map(|(path, vm)| {
        let name = vm.name.as_deref().unwrap_or("without a name");
        let what = format!(
            "The VM {name} (PID {}) discards in the qcow2 {} without discard-no-unref.",
            vm.pid,
            shown(&path)
        );
        Found::new(what, vec![format!("/proc/{}/cmdline", vm.pid)])
    });
    Ok(found.collect())
}

#[cfg(test)]
mod tests;
