use super::*;
use proptest::prelude::*;

fn running() -> Machine {
    Machine::new(at(0), Duration::from_secs(60))
}

fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn it_stands_still_as_long_as_there_is_a_reason() {
    let mut machine = running();
    let mut step = |input| machine.step(at(1), input);
    assert_eq!(step(Input::Held(Hold::Bandwidth, true)), [Action::Pause]);
    assert_eq!(step(Input::Held(Hold::Pressure, true)), []);
    assert_eq!(step(Input::Held(Hold::Bandwidth, false)), []);
    assert_eq!(step(Input::Held(Hold::Pressure, false)), [Action::Continue]);
}

#[test]
fn the_end_comes_with_grace_and_then_without() {
    let mut machine = running();
    machine.step(at(1), Input::Held(Hold::Pressure, true));
    assert_eq!(
        machine.step(at(10), Input::Stop(Stop::WindowClosed)),
        [Action::Terminate, Action::Continue]
    );
    assert_eq!(
        machine.step(at(500), Input::Held(Hold::Bandwidth, true)),
        []
    );
    assert_eq!(machine.step(at(2009), Input::Tick), []);
    assert_eq!(machine.step(at(2010), Input::Tick), [Action::Kill]);
    assert_eq!(machine.step(at(2011), Input::Tick), []);
    assert_eq!(machine.step(at(9_999_999), Input::Tick), []);
    assert_eq!(machine.step(at(9_999_999), Input::Exited), []);
    assert_eq!(machine.state(), RunState::Ended);
    assert_eq!(machine.stopped_by(), Some(Stop::WindowClosed));
}

#[test]
fn who_waits_does_not_wait_for_comfort() {
    let mut machine = running();
    machine.step(at(10), Input::Stop(Stop::Paused));
    machine.step(at(20), Input::Stop(Stop::Opened));
    assert_eq!(machine.step(at(120), Input::Tick), [Action::Kill]);
    assert_eq!(machine.stopped_by(), Some(Stop::Paused));
}

#[test]
fn one_that_does_nothing_is_ended_unless_it_was_told_to() {
    let mut machine = running();
    machine.step(at(1000), Input::Moved);
    assert_eq!(machine.step(at(60_999), Input::Tick), []);
    machine.step(at(60_999), Input::Held(Hold::Pressure, true));
    assert_eq!(machine.step(at(200_000), Input::Tick), []);
    machine.step(at(200_000), Input::Held(Hold::Pressure, false));
    assert_eq!(machine.step(at(259_999), Input::Tick), []);
    assert_eq!(machine.step(at(260_000), Input::Tick), [Action::Terminate]);
    assert_eq!(machine.stopped_by(), Some(Stop::Stuck));
}

#[test]
fn a_fragwatch_that_is_to_end_ends() {
    let mut machine = running();
    machine.step(at(0), Input::Stop(Stop::Shutdown));
    assert_eq!(machine.step(at(2000), Input::Tick), [Action::Kill]);
    assert_eq!(machine.step(at(22_000), Input::Tick), [Action::Abandon]);
    assert_eq!(machine.state(), RunState::Ended);
}

fn any_input() -> impl Strategy<Value = Input> {
    let hold = prop::sample::select(vec![Hold::Pressure, Hold::Bandwidth]);
    prop_oneof![
        8 => (hold, any::<bool>()).prop_map(|(hold, is_held)| Input::Held(hold, is_held)),
        4 => Just(Input::Moved),
        1 => prop::sample::select(Stop::ALL.to_vec()).prop_map(Input::Stop),
        8 => Just(Input::Tick),
        1 => Just(Input::Exited),
    ]
}

/// What the process that the actions are for would have gone through.
#[derive(Default)]
struct Process {
    stopped: bool,
    terminated: u32,
    killed: u32,
}

impl Process {
    fn take(&mut self, action: Action) {
        match action {
            Action::Pause => {
                assert!(!self.stopped && self.terminated == 0);
                self.stopped = true;
            }
            Action::Continue => {
                assert!(self.stopped);
                self.stopped = false;
            }
            Action::Terminate => self.terminated += 1,
            Action::Kill => {
                assert_eq!(self.terminated, 1);
                self.killed += 1;
            }
            Action::Abandon => assert_eq!(self.killed, 1),
        }
        assert!(self.terminated <= 1 && self.killed <= 1);
    }
}

proptest! {
    /// Whatever comes in whatever order: nothing is done to a process that has ended; a process
    /// that is told to end never stands still; and one that does not end of itself is made to.
    #[test]
    fn nothing_is_done_out_of_order(
        inputs in prop::collection::vec((any_input(), 0_u64..3000), 1..200)
    ) {
        let mut machine = Machine::new(at(0), at(20_000));
        let mut process = Process::default();
        let mut now = 0;
        for (input, wait) in inputs {
            now += wait;
            let before = machine.state();
            let actions = machine.step(at(now), input);
            prop_assert!(before != RunState::Ended || actions.is_empty());
            prop_assert!(before != RunState::Ended || machine.state() == RunState::Ended);
            for action in actions {
                process.take(action);
            }
            prop_assert_eq!(machine.state() == RunState::Paused, process.stopped && machine.state() != RunState::Ended);
            if machine.state() == RunState::Ending {
                prop_assert!(machine.stopped_by().is_some() && !process.stopped);
                prop_assert_eq!(process.terminated, 1);
            }
        }
        if matches!(machine.state(), RunState::Running | RunState::Paused) {
            for action in machine.step(at(now), Input::Stop(Stop::Incident)) {
                process.take(action);
            }
        }
        if machine.state() == RunState::Ending {
            for action in machine.step(at(now + 2000), Input::Tick) {
                process.take(action);
            }
            prop_assert_eq!(process.killed, 1);
        }
    }
}
