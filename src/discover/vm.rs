//! Identifies VMs: by the program of a process, by its command line, or by libvirt's status files.
//! Pure.
//!
//! The programs are those of QEMU and its derivatives, Cloud Hypervisor, Firecracker, crosvm and
//! VirtualBox. A VM of any other program is recognised by its KVM descriptor.

mod disks;
mod options;

use std::path::Path;

use crate::model::Manager;
pub(super) use disks::{Discard, Drive};
use options::{option, options, settings};

/// Length of a UUID in text.
const UUID: usize = 36;
/// Name of libvirt's monitor.
const MONITOR: &str = "charmonitor";

/// The kind of program that a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Qemu,
    CloudHypervisor,
    Firecracker,
    Crosvm,
    VirtualBox,
    /// Another program that runs a VM, with options like those of QEMU at best.
    OtherVm,
    /// A program that opens images but runs no VM: `qemu-img`, `qemu-nbd`, `tapdisk`, …
    Tool,
    /// Anything else, such as the guest agent `qemu-ga`, or `qemu-x86_64-static`, which runs a
    /// program of another architecture.
    Other,
}

impl Program {
    /// Classifies by the process name, which the kernel truncates to 15 bytes, by the executable,
    /// because a VM may rename its process (`-name process=…`), and by whether it uses KVM.
    pub(super) fn of(name: &str, program: Option<&Path>, has_kvm: bool) -> Program {
        let file = program.and_then(Path::file_name).unwrap_or_default();
        let names = [&file.to_string_lossy(), name];
        let mut known = names.map(original).into_iter().map(Program::named);
        let unknown = match has_kvm {
            true => Program::OtherVm,
            false => Program::Other,
        };
        let is_known = |program: &Program| *program != Program::Other;
        known.find(is_known).unwrap_or(unknown)
    }

    fn named(name: &str) -> Program {
        let begins = |all: &[&str]| all.iter().any(|begin| name.starts_with(begin));
        match name {
            // `qemu-dm` is that of Xen, StratoVirt has QEMU's options.
            "kvm" | "kvm-spice" | "qemu" | "stratovirt" => Program::Qemu,
            // Also `qemu-system-x86_64-spice`, `qemu-lite-system-x86_64`, `qemu-kvm-9.1`, `qemu-dm-5`.
            _ if begins(&["qemu-system-", "qemu-kvm", "qemu-dm"]) => Program::Qemu,
            _ if begins(&["qemu-"]) && name.contains("-system-") => Program::Qemu,
            _ if begins(&["qemu-img", "qemu-nbd", "qemu-io", "qemu-storage-da"]) => Program::Tool,
            _ if begins(&["cloud-hyperviso"]) => Program::CloudHypervisor,
            // The releases are called `firecracker-v1.9.0-x86_64`.
            _ if name == "firecracker" || begins(&["firecracker-v"]) => Program::Firecracker,
            _ if begins(&["crosvm"]) => Program::Crosvm,
            "VBoxHeadless" | "VirtualBoxVM" | "VBoxSDL" | "VirtualBox" => Program::VirtualBox,
            "lkvm" | "vmware-vmx" => Program::OtherVm,
            // Xen's.
            "tapdisk" | "tapdisk2" => Program::Tool,
            _ => Program::Other,
        }
    }

    pub(super) fn is_vm(self) -> bool {
        !matches!(self, Program::Tool | Program::Other)
    }

    /// Whether the files that it has open are images.
    pub(super) fn opens_images(self) -> bool {
        self != Program::Other
    }
}

/// The name of a program without what a distribution or a package manager makes of it when the
/// program is wrapped (`.kvm-wrapped`, `kvm.real`, `kvm.distrib`) or replaced while it runs
/// (`kvm (deleted)`, from the kernel; `kvm;66f3a1b2`, from rpm; `kvm.dpkg-tmp`).
fn original(name: &str) -> &str {
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    let name = name.strip_prefix('.').unwrap_or(name);
    let name = name.split(['.', ';']).next().unwrap_or(name);
    let name = name.trim_end_matches('_');
    let mut wrapped = ["-wrapped", "-real"].iter();
    let wrapped = wrapped.find_map(|end| name.strip_suffix(end));
    wrapped.unwrap_or(name)
}

/// What is known of a VM besides its process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct VmFacts {
    pub(super) name: Option<String>,
    pub(super) uuid: Option<String>,
    /// Whether the process runs no VM, but serves one.
    pub(super) serves_only: bool,
    /// Its images, as far as its command line names them.
    pub(super) drives: Vec<Drive>,
    pub(super) manager: Option<Manager>,
}

impl VmFacts {
    /// Fills in from `other` what is not yet known.
    pub(super) fn or(self, other: VmFacts) -> VmFacts {
        VmFacts {
            name: self.name.or(other.name),
            uuid: self.uuid.or(other.uuid),
            serves_only: self.serves_only || other.serves_only,
            drives: [self.drives, other.drives].concat(),
            manager: self.manager.or(other.manager),
        }
    }

    /// From the command line of a program that runs VMs. Like the programs, it takes the last of
    /// several options. Values that are not UTF-8 are shown with replacement characters.
    pub(super) fn of_command_line(program: Program, arguments: &[Vec<u8>]) -> VmFacts {
        let mut facts = VmFacts::default();
        let (mut smbios, mut socket) = (None, None);
        let set = |fact: &mut Option<String>, value: Option<String>| {
            *fact = value.filter(|value| !value.is_empty()).or(fact.take());
        };
        for (key, value) in options(arguments) {
            let value = value.as_str();
            let whole = || Some(value.to_owned());
            match (program, key.as_str()) {
                // `-name guest=db-1,debug-threads=on`, `-name db-1`.
                // Xen's old `qemu-dm` has `-domain-name`.
                (Program::Qemu | Program::OtherVm, "name" | "domain-name") => {
                    set(&mut facts.name, guest(value));
                }
                (Program::Qemu | Program::OtherVm, "uuid") => set(&mut facts.uuid, whole()),
                // Proxmox passes the UUID only as `-smbios type=1,uuid=…`.
                (Program::Qemu, "smbios") => set(&mut smbios, option(value, "uuid")),
                // The name that libvirt gives its monitor (qemuProcessPrepareMonitorChr).
                (Program::Qemu, "chardev") if option(value, "id").as_deref() == Some(MONITOR) => {
                    facts.manager = Some(Manager::Libvirt);
                }
                (Program::Qemu, "pidfile") => facts.manager = facts.manager.or(proxmox(value)),
                (Program::CloudHypervisor, "platform") => {
                    set(&mut facts.uuid, option(value, "uuid"));
                }
                (Program::CloudHypervisor, "api-socket")
                | (Program::Firecracker, "api-sock")
                | (Program::Crosvm, "socket" | "s") => set(&mut socket, of_socket(value)),
                (Program::Firecracker, "id")
                | (Program::Crosvm, "name")
                | (Program::VirtualBox, "comment") => set(&mut facts.name, whole()),
                (Program::VirtualBox, "startvm") if value.len() == UUID => {
                    set(&mut facts.uuid, whole());
                }
                (Program::VirtualBox, "startvm") => set(&mut facts.name, whole()),
                _ => {}
            }
        }
        // `crosvm device block` serves the disk of another process's VM.
        let runs = |argument: &Vec<u8>| argument == b"run";
        facts.serves_only = program == Program::Crosvm && !arguments.iter().any(runs);
        if program == Program::Qemu {
            facts.drives = disks::drives(options(arguments));
        }
        facts.or(VmFacts {
            name: socket,
            uuid: smbios,
            ..VmFacts::default()
        })
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
            manager: Some(Manager::Libvirt),
            ..VmFacts::default()
        };
        Some((pid, facts))
    }
}

/// `/var/run/qemu-server/100.pid` (config_to_command, PVE/QemuServer.pm).
fn proxmox(pidfile: &str) -> Option<Manager> {
    let (directory, file) = pidfile.rsplit_once('/')?;
    let vmid = file.strip_suffix(".pid")?.parse().ok()?;
    let is_its = directory.ends_with("/run/qemu-server");
    is_its.then_some(Manager::Proxmox { vmid })
}

/// The name in `-name`. The first setting may omit its key; a comma in it is doubled
/// (opts_do_parse, util/qemu-option.c of QEMU).
fn guest(value: &str) -> Option<String> {
    let key_ends = value.find(['=', ',']);
    let nameless = key_ends.is_none_or(|at| value[at..].starts_with(','));
    let first = || settings(value).into_iter().next().filter(|_| nameless);
    option(value, "guest").or_else(first)
}

/// The VM of a control socket, whose path is often all that distinguishes VMs: `/run/ch/web.sock`,
/// or with a general name `/run/vc/vm/web/clh-api.sock` (Kata Containers).
fn of_socket(value: &str) -> Option<String> {
    let path =
        option(value, "path").or_else(|| Some(value.to_owned()).filter(|it| !it.contains('=')))?;
    let path = Path::new(&path);
    let name = |path: &Path| Some(path.file_stem()?.to_string_lossy().into_owned());
    const GENERAL: &str = "api clh-api ch cloud-hypervisor firecracker crosvm socket";
    let is_general = |name: &String| GENERAL.split(' ').any(|it| it == name);
    let directory = || name(path.parent()?).filter(|name| !matches!(name.as_str(), "run" | "tmp"));
    name(path)
        .filter(|name| !is_general(name))
        .or_else(directory)
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
mod tests;
