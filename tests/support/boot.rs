//! A VM with a kernel of its own, whose first and only process is the test binary once more.
//!
//! Nothing need be installed in it: an initramfs holds the binary, the libraries that it is linked
//! against, and the few modules without which the kernel finds no disk. What the guest does is a
//! test of the same crate that is ignored otherwise; what it prints comes over the serial line.
//!
//! ```text
//! boot::Machine { .. }.start()  ─► kernel ─► /init --exact guest --ignored   (boot::arrive)
//!        │  wait_for("…")  ◄── serial line ◄──┤ println!
//!        └  say("…")       ─── serial line ──►┘ stdin
//! ```

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

use super::child::Child;
use super::rundir::{self, Place};
use super::skip::{Here, NotHere};
use super::tools;

/// Tells the guest that it is one.
const IN_GUEST: &str = "FRAGWATCH_IN_GUEST";
/// What stands between the kernel and its disk, in the order in which it has to be loaded. What is
/// not there is built in.
const MODULES: [&str; 6] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
];
/// A processor that is only imitated takes its time.
const PATIENCE: Duration = Duration::from_secs(150);

/// A VM.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// The test that it runs, as the harness calls it.
    pub test: &'a str,
    /// Its disk, opened for direct I/O and locked, as libvirt has it done.
    pub image: &'a Path,
    /// How QEMU reads and writes it: `threads` or `native`.
    pub aio: &'a str,
}

/// A VM at work. Killed when it goes out of scope.
#[derive(Debug)]
pub struct Running {
    qemu: Child,
    said: Arc<Mutex<String>>,
    dir: PathBuf,
}

impl Machine<'_> {
    /// Switches it on.
    pub fn start(&self) -> Here<Running> {
        let program = tools::have("qemu-system-x86_64")?;
        if !cfg!(target_arch = "x86_64") {
            return Err(NotHere::because(
                "the guest is this program, and not for x86-64",
            ));
        }
        let (kernel, modules) = kernel()?;
        let dir = rundir::new_dir(Place::Disk).map_err(NotHere::because)?;
        let initramfs = dir.join("initramfs");
        fs::write(&initramfs, self::initramfs(&modules)?).map_err(NotHere::because)?;
        let words = format!(
            "console=ttyS0 quiet panic=-1 rdinit=/init {IN_GUEST}=1 -- \
             --exact {} --ignored --nocapture --test-threads=1",
            self.test
        );
        // The name is the only thing in it that we do not choose.
        let name = self.image.display().to_string().replace(',', ",,");
        let file = format!(
            "driver=file,node-name=file,filename={name},locking=on,aio={},cache.direct=on,discard=unmap",
            self.aio
        );
        let mut command = Command::new(program);
        command
            .args(["-accel", "tcg", "-m", "384", "-no-reboot"])
            .args(["-display", "none", "-nodefaults", "-serial", "stdio"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", &words, "-blockdev", &file])
            .args([
                "-blockdev",
                "driver=raw,node-name=disk,file=file,discard=unmap",
            ])
            .args(["-device", "virtio-blk-pci,drive=disk"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut qemu = Child::spawn(&mut command).map_err(NotHere::because)?;
        let said = Arc::new(Mutex::new(String::new()));
        let console = qemu.pipes().stdout.take().expect("it is piped");
        let heard = Arc::clone(&said);
        std::thread::spawn(move || listen(console, &heard));
        Ok(Running { qemu, said, dir })
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
            // First this: what it said last is heard after its end.
            let ended = self.qemu.wait(Duration::from_millis(20));
            let said = self.said();
            let is_whole = |line: &&str| line.ends_with('\n') && line.contains(text);
            if let Some(line) = said.split_inclusive('\n').find(is_whole) {
                return line.trim_end().to_owned();
            }
            let goes_on = ended.is_none() && Instant::now() < deadline;
            assert!(goes_on, "it does not say {text} ({ended:?}):\n{said}");
        }
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
        let ended = self.qemu.wait(PATIENCE);
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

/// A kernel and its modules: what `tests/run` has unpacked, or what the machine itself boots.
fn kernel() -> Here<(PathBuf, PathBuf)> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools");
    let found = [unpacked.as_path(), Path::new("/")]
        .into_iter()
        .find_map(|root| {
            let boot = fs::read_dir(root.join("boot")).ok()?;
            boot.flatten().find_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let version = name.strip_prefix("vmlinuz-")?;
                let modules =
                    ["lib/modules", "usr/lib/modules"].map(|at| root.join(at).join(version));
                // Some distributions build in all that is needed, and pack the modules separately.
                let modules = modules.into_iter().find(|modules| modules.is_dir());
                Some((entry.path(), modules.unwrap_or_default()))
            })
        });
    found.ok_or_else(|| {
        NotHere::because(
            "there is no kernel for a guest; tests/run unpacks one of the distribution",
        )
    })
}

fn initramfs(modules: &Path) -> Here<Vec<u8>> {
    let mut archive = Archive::default();
    let program = std::env::current_exe().map_err(NotHere::because)?;
    archive.file("init", &fs::read(&program).map_err(NotHere::because)?);
    for library in libraries(&program)? {
        let inside = library
            .strip_prefix("/")
            .unwrap_or(&library)
            .display()
            .to_string();
        archive.file(&inside, &fs::read(&library).map_err(NotHere::because)?);
    }
    archive.directory("dev");
    for (n, module) in MODULES
        .iter()
        .filter_map(|name| find(modules, name))
        .enumerate()
    {
        archive.file(&format!("modules/{n}"), &unpacked(&module)?);
    }
    Ok(archive.end())
}

/// What the program is linked against, by ldd(1).
fn libraries(program: &Path) -> Here<Vec<PathBuf>> {
    let ldd = tools::have("ldd")?;
    let output = Command::new(ldd)
        .arg(program)
        .output()
        .map_err(NotHere::because)?;
    let text = String::from_utf8_lossy(&output.stdout);
    // libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

/// The file of a module, compressed or not.
fn find(below: &Path, module: &str) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(below).ok()?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    entries.into_iter().find_map(|entry| {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            return find(&entry.path(), module);
        }
        let name = entry.file_name().into_string().ok()?;
        let is_it = name
            .split_once(".ko")
            .is_some_and(|(stem, _)| stem.replace('-', "_") == module);
        is_it.then(|| entry.path())
    })
}

fn unpacked(module: &Path) -> Here<Vec<u8>> {
    let tool = match module.extension().and_then(|end| end.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(module).map_err(NotHere::because),
    };
    let mut command = Command::new(tools::have(tool)?);
    let output = command
        .arg("-dc")
        .arg(module)
        .output()
        .map_err(NotHere::because)?;
    Ok(output.stdout)
}

/// An archive as the kernel unpacks it: cpio, in the format `newc`.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    directories: Vec<String>,
    entries: u32,
}

impl Archive {
    fn file(&mut self, path: &str, contents: &[u8]) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.entry(path, 0o100_755, contents);
    }

    /// With those above it.
    fn directory(&mut self, path: &str) {
        if self.directories.iter().any(|known| known == path) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.directories.push(path.to_owned());
        self.entry(path, 0o040_755, &[]);
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let (links, nothing) = (1, 0);
        let fields = [
            self.entries,
            mode,
            nothing,
            nothing,
            links,
            nothing,
            contents.len() as u32,
            nothing,
            nothing,
            nothing,
            nothing,
            path.len() as u32 + 1,
            nothing,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// In the guest: makes its disk appear, and gives its path. Nothing if this is no guest.
pub fn arrive() -> Option<PathBuf> {
    std::env::var_os(IN_GUEST)?;
    mount(
        "dev",
        "/dev",
        "devtmpfs",
        MountFlags::empty(),
        None::<&CStr>,
    )
    .expect("it mounts");
    for n in 0..MODULES.len() {
        if let Ok(module) = File::open(format!("/modules/{n}")) {
            finit_module(module, c"", 0).expect("it is for this kernel");
        }
    }
    let disk = PathBuf::from("/dev/vda");
    let deadline = Instant::now() + PATIENCE;
    while !disk.exists() {
        assert!(Instant::now() < deadline, "there is no disk");
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(disk)
}

/// In the guest: switches it off. QEMU ends instead of starting it anew.
pub fn leave() -> ! {
    let failed = reboot(RebootCommand::Restart);
    panic!("it goes on: {failed:?}");
}
