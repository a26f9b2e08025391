use super::*;

const IMAGE: FileId = FileId {
    device: 1,
    inode: 131,
};

fn disk() -> Disk {
    Disk {
        target: "vda".to_owned(),
        device: "disk".to_owned(),
        kind: "file".to_owned(),
        source: Some("/srv/a.raw".into()),
        format: Some("raw".to_owned()),
        backing: Backing::None,
        ..Disk::default()
    }
}

fn domain(disk: Disk) -> Domain {
    Domain {
        name: "db-1".to_owned(),
        uuid: "u-1".to_owned(),
        id: Some(7),
        host_devices: false,
        disks: vec![disk],
        sources: Vec::new(),
    }
}

fn facts() -> Facts {
    let defined = Domain {
        id: None,
        ..domain(Disk {
            backing: Backing::NotStated,
            ..disk()
        })
    };
    Facts {
        image: "/srv/a.raw".into(),
        file: IMAGE,
        former: None,
        links: 1,
        answers: Answers {
            live: domain(disk()),
            defined: Some(defined),
            state: "running".to_owned(),
            versions: Versions {
                libvirt: LEAST_LIBVIRT,
                qemu: Some(LEAST_QEMU),
            },
            job: None,
            block_job: None,
            snapshots: Vec::new(),
            checkpoints: Vec::new(),
        },
        open: vec![
            FileId {
                device: 1,
                inode: 9,
            },
            IMAGE,
        ],
        others: 0,
        needs: Bytes(100),
        has: Bytes(105),
        keeps: Bytes(5),
        copy_on: 1,
        header: Vec::new(),
    }
}

/// The refusal after a change of the facts.
fn refusal(change: impl FnOnce(&mut Facts)) -> Refusal {
    let mut facts = facts();
    change(&mut facts);
    check(&facts).unwrap_err()
}

#[track_caller]
fn refuses(change: impl FnOnce(&mut Facts), words: &str) {
    let refusal = refusal(change);
    assert!(refusal.text.contains(words), "{refusal}");
    assert_eq!(refusal.code, ReasonCode::Hypervisor, "{refusal}");
    // The way out.
    let has_way_out = [":", "in a window"]
        .iter()
        .any(|it| refusal.text.contains(it));
    assert!(has_way_out, "{refusal}");
}

#[test]
fn a_plain_disk_of_a_running_domain_is_copied() {
    assert_eq!(check(&facts()).unwrap(), &disk());
}

/// Its VM was not shut down since the copy before, and knows the image by the name of that.
#[test]
fn a_second_copy_needs_the_names_of_the_first() {
    let former = || Some(PathBuf::from("/srv/.a.raw.130.blockcopy"));
    let second = |change: fn(&mut Facts)| {
        let mut facts = facts();
        (facts.former, facts.links) = (former(), 2);
        facts.answers.live.disks[0].source = former();
        change(&mut facts);
        check(&facts).map(|disk| disk.source.clone())
    };
    assert_eq!(second(|_| ()).unwrap(), former());
    type Change = fn(&mut Facts);
    let changes: [(Change, &str); 5] = [
        (
            |it| it.answers.live.disks[0].source = Some("/srv/a.raw".into()),
            "db-1 does not run with /srv/.a.raw.130.blockcopy",
        ),
        (
            |it| it.answers.live.disks.push(disk()),
            "two disks of its VM",
        ),
        (
            |it| it.answers.live.disks[0].source = Some("/srv/b.raw".into()),
            "no disk of VM db-1",
        ),
        (
            |it| {
                let defined = it.answers.defined.as_mut().unwrap();
                defined.disks[0].source = it.former.clone();
            },
            "would be started with another disk vda",
        ),
        (|it| it.former = None, "no disk of VM db-1"),
    ];
    for (change, words) in changes {
        let refusal = second(change).unwrap_err();
        assert!(refusal.text.contains(words), "{refusal}");
    }
    for (links, is_refused) in [(1, true), (2, false), (3, true)] {
        let mut facts = facts();
        (facts.former, facts.links) = (former(), links);
        facts.answers.live.disks[0].source = former();
        assert_eq!(check(&facts).is_err(), is_refused, "{links}");
    }
}

#[test]
fn old_versions_are_refused() {
    refuses(
        |it| it.answers.versions.libvirt = Version(7, 10, 0),
        "update it to 8.0.0",
    );
    refuses(
        |it| it.answers.versions.libvirt = Version(4, 5, 0),
        "libvirt 4.5.0 cannot",
    );
    refuses(
        |it| it.answers.versions.qemu = Some(Version(4, 1, 1)),
        "update it to 4.2.0",
    );
    refuses(
        |it| it.answers.versions.qemu = None,
        "cannot find out the version",
    );
    for libvirt in [Version(9, 0, 0), Version(10, 0, 0), Version(11, 10, 0)] {
        let mut facts = facts();
        facts.answers.versions.libvirt = libvirt;
        assert!(check(&facts).is_ok());
    }
}

#[test]
fn the_state_of_the_domain_counts() {
    refuses(
        |it| it.answers.state = "paused".to_owned(),
        "db-1 is paused: resume it",
    );
    refuses(|it| it.answers.defined = None, "db-1 is transient");
    let migration = || Some("Outgoing migration".to_owned());
    refuses(
        |it| it.answers.job = migration(),
        "busy (Outgoing migration)",
    );
    let job = || Some(("Backup".to_owned(), "vdb".to_owned()));
    refuses(
        |it| it.answers.block_job = job(),
        "`virsh blockjob db-1 vdb --abort`",
    );
    let names = || vec!["old".to_owned(), "new".to_owned()];
    refuses(|it| it.answers.snapshots = names(), "snapshots (old, new)");
    refuses(
        |it| it.answers.checkpoints = names(),
        "checkpoints (old, new)",
    );
    refuses(|it| it.answers.live.host_devices = true, "passed through");
}

#[test]
fn only_a_plain_disk_is_copied() {
    type Change = fn(&mut Disk);
    let changes: [(Change, &str); 12] = [
        (|it| it.device = "lun".to_owned(), "disk vda: it is a lun"),
        (|it| it.read_only = true, "can only read it"),
        (|it| it.shareable = true, "other VMs share it"),
        (|it| it.transient = true, "are discarded"),
        (|it| it.encrypted = true, "secrets"),
        (|it| it.sliced = true, "only a part of the file"),
        (|it| it.format = Some("qed".to_owned()), "its format is qed"),
        (|it| it.format = None, "its format is not stated"),
        (
            |it| it.backing = Backing::Image("/srv/base".to_owned()),
            "based on /srv/base",
        ),
        (|it| it.backing = Backing::NotStated, "does not state what"),
        (
            |it| it.mirror = Some(super::super::domain::Mirror::default()),
            "is being copied",
        ),
        (
            |it| it.source = Some("/srv/b.raw".into()),
            "no disk of VM db-1 names it",
        ),
    ];
    for (change, words) in changes {
        refuses(|it| change(&mut it.answers.live.disks[0]), words);
    }
    // The definition that the next start uses is looked at too, as far as it states anything.
    for (change, words) in &changes[1..6] {
        refuses(
            |it| change(&mut it.answers.defined.as_mut().unwrap().disks[0]),
            words,
        );
    }
    refuses(|it| it.answers.live.disks.push(disk()), "two disks");
}

/// What lies inside one is tried with headers that QEMU has written (tests/blockcopy/qcow2.rs).
#[test]
fn a_qcow2_is_copied_if_its_header_permits() {
    let with = |header: &[u8]| {
        let mut facts = facts();
        facts.answers.live.disks[0].format = Some("qcow2".to_owned());
        facts.answers.defined.as_mut().unwrap().disks[0].format = Some("qcow2".to_owned());
        facts.header = header.to_vec();
        check(&facts).map(drop).map_err(|refusal| refusal.text)
    };
    let mut header = super::super::qcow2::tests::header();
    assert_eq!(with(&header), Ok(()));
    header[63] = 1;
    let why = with(&header).unwrap_err();
    assert!(
        why.starts_with("disk vda: it has snapshots inside"),
        "{why}"
    );
    assert!(with(b"").is_err());
    // In a raw image it is what a guest has written.
    assert!(check(&Facts { header, ..facts() }).is_ok());
}

#[test]
fn the_next_start_must_have_the_same_disk() {
    type Change = fn(&mut Disk);
    let changes: [Change; 3] = [
        |it| it.source = Some("/srv/old.raw".into()),
        |it| it.format = Some("qcow2".to_owned()),
        |it| it.target = "sda".to_owned(),
    ];
    for change in changes {
        let words = "would be started with another disk vda";
        refuses(
            |it| change(&mut it.answers.defined.as_mut().unwrap().disks[0]),
            words,
        );
    }
}

#[test]
fn the_path_must_lead_to_the_file_that_is_used() {
    refuses(
        |it| it.open = vec![FileId { device: 2, ..IMAGE }],
        "another file open",
    );
    refuses(|it| it.others = 1, "other processes");
    refuses(|it| it.copy_on = 2, "defrag.blockcopy.directory");
    let links = refusal(|it| it.links = 2);
    assert_eq!(links.code, ReasonCode::HardLinks);
    let full = refusal(|it| it.has = Bytes(104));
    assert_eq!(full.code, ReasonCode::NoSpace);
    assert!(
        refusal(|it| it.keeps = Bytes(u64::MAX))
            .text
            .contains("not enough")
    );
}

/// A run that is refused is tried again later, or another engine is.
#[test]
fn the_reasons_lie_with_the_engine() {
    for code in [
        ReasonCode::Hypervisor,
        ReasonCode::HardLinks,
        ReasonCode::NoSpace,
    ] {
        assert!(code.lies_with_engine(), "{code:?}");
    }
}

#[test]
fn a_copy_takes_an_eighth_more_at_most() {
    assert_eq!(check_growth(Bytes(800), Bytes(900)), Ok(()));
    assert_eq!(check_growth(Bytes(800), Bytes(0)), Ok(()));
    let why = check_growth(Bytes(800), Bytes(901)).unwrap_err();
    assert_eq!(why.code, ReasonCode::Hypervisor);
    assert!(why.to_string().contains("shut the VM down"), "{why}");
}
