//! Images and the programs that have them open.

use crate::doctor::outcome::{Checked, Found};
use crate::doctor::readings::Readings;
use crate::model::Opener;
use crate::model::path::shown;

/// Images that are open with and without O_DIRECT.
pub fn mixed(readings: &Readings) -> Checked {
    let holders = readings.holders.as_ref().map_err(Clone::clone)?;
    let found = holders.mixed().into_iter().map(|(path, owner)| {
        let names = |is: fn(&Opener) -> bool| {
            let openers = owner.openers.iter().filter(|opener| is(opener));
            openers.map(name).collect::<Vec<_>>().join(", ")
        };
        let (direct, buffered) = (names(|it| it.direct), names(|it| it.buffered));
        let path = shown(&path);
        let what = format!(
            "{path} is open with O_DIRECT by {direct} and through the page cache by {buffered}."
        );
        let read = owner.openers.iter();
        let read = read.map(|opener| format!("/proc/{}/fdinfo: flags", opener.pid));
        Found::new(what, read.collect())
    });
    Ok(found.collect())
}

fn name(opener: &Opener) -> String {
    let vm = opener.vm.as_ref().and_then(|vm| vm.name.as_deref());
    match vm {
        Some(vm) => format!("the VM {vm} (PID {})", opener.pid),
        None => format!("{} (PID {})", opener.name, opener.pid),
    }
}
