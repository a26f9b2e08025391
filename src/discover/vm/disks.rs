//! The images of a QEMU by its command line: how it names them, and whether it passes the discards of
//! its guest on to them. Pure.
//!
//! `-drive file=/a,discard=unmap`, or `-blockdev` with a node for the file and mostly one above it
//! for the format: a discard gets through if each has `discard`, whose default is `ignore`
//! (qapi/block-core.json of QEMU). What was plugged in later is not on the command line.

use std::path::PathBuf;

use serde_json::Value;

use super::options::option;

/// What becomes of a discard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::discover) enum Discard {
    #[default]
    Ignored,
    /// It makes a hole.
    Passed,
    /// In a qcow2 without `discard-no-unref` (since QEMU 8.1, 42a2890a76f4): its clusters are given up and
    /// used again in another order, and the file can grow beyond the size of the disk.
    Unreferenced,
}

/// An image on a command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::discover) struct Drive {
    pub(in crate::discover) file: PathBuf,
    /// What becomes of the guest's discards.
    pub(in crate::discover) discard: Discard,
    /// The `id` of its `-drive`, or the name of the topmost node above it.
    pub(in crate::discover) node: Option<String>,
}

/// A `-blockdev`.
#[derive(Debug)]
struct Node {
    name: Option<String>,
    /// The node below it.
    below: Option<String>,
    file: Option<String>,
    discard: Discard,
}

/// The images in the options of a command line.
pub(super) fn drives(options: impl Iterator<Item = (String, String)>) -> Vec<Drive> {
    let (mut found, mut nodes) = (Vec::new(), Vec::new());
    for (key, value) in options {
        match key.as_str() {
            "drive" => {
                let file = option(&value, "file").map(PathBuf::from);
                found.extend(file.map(|file| Drive {
                    file,
                    discard: discard(|key| option(&value, key), "format"),
                    node: option(&value, "id"),
                }));
            }
            "blockdev" => nodes.extend(node(&value)),
            _ => {}
        }
    }
    let files = nodes.iter().filter_map(|node| {
        let (top, discard) = top_of(node, &nodes);
        Some(Drive {
            file: PathBuf::from(node.file.as_ref()?),
            discard,
            node: top.name.clone(),
        })
    });
    found.extend(files);
    found
}

/// Of the options of a node, one of which names its driver.
fn discard(option: impl Fn(&str) -> Option<String>, driver: &str) -> Discard {
    let is_on = |key| option(key).is_some_and(|it| matches!(&*it, "unmap" | "on" | "true"));
    match option(driver).as_deref() {
        _ if !is_on("discard") => Discard::Ignored,
        Some("qcow2") if !is_on("discard-no-unref") => Discard::Unreferenced,
        _ => Discard::Passed,
    }
}

/// The topmost node above a node, and what becomes of discards on the way.
fn top_of<'n>(node: &'n Node, nodes: &'n [Node]) -> (&'n Node, Discard) {
    let (mut at, mut discard) = (node, node.discard);
    // Bounded, because a command line can name a circle.
    for _ in nodes {
        let is_above = |it: &&Node| it.below.is_some() && it.below == at.name;
        match nodes.iter().find(is_above) {
            Some(above) => at = above,
            None => return (at, discard),
        }
        // Each on the way has to pass it on.
        discard = match discard.min(at.discard) {
            Discard::Ignored => Discard::Ignored,
            _ => discard.max(at.discard),
        };
    }
    (at, Discard::Ignored)
}

fn node(value: &str) -> Option<Node> {
    let document: Value = match value.starts_with('{') {
        true => serde_json::from_str(value).ok()?,
        false => Value::Null,
    };
    let text = |key: &str| match document.is_null() {
        true => option(value, key),
        false => match document.get(key)? {
            Value::Bool(is) => Some(is.to_string()),
            value => Some(value.as_str()?.to_owned()),
        },
    };
    // A node that is written inside another one has `unmap` by default.
    let inside = || {
        let mut node = document.get("file")?;
        // Proxmox VE 9 nests throttle, format and protocol.
        while let Some(file) = node.get("file") {
            node = file;
        }
        Some(node.get("filename")?.as_str()?.to_owned())
    };
    Some(Node {
        name: text("node-name"),
        below: text("file"),
        file: text("filename")
            .or_else(|| text("file.filename"))
            .or_else(inside),
        discard: discard(text, "driver"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &[(&str, &str)]) -> Vec<(String, bool)> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let found = drives(line.iter().map(owned)).into_iter();
        found
            .map(|it| {
                (
                    it.file.display().to_string(),
                    it.discard != Discard::Ignored,
                )
            })
            .collect()
    }

    #[test]
    fn an_image_has_the_name_of_its_drive_or_topmost_node() {
        let name = |line: &[(&str, &str)]| {
            let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            drives(line.iter().map(owned)).pop().unwrap().node
        };
        let is = |name: &str| Some(name.to_owned());
        assert_eq!(
            name(&[("drive", "file=/a,if=none,id=drive-scsi0")]),
            is("drive-scsi0")
        );
        assert_eq!(name(&[("drive", "file=/a")]), None);
        let storage = "driver=file,filename=/a,node-name=s";
        assert_eq!(name(&[("blockdev", storage)]), is("s"));
        let format = "driver=raw,node-name=f,file=s";
        assert_eq!(
            name(&[("blockdev", storage), ("blockdev", format)]),
            is("f")
        );
        let nested = r#"{"driver":"throttle","node-name":"drive-virtio1","file":{"driver":"raw","node-name":"x","file":{"filename":"/a"}}}"#;
        assert_eq!(name(&[("blockdev", nested)]), is("drive-virtio1"));
    }

    fn one(file: &str, discards: bool) -> Vec<(String, bool)> {
        vec![(file.to_owned(), discards)]
    }

    #[test]
    fn a_drive_has_its_mode_beside_its_file() {
        for (drive, file, discards) in [
            ("file=/a,format=raw,discard=unmap", "/a", true),
            ("file=/a,,b,discard=on", "/a,b", true),
            ("file=/a,discard=ignore", "/a", false),
            ("file=/a,format=raw", "/a", false),
        ] {
            assert_eq!(of(&[("drive", drive)]), one(file, discards), "{drive}");
        }
        assert_eq!(of(&[("drive", "if=none,id=x"), ("m", "16")]), []);
    }

    #[test]
    fn a_discard_must_get_through_all_nodes() {
        let storage = r#"{"driver":"file","filename":"/a","node-name":"s","discard":"unmap"}"#;
        let with = |format: &str| of(&[("blockdev", storage), ("blockdev", format)]);
        // As libvirt writes it, without and with discard='unmap'.
        let format = r#"{"node-name":"f","driver":"raw","file":"s"}"#;
        assert_eq!(with(format), one("/a", false));
        let format = r#"{"node-name":"f","discard":"unmap","driver":"raw","file":"s"}"#;
        assert_eq!(with(format), one("/a", true));
        assert_eq!(of(&[("blockdev", storage)]), one("/a", true));
        let flat = "driver=raw,node-name=f,discard=unmap,file.driver=file,file.filename=/a";
        assert_eq!(of(&[("blockdev", flat)]), one("/a", true));
        let nested = r#"{"driver":"raw","discard":"on","file":{"filename":"/a"}}"#;
        assert_eq!(of(&[("blockdev", nested)]), one("/a", true));
        // Proxmox VE 9.
        let nested = r#"{"driver":"throttle","discard":"unmap","file":{"driver":"raw","file":{"filename":"/a"}}}"#;
        assert_eq!(of(&[("blockdev", nested)]), one("/a", true));
    }

    #[test]
    fn a_qcow2_gives_its_clusters_up_unless_it_is_set() {
        for (drive, expected) in [
            ("file=/a,format=qcow2,discard=unmap", Discard::Unreferenced),
            (
                "file=/a,format=qcow2,discard=unmap,discard-no-unref=on",
                Discard::Passed,
            ),
            ("file=/a,format=qcow2", Discard::Ignored),
        ] {
            let found = drives([("drive".to_owned(), drive.to_owned())].into_iter());
            assert_eq!(found[0].discard, expected, "{drive}");
        }
        let storage = r#"{"driver":"file","filename":"/a","node-name":"s","discard":"unmap"}"#;
        for (more, expected) in [
            ("", Discard::Unreferenced),
            (r#","discard-no-unref":true"#, Discard::Passed),
        ] {
            let format = format!(
                r#"{{"node-name":"f","discard":"unmap","driver":"qcow2","file":"s"{more}}}"#
            );
            let line = [storage, &format].map(|it| ("blockdev".to_owned(), it.to_owned()));
            assert_eq!(drives(line.into_iter())[0].discard, expected, "{format}");
        }
    }

    #[test]
    fn nonsense_is_survived() {
        let circle = r#"{"node-name":"a","file":"a","filename":"/a","discard":"unmap"}"#;
        assert_eq!(of(&[("blockdev", circle)]), one("/a", false));
        let broken = [("blockdev", "{"), ("blockdev", "{}"), ("blockdev", "[1]")];
        assert_eq!(of(&broken), []);
        let odd = r#"{"file":7,"filename":[]}"#;
        assert_eq!(of(&[("blockdev", odd), ("drive", ",,=")]), []);
    }
}
