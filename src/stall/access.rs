//! Checks whether the kernel stacks of other tasks can be read.

use std::io;
use std::path::Path;

use rustix::fs::{PROC_SUPER_MAGIC, statfs};

/// Reads the process's own stack, which always exists, and that of kthreadd, which requires the
/// privilege to inspect other tasks.
///
/// # Errors
/// If they cannot be read, with what is missing, or if the tasks of the host are hidden.
pub(super) fn check_stacks(proc: &Path) -> io::Result<()> {
    for (name, must_be_there) in [("self/stack", true), ("2/stack", false)] {
        let path = proc.join(name);
        match std::fs::read(&path) {
            Err(error) if must_be_there || error.kind() != io::ErrorKind::NotFound => {
                // See proc_pid_stack (fs/proc/base.c).
                let hint = match error.kind() {
                    io::ErrorKind::NotFound => " (a kernel without CONFIG_STACKTRACE)",
                    io::ErrorKind::PermissionDenied => {
                        " (it takes CAP_SYS_ADMIN and CAP_SYS_PTRACE)"
                    }
                    _ => "",
                };
                let text = format!("{}: {error}{hint}", path.display());
                return Err(io::Error::new(error.kind(), text));
            }
            _ => {}
        }
    }
    let is_procfs = statfs(proc).is_ok_and(|about| about.f_type == PROC_SUPER_MAGIC);
    // kthreadd has PID 2 on every kernel and never ends (rest_init, init/main.c).
    let kthreadd = || std::fs::read(proc.join("2/comm")).is_ok_and(|comm| comm == b"kthreadd\n");
    if is_procfs && !kthreadd() {
        let text = format!(
            "{} does not show the tasks of the host (mounted with hidepid=, or the PID namespace of a container)",
            proc.display()
        );
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip::{self, NotHere};
    use std::process::Command;

    /// Names the procfs that the process shall check, and that it is the one that is started for it.
    const PROC: &str = "FRAGWATCH_STALL_PROC";

    #[test]
    #[ignore = "not a test: what others start with fewer rights"]
    fn with_fewer_rights() {
        let Some(proc) = std::env::var_os(PROC) else {
            return;
        };
        let checked = check_stacks(Path::new(&proc));
        eprintln!("checked: {checked:?}");
    }

    /// What [`with_fewer_rights`] finds when `before` has started it.
    fn checked(proc: &Path, before: &[&str]) -> String {
        let exe = std::env::current_exe().unwrap();
        let output = Command::new(before[0])
            .args(&before[1..])
            .arg(exe)
            .args(["--exact", "stall::access::tests::with_fewer_rights"])
            .args(["--include-ignored", "--nocapture"])
            .env(PROC, proc)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    #[test]
    fn what_is_missing_is_named() {
        if let Err(error) = check_stacks(Path::new("/proc")) {
            return skip::missing(module_path!(), &NotHere::because(error));
        }
        let own = Path::new("/proc");
        assert!(checked(own, &["env"]).contains("checked: Ok"));
        let without = checked(own, &["setpriv", "--bounding-set=-sys_admin"]);
        assert!(
            without.contains("it takes CAP_SYS_ADMIN and CAP_SYS_PTRACE"),
            "{without}"
        );
        let container = ["unshare", "--pid", "--fork", "--mount-proc"];
        let inside = checked(own, &container);
        assert!(
            inside.contains("does not show the tasks of the host"),
            "{inside}"
        );
        // A procfs of its own, which is seen from its own namespace of mounts alone.
        let hidden = tempfile::tempdir().unwrap();
        let script = "mount -t proc -o hidepid=2 proc \"$FRAGWATCH_STALL_PROC\" && \
                      exec setpriv --bounding-set=-sys_ptrace \"$@\"";
        let hidden = checked(
            hidden.path(),
            &["unshare", "--mount", "sh", "-c", script, "sh"],
        );
        assert!(
            hidden.contains("/2/stack: Operation not permitted"),
            "{hidden}"
        );
    }
}
