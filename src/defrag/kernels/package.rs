//! What there is to be found out of the running kernel on this host: what it says of itself, and
//! the changelog of its package.
//!
//! The changelog is read by a child process, `gzip` or `rpm`, because a disk or a database that
//! hangs would hang us too. It has a deadline, and what it says has a limit. Its arguments are fixed;
//! there is no shell. Of the tree no crate decompresses gzip, and gzip is there wherever such a file
//! is: it is Essential on Debian.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::changelog::{self, Found};
use super::release::Running;
use super::table::Defect;
use crate::sys::child;

/// How long all children together may take. rpm takes about a second for a changelog of 10 MB.
const DEADLINE: Duration = Duration::from_secs(10);
/// What is read of a changelog. Debian's has 4 MB.
const LONGEST_CHANGELOG: u64 = 32 << 20;
/// What is read of a file of /proc.
const LONGEST_TEXT: u64 = 4096;
/// From one look at a child that ends to the next.
const BEAT: Duration = Duration::from_millis(5);

/// Where it is looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// Documentation of packages, `/usr/share/doc`.
    pub doc: PathBuf,
    /// Modules of kernels, `/lib/modules`: their directories tell the packages of rpm apart.
    pub modules: PathBuf,
    /// gzip(1).
    pub gzip: PathBuf,
    /// rpm(8).
    pub rpm: PathBuf,
    /// How long the programs may take.
    pub deadline: Duration,
    /// What is read of a changelog, in bytes.
    pub longest: u64,
}

impl Sources {
    /// Those of this host, whose procfs is there.
    #[must_use]
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

/// What the running kernel says of itself, and the text of /proc/version: another kernel has
/// another one.
#[must_use]
pub fn running(proc: &Path) -> (Running, String) {
    // What cannot be read says nothing, and that is what is made of it.
    let text = |name: &str| read(&proc.join(name)).unwrap_or_default();
    let version = text("version");
    let release = text("sys/kernel/osrelease");
    let running = Running::new(&release, &version, &text("version_signature"));
    (running, version)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = File::open(path)?;
    file.take(LONGEST_TEXT).read_to_string(&mut text)?;
    Ok(text)
}

/// Searches the changelogs of the running kernel's package, and says where.
///
/// # Errors
/// Why there is nothing to be had, as a clause.
pub fn search(
    sources: &Sources,
    running: &Running,
    defects: &[&'static Defect],
) -> Result<(Found, String), String> {
    let release = &running.release;
    if !is_usual(release) {
        return Err("no package has such a release".to_owned());
    }
    let mut question = Question {
        version: None,
        defects,
        until: Instant::now() + sources.deadline,
        longest: sources.longest,
    };
    let files = files(&sources.doc, release);
    if !files.is_empty() {
        // The package may have been replaced since the boot, under the same release.
        let Some(version) = &running.package else {
            return Err("which of the versions in its changelog runs is not to be seen".to_owned());
        };
        question.version = Some(version);
        return documents(sources, version, &files, &question);
    }
    if !sources.rpm.exists() {
        return Err("no changelog of its package is installed".to_owned());
    }
    let image = sources.modules.join(release).join("vmlinuz");
    let query = ["-q", "--changelog", "-f"].map(OsStr::new);
    let arguments = [&query[..], &[image.as_os_str()]].concat();
    let found = ask(&sources.rpm, &arguments, &question)
        .map_err(|why| format!("the changelog of its package cannot be had from rpm: {why}"))?;
    Ok((found, format!("rpm -q --changelog -f {}", image.display())))
}

/// Whether a release is one that can be part of a path and of an argument.
fn is_usual(release: &str) -> bool {
    let usual = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    release.starts_with(|c: char| c.is_ascii_digit()) && release.chars().all(usual)
}

/// The changelogs that packages of this release have installed. Ubuntu's of the signed image says
/// nothing, that of the modules does.
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

fn documents(
    sources: &Sources,
    version: &str,
    files: &[PathBuf],
    question: &Question<'_>,
) -> Result<(Found, String), String> {
    let mut found = Found::none(question.defects);
    for file in files {
        // -f: what is not compressed is given as it is.
        let arguments = [OsStr::new("-cdf"), OsStr::new("--"), file.as_os_str()];
        let of_file = ask(&sources.gzip, &arguments, question)
            .map_err(|why| format!("{} cannot be read: {why}", file.display()))?;
        found.add(&of_file);
    }
    let names: Vec<_> = files.iter().map(|it| it.display().to_string()).collect();
    let names = names.join(" and ");
    match found.began {
        true => Ok((found, names)),
        false => Err(format!("{names} has no entry of version {version}")),
    }
}

/// What is looked for, and how long and how far.
struct Question<'q> {
    version: Option<&'q str>,
    defects: &'q [&'static Defect],
    until: Instant,
    longest: u64,
}

/// Has a program write a changelog, and searches that.
fn ask(program: &Path, arguments: &[&OsStr], question: &Question<'_>) -> Result<Found, String> {
    let (until, longest) = (question.until, question.longest);
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
    let Some(output) = child.stdout.take() else {
        return Err(format!("{} has no output", program.display()));
    };
    let (sender, receiver) = mpsc::channel();
    let version = question.version.map(str::to_owned);
    let defects = question.defects.to_vec();
    let search = move || {
        let output = output.take(longest);
        let _ = sender.send(changelog::search(output, version.as_deref(), &defects));
    };
    let reader = std::thread::Builder::new().name("changelog".to_owned());
    let read = match reader.spawn(search) {
        Ok(_) => receiver.recv_timeout(until.saturating_duration_since(Instant::now())),
        Err(error) => {
            reap(child);
            return Err(cannot(error));
        }
    };
    let name = program.file_name().unwrap_or_default().display();
    let Ok(found) = read else {
        reap(child);
        return Err(format!("{name} has not answered in time"));
    };
    match ended(&mut child, until) {
        Some(true) => found.map_err(cannot),
        Some(false) => Err(format!("{name} says that it has none")),
        None => {
            reap(child);
            Err(format!("{name} has not ended in time"))
        }
    }
}

/// Whether a child has ended well; nothing if it has not ended. It may end because no more of it is
/// read.
fn ended(child: &mut Child, until: Instant) -> Option<bool> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                return Some(status.success() || status.signal() == Some(libc::SIGPIPE));
            }
            Ok(None) if Instant::now() < until => std::thread::sleep(BEAT),
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Kills a child and lets a thread wait for its end, which may never come: a process that hangs in
/// the kernel does not die of a signal.
fn reap(mut child: Child) {
    let _ = child.kill();
    let reaper = std::thread::Builder::new().name("reaper".to_owned());
    // Without a thread it stays a zombie until we end, which harms nobody.
    let _ = reaper.spawn(move || child.wait());
}

#[cfg(test)]
mod tests {
    use super::super::table::DEFECTS;
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use tempfile::TempDir;

    const RELEASE: &str = "5.14.0-687.el9.x86_64";

    /// A host of its own: its /proc, its packages, and programs that tests write.
    struct Made {
        root: TempDir,
        sources: Sources,
    }

    impl Made {
        fn new(release: &str, version: &str, signature: &str) -> Made {
            let root = tempfile::tempdir().unwrap();
            let at = |name: &str| root.path().join(name);
            fs::create_dir_all(at("proc/sys/kernel")).unwrap();
            fs::write(at("proc/sys/kernel/osrelease"), format!("{release}\n")).unwrap();
            fs::write(at("proc/version"), version).unwrap();
            if !signature.is_empty() {
                fs::write(at("proc/version_signature"), signature).unwrap();
            }
            let sources = Sources {
                proc: at("proc"),
                doc: at("doc"),
                modules: at("modules"),
                gzip: PathBuf::from("/usr/bin/gzip"),
                rpm: at("rpm"),
                deadline: Duration::from_secs(60),
                longest: 1 << 20,
            };
            Made { root, sources }
        }

        fn program(&self, name: &str, script: &str) {
            let path = self.root.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn document(&self, package: &str, name: &str, text: &str) {
            let directory = self.sources.doc.join(package);
            fs::create_dir_all(&directory).unwrap();
            let path = directory.join(name);
            fs::write(&path, text).unwrap();
            if let Some(plain) = name.strip_suffix(".gz") {
                fs::rename(&path, directory.join(plain)).unwrap();
                let gzip = Command::new("gzip").arg(directory.join(plain)).status();
                assert!(gzip.unwrap().success());
            }
        }

        fn search(&self) -> Result<(bool, String), String> {
            let (running, _) = running(&self.sources.proc);
            let found = search(&self.sources, &running, &[&DEFECTS[0]]);
            found.map(|(found, place)| (found.of(&DEFECTS[0]).is_repaired(), place))
        }
    }

    const REPAIRED: &str = "  * xfs: resample the data fork mapping after cycling ILOCK\n";

    fn debian(package: &str) -> Made {
        let version = format!("Linux version x (a@b) (gcc) #1 SMP Debian {package} (2026-11-26)");
        Made::new("6.1.0-57-amd64", &version, "")
    }

    #[test]
    fn a_changelog_of_debian_is_read_up_to_the_version_that_runs() {
        let text = format!("linux (6.1.180-1) x\n\n{REPAIRED}\nlinux (6.1.176-1) x\n\n  * old\n");
        let made = debian("6.1.180-1");
        assert_eq!(
            made.search(),
            Err("no changelog of its package is installed".to_owned())
        );
        made.document("linux-image-6.1.0-57-amd64", "changelog.gz", &text);
        let (repaired, place) = made.search().unwrap();
        assert!(repaired && place.ends_with("linux-image-6.1.0-57-amd64/changelog.gz"));
        let made = debian("6.1.176-1");
        made.document("linux-image-6.1.0-57-amd64", "changelog.gz", &text);
        assert!(!made.search().unwrap().0);
        let made = debian("6.1.192-3");
        made.document("linux-image-6.1.0-57-amd64", "changelog.gz", &text);
        let why = made.search().unwrap_err();
        assert!(
            why.ends_with("changelog.gz has no entry of version 6.1.192-3"),
            "{why}"
        );
    }

    #[test]
    fn ubuntu_names_repairs_in_the_package_of_the_modules() {
        let release = "6.8.0-130-generic";
        let made = Made::new(release, "", "Ubuntu 6.8.0-130.130-generic 6.8.12\n");
        let signed = "linux-signed (6.8.0-130.130) noble; urgency=medium\n\n  * Main version\n";
        made.document(
            &format!("linux-image-{release}"),
            "changelog.Debian.gz",
            signed,
        );
        assert!(!made.search().unwrap().0);
        let text = format!("linux (6.8.0-130.130) noble; urgency=medium\n\n{REPAIRED}");
        made.document(
            &format!("linux-modules-{release}"),
            "changelog.Debian.gz",
            &text,
        );
        assert!(made.search().unwrap().0);
    }

    #[test]
    fn one_without_compression_is_read_too_and_one_that_is_broken_is_not() {
        let made = debian("6.1.180-1");
        let text = format!("linux (6.1.180-1) x\n\n{REPAIRED}");
        made.document("linux-image-6.1.0-57-amd64", "changelog.Debian", &text);
        assert!(made.search().unwrap().0);
        let made = debian("6.1.180-1");
        let package = made.sources.doc.join("linux-image-6.1.0-57-amd64");
        made.document(
            "linux-image-6.1.0-57-amd64",
            "changelog.gz",
            &text.repeat(1000),
        );
        let bytes = fs::read(package.join("changelog.gz")).unwrap();
        fs::write(package.join("changelog.gz"), &bytes[..bytes.len() / 2]).unwrap();
        let why = made.search().unwrap_err();
        assert!(why.contains("cannot be read: gzip says"), "{why}");
    }

    #[test]
    fn rpm_is_asked_for_the_package_of_this_very_kernel() {
        let made = Made::new(RELEASE, "", "");
        made.program(
            "rpm",
            &format!("echo \"$@\" >\"$0.asked\"\necho '{REPAIRED}'"),
        );
        assert!(made.search().unwrap().0);
        let asked = fs::read_to_string(made.root.path().join("rpm.asked")).unwrap();
        let image = made.sources.modules.join(RELEASE).join("vmlinuz");
        assert_eq!(asked, format!("-q --changelog -f {}\n", image.display()));
        made.program("rpm", "echo 'file is not owned by any package'; exit 1");
        let why = made.search().unwrap_err();
        assert!(
            why.ends_with("from rpm: rpm says that it has none"),
            "{why}"
        );
    }

    #[test]
    fn a_program_that_hangs_is_killed_at_the_deadline() {
        let mut made = Made::new(RELEASE, "", "");
        made.sources.deadline = Duration::from_millis(300);
        // One that says nothing, one that does not end its output, one that does not end.
        for script in [
            "echo $$ >\"$0.pid\"; exec sleep 1000",
            "echo $$ >\"$0.pid\"; echo CVE-2026-64600; exec sleep 1000",
            "echo $$ >\"$0.pid\"; echo CVE-2026-64600; exec sleep 1000 >&-",
        ] {
            made.program("rpm", script);
            let began = Instant::now();
            let why = made.search().unwrap_err();
            assert!(why.contains("rpm has not "), "{why}");
            assert!(began.elapsed() < Duration::from_secs(30), "{script}");
            let pid = fs::read_to_string(made.root.path().join("rpm.pid"));
            // It may have been killed before it could say.
            let Ok(pid) = pid else { continue };
            let running = PathBuf::from(format!("/proc/{}/exe", pid.trim()));
            let until = Instant::now() + Duration::from_secs(60);
            while running.read_link().is_ok_and(|exe| exe.ends_with("sleep")) {
                assert!(Instant::now() < until, "{script}: it lives on");
                std::thread::sleep(BEAT);
            }
        }
    }

    #[test]
    fn more_than_is_read_does_no_harm() {
        let made = Made::new(RELEASE, "", "");
        let endless =
            "echo CVE-2026-64600; exec yes 'a line of a changelog, one of many, all alike'";
        made.program("rpm", endless);
        assert!(made.search().unwrap().0);
    }

    #[test]
    fn an_odd_release_is_asked_for_nowhere() {
        for release in ["", "../../etc", "6.1/x", "-6.1", "6.1 x"] {
            let made = Made::new(release, "", "");
            made.program("rpm", "echo CVE-2026-64600");
            assert_eq!(
                made.search(),
                Err("no package has such a release".to_owned())
            );
        }
    }

    /// Whatever runs here, its own words must be understood.
    #[test]
    fn this_host_says_something() {
        let (running, version) = running(Path::new("/proc"));
        let release = rustix::system::uname();
        assert_eq!(running.release, release.release().to_str().unwrap());
        assert!(version.contains(&running.release), "{version}");
        assert!(running.level.is_some(), "{running:?}");
    }
}
