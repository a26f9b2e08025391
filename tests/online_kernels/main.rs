//! The online engine on two kernels of Debian: one without the repair of CVE-2026-64600, 2f4acd0fcd86
//! "xfs: resample the data fork mapping after cycling ILOCK", and one with it.
//!
//! In a VM the engine moves an image while direct writes overlap where it is at work, and while
//! neighbour files take up the blocks that become free. A write that goes on with a mapping that is
//! no longer true would land in one of them.
//!
//! | file | idea |
//! |---|---|
//! | `scene`      | the file system, the image, the engine, and what came of it |
//! | `writers`    | the guest's writes |
//! | `neighbours` | the files beside the image |
//! | `contents`   | what each block may hold |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "images of these tests are small"
)]
#![allow(clippy::print_stdout, reason = "it is the guest's serial line")]
#![allow(unreachable_pub, reason = "a test crate has no outside")]

#[path = "../support/mod.rs"]
mod support;

mod contents;
mod neighbours;
mod scene;
mod writers;

use fragwatch::internals::model::RunOutcome;

use scene::Scene;
use support::boot::{self, Kernel, Machine};
use support::skip::Here;
use support::tools;

/// Writes with the repair.
const MANY: u64 = 1_000_000;
/// Writes without it.
const SOME: u64 = 50_000;
/// In MiB: the RAM disk, and the guest's files twice for a moment.
const MEMORY: u32 = 1024;

#[test]
fn without_the_repair_it_refuses_by_itself() {
    support::require!(plays("6.1.0-47", "guest_without_the_repair"));
}

#[test]
fn with_the_repair_a_million_writes_leave_all_whole() {
    support::require!(plays("6.1.0-52", "guest_with_the_repair"));
}

/// Runs the test `guest` in a VM with this kernel.
fn plays(kernel: &'static str, guest: &str) -> Here<()> {
    let files = [tools::have("mkfs.xfs")?, tools::have("xfs_repair")?];
    let machine = Machine {
        test: guest,
        disk: None,
        files: &files,
        memory: MEMORY,
        kernel: Kernel::Unpacked(kernel),
        processors: 2,
    };
    let mut vm = machine.start()?;
    vm.wait_for("guest: begins");
    vm.wait_for("guest: prepared");
    for part in 1..writers::PARTS {
        eprintln!(
            "{kernel}: {}",
            vm.wait_for(&format!("guest: part {part} of"))
        );
    }
    let result = vm.wait_for("guest: result:");
    eprintln!("{kernel}: {result}");
    vm.end();
    Ok(())
}

#[test]
#[ignore = "not a test: what the virtual machine does"]
fn guest_without_the_repair() {
    if !boot::is_guest() {
        return;
    }
    let scene = scene(SOME);
    let refused = scene.judged();
    println!("guest: {refused:?}");
    // What it prevents is reported, and not expected: the writes may miss each other.
    println!("guest: result: {}", scene.play());
    assert!(
        matches!(&refused, RunOutcome::Refused { guard, .. } if guard.as_str() == "kernel"),
        "{refused:?}"
    );
    boot::leave();
}

#[test]
#[ignore = "not a test: what the virtual machine does"]
fn guest_with_the_repair() {
    if !boot::is_guest() {
        return;
    }
    let scene = scene(MANY);
    let judged = scene.judged();
    assert!(matches!(judged, RunOutcome::Stopped { .. }), "{judged:?}");
    let result = scene.play();
    println!("guest: result: {result}");
    assert!(result.is_whole() && result.writes >= MANY, "{result}");
    boot::leave();
}

fn scene(writes: u64) -> Scene {
    boot::arrive();
    println!();
    println!("guest: begins");
    let mut scene = Scene::new(writes);
    scene.prepare();
    println!("guest: prepared");
    scene
}
