//! Replaces what names VMs, images and the host in a report: the same name by the same word everywhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use crate::incident::format::Incident;
use crate::incident::words::clean;
use crate::serve::page::html::Frame;
use crate::serve::page::rows::{Row, RunRow};
use crate::serve::page::story::Story;

/// Where the replaced images lie.
const DIRECTORY: &str = "/images";
const HOST: &str = "host";
/// For the name of several images.
const ANY: &str = "image";
/// The ends of names that say nothing of a VM.
const ENDINGS: [&str; 8] = ["img", "raw", "qcow2", "qcow", "vmdk", "vdi", "vhd", "vhdx"];

/// The names of a host and the words for them.
pub(super) struct Redactor {
    /// Those to look for in texts, the longest first.
    words: Vec<(String, String)>,
    vms: HashMap<String, String>,
    /// Of all images, and of other paths once they were met.
    paths: BTreeMap<String, String>,
    others: usize,
}

impl Redactor {
    /// The replacements for these names.
    pub(super) fn of(
        hosts: Vec<String>,
        images: impl Iterator<Item = String>,
        vms: impl Iterator<Item = String>,
    ) -> Redactor {
        let images: BTreeSet<String> = images.collect();
        let vms: BTreeSet<String> = vms.collect();
        let (mut paths, mut parts) = (BTreeMap::new(), HashMap::<String, String>::new());
        for (path, n) in images.into_iter().zip(1..) {
            let (name, word) = (Path::new(&path), format!("image-{n:03}"));
            let ending = name.extension().unwrap_or_default().to_string_lossy();
            let whole = match ENDINGS.contains(&&*ending) {
                true => format!("{word}.{ending}"),
                false => word.clone(),
            };
            paths.insert(path.clone(), format!("{DIRECTORY}/{whole}"));
            for (part, word) in [(name.file_name(), whole), (name.file_stem(), word)] {
                let part = part.unwrap_or_default().to_string_lossy().into_owned();
                let known = parts.entry(part).or_insert_with(|| word.clone());
                if *known != word {
                    ANY.clone_into(known);
                }
            }
        }
        let vms = vms.into_iter().zip(1..);
        let vms: HashMap<_, _> = vms.map(|(vm, n)| (vm, format!("vm-{n:02}"))).collect();
        // The name of a VM is often also that of its image.
        parts.extend(vms.clone());
        parts.extend(hosts.into_iter().map(|host| (host, HOST.to_owned())));
        // A number stands for many things.
        let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
        parts.retain(|name, _| !is_number(name));
        let mut words: Vec<_> = parts.into_iter().chain(paths.clone()).collect();
        words.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        Redactor {
            words,
            vms,
            paths,
            others: 0,
        }
    }

    /// The host, and what could not be read.
    pub(super) fn frame(&mut self, frame: &mut Frame) {
        HOST.clone_into(&mut frame.host);
        for gap in &mut frame.gaps {
            *gap = self.text(gap);
        }
    }

    /// Names an image otherwise; the rest of a row in a report is numbers.
    pub(super) fn row(&mut self, row: &mut Row) {
        row.path = self.path(&row.path);
        row.vm = row.vm.take().and_then(|vm| self.vms.get(&vm).cloned());
    }

    /// Names an image otherwise, and leaves out the reason of its run: it names VMs, snapshots and
    /// files in many ways.
    pub(super) fn run(&mut self, run: &mut RunRow) {
        run.path = self.path(&run.path);
        run.reason.clear();
    }

    /// An incident without names.
    pub(super) fn story(&mut self, mut incident: Incident) -> Story {
        HOST.clone_into(&mut incident.host);
        let evidence = incident.evidence.iter_mut();
        for image in evidence.flat_map(|taken| &mut taken.evidence.images) {
            image.path = self.path(&clean(&image.path));
        }
        let mut story = Story::from(&incident);
        let events = story.events.iter_mut().map(|(_, _, text)| text);
        for text in events.chain(&mut story.tasks) {
            *text = self.text(text);
        }
        story
    }

    /// The word for a path; a new one if it is not known.
    fn path(&mut self, path: &str) -> String {
        let others = &mut self.others;
        let word = self.paths.entry(path.to_owned()).or_insert_with(|| {
            *others += 1;
            format!("/path-{others}")
        });
        word.clone()
    }

    /// A text without names. What looks like a path and is not known gets a word of its own.
    fn text(&mut self, text: &str) -> String {
        let mut redacted = String::with_capacity(text.len());
        let (mut rest, mut inside) = (text, false);
        while let Some(first) = rest.chars().next() {
            let known = self
                .words
                .iter()
                .find(|(name, _)| !inside && is_name(rest, name));
            let length = if let Some((name, word)) = known {
                redacted.push_str(word);
                name.len()
            } else if first == '/' && !inside && path_length(rest) > 1 {
                let length = path_length(rest);
                redacted.push_str(&self.path(&rest[..length]));
                length
            } else {
                redacted.push(first);
                first.len_utf8()
            };
            inside = rest[..length]
                .chars()
                .next_back()
                .is_some_and(char::is_alphanumeric);
            rest = &rest[length..];
        }
        redacted
    }
}

/// Whether a text begins with a name that ends there. A path goes on up to an end of
/// [`path_length`]; a full stop may follow it.
fn is_name(text: &str, name: &str) -> bool {
    let Some(rest) = text.strip_prefix(name) else {
        return false;
    };
    if !name.starts_with('/') {
        return !rest.starts_with(char::is_alphanumeric);
    }
    let stop = rest.strip_prefix('.').unwrap_or(rest);
    path_length(rest) == 0 || stop.is_empty() || stop.starts_with(char::is_whitespace)
}

fn path_length(text: &str) -> usize {
    let ends = |c: char| c.is_whitespace() || "\"'`,;:()<>".contains(c);
    text.find(ends).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor(images: &[&str], vms: &[&str]) -> Redactor {
        let owned = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let (images, vms) = (owned(images), owned(vms));
        Redactor::of(
            vec!["kvm-7".to_owned()],
            images.into_iter(),
            vms.into_iter(),
        )
    }

    #[test]
    fn the_same_name_becomes_the_same_word() {
        let images = [
            "/srv/vm/db 1.img",
            "/srv/web.qcow2",
            "/srv/x.acme",
            "/srv/200",
        ];
        let mut redactor = redactor(&images, &["db", "101"]);
        for (text, redacted) in [
            (
                "/srv/vm/db 1.img of VM db",
                "/images/image-002.img of VM vm-02",
            ),
            (
                "db 1.img, dbus and CPU 0/KVM on kvm-7",
                "image-002.img, dbus and CPU 0/KVM on host",
            ),
            (
                "cannot open /srv/q: no; /srv/y, /srv/q",
                "cannot open /path-1: no; /path-2, /path-1",
            ),
            ("a / b", "a / b"),
            ("ädb-db", "ädb-vm-02"),
            (
                "/srv/web.qcow2-acme /srv/web.qcow2.",
                "/path-3 /images/image-003.qcow2.",
            ),
            ("/srv/x.acme, x.acme", "/images/image-004, image-004"),
            ("5,200,101 extents", "5,200,101 extents"),
        ] {
            assert_eq!(redactor.text(text), redacted);
        }
        let mut row = Row {
            path: "/srv/200".to_owned(),
            vm: Some("101".to_owned()),
            ..Row::default()
        };
        redactor.row(&mut row);
        assert_eq!(
            (&*row.path, row.vm.as_deref()),
            ("/images/image-001", Some("vm-01"))
        );
    }

    #[test]
    fn a_name_of_two_images_names_neither() {
        let mut redactor = redactor(&["/a/disk.img", "/b/disk.img"], &[]);
        assert_eq!(
            redactor.text("disk.img, disk, /b/disk.img"),
            "image, image, /images/image-002.img"
        );
    }

    #[test]
    fn an_incident_names_images_by_its_fields() {
        let mut redactor = redactor(&["/srv/my db.img"], &[]);
        let incident = serde_json::json!({
            "schema": 1, "id": "a-1", "state": "ended", "began": "", "host": "other", "kernel": "6.1",
            "evidence": [{ "moment": "begin", "at": "", "images": [
                { "path": "/srv/my db.img", "extents": 5, "size_bytes": 1 },
                { "path": "/srv/acme payroll.img", "extents": 4, "size_bytes": 1 },
            ] }],
        });
        let story = redactor.story(serde_json::from_value(incident).unwrap());
        let facts: Vec<_> = story.facts.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(facts[0], "host, kernel 6.1");
        assert!(
            facts[1].ends_with("/images/image-001.img with 5 extents; /path-1 with 4 extents"),
            "{facts:?}"
        );
    }
}
