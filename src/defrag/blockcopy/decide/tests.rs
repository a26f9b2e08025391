//! Every state that can be found, and what a simulated host makes of every step that is decided on.

use super::*;

const NAMES: [Name; 4] = [Name::Old, Name::New, Name::Missing, Name::Other];
const NAMED: [Named; 4] = [Named::Image, Named::Copy, Named::Elsewhere, Named::Neither];
const VMS: [Vm; 5] = [Vm::Running, Vm::Paused, Vm::Off, Vm::Undefined, Vm::Unknown];
const STEPS: [Step; 3] = [
    Step::Copying,
    Step::Switching { suspends: true },
    Step::Switching { suspends: false },
];

/// All combinations: 3 × 4 × 4 × 2⁴ × 5 × 4 × 4.
fn all() -> impl Iterator<Item = Found> {
    let flag = |number: usize, bit: usize| number >> bit & 1 == 1;
    (0..3 * 4 * 4 * 16 * 5 * 16).map(move |number| {
        let (flags, rest) = (number % 16, number / 16);
        Found {
            step: STEPS[rest % 3],
            image: NAMES[rest / 3 % 4],
            copy: NAMES[rest / 12 % 4],
            writes_old: flag(flags, 0),
            writes_new: flag(flags, 1),
            saved: flag(flags, 2),
            job: flag(flags, 3),
            vm: VMS[rest / 48 % 5],
            live: NAMED[rest / 240 % 4],
            defined: NAMED[rest / 960],
        }
    })
}

/// What becomes of a host by a step.
fn after(found: Found, act: Act) -> Option<Found> {
    let mut next = found;
    match act {
        Act::Link => next.image = Name::New,
        Act::Abort => (next.job, next.writes_new) = (false, false),
        Act::Resume => next.vm = Vm::Running,
        Act::Define => next.defined = Named::Image,
        Act::Remove => next.copy = Name::Missing,
        Act::Forget | Act::Keep | Act::Wait | Act::Leave => return None,
    }
    Some(next)
}

#[test]
fn every_state_comes_to_an_end() {
    for first in all() {
        let (mut found, mut steps) = (first, 0);
        while let Some(next) = after(found, super::next(&found)) {
            assert_ne!(next, found, "{first:?} does not end");
            found = next;
            steps += 1;
            assert!(steps <= 5, "{first:?} does not end");
        }
    }
}

#[test]
fn nothing_that_may_be_current_is_lost() {
    for found in all() {
        let act = next(&found);
        let names_new = found.image == Name::New;
        // The name of a copy goes only if it is its second one, or the copy was never in use.
        if act == Act::Remove && !names_new {
            let unused = !found.writes_new && found.defined != Named::Copy;
            assert!(unused && found.image == Name::Old, "{found:?}");
            assert_ne!(found.defined, Named::Elsewhere, "{found:?}");
        }
        // A name that a definition leads to stays.
        let runs = matches!(found.vm, Vm::Running | Vm::Paused);
        if act == Act::Remove && names_new {
            let is_sure = !runs || found.live == Named::Image;
            assert!(is_sure, "{found:?}");
            assert!(!matches!(found.defined, Named::Copy | Named::Elsewhere));
            let is_off = found.vm == Vm::Off;
            let unseen = found.saved || found.defined == Named::Neither;
            assert!(!is_off || !unseen, "{found:?}");
        }
        // The old file loses its name only if the VM cannot need it.
        if act == Act::Link {
            assert!(found.image == Name::Old && !found.writes_old, "{found:?}");
            let is_current = found.writes_new || found.defined == Named::Copy;
            assert!(is_current, "{found:?}");
            assert!(found.writes_new || !runs || found.live == Named::Neither);
        }
        // A note is given up only if nothing is left that it is about.
        if act == Act::Forget {
            assert!(!found.writes_new || names_new, "{found:?}");
            assert!(found.copy != Name::New, "{found:?}");
            assert_ne!(found.defined, Named::Copy, "{found:?}");
        }
    }
}

#[test]
fn a_guest_goes_on_only_with_the_current_file_under_its_path() {
    for found in all() {
        let act = next(&found);
        if act == Act::Resume {
            let only_new = found.writes_new && !found.writes_old;
            assert!(found.image != Name::Old || !only_new, "{found:?}");
            assert_eq!(found.step, Step::Switching { suspends: true });
        }
        // Nor does it stand still for ever: all else has to wait for it.
        let stands = found.vm == Vm::Paused && found.step == (Step::Switching { suspends: true });
        let later = matches!(act, Act::Define | Act::Remove | Act::Forget | Act::Keep);
        assert!(!stands || !later, "{found:?}: {act:?}");
    }
}

/// The table of the moments in [`super::super`].
#[test]
fn the_moments() {
    let copying = Found {
        step: Step::Copying,
        image: Name::Old,
        copy: Name::New,
        writes_old: true,
        writes_new: true,
        vm: Vm::Running,
        saved: false,
        job: true,
        live: Named::Image,
        defined: Named::Image,
    };
    let steps = |mut found: Found| {
        let mut steps = vec![next(&found)];
        while let Some(next_found) = after(found, steps[steps.len() - 1]) {
            found = next_found;
            steps.push(next(&found));
        }
        steps
    };
    let off = |found: Found| Found {
        vm: Vm::Off,
        job: false,
        writes_old: false,
        writes_new: false,
        live: Named::Neither,
        ..found
    };
    use Act::*;
    assert_eq!(steps(copying), [Abort, Remove, Forget]);
    assert_eq!(steps(off(copying)), [Remove, Forget]);
    let frozen = Found {
        step: Step::Switching { suspends: true },
        vm: Vm::Paused,
        ..copying
    };
    assert_eq!(steps(frozen), [Abort, Resume, Remove, Forget]);
    assert_eq!(steps(off(frozen)), [Remove, Forget]);
    let pivoted = Found {
        writes_old: false,
        job: false,
        live: Named::Copy,
        defined: Named::Copy,
        ..frozen
    };
    assert_eq!(steps(pivoted), [Link, Resume, Define, Keep]);
    assert_eq!(steps(off(pivoted)), [Link, Define, Remove, Forget]);
    // libvirtd died between QEMU's pivot and its own note.
    let misfiled = Found {
        live: Named::Image,
        defined: Named::Image,
        ..pivoted
    };
    assert_eq!(steps(misfiled), [Link, Resume, Remove, Forget]);
    let silent = Found {
        vm: Vm::Unknown,
        ..misfiled
    };
    assert_eq!(steps(silent), [Link, Wait]);
    // The guest stood still, so both files are the same.
    assert_eq!(steps(off(misfiled)), [Remove, Forget]);
    // The scan of the processes missed it, or it is just being started.
    let starting = Found {
        vm: Vm::Running,
        live: Named::Copy,
        ..off(pivoted)
    };
    assert_eq!(steps(starting), [Wait]);
    let linked = Found {
        image: Name::New,
        ..pivoted
    };
    assert_eq!(steps(linked), [Resume, Define, Keep]);
    assert_eq!(steps(off(linked)), [Define, Remove, Forget]);
    let settled = Found {
        vm: Vm::Running,
        defined: Named::Image,
        ..linked
    };
    assert_eq!(steps(settled), [Keep]);
    assert_eq!(steps(off(settled)), [Remove, Forget]);
    // What still leads to the copy: a managed save, a snapshot upon it, another disk.
    let saved = Found {
        saved: true,
        ..off(settled)
    };
    assert_eq!(steps(saved), [Keep]);
    for live in [Named::Elsewhere, Named::Neither] {
        assert_eq!(steps(Found { live, ..settled }), [Keep]);
        let defined = live;
        assert_eq!(
            steps(Found {
                defined,
                ..off(settled)
            }),
            [Keep]
        );
    }
    // The job has ended by an error: no space, or the disk was detached.
    let failed = Found {
        writes_new: false,
        job: false,
        ..copying
    };
    assert_eq!(steps(failed), [Remove, Forget]);
    let detached = Found {
        writes_old: false,
        live: Named::Neither,
        ..failed
    };
    assert_eq!(steps(detached), [Remove, Forget]);
    let undefined = Found {
        vm: Vm::Undefined,
        defined: Named::Neither,
        ..off(misfiled)
    };
    assert_eq!(steps(undefined), [Leave]);
}
