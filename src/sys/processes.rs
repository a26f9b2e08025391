//! /proc/PID: which files a process has open (proc_pid_fd(5)).
//!
//! Only names and links of procfs are read. The files behind them are not touched: their file
//! system may be the one that hangs.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Paths of all files that QEMU processes have open, as the kernel names them. Processes that may
/// not be looked into (for want of rights, or because they have just ended) are left out.
#[must_use]
pub fn files_open_in_qemu(proc: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(proc) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for process in entries.flatten() {
        let is_process = process
            .file_name()
            .as_bytes()
            .iter()
            .all(u8::is_ascii_digit);
        if is_process && is_qemu(&process.path()) {
            files.extend(open_files(&process.path()));
        }
    }
    files.sort_unstable();
    files.dedup();
    files
}

/// By the name of the program: `qemu-system-x86_64` (cut to 15 bytes by the kernel), `qemu-kvm`,
/// `kvm` (Proxmox), `qemu-nbd`, `qemu-storage-daemon`.
fn is_qemu(process: &Path) -> bool {
    let Ok(name) = std::fs::read(process.join("comm")) else {
        return false;
    };
    let name = name.strip_suffix(b"\n").unwrap_or(&name);
    // A VM may rename its process (`-name process=…`); then the program tells. Not its command
    // line: reading that waits for the process's memory lock, and a stuck process holds it.
    name.starts_with(b"qemu") || name == b"kvm" || runs_qemu(process)
}

fn runs_qemu(process: &Path) -> bool {
    let Ok(program) = std::fs::read_link(process.join("exe")) else {
        return false;
    };
    let name = program.file_name().unwrap_or_default().as_bytes();
    name.starts_with(b"qemu-") || name == b"kvm"
}

fn open_files(process: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(process.join("fd")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        // Sockets and pipes have names like `socket:[123]`.
        .filter(|target| target.is_absolute())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn process(proc: &Path, pid: u32, comm: &str, program: &str, open: &[&str]) {
        let directory = proc.join(pid.to_string());
        fs::create_dir_all(directory.join("fd")).unwrap();
        fs::write(directory.join("comm"), format!("{comm}\n")).unwrap();
        symlink(program, directory.join("exe")).unwrap();
        for (number, target) in open.iter().enumerate() {
            symlink(target, directory.join("fd").join(number.to_string())).unwrap();
        }
    }

    #[test]
    fn only_files_of_qemu_are_named() {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 1, "systemd", "/sbin/init", &["/etc/fstab"]);
        process(
            proc.path(),
            2,
            "qemu-system-x86",
            "/x",
            &["/srv/b", "/srv/a", "socket:[7]"],
        );
        process(proc.path(), 3, "db-1", "/usr/libexec/qemu-kvm", &["/srv/c"]);
        process(proc.path(), 4, "kvm", "/usr/bin/kvm", &["/srv/a"]);
        process(proc.path(), 5, "less", "/usr/bin/less", &["/srv/log"]);
        fs::create_dir(proc.path().join("6")).unwrap();
        fs::create_dir(proc.path().join("sys")).unwrap();
        let files = files_open_in_qemu(proc.path());
        assert_eq!(files, ["/srv/a", "/srv/b", "/srv/c"].map(PathBuf::from));
    }
}
