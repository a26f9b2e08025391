//! Tests of [`vm`](super).

use super::*;
use proptest::prelude::*;

fn facts_of(program: Program, line: &[&str]) -> (Option<String>, Option<String>) {
    let arguments: Vec<_> = line.iter().map(|part| part.as_bytes().to_vec()).collect();
    let facts = VmFacts::of_command_line(program, &arguments);
    (facts.name, facts.uuid)
}

fn facts(line: &[&str]) -> (Option<String>, Option<String>) {
    facts_of(Program::Qemu, line)
}

#[test]
fn what_runs_a_vm_is_on_its_command_line() {
    let manager = |line: &str| {
        let line: Vec<_> = line
            .split(' ')
            .map(|part| part.as_bytes().to_vec())
            .collect();
        VmFacts::of_command_line(Program::Qemu, &line).manager
    };
    // As libvirt 4.5, 9.0 and 12.8 write it.
    let old = "qemu-kvm -name guest=a -chardev socket,id=charmonitor,path=/a/monitor.sock,server \
               -mon chardev=charmonitor,id=monitor,mode=control";
    assert_eq!(manager(old), Some(Manager::Libvirt));
    let new = "qemu-system-x86_64 -chardev socket,id=charmonitor,fd=26,server=on,wait=off -mon \
               chardev=charmonitor,id=monitor,mode=control";
    assert_eq!(manager(new), Some(Manager::Libvirt));
    let newest = "qemu-system-x86_64 -chardev socket,id=charmonitor,fd=22,server=on,wait=off -object \
                  {\"qom-type\":\"monitor-qmp\",\"id\":\"monitor\",\"chardev\":\"charmonitor\"}";
    assert_eq!(manager(newest), Some(Manager::Libvirt));
    let proxmox = "kvm -id 100 -name web,debug-threads=on -chardev socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off \
                   -mon chardev=qmp,mode=control -pidfile \
                   /var/run/qemu-server/100.pid -daemonize";
    assert_eq!(manager(proxmox), Some(Manager::Proxmox { vmid: 100 }));
    assert_eq!(manager("kvm -pidfile /run/other/100.pid"), None);
    assert_eq!(
        manager("kvm -pidfile /run/qemu-server/a.pid -mon chardev=qmp"),
        None
    );
}

#[test]
fn programs_are_told_apart() {
    for (name, program, expected) in [
        (
            "qemu-system-x86",
            "/usr/bin/qemu-system-x86_64",
            Program::Qemu,
        ),
        ("qemu-system-x86", "", Program::Qemu),
        ("db-1", "/usr/libexec/qemu-kvm", Program::Qemu),
        ("kvm", "/usr/bin/x", Program::Qemu),
        (
            "qemu-system-x86",
            "/usr/bin/qemu-system-x86_64-spice",
            Program::Qemu,
        ),
        (
            "qemu-system-aar",
            "/opt/qemu-9.0/bin/qemu-system-aarch64",
            Program::Qemu,
        ),
        (
            "qemu-lite-syste",
            "/usr/bin/qemu-lite-system-x86_64",
            Program::Qemu,
        ),
        // Replaced while it runs.
        ("db-1", "/usr/libexec/qemu-kvm (deleted)", Program::Qemu),
        (
            "db-1",
            "/usr/libexec/qemu-kvm;66f3a1b2 (deleted)",
            Program::Qemu,
        ),
        ("db-1", "/usr/libexec/qemu-kvm;66f3a1b2", Program::Qemu),
        (
            "db-1",
            "/usr/bin/qemu-system-x86_64.dpkg-tmp (deleted)",
            Program::Qemu,
        ),
        // Wrapped.
        (
            ".qemu-system-x8",
            "/nix/store/a/bin/.qemu-system-x86_64-wrapped",
            Program::Qemu,
        ),
        (".qemu-system-x8", "", Program::Qemu),
        (".qemu-kvm-wrapp", "", Program::Qemu),
        ("db-1", "/nix/store/a/bin/.kvm-wrapped_", Program::Qemu),
        ("kvm.real", "/usr/bin/kvm.real", Program::Qemu),
        ("db-1", "/usr/bin/kvm.distrib (deleted)", Program::Qemu),
        ("qemu-kvm.orig", "", Program::Qemu),
        (".kvm-real", "/gnu/store/a/bin/.kvm-real", Program::Qemu),
        // Xen.
        ("qemu-dm-5", "", Program::Qemu),
        ("tapdisk", "/usr/sbin/tapdisk", Program::Tool),
        (
            "VirtualBox",
            "/usr/lib/virtualbox/VirtualBox",
            Program::VirtualBox,
        ),
        (
            "vmware-vmx",
            "/usr/lib/vmware/bin/vmware-vmx",
            Program::OtherVm,
        ),
        ("cloud-hyperviso", "", Program::CloudHypervisor),
        (
            "x",
            "/usr/bin/cloud-hypervisor-static",
            Program::CloudHypervisor,
        ),
        (
            "x",
            "/srv/jailer/firecracker/1/root/firecracker",
            Program::Firecracker,
        ),
        ("x", "/opt/firecracker-v1.9.0-x86_64", Program::Firecracker),
        ("x", "/usr/bin/firecracker-containerd", Program::Other),
        ("pcivirtio-block", "/usr/bin/crosvm", Program::Crosvm),
        (
            "VBoxHeadless",
            "/usr/lib/virtualbox/VBoxHeadless",
            Program::VirtualBox,
        ),
        ("qemu-nbd", "/usr/bin/qemu-nbd", Program::Tool),
        ("qemu-storage-da", "", Program::Tool),
        (
            "qemu-img",
            "/nix/store/a/bin/.qemu-img-wrapped",
            Program::Tool,
        ),
        ("qemu-ga", "/usr/bin/qemu-ga", Program::Other),
        ("sh", "/usr/bin/qemu-x86_64", Program::Other),
        (
            "qemu-aarch64-st",
            "/usr/bin/qemu-aarch64-static (deleted)",
            Program::Other,
        ),
        ("qemu-pr-helper", "/usr/bin/qemu-pr-helper", Program::Other),
        ("not-qemu", "/usr/bin/not-qemu", Program::Other),
        ("kvm-nx-lpage-re", "", Program::Other),
        ("kvm-pit/123", "", Program::Other),
    ] {
        let found = Program::of(name, Some(Path::new(program)), false);
        assert_eq!(found, expected, "{name} {program}");
        let with_kvm = Program::of(name, Some(Path::new(program)), true);
        let expected = match expected {
            Program::Other => Program::OtherVm,
            known => known,
        };
        assert_eq!(with_kvm, expected, "{name} {program}");
    }
}

#[test]
fn of_several_options_the_last_counts() {
    let some = |text: &str| Some(text.to_owned());
    let line = [
        "kvm", "-name", "guest=a", "-uuid", "u", "-name", "b", "-uuid", "v",
    ];
    assert_eq!(facts(&line), (some("b"), some("v")));
    // QEMU merges them.
    let line = ["kvm", "-name", "a", "-name", "process=x,debug-threads=on"];
    assert_eq!(facts(&line), (some("a"), None));
    assert_eq!(
        facts(&["kvm", "-name", "guest=a,guest=b"]),
        (some("b"), None)
    );
    assert_eq!(facts(&["kvm", "-name", "a,guest=b"]), (some("b"), None));
    assert_eq!(facts(&["kvm", "-name", "a,,b=c"]), (some("a,b=c"), None));
    assert_eq!(
        facts(&["kvm", "-name", "a", "-name", ""]),
        (some("a"), None)
    );
}

#[test]
fn other_programs_have_options_of_their_own() {
    let some = |text: &str| Some(text.to_owned());
    let of = facts_of;
    use Program::{CloudHypervisor, Crosvm, Firecracker, OtherVm, VirtualBox};
    for (program, line, name, uuid) in [
        (
            Firecracker,
            &["firecracker", "--id", "fc-1", "--start-time-us", "5"][..],
            some("fc-1"),
            None,
        ),
        (
            Firecracker,
            &["firecracker", "--id=fc-1", "--api-sock=/api.socket"],
            some("fc-1"),
            None,
        ),
        (
            Firecracker,
            &["firecracker", "--api-sock", "/tmp/web.sock"],
            some("web"),
            None,
        ),
        (
            Firecracker,
            &["firecracker", "--api-sock", "/run/firecracker.socket"],
            None,
            None,
        ),
        (
            CloudHypervisor,
            &[
                "cloud-hypervisor",
                "--disk",
                "path=/srv/a",
                "--api-socket",
                "path=/run/ch/web.sock",
            ],
            some("web"),
            None,
        ),
        (
            CloudHypervisor,
            &[
                "cloud-hypervisor",
                "--api-socket",
                "/run/vc/vm/0815/clh-api.sock",
            ],
            some("0815"),
            None,
        ),
        (
            CloudHypervisor,
            &[
                "cloud-hypervisor",
                "--api-socket=fd=3",
                "--platform",
                "serial_number=1,uuid=u",
            ],
            None,
            some("u"),
        ),
        (
            Crosvm,
            &[
                "crosvm",
                "run",
                "--name",
                "web",
                "-s",
                "/run/x.sock",
                "--block",
                "/a",
            ],
            some("web"),
            None,
        ),
        (
            Crosvm,
            &["crosvm", "--log-level=debug", "run", "-s", "/run/web.sock"],
            some("web"),
            None,
        ),
        (
            VirtualBox,
            &[
                "VBoxHeadless",
                "--comment",
                "web",
                "--startvm",
                "0a0b0c0d-0000-4000-8000-000000000002",
            ],
            some("web"),
            some("0a0b0c0d-0000-4000-8000-000000000002"),
        ),
        (
            VirtualBox,
            &["VBoxHeadless", "--startvm", "web"],
            some("web"),
            None,
        ),
        (
            OtherVm,
            &["lkvm", "run", "--name", "web", "-d", "/srv/a"],
            some("web"),
            None,
        ),
    ] {
        assert_eq!(of(program, line), (name, uuid), "{line:?}");
    }
    // `-s` of QEMU takes no value.
    assert_eq!(facts(&["kvm", "-s", "-S"]), (None, None));
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
    let xen = ["qemu-dm", "-d", "5", "-domain-name", "web", "-vnc", "1"];
    assert_eq!(facts(&xen), (some("web"), None));
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
    assert_eq!(facts.manager, Some(Manager::Libvirt));
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
        for program in [Program::Qemu, Program::CloudHypervisor, Program::Crosvm] {
            drop(VmFacts::of_command_line(program, &line));
        }
        let _ = Program::of(&text, Some(Path::new(&text)), false);
    }

    #[test]
    fn no_option_makes_it_panic(line in prop::collection::vec("(--?(name|smbios|uuid|api-socket|s|platform))?=?[=,/.a]{0,6}|run|é,", 0..8)) {
        let line: Vec<_> = line.into_iter().map(String::into_bytes).collect();
        for program in [
            Program::Qemu,
            Program::CloudHypervisor,
            Program::Firecracker,
            Program::Crosvm,
            Program::VirtualBox,
        ] {
            drop(VmFacts::of_command_line(program, &line));
        }
    }

    #[test]
    fn every_name_comes_through(name in "[a-z,=]{1,20}") {
        let value = format!("guest={},debug-threads=on", name.replace(',', ",,"));
        prop_assert_eq!(facts(&["kvm", "-name", &value]).0, Some(name.clone()));
        // Without its key it must not look like one.
        let value = format!("x{}", name.replace('=', "-").replace(',', ",,"));
        let expected = format!("x{}", name.replace('=', "-"));
        prop_assert_eq!(facts(&["kvm", "-name", &value]).0, Some(expected));
    }
}
