//! The commands with which operators let the hypervisor copy an image under a VM that fragwatch does
//! not manage: a monitor has one master, and theirs is another. Pure.

use serde::Serialize;
use serde_json::json;

use super::facts::{ImageFacts, User};
use crate::model::Manager;
use crate::model::path::shown;

/// Commands, and what they lack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ByHand {
    /// In the order in which they are given. Words in capitals are to be filled in.
    pub commands: Vec<String>,
    /// What a run of an engine would do besides.
    pub lacks: &'static str,
}

/// What helps an image that a VM has open; `None` if none has, or it is one of libvirt.
pub fn by_hand(image: &ImageFacts) -> Option<ByHand> {
    let User::Vm { manager, node, .. } = image.user.as_ref()? else {
        return None;
    };
    match manager {
        Some(Manager::Libvirt) => None,
        Some(Manager::Proxmox { vmid }) => Some(proxmox(*vmid, node.as_deref())),
        None => Some(qmp(&shown(&image.path), node.as_deref())),
    }
}

/// qm(1): a disk is moved to another storage, or to another format on the same.
fn proxmox(vmid: u32, node: Option<&str>) -> ByHand {
    let disk = node.and_then(|node| node.strip_prefix("drive-"));
    let disk = disk.unwrap_or("DISK");
    ByHand {
        commands: vec![format!(
            "qm move-disk {vmid} {disk} STORAGE --bwlimit KIBPS --delete 1"
        )],
        lacks: "STORAGE must be another one, so the image gets another path. The disks of other VMs \
                are not considered, and nothing stops at the end of a window.",
    }
}

/// qapi/block-core.json of QEMU: `copy-mode` since 3.0, `auto-dismiss` since 2.12.
fn qmp(path: &str, node: Option<&str>) -> ByHand {
    let new = format!("{path}.new");
    let (copy, job) = ("fragwatch-copy", "fragwatch");
    let command = |name, arguments| json!({ "execute": name, "arguments": arguments }).to_string();
    let file = json!({ "driver": "file", "filename": new });
    let add = json!({ "driver": "FORMAT", "node-name": copy, "file": file });
    let mirror = json!({
        "job-id": job, "device": node.unwrap_or("NODE"), "target": copy, "sync": "full",
        "copy-mode": "write-blocking", "speed": "BYTES_PER_SECOND",
    });
    ByHand {
        commands: vec![
            "qemu-img create -f FORMAT NEW SIZE".replace("NEW", &quoted(&new)),
            command("blockdev-add", add),
            command("blockdev-mirror", mirror).replace("\"BYTES_PER_SECOND\"", "BYTES_PER_SECOND"),
            "(wait for the event BLOCK_JOB_READY)".to_owned(),
            command("job-complete", json!({ "id": job })),
            format!("mv -T {} {}", quoted(&new), quoted(path)),
        ],
        lacks: "Owner, mode and label of the new file are yours to set. If the VM or the host ends \
                between the last two commands, the old file has the name and lacks the last writes: \
                give the last one at once. Snapshots and backing files must not exist.",
    }
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
