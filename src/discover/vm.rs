//! Identifies the VM of a QEMU process by its command line or by libvirt's status files. Pure.

use std::path::Path;

/// The kind of program that a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Vm,
    /// Another QEMU program that opens images: `qemu-img`, `qemu-nbd`, `qemu-storage-daemon`.
    Tool,
    Other,
}

impl Program {
    /// Classifies by the process name, which the kernel truncates to 15 bytes, and by the
    /// executable, because a VM may rename its process (`-name process=…`).
    pub(super) fn of(name: &str, program: Option<&Path>) -> Program {
        let file = program.and_then(Path::file_name).unwrap_or_default();
        let names = [name, file.to_str().unwrap_or_default()];
        // The kernel appends ` (deleted)` if the executable was replaced while it ran.
        let is_vm = |name: &str| {
            let name = name.strip_suffix(" (deleted)").unwrap_or(name);
            name.starts_with("qemu-system-") || name == "qemu-kvm" || name == "kvm"
        };
        if names.into_iter().any(is_vm) {
            Program::Vm
        } else if names.into_iter().any(|name| name.starts_with("qemu")) {
            Program::Tool
        } else {
            Program::Other
        }
    }
}

/// What is known of a VM besides its process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct VmFacts {
    pub(super) name: Option<String>,
    pub(super) uuid: Option<String>,
}

impl VmFacts {
    /// Fills in from `other` what is not yet known.
    pub(super) fn or(self, other: VmFacts) -> VmFacts {
        VmFacts {
            name: self.name.or(other.name),
            uuid: self.uuid.or(other.uuid),
        }
    }

    /// From a QEMU command line: `-name guest=db-1,debug-threads=on -uuid …`. Proxmox passes the
    /// UUID only as `-smbios type=1,uuid=…`.
    pub(super) fn of_command_line(arguments: &[Vec<u8>]) -> VmFacts {
        let mut facts = VmFacts::default();
        for pair in arguments.windows(2) {
            let value = String::from_utf8_lossy(&pair[1]);
            let value = value.as_ref();
            match pair[0].strip_prefix(b"-").unwrap_or_default() {
                b"name" | b"-name" => {
                    let name = option(value, "guest").or_else(|| first(value));
                    facts.name = facts.name.or(name);
                }
                b"uuid" | b"-uuid" => facts.uuid = Some(value.to_owned()),
                b"smbios" | b"-smbios" => facts.uuid = facts.uuid.or(option(value, "uuid")),
                _ => {}
            }
        }
        facts
    }

    /// From libvirt's status file of a running domain, with the PID: `<domstatus state='running'
    /// reason='booted' pid='1234'>…<name>db-1</name>`.
    pub(super) fn of_libvirt(xml: &str) -> Option<(u32, VmFacts)> {
        let status = &xml[xml.find("<domstatus ")?..];
        let pid = attribute(status.split('>').next()?, "pid")?.parse().ok()?;
        // Other elements with a name precede `<domain>` or come later in it; its own come first.
        let domain = &status[status.find("<domain ")?..];
        let facts = VmFacts {
            name: element(domain, "name"),
            uuid: element(domain, "uuid"),
        };
        Some((pid, facts))
    }
}

/// The comma-separated settings of a QEMU option; a doubled comma is a literal comma.
fn settings(value: &str) -> Vec<String> {
    let mut settings = vec![String::new()];
    let mut rest = value.chars().peekable();
    while let Some(character) = rest.next() {
        if character == ',' && rest.next_if_eq(&',').is_none() {
            settings.push(String::new());
        } else if let Some(last) = settings.last_mut() {
            last.push(character);
        }
    }
    settings
}

fn option(value: &str, name: &str) -> Option<String> {
    let settings = settings(value);
    let mut values = settings
        .iter()
        .filter_map(|setting| setting.strip_prefix(name)?.strip_prefix('='));
    values.next().map(str::to_owned)
}

/// The first setting may omit its key: `-name db-1`.
fn first(value: &str) -> Option<String> {
    let first = settings(value).into_iter().next()?;
    let is_named = ["process=", "debug-threads="];
    let nameless = !first.is_empty() && !is_named.iter().any(|name| first.starts_with(name));
    nameless.then_some(first)
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let at = tag.find(&format!(" {name}="))? + name.len() + 2;
    let quote = tag[at..].chars().next().filter(|c| "'\"".contains(*c))?;
    let value = tag[at + 1..].split(quote).next()?;
    Some(unescaped(value))
}

fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (value, _) = rest.split_once('<')?;
    Some(unescaped(value))
}

fn unescaped(text: &str) -> String {
    [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        // Must come last, or the result would be unescaped twice.
        ("&amp;", "&"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn facts(line: &[&str]) -> (Option<String>, Option<String>) {
        let arguments: Vec<_> = line.iter().map(|part| part.as_bytes().to_vec()).collect();
        let facts = VmFacts::of_command_line(&arguments);
        (facts.name, facts.uuid)
    }

    #[test]
    fn programs_are_told_apart() {
        for (name, program, expected) in [
            (
                "qemu-system-x86",
                "/usr/bin/qemu-system-x86_64",
                Program::Vm,
            ),
            ("db-1", "/usr/libexec/qemu-kvm", Program::Vm),
            ("db-1", "/usr/libexec/qemu-kvm (deleted)", Program::Vm),
            ("kvm", "/usr/bin/x", Program::Vm),
            ("qemu-nbd", "/usr/bin/qemu-nbd", Program::Tool),
            ("not-qemu", "/usr/bin/not-qemu", Program::Other),
            ("kvm-nx-lpage-re", "", Program::Other),
        ] {
            assert_eq!(
                Program::of(name, Some(Path::new(program))),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn a_vm_is_named_on_its_command_line() {
        let some = |text: &str| Some(text.to_owned());
        let uuid = "5f3b1a2c-0000-4000-8000-000000000001";
        let libvirt = [
            "kvm",
            "-name",
            "guest=db-1,debug-threads=on",
            "-S",
            "-uuid",
            uuid,
        ];
        assert_eq!(facts(&libvirt), (some("db-1"), some(uuid)));
        assert_eq!(facts(&["kvm", "-name", "db-1"]), (some("db-1"), None));
        assert_eq!(
            facts(&["kvm", "--name", "process=x,guest=a,,b=c"]),
            (some("a,b=c"), None)
        );
        assert_eq!(facts(&["kvm", "-name", "process=x"]), (None, None));
        let proxmox = [
            "kvm",
            "-id",
            "100",
            "-name",
            "web,debug-threads=on",
            "-smbios",
            "type=1,uuid=u",
        ];
        assert_eq!(facts(&proxmox), (some("web"), some("u")));
        assert_eq!(facts(&["kvm", "-name"]), (None, None));
        assert_eq!(facts(&[]), (None, None));
    }

    #[test]
    fn a_vm_is_named_by_libvirt() {
        let xml = "<!-- -->\n<domstatus state='running' reason='booted' pid='1234'>\n\
            <monitor path='/x' type='unix'/><vcpus><vcpu id='0' pid='9'/></vcpus>\n\
            <domain type='kvm' id='1'>\n<name>a&amp;b</name>\n<uuid>u-1</uuid>\n\
            <device><name>hda</name></device></domain></domstatus>";
        let (pid, facts) = VmFacts::of_libvirt(xml).unwrap();
        assert_eq!(pid, 1234);
        assert_eq!(facts.name.as_deref(), Some("a&b"));
        assert_eq!(facts.uuid.as_deref(), Some("u-1"));
        for not in [
            "",
            "<domstatus ",
            "<domstatus pid='x'><domain >",
            "<network pid='1'>",
        ] {
            assert_eq!(VmFacts::of_libvirt(not), None, "{not}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text: String, line: Vec<Vec<u8>>) {
            drop(VmFacts::of_libvirt(&text));
            drop(VmFacts::of_libvirt(&format!("<domstatus {text}<domain {text}")));
            drop(VmFacts::of_command_line(&line));
        }

        #[test]
        fn every_name_comes_through(name in "[a-z,=]{1,20}") {
            let value = format!("guest={},debug-threads=on", name.replace(',', ",,"));
            prop_assert_eq!(facts(&["kvm", "-name", &value]).0, Some(name));
        }
    }
}
