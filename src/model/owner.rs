//! The processes that have an image open.

use serde::{Deserialize, Serialize};

/// A virtual machine, identified by its process.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Vm {
    /// Its name, if it has one that can be read.
    pub name: Option<String>,
    /// Its UUID, if it has one that can be read.
    pub uuid: Option<String>,
    /// Its process ID.
    pub pid: u32,
    /// What runs it, if that can be seen.
    #[serde(default)]
    pub manager: Option<Manager>,
}

/// What runs a virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Manager {
    /// libvirt.
    Libvirt,
    /// Proxmox VE, which numbers its VMs.
    Proxmox {
        /// The number.
        vmid: u32,
    },
}

/// A process that has an image open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opener {
    /// Its process ID.
    pub pid: u32,
    /// Its name (`comm`).
    pub name: String,
    /// Its VM, if it is QEMU.
    pub vm: Option<Vm>,
    /// Whether it can write to the image.
    pub writes: bool,
    /// Whether it opened the image with O_DIRECT.
    pub direct: bool,
    /// Whether it opened the image through the page cache; it may have done both.
    pub buffered: bool,
    /// Whether it passes the discards of its guest on to the image; `None` if that is not known.
    #[serde(default)]
    pub discards: Option<bool>,
    /// The name of the image in the VM: a drive or the topmost block node; `None` if not known.
    #[serde(default)]
    pub node: Option<String>,
}

/// All processes that have an image open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// In order of their process IDs.
    pub openers: Vec<Opener>,
}

impl Owner {
    /// Whether any process has it open.
    pub fn in_use(&self) -> bool {
        !self.openers.is_empty()
    }

    /// The VM that writes to the image, or the first of those that only read it, as a common base.
    pub fn vm(&self) -> Option<&Vm> {
        let writer = self.openers.iter().filter(|opener| opener.writes);
        writer
            .chain(&self.openers)
            .find_map(|opener| opener.vm.as_ref())
    }

    /// The name of the image in a VM that has it open, if known.
    pub fn node_of(&self, vm: &Vm) -> Option<&str> {
        let its = self
            .openers
            .iter()
            .find(|opener| opener.vm.as_ref() == Some(vm));
        its?.node.as_deref()
    }

    /// Whether a VM passes discards on to it; `None` if that is not known.
    pub fn discards(&self) -> Option<bool> {
        let known = self.openers.iter().filter_map(|opener| opener.discards);
        known.max()
    }

    /// Whether it is written to while open both with and without O_DIRECT: reads through the page
    /// cache can then return old contents (open(2), O_DIRECT).
    pub fn is_mixed(&self) -> bool {
        let any = |is: fn(&Opener) -> bool| self.openers.iter().any(is);
        // libvirt's virtlockd has images open without O_DIRECT, for their locks alone.
        let is_buffered = |opener: &Opener| opener.buffered && opener.name != "virtlockd";
        any(|opener| opener.direct) && any(is_buffered) && any(|opener| opener.writes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opener(pid: u32, writes: bool, direct: bool, is_vm: bool) -> Opener {
        Opener {
            pid,
            name: "x".to_owned(),
            vm: is_vm.then(|| Vm {
                pid,
                ..Vm::default()
            }),
            writes,
            direct,
            buffered: !direct,
            discards: None,
            node: None,
        }
    }

    #[test]
    fn an_image_is_the_vm_s_that_writes() {
        let owner = |openers: &[Opener]| Owner {
            openers: openers.to_vec(),
        };
        let pid = |openers: &[Opener]| owner(openers).vm().map(|vm| vm.pid);
        let backup = opener(1, true, false, false);
        let reader = opener(2, false, true, true);
        let writer = opener(3, true, true, true);
        assert_eq!(pid(&[]), None);
        assert_eq!(pid(std::slice::from_ref(&backup)), None);
        assert_eq!(pid(&[backup.clone(), reader.clone()]), Some(2));
        assert_eq!(pid(&[backup, reader, writer]), Some(3));
    }

    #[test]
    fn mixed_is_who_writes_while_others_read_otherwise() {
        let is_mixed = |openers: &[(bool, bool)]| {
            let opener = |(writes, direct): &(bool, bool)| opener(1, *writes, *direct, false);
            let openers = openers.iter().map(opener).collect();
            Owner { openers }.is_mixed()
        };
        assert!(is_mixed(&[(true, true), (false, false)]));
        assert!(is_mixed(&[(false, true), (true, false)]));
        assert!(!is_mixed(&[(false, true), (false, false)]));
        assert!(!is_mixed(&[(true, true), (true, true)]));
        assert!(!is_mixed(&[(true, false), (false, false)]));
        let both = Opener {
            buffered: true,
            ..opener(1, true, true, false)
        };
        assert!(
            Owner {
                openers: vec![both]
            }
            .is_mixed()
        );
    }
}
