//! Nights that are known. `tests/calendar.rs` compares with a model that looks at the clock every
//! minute.

use jiff::civil::{Weekday, date, time};

use super::*;
use crate::config::settings::Blackout;
use crate::sys::zone::Zone;

const MINUTE: Duration = Duration::from_secs(60);

/// A host whose share of everything is half of it.
const HALF: JitterSeed = JitterSeed(1 << 63);

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
fn what_follows_without_a_gap_has_none_in_that_night_either() {
    let sunday =
        |hour, minute, length| window(&[Weekday::Sunday], time(hour, minute, 0, 0), length);
    let opens = |windows| {
        let settings = maintenance("Europe/Berlin", windows, Vec::new());
        shown(&settings, "2026-10-24T12:00Z", 2)
    };
    // 01:00 to 04:00, and 04:00 to 05:00: the first has real three hours, and the hour that is left
    // belongs to both.
    assert_eq!(
        opens(vec![sunday(1, 0, 180), sunday(4, 0, 60)]),
        [
            "Sun 2026-10-25 01:00 +02:00 – Sun 05:00 +01:00",
            "Sun 2026-11-01 01:00 +01:00 – Sun 05:00 +01:00"
        ]
    );
    // A minute in between is a gap, and then it is an hour longer.
    assert_eq!(
        opens(vec![sunday(1, 0, 180), sunday(4, 1, 60)]),
        [
            "Sun 2026-10-25 01:00 +02:00 – Sun 03:00 +01:00",
            "Sun 2026-10-25 04:01 +01:00 – Sun 05:01 +01:00"
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
fn a_day_that_ends_twice() {
    // Newfoundland put its clock back at one minute past midnight, into the day before.
    let all_days: Vec<Weekday> = Weekday::Monday.cycle_forward().take(7).collect();
    let settings = maintenance(
        "America/St_Johns",
        vec![window(&all_days, time(12, 0, 0, 0), 1500)],
        vec![blackout(date(2010, 11, 6), date(2010, 11, 6))],
    );
    let calendar = Calendar::new(&settings, HALF);
    // Midnight for the second time.
    let next = calendar.next_opening(at("2010-11-06T12:00Z")).unwrap();
    assert_eq!(next.opens, at("2010-11-07T03:30Z"));
}

#[test]
fn a_window_of_a_week() {
    let week = 7 * 24 * 60;
    let settings = |minutes| {
        let long = window(&[Weekday::Monday], time(23, 0, 0, 0), minutes);
        maintenance("UTC", vec![long], Vec::new())
    };
    assert_eq!(
        shown(&settings(week - 60), "2026-11-23T21:30Z", 2),
        [
            "Mon 2026-11-16 23:00 +00:00 – Mon 22:00 +00:00",
            "Mon 2026-11-23 23:00 +00:00 – Mon 22:00 +00:00"
        ]
    );
    // It meets itself, and the jitter of the first one is long over.
    let mut always = settings(week);
    always.jitter = Duration::from_secs(86_400);
    let calendar = Calendar::new(&always, HALF);
    let mut now = at("2026-11-21T00:00Z");
    for _ in 0..24 * 15 {
        now += MINUTE * 60;
        assert!(calendar.open_until(now).is_some(), "{now}");
    }
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
    // Also where a day has 25 hours.
    for zone in ["Europe/Berlin", "America/Sao_Paulo", "UTC"] {
        settings.timezone = Zone::named(zone).unwrap();
        let calendar = Calendar::new(&settings, HALF);
        let closes = calendar.open_until(at(now)).unwrap();
        assert!(between(at(now), closes) > 365 * 24 * 60 * MINUTE, "{zone}");
        assert_eq!(calendar.next(at(now), 7).len(), 1);
    }

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
    let host = |n: u32| JitterSeed::from_machine_id(&format!("4c4c4544003{n:021}"));
    assert_eq!(host(7), host(7));
    // Known for good: a new version must not move the windows.
    assert_eq!(
        JitterSeed::from_machine_id("0123456789abcdef0123456789abcdef\n"),
        JitterSeed::from_machine_id("0123456789abcdef0123456789abcdef")
    );
    let share = JitterSeed::from_machine_id("0123456789abcdef0123456789abcdef").share_of(hour);
    assert_eq!(share, Duration::from_secs(546));
    let mut quarters = [0; 4];
    for n in 0..1000 {
        let share = host(n).share_of(hour);
        assert!(share < hour);
        quarters[usize::try_from(share.as_secs() / 900).unwrap()] += 1;
    }
    assert!(quarters.iter().all(|hosts| *hosts > 200), "{quarters:?}");
    assert_eq!(
        JitterSeed(u64::MAX).share_of(Duration::ZERO),
        Duration::ZERO
    );
    assert!(JitterSeed(u64::MAX).share_of(hour) < hour);
}
