//! The calendar against a model that looks at the clock every minute of ten years, in zones whose
//! clocks do all that clocks do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows the tests, but not what they call"
)]

use std::time::Duration;

use fragwatch::internals::config::settings::{Blackout, Maintenance, Window, Zone};
use fragwatch::internals::maintenance::{Calendar, JitterSeed, Opening};
use jiff::civil::{Date, DateTime, Time, Weekday, date, time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};
use proptest::prelude::*;

const MINUTE: Duration = Duration::from_secs(60);

/// A host whose share of the jitter is neither nothing nor all of it.
fn host() -> JitterSeed {
    JitterSeed::from_machine_id("0123456789abcdef0123456789abcdef")
}

fn window(days: &[Weekday], start: Time, minutes: u32) -> Window {
    Window {
        days: days.to_vec(),
        start,
        duration: MINUTE * minutes,
    }
}

/// The openings from one moment to another, found by looking at the clock every minute.
struct Model<'s> {
    settings: &'s Maintenance,
    /// The latest time that the clock has shown.
    latest: DateTime,
    /// Minutes for which it is still open.
    left: u64,
    /// What the clock shows when the windows so far should be over.
    end: DateTime,
    minutes: Vec<Minute>,
}

#[derive(Clone, Copy)]
struct Minute {
    is_open: bool,
    is_forbidden: bool,
}

impl Model<'_> {
    fn openings(settings: &Maintenance, from: Timestamp, to: Timestamp) -> Vec<Opening> {
        let zone = settings.timezone.rules();
        let latest = zone.to_datetime(from);
        let mut model = Model {
            settings,
            latest,
            left: 0,
            end: latest,
            minutes: Vec::new(),
        };
        let mut now = from;
        while now < to {
            now += MINUTE;
            model.minute(zone.to_datetime(now));
        }
        let mut openings = model.found(from);
        for opening in &mut openings {
            let most = settings.jitter.min(opening.length());
            opening.opens += host().share_of(most);
        }
        openings
    }

    /// What was open and not forbidden, from the first minute after `now` on.
    fn found(&self, mut now: Timestamp) -> Vec<Opening> {
        let mut openings: Vec<Opening> = Vec::new();
        let mut was_open = false;
        for minute in &self.minutes {
            now += MINUTE;
            let is_open = minute.is_open && !minute.is_forbidden;
            let (opens, closes) = (now, now);
            match (was_open, is_open) {
                (false, true) => openings.push(Opening { opens, closes }),
                (true, _) => openings.last_mut().unwrap().closes = now,
                (false, false) => {}
            }
            was_open = is_open;
        }
        openings
    }

    fn minute(&mut self, clock: DateTime) {
        self.left = self.left.saturating_sub(1);
        if clock > self.latest {
            // Usually that is one minute, and an hour when the clock leaps.
            if clock.date() != self.latest.date() {
                self.windows_of(self.latest.date(), clock);
            }
            self.windows_of(clock.date(), clock);
            self.latest = clock;
        }
        let forbidden = |blackout: &Blackout| (blackout.from..=blackout.to).contains(&clock.date());
        self.minutes.push(Minute {
            is_open: self.left > 0,
            is_forbidden: self.settings.blackouts.iter().any(forbidden),
        });
    }

    /// What opens on that date now that the clock shows this for the first time.
    fn windows_of(&mut self, date: Date, clock: DateTime) {
        for window in &self.settings.windows {
            let start = date.to_datetime(window.start);
            let is_now = self.latest < start && start <= clock;
            if is_now && window.days.contains(&date.weekday()) {
                if self.left == 0 && start <= self.end {
                    self.no_gap_before();
                }
                self.end = self.end.max(start + window.duration);
                self.left = self.left.max(window.duration.as_secs() / 60);
            }
        }
    }

    /// By the clock the windows before were not over yet.
    fn no_gap_before(&mut self) {
        let was_open = self.minutes.iter().rposition(|minute| minute.is_open);
        let gap = was_open.map_or(self.minutes.len(), |last| last + 1);
        self.minutes[gap..]
            .iter_mut()
            .for_each(|minute| minute.is_open = true);
    }
}

/// The calendar says what the model says, of every opening and at every moment asked for.
fn compare(settings: &Maintenance, from: Timestamp, to: Timestamp, every: Duration) {
    let model = Model::openings(settings, from, to);
    let calendar = Calendar::new(settings, host());
    let week = SignedDuration::from_hours(24 * 8);
    let (from, to) = (from + week, to - week);
    // Of what began before or ends after, the model knows only a part.
    let known = |opening: Opening| Opening {
        opens: opening.opens.max(from),
        closes: opening.closes.min(to),
    };
    let inside = |opening: &Opening| opening.closes > from && opening.opens < to;
    let model: Vec<Opening> = model.into_iter().filter(inside).map(known).collect();
    let mut cursor = from;
    let mut openings = Vec::new();
    while let Some(opening) = calendar.next(cursor, 1).pop().filter(inside) {
        cursor = opening.closes;
        openings.push(known(opening));
    }
    assert_eq!(openings, model, "{settings:?}");

    let mut now = from;
    while now < to {
        let open = model.iter().find(|opening| opening.is_open(now));
        let until = calendar.open_until(now).map(|until| until.min(to));
        assert_eq!(until, open.map(|it| it.closes), "{settings:?} {now}");
        let next = model.iter().find(|opening| opening.opens > now);
        let found = calendar.next_opening(now).filter(inside).map(known);
        assert_eq!(found, next.copied(), "{settings:?} {now}");
        now += every;
    }
}

const ZONES: [&str; 7] = [
    "Europe/Berlin",
    "America/New_York",
    // Half an hour of daylight saving.
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "UTC",
    // Left out 2011-12-30.
    "Pacific/Apia",
    // Changed its clock at midnight, until 2019.
    "America/Sao_Paulo",
];

/// Any settings to the minute. Durations are such that they often touch.
fn any_maintenance(zone: &'static str, year: i16) -> impl Strategy<Value = Maintenance> {
    let start = prop_oneof![
        1 => (0..24_i8, 0..60_i8).prop_map(|(hour, minute)| time(hour, minute, 0, 0)),
        // Where the clocks are changed.
        1 => (0..4_i8, prop::sample::select(vec![0_i8, 29, 30, 59]))
            .prop_map(|(hour, minute)| time(hour, minute, 0, 0)),
    ];
    let duration = prop_oneof![
        6 => 1..=600_u32,
        2 => prop::sample::select(vec![60_u32, 120, 1440]),
        1 => 600..=10_080_u32,
    ];
    let any_window = (prop::collection::vec(0..7_i8, 1..8), start, duration);
    let windows = prop::collection::vec(any_window, 1..4).prop_map(|windows| {
        let day = |day| Weekday::from_monday_zero_offset(day).unwrap();
        let make = |(days, start, minutes): (Vec<i8>, Time, u32)| {
            let days: Vec<Weekday> = days.into_iter().map(day).collect();
            window(&days, start, minutes)
        };
        windows.into_iter().map(make).collect::<Vec<_>>()
    });
    let blackout = (0..3650_i32, 0..40_i32).prop_map(move |(after, days)| {
        let from = date(year, 1, 1) + Span::new().days(after);
        let to = from + Span::new().days(days);
        Blackout { from, to }
    });
    let blackouts = prop::collection::vec(blackout, 0..30);
    (windows, blackouts, 0..=3_u64).prop_map(move |(windows, blackouts, hours)| Maintenance {
        timezone: Zone::named(zone).unwrap(),
        jitter: Duration::from_secs(hours * 3600),
        windows,
        blackouts,
        ..Maintenance::default()
    })
}

/// The draw of that number from a strategy, always the same.
fn draw<S: Strategy>(strategy: S, number: usize) -> S::Value {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut draws = (0..=number).map(|_| strategy.new_tree(&mut runner).unwrap());
    draws.nth(number).unwrap().current()
}

/// Ten years of a zone, minute by minute.
fn ten_years(zone: &'static str) {
    let start = date(2009, 6, 1).to_zoned(TimeZone::UTC).unwrap();
    let end = date(2019, 6, 1).to_zoned(TimeZone::UTC).unwrap();
    let number = ZONES.iter().position(|name| *name == zone).unwrap();
    let settings = draw(any_maintenance(zone, 2009), number);
    let every = Duration::from_secs(5 * 86_400 + 7 * 3600 + 60);
    compare(&settings, start.timestamp(), end.timestamp(), every);
}

#[test]
fn ten_years_in_berlin() {
    ten_years(ZONES[0]);
}

#[test]
fn ten_years_in_new_york() {
    ten_years(ZONES[1]);
}

#[test]
fn ten_years_on_lord_howe() {
    ten_years(ZONES[2]);
}

#[test]
fn ten_years_in_kolkata() {
    ten_years(ZONES[3]);
}

#[test]
fn ten_years_of_utc() {
    ten_years(ZONES[4]);
}

#[test]
fn ten_years_in_apia() {
    ten_years(ZONES[5]);
}

#[test]
fn ten_years_in_sao_paulo() {
    ten_years(ZONES[6]);
}

/// A zone, and settings in it.
fn any_zone() -> impl Strategy<Value = Maintenance> {
    (0..ZONES.len()).prop_flat_map(|at| any_maintenance(ZONES[at], 2009))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Around a change of the clock, or anywhere in a zone without one.
    #[test]
    fn six_weeks_around_a_change(settings in any_zone(), which in 0..30_usize) {
        let start = date(2009, 6, 1).to_zoned(TimeZone::UTC).unwrap().timestamp();
        let zone = settings.timezone.rules();
        let change = zone.following(start).nth(which).map(|change| change.timestamp());
        let change = change.filter(|change| *change < start + SignedDuration::from_hours(24 * 3650));
        let change = change.unwrap_or(start);
        let three_weeks = SignedDuration::from_hours(24 * 21);
        let every = Duration::from_secs(3 * 3600 + 60);
        compare(&settings, change - three_weeks, change + three_weeks, every);
    }

    /// Nothing overlaps, nothing is empty, and asking at another time gives the same.
    #[test]
    fn openings_are_in_order(settings in any_zone(), seconds in 1_250_000_000..1_550_000_000_i64) {
        let calendar = Calendar::new(&settings, host());
        let now = Timestamp::from_second(seconds).unwrap();
        // How much further is looked than a year depends on when it is asked.
        let is_near = |it: &Opening| it.closes < now + SignedDuration::from_hours(24 * 365);
        let mut openings = calendar.next(now, 7);
        openings.retain(is_near);
        for opening in &openings {
            prop_assert!(opening.opens < opening.closes);
            prop_assert!(opening.closes > now);
            prop_assert_eq!(calendar.open_until(opening.opens), Some(opening.closes));
            prop_assert_eq!(calendar.open_until(opening.closes), None);
        }
        for pair in openings.windows(2) {
            prop_assert!(pair[0].closes < pair[1].opens);
            prop_assert_eq!(calendar.next_opening(pair[0].opens), Some(pair[1]));
        }
    }
}
