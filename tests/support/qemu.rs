//! A real QEMU that holds an image. It need not boot for that: its processors stay stopped.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::child::Child;
use super::skip::Here;
use super::tools;

/// How a VM opens its image.
#[derive(Debug, Clone, Copy)]
pub struct Vm<'a> {
    /// `-name guest=…`
    pub name: &'a str,
    /// `-uuid …`
    pub uuid: &'a str,
    /// `cache=…`: `none` is O_DIRECT, `writeback` is not.
    pub cache: &'a str,
    /// Whether other writers are let in (`share-rw=on`).
    pub shared: bool,
}

impl Vm<'_> {
    /// A VM with O_DIRECT of that name.
    pub fn named(name: &str) -> Vm<'_> {
        Vm {
            name,
            uuid: "5f3b1a2c-1d2e-4f30-8a4b-5c6d7e8f9012",
            cache: "none",
            shared: false,
        }
    }

    /// Starts it on a raw image, and waits until it has that open for writing.
    pub fn start(&self, image: &Path) -> Here<Child> {
        let qemu = tools::have("qemu-system-x86_64")?;
        let drive = format!(
            "file={},format=raw,if=none,id=disk,cache={}",
            image.display(),
            self.cache
        );
        let share = if self.shared { "on" } else { "off" };
        let mut command = Command::new(qemu);
        command
            .args(["-accel", "tcg", "-machine", "q35", "-m", "16", "-S"])
            .args(["-display", "none", "-nodefaults"])
            .args(["-name", &format!("guest={},debug-threads=on", self.name)])
            .args(["-uuid", self.uuid, "-drive", &drive, "-device"])
            .arg(format!("virtio-blk-pci,drive=disk,share-rw={share}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut vm = Child::spawn(&mut command).expect("it starts");
        let deadline = Instant::now() + Duration::from_secs(30);
        while !writes(vm.id(), image) {
            let ended = vm.wait(Duration::from_millis(20));
            assert_eq!(ended, None, "{command:?}");
            assert!(Instant::now() < deadline, "{command:?} does not open it");
        }
        Ok(vm)
    }
}

/// Whether a process has a file open for writing.
fn writes(pid: u32, path: &Path) -> bool {
    let Ok(fds) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let is_it =
        |fd: &std::fs::DirEntry| std::fs::read_link(fd.path()).is_ok_and(|target| target == path);
    fds.flatten().filter(is_it).any(|fd| {
        let info = Path::new("/proc").join(pid.to_string()).join("fdinfo");
        let info = std::fs::read_to_string(info.join(fd.file_name())).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
        flags.is_some_and(|flags| flags & libc::O_ACCMODE == libc::O_RDWR)
    })
}
