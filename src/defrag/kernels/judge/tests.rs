//! Kernels as they are met: what distributions call them, and what is to be made of that.

use proptest::prelude::*;

use super::super::changelog;
use super::*;

/// What must come of it.
#[derive(Debug, PartialEq, Eq)]
enum Is {
    ByLevel,
    ByChangelog,
    Bad,
    Unknown,
}

/// A kernel: `uname -r`, /proc/version, /proc/version_signature, and the changelog of its package.
struct Kernel {
    release: &'static str,
    version: &'static str,
    signature: &'static str,
    changelog: Option<&'static str>,
}

const fn plain(release: &'static str) -> Kernel {
    Kernel {
        release,
        version: "",
        signature: "",
        changelog: None,
    }
}

const fn logged(release: &'static str, changelog: &'static str) -> Kernel {
    Kernel {
        changelog: Some(changelog),
        ..plain(release)
    }
}

const fn debian(release: &'static str, version: &'static str) -> Kernel {
    Kernel {
        version,
        ..plain(release)
    }
}

const fn ubuntu(release: &'static str, signature: &'static str) -> Kernel {
    Kernel {
        signature,
        ..plain(release)
    }
}

/// What RHEL 9 must name: its number, 5.14.0, has none of these.
const RHEL_ALL: &str = "\
* Tue Aug 04 2026 CKI KWF Bot <cki-ci-bot+kwf-gitlab-com@redhat.com> [5.14.0-687.5.1.el9]
- xfs: resample the data fork mapping after cycling ILOCK (CKI Backport Bot) [RHEL-1] {CVE-2026-64600}
* Tue Aug 06 2024 Rado Vrbovsky <r@redhat.com> [5.14.0-493.el9]
- xfs: only remap the written blocks in xfs_reflink_end_cow_extent (Bill O'Donnell) [RHEL-2]
* Fri Mar 03 2023 H H <h@redhat.com> [5.14.0-284.el9]
- xfs: use iomap_valid method to detect stale cached iomaps (Bill O'Donnell) [2155605]
";
/// RHEL 9 before July 2026.
const RHEL_OLD: &str = "\
* Tue Aug 06 2024 Rado Vrbovsky <r@redhat.com> [5.14.0-493.el9]
- xfs: only remap the written blocks in xfs_reflink_end_cow_extent (Bill O'Donnell) [RHEL-2]
- xfs: use iomap_valid method to detect stale cached iomaps (Bill O'Donnell) [2155605]
";
const CVE_ONLY: &str = "  * CVE-2026-64600\n    - xfs: resample the data fork mapping\n";
const SLES: &str = "\
* Thu Jul 30 2026 - ailiop@suse.com
- xfs: resample the data fork mapping after cycling ILOCK
  (bsc#1270000 CVE-2026-64600).
- commit 1234567
* Mon Jan 08 2024 - ailiop@suse.com
- xfs: only remap the written blocks in
  xfs_reflink_end_cow_extent (git-fixes).
";

#[test]
fn kernels_of_distributions() {
    let gcc =
        "(a@b) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0, GNU ld (GNU Binutils for Debian) 2.40)";
    let in_full = |release: &str, build: &str| -> &'static str {
        format!("Linux version {release} {gcc} {build}").leak()
    };
    let dynamic = |release: &str, package: &str| {
        let build = format!("#1 SMP PREEMPT_DYNAMIC {package} (2026-11-26)");
        in_full(release, &build)
    };
    let of_debian = |release: &'static str, package: &str| {
        debian(release, dynamic(release, &format!("Debian {package}")))
    };
    let proxmox = |release: &'static str, package: &str, changelog| Kernel {
        version: dynamic(release, &format!("PMX {package}")),
        changelog,
        ..plain(release)
    };
    let table: Vec<(&str, Kernel, Is)> = vec![
        // kernel.org's own, and what is built from them.
        ("kernel.org", plain("6.18.44"), Is::ByLevel),
        ("kernel.org", plain("6.18.38"), Is::Bad),
        ("kernel.org", plain("6.12.96"), Is::ByLevel),
        ("kernel.org, end of life", plain("6.17.13"), Is::Bad),
        ("kernel.org, end of life", plain("7.0.14"), Is::Bad),
        ("kernel.org", plain("7.1.4"), Is::ByLevel),
        ("kernel.org", plain("7.3.1"), Is::ByLevel),
        ("kernel.org", plain("5.15.212"), Is::Bad),
        ("kernel.org", plain("5.10.260"), Is::Bad),
        ("kernel.org", plain("5.4.302"), Is::Bad),
        ("kernel.org, dirty", plain("6.18.44+"), Is::ByLevel),
        ("candidate", plain("6.6.0-rc2+"), Is::Bad),
        ("candidate", plain("7.2.0-rc3"), Is::Bad),
        ("candidate", plain("7.2.0-rc4"), Is::ByLevel),
        ("self-made", plain("6.18.44-fc-v669"), Is::ByLevel),
        ("self-made", plain("6.18.20-fc-v669"), Is::Unknown),
        // Debian.
        (
            "Debian 12",
            of_debian("6.1.0-57-cloud-amd64", "6.1.192-3"),
            Is::ByLevel,
        ),
        (
            "Debian 12",
            of_debian("6.1.0-47-cloud-amd64", "6.1.170-3"),
            Is::Bad,
        ),
        (
            "Debian 12 backports",
            of_debian("6.12.115+deb12-amd64", "6.12.115-1~bpo12+1"),
            Is::ByLevel,
        ),
        (
            "Debian 13",
            of_debian("6.12.43+deb13-amd64", "6.12.43-1"),
            Is::Bad,
        ),
        (
            "Debian 11",
            of_debian("5.10.0-39-amd64", "5.10.251-2"),
            Is::Bad,
        ),
        (
            "Debian experimental",
            of_debian("6.18-rc4-amd64", "6.18~rc4-1~exp1"),
            Is::Bad,
        ),
        (
            "Debian 12, repaired before the stable level was",
            Kernel {
                changelog: Some(CVE_ONLY),
                ..of_debian("6.1.0-51-amd64", "6.1.176-2")
            },
            Is::ByChangelog,
        ),
        (
            "Debian 12, /proc/version hidden",
            plain("6.1.0-57-amd64"),
            Is::Unknown,
        ),
        // Ubuntu.
        (
            "Ubuntu 22.04",
            ubuntu(
                "5.15.0-144-generic",
                "Ubuntu 5.15.0-144.157-generic 5.15.189",
            ),
            Is::Unknown,
        ),
        (
            "Ubuntu 24.04",
            ubuntu("6.8.0-88-generic", "Ubuntu 6.8.0-88.89-generic 6.8.12"),
            Is::Unknown,
        ),
        (
            "Ubuntu 24.04, repaired",
            Kernel {
                changelog: Some(CVE_ONLY),
                ..ubuntu("6.8.0-130-generic", "Ubuntu 6.8.0-130.130-generic 6.8.12")
            },
            Is::ByChangelog,
        ),
        (
            "Ubuntu on Azure",
            ubuntu("6.8.0-1021-azure", "Ubuntu 6.8.0-1021.25-azure 6.8.12"),
            Is::Unknown,
        ),
        (
            "Ubuntu, a series with a repair",
            ubuntu("6.18.0-9-generic", "Ubuntu 6.18.0-9.9-generic 6.18.40"),
            Is::ByLevel,
        ),
        (
            "Ubuntu's build of kernel.org",
            plain("6.6.145-0606145-generic"),
            Is::ByLevel,
        ),
        (
            "Ubuntu, signature hidden",
            plain("5.15.0-160-generic"),
            Is::Unknown,
        ),
        // Proxmox.
        (
            "Proxmox 8",
            proxmox("6.8.12-9-pve", "6.8.12-9", None),
            Is::Unknown,
        ),
        (
            "Proxmox 9",
            proxmox("7.0.14-14-pve", "7.0.14-14", None),
            Is::Unknown,
        ),
        (
            "Proxmox 9, repaired",
            proxmox("7.0.14-8-pve", "7.0.14-8", Some("  * fix CVE-2026-64600\n")),
            Is::ByChangelog,
        ),
        (
            "Proxmox 7",
            proxmox("5.15.158-2-pve", "5.15.158-2", None),
            Is::Unknown,
        ),
        // RHEL and its kin.
        ("RHEL 9", plain("5.14.0-570.el9.x86_64"), Is::Unknown),
        (
            "RHEL 9",
            logged("5.14.0-570.el9.x86_64", RHEL_OLD),
            Is::Unknown,
        ),
        (
            "RHEL 9, repaired",
            logged("5.14.0-687.5.1.el9_8.x86_64", RHEL_ALL),
            Is::ByChangelog,
        ),
        ("Rocky 8", plain("4.18.0-553.el8_10.x86_64"), Is::Unknown),
        (
            "AlmaLinux 10",
            plain("6.12.0-55.9.1.el10_0.x86_64"),
            Is::Unknown,
        ),
        (
            "AlmaLinux 10, repaired",
            logged("6.12.0-211.el10_2.x86_64", RHEL_ALL),
            Is::ByChangelog,
        ),
        ("CentOS 7", plain("3.10.0-1160.el7.x86_64"), Is::Unknown),
        (
            "Oracle UEK 7",
            plain("5.15.0-301.163.5.2.el9uek.x86_64"),
            Is::Unknown,
        ),
        (
            "Oracle UEK 8",
            plain("6.12.0-104.43.4.2.el9uek.x86_64"),
            Is::Unknown,
        ),
        ("ELRepo", plain("6.18.44-1.el9.elrepo.x86_64"), Is::ByLevel),
        (
            "Virtuozzo 9",
            plain("5.14.0-427.33.1.vz9.80.6"),
            Is::Unknown,
        ),
        // SUSE.
        (
            "SLES 15 SP6",
            plain("6.4.0-150600.23.25-default"),
            Is::Unknown,
        ),
        (
            "SLES 15 SP6, repaired",
            logged("6.4.0-150600.23.105-default", SLES),
            Is::ByChangelog,
        ),
        (
            "SLES 15 SP5",
            plain("5.14.21-150500.55.100-default"),
            Is::Unknown,
        ),
        ("Tumbleweed", plain("7.1.9-1-default"), Is::ByLevel),
        // Others.
        (
            "Amazon Linux 2023",
            plain("6.1.159-181.297.amzn2023.x86_64"),
            Is::Unknown,
        ),
        (
            "Amazon Linux 2023",
            plain("6.1.180-220.301.amzn2023.x86_64"),
            Is::ByLevel,
        ),
        (
            "Amazon Linux 2",
            plain("5.10.245-241.978.amzn2.x86_64"),
            Is::Unknown,
        ),
        ("Arch", plain("6.18.3-arch1-1"), Is::Bad),
        ("Arch", plain("7.1.5-arch1-1"), Is::ByLevel),
        ("Fedora", plain("6.17.4-200.fc42.x86_64"), Is::Bad),
        ("Fedora", plain("7.1.6-200.fc44.x86_64"), Is::ByLevel),
        (
            "Fedora rawhide",
            plain("6.18.0-0.rc3.20251023git8f1.22.fc44.x86_64"),
            Is::Bad,
        ),
        ("Alpine", plain("6.12.31-0-lts"), Is::Bad),
        ("Alpine", plain("6.18.41-0-virt"), Is::ByLevel),
        ("Gentoo", plain("6.12.100-gentoo-dist"), Is::ByLevel),
        ("NixOS", plain("6.12.100"), Is::ByLevel),
        ("Void", plain("6.12.31_1"), Is::Unknown),
        (
            "openEuler",
            plain("6.6.0-72.0.0.76.oe2403sp1.x86_64"),
            Is::Unknown,
        ),
        ("Anolis", plain("5.10.134-19.1.an8.x86_64"), Is::Unknown),
        ("TencentOS", plain("5.4.241-1-tlinux4-0017.7"), Is::Unknown),
        ("Azure Linux", plain("6.6.126.1-1.azl3"), Is::Unknown),
        ("Flatcar", plain("6.12.98-flatcar"), Is::ByLevel),
        ("XCP-ng", plain("4.19.0+1"), Is::Unknown),
        ("nothing", plain(""), Is::Unknown),
        ("nonsense", plain("x"), Is::Unknown),
    ];
    assert!(table.len() >= 60);
    for (name, kernel, expected) in &table {
        let judgement = verdict(kernel, &[]);
        let is = match judgement.verdict {
            Trust::Trusted(Proof::Level(_)) => Is::ByLevel,
            Trust::Trusted(Proof::Changelog) => Is::ByChangelog,
            Trust::Trusted(other) => panic!("{other:?}"),
            Trust::KnownBad(_) => Is::Bad,
            Trust::Unknown(_) => Is::Unknown,
        };
        assert_eq!(&is, expected, "{name}: {} ({judgement:?})", kernel.release);
        let trusted = matches!(judgement.verdict, Trust::Trusted(_));
        assert_eq!(judgement.refusal().is_none(), trusted, "{name}");
        assert_eq!(judgement.brief().is_none(), trusted, "{name}");
        // Whatever it is, an operator may vouch for it, and only for exactly that.
        let vouched = vec![format!("{}.x", kernel.release)];
        assert_eq!(
            verdict(kernel, &vouched).verdict,
            judgement.verdict,
            "{name}"
        );
        let vouched = vec!["1.2.3".to_owned(), kernel.release.to_owned()];
        let judgement = verdict(kernel, &vouched);
        assert!(matches!(judgement.verdict, Trust::Trusted(_)), "{name}");
    }
}

fn verdict(kernel: &Kernel, vouched: &[String]) -> Judgement {
    let running = Running::new(kernel.release, kernel.version, kernel.signature);
    judge(Engine::Online, &running, vouched, |defects| {
        let text = kernel
            .changelog
            .ok_or("no changelog of its package is installed")?;
        let mut found = changelog::Found::none(defects);
        changelog::search(text.as_bytes(), None, &mut found).unwrap();
        Ok((found, "/usr/share/doc/x".to_owned()))
    })
}

#[test]
fn a_refusal_says_what_was_looked_at_and_what_to_do() {
    let build = "Linux version 6.1.0-47-amd64 (a) (b) #1 SMP PREEMPT_DYNAMIC Debian 6.1.170-3 (x)";
    let refusal = verdict(&debian("6.1.0-47-amd64", build), &[]).refusal();
    assert_eq!(
        refusal.unwrap(),
        "kernel 6.1.0-47-amd64 lacks the repair of CVE-2026-64600 (2f4acd0fcd86, \"xfs: resample \
         the data fork mapping after cycling ILOCK\"), without which a guest's write can land in \
         blocks of another file while its image is moved: looked at level 6.1.170 (/proc/version); \
         no changelog of its package is installed; what settles it is a kernel of 6.1.178, 6.6.145, \
         6.12.96, 6.18.39, 7.1.4, 7.2-rc4 or later, a package whose changelog names the repair, or, \
         if its vendor confirms it, defrag.trusted_kernels; until then xfs_fsr can do it while \
         nobody has the image open"
    );
    let refusal = verdict(&logged("5.14.0-570.el9.x86_64", RHEL_OLD), &[]).refusal();
    let refusal = refusal.unwrap();
    for part in [
        "kernel 5.14.0-570.el9.x86_64 is not proven to have the repair of CVE-2026-64600 (",
        "looked at level 5.14 (uname -r) and changelog (/usr/share/doc/x), which does not name it",
    ] {
        assert!(refusal.contains(part), "{refusal}");
    }
    let bad = verdict(&plain("5.15.212"), &[]);
    let brief = "kernel 5.15.212 lacks the repair of 55f669f34184";
    assert_eq!(bad.brief().as_deref(), Some(brief));
}

#[test]
fn a_defect_that_was_brought_by_a_backport_must_be_repaired_too() {
    let with_origin = |and: &str| -> &'static str {
        format!("{RHEL_ALL}- iomap: Allocate ifs in ->write_begin() early (A B)\n{and}").leak()
    };
    let release = "5.14.0-700.el9.x86_64";
    let judgement = verdict(&logged(release, with_origin("")), &[]);
    let brief = judgement.brief().unwrap();
    assert!(brief.ends_with("the repair of 35d30c9cf127"), "{brief}");
    let repair = "- iomap: don't skip reading in !uptodate folios when unsharing a range (A B)\n";
    let judgement = verdict(&logged(release, with_origin(repair)), &[]);
    assert_eq!(judgement.verdict, Trust::Trusted(Proof::Changelog));
}

proptest! {
    /// Whatever a kernel calls itself and whatever its changelog is: there is a verdict, and it is
    /// "trusted" or there is a reason. Without a level, a repair named or the operator's word, it is
    /// never trusted.
    #[test]
    fn any_words_give_a_verdict(
        release in "[0-9a-z.+~ é_-]{0,20}",
        version in "(Linux version .{0,20} #1 (SMP |Debian |PMX |Ubuntu ){0,3}.{0,20})?",
        signature in "(Ubuntu .{0,30})?",
        log in "(linux \\(.{0,9}\\) x\n)?(.{0,40}\n|CVE-2026-64600|Revert \"xfs: |cycling ILOCK){0,9}",
    ) {
        let running = Running::new(&release, &version, &signature);
        for package in [None, running.package.as_deref()] {
            let judgement = judge(Engine::Online, &running, &[], |defects| {
                let mut found = changelog::Found::none(defects);
                changelog::search(log.as_bytes(), package, &mut found).unwrap();
                Ok((found, String::new()))
            });
            let trusted = matches!(judgement.verdict, Trust::Trusted(_));
            prop_assert_eq!(judgement.refusal().is_none(), trusted);
            prop_assert!(!trusted || running.level.is_some() || log.contains("CVE-"));
        }
    }
}

#[test]
fn the_changelog_is_asked_only_where_the_level_proves_nothing() {
    let asked = |release: &str, vouched: &[String]| {
        let mut asked = false;
        let running = Running::new(release, "", "");
        judge(Engine::Online, &running, vouched, |_| {
            asked = true;
            Err(String::new())
        });
        asked
    };
    assert!(!asked("6.18.44", &[]));
    assert!(asked("6.18.38", &[]));
    assert!(!asked("6.18.38", &["6.18.38".to_owned()]));
    let running = Running::new("x", "", "");
    let fsr = judge(Engine::XfsFsr, &running, &[], |_| panic!("asked"));
    assert_eq!(fsr.verdict, Trust::Trusted(Proof::NoDefects));
}
