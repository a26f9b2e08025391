//! Time zones by their names: the databases of the host and of jiff.

use jiff::tz::{TimeZone, TimeZoneDatabase};

/// A time zone and its configured name.
#[derive(Debug, Clone)]
pub struct Zone {
    name: String,
    zone: TimeZone,
}

impl Zone {
    const LOCAL: &'static str = "local";

    /// The time zone of that name: `local`, or an IANA name in upper or lower case.
    pub fn named(name: &str) -> Option<Zone> {
        if name == Zone::LOCAL {
            return Some(Zone::default());
        }
        // jiff falls back to its bundled database only if there is no zoneinfo directory. Debian 13
        // and Ubuntu 24.04 moved names such as US/Central to the package tzdata-legacy; an upgrade
        // must not invalidate a configuration.
        let zone = TimeZone::get(name).ok().or_else(|| bundled(name))?;
        let name = zone.iana_name()?.to_owned();
        Some(Zone { name, zone })
    }

    /// The zone that TZ or else the link /etc/localtime names (tzset(3), localtime(5)) although it
    /// points to nothing: now in tzdata-legacy.
    fn linked() -> Option<TimeZone> {
        let link = || Some(std::fs::read_link("/etc/localtime").ok()?.into_os_string());
        let name = std::env::var_os("TZ").or_else(link)?;
        let name = name.to_str()?.trim_start_matches(':');
        let name = name.rsplit_once("zoneinfo/").map_or(name, |(_, name)| name);
        bundled(name)
    }

    /// The time zone of a host that has these rules.
    #[cfg(test)]
    pub fn of_host(zone: TimeZone) -> Zone {
        let name = Zone::LOCAL.to_owned();
        Zone { name, zone }
    }

    /// The name, `local` for the time zone of the host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rules as of reading the settings: a change of zone or rules requires reading them again.
    pub fn rules(&self) -> &TimeZone {
        &self.zone
    }
}

/// The zone of that name in jiff's database, which lacks the copies with and without leap seconds:
/// `right/Europe/Berlin` and `posix/Europe/Berlin`, now in tzdata-legacy, too.
fn bundled(name: &str) -> Option<TimeZone> {
    let copied = name
        .strip_prefix("posix/")
        .or_else(|| name.strip_prefix("right/"));
    TimeZoneDatabase::bundled().get(copied.unwrap_or(name)).ok()
}

impl Default for Zone {
    /// The time zone of the host. UTC if it has none, or one without rules: all its programs then
    /// show UTC.
    fn default() -> Zone {
        let zone = TimeZone::try_system().ok().or_else(Zone::linked);
        Zone {
            name: Zone::LOCAL.to_owned(),
            zone: zone.unwrap_or(TimeZone::UTC),
        }
    }
}

impl PartialEq for Zone {
    fn eq(&self, other: &Zone) -> bool {
        self.name == other.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_host_no_longer_has_are_known() {
        for name in [
            "Europe/Berlin",
            "posix/Europe/Berlin",
            "right/Europe/Berlin",
        ] {
            let zone = bundled(name).unwrap();
            assert_eq!(zone.iana_name(), Some("Europe/Berlin"), "{name}");
        }
        assert!(bundled("posix/Nowhere").is_none());
    }
}
