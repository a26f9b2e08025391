//! A VM with a kernel of its own, whose first and only process is the test binary once more.
//!
//! Nothing need be installed in it: an initramfs holds the binary and what it needs. What the guest
//! does is a test of the same crate; what it prints comes over the serial line.
//!
//! ```text
//! boot::Machine { .. }.start()  ─► kernel ─► /init --exact guest   (boot::arrive)
//!        │  wait_for("…")  ◄── serial line ◄──┤ println!
//!        └  say("…")       ─── serial line ──►┘ stdin
//! ```

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

use super::child::Child;
use super::initramfs::{self, MODULES};
use super::rundir::{self, Place};
use super::skip::{Here, NotHere};
use super::tools;

/// Tells the guest that it is one.
const IN_GUEST: &str = "FRAGWATCH_IN_GUEST";
/// Where it looks for programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// One RAM disk of so many KiB. It takes memory as it is written.
const RAM_DISK: &CStr = c"rd_nr=1 rd_size=393216";
/// A processor that is only imitated takes its time.
const PATIENCE: Duration = Duration::from_secs(300);

/// A VM.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// The test that it runs, as the harness calls it.
    pub test: &'a str,
    /// Its disk, if it has one.
    pub disk: Option<Disk<'a>>,
    /// What it has besides the test binary, at the same place as here.
    pub files: &'a [PathBuf],
    /// Its memory, in MiB.
    pub memory: u32,
    /// What it boots.
    pub kernel: Kernel,
    /// How many processors it has.
    pub processors: u32,
}

/// The kernel of a VM.
#[derive(Debug, Clone, Copy, Default)]
pub enum Kernel {
    /// The distribution's, or what this machine itself boots.
    #[default]
    Usual,
    /// The one that `tests/run` has unpacked to `target/test-tools/kernels` under this name.
    Unpacked(&'static str),
}

/// A disk, opened for direct I/O and locked, as libvirt has it done.
#[derive(Debug, Clone, Copy)]
pub struct Disk<'a> {
    /// What is on it.
    pub image: &'a Path,
    /// How QEMU reads and writes it: `threads` or `native`.
    pub aio: &'a str,
}

/// What a VM boots, for those who start it themselves.
#[derive(Debug)]
pub struct Parts {
    /// Its kernel and initramfs.
    pub kernel: PathBuf,
    pub memory: PathBuf,
    /// The command line of the kernel.
    pub words: String,
    /// Holds the initramfs.
    pub dir: PathBuf,
}

/// A VM at work. Killed when it goes out of scope.
#[derive(Debug)]
pub struct Running {
    qemu: Child,
    said: Arc<Mutex<String>>,
    /// Until it is known that there is nothing more to hear.
    listener: Option<JoinHandle<()>>,
    dir: PathBuf,
}

impl Machine<'_> {
    /// Switches it on.
    pub fn start(&self) -> Here<Running> {
        self.start_with(&[])
    }

    /// What it boots. Whoever takes it removes the directory.
    pub fn parts(&self) -> Here<Parts> {
        if !cfg!(target_arch = "x86_64") {
            return Err(NotHere::because(
                "the guest is this program, and not for x86-64",
            ));
        }
        let (kernel, modules) = self.kernel.find()?;
        let dir = rundir::new_dir(Place::Disk).map_err(NotHere::because)?;
        let memory = dir.join("initramfs");
        fs::write(&memory, initramfs::build(&modules, self.files)?).map_err(NotHere::because)?;
        // Without a test of the timer, which an emulator on a busy machine may fail: a panic (check_timer,
        // arch/x86/kernel/apic/io_apic.c). The kernel hands on what it does not know: to the first process, as its environment.
        let words = format!(
            "console=ttyS0 quiet panic=-1 no_timer_check rdinit=/init {IN_GUEST}=1 PATH={PATH} -- \
             --exact {} --include-ignored --nocapture --test-threads=1",
            self.test
        );
        Ok(Parts {
            kernel,
            memory,
            words,
            dir,
        })
    }

    /// Switches it on, with further arguments of QEMU.
    pub fn start_with(&self, arguments: &[&str]) -> Here<Running> {
        let program = tools::have("qemu-system-x86_64")?;
        let Parts {
            kernel,
            memory,
            words,
            dir,
        } = self.parts()?;
        let mut command = Command::new(program);
        command
            // Emulated processors that run at the same time, where there are several.
            .args(["-accel", "tcg,thread=multi", "-m", &self.memory.to_string()])
            .args(["-smp", &self.processors.to_string()])
            .args(["-no-reboot", "-display", "none", "-nodefaults"])
            .args(["-serial", "stdio", "-append", &words])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(memory)
            .args(self.disk.iter().flat_map(Disk::arguments))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut qemu = Child::spawn(&mut command).map_err(NotHere::because)?;
        let said = Arc::new(Mutex::new(String::new()));
        let console = qemu.pipes().stdout.take().expect("it is piped");
        let heard = Arc::clone(&said);
        let listener = Some(std::thread::spawn(move || listen(console, &heard)));
        Ok(Running {
            qemu,
            said,
            listener,
            dir,
        })
    }
}

impl Disk<'_> {
    fn arguments(&self) -> [String; 6] {
        // The name is the only thing in it that we do not choose.
        let name = self.image.display().to_string().replace(',', ",,");
        let file = format!(
            "driver=file,node-name=file,filename={name},locking=on,aio={},cache.direct=on,discard=unmap",
            self.aio
        );
        let disk = "driver=raw,node-name=disk,file=file,discard=unmap";
        let device = "virtio-blk-pci,drive=disk";
        ["-blockdev", &file, "-blockdev", disk, "-device", device].map(str::to_owned)
    }
}

/// Until the VM is gone.
fn listen(mut console: impl std::io::Read, said: &Mutex<String>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = console.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        said.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_str(&text);
    }
}

impl Running {
    /// All that came over the serial line.
    pub fn said(&self) -> String {
        let said = self.said.lock();
        said.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a line with `text` in it has come, and gives it.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.ended(Duration::from_millis(20));
            let said = self.said();
            let is_whole = |line: &&str| line.ends_with('\n') && line.contains(text);
            if let Some(line) = said.split_inclusive('\n').find(is_whole) {
                return line.trim_end().to_owned();
            }
            let goes_on = ended.is_none() && Instant::now() < deadline;
            assert!(goes_on, "it does not say {text} ({ended:?}):\n{said}");
        }
    }

    /// Whether it ends within this time. Then all that it said has come.
    fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let ended = self.qemu.wait(within)?;
        if let Some(listener) = self.listener.take() {
            listener.join().expect("it listens to the end");
        }
        Some(ended)
    }

    /// Sends it a line.
    pub fn say(&mut self, line: &str) {
        let input = self.qemu.pipes().stdin.as_mut().expect("it is piped");
        writeln!(input, "{line}")
            .and_then(|()| input.flush())
            .expect("it listens");
    }

    /// Waits until it is switched off.
    ///
    /// # Panics
    /// If it does not come to that, or not in peace.
    pub fn end(mut self) {
        let ended = self.ended(PATIENCE);
        let said = self.said();
        assert!(
            ended.is_some_and(|status| status.success()),
            "{ended:?}:\n{said}"
        );
        assert!(!said.contains("Kernel panic"), "{said}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        rundir::remove(&self.dir);
    }
}

impl Kernel {
    /// It and its modules.
    fn find(self) -> Here<(PathBuf, PathBuf)> {
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools");
        match self {
            Kernel::Usual => kernel_below(&unpacked)
                .or_else(|| kernel_below(Path::new("/")))
                .ok_or_else(|| {
                    NotHere::because(
                        "there is no kernel for a guest; tests/run unpacks one of the distribution",
                    )
                }),
            Kernel::Unpacked(name) => {
                let at = unpacked.join("kernels").join(name);
                kernel_below(&at).ok_or_else(|| {
                    NotHere::because(format_args!(
                        "there is no kernel in {}; tests/run downloads and unpacks it, if Debian's \
                         archive still has it",
                        at.display()
                    ))
                })
            }
        }
    }
}

/// A kernel and its modules below `root`, where a package has put them.
fn kernel_below(root: &Path) -> Option<(PathBuf, PathBuf)> {
    let boot = fs::read_dir(root.join("boot")).ok()?;
    boot.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let version = name.strip_prefix("vmlinuz-")?;
        let modules = ["lib/modules", "usr/lib/modules"].map(|at| root.join(at).join(version));
        // Some distributions build in all that is needed, and pack the modules separately.
        let modules = modules.into_iter().find(|modules| modules.is_dir());
        Some((entry.path(), modules.unwrap_or_default()))
    })
}

/// Whether this is the guest.
pub fn is_guest() -> bool {
    std::env::var_os(IN_GUEST).is_some()
}

/// In the guest: makes of a bare kernel what a program expects.
pub fn arrive() {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(kind, at, kind, MountFlags::empty(), None::<&CStr>).expect("it mounts");
    }
    for (number, name) in MODULES.into_iter().enumerate() {
        let parameters = if name == "brd" { RAM_DISK } else { c"" };
        if let Ok(module) = File::open(initramfs::module(number)) {
            finit_module(module, parameters, 0).expect("it is for this kernel");
        }
    }
}

/// In the guest: its disk.
pub fn disk() -> PathBuf {
    let disk = PathBuf::from("/dev/vda");
    let deadline = Instant::now() + PATIENCE;
    while !disk.exists() {
        assert!(Instant::now() < deadline, "there is no disk");
        std::thread::sleep(Duration::from_millis(10));
    }
    disk
}

/// In the guest: switches it off. QEMU ends instead of starting it anew.
pub fn leave() -> ! {
    let failed = reboot(RebootCommand::Restart);
    panic!("it goes on: {failed:?}");
}
