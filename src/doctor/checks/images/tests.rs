use std::fs;
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::config::settings::Window;
use crate::doctor::outcome::NotChecked;
use crate::doctor::tests::Tree;
use crate::model::{Bytes, Engine, Severity};
use crate::serve::status::{EngineState, Row, Status};
use crate::sys::zone::Zone;

fn with(tree: &mut Tree, change: impl FnOnce(&mut Status)) {
    let mut status = Status::default();
    status.rescue.armed = true;
    change(&mut status);
    tree.own.daemon = Ok(Some(Box::new(status)));
}

#[test]
fn images_that_will_shatter() {
    let mut tree = Tree::healthy();
    with(&mut tree, |status| status.images.unprotected_by.holes = 3);
    let what = "3 images with holes and without a hint of 512 KiB or more can gain an extent with nearly every new block.";
    assert_eq!(tree.only(303).what, what);
    with(&mut tree, |status| status.images.unprotected_by.growth = 1);
    let what = "1 qcow2 image can gain an extent with each small cluster.";
    assert_eq!(tree.only(304).what, what);
    tree.own.daemon = Err(NotChecked::because("no permission".to_owned()));
    assert_eq!(
        [tree.unchecked(303), tree.unchecked(304)],
        ["no permission"; 2]
    );
    tree.own.daemon = Ok(None);
    let why = "no daemon answers that has judged the images";
    assert_eq!([tree.unchecked(303), tree.unchecked(304)], [why; 2]);
}

#[test]
fn a_qcow2_that_gives_clusters_up() {
    let tree = Tree::healthy();
    tree.vm(4711, "db-1");
    let line = |more: &str| {
        let drive = format!("file=/srv/vm/db-1.raw,format=qcow2,discard=unmap{more}");
        tree.put(
            "proc/4711/cmdline",
            &format!("qemu\0-name\0db-1\0-drive\0{drive}\0"),
        );
    };
    line(",discard-no-unref=on");
    assert_eq!(tree.diagnosis().findings, []);
    line("");
    let finding = tree.only(305);
    let what = "1 qcow2 image is discarded without discard-no-unref: /srv/vm/db-1.raw by the VM db-1 (PID 4711).";
    assert_eq!(
        (finding.what.as_str(), &*finding.read[0]),
        (what, "/proc/4711/cmdline")
    );
    for pid in 4712..4717 {
        tree.vm(pid, "b");
        let line = "qemu\0-name\0b\0-drive\0file=/srv/vm/b.raw,format=qcow2,discard=unmap\0";
        tree.put(&format!("proc/{pid}/cmdline"), line);
    }
    let finding = tree.only(305);
    assert!(finding.what.starts_with("6 qcow2 images are discarded "));
    assert_eq!(
        (finding.what.matches("PID").count(), finding.read.len()),
        (5, 5)
    );
    assert!(finding.what.ends_with(", 1 more."), "{}", finding.what);
    fs::remove_file(tree.path("proc/self/mountinfo")).unwrap();
    assert_eq!(
        tree.unchecked(305),
        "/proc: No such file or directory (os error 2)"
    );
}

fn window(hours: u64) -> Window {
    Window {
        days: vec![jiff::civil::Weekday::Saturday],
        start: jiff::civil::time(1, 0, 0, 0),
        duration: Duration::from_secs(hours * 3600),
    }
}

#[test]
fn windows_that_are_too_short_for_what_waits() {
    let mut tree = Tree::healthy();
    tree.own.settings.maintenance.windows = vec![window(1), window(4)];
    let usable = |usable| EngineState {
        engine: Engine::Online,
        usable,
        reason: None,
        text: None,
    };
    let row = |severity| Row {
        path: "/srv/vm/db-1.raw".to_owned(),
        // 4 h 51 min at 100 MiB/s.
        size: Bytes(9_000_000 << 20),
        allocated: Bytes(1_747_626 << 20),
        severity,
        ..Row::default()
    };
    for (engine, severity) in [
        (usable(true), Severity::Warning),
        (usable(false), Severity::Ok),
    ] {
        with(&mut tree, |status| {
            status.engines = vec![engine];
            status.worst = vec![row(severity)];
        });
        assert_eq!(tree.diagnosis().findings, []);
    }
    with(&mut tree, |status| {
        status.engines = vec![usable(false)];
        status.worst = vec![row(Severity::Warning)];
    });
    assert_eq!(
        tree.only(407).what,
        "The longest window has 4 h, and a copy of /srv/vm/db-1.raw (1.6 TiB) takes 4 h 51 min at 100 MiB/s."
    );
    tree.own.settings.maintenance.windows = vec![window(5)];
    assert_eq!(tree.diagnosis().findings, []);
    tree.own.settings.maintenance.jitter = Duration::from_secs(3600);
    assert_eq!(tree.of(407).len(), 1);
    tree.own.settings.defrag.engines = vec![Engine::Online];
    assert_eq!(tree.diagnosis().findings, []);
    tree.own.daemon = Err(NotChecked::because("no permission".to_owned()));
    assert_eq!(tree.unchecked(407), "no permission");
}

#[test]
fn windows_by_an_uncertain_clock() {
    let mut tree = Tree::healthy();
    tree.own.clock_is_set = Some(false);
    fs::remove_file(tree.path("etc/localtime")).unwrap();
    assert_eq!(tree.diagnosis().findings, [], "there are no windows");
    tree.own.settings.maintenance.timezone = Zone::of_host(TimeZone::UTC);
    tree.own.settings.maintenance.windows = vec![window(4)];
    let found = tree.of(408);
    let found: Vec<_> = found
        .iter()
        .map(|it| (it.severity, it.what.as_str()))
        .collect();
    let expected = [
        (
            Severity::Warning,
            "The kernel's clock is marked as not synchronised.",
        ),
        (
            Severity::Ok,
            "The windows are in the local time, and this host has no time zone: they open by UTC.",
        ),
    ];
    assert_eq!(found, expected);
    tree.block("etc/localtime");
    assert_eq!(tree.of(408)[0].severity, Severity::Warning);
    tree.own.clock_is_set = Some(true);
    assert_eq!(
        tree.unchecked(408),
        "/etc/localtime: Is a directory (os error 21)"
    );
    tree.own.clock_is_set = None;
    let why = "adjtimex(2) is refused; run `fragwatch doctor` as root";
    assert_eq!(tree.unchecked(408), why);
    // A link to nothing whose name is known.
    fs::remove_dir(tree.path("etc/localtime")).unwrap();
    tree.own.clock_is_set = Some(true);
    assert_eq!(tree.only(408).severity, Severity::Ok);
    let berlin = TimeZone::posix("CET-1").unwrap();
    tree.own.settings.maintenance.timezone = Zone::of_host(berlin);
    assert_eq!(tree.diagnosis().findings, []);
}
