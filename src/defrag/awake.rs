//! Ensures that no process is left waiting at the [gate](super::gate) of a stopped fragwatch.
//!
//! Ctrl-Z (SIGTSTP) is handled: the run ends before the process stops. SIGSTOP cannot be handled: a
//! stopped process answers no opener, and its own gate descriptor and the one inherited by xfs_fsr
//! keep the kernel from opening the gate (fanotify_release, fs/notify/fanotify/fanotify_user.c,
//! runs with the last descriptor). So while xfs_fsr works, a helper in its own process group
//! watches the state of this process. If it is stopped, the helper continues it and then sends
//! SIGTSTP, in this order, because SIGCONT discards pending stop signals (prepare_signal,
//! kernel/signal.c): the run ends, the gate opens, then the process stops. A freezer
//! (cgroup.freeze, `systemctl freeze`) holds both: openers then wait until it is thawed.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, getppid, kill_process};

use crate::sys::child::kill_with_parent;
use crate::sys::proc::Stat;

/// The hidden subcommand of the helper.
pub const COMMAND: &str = "keep-awake";
const INTERVAL: Duration = Duration::from_millis(100);

/// The helper; ended on drop.
#[derive(Debug)]
pub(crate) struct Awake(Option<Child>);

impl Awake {
    /// Starts the helper. If that fails, the run continues without it.
    pub(crate) fn start() -> Awake {
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

/// The main function of the helper; runs until it is killed.
pub fn keep_parent_awake() {
    let Some(parent) = getppid() else { return };
    let stat = format!("/proc/{}/stat", parent.as_raw_nonzero());
    // The PID belongs to it as long as it is our parent.
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
