//! The free space of each file system as last read, and when it is to be read again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{DeviceNumber, Filesystem, FreeSpace};

/// One reading of each file system. Another file system can be mounted with the same device number, so a
/// reading is valid only for the one whose name it has.
#[derive(Debug, Default)]
pub(super) struct Spaces(BTreeMap<DeviceNumber, Reading>);

#[derive(Debug)]
struct Reading {
    /// [`Filesystem::lasting_name`].
    filesystem: String,
    begun: Instant,
    /// Something has changed the free space since.
    is_outdated: bool,
    /// `None` if it could not be read.
    space: Option<Arc<FreeSpace>>,
}

impl Reading {
    fn is_of(&self, filesystem: &Filesystem) -> bool {
        self.filesystem == filesystem.lasting_name()
    }
}

impl Spaces {
    /// Begins a reading, if there is none of this file system, or if the last one is outdated or older
    /// than `interval`.
    pub(super) fn begin(
        &mut self,
        device: DeviceNumber,
        filesystem: &Filesystem,
        now: Instant,
        interval: Duration,
    ) -> bool {
        let last = self.0.get(&device).filter(|it| it.is_of(filesystem));
        let is_valid = |last: &Reading| {
            !last.is_outdated && now.saturating_duration_since(last.begun) < interval
        };
        if last.is_some_and(is_valid) {
            return false;
        }
        let reading = Reading {
            filesystem: filesystem.lasting_name(),
            begun: now,
            is_outdated: false,
            space: last.and_then(|last| last.space.clone()),
        };
        self.0.insert(device, reading);
        true
    }

    /// Stores the result of a reading of the file system with this name, unless another one has taken
    /// the device number.
    pub(super) fn finish(&mut self, device: DeviceNumber, filesystem: &str, space: FreeSpace) {
        let reading = self.0.get_mut(&device);
        if let Some(reading) = reading.filter(|it| it.filesystem == filesystem) {
            reading.space = Some(Arc::new(space));
        }
    }

    /// The last result, which may be outdated.
    pub(super) fn get(
        &self,
        device: DeviceNumber,
        filesystem: &Filesystem,
    ) -> Option<&Arc<FreeSpace>> {
        let reading = self.0.get(&device).filter(|it| it.is_of(filesystem))?;
        reading.space.as_ref()
    }

    /// Has the file systems read again whose names are `outdated`.
    pub(super) fn outdate(&mut self, outdated: impl Fn(&str) -> bool) {
        let readings = self.0.values_mut();
        readings
            .filter(|it| outdated(&it.filesystem))
            .for_each(|it| it.is_outdated = true);
    }

    /// Forgets file systems that are not `known`.
    pub(super) fn retain(&mut self, known: &BTreeMap<DeviceNumber, Filesystem>) {
        self.0.retain(|device, _| known.contains_key(device));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::registry::tests::{DEVICE, filesystem};
    use crate::model::Bytes;

    const HOUR: Duration = Duration::from_secs(3600);

    fn read() -> FreeSpace {
        FreeSpace {
            longest: vec![Bytes(4096)],
            ..FreeSpace::default()
        }
    }

    #[test]
    fn it_is_read_at_intervals_and_when_it_is_outdated() {
        let (mut spaces, filesystem, now) = (Spaces::default(), filesystem(), Instant::now());
        let name = filesystem.lasting_name();
        assert!(spaces.begin(DEVICE, &filesystem, now, HOUR));
        assert!(!spaces.begin(DEVICE, &filesystem, now, HOUR));
        spaces.finish(DEVICE, &name, read());
        assert_eq!(
            spaces.get(DEVICE, &filesystem).unwrap().longest(),
            Bytes(4096)
        );
        spaces.outdate(|other| other != name);
        assert!(!spaces.begin(DEVICE, &filesystem, now, HOUR));
        spaces.outdate(|other| other == name);
        assert!(spaces.begin(DEVICE, &filesystem, now, HOUR));
        assert!(
            spaces.get(DEVICE, &filesystem).is_some(),
            "until it is read"
        );
        assert!(!spaces.begin(DEVICE, &filesystem, now, HOUR));
        assert!(spaces.begin(DEVICE, &filesystem, now + HOUR, HOUR));
    }

    #[test]
    fn another_file_system_under_the_same_number_is_read_at_once() {
        let (mut spaces, first, now) = (Spaces::default(), filesystem(), Instant::now());
        let second = Filesystem {
            uuid: Some("5678".to_owned()),
            ..filesystem()
        };
        let names = [first.lasting_name(), second.lasting_name()];
        assert!(spaces.begin(DEVICE, &first, now, HOUR));
        spaces.finish(DEVICE, &names[0], read());
        assert!(spaces.get(DEVICE, &second).is_none());
        assert!(spaces.begin(DEVICE, &second, now, HOUR));
        // A reading of the first that was still under way.
        spaces.finish(DEVICE, &names[0], read());
        assert!(spaces.get(DEVICE, &second).is_none());
        spaces.finish(DEVICE, &names[1], read());
        assert!(spaces.get(DEVICE, &second).is_some());
    }
}
