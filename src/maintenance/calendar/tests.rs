//! The calendar against a model that looks at the clock every minute, and against known nights.

use jiff::civil::{Weekday, date, time};
use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::*;
use crate::config::settings::{Blackout, Zone};

const MINUTE: Duration = Duration::from_secs(60);

/// A host whose share of everything is half of it.
const HALF: Host = Host(1 << 63);

fn window(days: &[Weekday], start: Time, minutes: u32) -> Window {
    Window {
        days: days.to_vec(),
        start,
        duration: MINUTE * minutes,
    }
}

fn blackout(from: Date, to: Date) -> Blackout {
    Blackout { from, to }
}

fn maintenance(zone: &str, windows: Vec<Window>, blackouts: Vec<Blackout>) -> Maintenance {
    Maintenance {
        timezone: Zone::named(zone).unwrap(),
        jitter: Duration::ZERO,
        windows,
        blackouts,
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The next openings as texts of local time.
fn shown(settings: &Maintenance, now: &str, count: usize) -> Vec<String> {
    let calendar = Calendar::new(settings, HALF);
    let local = |at: Timestamp| at.to_zoned(calendar.zone().clone());
    let line = |opening: &Opening| {
        let (opens, closes) = (local(opening.opens), local(opening.closes));
        format!(
            "{} – {}",
            opens.strftime("%a %F %H:%M %:z"),
            closes.strftime("%a %H:%M %:z")
        )
    };
    let openings = calendar.next(at(now), count);
    openings.iter().map(line).collect()
}

#[test]
fn a_weekend() {
    let nights = window(&[Weekday::Saturday, Weekday::Sunday], time(1, 0, 0, 0), 240);
    let settings = maintenance("Europe/Berlin", vec![nights], Vec::new());
    assert_eq!(
        shown(&settings, "2026-11-20T12:00Z", 3),
        [
            "Sat 2026-11-21 01:00 +01:00 – Sat 05:00 +01:00",
            "Sun 2026-11-22 01:00 +01:00 – Sun 05:00 +01:00",
            "Sat 2026-11-28 01:00 +01:00 – Sat 05:00 +01:00",
        ]
    );
    let calendar = Calendar::new(&settings, HALF);
    let (opens, closes) = (at("2026-11-21T00:00Z"), at("2026-11-21T04:00Z"));
    let second = SignedDuration::from_secs(1);
    assert_eq!(calendar.open_until(opens - second), None);
    assert_eq!(calendar.open_until(opens), Some(closes));
    assert_eq!(calendar.open_until(closes - second), Some(closes));
    assert_eq!(calendar.open_until(closes), None);
    // The next one is never the one that is open.
    assert_eq!(
        calendar.next_opening(opens - second),
        Some(Opening { opens, closes })
    );
    let sunday = Some(at("2026-11-22T00:00Z"));
    let next = calendar.next_opening(opens).map(|opening| opening.opens);
    assert_eq!(next, sunday);
}

#[test]
fn the_night_in_which_the_clock_leaps() {
    let sunday =
        |hour, minute, length| window(&[Weekday::Sunday], time(hour, minute, 0, 0), length);
    let settings = |window| maintenance("Europe/Berlin", vec![window], Vec::new());
    let shown = |window| shown(&settings(window), "2026-03-28T12:00Z", 1);
    // 02:00 becomes 03:00. Four hours are four hours.
    assert_eq!(
        shown(sunday(1, 0, 240)),
        ["Sun 2026-03-29 01:00 +01:00 – Sun 06:00 +02:00"]
    );
    assert_eq!(
        shown(sunday(2, 30, 90)),
        ["Sun 2026-03-29 03:00 +02:00 – Sun 04:30 +02:00"]
    );
    // Both begin in the same moment, so they are one.
    let two = maintenance(
        "Europe/Berlin",
        vec![sunday(2, 0, 30), sunday(2, 59, 60)],
        Vec::new(),
    );
    assert_eq!(
        super::tests::shown(&two, "2026-03-28T12:00Z", 1),
        ["Sun 2026-03-29 03:00 +02:00 – Sun 04:00 +02:00"]
    );
}

#[test]
fn the_night_in_which_the_clock_is_put_back() {
    let sunday =
        |hour, minute, length| window(&[Weekday::Sunday], time(hour, minute, 0, 0), length);
    let settings = |window| maintenance("Europe/Berlin", vec![window], Vec::new());
    let shown = |window| shown(&settings(window), "2026-10-24T12:00Z", 2);
    // 03:00 becomes 02:00. Four hours are four hours.
    assert_eq!(
        shown(sunday(1, 0, 240)),
        [
            "Sun 2026-10-25 01:00 +02:00 – Sun 04:00 +01:00",
            "Sun 2026-11-01 01:00 +01:00 – Sun 05:00 +01:00"
        ]
    );
    // There are two times 02:30. It opens once.
    assert_eq!(
        shown(sunday(2, 30, 10)),
        [
            "Sun 2026-10-25 02:30 +02:00 – Sun 02:40 +02:00",
            "Sun 2026-11-01 02:30 +01:00 – Sun 02:40 +01:00"
        ]
    );
}

#[test]
fn a_day_that_a_zone_leaves_out() {
    let days = [Weekday::Thursday, Weekday::Friday, Weekday::Saturday];
    let night = window(&days, time(1, 0, 0, 0), 60);
    let mut settings = maintenance("Pacific/Apia", vec![night], Vec::new());
    let expected = [
        "Thu 2011-12-29 01:00 -10:00 – Thu 02:00 -10:00",
        "Sat 2011-12-31 01:00 +14:00 – Sat 02:00 +14:00",
    ];
    assert_eq!(shown(&settings, "2011-12-28T12:00Z", 2), expected);
    // A blackout of that day is none, and one that ends with it lasts until the next begins.
    settings.blackouts = vec![blackout(date(2011, 12, 30), date(2011, 12, 30))];
    assert_eq!(shown(&settings, "2011-12-28T12:00Z", 2), expected);
    settings.windows[0].duration = 30 * 60 * MINUTE;
    settings.blackouts = vec![blackout(date(2011, 12, 29), date(2011, 12, 30))];
    assert_eq!(
        shown(&settings, "2011-12-28T12:00Z", 1),
        ["Sat 2011-12-31 00:00 +14:00 – Sun 07:00 +14:00"]
    );
}

#[test]
fn a_blackout_cuts_what_runs_into_it_and_out_of_it() {
    let all_days: Vec<Weekday> = Weekday::Monday.cycle_forward().take(7).collect();
    let mut settings = maintenance(
        "Europe/Berlin",
        vec![window(&all_days, time(22, 0, 0, 0), 240)],
        vec![
            blackout(date(2026, 12, 22), date(2027, 1, 6)),
            blackout(date(2026, 12, 20), date(2026, 12, 22)),
        ],
    );
    assert_eq!(
        shown(&settings, "2026-12-18T22:30Z", 4),
        [
            "Fri 2026-12-18 22:00 +01:00 – Sat 02:00 +01:00",
            "Sat 2026-12-19 22:00 +01:00 – Sun 00:00 +01:00",
            "Thu 2027-01-07 00:00 +01:00 – Thu 02:00 +01:00",
            "Thu 2027-01-07 22:00 +01:00 – Fri 02:00 +01:00",
        ]
    );
    // The jitter of what is left is no longer than that.
    settings.jitter = Duration::from_secs(7200);
    assert_eq!(
        shown(&settings, "2026-12-19T20:00Z", 3),
        [
            "Sat 2026-12-19 23:00 +01:00 – Sun 00:00 +01:00",
            "Thu 2027-01-07 01:00 +01:00 – Thu 02:00 +01:00",
            "Thu 2027-01-07 23:00 +01:00 – Fri 02:00 +01:00",
        ]
    );
}

#[test]
fn never_and_always() {
    let now = "2026-11-21T00:00Z";
    let nothing = maintenance("UTC", Vec::new(), Vec::new());
    assert_eq!(shown(&nothing, now, 7), [""; 0]);
    let calendar = Calendar::new(&nothing, HALF);
    assert!(!calendar.has_windows());
    assert_eq!(calendar.open_until(at(now)), None);
    assert_eq!(calendar.next_opening(at(now)), None);

    let all_days: Vec<Weekday> = Weekday::Monday.cycle_forward().take(7).collect();
    let mut settings = maintenance(
        "Europe/Berlin",
        vec![window(&all_days, time(0, 0, 0, 0), 1440)],
        Vec::new(),
    );
    // Jitter is for what begins.
    settings.jitter = Duration::from_secs(43_200);
    // Every autumn the clock shows 00:00 an hour later than a day later: nothing was promised for
    // that hour.
    let gap = Calendar::new(&settings, HALF).open_until(at(now)).unwrap();
    assert_eq!(gap, at("2027-10-31T22:00Z"), "{gap}");
    settings.timezone = Zone::named("UTC").unwrap();
    let calendar = Calendar::new(&settings, HALF);
    let closes = calendar.open_until(at(now)).unwrap();
    assert!(between(at(now), closes) > 365 * 24 * 60 * MINUTE);
    assert_eq!(calendar.next(at(now), 7).len(), 1);

    // However long a blackout is, what follows is found, and soon.
    settings.blackouts = vec![blackout(date(2026, 1, 1), date(9000, 1, 1))];
    settings.jitter = Duration::ZERO;
    let next = Calendar::new(&settings, HALF)
        .next_opening(at(now))
        .unwrap();
    assert_eq!(next.opens, at("9000-01-02T00:00Z"));
}

#[test]
fn a_fleet_does_not_start_at_once() {
    let hour = Duration::from_secs(3600);
    let host = |n: u32| Host::from_machine_id(&format!("4c4c4544003{n:021}"));
    assert_eq!(host(7), host(7));
    // Known for good: a new version must not move the windows.
    assert_eq!(
        Host::from_machine_id("0123456789abcdef0123456789abcdef\n"),
        Host::from_machine_id("0123456789abcdef0123456789abcdef")
    );
    let share = Host::from_machine_id("0123456789abcdef0123456789abcdef").share_of(hour);
    assert_eq!(share, Duration::from_secs(546));
    let mut quarters = [0; 4];
    for n in 0..1000 {
        let share = host(n).share_of(hour);
        assert!(share < hour);
        quarters[usize::try_from(share.as_secs() / 900).unwrap()] += 1;
    }
    assert!(quarters.iter().all(|hosts| *hosts > 200), "{quarters:?}");
    assert_eq!(Host(u64::MAX).share_of(Duration::ZERO), Duration::ZERO);
    assert!(Host(u64::MAX).share_of(hour) < hour);
}

/// The openings from one moment to another, found by looking at the clock every minute.
struct Model<'s> {
    settings: &'s Maintenance,
    /// The latest time that the clock has shown.
    latest: DateTime,
    /// Minutes for which it is still open.
    left: u64,
    openings: Vec<Opening>,
    is_open: bool,
}

impl Model<'_> {
    fn openings(settings: &Maintenance, from: Timestamp, to: Timestamp) -> Vec<Opening> {
        let zone = settings.timezone.rules();
        let mut model = Model {
            settings,
            latest: zone.to_datetime(from),
            left: 0,
            openings: Vec::new(),
            is_open: false,
        };
        let mut now = from;
        while now < to {
            now += MINUTE;
            model.minute(now, zone.to_datetime(now));
        }
        if model.is_open {
            model.openings.last_mut().unwrap().closes = to;
        }
        for opening in &mut model.openings {
            let most = settings.jitter.min(opening.length());
            opening.opens += HALF.share_of(most);
        }
        model.openings
    }

    fn minute(&mut self, now: Timestamp, clock: DateTime) {
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
        let is_open = self.left > 0 && !self.settings.blackouts.iter().any(forbidden);
        match (self.is_open, is_open) {
            (false, true) => self.openings.push(Opening {
                opens: now,
                closes: now,
            }),
            (true, false) => self.openings.last_mut().unwrap().closes = now,
            _ => {}
        }
        self.is_open = is_open;
    }

    /// What opens on that date now that the clock shows this for the first time.
    fn windows_of(&mut self, date: Date, clock: DateTime) {
        for window in &self.settings.windows {
            let start = date.to_datetime(window.start);
            let is_now = self.latest < start && start <= clock;
            if is_now && window.days.contains(&date.weekday()) {
                self.left = self.left.max(window.duration.as_secs() / 60);
            }
        }
    }
}

/// The calendar says what the model says, of every opening and at every moment asked for.
fn compare(settings: &Maintenance, from: Timestamp, to: Timestamp, every: Duration) {
    let model = Model::openings(settings, from, to);
    let calendar = Calendar::new(settings, HALF);
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
        3 => (0..24_i8, 0..60_i8).prop_map(|(hour, minute)| time(hour, minute, 0, 0)),
        // Where the clocks are changed.
        1 => (0..4_i8, prop::sample::select(vec![0_i8, 29, 30, 59]))
            .prop_map(|(hour, minute)| time(hour, minute, 0, 0)),
    ];
    let duration = prop_oneof![
        6 => 1..=600_u32,
        2 => prop::sample::select(vec![60_u32, 120, 1440]),
        1 => 600..=10_080_u32,
    ];
    let window = (prop::collection::vec(0..7_i8, 1..8), start, duration);
    let windows = prop::collection::vec(window, 1..4).prop_map(|windows| {
        let day = |day| Weekday::from_monday_zero_offset(day).unwrap();
        let make = |(days, start, minutes): (Vec<i8>, Time, u32)| {
            let days: Vec<Weekday> = days.into_iter().map(day).collect();
            window_of(&days, start, minutes)
        };
        windows.into_iter().map(make).collect::<Vec<_>>()
    });
    let blackout = (0..3650_i32, 0..40_i32).prop_map(move |(after, days)| {
        let from = date(year, 1, 1) + Span::new().days(after);
        blackout(from, from + Span::new().days(days))
    });
    let blackouts = prop::collection::vec(blackout, 0..30);
    (windows, blackouts, 0..=3_u64).prop_map(move |(windows, blackouts, hours)| Maintenance {
        jitter: Duration::from_secs(hours * 3600),
        ..maintenance(zone, windows, blackouts)
    })
}

use window as window_of;

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
    #![proptest_config(ProptestConfig::with_cases(48))]

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
        let calendar = Calendar::new(&settings, HALF);
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
