use std::fs;

use crate::doctor::outcome::NotChecked;
use crate::doctor::tests::Tree;
use crate::doctor::xfs::{Project, Xfs};
use crate::model::{Bytes, Engine, ExtentCount, Severity};
use crate::serve::status::{Row, Status};

const GIB: u64 = 1 << 30;

/// Each finding of the geometry: what makes it, its sentence and severity.
#[test]
fn the_geometry_of_an_xfs_with_images() {
    type Change = fn(&mut Xfs);
    let cases: [(u16, Change, &str, Severity); 7] = [
        (
            205,
            |xfs| xfs.free = Bytes(100 * GIB),
            "100 GiB of 2.0 TiB are free on /srv/vm.",
            Severity::Warning,
        ),
        (
            205,
            |xfs| xfs.free = Bytes(20 * GIB),
            "20.0 GiB of 2.0 TiB are free on /srv/vm.",
            Severity::Critical,
        ),
        (
            206,
            |xfs| xfs.full_groups = Some(2),
            "2 of 4 allocation groups on /srv/vm have less than 1 % free, although 1.0 TiB of 2.0 TiB are \
             free.",
            Severity::Ok,
        ),
        (
            207,
            |xfs| xfs.log = Bytes(10 << 20),
            "The log of the XFS at /srv/vm has 10.0 MiB, for 2.0 TiB in 4 allocation groups.",
            Severity::Warning,
        ),
        (
            208,
            |xfs| xfs.features.reflink = false,
            "The XFS at /srv/vm has no reflink, so that images that VMs have open are not defragmented.",
            Severity::Ok,
        ),
        (
            209,
            |xfs| xfs.realtime = Bytes(GIB),
            "The XFS at /srv/vm has a realtime section of 1.0 GiB.",
            Severity::Ok,
        ),
        (
            212,
            |xfs| {
                let project = |id, used| Project {
                    id,
                    used: Bytes(used),
                    limit: Bytes(100 * GIB),
                };
                xfs.projects = Some(vec![project(7, 94 * GIB), project(42, 96 * GIB)]);
            },
            "1 project on /srv/vm uses 95 % or more of its limit; the fullest is 42, with 96.0 GiB of 100 GiB.",
            Severity::Warning,
        ),
    ];
    for (number, change, what, severity) in cases {
        let mut tree = Tree::healthy();
        tree.xfs(change);
        let finding = tree.only(number);
        assert_eq!((finding.what.as_str(), finding.severity), (what, severity));
        // A file system without images, except for its quotas.
        tree.own.settings.images.paths = vec!["/elsewhere".to_owned()];
        assert_eq!(
            tree.of(number).len(),
            usize::from(number == 212),
            "{number}"
        );
        tree.own.settings.images.paths = vec!["/srv/vm".to_owned()];
        fs::remove_file(tree.path("xfs")).unwrap();
        let silent = "the XFS at /srv/vm did not answer in time, or cannot be opened";
        assert_eq!(tree.unchecked(number), silent);
    }
}

#[test]
fn quotas_that_are_only_counted_have_no_limit() {
    let tree = Tree::healthy();
    let limit = Bytes(100 * GIB);
    let project = |id, used| Project { id, used, limit };
    tree.xfs(|xfs| xfs.projects = Some(vec![project(7, limit), project(8, limit)]));
    let what = "2 projects on /srv/vm use 95 % or more of their limits; the fullest is 8, with 100 GiB of \
                100 GiB.";
    let found = tree.only(212);
    assert_eq!((&*found.what, found.severity), (what, Severity::Critical));
    tree.put(
        "proc/self/mounts",
        "/dev/sdb /srv/vm xfs rw,pqnoenforce 0 0\n",
    );
    assert_eq!(tree.diagnosis().findings, []);
}

#[test]
fn a_file_system_that_does_not_answer_hides_no_finding_of_another() {
    let tree = Tree::healthy();
    let mountinfo = "36 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 36 8:16 / /srv/vm rw - xfs /dev/sdb rw\n\
                     41 36 8:32 / /srv/b rw - xfs /dev/sdc rw\n";
    tree.put("proc/self/mountinfo", mountinfo);
    tree.xfs(|xfs| xfs.free = Bytes(0));
    assert_eq!(tree.of(205)[0].severity, Severity::Critical);
    let silent = "the XFS at /srv/b did not answer in time, or cannot be opened";
    assert_eq!(tree.unchecked(207), silent);
    fs::remove_file(tree.path("proc/self/mountinfo")).unwrap();
    let missing = "/proc/self/mountinfo: No such file or directory (os error 2)";
    assert_eq!(tree.unchecked(205), missing);
}

#[test]
fn what_of_a_file_system_could_not_be_read() {
    let tree = Tree::healthy();
    tree.xfs(|xfs| (xfs.full_groups, xfs.projects) = (None, None));
    let groups = "the allocation groups of /srv/vm could not be read";
    let projects = "the project quotas of /srv/vm could not be read";
    assert_eq!(
        [tree.unchecked(206), tree.unchecked(212)],
        [groups, projects]
    );
}

#[test]
fn a_program_that_cannot_be_started_makes_no_check() {
    let mut tree = Tree::healthy();
    tree.own.helper = vec!["/nowhere/helper".into()];
    let why = "the helper process: No such file or directory (os error 2)";
    assert_eq!(tree.unchecked(205), why);
    // The kernel may have the defect where blocks may be shared.
    tree.put("proc/sys/kernel/osrelease", "6.12.95\n");
    tree.put("proc/version", "Linux version 6.12.95 (gcc) #1\n");
    assert_eq!(tree.of(102).len(), 1);
}

#[test]
fn a_log_whose_writes_can_be_torn() {
    let tree = Tree::healthy();
    let kernel = |release: &str| {
        tree.put("proc/sys/kernel/osrelease", &format!("{release}\n"));
        tree.put(
            "proc/version",
            &format!("Linux version {release} (gcc) #1\n"),
        );
    };
    for (release, stripe, is_bad) in [
        ("6.12.77", 0, true),
        ("6.12.77", 4096, false),
        ("6.12.78", 0, false),
        ("5.13.19", 0, false),
        ("5.14.1", 0, true),
        ("6.17.13", 0, true),
        ("6.19.9", 0, false),
        ("7.1.0", 0, false),
    ] {
        kernel(release);
        tree.xfs(|xfs| xfs.log_stripe = Bytes(stripe));
        assert_eq!(
            tree.of(204).len(),
            usize::from(is_bad),
            "{release} {stripe}"
        );
    }
    kernel("6.12.77");
    let found = tree.of(204).remove(0);
    assert_eq!(
        found.what,
        "The log of the XFS at /srv/vm has sectors of 4.0 KiB and no stripe unit, and this kernel (6.12.77) \
         writes it in pieces of 512 bytes."
    );
    assert_eq!(found.severity, Severity::Critical);
    kernel("5.14.0-611.el9.x86_64");
    let why = "the level of this kernel does not show whether its vendor has repaired it";
    assert_eq!(tree.unchecked(204), why);
}

#[test]
fn what_the_swap_would_stall_where_no_engine_works_under_a_vm() {
    let mut tree = Tree::healthy();
    let mut status = Status::default();
    status.rescue.armed = true;
    status.worst = vec![Row {
        path: "/srv/vm/db-1.raw".to_owned(),
        extents: ExtentCount(2_200_000),
        severity: Severity::Warning,
        ..Row::default()
    }];
    tree.own.daemon = Ok(Some(Box::new(status)));
    assert_eq!(tree.diagnosis().findings, []);
    tree.xfs(|xfs| xfs.features.reflink = false);
    let finding = tree.only(208);
    assert_eq!(
        finding.what,
        "The XFS at /srv/vm has no reflink, so that images that VMs have open are not defragmented; xfs_fsr \
         would stall the worst of them, of 2,200,000 extents, for 1 min at its end, which is more than \
         defrag.max_swap_stall."
    );
    let read = "XFS_IOC_FSGEOMETRY: reflink=0 rmapbt=1 nrext64=1 bigtime=1 exchange=0";
    assert_eq!(
        (finding.severity, &*finding.read[0]),
        (Severity::Warning, read)
    );
    for other in [Engine::XfsFsr, Engine::BlockCopy] {
        tree.own.settings.defrag.engines = vec![Engine::XfsFsr, other];
        assert_eq!(tree.diagnosis().findings, []);
    }
    tree.own.settings.defrag.engines = vec![Engine::Online, Engine::BlockCopy];
    assert_eq!(tree.diagnosis().findings, []);
    tree.own.daemon = Err(NotChecked::because("no permission".to_owned()));
    assert_eq!(tree.of(208), []);
}

#[test]
fn options_of_an_xfs_with_images() {
    let tree = Tree::healthy();
    let mounts = |point: &str, options: &str| {
        tree.put(
            "proc/self/mounts",
            &format!("/dev/sdb {point} xfs {options} 0 0\n"),
        );
    };
    mounts("/srv/vm", "rw,relatime,attr2,inode64,logbufs=8");
    assert_eq!(tree.diagnosis().findings, []);
    let twice = "/dev/sdb /srv/vm xfs rw,discard 0 0\n/dev/sdb /srv/vm/b xfs rw,discard 0 0\n";
    tree.put("proc/self/mounts", twice);
    assert_eq!(tree.of(210).len(), 1);
    for (number, option) in [(210, "discard"), (211, "allocsize=65536k")] {
        mounts("/srv/vm", &format!("rw,{option},inode64"));
        let what = format!("The XFS at /srv/vm is mounted with {option}.");
        assert_eq!(tree.only(number).what, what);
        mounts("/", &format!("rw,{option},inode64"));
        assert_eq!(tree.diagnosis().findings, []);
    }
    tree.block("proc/self/mounts");
    let reason = "/proc/self/mounts: Is a directory (os error 21)";
    assert_eq!([tree.unchecked(210), tree.unchecked(211)], [reason; 2]);
}
