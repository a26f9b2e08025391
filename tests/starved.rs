//! XFS starved of memory on a kernel that prints nothing about it, and what the daemon does.
//!
//! The guest boots Linux 6.12 with little memory. Its disk is an XFS with a shattered image. Memory is
//! filled until little more than the kernel's reserve is free; then a thread with the name of a vCPU
//! discards a block of the image, as QEMU does. XFS loads the extent map within the transaction
//! (`xfs_bunmapi`, `xfs_iread_extents`), and there an allocation may neither fail (`__GFP_NOFAIL`) nor
//! enter a file system to free memory (`memalloc_nofs_save`). The OOM killer is not asked on its behalf
//! (`out_of_memory`, mm/oom_kill.c: nothing is killed for a request without `__GFP_FS`), so the thread
//! loops in `__alloc_pages_slowpath` until memory comes from elsewhere, and nothing is logged.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]
#![allow(clippy::print_stdout, reason = "it is the guest's serial line")]
#![allow(unreachable_pub, reason = "a test crate has no outside")]

mod support;

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::mount::{MountFlags, mount};
use rustix::process::configure_io_flusher_behavior;
use serde_json::Value;

use support::bed::Plan;
use support::boot::{self, Machine};
use support::rundir::Place;
use support::skip::Here;
use support::{GIB, fragwatch, guest};

/// Extents of the image. Their map and the blocks that it is read from take 7 MB.
const EXTENTS: u64 = 400_000;
/// The memory of the guest, in MiB.
const MEMORY: u32 = 768;
/// What is left free besides the kernel's reserve, in KiB.
const SPARE: u64 = 512;
/// The reserve (vm.min_free_kbytes).
const RESERVE: u64 = 1024;

/// For how long.
const STARVED: Duration = Duration::from_secs(30);
/// Tells the process that takes the memory that it is the one.
const HOG: &str = "FRAGWATCH_HOG";

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_starved_kernel_is_noticed_though_it_prints_nothing() {
    support::require!(starved());
}

fn starved() -> Here<()> {
    let mut bed = Plan::of("xfs").size(4 * GIB).place(Place::Disk).make()?;
    guest::alternate_blocks(&bed.path().join("vm.img"), EXTENTS);
    bed.umount();
    let machine = Machine {
        test: "guest_that_starves",
        disk: Some(boot::Disk {
            image: bed.image(),
            aio: "threads",
        }),
        files: &[env!("CARGO_BIN_EXE_fragwatch").into()],
        memory: MEMORY,
        kernel: boot::Kernel::Unpacked("6.12"),
        processors: 1,
    };
    let mut vm = machine.start()?;
    vm.wait_for("guest: starved no more");
    vm.wait_for("\"state\":\"ended\"");
    let said = vm.said();
    vm.end();
    eprintln!("{said}");
    assert!(
        !said.contains("possible memory allocation deadlock"),
        "{said}"
    );
    assert!(!said.contains("Out of memory"), "{said}");
    Ok(())
}

#[test]
#[ignore = "not a test: what the virtual machine does"]
fn guest_that_starves() {
    if !boot::is_guest() {
        return;
    }
    boot::arrive();
    println!();
    for directory in ["/mnt", "/etc"] {
        fs::create_dir_all(directory).unwrap();
    }
    fs::write("/etc/group", "root:x:0:\n").unwrap();
    let none = None::<&CStr>;
    mount(boot::disk(), "/mnt", "xfs", MountFlags::empty(), none).unwrap();
    for (setting, value) in [
        ("/sys/kernel/mm/transparent_hugepage/enabled", "never"),
        ("/proc/sys/vm/min_free_kbytes", &RESERVE.to_string()),
        // All that is free can be had by everyone.
        ("/proc/sys/vm/lowmem_reserve_ratio", "0 0 0 0 0"),
        ("/proc/self/oom_score_adj", "-1000"),
    ] {
        fs::write(setting, value).unwrap();
    }
    // The daemon inherits it. Without it whoever needs a page now has the OOM killer called, which
    // finds nothing to kill: "System is deadlocked on memory".
    configure_io_flusher_behavior(true).unwrap();
    let mut daemon = start_daemon();
    // The daemon has read the image's header, and XFS has loaded its map for it. Nobody has it open.
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let vcpu = Vcpu::start(Path::new("/mnt/vm.img"));
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).unwrap();
    let mut hog = Hog::start();
    vcpu.discard.send(()).unwrap();
    // Nothing here that takes memory until it has ended.
    hog.wait();
    println!("guest: starved no more");
    vcpu.thread.join().unwrap();
    let open = incident("open").to_string();
    println!("guest: {open}");
    println!("guest: {}", incident("ended"));
    daemon.kill().unwrap();
    boot::leave();
}

/// Waits until the incident is so far, and gives it as its file has it.
fn incident(state: &str) -> Value {
    let deadline = Instant::now() + 60 * SECOND;
    let mut text = String::new();
    loop {
        assert!(Instant::now() < deadline, "not {state}: {text}");
        thread::sleep(SECOND / 5);
        let files = fs::read_dir("/tmp/state/incidents");
        let Some(file) = files.ok().and_then(|files| files.flatten().next()) else {
            continue;
        };
        text = fs::read_to_string(file.path()).unwrap_or_default();
        let incident: Value = serde_json::from_str(&text).unwrap_or_default();
        if incident["state"] == state {
            return incident;
        }
    }
}

fn start_daemon() -> Child {
    let config = PathBuf::from("/tmp/fragwatch.toml");
    let text = "[images]\npaths = [\"/mnt\"]\n[sampling]\nmap_interval = \"never\"\n[rescue]\nquiet_after = \"10s\"\n\
                [history]\npath = \"/tmp/state/history.db\"\n\
                [metrics]\nlisten = \"0.0.0.0:9843\"\n";
    fs::write(&config, text).unwrap();
    fs::create_dir_all("/tmp/state").unwrap();
    let ask = |subcommand: &str| {
        let mut command = fragwatch();
        command.arg(subcommand).arg("--config").arg(&config);
        command.env("STATE_DIRECTORY", "/tmp/state");
        command.env("RUNTIME_DIRECTORY", "/run");
        command
    };
    let daemon = ask("run").spawn().unwrap();
    let deadline = Instant::now() + 60 * SECOND;
    loop {
        let output = ask("status").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains("last sweep") {
            println!("{text}");
            return daemon;
        }
        assert!(Instant::now() < deadline, "{output:?}");
        thread::sleep(SECOND / 5);
    }
}

/// A thread that discards a block of the image when it is let.
struct Vcpu {
    discard: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Vcpu {
    fn start(image: &Path) -> Vcpu {
        let image: File = OpenOptions::new()
            .read(true)
            .write(true)
            .open(image)
            .unwrap();
        let (discard, may) = mpsc::channel();
        let body = move || {
            may.recv().unwrap();
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&image, hole, 0, guest::BLOCK).unwrap();
        };
        let thread = thread::Builder::new().name("CPU 0/KVM".to_owned());
        let thread = thread.spawn(body).unwrap();
        Vcpu { discard, thread }
    }
}

#[test]
#[ignore = "not a test: what takes the memory of the virtual machine"]
fn hog() {
    if std::env::var_os(HOG).is_none() {
        return;
    }
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).unwrap();
    let taken = take_memory(RESERVE + SPARE);
    println!(
        "guest: {} blocks are taken, {} KiB free",
        taken.len(),
        mem_free()
    );
    thread::sleep(STARVED);
    std::process::exit(0);
}

/// A process that takes all memory, for as long as it lives.
struct Hog(Child);

impl Hog {
    /// Starts it, and waits until the memory is taken.
    fn start() -> Hog {
        let mut command = Command::new("/init");
        command.args(["--exact", "hog", "--include-ignored", "--nocapture"]);
        let child = command.env(HOG, "1").stdout(Stdio::piped()).spawn();
        let mut hog = Hog(child.unwrap());
        let output = BufReader::new(hog.0.stdout.take().unwrap());
        let mut lines = output.lines().map(Result::unwrap);
        // The harness has begun the line.
        let line = lines.find(|line| line.contains("guest: ")).unwrap();
        println!("{line}");
        hog
    }

    /// Until it has ended.
    fn wait(&mut self) {
        self.0.wait().unwrap();
    }
}

/// Takes memory until only so many KiB are free, and kswapd finds no more to free.
fn take_memory(leave: u64) -> Vec<Vec<u8>> {
    let mut taken = Vec::new();
    let mut calm = 0;
    while calm < 5 {
        let free = mem_free();
        if free <= leave {
            calm += 1;
            thread::sleep(SECOND / 5);
            continue;
        }
        calm = 0;
        // Of smaller blocks malloc(3) takes more than they need.
        let take = ((free - leave) / 2).clamp(192, 65536) * 1024;
        taken.push(vec![1; usize::try_from(take).unwrap()]);
    }
    taken
}

/// In KiB.
fn mem_free() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("MemFree:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
