//! XFS starved of memory on a kernel that prints nothing about it, and what the daemon does.
//!
//! The guest boots Linux 6.12 with two NUMA nodes. Its disk is an XFS with a shattered image. A thread
//! with the name of a vCPU may use the memory of node 1 alone (set_mempolicy(2), `MPOL_BIND`), as libvirt
//! has it done for `<numatune>` with mode `strict`, and a process fills that node until little more than
//! the kernel's reserve is free. Then the thread discards a block of the image, as QEMU does. XFS loads
//! the extent map within the transaction (`xfs_bunmapi`, `xfs_iread_extents`), and there an allocation may
//! neither fail (`__GFP_NOFAIL`) nor enter a file system to free memory (`memalloc_nofs_save`). Nothing is
//! killed for it (`out_of_memory`, mm/oom_kill.c: not for a request without `__GFP_FS`), so the thread
//! loops in `__alloc_pages_slowpath`, and nothing is logged, while node 0 has memory for everything else.
//!
//! Also tried: the same with one node, all of it filled. The thread is stuck in the same way (25 s and
//! longer). But then whoever else needs a page has the OOM killer called, and with nothing to kill the
//! kernel panics ("System is deadlocked on memory"); and a reader of /proc, which may not enter a file
//! system either (`PR_SET_IO_FLUSHER`), waits for memory itself, since the inodes of /proc take some.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]
// set_mempolicy(2) has no safe wrapper.
#![allow(unsafe_code)]
#![allow(clippy::print_stdout, reason = "it is the guest's serial line")]
#![allow(unreachable_pub, reason = "a test crate has no outside")]

mod support;

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
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

/// Extents of the image. Their map takes 10 MB. With 300,000 the node had enough for it.
const EXTENTS: u64 = 600_000;
/// The memory of the guest, in MiB.
const MEMORY: u32 = 768;
/// Its two nodes.
const NODES: [&str; 8] = [
    "-object",
    "memory-backend-ram,id=m0,size=512M",
    "-object",
    "memory-backend-ram,id=m1,size=256M",
    "-numa",
    "node,nodeid=0,memdev=m0,cpus=0",
    "-numa",
    "node,nodeid=1,memdev=m1,cpus=1",
];
/// The kernel's reserve (vm.min_free_kbytes), in KiB. A third of it is of node 1.
const RESERVE: u64 = 3072;
/// For how long.
const STARVED: Duration = Duration::from_secs(35);
/// Tells the process that takes the memory that it is the one.
const HOG: &str = "FRAGWATCH_HOG";

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_starved_kernel_is_noticed_though_it_prints_nothing() {
    support::require!(starved());
}

fn starved() -> Here<()> {
    let mut bed = Plan::of("xfs").size(8 * GIB).place(Place::Disk).make()?;
    guest::alternate_blocks(&bed.path().join("vm.img"), EXTENTS);
    bed.umount_everywhere();
    let machine = Machine {
        test: "guest_that_starves",
        disk: Some(boot::Disk {
            image: bed.image(),
            aio: "threads",
        }),
        files: &[env!("CARGO_BIN_EXE_fragwatch").into()],
        memory: MEMORY,
        kernel: boot::Kernel::Unpacked("6.12"),
        processors: 2,
    };
    let mut vm = machine.start_with(&NODES)?;
    eprintln!("{}", vm.wait_for("guest: the discard took"));
    vm.wait_for("guest: all is well");
    let said = vm.said();
    vm.end();
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
        ("/proc/sys/vm/watermark_boost_factor", "0"),
        // All that is free can be had by everyone.
        ("/proc/sys/vm/lowmem_reserve_ratio", "0 0 0 0 0"),
    ] {
        fs::write(setting, value).unwrap();
    }
    let mut daemon = start_daemon();
    // The daemon has read the image's header, and XFS has loaded its map for it. Nobody has it open.
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let vcpu = Vcpu::start(Path::new("/mnt/vm.img"));
    let mut hog = start_hog();
    vcpu.discard.send(()).unwrap();
    thread::sleep(STARVED);
    hog.kill().unwrap();
    hog.wait().unwrap();
    let took = vcpu.thread.join().unwrap();
    println!("guest: the discard took {took:?}");
    assert!(took > STARVED / 2, "it was not starved");
    let incident = ended_incident();
    println!("guest: {incident}");
    is_as_it_was(&incident, vcpu.tid);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    println!("guest: all is well");
    boot::leave();
}

/// The task is named, and that drops brought nothing is plain.
fn is_as_it_was(incident: &Value, tid: i32) {
    assert_eq!(incident["trigger"], "stall");
    let events = incident["events"].as_array().unwrap();
    let of = |kind: &str| {
        events
            .iter()
            .filter(|event| event["kind"] == kind)
            .collect::<Vec<_>>()
    };
    let (stalls, actions) = (of("stall"), of("action"));
    for stall in &stalls {
        assert_eq!(
            (&stall["comm"], &stall["tid"]),
            (&"CPU 0/KVM".into(), &tid.into())
        );
        let stack = stall["stack"].to_string();
        assert!(stack.contains("xfs_iread_extents"), "{stack}");
    }
    // A later one may be read between two allocations, when there is memory again.
    let stack = stalls[0]["stack"].to_string();
    assert!(stack.contains("__alloc_pages"), "{stack}");
    let first = stalls[0]["for_ms"].as_u64().unwrap();
    assert!((10_000..20_000).contains(&first), "{first} ms");
    assert!(actions.len() > 1, "{actions:?}");
    assert_eq!(incident["failed"], 0);
    let freed = incident["slab_freed_kib"].as_u64().unwrap();
    assert!(freed < 4096, "{freed} KiB, of some 2 MiB");
    let after = |stall: &&&Value| stall["after_ms"].as_i64() > actions[0]["after_ms"].as_i64();
    assert!(
        stalls.iter().filter(after).count() > 0,
        "it was still starved"
    );
}

/// Waits until the incident is over, and gives it as its file has it.
fn ended_incident() -> Value {
    let deadline = Instant::now() + 120 * SECOND;
    let mut text = String::new();
    loop {
        assert!(Instant::now() < deadline, "it is not over: {text}");
        thread::sleep(SECOND / 5);
        let files = fs::read_dir("/tmp/state/incidents");
        let Some(file) = files.ok().and_then(|files| files.flatten().next()) else {
            continue;
        };
        text = fs::read_to_string(file.path()).unwrap_or_default();
        let incident: Value = serde_json::from_str(&text).unwrap_or_default();
        if incident["state"] == "ended" {
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
    wait_for_a_sweep(&ask);
    daemon
}

fn wait_for_a_sweep(ask: &dyn Fn(&str) -> Command) {
    let deadline = Instant::now() + 120 * SECOND;
    loop {
        let output = ask("status").output().unwrap();
        if String::from_utf8_lossy(&output.stdout).contains("last sweep") {
            return;
        }
        assert!(Instant::now() < deadline, "{output:?}");
        thread::sleep(SECOND / 5);
    }
}

/// A thread that discards a block of the image when it is let. It gives how long that took.
struct Vcpu {
    tid: i32,
    discard: mpsc::Sender<()>,
    thread: JoinHandle<Duration>,
}

impl Vcpu {
    fn start(image: &Path) -> Vcpu {
        let image: File = OpenOptions::new()
            .read(true)
            .write(true)
            .open(image)
            .unwrap();
        let (discard, may) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let body = move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get())
                .unwrap();
            may.recv().unwrap();
            use_node_1();
            // An allocation before the transaction would have the OOM killer called.
            configure_io_flusher_behavior(true).unwrap();
            let began = Instant::now();
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&image, hole, 0, guest::BLOCK).unwrap();
            began.elapsed()
        };
        let thread = thread::Builder::new().name("CPU 0/KVM".to_owned());
        let thread = thread.spawn(body).unwrap();
        Vcpu {
            tid: told.recv().unwrap(),
            discard,
            thread,
        }
    }
}

#[test]
#[ignore = "not a test: what takes the memory of the virtual machine"]
fn hog() {
    if std::env::var_os(HOG).is_none() {
        return;
    }
    use_node_1();
    // Nothing is killed for its sake either: at the end it waits for memory.
    configure_io_flusher_behavior(true).unwrap();
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).unwrap();
    let mut taken = Vec::new();
    loop {
        taken.push(vec![1_u8; 1024 * 1024]);
    }
}

/// Starts a process that takes all of node 1, and what is freed of it, for as long as it lives; and
/// waits until it has.
fn start_hog() -> Child {
    let mut command = Command::new("/init");
    command.args(["--exact", "hog", "--include-ignored", "--nocapture"]);
    let hog = command.env(HOG, "1").spawn().unwrap();
    let deadline = Instant::now() + 60 * SECOND;
    let mut full = 0;
    while full < 5 {
        assert!(Instant::now() < deadline, "{} KiB free", free_of_node_1());
        full = if free_of_node_1() <= RESERVE {
            full + 1
        } else {
            0
        };
        thread::sleep(SECOND / 5);
    }
    hog
}

/// In KiB.
fn free_of_node_1() -> u64 {
    // Otherwise each processor keeps up to 125 pages for itself.
    let _ = fs::read("/proc/sys/vm/stat_refresh");
    let text = fs::read_to_string("/sys/devices/system/node/node1/meminfo").unwrap();
    let line = text.lines().find(|line| line.contains("MemFree:")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

/// The calling thread, and what it starts, gets memory of node 1 and no other.
fn use_node_1() {
    const MPOL_BIND: libc::c_long = 2;
    let nodes: libc::c_ulong = 1 << 1;
    // SAFETY: the kernel reads one word of the mask, which is there.
    let set = unsafe { libc::syscall(libc::SYS_set_mempolicy, MPOL_BIND, &raw const nodes, 64) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}
