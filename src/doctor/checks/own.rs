//! fragwatch itself.

use std::path::{Component, Path, PathBuf};

use jiff::tz::TimeZone;

use crate::discover::mounts::MountTable;
use crate::doctor::files::Reading;
use crate::doctor::outcome::{Checked, Found, NotChecked};
use crate::doctor::readings::Readings;
use crate::model::globs::is_glob;
use crate::model::path::shown;
use crate::model::{BytesPerSecond, Engine, Roughly, Severity};
use crate::serve::status::Status;
use crate::state_dir::StateDir;
use crate::sys::zone::Zone;

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
    let settings = &readings.own.settings.rescue;
    Ok(vec![match settings.enabled {
        true => found(format!(
            "The rescue of the daemon (PID {pid}) is not armed."
        )),
        // The operator has decided so.
        false => Found {
            severity: Some(Severity::Ok),
            ..found("The rescue is switched off: rescue.enabled = false.".to_owned())
        },
    }])
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

/// A history that hangs with the images.
pub fn history_beside_images(readings: &Readings) -> Checked {
    let mounts = readings.mounts.as_ref().map_err(Clone::clone)?;
    let mounts = MountTable::new(mounts.clone());
    let settings = &readings.own.settings;
    let state = StateDir::of(&settings.history);
    let of_history = mounts.of(state.database());
    let same = settings.images.paths.iter().find(|path| {
        let of_images = mounts.of(&before_glob(path));
        of_history.is_some_and(|history| of_images.is_some_and(|it| it.device == history.device))
    });
    let found = same.map(|images| {
        let point = of_history.map_or_else(String::new, |mount| shown(&mount.point));
        let what = format!(
            "{} and {} are both on the file system {point}.",
            shown(state.database()),
            shown(Path::new(images))
        );
        Found::new(what, vec!["/proc/self/mountinfo".to_owned()])
    });
    Ok(Vec::from_iter(found))
}

/// The directory in which a glob begins.
pub(super) fn before_glob(path: &str) -> PathBuf {
    let is_plain = |component: &Component<'_>| !is_glob(component.as_os_str());
    Path::new(path).components().take_while(is_plain).collect()
}

/// Images that get worse.
pub fn no_window(readings: &Readings) -> Checked {
    let images = status(readings)?
        .map(|status| status.images)
        .unwrap_or_default();
    let bad = images.warning + images.critical;
    if bad == 0 || !readings.own.settings.maintenance.windows.is_empty() {
        return Ok(Vec::new());
    }
    let what = format!(
        "{} at warning or critical, and no maintenance window is configured.",
        match bad {
            1 => "1 image is".to_owned(),
            _ => format!("{bad} images are"),
        }
    );
    Ok(vec![found(what)])
}

/// Images for which no window is long enough: xfs_fsr begins anew each time.
pub fn short_windows(readings: &Readings) -> Checked {
    let (defrag, maintenance) = (
        &readings.own.settings.defrag,
        &readings.own.settings.maintenance,
    );
    let windows = maintenance.windows.iter().map(|it| it.duration);
    let longest = windows
        .max()
        .map(|it| it.saturating_sub(maintenance.jitter));
    let status = status(readings)?.filter(|_| defrag.engines.contains(&Engine::XfsFsr));
    let Some((status, longest)) = status.zip(longest) else {
        return Ok(Vec::new());
    };
    let resumes = status
        .engines
        .iter()
        .any(|it| it.engine == Engine::Online && it.usable);
    // Half of the bandwidth is for reading.
    let speed = BytesPerSecond(defrag.bandwidth.0 / 2);
    let rows = status.worst.iter();
    let too_large = rows.filter(|row| {
        row.severity >= defrag.from && !resumes && speed.time_for(row.allocated) > longest
    });
    let Some(largest) = too_large.max_by_key(|row| row.allocated) else {
        return Ok(Vec::new());
    };
    let what = format!(
        "The longest window has {}, and a copy of {} ({}) takes {} at {speed}.",
        Roughly(longest),
        largest.path,
        largest.allocated,
        Roughly(speed.time_for(largest.allocated))
    );
    Ok(vec![found(what)])
}

/// Windows by a clock that may be wrong, or by a time zone that is not set.
pub fn clock(readings: &Readings) -> Checked {
    const ZONE: &str = "etc/localtime";
    let maintenance = &readings.own.settings.maintenance;
    if maintenance.windows.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    if readings.own.clock_is_set == Some(false) {
        let what = "The kernel's clock is marked as not synchronised.";
        found.push(Found::new(
            what.to_owned(),
            vec!["adjtimex(2): STA_UNSYNC".to_owned()],
        ));
    }
    let is_local = maintenance.timezone == Zone::default();
    // A link to nothing may name a zone that is known without its file.
    let is_utc = is_local && *maintenance.timezone.rules() == TimeZone::UTC;
    let zone = readings.now.bytes(ZONE);
    if is_utc && zone == Ok(None) {
        let what =
            "The windows are in the local time, and this host has no time zone: they open by UTC.";
        found.push(Found::note(what.to_owned(), vec![format!("/{ZONE}")]));
    }
    if found.is_empty() && readings.own.clock_is_set.is_none() {
        let why = "adjtimex(2) is refused; run `fragwatch doctor` as root";
        return Err(NotChecked::because(why.to_owned()));
    }
    match zone {
        Err(error) if is_utc && found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// A rescue whose last drill failed.
pub fn drill_failed(readings: &Readings) -> Checked {
    let rescue = status(readings)?.map(|status| &status.rescue);
    let failed = rescue.is_some_and(|it| it.drilled.is_some() && it.roundtrip_seconds.is_none());
    let what = "The last drill of the rescue, from the kernel's log to the actor, failed.";
    Ok(Vec::from_iter(failed.then(|| found(what.to_owned()))))
}
