//! When defragmenting is allowed: windows of the week, without the blackouts.
//!
//! # The rules
//!
//! A window opens on each of its days when the clock of its zone first shows its start or a later
//! time of that day:
//! - A start that the clock leaps over, as 02:30 is when 02:00 becomes 03:00, is the moment of the
//!   leap.
//! - Of a start that comes twice, as 02:30 does when 03:00 becomes 02:00, it is the first.
//! - A day that a zone leaves out altogether, as Samoa did with 30 December 2011, has no window.
//!
//! It closes after its duration of real time, whatever the clock has done meanwhile.
//!
//! Windows that overlap or touch are one, in truth or by the clock: of two that follow each other
//! without a gap, the first stays open until the second opens also in the night in which the clock is
//! put back. So windows of 24 hours on every day are always open. From the first moment of the first day of a blackout to
//! the last moment of its last day nothing is open. What is left opens later by a share of the
//! jitter that is the host's own, and closes on time. What a blackout has cut shorter than the
//! jitter is treated as if the jitter were as long as that, so that no host is left out for good.

use std::time::Duration;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Span, Timestamp};

use crate::config::settings::{Maintenance, Window};

/// Days before the one asked for on which a window can open that is still of interest: a window may
/// be open for seven days, what it opened may be delayed for another, and a time zone may be as
/// much as a day ahead.
const DAYS_BEHIND: i32 = 9;
/// How far ahead is looked, in days, for a window to open or to close: a year and a month.
const DAYS_AHEAD: i32 = 400;

/// A time in which defragmenting is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Opening {
    /// Its first moment. If windows have followed each other without a gap for more than a week, it
    /// may have been open for longer than this shows.
    pub opens: Timestamp,
    /// The moment from which on it is over. If it is open for more than a year, this is no sooner
    /// than a year ahead.
    pub closes: Timestamp,
}

impl Opening {
    /// How long it is open.
    pub fn length(&self) -> Duration {
        between(self.opens, self.closes)
    }

    /// Whether it is open then.
    pub fn is_open(&self, at: Timestamp) -> bool {
        self.opens <= at && at < self.closes
    }
}

/// From one moment to a later one; `None` if it is not later.
pub(super) fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// What makes this host differ from all others, the same for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JitterSeed(u64);

impl JitterSeed {
    /// The host with that machine-id(5).
    pub fn from_machine_id(id: &str) -> JitterSeed {
        // FNV-1a, then the finalizer of MurmurHash3, so that every bit of the result depends on
        // every bit of the id. Written out, because the standard library may change its own.
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

/// Dates on which nothing is done, and the moments in which they begin and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blocked {
    from: Date,
    to: Date,
    begins: Timestamp,
    ends: Timestamp,
}

/// A window of one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Single {
    opening: Opening,
    /// When it is over by the clock, if that is later: whatever opens until then continues it.
    reaches: Timestamp,
}

/// When defragmenting is allowed on this host.
#[derive(Debug, Clone)]
pub struct Calendar {
    zone: TimeZone,
    windows: Vec<Window>,
    /// In their order; none touches another.
    blackouts: Vec<Blocked>,
    jitter: Duration,
    host: JitterSeed,
}

/// Which of two moments is meant by a time that comes twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Twice {
    First,
    Second,
}

impl Calendar {
    /// The calendar of a host. Settings that were accepted make one.
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

    /// The time zone that days and times are read in.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// Whether there is a window at all. It may be that all of them lie in blackouts.
    pub fn has_windows(&self) -> bool {
        !self.windows.is_empty()
    }

    /// Until when it is allowed, if it is allowed now.
    pub fn open_until(&self, now: Timestamp) -> Option<Timestamp> {
        let first = self.openings(now).next()?;
        first.is_open(now).then_some(first.closes)
    }

    /// When it will next become allowed.
    pub fn next_opening(&self, now: Timestamp) -> Option<Opening> {
        self.openings(now).find(|opening| opening.opens > now)
    }

    /// The next `count` times in which it is allowed, the present one among them. There can be
    /// fewer.
    pub fn next(&self, now: Timestamp, count: usize) -> Vec<Opening> {
        self.openings(now).take(count).collect()
    }

    /// All openings that are not over at `from`, in their order.
    fn openings(&self, from: Timestamp) -> impl Iterator<Item = Opening> {
        Runs::new(self, from)
            .flat_map(|run| self.without_blackouts(run))
            .filter_map(|piece| self.delayed(piece))
            .filter(move |opening| opening.closes > from)
    }

    /// When the windows of a day open and close, in the order in which they open.
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

    /// What the blackouts leave of a time.
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

    /// What this host makes of a time.
    fn delayed(&self, piece: Opening) -> Option<Opening> {
        let delay = self.host.share_of(self.jitter.min(piece.length()));
        let opens = piece.opens.checked_add(delay).ok()?;
        Some(Opening { opens, ..piece })
    }

    /// The blackout on whose first days and week there is nothing to look for, if the date is one
    /// of them: whatever opens then is over when the blackout is.
    fn deep_in_blackout(&self, date: Date) -> Option<Date> {
        let week = Span::new().days(DAYS_BEHIND);
        let until = |blocked: &Blocked| blocked.to.checked_sub(week).ok();
        self.blackouts
            .iter()
            .filter(|blocked| blocked.from <= date)
            .filter_map(until)
            .find(|until| date < *until)
    }
}

impl Blocked {
    /// `None` if all of it lies beyond the calendar, or the zone leaves it out.
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

/// When a window opens on a day.
fn begin(zone: &TimeZone, date: Date, start: Time) -> Option<Timestamp> {
    let opens = moment(zone, date.to_datetime(start), Twice::First)?;
    let before = opens.checked_sub(SignedDuration::from_nanos(1)).ok()?;
    // Either the clock shows that day now, or it did just before it leapt into the next one.
    let is_that_day = |at| zone.to_datetime(at).date() == date;
    (is_that_day(opens) || is_that_day(before)).then_some(opens)
}

/// When the clock shows that time, or leaps over it.
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

/// The times in which windows are open, those that touch each other put together, without regard
/// to blackouts.
struct Runs<'c> {
    calendar: &'c Calendar,
    /// The first day that was not looked at.
    date: Option<Date>,
    /// The last one that will be.
    last: Date,
    /// What opens next, already looked up.
    ahead: std::collections::VecDeque<Single>,
}

impl<'c> Runs<'c> {
    fn new(calendar: &'c Calendar, from: Timestamp) -> Runs<'c> {
        let today = calendar.zone.to_datetime(from).date();
        let latest = calendar.blackouts.last().map_or(today, |last| last.to);
        let days = |days| Span::new().days(days);
        Runs {
            calendar,
            date: (calendar.has_windows()).then(|| today.saturating_sub(days(DAYS_BEHIND))),
            last: today.max(latest).saturating_add(days(DAYS_AHEAD)),
            ahead: std::collections::VecDeque::new(),
        }
    }

    /// What opens next by itself.
    fn next_window(&mut self) -> Option<Single> {
        while self.ahead.is_empty() {
            let date = self.date.filter(|date| *date <= self.last)?;
            let date = self.calendar.deep_in_blackout(date).unwrap_or(date);
            self.ahead.extend(self.calendar.on_day(date));
            self.date = date.tomorrow().ok();
        }
        self.ahead.pop_front()
    }
}

impl Iterator for Runs<'_> {
    type Item = Opening;

    fn next(&mut self) -> Option<Opening> {
        let Single {
            opening: mut run,
            mut reaches,
        } = self.next_window()?;
        let limit = SignedDuration::from_hours(24 * i64::from(DAYS_AHEAD));
        while let Some(next) = self.next_window() {
            if next.opening.opens > reaches {
                self.ahead.push_front(next);
                break;
            }
            reaches = reaches.max(next.reaches);
            run.closes = run.closes.max(next.opening.closes);
            if run.closes.duration_since(run.opens) > limit {
                // Always open. Nobody needs to know more.
                self.date = None;
                self.ahead.clear();
            }
        }
        Some(run)
    }
}

#[cfg(test)]
mod tests;
