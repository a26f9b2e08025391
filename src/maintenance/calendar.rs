//! When defragmentation is allowed: weekly windows minus blackouts.
//!
//! # The rules
//!
//! A window opens on each of its days when the zone's clock first shows its start or a later time:
//! - If the clock skips the start, as 02:30 when 02:00 becomes 03:00, it opens at the change.
//! - If the start occurs twice, as 02:30 when 03:00 becomes 02:00, it opens the first time.
//! - On a day that the zone skips, as Samoa skipped 30 December 2011, it does not open.
//!
//! It closes after its duration in real time, regardless of clock changes.
//!
//! Windows that overlap or adjoin, in real time or by the clock, are merged: of two that adjoin by
//! the clock, the first stays open until the second opens, even if the clock is put back in
//! between. So daily windows of 24 hours are always open. A blackout closes everything from the
//! first moment of its first day to the last moment of its last day. Each remaining piece opens
//! later by this host's share of the jitter, or of its own length if that is shorter, so that no
//! host is excluded forever. It closes on time.

use std::iter::{from_fn, successors};
use std::time::Duration;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Span, Timestamp};

use crate::config::settings::{Maintenance, Window};

/// How many days back to look up windows: 7 of duration, 1 of jitter, 1 of time-zone difference.
const DAYS_BEHIND: i32 = 9;
/// How many days ahead to look up windows and their ends: a year and a month.
const DAYS_AHEAD: i32 = 400;

/// A time in which defragmentation is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Opening {
    /// The start. It may lie further back if windows have adjoined for more than a week.
    pub opens: Timestamp,
    /// The end, exclusive. It is cut off, more than a year ahead, if windows adjoin for longer.
    pub closes: Timestamp,
}

impl Opening {
    /// How long it is open.
    pub fn length(&self) -> Duration {
        between(self.opens, self.closes)
    }

    /// Whether it is open at the given time.
    pub fn is_open(&self, at: Timestamp) -> bool {
        self.opens <= at && at < self.closes
    }
}

/// The time from `from` to `to`; zero if `to` is not later.
pub(super) fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// A constant that distinguishes this host from others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JitterSeed(u64);

impl JitterSeed {
    /// The seed of the host with this machine-id(5).
    pub fn from_machine_id(id: &str) -> JitterSeed {
        // FNV-1a, then the finalizer of MurmurHash3, so that every bit of the id affects every bit
        // of the result. Implemented here because the standard library may change its hash.
        let mut hash = id
            .trim()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
            hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
        }
        JitterSeed(hash ^ (hash >> 33))
    }

    /// This host's share of a time: less than all of it, in whole seconds.
    pub fn share_of(self, time: Duration) -> Duration {
        let share = (u128::from(time.as_secs()) * u128::from(self.0)) >> 64;
        Duration::from_secs(u64::try_from(share).unwrap_or(0))
    }
}

/// A blackout: its first and last date, and the moments at which it begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blocked {
    from: Date,
    to: Date,
    begins: Timestamp,
    ends: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Single {
    opening: Opening,
    /// The later one of its ends by the clock and in real time: what opens until then adjoins.
    reaches: Timestamp,
}

/// When defragmentation is allowed on this host.
#[derive(Debug, Clone)]
pub struct Calendar {
    zone: TimeZone,
    windows: Vec<Window>,
    /// In ascending order, neither overlapping nor adjoining.
    blackouts: Vec<Blocked>,
    jitter: Duration,
    host: JitterSeed,
}

/// Selects one of the two moments of a local time that occurs twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Twice {
    First,
    Second,
}

impl Calendar {
    /// Creates the calendar of a host from valid settings.
    pub fn new(settings: &Maintenance, host: JitterSeed) -> Calendar {
        let zone = settings.timezone.rules().clone();
        let mut blackouts: Vec<Blocked> = settings
            .blackouts
            .iter()
            .filter_map(|blackout| Blocked::new(&zone, blackout.from, blackout.to))
            .collect();
        blackouts.sort_by_key(|blocked| blocked.begins);
        let mut apart: Vec<Blocked> = Vec::with_capacity(blackouts.len());
        for next in blackouts {
            match apart.last_mut() {
                Some(last) if next.begins <= last.ends => {
                    last.to = last.to.max(next.to);
                    last.ends = last.ends.max(next.ends);
                }
                _ => apart.push(next),
            }
        }
        Calendar {
            zone,
            windows: settings.windows.clone(),
            blackouts: apart,
            jitter: settings.jitter,
            host,
        }
    }

    /// The time zone of days and times.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// Whether any window is configured, even if blackouts cover all of them.
    pub fn has_windows(&self) -> bool {
        !self.windows.is_empty()
    }

    /// When the present opening closes; `None` if none is open.
    pub fn open_until(&self, now: Timestamp) -> Option<Timestamp> {
        let first = self.openings(now).next()?;
        first.is_open(now).then_some(first.closes)
    }

    /// The next opening that begins after `now`.
    pub fn next_opening(&self, now: Timestamp) -> Option<Opening> {
        self.openings(now).find(|opening| opening.opens > now)
    }

    /// Up to `count` openings, including the present one.
    pub fn next(&self, now: Timestamp, count: usize) -> Vec<Opening> {
        self.openings(now).take(count).collect()
    }

    /// All openings that are not over at `from`, in ascending order.
    fn openings(&self, from: Timestamp) -> impl Iterator<Item = Opening> {
        self.merged(from)
            .flat_map(|run| self.without_blackouts(run))
            .filter_map(|piece| self.delayed(piece))
            .filter(move |opening| opening.closes > from)
    }

    /// The openings of merged windows, ignoring blackouts.
    fn merged(&self, from: Timestamp) -> impl Iterator<Item = Opening> {
        let days = |days| Span::new().days(days);
        let today = self.zone.to_datetime(from).date();
        let latest = self.blackouts.last().map_or(today, |last| last.to);
        let last = today.max(latest).saturating_add(days(DAYS_AHEAD));
        let first = self
            .has_windows()
            .then(|| self.out_of_blackout(today.saturating_sub(days(DAYS_BEHIND))));
        let next = |date: &Date| Some(self.out_of_blackout(date.tomorrow().ok()?));
        let dates = successors(first, next).take_while(move |date| *date <= last);
        let mut windows = dates.flat_map(|date| self.on_day(date)).peekable();
        let limit = SignedDuration::from_hours(24 * i64::from(DAYS_AHEAD));
        let mut is_over = false;
        from_fn(move || {
            let Single {
                opening: mut run,
                mut reaches,
            } = windows.next().filter(|_| !is_over)?;
            while !is_over && let Some(next) = windows.next_if(|it| it.opening.opens <= reaches) {
                reaches = reaches.max(next.reaches);
                run.closes = run.closes.max(next.opening.closes);
                // Practically always open: no need to look further.
                is_over = run.closes.duration_since(run.opens) > limit;
            }
            Some(run)
        })
    }

    /// The windows of a day, ordered by their start.
    fn on_day(&self, date: Date) -> Vec<Single> {
        let on_that_day = |window: &&Window| window.days.contains(&date.weekday());
        let single = |window: &Window| {
            let opens = begin(&self.zone, date, window.start)?;
            let closes = opens.checked_add(window.duration).ok()?;
            let end = date.to_datetime(window.start).checked_add(window.duration);
            let by_clock = end
                .ok()
                .and_then(|end| moment(&self.zone, end, Twice::First));
            Some(Single {
                opening: Opening { opens, closes },
                reaches: by_clock.map_or(closes, |by_clock| by_clock.max(closes)),
            })
        };
        let windows = self.windows.iter().filter(on_that_day);
        let mut singles: Vec<Single> = windows.filter_map(single).collect();
        singles.sort();
        singles
    }

    fn without_blackouts(&self, run: Opening) -> Vec<Opening> {
        let mut pieces = Vec::new();
        let mut opens = run.opens;
        for blocked in &self.blackouts {
            let closes = run.closes.min(blocked.begins);
            if opens < closes {
                pieces.push(Opening { opens, closes });
            }
            opens = opens.max(blocked.ends);
        }
        if opens < run.closes {
            pieces.push(Opening { opens, ..run });
        }
        pieces
    }

    /// Applies the jitter.
    fn delayed(&self, piece: Opening) -> Option<Opening> {
        let delay = self.host.share_of(self.jitter.min(piece.length()));
        let opens = piece.opens.checked_add(delay).ok()?;
        Some(Opening { opens, ..piece })
    }

    /// The date itself; if it lies in a blackout that goes on for more than [`DAYS_BEHIND`] days,
    /// the date at which to continue: windows that open before it are over before the blackout is.
    fn out_of_blackout(&self, date: Date) -> Date {
        let week = Span::new().days(DAYS_BEHIND);
        let begun = self.blackouts.iter().filter(|it| it.from <= date);
        let mut until = begun.filter_map(|blocked| blocked.to.checked_sub(week).ok());
        until.find(|until| date < *until).unwrap_or(date)
    }
}

impl Blocked {
    /// `None` if it lies beyond the range of dates, or the zone skips all of it.
    fn new(zone: &TimeZone, from: Date, to: Date) -> Option<Blocked> {
        let after = to.tomorrow().ok()?;
        let begins = moment(zone, from.to_datetime(Time::midnight()), Twice::First)?;
        let ends = moment(zone, after.to_datetime(Time::midnight()), Twice::Second)?;
        let blocked = Blocked {
            from,
            to,
            begins,
            ends,
        };
        (begins < ends).then_some(blocked)
    }
}

/// When a window opens on a day; `None` if the zone skips the day.
fn begin(zone: &TimeZone, date: Date, start: Time) -> Option<Timestamp> {
    let opens = moment(zone, date.to_datetime(start), Twice::First)?;
    let before = opens.checked_sub(SignedDuration::from_nanos(1)).ok()?;
    // The clock shows that day now, or did until it skipped to the next one.
    let is_that_day = |at| zone.to_datetime(at).date() == date;
    (is_that_day(opens) || is_that_day(before)).then_some(opens)
}

/// The moment at which the clock shows a time or skips it.
fn moment(zone: &TimeZone, at: DateTime, twice: Twice) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(at);
    match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { .. } => ambiguous.unambiguous().ok(),
        AmbiguousOffset::Fold { .. } if twice == Twice::First => ambiguous.earlier().ok(),
        AmbiguousOffset::Fold { .. } => ambiguous.later().ok(),
        AmbiguousOffset::Gap { .. } => {
            let before = ambiguous.earlier().ok()?;
            let mut changes = zone.following(before).map(|change| change.timestamp());
            changes.find(|change| zone.to_datetime(*change) >= at)
        }
    }
}

#[cfg(test)]
mod tests;
