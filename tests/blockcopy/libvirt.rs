//! A libvirtd of its own, in a mount namespace of its own: it sees the file systems of the tests, and
//! its state, its configuration and its sockets lie in memory, unless a test gives it disks for them. QEMU emulates: where /dev/kvm is no
//! KVM that works, libvirtd would ask it anew before each definition, for half a minute.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::support::child::Child;
use super::support::rundir::{self, Place};
use super::support::skip::{Here, NotHere};
use super::support::tools;

const PATIENCE: Duration = Duration::from_secs(300);
/// Of the disk in all domains.
pub const DISK: &str = "vda";

/// A directory with libvirt and QEMU of another distribution, of which this is `/usr`.
pub const OTHER_USR: &str = "FRAGWATCH_USR";

/// What is mounted before libvirtd starts. `$1` is a directory for it; pairs of a directory and of the
/// place where it is to be mounted follow.
const NAMESPACE: &str = r#"
    set -e
    mount --make-rprivate /
    mkdir -p /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt "$1/dev"
    mount -t tmpfs none "$1/dev"
    mkdir "$1/dev/pts" "$1/dev/shm"
    for name in null zero full random urandom tty; do cp -a "/dev/$name" "$1/dev/"; done
    if [ -c /dev/kmsg ]; then cp -a /dev/kmsg "$1/dev/"; fi
    for name in pts shm; do mount --rbind "/dev/$name" "$1/dev/$name"; done
    ln -s /proc/self/fd "$1/dev/fd"
    ln -s /proc/self/fd/0 "$1/dev/stdin"
    mount --move "$1/dev" /dev
    for at in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt; do
        mount -t tmpfs none "$at"
    done
    mkdir /run/libvirt
    dir=$1
    while shift && [ $# -gt 0 ]; do mount --bind "$1" "$2"; shift; done
    cp "$dir/libvirtd.conf" "$dir/qemu.conf" /etc/libvirt/
    exec sleep infinity"#;

const LIBVIRTD: &str = "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\nunix_sock_dir = \"/run/libvirt\"\n\
                        log_outputs = \"3:stderr\"\n";
const QEMU: &str = "security_driver = \"none\"\nuser = \"root\"\ngroup = \"root\"\n\
                    cgroup_controllers = []\nnamespaces = []\nstdio_handler = \"file\"\n";

/// A libvirtd. Its VMs and itself are killed when it goes out of scope.
pub struct Libvirt {
    namespace: Child,
    daemon: Option<Child>,
    dir: PathBuf,
}

impl Libvirt {
    pub fn start() -> Here<Libvirt> {
        Libvirt::start_with(&[])
    }

    /// With these directories at these places.
    pub fn start_with(mounts: &[(&Path, &Path)]) -> Here<Libvirt> {
        for tool in ["virsh", "libvirtd", "qemu-system-x86_64", "nsenter"] {
            tools::have(tool)?;
        }
        let dir = rundir::new_dir(Place::Disk).map_err(NotHere::because)?;
        fs::write(dir.join("libvirtd.conf"), LIBVIRTD).unwrap();
        fs::write(dir.join("qemu.conf"), QEMU).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", NAMESPACE, "sh"])
            .arg(&dir)
            .args(mounts.iter().flat_map(|(what, at)| [what, at]));
        if let Some(usr) = std::env::var_os(OTHER_USR) {
            command.arg(usr).arg("/usr");
        }
        let namespace = Child::spawn(&mut command).unwrap();
        let mut libvirt = Libvirt {
            namespace,
            daemon: None,
            dir,
        };
        let comm = format!("/proc/{}/comm", libvirt.namespace.id());
        until("the namespace", || {
            let ended = libvirt.namespace.wait(Duration::ZERO);
            assert!(ended.is_none(), "{ended:?}");
            fs::read_to_string(&comm).unwrap() == "sleep\n"
        });
        libvirt.start_daemon();
        Ok(libvirt)
    }

    /// The namespace as seen from outside it: a path in it leads where it leads inside.
    pub fn at(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.namespace.id()));
        root.join(path.strip_prefix("/").unwrap())
    }

    /// A command in the namespace, to be started. Its process is that of the program.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.namespace.id().to_string();
        command
            .args(["--mount", "--target", &target, "--"])
            .arg(program);
        command.stdin(Stdio::null());
        command
    }

    pub fn start_daemon(&mut self) {
        let mut options = fs::File::options();
        let log = options
            .create(true)
            .append(true)
            .open(self.dir.join("libvirtd.log"));
        let mut command = self.command("libvirtd");
        command
            .args(["--pid-file", "/run/libvirtd.pid"])
            .stderr(log.unwrap());
        let mut daemon = Child::spawn(&mut command).unwrap();
        until("libvirtd", || {
            let ended = daemon.wait(Duration::ZERO);
            assert!(ended.is_none(), "{}", self.log());
            self.try_virsh(&["list"]).status.success()
        });
        self.daemon = Some(daemon);
    }

    /// Kills libvirtd; its VMs stay.
    pub fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.signal(Signal::KILL);
            daemon.end();
        }
    }

    pub fn try_virsh(&self, arguments: &[&str]) -> Output {
        self.command("virsh").args(arguments).output().unwrap()
    }

    pub fn virsh(&self, arguments: &[&str]) -> String {
        let output = self.try_virsh(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Defines a domain with one disk, raw unless its name ends in `.qcow2`. `os` is what it boots, `devices` what it has besides.
    pub fn define(&self, name: &str, image: &Path, os: &str, devices: &str) {
        let is_qcow2 = image.extension().is_some_and(|its| its == "qcow2");
        let format = if is_qcow2 { "qcow2" } else { "raw" };
        let image = image.display();
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>384</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='q35'>hvm</type>{os}</os><features><acpi/></features>\
             <cpu mode='maximum'/>\
             <on_reboot>restart</on_reboot>\
             <devices><emulator>/usr/bin/qemu-system-x86_64</emulator><disk type='file' device='disk'>\
             <driver name='qemu' type='{format}' cache='none' io='native'/><source file='{image}'/>\
             <target dev='{DISK}' bus='virtio'/></disk>{devices}</devices></domain>"
        );
        let file = self.dir.join("domain.xml");
        fs::write(&file, xml).unwrap();
        self.virsh(&["define", file.to_str().unwrap()]);
    }

    pub fn power_on(&self, name: &str) {
        // A process that libvirtd has killed may still have the image open, and QEMU's lock on it.
        until("the start", || {
            let output = self.try_virsh(&["start", name]);
            let errors = String::from_utf8_lossy(&output.stderr);
            let locked = errors.contains("\"write\" lock");
            let is_known = output.status.success() || locked;
            assert!(is_known, "{errors} {}", self.log());
            output.status.success()
        });
        // For the janitor.
        let pid = self.qemu(name);
        let start = rundir::start_time(pid).unwrap();
        let records = rundir::of_process(Place::Disk).join("children");
        fs::write(records.join(format!("{pid}.{start}")), "").unwrap();
    }

    /// The process of a domain.
    pub fn qemu(&self, name: &str) -> u32 {
        let file = format!("/run/libvirt/qemu/{name}.pid");
        fs::read_to_string(self.at(Path::new(&file)))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    pub fn kill_qemu(&self, name: &str) {
        let pid = Pid::from_raw(self.qemu(name).try_into().unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        until("its end", || self.state(name).starts_with("shut off"));
    }

    pub fn state(&self, name: &str) -> String {
        self.virsh(&["domstate", name, "--reason"])
            .trim()
            .to_owned()
    }

    /// The path of the disk in a definition.
    pub fn source(&self, name: &str, options: &[&str]) -> PathBuf {
        let arguments = [&["domblklist", name], options].concat();
        let printed = self.virsh(&arguments);
        let line = printed
            .lines()
            .find_map(|line| line.trim().strip_prefix(DISK));
        line.unwrap().trim().into()
    }

    /// What its process writes to: see [`writes_of`].
    pub fn writes(&self, name: &str, directory: &Path) -> Vec<u64> {
        writes_of(self.qemu(name), directory)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("libvirtd.log")).unwrap_or_default()
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            let running = self.try_virsh(&["list", "--name"]);
            for name in String::from_utf8_lossy(&running.stdout).split_whitespace() {
                self.try_virsh(&["destroy", name]);
            }
        }
        self.daemon = None;
        rundir::remove(&self.dir);
    }
}

/// The inodes of the files in `directory` that a QEMU writes to; none if it has ended. It may keep the
/// target of an aborted copy open, if libvirtd died before it had it closed, but without its lock.
pub fn writes_of(qemu: u32, directory: &Path) -> Vec<u64> {
    let process = format!("/proc/{qemu}");
    let fds = fs::read_dir(format!("{process}/fd")).into_iter().flatten();
    let written = fds.flatten().filter(|fd| {
        let number = fd.file_name().into_string().unwrap();
        let info = fs::read_to_string(format!("{process}/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let is_below = fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(directory));
        is_below && flags.is_some_and(|flags| !flags.trim().ends_with('0')) && locks_to_write(&info)
    });
    let inode = |fd: fs::DirEntry| Some(fs::metadata(fd.path()).ok()?.ino());
    written.filter_map(inode).collect()
}

/// Whether one of the locks of a descriptor is QEMU's for writing: byte 101 (`RAW_LOCK_PERM_BASE` and
/// `BLK_PERM_WRITE`).
fn locks_to_write(info: &str) -> bool {
    let locks = info.lines().filter(|line| line.starts_with("lock:"));
    locks.into_iter().any(|line| {
        let mut ends = line.split_whitespace().rev().map(str::parse::<u64>);
        let (last, first) = (ends.next(), ends.next());
        matches!((first, last), (Some(Ok(first)), Some(Ok(last))) if (first..=last).contains(&101))
    })
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not come");
        thread::sleep(Duration::from_millis(20));
    }
}
