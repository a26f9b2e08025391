//! What the tests of this directory share.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::decide::Step;
use super::note::{Note, identify};
use crate::model::FilesystemKind;

/// An image and its complete copy, in a directory.
pub(super) fn copied(directory: &Path) -> Note {
    let path = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        let file = File::open(&path).unwrap();
        let kind = FilesystemKind::Other;
        (path, identify(&file, kind).unwrap(), file)
    };
    let (image, old, file) = path("image", "old");
    let (copy, new, _) = path("copy", "new");
    let owner = file.metadata().unwrap();
    Note {
        image,
        copy,
        former: PathBuf::new(),
        old,
        new,
        owner: (owner.uid(), owner.gid()),
        label: Vec::new(),
        domain: "6695eb01-f6a4-8304-79aa-97f2502e193f".to_owned(),
        disk: "vda".to_owned(),
        step: Step::Switching { suspends: true },
        mark: None,
        database: directory.join("none"),
        holder: None,
    }
}

/// A process that has a file open, until this is dropped.
pub(super) struct Holder(pub(super) Child);

pub(super) fn holder(file: File) -> Holder {
    let mut command = Command::new("sleep");
    Holder(command.arg("600").stdin(Stdio::from(file)).spawn().unwrap())
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
