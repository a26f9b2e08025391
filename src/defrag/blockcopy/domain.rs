//! A domain by its XML (`virsh dumpxml`): as far as a copy of one of its disks depends on it. Pure.
//!
//! The elements are those of libvirt's docs/formatdomain.rst. `<mirror>`, which is only in the XML of
//! a running domain, has `job` and `ready` (virDomainDiskDefFormatMirror, src/conf/domain_conf.c;
//! `ready` is `yes`, `abort` or `pivot`).

use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};

/// A domain, running or as it is defined.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its UUID, in lower case.
    pub uuid: String,
    /// Number of a running domain; `None` in the persistent definition.
    pub id: Option<u32>,
    /// Whether devices of the host are passed through to it.
    pub host_devices: bool,
    /// Its disks, in their order.
    pub disks: Vec<Disk>,
    /// All files that are the source of anything, such as a backing file; mirrors do not count.
    pub sources: Vec<PathBuf>,
}

/// A disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// Its name in the guest, which identifies it: `vda`.
    pub target: String,
    /// What it is: `disk`, `cdrom`, `floppy`, or `lun` for one whose commands go to the device.
    pub device: String,
    /// Kind of its source: `file`, `block`, `network` and others.
    pub kind: String,
    /// Its file; `None` for other sources and for an empty drive.
    pub source: Option<PathBuf>,
    /// Format of the file, `raw` or `qcow2`; `None` if libvirt is to find out.
    pub format: Option<String>,
    /// `cache` of its driver, if set.
    pub cache: Option<String>,
    /// `io` of its driver, if set.
    pub io: Option<String>,
    /// `discard` of its driver, if set.
    pub discard: Option<String>,
    /// The guest may only read it.
    pub read_only: bool,
    /// Other domains may use it at the same time.
    pub shareable: bool,
    /// Its changes are discarded when the domain ends.
    pub transient: bool,
    /// Its content is encrypted by QEMU.
    pub encrypted: bool,
    /// Only a part of the file is the disk.
    pub sliced: bool,
    /// What lies below it.
    pub backing: Backing,
    /// Where its writes are mirrored to.
    pub mirror: Option<Mirror>,
}

/// What a disk's file is based on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Backing {
    /// Nothing: the running domain's XML has an empty `<backingStore/>`.
    None,
    /// Not stated, as in a persistent definition.
    #[default]
    NotStated,
    /// Another image.
    Image(String),
}

/// The copy of a disk that is being made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirror {
    /// `copy` or `active-commit`.
    pub job: Option<String>,
    /// Its file.
    pub file: Option<PathBuf>,
    /// What of it is done.
    pub state: MirrorState,
}

/// The progress of a mirror.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MirrorState {
    /// It is not complete yet.
    #[default]
    Copying,
    /// It is complete, and writes go to both.
    Ready,
    /// It is being given up or taken into use.
    Ending,
}

impl Disk {
    /// Format of its file; empty if not stated.
    pub(super) fn format(&self) -> &str {
        self.format.as_deref().unwrap_or_default()
    }
}

/// XML that is not that of a domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("virsh dumpxml printed no domain: {0}")]
pub struct NotADomain(String);

impl Domain {
    /// Reads the output of `virsh dumpxml`. A document type is refused, so no entity is expanded.
    pub fn parse(xml: &str) -> Result<Domain, NotADomain> {
        let not_one = |why: &str| NotADomain(why.to_owned());
        let document = Document::parse(xml).map_err(|error| NotADomain(error.to_string()))?;
        let root = document.root_element();
        if !root.has_tag_name("domain") {
            return Err(not_one("the document is another one"));
        }
        let devices = child(root, "devices").ok_or_else(|| not_one("it has no devices"))?;
        let all = |name| devices.children().filter(move |it| it.has_tag_name(name));
        let id = root.attribute("id").map(str::parse).transpose();
        Ok(Domain {
            name: text(root, "name").ok_or_else(|| not_one("it has no name"))?,
            uuid: text(root, "uuid")
                .ok_or_else(|| not_one("it has no UUID"))?
                .to_lowercase(),
            id: id.map_err(|_| not_one("its id is no number"))?,
            host_devices: all("hostdev").next().is_some(),
            disks: all("disk").filter_map(disk).collect(),
            sources: devices
                .descendants()
                .filter(|it| it.has_tag_name("source"))
                .filter(|it| !it.ancestors().any(|above| above.has_tag_name("mirror")))
                .filter_map(file)
                .collect(),
        })
    }

    /// The disk with this target.
    pub fn disk(&self, target: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.target == target)
    }

    /// The disks whose source is this file, by its name.
    pub fn disks_of(&self, file: &Path) -> Vec<&Disk> {
        let is_it = |disk: &&Disk| disk.source.as_deref() == Some(file);
        self.disks.iter().filter(is_it).collect()
    }
}

/// `None` for a disk without target, which libvirt does not accept.
fn disk(node: Node<'_, '_>) -> Option<Disk> {
    let driver = |name| attribute(child(node, "driver")?, name);
    let source = child(node, "source");
    let has = |name| child(node, name).is_some();
    let in_source = |name| source.is_some_and(|source| child(source, name).is_some());
    Some(Disk {
        target: attribute(child(node, "target")?, "dev")?,
        device: attribute(node, "device").unwrap_or_else(|| "disk".to_owned()),
        kind: attribute(node, "type").unwrap_or_default(),
        source: source.and_then(file),
        format: driver("type"),
        cache: driver("cache"),
        io: driver("io"),
        discard: driver("discard"),
        read_only: has("readonly"),
        shareable: has("shareable"),
        transient: has("transient"),
        encrypted: has("encryption") || in_source("encryption"),
        sliced: in_source("slices"),
        backing: child(node, "backingStore").map_or(Backing::NotStated, backing),
        mirror: child(node, "mirror").map(mirror),
    })
}

fn backing(node: Node<'_, '_>) -> Backing {
    match child(node, "source") {
        None if node.attributes().len() == 0 => Backing::None,
        source => {
            let attributes = source.into_iter().flat_map(|it| it.attributes());
            let values: Vec<_> = attributes.map(|it| it.value()).collect();
            Backing::Image(values.join(" "))
        }
    }
}

fn mirror(node: Node<'_, '_>) -> Mirror {
    Mirror {
        job: attribute(node, "job"),
        file: child(node, "source").and_then(file),
        state: match node.attribute("ready") {
            None => MirrorState::Copying,
            Some("yes") => MirrorState::Ready,
            Some(_) => MirrorState::Ending,
        },
    }
}

fn file(source: Node<'_, '_>) -> Option<PathBuf> {
    source.attribute("file").map(PathBuf::from)
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|it| it.has_tag_name(name))
}

fn text(node: Node<'_, '_>, name: &str) -> Option<String> {
    Some(child(node, name)?.text()?.to_owned())
}

fn attribute(node: Node<'_, '_>, name: &str) -> Option<String> {
    node.attribute(name).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: &str = include_str!("fixtures/live.xml");

    #[test]
    fn a_running_domain() {
        let domain = Domain::parse(LIVE).unwrap();
        assert_eq!((domain.name.as_str(), domain.id), ("db <1>", Some(7)));
        assert_eq!(domain.uuid, "6695eb01-f6a4-8304-79aa-97f2502e193f");
        assert!(!domain.host_devices);
        let targets: Vec<_> = domain.disks.iter().map(|it| it.target.as_str()).collect();
        assert_eq!(targets, ["vda", "vdb", "sda", "vdc"]);
        let plain = Disk {
            target: "vda".to_owned(),
            device: "disk".to_owned(),
            kind: "file".to_owned(),
            source: Some("/srv/a & b.raw".into()),
            format: Some("raw".to_owned()),
            cache: Some("none".to_owned()),
            io: Some("native".to_owned()),
            discard: Some("unmap".to_owned()),
            backing: Backing::None,
            ..Disk::default()
        };
        assert_eq!(domain.disk("vda"), Some(&plain));
        assert_eq!(domain.disks_of(Path::new("/srv/a & b.raw")), [&plain]);
        let sources: Vec<_> = domain.sources.iter().map(|it| it.display()).collect();
        let sources = sources.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            sources,
            ["/srv/a & b.raw", "/srv/b.qcow2", "/srv/base.qcow2"]
        );
        let chained = domain.disk("vdb").unwrap();
        assert_eq!(
            chained.backing,
            Backing::Image("/srv/base.qcow2".to_owned())
        );
        assert!(chained.encrypted && chained.sliced && chained.shareable && chained.transient);
        let mirror = Mirror {
            job: Some("copy".to_owned()),
            file: Some("/srv/b.new".into()),
            state: MirrorState::Ready,
        };
        assert_eq!(chained.mirror, Some(mirror));
        // An empty drive, and a source that is no file.
        let drive = domain.disk("sda").unwrap();
        assert_eq!((drive.device.as_str(), &drive.source), ("cdrom", &None));
        assert!(drive.read_only);
        let remote = domain.disk("vdc").unwrap();
        assert_eq!((remote.kind.as_str(), &remote.source), ("network", &None));
        assert_eq!(remote.backing, Backing::NotStated);
    }

    #[test]
    fn a_mirror_says_how_far_it_is() {
        let state = |ready: &str| {
            let with = LIVE.replace("job='copy' ready='yes'", &format!("job='copy'{ready}"));
            let domain = Domain::parse(&with).unwrap();
            domain.disk("vdb").unwrap().mirror.clone().unwrap().state
        };
        assert_eq!(state(""), MirrorState::Copying);
        assert_eq!(state(" ready='yes'"), MirrorState::Ready);
        assert_eq!(state(" ready='pivot'"), MirrorState::Ending);
        assert_eq!(state(" ready='abort'"), MirrorState::Ending);
    }

    #[test]
    fn what_is_no_domain_is_refused() {
        let bomb = "<!DOCTYPE d [<!ENTITY a 'aaaa'>]><domain><name>&a;</name></domain>";
        for xml in [
            "",
            "error: Domain not found",
            "<network/>",
            "<domain/>",
            bomb,
        ] {
            assert!(Domain::parse(xml).is_err(), "{xml}");
        }
        // A message in front of it.
        assert!(Domain::parse(&format!("warning\n{LIVE}")).is_err());
        let passed = LIVE.replace("<devices>", "<devices><hostdev mode='subsystem'/>");
        assert!(Domain::parse(&passed).unwrap().host_devices);
    }
}
