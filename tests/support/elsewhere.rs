//! A test that needs what the kernel of this machine was built without: XFS of the old format, a
//! realtime device.
//!
//! It runs here where it can, and otherwise in a VM, with the kernel of a distribution and the
//! programs of this machine. That is another kernel for everything else in it as well.

use std::path::{Path, PathBuf};

use super::boot::{self, Machine};
use super::skip::Here;
use super::tools;

/// What the beds and their tests call.
const PROGRAMS: [&str; 19] = [
    "sh",
    "setsid",
    "timeout",
    "cat",
    "cut",
    "rm",
    "sleep",
    "umount",
    "unshare",
    "mkfs.xfs",
    "xfs_io",
    "xfs_db",
    "xfs_repair",
    "xfs_fsr",
    "filefrag",
    "blkid",
    "chattr",
    "sha256sum",
    "logger",
];
/// In MiB: the guest's files are there twice for a moment, and its beds are in it.
const MEMORY: u32 = 2048;

/// `here_or_elsewhere!(BED, TEST)`: calls TEST with what BED makes, here or in a VM.
macro_rules! here_or_elsewhere {
    ($bed:expr, $test:expr) => {
        if $crate::support::boot::is_guest() {
            $crate::support::boot::arrive();
            $test($bed.unwrap_or_else(|why| panic!("{why}")));
        } else {
            match $bed {
                Ok(bed) => $test(bed),
                Err(why) => {
                    eprintln!("{why}; so in a virtual machine");
                    let test = $crate::support::skip::this_test!();
                    $crate::support::require!($crate::support::elsewhere::passes(test));
                }
            }
        }
    };
}

pub(crate) use here_or_elsewhere;

/// Runs the test `path` once more, in a VM.
///
/// # Panics
/// If it does not pass there.
pub fn passes(path: &str) -> Here<()> {
    let (_crate, test) = path.split_once("::").expect("it is in a crate");
    let programs = PROGRAMS.iter().map(|name| tools::have(name));
    let mut files = programs.collect::<Here<Vec<PathBuf>>>()?;
    files.push(env!("CARGO_BIN_EXE_fragwatch").into());
    files.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/fragwatch.toml"));
    let machine = Machine {
        test,
        disk: None,
        files: &files,
        memory: MEMORY,
        kernel: boot::Kernel::Usual,
        processors: 1,
    };
    let mut vm = machine.start()?;
    // Then its first process ends, and the kernel with it.
    vm.wait_for("test result: ok. 1 passed; 0 failed");
    Ok(())
}
