//! A made-up virsh, which answers from files as those of libvirt 4.5 to 11 do.

use std::time::Duration;

use super::super::domain::{Backing, Disk};
use super::super::refusal::check;
use super::*;
use crate::script::script;

/// Answers with the file named like the command, and fails with that named `COMMAND.error`. A command
/// without a file is one that this version does not know (vshCmddefSearch, tools/vsh.c).
const SCRIPT: &str = r#"
[ "$LC_ALL" = C ] || exit 9
cd "$(dirname "$0")" && shift 2 && command=$1
case " $* " in *" --inactive "*) command=$command-inactive ;; esac
[ -f "$command.hang" ] && exec sleep 600
[ -f "$command.error" ] && { cat "$command.error" >&2; exit 1; }
[ -f "$command" ] || { echo "error: unknown command: '$command'" >&2; exit 1; }
cat "$command"
"#;

struct MadeUp {
    directory: tempfile::TempDir,
    virsh: Virsh,
}

impl MadeUp {
    /// The answers of a version of libvirt about a running domain with one plain disk.
    fn new(version: &str) -> MadeUp {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("virsh");
        script(&program, SCRIPT);
        let timeout = Duration::from_secs(60);
        let virsh = Virsh { program, timeout };
        let made_up = MadeUp { directory, virsh };
        for (command, answer) in answers_of(version) {
            made_up.set(command, &answer);
        }
        made_up
    }

    fn set(&self, file: &str, text: &str) {
        fs::write(self.directory.path().join(file), text).unwrap();
    }

    fn answers(&self) -> Result<Answers, Refusal> {
        answers(&self.virsh, "db-1")
    }

    #[track_caller]
    fn refusal(&self) -> String {
        let Err(refusal) = self.answers() else {
            panic!("it is not refused");
        };
        assert_eq!(refusal.code, ReasonCode::Hypervisor, "{refusal}");
        refusal.text
    }
}

const VERSIONS: [&str; 10] = [
    "4.5.0", "5.0.0", "5.6.0", "6.0.0", "7.0.0", "7.10.0", "8.0.0", "9.0.0", "10.0.0", "11.10.0",
];

fn major(version: &str) -> u32 {
    version.split('.').next().unwrap().parse().unwrap()
}

fn answers_of(version: &str) -> Vec<(&'static str, String)> {
    let major = major(version);
    // The source of a running disk has an index since 5.10, with -blockdev.
    let index = if major >= 6 { " index='1'" } else { "" };
    let xml = |id: &str, index: &str, backing: &str| {
        format!(
            "<domain type='kvm'{id}>\n  <name>db-1</name>\n  \
             <uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>\n  <devices>\n    \
             <disk type='file' device='disk'>\n      \
             <driver name='qemu' type='raw' cache='none' io='native'/>\n      \
             <source file='/srv/a.raw'{index}/>\n{backing}      \
             <target dev='vda' bus='virtio'/>\n    </disk>\n  </devices>\n</domain>\n\n"
        )
    };
    // Messages are listed since 6.9.
    let messages = match major {
        0..7 => "",
        _ => {
            "Messages:       tainted: use of deprecated configuration settings\n                \
              deprecated configuration: machine type 'pc-1.0'\n"
        }
    };
    let job = match major {
        // The blanks behind are those of "%-12s".
        0..10 => "Job type:         None        \n\n",
        _ => "Job type:         None\n\n",
    };
    let mut answers = vec![
        (
            "version",
            format!(
                "Compiled against library: libvirt {version}\nUsing library: libvirt {version}\n\
                 Using API: QEMU {version}\nRunning hypervisor: QEMU 7.2.22\n\
                 Running against daemon: {version}\n\n"
            ),
        ),
        ("dumpxml", xml(" id='7'", index, "      <backingStore/>\n")),
        ("dumpxml-inactive", xml("", "", "")),
        (
            "dominfo",
            format!(
                "Id:             7\nName:           db-1\n\
                 UUID:           6695eb01-f6a4-8304-79aa-97f2502e193f\nOS Type:        hvm\n\
                 State:          running\nCPU(s):         1\nCPU time:       12.3s\n\
                 Max memory:     262144 KiB\nUsed memory:    262144 KiB\nPersistent:     yes\n\
                 Autostart:      disable\nManaged save:   no\nSecurity model: none\n\
                 Security DOI:   0\n{messages}\n"
            ),
        ),
        ("domjobinfo", job.to_owned()),
        ("blockjob", "\n".to_owned()),
        ("snapshot-list", "\n".to_owned()),
    ];
    if version != "4.5.0" && version != "5.0.0" {
        answers.push(("checkpoint-list", "\n".to_owned()));
    }
    answers
}

/// The facts of an image to which nothing else objects.
fn facts(answers: Answers) -> Facts {
    let file = FileId {
        device: 1,
        inode: 131,
    };
    Facts {
        image: "/srv/a.raw".into(),
        file,
        former: None,
        links: 1,
        answers,
        open: vec![file],
        others: 0,
        needs: Bytes(1),
        has: Bytes(1),
        keeps: Bytes(0),
        copy_on: 1,
        header: Vec::new(),
    }
}

#[test]
fn every_version_is_understood_and_old_ones_are_refused() {
    for version in VERSIONS {
        let made_up = MadeUp::new(version);
        if major(version) < 8 {
            let words = format!("libvirt {version} cannot copy with synchronous writes: update it");
            assert!(made_up.refusal().starts_with(&words), "{version}");
            continue;
        }
        let answers = made_up
            .answers()
            .unwrap_or_else(|why| panic!("{version}: {why}"));
        let facts = facts(answers);
        let disk = check(&facts).unwrap_or_else(|why| panic!("{version}: {why}"));
        let expected = Disk {
            target: "vda".to_owned(),
            device: "disk".to_owned(),
            kind: "file".to_owned(),
            source: Some("/srv/a.raw".into()),
            format: Some("raw".to_owned()),
            cache: Some("none".to_owned()),
            io: Some("native".to_owned()),
            backing: Backing::None,
            ..Disk::default()
        };
        assert_eq!(disk, &expected, "{version}");
    }
}

#[test]
fn what_is_going_on_is_a_reason() {
    let cases = [
        (
            "snapshot-list",
            "before update\n\n",
            "snapshots (before update)",
        ),
        ("checkpoint-list", "c1\nc2\n\n", "checkpoints (c1, c2)"),
        (
            "domjobinfo",
            "Job type:         Unbounded   \nOperation:        Outgoing migration\n",
            "busy (Outgoing migration)",
        ),
        (
            "blockjob",
            " type=Backup\n bandwidth=0\n cur=1\n end=2\n\n",
            "disk vda (Backup)",
        ),
        (
            "dominfo",
            "State:          paused\nPersistent:     yes\n",
            "db-1 is paused",
        ),
        (
            "dominfo",
            "State:          running\nPersistent:     no\n",
            "db-1 is transient",
        ),
    ];
    for version in VERSIONS.iter().filter(|version| major(version) >= 8) {
        for (command, answer, words) in cases {
            let made_up = MadeUp::new(version);
            made_up.set(command, answer);
            let refusal = check(&facts(made_up.answers().unwrap())).unwrap_err();
            assert!(refusal.text.contains(words), "{version}: {refusal}");
        }
    }
}

const COMMANDS: [&str; 8] = [
    "version",
    "dumpxml",
    "dumpxml-inactive",
    "dominfo",
    "domjobinfo",
    "blockjob",
    "snapshot-list",
    "checkpoint-list",
];

#[test]
fn a_failure_of_any_command_is_a_reason() {
    for command in COMMANDS {
        let made_up = MadeUp::new("9.0.0");
        let error = "error: Timed out during operation: cannot acquire state change lock\n";
        made_up.set(&format!("{command}.error"), error);
        let text = made_up.refusal();
        assert!(
            text.contains("cannot acquire state change lock"),
            "{command}: {text}"
        );
        let gone = "error: failed to connect to the hypervisor\n\
                    error: Failed to connect socket to '/var/run/libvirt/libvirt-sock': Connection refused\n";
        made_up.set(&format!("{command}.error"), gone);
        let text = made_up.refusal();
        assert!(
            text.starts_with("libvirt cannot be reached"),
            "{command}: {text}"
        );
    }
}

/// Lists of names can be anything.
#[test]
fn garbage_is_a_reason() {
    let garbage = [
        "",
        "\u{0}\u{1b}[2J",
        "Zustand:  laufend\n",
        "<domain",
        "type=\nend=-1\n",
    ];
    for command in COMMANDS.into_iter().filter(|it| !it.ends_with("-list")) {
        for printed in garbage {
            // No block job.
            if command == "blockjob" && printed.is_empty() {
                continue;
            }
            let made_up = MadeUp::new("9.0.0");
            made_up.set(command, printed);
            let text = made_up.refusal();
            assert!(text.starts_with("virsh "), "{command}: {text}");
            assert!(!text.contains(['\u{0}', '\u{1b}']), "{command}: {text:?}");
        }
    }
}

#[test]
fn a_virsh_that_hangs_is_ended() {
    for command in COMMANDS {
        let mut made_up = MadeUp::new("9.0.0");
        made_up.virsh.timeout = Duration::from_millis(300);
        // The others answer in time, however busy the machine is.
        made_up.set(&format!("{command}.hang"), "");
        let text = made_up.refusal();
        assert!(text.ends_with("did not end in time"), "{command}: {text}");
    }
}

#[test]
fn a_virsh_that_is_missing_is_a_reason() {
    let made_up = MadeUp::new("9.0.0");
    fs::remove_file(&made_up.virsh.program).unwrap();
    assert!(made_up.refusal().starts_with("virsh cannot be run"));
}
