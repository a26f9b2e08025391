//! Sees to it that nobody is left waiting at the [gate](super::gate) of a fragwatch that is stopped.
//!
//! Ctrl-Z (SIGTSTP) can be handled, and ends the run before the process stops. SIGSTOP cannot: a
//! stopped process answers no opener, and xfs_fsr, which has inherited the gate's descriptor, and
//! the stopped process itself keep the kernel from opening the gate (fanotify_release,
//! fs/notify/fanotify/fanotify_user.c, comes with the last descriptor). So as long as xfs_fsr works,
//! a small process in a process group of its own looks at the state of this one. It continues one
//! that is stopped and sends it SIGTSTP, in this order, because SIGCONT takes back stop signals that
//! are pending (prepare_signal, kernel/signal.c): the run ends, the gate opens, then it stops.
//!
//! What remains is a freezer (cgroup.freeze, `systemctl freeze`), which holds both: openers wait
//! until it is thawed.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, getppid, kill_process};

use crate::sys::child::kill_with_parent;
use crate::sys::proc::Stat;

/// The hidden subcommand of the small process.
pub const COMMAND: &str = "keep-awake";
/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// The small process. Ended when this goes out of scope.
#[derive(Debug)]
pub(super) struct Awake(Option<Child>);

impl Awake {
    /// Starts it. Where that fails, the run goes on without it.
    pub(super) fn start() -> Awake {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("fragwatch")
            .arg(COMMAND)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        kill_with_parent(&mut command);
        Awake(command.spawn().ok())
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What the small process does, until it is killed.
pub fn keep_parent_awake() {
    let Some(parent) = getppid() else { return };
    let stat = format!("/proc/{}/stat", parent.as_raw_nonzero());
    // Its number is its own as long as it is our parent.
    while getppid() == Some(parent) {
        if fs::read(&stat).is_ok_and(|stat| is_stopped(&stat)) {
            let _ = kill_process(parent, Signal::CONT);
            let _ = kill_process(parent, Signal::TSTP);
        }
        thread::sleep(INTERVAL);
    }
}

fn is_stopped(stat: &[u8]) -> bool {
    Stat::parse(stat).and_then(|stat| stat.state()) == Some(b'T')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_past_any_name() {
        assert!(is_stopped(b"5 (a) S 1) T 1 2"));
        assert!(!is_stopped(b"5 (a) T 1) S 1 2"));
        assert!(!is_stopped(b"5 (T) t 1 2"));
        assert!(!is_stopped(b""));
    }
}
