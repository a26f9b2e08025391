//! Every reason in its words, the choice of engine, the order, and what holds of every plan.

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::*;
use crate::maintenance::facts::{Active, LastRun, User};
use crate::maintenance::speed::{Speed, Speeds};
use crate::model::free_space::Summary;
use crate::model::{
    Borders, Bytes, BytesPerSecond, EngineState, ExtentsPerDay, Features, Manager, Unusable,
    UnusableReason,
};
use std::sync::Arc;

const GIB: u64 = 1 << 30;
const TEN_MINUTES: Duration = Duration::from_secs(600);

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// An idle image of 100 GiB with a million extents.
fn image(name: &str) -> ImageFacts {
    ImageFacts {
        path: PathBuf::from("/srv").join(name),
        filesystem: "a".to_owned(),
        severity: Severity::Warning,
        extents: ExtentCount(500_000),
        ideal: ExtentCount(13),
        outlook: None,
        growth: None,
        size: Bytes(100 * GIB),
        allocated: Bytes(100 * GIB),
        user: None,
        shares_blocks: false,
        obstacles: Vec::new(),
        last_run: None,
    }
}

fn filesystem(id: &str) -> FilesystemFacts {
    FilesystemFacts {
        id: id.to_owned(),
        info: Filesystem {
            mount: PathBuf::from("/srv"),
            type_name: "xfs".to_owned(),
            kind: FilesystemKind::Xfs,
            uuid: Some(id.to_owned()),
            features: Some(Features {
                reflink: true,
                ..Features::default()
            }),
            size: Bytes(1000 * GIB),
            free: Bytes(400 * GIB),
            block_size: Bytes(4096),
        },
        stalled: false,
        active: None,
        io_pressure: Some(1.0),
        speeds: Speeds {
            xfs_fsr: Some(Speed {
                median: BytesPerSecond(100 << 20),
                runs: 3,
            }),
            ..Speeds::default()
        },
        space: None,
    }
}

/// In the middle of a window from 01:00 to 05:00.
fn facts(images: Vec<ImageFacts>) -> PlanFacts {
    PlanFacts {
        now: at("2026-11-21T02:00Z"),
        zone: TimeZone::UTC,
        allowed: Allowed::During(Opening {
            opens: at("2026-11-21T01:00Z"),
            closes: at("2026-11-21T05:00Z"),
        }),
        incident: false,
        recent_incident: false,
        paused: false,
        not_ready: None,
        engines: Vec::new(),
        images,
        filesystems: vec![filesystem("a"), filesystem("b")],
    }
}

fn pressed(facts: &mut PlanFacts, io_pressure: Option<f64>) {
    facts.filesystems[0].io_pressure = io_pressure;
}

fn vm() -> Option<User> {
    of(None)
}

/// A VM of this manager.
fn of(manager: Option<Manager>) -> Option<User> {
    Some(User::Vm {
        name: Some("db-1".to_owned()),
        pid: 4711,
        manager,
        node: None,
    })
}

/// The decisions as `/srv/a xfs_fsr 02:00` and `/srv/b: reason`.
fn decisions(facts: &PlanFacts, policy: &Defrag) -> Vec<String> {
    let shown = |planned: Planned| {
        let path = planned.path.display().to_string();
        match planned.decision {
            Decision::Runs(run) => {
                let begins = TimeZone::UTC.to_datetime(run.begins).strftime("%H:%M");
                format!("{path} {} {begins}", run.engine)
            }
            Decision::Not(reason) => format!("{path}: {reason}"),
        }
    };
    plan(facts, policy).images.into_iter().map(shown).collect()
}

/// The decision on the only image, after a change of the facts and the policy.
#[track_caller]
fn says(change: impl FnOnce(&mut PlanFacts, &mut Defrag), expected: &str) {
    let mut facts = facts(vec![image("a")]);
    let mut policy = Defrag::default();
    change(&mut facts, &mut policy);
    assert_eq!(decisions(&facts, &policy), [format!("/srv/a{expected}")]);
}

#[test]
fn short_free_extents_keep_from_a_copy_only() {
    let with_extents_of = |bytes: u64| {
        let mut space = Summary::new(Bytes(1000 * GIB), Bytes(4096), Bytes(1000 * GIB));
        for number in 0..400 * GIB / bytes {
            space.add(number * 2 * bytes, bytes);
        }
        let mut facts = facts(vec![ImageFacts {
            extents: ExtentCount(50_000),
            ..image("a")
        }]);
        facts.filesystems[0].space = Some(Arc::new(space.finish()));
        facts
    };
    let code = |facts: &PlanFacts, engine| {
        let only = Defrag {
            engines: vec![engine],
            ..Defrag::default()
        };
        match &plan(facts, &only).images[0].decision {
            Decision::Not(refusal) => Some(refusal.code),
            Decision::Runs(_) => None,
        }
    };
    // 100 GiB in 25,600 extents of 4 MiB, or in 1,600 of 64 MiB.
    let (short, long) = (with_extents_of(4 << 20), with_extents_of(64 << 20));
    let refused = Some(ReasonCode::FreeSpaceFragmented);
    assert_eq!(code(&short, Engine::XfsFsr), refused);
    assert_ne!(code(&long, Engine::XfsFsr), refused);
    assert_ne!(code(&short, Engine::Online), refused);
}

#[test]
fn an_idle_image_runs_at_once() {
    says(|_, _| {}, " xfs_fsr 02:00");
    let plan = plan(&facts(vec![image("a")]), &Defrag::default());
    let Decision::Runs(run) = plan.images[0].decision else {
        panic!("{plan:?}");
    };
    // 100 GiB at 100 MiB/s are 1024 s; the swap takes one more, and a little is around it.
    assert_eq!(run.estimate.about.as_secs(), 1027);
    assert_eq!(run.estimate.needs, Bytes(100 * GIB));
    assert_eq!(run.estimate.measured_runs, 3);
    assert_eq!(plan.due(at("2026-11-21T02:00Z")).count(), 1);
    assert_eq!(plan.due(at("2026-11-21T01:59Z")).count(), 0);
}

const WITH_COPY: [Engine; 3] = [Engine::XfsFsr, Engine::Online, Engine::BlockCopy];

/// An image of a VM of libvirt, on an XFS without reflink, and that engine enabled.
fn for_a_copy(facts: &mut PlanFacts, policy: &mut Defrag) {
    facts.images[0].user = of(Some(Manager::Libvirt));
    facts.filesystems[0].info.features = Some(Features::default());
    policy.engines = WITH_COPY.to_vec();
}

#[test]
fn libvirt_copies_where_online_cannot_work() {
    says(for_a_copy, " blockcopy 02:00");
    says(
        |facts, policy| {
            for_a_copy(facts, policy);
            facts.filesystems[0].info.features = None;
            facts.filesystems[0].info.kind = FilesystemKind::Other;
            facts.filesystems[0].info.type_name = "ext4".to_owned();
        },
        " blockcopy 02:00",
    );
    let kernel = || unusable(Engine::Online, UnusableReason::KernelUnknown, "kernel 5.14");
    says(
        |facts, policy| {
            facts.images[0].user = of(Some(Manager::Libvirt));
            facts.engines = vec![kernel()];
            policy.engines = WITH_COPY.to_vec();
        },
        " blockcopy 02:00",
    );
    // Where online works, it comes first, as configured.
    says(
        |facts, policy| {
            facts.images[0].user = of(Some(Manager::Libvirt));
            policy.engines = WITH_COPY.to_vec();
        },
        " online 02:00",
    );
    let mut planned = facts(vec![image("a")]);
    let mut policy = Defrag::default();
    for_a_copy(&mut planned, &mut policy);
    let copy = plan(&planned, &policy);
    let Decision::Runs(run) = copy.images[0].decision else {
        panic!("{copy:?}");
    };
    // 100 GiB at 50 MiB/s.
    assert_eq!(run.estimate.about.as_secs(), 2050);
    assert_eq!(run.estimate.needs, Bytes(100 * GIB));
    assert_eq!(
        (run.estimate.measured_runs, copy.images[0].by_hand.as_ref()),
        (0, None)
    );
    planned.filesystems[0].speeds.blockcopy = Some(Speed {
        median: BytesPerSecond(20 << 20),
        runs: 2,
    });
    let slow = plan(&planned, &policy);
    let Decision::Runs(run) = slow.images[0].decision else {
        panic!("{slow:?}");
    };
    assert_eq!(
        (run.estimate.about.as_secs(), run.estimate.measured_runs),
        (5122, 2)
    );
    let passed: Vec<_> = passed_over(&planned, &policy)
        .into_iter()
        .map(|(engine, why)| (engine, why.code))
        .collect();
    let in_use = ReasonCode::InUse;
    assert_eq!(passed, [(Engine::XfsFsr, in_use), (Engine::Online, in_use)]);
}

#[test]
fn why_libvirt_does_not_copy() {
    let full = "not enough free space (needs 100 GiB, has 90.0 GiB, keeps 50.0 GiB)";
    says(
        |facts, policy| {
            for_a_copy(facts, policy);
            facts.filesystems[0].info.free = Bytes(90 * GIB);
        },
        &format!(
            ": in use by VM db-1 (pid 4711), and not online: the file system has no reflink, and \
             not blockcopy: {full}"
        ),
    );
    // The end of the window would give up a copy.
    says(
        |facts, policy| {
            for_a_copy(facts, policy);
            let Allowed::During(opening) = &mut facts.allowed else {
                unreachable!();
            };
            opening.closes = at("2026-11-21T02:35Z");
        },
        ": would not finish before the window closes at 02:35 (about 34 min at 50.0 MiB/s, assumed, \
         nothing measured on this file system yet)",
    );
    let no_virsh = || unusable(Engine::BlockCopy, UnusableReason::NoVirsh, "no virsh");
    let why = |change: &dyn Fn(&mut PlanFacts, &mut Defrag)| {
        let mut facts = facts(vec![image("a")]);
        let mut policy = Defrag::default();
        for_a_copy(&mut facts, &mut policy);
        change(&mut facts, &mut policy);
        match plan(&facts, &policy).images.remove(0).decision {
            Decision::Not(reason) => {
                let its = reason.blockcopy.map(|why| why.code);
                (reason.code, its, reason.text)
            }
            Decision::Runs(run) => panic!("{run:?}"),
        }
    };
    let (code, its, _) = why(&|facts, _| facts.engines = vec![no_virsh()]);
    assert_eq!((code, its), (ReasonCode::InUse, Some(ReasonCode::NoVirsh)));
    for manager in [None, Some(Manager::Proxmox { vmid: 100 })] {
        let (code, its, text) = why(&|facts, _| facts.images[0].user = of(manager));
        assert_eq!(
            (code, its),
            (ReasonCode::InUse, Some(ReasonCode::NotLibvirt))
        );
        assert!(!text.contains("blockcopy"), "{text}");
    }
    // Nobody has it open.
    let (code, ..) = why(&|facts, policy| {
        facts.images[0].user = None;
        facts.images[0].shares_blocks = true;
        policy.engines.remove(0);
    });
    assert_eq!(code, ReasonCode::NoReflink);
    // What could be enabled.
    let (_, its, text) = why(&|_, policy| policy.engines.truncate(2));
    assert_eq!(its, None);
    assert!(
        text.ends_with("no reflink; libvirt could copy it: see [defrag.blockcopy]"),
        "{text}"
    );
    // Other file systems.
    let (code, ..) = why(&|facts, _| {
        facts.filesystems[0].info.kind = FilesystemKind::Other;
        facts.filesystems[0].info.type_name = "btrfs".to_owned();
    });
    assert_eq!(code, ReasonCode::NotXfs);
}

#[test]
fn operators_get_the_command_for_other_vms() {
    let by_hand = |manager, node: Option<&str>| {
        let mut facts = facts(vec![image("a")]);
        facts.images[0].user = Some(User::Vm {
            name: None,
            pid: 7,
            manager,
            node: node.map(str::to_owned),
        });
        facts.filesystems[0].info.features = None;
        let planned = plan(&facts, &Defrag::default()).images.remove(0);
        planned.by_hand.map(|it| it.commands)
    };
    let proxmox = Some(Manager::Proxmox { vmid: 100 });
    assert_eq!(
        by_hand(proxmox, Some("drive-scsi0")).unwrap(),
        ["qm move-disk 100 scsi0 STORAGE --bwlimit KIBPS --delete 1"]
    );
    let plugged_in_later = by_hand(proxmox, None).unwrap();
    assert!(plugged_in_later[0].starts_with("qm move-disk 100 DISK STORAGE"));
    assert_eq!(by_hand(Some(Manager::Libvirt), None), None);
    let commands = by_hand(None, Some("disk")).unwrap();
    let parsed = |command: &str| {
        let command = command.replace("BYTES_PER_SECOND", "1");
        serde_json::from_str::<serde_json::Value>(&command).unwrap()
    };
    let [add, mirror, complete] = [1, 2, 4].map(|index| parsed(&commands[index]));
    assert_eq!(commands[0], "qemu-img create -f FORMAT '/srv/a.new' SIZE");
    assert_eq!(add["arguments"]["file"]["filename"], "/srv/a.new");
    assert_eq!(mirror["arguments"]["target"], add["arguments"]["node-name"]);
    assert_eq!(mirror["arguments"]["device"], "disk");
    assert_eq!(mirror["arguments"]["copy-mode"], "write-blocking");
    assert_eq!(complete["arguments"]["id"], mirror["arguments"]["job-id"]);
    assert_eq!(commands[5], "mv -T '/srv/a.new' '/srv/a'");
}

fn unusable(engine: Engine, reason: UnusableReason, brief: &str) -> EngineState {
    let unusable = Some(Unusable {
        reason,
        brief: brief.to_owned(),
        text: format!("{brief}, and so on"),
    });
    EngineState { engine, unusable }
}

#[test]
fn an_engine_that_the_kernel_rules_out_is_not_planned() {
    let kernel = || {
        let bad = UnusableReason::KernelKnownBad;
        let brief = "kernel 6.1.0-47-amd64 lacks the repair of CVE-2026-64600";
        unusable(Engine::Online, bad, brief)
    };
    // An idle image is left to the other one.
    says(|facts, _| facts.engines = vec![kernel()], " xfs_fsr 02:00");
    says(
        |facts, _| {
            facts.engines = vec![kernel()];
            facts.images[0].user = vm();
        },
        ": in use by VM db-1 (pid 4711), and not online: kernel 6.1.0-47-amd64 lacks the repair of \
         CVE-2026-64600",
    );
    let mut facts = facts(vec![image("a")]);
    facts.engines = vec![
        unusable(
            Engine::XfsFsr,
            UnusableReason::NoXfsFsr,
            "xfs_fsr is not installed",
        ),
        kernel(),
    ];
    let code = |engines: &[Engine]| {
        let policy = Defrag {
            engines: engines.to_vec(),
            ..Defrag::default()
        };
        match &plan(&facts, &policy).images[0].decision {
            Decision::Not(reason) => (reason.code.as_str(), reason.code.lies_with_engine()),
            Decision::Runs(run) => panic!("{run:?}"),
        }
    };
    assert_eq!(code(&[Engine::Online]), ("kernel", true));
    assert_eq!(code(&[Engine::XfsFsr]), ("no_xfs_fsr", true));
    assert_eq!(code(&Engine::ALL), ("no_xfs_fsr", true));
}

#[test]
fn what_lies_with_the_image() {
    says(
        |facts, _| facts.images[0].severity = Severity::Ok,
        ": severity ok, below warning",
    );
    says(
        |facts, _| {
            facts.images[0].extents = ExtentCount(25_999);
            facts.images[0].ideal = ExtentCount(25_000);
        },
        ": already near its ideal (25,999 extents, 25,000 at best)",
    );
    says(
        |facts, _| facts.images[0].obstacles = vec![ReasonCode::SwapFile, ReasonCode::Immutable],
        ": is immutable (chattr +i)",
    );
    let last_run = |ended: &'static str, effect, times| {
        move |facts: &mut PlanFacts, _: &mut Defrag| {
            facts.images[0].last_run = Some(LastRun {
                ended: at(ended),
                effect,
                times,
                reason: "in use by tail (pid 7)".to_owned(),
            });
        }
    };
    says(
        last_run("2026-11-20T03:12Z", Effect::Improved, 1),
        ": cooling down until Fri 2026-11-27 03:12",
    );
    says(
        last_run("2026-11-07T03:12Z", Effect::InVain, 2),
        ": cooling down until Sat 2026-12-05 03:12 (the last 2 runs brought nothing)",
    );
    // Not for days: whoever had it may have gone.
    let put_off = |times| last_run("2026-11-21T01:45Z", Effect::PutOff, times);
    says(put_off(1), " xfs_fsr 02:00");
    says(put_off(2), ": put off until 02:05: in use by tail (pid 7)");
}

/// A map of 500,000 extents with a share of each kind, the rest can be joined.
fn outlook(holes: u64, shared: u64, unwritten: u64) -> Option<Outlook> {
    let borders = Borders {
        joins: 500_000 - holes - shared - unwritten,
        holes,
        shared,
        unwritten,
        long: 0,
    };
    Some(Outlook::of_map(&borders))
}

#[test]
fn what_holes_sharing_and_unwritten_parts_leave() {
    let with = |seen: Option<Outlook>, used: bool| {
        move |facts: &mut PlanFacts, _: &mut Defrag| {
            facts.images[0].outlook = seen;
            facts.images[0].user = vm().filter(|_| used);
        }
    };
    says(with(outlook(450_000, 0, 0), false), " xfs_fsr 02:00");
    says(
        with(outlook(460_000, 0, 0), true),
        ": little to gain: at most 40,000 of 500,000 extents can go; 460,000 lie behind holes, \
         which no engine fills: a copy made with an extent-size hint has fewer (VM off: qemu-img \
         convert -S 1M; running: virsh blockcopy)",
    );
    // What is unwritten xfs_fsr can join, if it may have the image.
    says(with(outlook(0, 0, 460_000), false), " xfs_fsr 02:00");
    says(
        with(outlook(0, 0, 460_000), true),
        ": in use by VM db-1 (pid 4711), and not online: little to gain: at most 40,000 of 500,000 \
         extents can go; 460,000 border on unwritten parts: xfs_fsr joins these while nobody has \
         the image open",
    );
    let only_online = |seen: Option<Outlook>| {
        move |facts: &mut PlanFacts, policy: &mut Defrag| {
            facts.images[0].outlook = seen;
            policy.engines = vec![Engine::Online];
        }
    };
    says(
        only_online(outlook(0, 460_000, 0)),
        ": little to gain: at most 40,000 of 500,000 extents can go; 460,000 belong to a snapshot \
         or reflink copy as well: fewer can be gained until that is deleted",
    );
    // What is not certain is no reason.
    let came = outlook(460_000, 0, 0).map(|seen| seen.with(ExtentCount(600_000)));
    says(with(came, true), " online 02:00");
    let came = came.unwrap();
    assert_eq!(came.borders.joins.likely, ExtentCount(48_000));
    assert_eq!(came.borders.joins.high, ExtentCount(140_000));
}

#[test]
fn what_lies_with_the_host() {
    says(|facts, _| facts.incident = true, ": rescue incident active");
    says(
        |facts, _| facts.paused = true,
        ": defragmentation paused (fragwatch resume)",
    );
    says(
        |facts, _| facts.allowed = Allowed::Never,
        ": no window configured ([[maintenance.window]])",
    );
    says(
        |facts, _| facts.allowed = Allowed::NotInSight,
        ": no window opens within a year: blackouts",
    );
    says(
        |facts, _| pressed(facts, Some(63.4)),
        ": I/O pressure too high (63% of the time some task waits, limit 40%)",
    );
    // By the time the next window opens it may be over.
    says(
        |facts, _| {
            facts.now = at("2026-11-20T22:00Z");
            pressed(facts, Some(63.4));
        },
        " xfs_fsr 01:00",
    );
    says(|facts, _| pressed(facts, None), " xfs_fsr 02:00");
    says(
        |_, policy| policy.engines.clear(),
        ": no engine configured (engines in [defrag])",
    );
}

#[test]
fn what_lies_with_the_file_system() {
    says(
        |facts, _| facts.filesystems[0].stalled = true,
        ": file-system worker stalled",
    );
    says(
        |facts, _| facts.filesystems[0].info.free = Bytes(49 * GIB),
        ": the file system is 96% full; above 95% a run would fragment what is left",
    );
    says(
        |facts, _| {
            facts.filesystems[0].info.kind = FilesystemKind::Other;
            facts.filesystems[0].info.type_name = "ext4".to_owned();
        },
        ": on ext4; only XFS is defragmented",
    );
    says(
        |facts, _| facts.filesystems.clear(),
        ": nothing is known of its file system yet",
    );
    says(
        |facts, _| {
            facts.filesystems[0].active = Some(Active {
                path: PathBuf::from("/srv/a"),
                ends: facts.now,
            });
        },
        ": is being defragmented now",
    );
    // It should have ended, but has not.
    says(
        |facts, _| {
            facts.filesystems[0].active = Some(Active {
                path: PathBuf::from("/srv/other"),
                ends: at("2026-11-21T01:00Z"),
            });
        },
        " xfs_fsr 02:01",
    );
}

#[test]
fn the_first_engine_that_can() {
    let only_fsr = |policy: &mut Defrag| policy.engines = vec![Engine::XfsFsr];
    says(|facts, _| facts.images[0].user = vm(), " online 02:00");
    says(
        |facts, policy| {
            facts.images[0].user = vm();
            only_fsr(policy);
        },
        ": in use by VM db-1 (pid 4711)",
    );
    says(
        |facts, _| {
            facts.images[0].user = vm();
            facts.filesystems[0].info.features = None;
        },
        ": in use by VM db-1 (pid 4711), and not online: the file system has no reflink",
    );
    says(
        |facts, _| facts.images[0].shares_blocks = true,
        " online 02:00",
    );
    says(
        |facts, policy| {
            facts.images[0].shares_blocks = true;
            only_fsr(policy);
        },
        ": shares blocks with a reflink copy",
    );
    says(
        |facts, _| facts.filesystems[0].info.free = Bytes(149 * GIB),
        " online 02:00",
    );
    says(
        |facts, policy| {
            facts.filesystems[0].info.free = Bytes(149 * GIB);
            only_fsr(policy);
        },
        ": not enough free space (needs 100 GiB, has 149 GiB, keeps 50.0 GiB)",
    );
    let rmapbt = |facts: &mut PlanFacts| {
        facts.filesystems[0].info.features = Some(Features {
            rmapbt: true,
            reflink: true,
            ..Features::default()
        });
        facts.images[0].extents = ExtentCount(198_000);
    };
    says(|facts, _| rmapbt(facts), " online 02:00");
    says(
        |facts, policy| {
            rmapbt(facts);
            only_fsr(policy);
        },
        ": the final swap would stall readers for about 9 s (max_swap_stall is 2 s)",
    );
    // An operator may prefer the other.
    says(
        |_, policy| policy.engines = vec![Engine::Online, Engine::XfsFsr],
        " online 02:00",
    );
    says(
        |facts, policy| {
            policy.engines = vec![Engine::Online];
            facts.images[0].obstacles = vec![ReasonCode::Dax];
        },
        ": is mapped from persistent memory (DAX)",
    );
    says(
        |facts, _| facts.images[0].obstacles = vec![ReasonCode::Dax],
        " xfs_fsr 02:00",
    );
}

#[test]
fn what_lies_with_the_time() {
    let huge = |facts: &mut PlanFacts| {
        facts.images[0].allocated = Bytes(2000 * GIB);
        facts.filesystems[0].info.size = Bytes(5000 * GIB);
        facts.filesystems[0].info.free = Bytes(4000 * GIB);
    };
    // What it has not done tonight, online does next time.
    says(|facts, _| huge(facts), " online 02:00");
    let only_fsr = |policy: &mut Defrag| policy.engines = vec![Engine::XfsFsr];
    says(
        |facts, policy| {
            huge(facts);
            only_fsr(policy);
        },
        ": would not finish before the window closes at 05:00 (about 5 h 41 min at 100 MiB/s, \
         measured on this file system)",
    );
    says(
        |facts, policy| {
            huge(facts);
            only_fsr(policy);
            facts.filesystems[0].speeds = Speeds::default();
            policy.bandwidth = BytesPerSecond(50 << 20);
        },
        ": would not finish before the window closes at 05:00 (about 22 h 45 min at 25.0 MiB/s, \
         assumed, nothing measured on this file system yet)",
    );
    says(
        |facts, policy| {
            huge(facts);
            only_fsr(policy);
            facts.allowed = Allowed::Always;
        },
        " xfs_fsr 02:00",
    );
}

#[test]
fn a_full_window_lets_smaller_ones_pass() {
    let mut big = image("big");
    big.allocated = Bytes(350 * GIB);
    big.extents = ExtentCount(4_000_000);
    let mut second = big.clone();
    second.path = PathBuf::from("/srv/second");
    second.extents = ExtentCount(3_000_000);
    let mut facts = facts(vec![image("small"), second, big]);
    facts.now = at("2026-11-21T03:20Z");
    facts.images[0].extents = ExtentCount(1000);
    let policy = Defrag {
        engines: vec![Engine::XfsFsr],
        max_swap_stall: TEN_MINUTES,
        ..Defrag::default()
    };
    facts.filesystems[0].info.free = Bytes(500 * GIB);
    assert_eq!(
        decisions(&facts, &policy),
        [
            "/srv/big xfs_fsr 03:20",
            "/srv/small xfs_fsr 04:19",
            "/srv/second: the window closes at 05:00 before its turn (1 image before it)",
        ]
    );
}

#[test]
fn severity_then_what_it_brings_for_what_it_costs() {
    let named = |name: &str, severity, extents, gib, growth| ImageFacts {
        severity,
        extents: ExtentCount(extents),
        allocated: Bytes(gib * GIB),
        growth: Some(ExtentsPerDay(growth)),
        ..image(name)
    };
    let images = vec![
        named("big", Severity::Warning, 900_000, 10, 0.0),
        named("grows", Severity::Warning, 500_000, 5, 50_000.0),
        named("small", Severity::Warning, 500_000, 5, f64::NAN),
        named("worst", Severity::Critical, 400_000, 20, -1e9),
    ];
    let mut facts = facts(images);
    let names = |facts: &PlanFacts| -> Vec<String> {
        let plan = plan(facts, &Defrag::default());
        let name = |planned: &Planned| planned.path.file_name().unwrap().to_string_lossy().into();
        plan.images.iter().map(name).collect()
    };
    assert_eq!(names(&facts), ["worst", "grows", "small", "big"]);
    // It was about memory.
    facts.recent_incident = true;
    assert_eq!(names(&facts), ["worst", "big", "grows", "small"]);
}

#[test]
fn several_file_systems_share_the_room() {
    let on = |name: &str, filesystem: &str, extents| ImageFacts {
        filesystem: filesystem.to_owned(),
        extents: ExtentCount(extents),
        ..image(name)
    };
    let images = vec![
        on("a1", "a", 900_000),
        on("a2", "a", 800_000),
        on("b", "b", 500_000),
    ];
    let mut facts = facts(images);
    let mut policy = Defrag::default();
    // The second place is not kept for an image that must wait anyway.
    let expected = [
        "/srv/a1 xfs_fsr 02:00",
        "/srv/a2 xfs_fsr 02:17",
        "/srv/b xfs_fsr 02:00",
    ];
    assert_eq!(decisions(&facts, &policy), expected);
    policy.parallel = 1;
    let expected = [
        "/srv/a1 xfs_fsr 02:00",
        "/srv/a2 xfs_fsr 02:17",
        "/srv/b xfs_fsr 02:34",
    ];
    assert_eq!(decisions(&facts, &policy), expected);
    // A run that is under way counts.
    facts.filesystems[1].active = Some(Active {
        path: PathBuf::from("/elsewhere"),
        ends: at("2026-11-21T02:30Z"),
    });
    facts.images.truncate(1);
    assert_eq!(decisions(&facts, &policy), ["/srv/a1 xfs_fsr 02:30"]);
}

fn rsync() -> User {
    let name = "rsync".to_owned();
    User::Process { name, pid: 7 }
}

fn any_image() -> impl Strategy<Value = ImageFacts> {
    let severity = prop::sample::select(vec![Severity::Ok, Severity::Warning, Severity::Critical]);
    let numbers = (0..3_000_000_u64, 0..1000_u64, 0..600_u64, -1e5..1e5_f64);
    let user = prop_oneof![3 => Just(None), 1 => Just(vm()), 2 => Just(of(Some(Manager::Libvirt))), 1 => Just(Some(rsync()))];
    let obstacles = prop_oneof![
        8 => Just(Vec::new()),
        1 => Just(vec![ReasonCode::Dax]),
        1 => Just(vec![ReasonCode::Immutable]),
    ];
    let effects = [
        (Effect::Improved, 1),
        (Effect::Interrupted, 1),
        (Effect::InVain, 1),
        (Effect::PutOff, 3),
    ];
    let effect = prop::sample::select(effects.to_vec());
    let last = prop::option::weighted(0.3, (0..30 * 86_400_i64, effect));
    let place = (0..12_u32, prop::sample::select(vec!["a", "b", "c", "gone"]));
    (
        place,
        severity,
        numbers,
        user,
        any::<bool>(),
        obstacles,
        last,
    )
        .prop_map(
            |(
                (name, filesystem),
                severity,
                (extents, ideal, gib, growth),
                user,
                shares,
                obstacles,
                last,
            )| {
                ImageFacts {
                    path: PathBuf::from(format!("/{filesystem}/{name}")),
                    filesystem: filesystem.to_owned(),
                    severity,
                    extents: ExtentCount(extents),
                    ideal: ExtentCount(ideal),
                    growth: Some(ExtentsPerDay(growth)),
                    allocated: Bytes(gib * GIB),
                    user,
                    shares_blocks: shares && gib % 3 == 0,
                    obstacles,
                    last_run: last.map(|(ago, (effect, times))| LastRun {
                        ended: at("2026-11-21T02:00Z") - jiff::SignedDuration::from_secs(ago),
                        effect,
                        times,
                        reason: "in use".to_owned(),
                    }),
                    ..image("x")
                }
            },
        )
}

fn any_filesystem(id: &'static str) -> impl Strategy<Value = FilesystemFacts> {
    let features = (any::<bool>(), any::<bool>()).prop_map(|(reflink, rmapbt)| Features {
        reflink,
        rmapbt,
        ..Features::default()
    });
    let ends = prop::option::weighted(0.2, -3600..3600_i64);
    let speed = prop::option::of((1..500_u64, 1..9_u32));
    (
        features,
        0..=1000_u64,
        prop::bool::weighted(0.1),
        ends,
        speed,
        0.0..50.0_f64,
    )
        .prop_map(
            move |(features, free, stalled, ends, speed, pressure)| FilesystemFacts {
                io_pressure: Some(pressure),
                info: Filesystem {
                    features: Some(features),
                    free: Bytes(free * GIB),
                    ..filesystem(id).info
                },
                stalled,
                active: ends.map(|ends| Active {
                    path: PathBuf::from(format!("/{id}/0")),
                    ends: at("2026-11-21T02:00Z") + jiff::SignedDuration::from_secs(ends),
                }),
                speeds: Speeds {
                    xfs_fsr: speed.map(|(mib, runs)| Speed {
                        median: BytesPerSecond(mib << 20),
                        runs,
                    }),
                    ..Speeds::default()
                },
                ..filesystem(id)
            },
        )
}

fn any_facts() -> impl Strategy<Value = PlanFacts> {
    let images = prop::collection::vec(any_image(), 0..30).prop_map(|mut images| {
        images.sort_by(|a: &ImageFacts, b: &ImageFacts| a.path.cmp(&b.path));
        images.dedup_by(|a, b| a.path == b.path);
        images
    });
    let filesystems = (
        any_filesystem("a"),
        any_filesystem("b"),
        any_filesystem("c"),
    );
    let window = (-7200..7200_i64, 1..20_000_i64).prop_map(|(opens, length)| {
        let opens = at("2026-11-21T02:00Z") + jiff::SignedDuration::from_secs(opens);
        let closes = opens + jiff::SignedDuration::from_secs(length);
        let closes = closes.max(at("2026-11-21T02:00:01Z"));
        Allowed::During(Opening { opens, closes })
    });
    let allowed = prop_oneof![8 => window, 1 => Just(Allowed::Never), 1 => Just(Allowed::Always)];
    let switch = || prop::bool::weighted(0.05);
    (
        images,
        filesystems,
        allowed,
        switch(),
        switch(),
        any::<bool>(),
    )
        .prop_map(
            |(images, (a, b, c), allowed, incident, paused, recent_incident)| PlanFacts {
                allowed,
                incident,
                paused,
                recent_incident,
                filesystems: vec![a, b, c],
                ..facts(images)
            },
        )
}

fn any_policy() -> impl Strategy<Value = Defrag> {
    use Engine::{BlockCopy, Online, XfsFsr};
    let engines = vec![
        vec![XfsFsr, Online, BlockCopy],
        vec![BlockCopy],
        vec![XfsFsr, Online],
        vec![Online, XfsFsr],
        vec![XfsFsr],
        vec![Online],
    ];
    let from = prop::sample::select(vec![Severity::Ok, Severity::Warning, Severity::Critical]);
    (prop::sample::select(engines), from, 0..30_u32, 1..4_u32).prop_map(
        |(engines, from, keep, parallel)| Defrag {
            engines,
            from,
            keep_free: Share::percent(keep),
            parallel,
            ..Defrag::default()
        },
    )
}

/// The runs of a plan with what they are about.
fn runs<'f>(
    plan: &Plan,
    facts: &'f PlanFacts,
) -> Vec<(&'f ImageFacts, Option<&'f FilesystemFacts>, PlannedRun)> {
    let run = |planned: &Planned| {
        let Decision::Runs(run) = planned.decision else {
            return None;
        };
        let image = facts
            .images
            .iter()
            .find(|image| image.path == planned.path)?;
        let filesystem = facts
            .filesystems
            .iter()
            .find(|it| it.id == image.filesystem);
        Some((image, filesystem, run))
    };
    plan.images.iter().filter_map(run).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_image_gets_its_decision(facts in any_facts(), policy in any_policy(), turn in 0..30_usize) {
        let plan = plan(&facts, &policy);
        let mut paths: Vec<_> = plan.images.iter().map(|planned| planned.path.clone()).collect();
        paths.sort();
        let expected: Vec<_> = facts.images.iter().map(|image| image.path.clone()).collect();
        prop_assert_eq!(paths, expected);
        for planned in &plan.images {
            if let Decision::Not(reason) = &planned.decision {
                prop_assert!(!reason.to_string().is_empty());
            }
        }
        // In whatever order they are told.
        let mut turned = facts.clone();
        let turn = turn.min(facts.images.len());
        turned.images.rotate_left(turn);
        turned.filesystems.reverse();
        prop_assert_eq!(super::plan(&turned, &policy), plan);
    }

    #[test]
    fn nothing_runs_that_must_not(facts in any_facts(), policy in any_policy()) {
        for (image, filesystem, run) in runs(&plan(&facts, &policy), &facts) {
            let filesystem = filesystem.expect("of an unknown file system");
            let keeps = policy.keep_free.of_bytes(filesystem.info.size);
            prop_assert!(run.estimate.needs.saturating_add(keeps) <= filesystem.info.free);
            prop_assert!(filesystem.info.free.0 * 20 >= filesystem.info.size.0);
            prop_assert!(!facts.incident && !facts.paused && !filesystem.stalled);
            prop_assert!(image.severity >= policy.from && image.extents > image.ideal);
            prop_assert!(policy.engines.contains(&run.engine));
            match run.engine {
                Engine::XfsFsr => {
                    prop_assert!(image.user.is_none() && !image.shares_blocks);
                    prop_assert!(run.estimate.stall <= policy.max_swap_stall);
                }
                Engine::Online => prop_assert!(filesystem.info.features.unwrap().reflink),
                Engine::BlockCopy => {
                    prop_assert!(image.user.as_ref().unwrap().is_of_libvirt());
                    if let Allowed::During(opening) = facts.allowed {
                        prop_assert!(run.begins + run.estimate.about <= opening.closes);
                    }
                }
            }
            if let Some(last) = &image.last_run {
                prop_assert!(last.cools_until(policy.cooldown) <= run.begins);
            }
            if run.begins == facts.now {
                prop_assert!(filesystem.io_pressure.unwrap() <= policy.max_io_pressure.into());
            }
        }
    }

    #[test]
    fn runs_lie_in_the_window(facts in any_facts(), policy in any_policy()) {
        for (_, _, run) in runs(&plan(&facts, &policy), &facts) {
            prop_assert!(run.begins >= facts.now && run.begins <= run.ends);
            match facts.allowed {
                Allowed::During(opening) => {
                    prop_assert!(opening.is_open(run.begins) && run.ends <= opening.closes);
                    if run.engine == Engine::XfsFsr {
                        prop_assert!(run.begins + run.estimate.about <= opening.closes);
                    }
                }
                Allowed::Always => {}
                Allowed::Never | Allowed::NotInSight => prop_assert!(false, "nothing may run"),
            }
        }
    }

    #[test]
    fn no_two_at_once_where_one_is_allowed(facts in any_facts(), policy in any_policy()) {
        let plan = plan(&facts, &policy);
        let runs = runs(&plan, &facts);
        let active: Vec<_> = facts.filesystems.iter().filter_map(|it| it.active.as_ref()).collect();
        for (n, (image, filesystem, run)) in runs.iter().enumerate() {
            if let Some(active) = filesystem.and_then(|it| it.active.as_ref()) {
                prop_assert!(run.begins >= active.ends && run.begins > facts.now);
            }
            for (other, _, earlier) in &runs[..n] {
                if other.filesystem == image.filesystem {
                    prop_assert!(earlier.ends <= run.begins);
                    // On a file system, worse ones begin first.
                    prop_assert!(other.severity >= image.severity);
                }
            }
            let is_then = |run: &PlannedRun, then| run.begins <= then && then < run.ends;
            let others = runs.iter().filter(|(_, _, other)| is_then(other, run.begins)).count();
            let still = active.iter().filter(|active| active.ends > run.begins).count();
            prop_assert!(others + still <= policy.parallel as usize || run.begins == run.ends);
        }
    }
}
