//! The ladder, event by event and against its rules written a second time.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const STEPS: [RescueStep; 4] = [
    RescueStep::DropSlab,
    RescueStep::DropSlab,
    RescueStep::CompactMemory,
    RescueStep::DropAll,
];

fn settings() -> LadderSettings {
    LadderSettings {
        steps: STEPS.to_vec(),
        min_interval: Duration::from_secs(2),
        quiet_after: Duration::from_secs(60),
        max_actions_per_hour: 120,
    }
}

fn ladder() -> Ladder {
    Ladder::new(settings()).unwrap()
}

fn at(milliseconds: u64) -> Monotonic {
    Monotonic(milliseconds * 1_000_000)
}

/// A match of the kernel log; the step that it leads to.
fn hit(ladder: &mut Ladder, milliseconds: u64) -> Option<RescueStep> {
    let reaction = ladder.matched(at(milliseconds), Trigger::KernelLog);
    reaction.order.map(|order| order.step)
}

#[test]
fn steps_follow_each_other_and_the_last_is_repeated() {
    let mut ladder = ladder();
    let mut steps = Vec::new();
    for second in [0, 3, 6, 9, 12, 15] {
        steps.extend(hit(&mut ladder, second * 1000));
        ladder.action_done(at(second * 1000 + 800), Outcome::Done);
    }
    assert_eq!(steps[..4], STEPS);
    assert_eq!(steps[4..], [RescueStep::DropAll, RescueStep::DropAll]);
}

#[test]
fn a_match_within_the_interval_leads_to_an_action_at_its_end() {
    let mut ladder = ladder();
    assert!(hit(&mut ladder, 0).is_some());
    ladder.action_done(at(800), Outcome::Done);
    assert_eq!(ladder.next_deadline(), Some(at(60_800)));
    assert!(hit(&mut ladder, 1000).is_none());
    assert!(hit(&mut ladder, 1500).is_none());
    assert_eq!(ladder.next_deadline(), Some(at(2000)));
    assert_eq!(ladder.tick(at(1999)), Reaction::default());
    assert_eq!(ladder.tick(at(2000)).order.unwrap().number, 2);
    ladder.action_done(at(2100), Outcome::Done);
    // One action for both.
    assert_eq!(ladder.next_deadline(), Some(at(62_100)));
}

#[test]
fn a_match_during_an_action_is_only_counted() {
    let mut ladder = ladder();
    assert!(hit(&mut ladder, 0).is_some());
    assert!(hit(&mut ladder, 5000).is_none());
    assert_eq!(ladder.next_deadline(), None);
    ladder.action_done(at(6000), Outcome::Failed);
    assert_eq!(ladder.tick(at(6000)), Reaction::default());
    let ended = ladder.tick(at(66_000)).ended.unwrap();
    assert_eq!((ended.matches, ended.matches_in_flight), (2, 1));
    assert_eq!((ended.actions, ended.failed), (1, 1));
    assert_eq!(ended.last_match, at(5000));
}

#[test]
fn the_gaps_of_old_kernels_are_one_incident() {
    let mut ladder = ladder();
    for (number, second) in [0, 14, 32, 64].into_iter().enumerate() {
        let reaction = ladder.matched(at(second * 1000), Trigger::KernelLog);
        assert_eq!(reaction.began.is_some(), number == 0);
        assert_eq!(reaction.order.unwrap().step, STEPS[number]);
        ladder.action_done(at(second * 1000 + 900), Outcome::Done);
    }
}

#[test]
fn a_new_incident_begins_at_the_first_step() {
    let mut ladder = ladder();
    assert_eq!(ladder.next_deadline(), None);
    assert!(hit(&mut ladder, 0).is_some());
    ladder.action_done(at(100), Outcome::Done);
    assert!(hit(&mut ladder, 3000).is_some());
    ladder.action_done(at(3100), Outcome::Done);
    // Nobody ticked in between: the end is noticed all the same.
    let reaction = ladder.matched(at(63_100), Trigger::Stall);
    assert_eq!(reaction.ended.unwrap().incident, IncidentId(1));
    let began = reaction.began.unwrap();
    assert_eq!(
        (began.incident, began.trigger),
        (IncidentId(2), Trigger::Stall)
    );
    let order = reaction.order.unwrap();
    assert_eq!((order.step, order.number), (STEPS[0], 1));
}

#[test]
fn an_action_that_hangs_keeps_the_incident_open() {
    let mut ladder = ladder();
    assert!(hit(&mut ladder, 0).is_some());
    assert_eq!(ladder.tick(at(600_000)), Reaction::default());
    assert_eq!(ladder.incident(), Some(IncidentId(1)));
    ladder.action_done(at(600_000), Outcome::Done);
    assert_eq!(ladder.next_deadline(), Some(at(660_000)));
}

#[test]
fn an_action_due_before_the_end_is_not_forgotten_by_a_late_thread() {
    let mut ladder = ladder();
    assert!(hit(&mut ladder, 0).is_some());
    ladder.action_done(at(100), Outcome::Done);
    assert!(hit(&mut ladder, 1000).is_none());
    let reaction = ladder.tick(at(300_000));
    assert_eq!(reaction.ended, None);
    assert_eq!(reaction.order.unwrap().number, 2);
}

#[test]
fn the_hourly_limit_holds_across_incidents() {
    let mut ladder = Ladder::new(LadderSettings {
        max_actions_per_hour: 2,
        ..settings()
    })
    .unwrap();
    assert!(hit(&mut ladder, 0).is_some());
    ladder.action_done(at(0), Outcome::Done);
    assert!(ladder.tick(at(60_000)).ended.is_some());
    assert!(hit(&mut ladder, 100_000).is_some());
    ladder.action_done(at(100_000), Outcome::Done);
    assert!(ladder.tick(at(160_000)).ended.is_some());

    // A third incident has to wait, and ends before it may act.
    let reaction = ladder.matched(at(200_000), Trigger::KernelLog);
    assert!(reaction.began.is_some() && reaction.order.is_none());
    assert_eq!(reaction.limit, Some(Limit::Reached));
    assert_eq!(ladder.next_deadline(), Some(at(260_000)));
    let ended = ladder.tick(at(260_000)).ended.unwrap();
    assert_eq!((ended.actions, ended.held_back), (0, 1));

    // A fourth goes on until an hour after the first action.
    let mut second = 3_550;
    while second < 3_600 {
        let reaction = ladder.matched(at(second * 1000), Trigger::KernelLog);
        assert_eq!(reaction.order, None);
        // It is the same state as in the third, reported for this one too.
        let reached = reaction.began.map(|_| Limit::Reached);
        assert_eq!(reaction.limit, reached);
        second += 20;
    }
    assert_eq!(ladder.next_deadline(), Some(at(3_600_000)));
    let reaction = ladder.tick(at(3_600_000));
    assert!(reaction.order.is_some());
    assert_eq!(reaction.limit, Some(Limit::Over { held_back: 3 }));
    ladder.action_done(at(3_600_000), Outcome::Done);
    let reaction = ladder.matched(at(3_610_000), Trigger::KernelLog);
    assert_eq!(reaction.limit, Some(Limit::Reached));
    assert_eq!(ladder.next_deadline(), Some(at(3_670_000)));
    // Without an incident its end is noticed as well.
    assert!(ladder.tick(at(3_670_000)).ended.is_some());
    assert_eq!(ladder.next_deadline(), Some(at(3_700_000)));
    let reaction = ladder.tick(at(3_700_000));
    assert_eq!(reaction.limit, Some(Limit::Over { held_back: 0 }));
    assert_eq!(ladder.next_deadline(), None);
}

#[test]
fn a_hundred_matches_at_the_limit_are_one_state() {
    let mut ladder = Ladder::new(LadderSettings {
        max_actions_per_hour: 1,
        ..settings()
    })
    .unwrap();
    assert!(hit(&mut ladder, 0).is_some());
    ladder.action_done(at(1), Outcome::Done);
    let limits = (0..100).filter_map(|number| {
        let reaction = ladder.matched(at(1000 + number * 1000), Trigger::KernelLog);
        reaction.limit
    });
    assert_eq!(limits.collect::<Vec<_>>(), [Limit::Reached]);
    let ended = ladder.tick(at(170_000)).ended.unwrap();
    assert_eq!((ended.matches, ended.held_back), (101, 100));
}

#[test]
fn new_settings_keep_the_incident_and_the_hour() {
    let mut ladder = Ladder::new(LadderSettings {
        max_actions_per_hour: 2,
        ..settings()
    })
    .unwrap();
    for second in [0, 10] {
        assert!(hit(&mut ladder, second * 1000).is_some());
        ladder.action_done(at(second * 1000 + 1), Outcome::Done);
    }
    let change = |limit| {
        Arc::new(LadderSettings {
            steps: vec![RescueStep::DropAll],
            min_interval: Duration::from_secs(1),
            quiet_after: Duration::from_secs(100),
            max_actions_per_hour: limit,
        })
    };
    ladder.set(change(2));
    let reaction = ladder.matched(at(20_000), Trigger::KernelLog);
    assert_eq!((reaction.began, reaction.order), (None, None));
    assert_eq!(reaction.limit, Some(Limit::Reached));
    ladder.set(change(3));
    let reaction = ladder.tick(at(21_000));
    assert_eq!(reaction.limit, Some(Limit::Over { held_back: 1 }));
    let order = reaction.order.unwrap();
    assert_eq!(
        (order.number, order.step, order.incident),
        (3, RescueStep::DropAll, IncidentId(1))
    );
    ladder.action_done(at(21_000), Outcome::Done);
    // A limit that is lowered counts what was done before.
    ladder.set(change(1));
    assert!(hit(&mut ladder, 30_000).is_none());
    assert_eq!(ladder.next_deadline(), Some(at(130_000)));
    assert_eq!(ladder.tick(at(130_000)).ended.unwrap().matches, 4);
    assert_eq!(ladder.next_deadline(), Some(at(3_621_000)));
    assert_eq!(ladder.give_up(), None);
}

#[test]
fn a_clock_that_goes_back_stands_still() {
    let mut ladder = ladder();
    assert!(hit(&mut ladder, 10_000).is_some());
    ladder.action_done(at(5_000), Outcome::Done);
    assert!(hit(&mut ladder, 0).is_none());
    assert_eq!(ladder.next_deadline(), Some(at(12_000)));
}

#[test]
fn a_drill_begins_afresh() {
    let mut ladder = Ladder::new(LadderSettings {
        max_actions_per_hour: 1,
        ..settings()
    })
    .unwrap();
    for number in 1..4 {
        let reaction = ladder.matched(at(number), Trigger::Drill);
        assert_eq!(reaction.began.unwrap().incident, IncidentId(number));
        assert_eq!(reaction.order.unwrap().number, 1);
        ladder.reset();
        assert_eq!(ladder.next_deadline(), None);
    }
}

#[test]
fn what_makes_no_ladder() {
    let error = |change: fn(&mut LadderSettings)| {
        let mut settings = settings();
        change(&mut settings);
        Ladder::new(settings).unwrap_err()
    };
    assert_eq!(error(|s| s.steps.clear()), LadderError::NoSteps);
    assert_eq!(
        error(|s| s.max_actions_per_hour = 0),
        LadderError::HourlyLimit
    );
    assert_eq!(
        error(|s| s.max_actions_per_hour = 3601),
        LadderError::HourlyLimit
    );
    assert_eq!(
        error(|s| s.quiet_after = Duration::ZERO),
        LadderError::NoQuiet
    );
    assert_eq!(
        error(|s| s.min_interval = Duration::from_secs(61)),
        LadderError::IntervalLongerThanQuiet
    );
}

/// What may happen to a ladder, each after some milliseconds.
#[derive(Debug, Clone, Copy)]
enum Event {
    Match,
    Tick,
    /// Wait for the deadline, if there is one, and tick.
    Deadline,
    Done,
}

/// The rules, written a second time and slowly: nothing is kept but the whole history, and every
/// question is answered by reading it.
#[derive(Default)]
struct History {
    began: Vec<u64>,
    ended: Vec<u64>,
    matches: Vec<u64>,
    ordered: Vec<u64>,
    done: Vec<u64>,
}

const INTERVAL: u64 = 2_000;
const QUIET: u64 = 60_000;
const LIMIT: usize = 40;

impl History {
    fn is_open(&self) -> bool {
        self.began.len() > self.ended.len()
    }

    fn in_flight(&self) -> bool {
        self.ordered.len() > self.done.len()
    }

    /// Events of the incident that goes on.
    fn own<'a>(&'a self, times: &'a [u64], ended: &[usize]) -> &'a [u64] {
        &times[ended.last().copied().unwrap_or(0)..]
    }

    fn may_order(&self, now: u64) -> bool {
        let in_the_hour = self.ordered.iter().filter(|time| **time + 3_600_000 > now);
        in_the_hour.count() < LIMIT
            && self
                .ordered
                .last()
                .is_none_or(|last| last + INTERVAL <= now)
    }

    fn allowed_from(&self) -> u64 {
        let mut candidates = vec![0];
        candidates.extend(self.ordered.last().map(|last| last + INTERVAL));
        candidates.extend(self.ordered.iter().map(|time| time + 3_600_000));
        candidates.sort_unstable();
        let from = candidates.into_iter().find(|time| {
            self.ordered.last().is_none_or(|last| last <= time) && self.may_order(*time)
        });
        from.unwrap()
    }
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let pause = prop_oneof![
        4 => 0_u64..3_000,
        1 => 0_u64..100_000,
        1 => Just(0_u64),
        1 => select(vec![INTERVAL, QUIET, QUIET - 1]),
    ];
    let event = prop_oneof![
        4 => Just(Event::Match),
        1 => Just(Event::Tick),
        3 => Just(Event::Deadline),
        4 => Just(Event::Done),
    ];
    vec((pause, event), 0..400)
}

proptest! {
    #[test]
    fn the_ladder_does_what_the_rules_say(events in events()) {
        let mut ladder = Ladder::new(LadderSettings {
            max_actions_per_hour: u32::try_from(LIMIT).unwrap(),
            ..settings()
        }).unwrap();
        let mut history = History::default();
        // Where the matches and orders of ended incidents end.
        let (mut old_matches, mut old_orders, mut old_done) = (vec![0], vec![0], vec![0]);
        let mut asked = false;
        let mut now = 0;

        for (pause, event) in events {
            now += pause;
            if let (Event::Deadline, Some(deadline)) = (event, ladder.next_deadline()) {
                now = now.max(deadline.0 / 1_000_000);
            }

            // What the history says must happen.
            let mut expected_end = false;
            let mut expected_begin = false;
            let mut expected_order = false;
            match event {
                Event::Done => {
                    if history.in_flight() {
                        history.done.push(now);
                    }
                }
                Event::Match | Event::Tick | Event::Deadline => {
                    if history.is_open() && !history.in_flight() {
                        let last_match = history.own(&history.matches, &old_matches).last();
                        let last_done = history.own(&history.done, &old_done).last();
                        let quiet = last_match.max(last_done).unwrap() + QUIET;
                        let due_first = asked && history.allowed_from() <= quiet;
                        expected_end = now >= quiet && !due_first;
                    }
                    if expected_end {
                        history.ended.push(now);
                        old_matches.push(history.matches.len());
                        old_orders.push(history.ordered.len());
                        old_done.push(history.done.len());
                        asked = false;
                    }
                    if matches!(event, Event::Match) {
                        if !history.is_open() {
                            expected_begin = true;
                            history.began.push(now);
                        }
                        history.matches.push(now);
                        asked |= !history.in_flight();
                    }
                    expected_order = asked && !history.in_flight() && history.may_order(now);
                    if expected_order {
                        history.ordered.push(now);
                        asked = false;
                    }
                }
            }

            let reaction = match event {
                Event::Match => ladder.matched(at(now), Trigger::KernelLog),
                Event::Tick | Event::Deadline => ladder.tick(at(now)),
                Event::Done => {
                    ladder.action_done(at(now), Outcome::Done);
                    Reaction::default()
                }
            };
            prop_assert_eq!(reaction.ended.is_some(), expected_end);
            prop_assert_eq!(reaction.began.is_some(), expected_begin);
            prop_assert_eq!(reaction.order.is_some(), expected_order);
            prop_assert_eq!(ladder.in_flight, history.in_flight());
            prop_assert_eq!(ladder.incident().is_some(), history.is_open());
            if let Some(order) = reaction.order {
                let number = history.ordered.len() - old_orders.last().unwrap();
                prop_assert_eq!(order.number as usize, number);
                prop_assert_eq!(order.step, STEPS[number.min(STEPS.len()) - 1]);
                prop_assert_eq!(order.incident, ladder.incident().unwrap());
                prop_assert_eq!(order.incident, IncidentId(history.began.len() as u64));
            }
        }

        // Whatever happened, in other words.
        for pair in history.ordered.windows(2) {
            prop_assert!(pair[1] - pair[0] >= INTERVAL);
        }
        for hour in history.ordered.windows(LIMIT + 1) {
            prop_assert!(hour[LIMIT] - hour[0] >= 3_600_000);
        }
        for (order, done) in history.ordered.iter().skip(1).zip(&history.done) {
            prop_assert!(order >= done, "two in flight");
        }
    }

    /// A thread that only sleeps until the next deadline comes to rest.
    #[test]
    fn every_incident_ends(events in events()) {
        let mut ladder = ladder();
        let mut now = 0;
        for (pause, event) in events {
            now += pause;
            match event {
                Event::Match => _ = ladder.matched(at(now), Trigger::KernelLog),
                Event::Tick | Event::Deadline => _ = ladder.tick(at(now)),
                Event::Done => ladder.action_done(at(now), Outcome::Done),
            }
        }
        ladder.action_done(at(now), Outcome::Done);
        let mut ticks = 0;
        let mut last = at(0);
        while let Some(deadline) = ladder.next_deadline() {
            let time = deadline.max(at(now));
            prop_assert!(time > last || ticks == 0, "a deadline that changes nothing");
            last = time;
            if ladder.tick(time).order.is_some() {
                ladder.action_done(time, Outcome::Done);
            }
            ticks += 1;
            prop_assert!(ticks < 6);
        }
        prop_assert_eq!(ladder.incident(), None);
    }
}
