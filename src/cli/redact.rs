//! Replaces what names VMs, images and the host in a report: the same name by the same word everywhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::model::path::shown;
use crate::serve::page::html::Report;
use crate::serve::page::rows::Row;

/// Where the replaced images lie.
const DIRECTORY: &str = "/images";

/// The names of a host and the words for them.
pub(super) struct Redactor {
    /// The longest first.
    words: Vec<(String, String)>,
    /// Other paths that were met.
    paths: BTreeMap<String, String>,
}

impl Redactor {
    /// Knows all names in a report, and these images.
    pub(super) fn of(report: &Report, images: &[PathBuf]) -> Redactor {
        let mut paths: Vec<String> = images.iter().map(|path| shown(path)).collect();
        paths.extend(report.rows.iter().map(|row| row.path.clone()));
        paths.sort();
        paths.dedup();
        let mut words = vec![(report.frame.host.clone(), "host".to_owned())];
        words.extend(report.stories.iter().filter_map(|story| story.host()));
        for (path, n) in paths.iter().zip(1..) {
            let path = Path::new(path);
            let part = |part: Option<&std::ffi::OsStr>| {
                part.unwrap_or_default().to_string_lossy().into_owned()
            };
            let (name, stem) = (part(path.file_name()), part(path.file_stem()));
            let ending = path
                .extension()
                .map(|it| format!(".{}", it.to_string_lossy()));
            let word = format!("image-{n:03}{}", ending.unwrap_or_default());
            words.push((
                path.to_string_lossy().into_owned(),
                format!("{DIRECTORY}/{word}"),
            ));
            words.push((name, word));
            words.push((stem, format!("image-{n:03}")));
        }
        let mut vms: Vec<_> = report
            .rows
            .iter()
            .filter_map(|row| row.vm.clone())
            .collect();
        vms.sort();
        vms.dedup();
        let vms = vms.into_iter().zip(1..);
        // Before the stems of files, which are often the same.
        words.splice(0..0, vms.map(|(vm, n)| (vm, format!("vm-{n:02}"))));
        words.retain(|(name, _)| !name.is_empty());
        words.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        Redactor {
            words,
            paths: BTreeMap::new(),
        }
    }

    /// Replaces the names in all of a report.
    pub(super) fn redact(&mut self, report: &mut Report) {
        let mut texts: Vec<&mut String> = vec![&mut report.frame.host, &mut report.verdict.text];
        texts.extend(&mut report.frame.gaps);
        for row in &mut report.rows {
            texts.extend(of_row(row));
        }
        for detail in &mut report.details {
            texts.extend(of_row(&mut detail.row));
            texts.extend(detail.facts.iter_mut().map(|(_, text)| text));
            texts.extend(detail.chart.marks.iter_mut().map(|mark| &mut mark.text));
        }
        for run in &mut report.runs {
            texts.extend([&mut run.path, &mut run.reason]);
        }
        for story in &mut report.stories {
            texts.extend(story.events.iter_mut().map(|(_, _, text)| text));
            texts.extend(story.facts.iter_mut().map(|(_, text)| text));
            texts.extend(&mut story.tasks);
        }
        for text in texts {
            *text = self.text(text);
        }
    }

    /// A text without names. What looks like a path and is not known gets a word of its own.
    fn text(&mut self, text: &str) -> String {
        let mut redacted = String::with_capacity(text.len());
        let (mut rest, mut inside) = (text, false);
        while let Some(first) = rest.chars().next() {
            let known = self
                .words
                .iter()
                .find(|(name, _)| !inside && is_word(rest, name));
            let length = if let Some((name, word)) = known {
                redacted.push_str(word);
                name.len()
            } else if first == '/' && !inside && path_length(rest) > 1 {
                let length = path_length(rest);
                let number = self.paths.len() + 1;
                let path = self.paths.entry(rest[..length].to_owned());
                redacted.push_str(path.or_insert_with(|| format!("/path-{number}")));
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

fn of_row(row: &mut Row) -> impl Iterator<Item = &mut String> {
    let Row {
        path,
        vm,
        mount,
        reason,
        next,
        ..
    } = row;
    [path, mount, next].into_iter().chain(vm).chain(reason)
}

/// Whether a text begins with a name that ends there.
fn is_word(text: &str, name: &str) -> bool {
    let rest = text.strip_prefix(name);
    rest.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
}

fn path_length(text: &str) -> usize {
    let ends = |c: char| c.is_whitespace() || "\"'`,;:()<>".contains(c);
    text.find(ends).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_name_becomes_the_same_word() {
        let word = |name: &str, word: &str| (name.to_owned(), word.to_owned());
        let mut redactor = Redactor {
            words: vec![
                word("/srv/vm/db 1.img", "/images/image-001.img"),
                word("db 1.img", "image-001.img"),
                word("db", "vm-01"),
            ],
            paths: BTreeMap::new(),
        };
        for (text, redacted) in [
            (
                "/srv/vm/db 1.img of VM db",
                "/images/image-001.img of VM vm-01",
            ),
            (
                "db 1.img, dbus and CPU 0/KVM",
                "image-001.img, dbus and CPU 0/KVM",
            ),
            (
                "cannot open /srv/x: no; /srv/y, /srv/x",
                "cannot open /path-1: no; /path-2, /path-1",
            ),
            ("a / b", "a / b"),
            ("ädb-db", "ädb-vm-01"),
        ] {
            assert_eq!(redactor.text(text), redacted);
        }
    }
}
