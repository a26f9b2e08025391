//! How long writes of the guest take, as QEMU accounts for them: `virsh domblkstat`.

use std::time::Duration;

use super::virsh::{Virsh, VirshError};
use crate::model::GuestWrites;

/// The writes of a disk since its VM was started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writes {
    requests: u64,
    /// Sum of their durations, in nanoseconds.
    nanoseconds: u64,
}

impl Writes {
    /// Asks libvirt.
    pub(super) fn of(virsh: &Virsh, domain: &str, disk: &str) -> Result<Writes, VirshError> {
        let arguments: [&dyn AsRef<std::ffi::OsStr>; 4] =
            [&"--domain", &domain, &"--device", &disk];
        Ok(Writes::parse(&virsh.run("domblkstat", &arguments)?))
    }

    /// Lines such as `vda wr_total_times 4711` (cmdDomblkstat, tools/virsh-domain-monitor.c of libvirt;
    /// VIR_DOMAIN_BLOCK_STATS_WRITE_TOTAL_TIMES is in nanoseconds). What is missing is 0.
    fn parse(printed: &str) -> Writes {
        let value = |name: &str| {
            let mut lines = printed.lines().map(|line| line.rsplitn(3, ' '));
            let found = lines.find_map(|mut words| {
                let value = words.next()?;
                (words.next()? == name).then_some(value)
            });
            found.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        Writes {
            requests: value("wr_req"),
            nanoseconds: value("wr_total_times"),
        }
    }

    /// How long one took on average; `None` if there was none.
    fn mean(self) -> Option<Duration> {
        let nanoseconds = self.nanoseconds.checked_div(self.requests)?;
        (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
    }

    /// How long those `before` took, and those since.
    pub(super) fn since(self, before: &Writes) -> Option<GuestWrites> {
        let since = Writes {
            requests: self.requests.saturating_sub(before.requests),
            nanoseconds: self.nanoseconds.saturating_sub(before.nanoseconds),
        };
        let (before, meanwhile) = before.mean().zip(since.mean())?;
        Some(GuestWrites { before, meanwhile })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "vda rd_req 1\nvda rd_bytes 512\nvda wr_req 20\nvda wr_bytes 81920\n\
                           vda flush_operations 2\nvda rd_total_times 5\nvda wr_total_times 40000000\n\
                           vda flush_total_times 7\n";

    #[test]
    fn means_are_of_what_came_since() {
        let before = Writes::parse(PRINTED);
        let now = PRINTED
            .replace("wr_req 20", "wr_req 30")
            .replace("40000000", "90000000");
        let now = Writes::parse(&now);
        let expected = GuestWrites {
            before: Duration::from_millis(2),
            meanwhile: Duration::from_millis(5),
        };
        assert_eq!(now.since(&before), Some(expected));
        assert_eq!(now.since(&now), None);
        assert_eq!(now.since(&Writes::parse("")), None);
    }
}
