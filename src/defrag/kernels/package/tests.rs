//! Changelogs of made-up hosts.

use super::*;
use crate::defrag::kernels::table::DEFECTS;
use crate::script::script;
use std::fs;
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

    fn program(&self, name: &str, text: &str) {
        script(&self.root.path().join(name), text);
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
    assert!(why.contains("cannot be read: gzip reports"), "{why}");
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
        why.ends_with("from rpm: rpm reports that it has none"),
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
            std::thread::sleep(INTERVAL);
        }
    }
}

#[test]
fn more_than_is_read_does_no_harm() {
    let made = Made::new(RELEASE, "", "");
    let endless = "echo CVE-2026-64600; exec yes 'a line of a changelog, one of many, all alike'";
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
