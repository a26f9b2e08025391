//! Prepares a child process between fork and exec: its death signal, its open descriptors, its
//! priority (PR_SET_PDEATHSIG(2const), ioprio_set(2), setpriority(2)); and whether it has ended.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::sync::Arc;

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpid, getppid};
use rustix::process::{set_parent_process_death_signal, setpriority_process, waitid};

/// `IOPRIO_WHO_PROCESS` (include/uapi/linux/ioprio.h).
const WHO_PROCESS: libc::c_int = 1;
/// `IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)`.
const CLASS_IDLE: libc::c_int = 3 << 13;
/// The lowest CPU priority.
const NICE: i32 = 19;

/// Makes `command` start a process that
///
/// - is killed when the *thread* that starts it ends, unless exec changes the credentials
///   (commit_creds, kernel/cred.c) or the SELinux label (selinux_bprm_committing_creds);
/// - keeps `keeps` open as long as it lives;
/// - has the idle I/O class and nice 19, where the kernel permits them.
pub fn lower_priority(command: &mut Command, keeps: Arc<OwnedFd>) {
    let parent = getpid();
    let prepare = move || {
        die_with_parent(parent)?;
        fcntl_setfd(&keeps, FdFlags::empty())?;
        // A refusal is harmless: the process only keeps a higher priority.
        // SAFETY: no memory is involved; 0 is the calling process.
        let _ = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) };
        let _ = setpriority_process(None, NICE);
        Ok(())
    };
    // SAFETY: between fork and exec in a process of several threads only async-signal-safe calls
    // may be made. These are system calls; nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(prepare) };
}

/// As [`lower_priority`], but the process is only killed when the thread that starts it ends.
pub fn kill_with_parent(command: &mut Command) {
    let parent = getpid();
    // SAFETY: as in `lower_priority`.
    unsafe { command.pre_exec(move || die_with_parent(parent)) };
}

/// Ignores a signal in this process and those it starts (signal(7)); EINVAL if that is impossible.
pub fn ignore(signal: i32) -> io::Result<()> {
    // SAFETY: SIG_IGN is no handler that could be run; no memory is involved.
    if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether a child has ended. It stays a zombie, so that its PID is still its own.
pub fn has_ended(child: &Child) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(
        waitid(WaitId::Pid(Pid::from_child(child)), options),
        Ok(None) | Err(Errno::INTR)
    )
}

fn die_with_parent(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // If the parent died before this, the signal is never sent.
    match getppid() {
        Some(now) if now == parent => Ok(()),
        _ => Err(Errno::SRCH.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd as _;
    use std::process::Stdio;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    #[test]
    fn it_dies_with_the_thread_that_started_it() {
        let (sender, receiver) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let starter = std::thread::spawn(move || {
            let kept = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
            let mut command = Command::new("sleep");
            lower_priority(command.arg("600").stdout(Stdio::null()), Arc::clone(&kept));
            let child = command.spawn().unwrap();
            sender.send((child, kept.as_raw_fd())).unwrap();
            let _ = ended.recv();
        });
        let (mut child, kept) = receiver.recv().unwrap();
        let proc = format!("/proc/{}", child.id());
        let target = std::fs::read_link(format!("{proc}/fd/{kept}")).unwrap();
        assert_eq!(target.to_str(), Some("/dev/null"));
        let stat = std::fs::read_to_string(format!("{proc}/stat")).unwrap();
        let nice = stat.rsplit_once(')').unwrap().1.split(' ').nth(19 - 2);
        assert_eq!(nice, Some("19"));
        assert!(child.try_wait().unwrap().is_none());
        drop(end);
        starter.join().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
