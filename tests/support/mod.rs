//! The test bed: real file systems, real fragmentation, a real stall.
//!
//! An integration test takes it in with `mod support;`, a benchmark with
//! `#[path = "../tests/support/mod.rs"] mod support;` (the macros expect it to be called `support`
//! and to stand in the crate root).
//!
//! ```ignore
//! #[test]
//! fn something_on_xfs() {
//!     let bed = support::require!(Bed::xfs());
//!     guest::random_direct_writes(&bed.path().join("vm.img"), 64 * MIB, 4096);
//! }
//! ```
//!
//! | file | idea |
//! |---|---|
//! | `skip`   | what a test does where the bed cannot be made |
//! | `rundir` | one directory a test process, and who removes what is in it |
//! | `child`  | processes that do not outlive the test |
//! | `loopdev`| a loop device that detaches itself |
//! | `bed`    | a mounted file system |
//! | `prepared` | file systems that would take long to make |
//! | `random` | numbers that are the same in every run |
//! | `guest`  | fragments files as guests do |
//! | `mapped` | a file mapped into memory |
//! | `load`   | reads and writes in the background and times them |
//! | `fleetlock` | a server of FleetLock |
//! | `fuse`   | a FUSE server of one file |
//! | `qemu`   | a real VM that holds an image |
//! | `boot`   | a VM that boots, and runs a part of the test |
//! | `initramfs` | what it finds when it boots |
//! | `elsewhere` | a test that needs what this machine's kernel was built without |
//! | `stall`  | a file system that hangs, is slow, or loses its power when it is told to |
//! | `tools`  | what xfs_io, filefrag and xfs_db say of a file |
//! | `daemon` | runs the program under test |
//! | `prometheus` | promtool, and a Prometheus that scrapes it |
//! | `failing` | an ioctl that fails
//! | `groups` | control groups, and what others in them wait |
//! | `halt`   | stops one thread of the program |
//! | `emergency` | makes the kernel write records, and says what was done about them |
//! | `script` | programs that a test writes |
//! | `expect` | what a scan says, and what it should say |
#![allow(dead_code, reason = "every test crate uses only a part of it")]
#![allow(unused_imports, unused_macros, reason = "as above")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test bed that does not work as it should has nobody to report to but the test"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "images of the bed are small and its machines have 64 bits"
)]
#![allow(unreachable_pub, reason = "a test crate has no outside")]

pub mod bed;
pub mod boot;
pub mod child;
pub mod daemon;
pub mod elsewhere;
pub mod emergency;
pub mod expect;
pub mod failing;
pub mod fleetlock;
mod fuse;
pub mod groups;
pub mod guest;
pub mod halt;
pub mod hypervisors;
mod initramfs;
pub mod load;
pub mod loopdev;
pub mod mapped;
pub mod prepared;
pub mod prometheus;
pub mod qemu;
pub mod random;
pub mod rundir;
pub mod script;
pub mod skip;
pub mod stall;
pub mod tools;

pub use bed::{Bed, config, drop_caches};
pub use daemon::{RunningDaemon, fragwatch, free_address, http, http_get, http_with};
pub(crate) use elsewhere::here_or_elsewhere;
pub use load::{Latencies, Reader, Writer};
pub use skip::{Here, NotHere};
pub(crate) use skip::{optional, require};
pub(crate) use stall::stall_server;
pub use stall::{Stall, StalledFile};

/// 1024 bytes.
pub const KIB: u64 = 1024;
/// 1024 KiB.
pub const MIB: u64 = 1024 * KIB;
/// 1024 MiB.
pub const GIB: u64 = 1024 * MIB;
