//! Every state that can be found, and what a simulated host makes of every step that is decided on.

use super::*;

const NAMES: [Name; 4] = [Name::Old, Name::New, Name::Missing, Name::Other];
const FORMER: [Option<Name>; 5] = [
    None,
    Some(Name::Old),
    Some(Name::New),
    Some(Name::Missing),
    Some(Name::Other),
];
const NAMED: [Named; 5] = [
    Named::Image,
    Named::Former,
    Named::Copy,
    Named::Elsewhere,
    Named::Neither,
];
const VMS: [Vm; 5] = [Vm::Running, Vm::Paused, Vm::Off, Vm::Undefined, Vm::Unknown];
const STEPS: [Step; 3] = [
    Step::Copying,
    Step::Switching { suspends: true },
    Step::Switching { suspends: false },
];

/// One of the values, by the lowest digit of a number in that base, which is taken off.
fn pick<T: Copy>(number: &mut usize, values: &[T]) -> T {
    let value = values[*number % values.len()];
    *number /= values.len();
    value
}

/// All combinations.
fn all() -> impl Iterator<Item = Found> {
    let flags = [false, true];
    (0..3 * 4 * 4 * 5 * 3 * 5 * 5 * 5 * 128).map(move |mut number| {
        let number = &mut number;
        Found {
            step: pick(number, &STEPS),
            image: pick(number, &NAMES),
            copy: pick(number, &NAMES),
            former: pick(number, &FORMER),
            temporary: pick(number, &NAMES[..3]),
            changed_old: pick(number, &flags),
            changed_new: pick(number, &flags),
            writes_old: pick(number, &flags),
            writes_new: pick(number, &flags),
            vm: pick(number, &VMS),
            saved: pick(number, &flags),
            job: pick(number, &flags),
            live: pick(number, &NAMED),
            defined: pick(number, &NAMED),
            former_named: pick(number, &flags),
        }
    })
}

/// What becomes of a host by a step.
fn after(found: Found, act: Act) -> Option<Found> {
    let mut next = found;
    match act {
        Act::Link => {
            next.image = Name::New;
            next.former = next.former.map(|former| match former {
                Name::Old => Name::New,
                other => other,
            });
        }
        Act::Restore => (next.image, next.temporary) = (Name::Old, Name::New),
        Act::Abort => (next.job, next.writes_new) = (false, false),
        Act::Resume => next.vm = Vm::Running,
        Act::Define => next.defined = Named::Image,
        Act::Remove => next.copy = Name::Missing,
        Act::RemoveTemporary => next.temporary = Name::Missing,
        Act::RemoveFormer => next.former = None,
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
            assert!(steps <= 8, "{first:?} does not end");
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
            assert!(!found.changed_new, "{found:?}");
            assert_ne!(found.defined, Named::Elsewhere, "{found:?}");
        }
        // A name that a definition leads to stays.
        let runs = matches!(found.vm, Vm::Running | Vm::Paused);
        if act == Act::Remove && names_new {
            let is_sure = !runs || matches!(found.live, Named::Image | Named::Former);
            assert!(is_sure, "{found:?}");
            assert!(!matches!(found.defined, Named::Copy | Named::Elsewhere));
            let is_off = found.vm == Vm::Off;
            let unseen = found.saved || found.defined == Named::Neither;
            assert!(!is_off || !unseen, "{found:?}");
        }
        // The old file loses its name only if the VM cannot need it.
        if act == Act::Link {
            let stands = found.vm == Vm::Paused && found.step == STEPS[1];
            assert!(!found.writes_old || stands && found.writes_new);
            let may_start = !found.writes_new && !matches!(found.vm, Vm::Off | Vm::Undefined);
            let is_last = names_new && found.temporary == Name::Old;
            assert!(!is_last || !may_start, "{found:?}");
        }
        if act == Act::Link && found.image == Name::Old {
            let is_named = found.defined == Named::Copy;
            let is_current = is_named || found.changed_new;
            let is_old = found.changed_old || found.writes_old;
            assert!(found.writes_new || is_current && !is_old, "{found:?}");
            assert!(!found.writes_old || is_named || found.live == Named::Copy);
            assert!(found.writes_new || !runs || found.live == Named::Neither);
        }
        // A note is given up only if nothing is left that it is about.
        if act == Act::Forget {
            assert!(!found.writes_new || names_new, "{found:?}");
            assert!(found.copy != Name::New, "{found:?}");
            assert_ne!(found.defined, Named::Copy, "{found:?}");
            assert!(!names_new || found.former.is_none(), "{found:?}");
        }
    }
}

#[test]
fn other_names_are_removed_only_if_nothing_needs_them() {
    for found in all() {
        let act = next(&found);
        let names_new = found.image == Name::New;
        let runs = matches!(found.vm, Vm::Running | Vm::Paused);
        // It is another name of the image, whatever it leads to, and no definition has it.
        if act == Act::RemoveFormer {
            assert!(names_new && found.former != Some(Name::Old), "{found:?}");
            assert!(!found.former_named && !found.writes_old, "{found:?}");
            assert!(![found.live, found.defined].contains(&Named::Former) || !runs);
            assert!(!runs || matches!(found.live, Named::Image | Named::Copy));
            let unseen = found.saved || found.defined == Named::Neither;
            assert!(found.vm != Vm::Off || !unseen, "{found:?}");
        }
        if act == Act::RemoveTemporary {
            assert_ne!(found.vm, Vm::Unknown, "{found:?}");
            assert!(!names_new || !found.writes_old, "{found:?}");
            // The last name of the old file goes when the VM has started with the other, or is off.
            let is_last = names_new && found.temporary == Name::Old;
            assert!(!is_last || !runs || found.writes_new, "{found:?}");
            let is_unused = !found.writes_new && found.defined != Named::Copy;
            assert!(names_new || is_unused, "{found:?}");
        }
        // The path goes back to the old file only if the copy was never used under it.
        if act == Act::Restore {
            assert!(names_new && found.temporary == Name::Old, "{found:?}");
            assert!(found.writes_old && !found.writes_new, "{found:?}");
            assert_ne!(found.former, Some(Name::New), "{found:?}");
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
            let leads_both_ways = found.image == Name::New && found.former == Some(Name::Old);
            assert!(!leads_both_ways, "{found:?}");
            assert_eq!(found.step, Step::Switching { suspends: true });
        }
        // Nor does it stand still for ever: all else has to wait for it.
        let stands = found.vm == Vm::Paused && found.step == (Step::Switching { suspends: true });
        let first = [Act::Link, Act::Restore, Act::Abort, Act::Resume];
        // Only if nothing shows which file its VM uses, which may have been started since, or if it is
        // the old one, which the path has led to for a moment.
        let is_unknown = match (found.writes_old, found.writes_new) {
            (false, false) => found.live != Named::Neither || found.job || found.image == Name::New,
            (true, false) => found.image == Name::New,
            (false, true) => false,
            (true, true) => found.image == Name::Old,
        };
        assert!(
            !stands || is_unknown || first.contains(&act),
            "{found:?}: {act:?}"
        );
    }
}

/// The steps from a state on.
fn steps(mut found: Found) -> Vec<Act> {
    let mut steps = vec![next(&found)];
    while let Some(next_found) = after(found, steps[steps.len() - 1]) {
        found = next_found;
        steps.push(next(&found));
    }
    steps
}

fn off(found: Found) -> Found {
    Found {
        vm: Vm::Off,
        job: false,
        writes_old: false,
        writes_new: false,
        live: Named::Neither,
        ..found
    }
}

const COPYING: Found = Found {
    step: Step::Copying,
    image: Name::Old,
    copy: Name::New,
    former: None,
    temporary: Name::Missing,
    changed_old: false,
    changed_new: false,
    writes_old: true,
    writes_new: true,
    vm: Vm::Running,
    saved: false,
    job: true,
    live: Named::Image,
    defined: Named::Image,
    former_named: false,
};

/// The table of the moments in [`super::super`].
#[test]
fn the_moments() {
    let copying = COPYING;
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
    // Somebody has resumed it by hand, so that it wrote to the copy.
    let overtaken = Found {
        changed_new: true,
        ..off(misfiled)
    };
    assert_eq!(steps(after(overtaken, Link).unwrap()), [Remove, Forget]);
    assert_eq!(next(&overtaken), Link);
    // Then its VM was started with the old file, and wrote to it.
    for changed_old in [false, true] {
        let started = Found {
            vm: Vm::Running,
            writes_old: true,
            live: Named::Image,
            changed_old,
            ..overtaken
        };
        assert_eq!(steps(started), [Leave]);
    }
    let stopped = Found {
        changed_old: true,
        ..overtaken
    };
    assert_eq!(steps(stopped), [Leave]);
    let of_copy = Found {
        defined: Named::Copy,
        ..stopped
    };
    assert_eq!(steps(of_copy), [Leave]);
    // As QEMU does with a qcow2 when it closes it.
    let closed = Found {
        changed_new: false,
        ..of_copy
    };
    assert_eq!(steps(closed), [Define, Remove, Forget]);
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

/// Another process writes to the old file meanwhile, such as a tool of an operator.
#[test]
fn a_guest_does_not_wait_for_a_foreign_writer() {
    use Act::*;
    let pivoted = Found {
        step: Step::Switching { suspends: true },
        vm: Vm::Paused,
        job: false,
        live: Named::Copy,
        defined: Named::Copy,
        ..COPYING
    };
    assert_eq!(steps(pivoted), [Link, Resume, Leave]);
    let second = Found {
        image: Name::New,
        former: Some(Name::Old),
        ..pivoted
    };
    assert_eq!(steps(second), [Link, Resume, Leave]);
    // libvirt still has a job that QEMU has ended.
    let ended = Found {
        writes_new: false,
        job: true,
        live: Named::Image,
        defined: Named::Image,
        ..pivoted
    };
    assert_eq!(steps(ended), [Resume, Wait]);
}

/// The same of a second copy: the VM runs with the path of the first, and is started with that of the
/// image.
#[test]
fn the_moments_of_a_second_copy() {
    use Act::*;
    let copying = Found {
        former: Some(Name::Old),
        live: Named::Former,
        former_named: true,
        ..COPYING
    };
    let off = |found: Found| Found {
        former_named: false,
        ..off(found)
    };
    assert_eq!(steps(copying), [Abort, Remove, Forget]);
    assert_eq!(steps(off(copying)), [Remove, Forget]);
    let frozen = Found {
        step: Step::Switching { suspends: true },
        vm: Vm::Paused,
        ..copying
    };
    assert_eq!(steps(frozen), [Abort, Resume, Remove, Forget]);
    // libvirt has not noted the pivot: the path of the first copy stays until the VM is off.
    let misfiled = Found {
        writes_old: false,
        job: false,
        ..frozen
    };
    assert_eq!(steps(misfiled), [Link, Resume, Remove, Keep]);
    assert_eq!(steps(off(misfiled)), [Remove, Forget]);
    // It has noted it: it redefines only what named the same path as the running definition.
    let pivoted = Found {
        live: Named::Copy,
        former_named: false,
        ..misfiled
    };
    assert_eq!(steps(pivoted), [Link, Resume, RemoveFormer, Keep]);
    assert_eq!(steps(off(pivoted)), [Remove, Forget]);
    let redefined = Found {
        defined: Named::Copy,
        ..pivoted
    };
    assert_eq!(steps(redefined), [Link, Resume, Define, RemoveFormer, Keep]);
    assert_eq!(
        steps(off(redefined)),
        [Link, Define, RemoveFormer, Remove, Forget]
    );
    // Killed between the links of both paths.
    let between = Found {
        image: Name::New,
        ..misfiled
    };
    assert_eq!(steps(between), [Link, Resume, Remove, Keep]);
    let settled = Found {
        image: Name::New,
        former: Some(Name::New),
        vm: Vm::Running,
        ..misfiled
    };
    assert_eq!(steps(off(settled)), [RemoveFormer, Remove, Forget]);
    let saved = Found {
        saved: true,
        ..off(settled)
    };
    assert_eq!(steps(saved), [Keep]);
    // Somebody has defined what ran.
    let defined = Found {
        defined: Named::Former,
        ..off(settled)
    };
    assert_eq!(steps(defined), [Define, RemoveFormer, Remove, Forget]);
}

/// Killed while the copy was given the path of the image.
#[test]
fn the_temporary_name_goes() {
    use Act::*;
    let settled = Found {
        step: Step::Switching { suspends: false },
        image: Name::New,
        writes_old: false,
        job: false,
        live: Named::Copy,
        ..COPYING
    };
    for temporary in [Name::Old, Name::New] {
        let left = Found {
            temporary,
            ..settled
        };
        assert_eq!(steps(left), [RemoveTemporary, Keep]);
        let left = off(left);
        assert_eq!(steps(left), [RemoveTemporary, Remove, Forget]);
    }
    let before = Found {
        image: Name::Old,
        temporary: Name::New,
        defined: Named::Copy,
        ..off(settled)
    };
    assert_eq!(
        steps(before),
        [Link, RemoveTemporary, Define, Remove, Forget]
    );
    // A VM has started with the old file meanwhile.
    let started = Found {
        temporary: Name::Old,
        writes_old: true,
        vm: Vm::Running,
        live: Named::Image,
        defined: Named::Copy,
        ..off(settled)
    };
    assert_eq!(
        steps(started),
        [Restore, Define, RemoveTemporary, Remove, Forget]
    );
    let starting = Found {
        writes_old: false,
        ..started
    };
    assert_eq!(steps(starting), [Wait]);
}
