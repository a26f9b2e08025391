//! What the running kernel reports about itself, and the changelog of its package.
//!
//! The changelog is read by a child process, `gzip` or `rpm`, with a deadline and an output limit,
//! because a hanging disk or database would hang this process too. The arguments are fixed; there
//! is no shell. No crate in the tree decompresses gzip; the program is Essential on Debian.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::changelog::{self, Found};
use super::judge::Evidence;
use super::release::Running;
use super::table::Defect;
use crate::sys::child;

/// Time limit for all children together. rpm takes about a second for a changelog of 10 MB.
const DEADLINE: Duration = Duration::from_secs(10);
/// How much of a changelog is read, in bytes. Debian's has 4 MB.
const LONGEST_CHANGELOG: u64 = 32 << 20;
const INTERVAL: Duration = Duration::from_millis(5);

/// Where a changelog is searched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// Normally /proc.
    pub proc: PathBuf,
    /// Package documentation, `/usr/share/doc`.
    pub doc: PathBuf,
    /// Kernel modules, `/lib/modules`: their directories identify the rpm packages.
    pub modules: PathBuf,
    /// The program gzip.
    pub gzip: PathBuf,
    /// The program rpm.
    pub rpm: PathBuf,
    /// Time limit of the whole search.
    pub deadline: Duration,
    /// How much of a changelog is read, in bytes.
    pub longest: u64,
}

impl Sources {
    /// The sources of this host, with its procfs at `proc`.
    pub fn of(proc: &Path) -> Sources {
        Sources {
            proc: proc.to_owned(),
            doc: PathBuf::from("/usr/share/doc"),
            modules: PathBuf::from("/lib/modules"),
            gzip: PathBuf::from("/usr/bin/gzip"),
            rpm: PathBuf::from("/usr/bin/rpm"),
            deadline: DEADLINE,
            longest: LONGEST_CHANGELOG,
        }
    }
}

/// What the running kernel reports, and the text of /proc/version, which identifies it.
pub fn running(proc: &Path) -> (Running, String) {
    // An unreadable file proves nothing, like an empty text.
    let text = |name: &str| std::fs::read_to_string(proc.join(name)).unwrap_or_default();
    let version = text("version");
    let release = text("sys/kernel/osrelease");
    let running = Running::new(&release, &version, &text("version_signature"));
    (running, version)
}

/// Searches the changelogs of the running kernel's package. On failure, returns why, as a clause.
pub fn search(sources: &Sources, running: &Running, defects: &[&'static Defect]) -> Evidence {
    let release = &running.release;
    if !is_usual(release) {
        return Err("no package has such a release".to_owned());
    }
    let limits = (Instant::now() + sources.deadline, sources.longest);
    let mut found = Found::none(defects);
    let files = files(&sources.doc, release);
    if !files.is_empty() {
        // The package may have been replaced since the boot, under the same release.
        let Some(version) = &running.package else {
            return Err("which of the versions in its changelog runs is unknown".to_owned());
        };
        for file in &files {
            // -f: uncompressed files are copied unchanged.
            let arguments = [OsStr::new("-cdf"), OsStr::new("--"), file.as_os_str()];
            search_output(&sources.gzip, &arguments, limits, Some(version), &mut found)
                .map_err(|why| format!("{} cannot be read: {why}", file.display()))?;
        }
        let names: Vec<_> = files.iter().map(|it| it.display().to_string()).collect();
        let names = names.join(" and ");
        return match found.began {
            true => Ok((found, names)),
            false => Err(format!("{names} has no entry of version {version}")),
        };
    }
    if !sources.rpm.exists() {
        return Err("no changelog of its package is installed".to_owned());
    }
    let image = sources.modules.join(release).join("vmlinuz");
    let query = ["-q", "--changelog", "-f"].map(OsStr::new);
    let arguments = [&query[..], &[image.as_os_str()]].concat();
    search_output(&sources.rpm, &arguments, limits, None, &mut found)
        .map_err(|why| format!("the changelog of its package cannot be had from rpm: {why}"))?;
    Ok((found, format!("rpm -q --changelog -f {}", image.display())))
}

/// Whether a release is safe as part of a path and of an argument.
fn is_usual(release: &str) -> bool {
    let usual = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    release.starts_with(|c: char| c.is_ascii_digit()) && release.chars().all(usual)
}

/// The changelogs of this release's packages. On Ubuntu only the signed image's is empty.
fn files(doc: &Path, release: &str) -> Vec<PathBuf> {
    let packages = [
        format!("linux-image-{release}"),
        format!("linux-image-{release}-unsigned"),
        format!("linux-image-unsigned-{release}"),
        format!("linux-modules-{release}"),
        format!("proxmox-kernel-{release}-signed"),
        format!("proxmox-kernel-{release}"),
        format!("pve-kernel-{release}"),
    ];
    let names = ["changelog.Debian.gz", "changelog.gz", "changelog.Debian"];
    let file = |package: &String| {
        let mut files = names.iter().map(|name| doc.join(package).join(name));
        files.find(|file| file.is_file())
    };
    packages.iter().filter_map(file).collect()
}

/// Runs a program that writes a changelog to its standard output, and searches it. `limits` are the
/// deadline and the number of bytes that are read.
fn search_output(
    program: &Path,
    arguments: &[&OsStr],
    (until, longest): (Instant, u64),
    version: Option<&str>,
    found: &mut Found,
) -> Result<(), String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    child::kill_with_parent(&mut command);
    let cannot = |error: io::Error| format!("{}: {error}", program.display());
    let mut child = command.spawn().map_err(cannot)?;
    let output = child.stdout.take().map(|pipe| Output { pipe, until });
    // This closes the pipe: a child that still writes is ended by SIGPIPE.
    let searched = output.map_or(Ok(()), |output| {
        changelog::search(output.take(longest), version, found)
    });
    let ended = match &searched {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => None,
        _ => wait(&mut child, until),
    };
    let name = program.file_name().unwrap_or_default().display();
    match ended {
        Some(true) => searched.map_err(cannot),
        Some(false) => Err(format!("{name} reports that it has none")),
        None => {
            reap(child);
            Err(format!("{name} has not ended in time"))
        }
    }
}

/// The standard output of a child, up to a deadline.
struct Output {
    pipe: ChildStdout,
    until: Instant,
}

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let mut events = [PollFd::new(&self.pipe, PollFlags::IN)];
        match poll(&mut events, timeout.as_ref())? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => self.pipe.read(buffer),
        }
    }
}

/// Whether a child succeeded, or got SIGPIPE as not all was read; `None` if it did not end in time.
fn wait(child: &mut Child, until: Instant) -> Option<bool> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                return Some(status.success() || status.signal() == Some(libc::SIGPIPE));
            }
            Ok(None) if Instant::now() < until => std::thread::sleep(INTERVAL),
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Kills a child and waits for it in a thread: a process that hangs in the kernel may never end.
fn reap(mut child: Child) {
    let _ = child.kill();
    let reaper = std::thread::Builder::new().name("reaper".to_owned());
    // Without a thread it stays a zombie until this process ends.
    let _ = reaper.spawn(move || child.wait());
}

#[cfg(test)]
mod tests;
