//! fragwatch itself.

use crate::doctor::files::Reading;
use crate::doctor::outcome::{Checked, Found};
use crate::doctor::readings::Readings;
use crate::model::Severity;
use crate::serve::status::Status;

const READ: &str = "`fragwatch status`";

/// The status of the daemon; `None` if none runs.
fn status(readings: &Readings) -> Reading<Option<&Status>> {
    let daemon = readings.own.daemon.as_ref().map_err(Clone::clone)?;
    Ok(daemon.as_deref())
}

fn found(what: String) -> Found {
    Found::new(what, vec![READ.to_owned()])
}

/// A daemon that would do nothing in an emergency.
pub fn not_armed(readings: &Readings) -> Checked {
    let Some(status) = status(readings)?.filter(|status| !status.rescue.armed) else {
        return Ok(Vec::new());
    };
    let pid = status.daemon.pid;
    let what = format!("The rescue of the daemon (PID {pid}) is not armed.");
    Ok(vec![found(what)])
}

/// No daemon.
pub fn no_daemon(readings: &Readings) -> Checked {
    let socket = readings.own.settings.control.socket.display();
    Ok(match status(readings)? {
        Some(_) => Vec::new(),
        None => vec![found(format!("No daemon answers at {socket}."))],
    })
}

/// Parts of the daemon that do not work.
pub fn parts(readings: &Readings) -> Checked {
    let parts = status(readings)?.map_or(&[][..], |status| &status.parts);
    let bad = parts.iter().filter(|part| part.severity > Severity::Ok);
    let found = bad.map(|part| Found {
        severity: Some(part.severity),
        ..found(format!("{part}."))
    });
    Ok(found.collect())
}

/// A rescue whose last drill failed.
pub fn drill_failed(readings: &Readings) -> Checked {
    let rescue = status(readings)?.map(|status| &status.rescue);
    let failed = rescue.is_some_and(|it| it.drilled.is_some() && it.roundtrip_seconds.is_none());
    let what = "The last drill of the rescue, from the kernel's log to the actor, failed.";
    Ok(Vec::from_iter(failed.then(|| found(what.to_owned()))))
}
