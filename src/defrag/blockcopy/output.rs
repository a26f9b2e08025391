//! The output of virsh, of libvirt 4.5 to 11, with `LC_ALL=C`: its texts are translated otherwise.
//! Pure. What cannot be read is an error, never a value. The formats in the sources of libvirt, to which
//! newer versions only add lines:
//!
//! | command | function |
//! |---|---|
//! | `version --daemon` | `cmdVersion`, tools/virsh-host.c |
//! | `dominfo`, `domstate --reason` | `cmdDominfo`, `cmdDomstate`, tools/virsh-domain-monitor.c |
//! | `domjobinfo`, `blockjob --raw` | `cmdDomjobinfo`, `virshBlockJobInfo`, tools/virsh-domain.c |
//! | `snapshot-list`, `checkpoint-list` | tools/virsh-snapshot.c, tools/virsh-checkpoint.c |

use std::fmt;

/// Output that virsh is not known to print.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("virsh {command} printed something unknown: {printed:?}")]
pub struct UnknownOutput {
    /// The command, without its arguments.
    pub command: &'static str,
    /// The beginning of its output.
    pub printed: String,
}

/// Maximum number of characters of unknown output in a message.
const SHOWN: usize = 80;

fn unknown(command: &'static str, printed: &str) -> UnknownOutput {
    let printed = printed.trim().chars().take(SHOWN).collect();
    UnknownOutput { command, printed }
}

/// A version, as libvirt counts: major, minor, release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// `9.0.0`.
    fn parse(text: &str) -> Option<Version> {
        let mut parts = text.trim().split('.').map(|part| part.parse().ok());
        let version = Version(parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(version)
    }
}

/// The versions that `virsh version --daemon` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The older one of virsh's library and the daemon.
    pub libvirt: Version,
    /// The QEMU that a domain would be started with; one that runs may be older. `None` if libvirt
    /// cannot find out.
    pub qemu: Option<Version>,
}

impl Versions {
    /// Reads the output of `virsh version --daemon`.
    pub fn parse(output: &str) -> Result<Versions, UnknownOutput> {
        let version = |before: &str| {
            let mut lines = output.lines();
            Version::parse(lines.find_map(|line| line.strip_prefix(before))?)
        };
        let library = version("Using library: libvirt ");
        let daemon = version("Running against daemon: ");
        let libvirt = library.into_iter().chain(daemon).min();
        Ok(Versions {
            libvirt: libvirt.ok_or_else(|| unknown("version", output))?,
            qemu: version("Running hypervisor: QEMU "),
        })
    }
}

/// What `virsh dominfo` prints of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainInfo {
    /// Whether it has a persistent definition.
    pub persistent: bool,
    /// `running`, `paused`, `shut off` and others.
    pub state: String,
    /// Whether it has a managed save, or libvirt does not know.
    pub saved: bool,
}

/// Reads the output of `virsh dominfo DOMAIN`.
pub fn domain_info(output: &str) -> Result<DomainInfo, UnknownOutput> {
    let persistent = match value(output, "Persistent") {
        Some("yes") => Some(true),
        Some("no") => Some(false),
        // Also `unknown`, if the daemon did not answer.
        _ => None,
    };
    let info = persistent.zip(value(output, "State"));
    let (persistent, state) = info.ok_or_else(|| unknown("dominfo", output))?;
    let state = state.to_owned();
    let saved = value(output, "Managed save").is_some_and(|saved| saved != "no");
    Ok(DomainInfo {
        persistent,
        state,
        saved,
    })
}

/// Reads the output of `virsh domjobinfo DOMAIN`: the operation that the whole domain is in, such as
/// `Outgoing migration`, or the kind of a job that names none; `None` if there is none.
pub fn domain_job(output: &str) -> Result<Option<String>, UnknownOutput> {
    match value(output, "Job type") {
        Some("None" | "Completed" | "Failed" | "Cancelled") => Ok(None),
        Some(kind) => Ok(Some(value(output, "Operation").unwrap_or(kind).to_owned())),
        None => Err(unknown("domjobinfo", output)),
    }
}

/// A block job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockJob {
    /// `Block Copy`, `Block Commit`, `Backup` and others.
    pub kind: String,
    /// Its limit in MiB/s, or in bytes per second if `--bytes` was given; 0 for none.
    pub bandwidth: u64,
    /// What is done of `end`.
    pub cur: u64,
    /// Not a constant: it grows with what the guest writes.
    pub end: u64,
}

/// Reads the output of `virsh blockjob DOMAIN DISK --raw`, which is empty if there is none.
pub fn block_job(output: &str) -> Result<Option<BlockJob>, UnknownOutput> {
    if output.trim().is_empty() {
        return Ok(None);
    }
    let text = |key: &str| {
        let mut lines = output.lines();
        lines.find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))
    };
    let number = |key| text(key)?.trim().parse().ok();
    let job = || {
        Some(BlockJob {
            kind: text("type")?.to_owned(),
            bandwidth: number("bandwidth")?,
            cur: number("cur")?,
            end: number("end")?,
        })
    };
    job().map(Some).ok_or_else(|| unknown("blockjob", output))
}

/// Reads the output of `virsh snapshot-list DOMAIN --name` or `virsh checkpoint-list DOMAIN --name`.
pub fn names(output: &str) -> Vec<String> {
    let names = output.lines().filter(|line| !line.is_empty());
    names.map(str::to_owned).collect()
}

/// Reads the output of `virsh domstate DOMAIN --reason`: `paused (user)`.
pub fn state(output: &str) -> Result<(String, Option<String>), UnknownOutput> {
    const STATES: [&str; 8] = [
        "no state",
        "running",
        "idle",
        "paused",
        "in shutdown",
        "shut off",
        "crashed",
        "pmsuspended",
    ];
    let line = output.trim();
    let (state, reason) = match line.split_once(" (") {
        Some((state, reason)) => (state, reason.strip_suffix(')')),
        None => (line, None),
    };
    match STATES.contains(&state) {
        true => Ok((state.to_owned(), reason.map(str::to_owned))),
        false => Err(unknown("domstate", output)),
    }
}

/// The value of a line `Key:   value`.
fn value<'o>(output: &'o str, key: &str) -> Option<&'o str> {
    let mut lines = output.lines();
    let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let of = |text: &str| Versions::parse(text).map(|it| (it.libvirt, it.qemu));
        let old = "Compiled against library: libvirt 4.5.0\nUsing library: libvirt 4.5.0\n\
                   Using API: QEMU 4.5.0\nRunning hypervisor: QEMU 1.5.3\n\
                   Running against daemon: 4.5.0\n\n";
        assert_eq!(of(old), Ok((Version(4, 5, 0), Some(Version(1, 5, 3)))));
        // A daemon that was not restarted after an upgrade.
        let mixed = "Using library: libvirt 11.10.0\nUsing API: QEMU 11.10.0\n\
                     Cannot extract running QEMU hypervisor version\n\
                     Running against daemon: 9.0.0\n";
        assert_eq!(of(mixed), Ok((Version(9, 0, 0), None)));
        let other = "Using library: libvirt 9.0.0\nRunning hypervisor: TEST 0.0.2\n";
        assert_eq!(of(other), Ok((Version(9, 0, 0), None)));
        for wrong in [
            "",
            "Bibliothek: libvirt 9.0.0",
            "Using library: libvirt 9.0\n",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
        assert!(Version(10, 0, 0) > Version(9, 10, 0));
    }

    #[test]
    fn domain_infos() {
        let text = |persistent: &str| {
            format!(
                "Id:             7\nName:           a\nState:          running\n\
                 CPU time:       1.3s\nPersistent:     {persistent}\nManaged save:   no\n\n"
            )
        };
        let info = |persistent| DomainInfo {
            persistent,
            state: "running".to_owned(),
            saved: false,
        };
        assert_eq!(domain_info(&text("yes")), Ok(info(true)));
        let saved = text("yes").replace("save:   no", "save:   yes");
        assert!(domain_info(&saved).unwrap().saved);
        assert_eq!(domain_info(&text("no")), Ok(info(false)));
        // Lines that newer ones add: messages, each after the first without a key.
        let newer = text("yes").replace(
            "Managed save:   no\n",
            "Autostart:      disable\nAutostart Once: disable\nManaged save:   no\n\
             Security model: none\nSecurity DOI:   0\n\
             Messages:       tainted: custom monitor control commands issued\n\
             \u{20}               Managed save: yes\n",
        );
        assert_eq!(domain_info(&newer), Ok(info(true)));
        assert!(domain_info(&text("unknown")).is_err());
        assert!(domain_info("Beständig:  ja\nStatus: laufend\n").is_err());
    }

    #[test]
    fn jobs_of_a_domain() {
        let job = |text| domain_job(text).unwrap();
        assert_eq!(job("Job type:         None        \n\n"), None);
        // A finished one, with `--completed`.
        assert_eq!(
            job("Job type:         Completed   \nOperation:        Dump\n"),
            None
        );
        let migration = "Job type:         Unbounded   \nOperation:        Outgoing migration\n\
                         Time elapsed:     91           ms\n";
        assert_eq!(job(migration).as_deref(), Some("Outgoing migration"));
        // Operations have been added, such as this one.
        let deletion = migration.replace("Outgoing migration", "Snapshot delete");
        assert_eq!(job(&deletion).as_deref(), Some("Snapshot delete"));
        // Without an operation, which libvirt before 3.3 does not print.
        assert_eq!(
            job("Job type:         Bounded     \n").as_deref(),
            Some("Bounded")
        );
        assert!(domain_job("").is_err());
    }

    #[test]
    fn block_jobs() {
        assert_eq!(block_job(""), Ok(None));
        assert_eq!(block_job("\n"), Ok(None));
        let text = " type=Block Copy\n bandwidth=200\n cur=1073741824\n end=3700000000\n\n";
        let job = BlockJob {
            kind: "Block Copy".to_owned(),
            bandwidth: 200,
            cur: 1 << 30,
            end: 3_700_000_000,
        };
        assert_eq!(block_job(text), Ok(Some(job.clone())));
        // The same without the blanks of the translated text.
        let bare = text.replace("\n ", "\n");
        assert_eq!(block_job(bare.trim_start()), Ok(Some(job)));
        for wrong in ["Block Copy: [ 12 %]", " type=Block Copy\n cur=1\n end=2\n"] {
            assert!(block_job(wrong).is_err(), "{wrong}");
        }
        let signed = text.replace("=200", "=-1");
        assert!(block_job(&signed).is_err());
    }

    #[test]
    fn lists_of_names() {
        assert_eq!(names("\n"), Vec::<String>::new());
        assert_eq!(names("before update\nb\n\n"), ["before update", "b"]);
    }

    #[test]
    fn states() {
        let of = |text| state(text).map(|(state, why)| (state, why.unwrap_or_default()));
        let is = |state: &str, why: &str| Ok((state.to_owned(), why.to_owned()));
        assert_eq!(of("running (booted)\n\n"), is("running", "booted"));
        assert_eq!(of("paused (I/O error)\n"), is("paused", "I/O error"));
        assert_eq!(of("shut off"), is("shut off", ""));
        assert!(of("laufend (gestartet)").is_err());
        assert!(of("").is_err());
    }
}
