//! A process of its own that ends what its parent has begun, if that is killed or hangs while a guest
//! stands still: the guest then goes on within seconds, with the current file under its path.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getppid, kill_process};

use super::recover::{self, Ended, recover};

/// The hidden subcommand of the watchdog.
pub const COMMAND: &str = "blockcopy-watchdog";
/// The guest stands still for a fifth of a second if all goes well.
const TIMEOUT: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(50);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long it tries: libvirt may be restarted meanwhile.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The watchdog.
pub(super) struct Watchdog(Child);

impl Watchdog {
    /// Starts it. `note` is the file of the note.
    pub(super) fn start(note: &Path) -> io::Result<Watchdog> {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("fragwatch")
            .arg(COMMAND)
            .arg(note)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        command.spawn().map(Watchdog)
    }
}

impl Watchdog {
    /// Ends it. One that is not ended takes over when this process ends.
    pub(super) fn end(mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The main function of the watchdog. Returns when the copy has ended.
pub fn watch(note: &Path) {
    let began = Instant::now();
    let parent = getppid().filter(|parent| is_fragwatch(*parent));
    // The PID belongs to it as long as it is our parent.
    while parent.is_some() && getppid() == parent {
        if let Some(parent) = parent.filter(|_| began.elapsed() > TIMEOUT) {
            let _ = kill_process(parent, Signal::KILL);
        }
        thread::sleep(INTERVAL);
    }
    while note.exists() && began.elapsed() < PATIENCE {
        if matches!(
            recover(note, recover::PATIENCE, &mut |_| ()),
            Ok(Some(Ended::Done | Ended::Kept))
        ) {
            return;
        }
        thread::sleep(RETRY_INTERVAL);
    }
}

/// It may have ended before this process was started.
fn is_fragwatch(process: Pid) -> bool {
    let program = |process: &str| fs::read_link(format!("/proc/{process}/exe")).ok();
    let ours = program("self");
    ours.is_some() && program(&process.as_raw_nonzero().to_string()) == ours
}
