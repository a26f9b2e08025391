//! Runs virsh: without a shell, in the C locale, with a deadline. A domain is named by its UUID, so
//! that no name is taken for an option.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};

use super::domain::NotADomain;
use super::output::UnknownOutput;
use crate::defrag::program::installed;
use crate::model::{ReasonCode, Refusal};
use crate::sys::child::{has_ended, kill_with_parent};

/// Time limit of a command. libvirt asks every QEMU for its abilities before it defines a domain,
/// which takes up to a minute (28 s, measured); the commands used here take some 30 ms.
const TIMEOUT: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(1);
const URI: &str = "qemu:///system";
/// Maximum length of output: domain XML has some thousand bytes for each disk.
const LONGEST: u64 = 16 << 20;

/// Beginnings of messages of the client library without a connection (src/rpc/virnetclient.c,
/// src/rpc/virnetsocket.c, tools/virsh.c).
const UNREACHABLE: [&str; 8] = [
    "failed to connect to the hypervisor",
    "Failed to connect",
    "Cannot recv data",
    "Cannot write data",
    "End of file while reading data",
    "client socket is closed",
    "internal error: client socket is closed",
    // Before what the command then fails to do (virshCatchDisconnect).
    "Disconnected from ",
];

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum VirshError {
    #[error("libvirt cannot be reached: {0}")]
    Unreachable(String),
    /// Also if it cannot look for it.
    #[error("libvirt does not find the domain: {0}")]
    NoDomain(String),
    #[error("virsh {0} did not end in time")]
    TimedOut(&'static str),
    #[error("virsh {0} failed: {1}")]
    Failed(&'static str, String),
    #[error("virsh cannot be run: {0}")]
    NotRun(#[from] io::Error),
    #[error(transparent)]
    Output(#[from] UnknownOutput),
    #[error(transparent)]
    NoXml(#[from] NotADomain),
}

impl From<VirshError> for Refusal {
    fn from(error: VirshError) -> Refusal {
        Refusal::new(ReasonCode::Hypervisor, error.to_string())
    }
}

/// The installed virsh.
#[derive(Debug)]
pub(super) struct Virsh {
    pub(super) program: PathBuf,
    /// Time limit of a command.
    pub(super) timeout: Duration,
}

impl Virsh {
    /// Refused if it is not installed.
    pub(super) fn find() -> Result<Virsh, Refusal> {
        let program = installed("virsh").ok_or(Refusal::from(ReasonCode::NoVirsh))?;
        Ok(Virsh {
            program,
            timeout: TIMEOUT,
        })
    }

    /// Returns what a command prints.
    pub(super) fn run(
        &self,
        command: &'static str,
        arguments: &[&dyn AsRef<OsStr>],
    ) -> Result<String, VirshError> {
        self.run_with(command, arguments, "")
    }

    /// The same, with `input` on its standard input.
    pub(super) fn run_with(
        &self,
        command: &'static str,
        arguments: &[&dyn AsRef<OsStr>],
        input: &str,
    ) -> Result<String, VirshError> {
        let mut files = [memory(input)?, memory("")?, memory("")?];
        let [stdin, stdout, stderr] = &files;
        let mut process = Command::new(&self.program);
        process
            .args(["--connect", URI, command])
            .args(arguments.iter().map(|argument| argument.as_ref()))
            .env("LC_ALL", "C")
            .env_remove("LANGUAGE")
            .current_dir("/")
            .stdin(Stdio::from(stdin.try_clone()?))
            .stdout(Stdio::from(stdout.try_clone()?))
            .stderr(Stdio::from(stderr.try_clone()?));
        kill_with_parent(&mut process);
        let status = wait(&mut process, self.timeout)?.ok_or(VirshError::TimedOut(command))?;
        let [_, printed, errors] = &mut files;
        match status.success() {
            true => Ok(text(printed)?),
            false => Err(failure(command, &text(errors)?)),
        }
    }
}

/// `None` if it was killed because it did not end in time.
fn wait(process: &mut Command, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let mut child = process.spawn()?;
    let deadline = Instant::now() + timeout;
    while !has_ended(&child) {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(INTERVAL);
    }
    child.wait().map(Some)
}

fn memory(content: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("virsh", MemfdFlags::CLOEXEC)?);
    file.write_all(content.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn text(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `error: failed to get domain 'a'`, after which the cause may follow in a line of its own.
fn failure(command: &'static str, errors: &str) -> VirshError {
    let lines = errors
        .lines()
        .map(|line| line.trim_start_matches("error: "));
    let lines: Vec<&str> = lines
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let any = |begins: &[&str]| {
        let begins = |line: &&str| begins.iter().any(|begin| line.starts_with(begin));
        lines.iter().any(begins)
    };
    match () {
        () if any(&UNREACHABLE) => VirshError::Unreachable(lines.join("; ")),
        () if any(&["failed to get domain", "Domain not found"]) => {
            VirshError::NoDomain(lines.join("; "))
        }
        () => VirshError::Failed(command, lines.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> (tempfile::TempDir, Virsh) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("virsh");
        crate::script::script(&path, text);
        let timeout = TIMEOUT;
        let virsh = Virsh {
            program: path,
            timeout,
        };
        (dir, virsh)
    }

    #[test]
    fn what_it_prints_is_returned_and_no_shell_is_between() {
        let (_dir, virsh) = script("printf '%s|' \"$LC_ALL\" \"$@\"; cat");
        let odd: &dyn AsRef<OsStr> = &"a $(b) 'c'";
        let printed = virsh.run_with("dumpxml", &[odd, &"-x"], "in\n").unwrap();
        assert_eq!(
            printed,
            "C|--connect|qemu:///system|dumpxml|a $(b) 'c'|-x|in\n"
        );
    }

    #[test]
    fn errors_are_told_apart() {
        let of = |text: &str| {
            let (_dir, virsh) = script(&format!("echo 'error: {text}' >&2; exit 1"));
            virsh.run("domstate", &[]).unwrap_err()
        };
        let gone = "failed to connect to the hypervisor\nerror: Failed to connect socket to \
                    '\"'/run/libvirt/libvirt-sock'\"': No such file or directory";
        assert!(matches!(of(gone), VirshError::Unreachable(_)));
        let cut = "End of file while reading data: Input/output error";
        assert!(matches!(of(cut), VirshError::Unreachable(_)));
        let killed =
            "Disconnected from qemu:///system due to end of file\nerror: failed to get domain 'a'";
        assert!(matches!(of(killed), VirshError::Unreachable(_)));
        assert!(matches!(
            of("failed to get domain x"),
            VirshError::NoDomain(_)
        ));
        let busy = "Requested operation is not valid: domain is not running";
        let VirshError::Failed("domstate", text) = of(busy) else {
            panic!("it is an error of its own");
        };
        assert_eq!(text, busy);
    }
}
