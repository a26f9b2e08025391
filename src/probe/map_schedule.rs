//! Decides which extent map is read next, and when. The maps of one file system are read one at a
//! time, spread over the interval, to limit the load on the disk. Pure: the clock is an argument.

use std::time::{Duration, Instant};

use crate::model::ImageId;

/// Maximum rest between the first maps after a start: they are needed soon, but not at once.
const FIRST_REST: Duration = Duration::from_secs(10);

/// When the maps of one file system are read.
#[derive(Debug, Default)]
pub struct MapSchedule {
    last: Option<Instant>,
}

impl MapSchedule {
    /// Records that a map was finished.
    pub fn finished(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// The image whose map is to be read now, if any: images never read come first, then the one
    /// that is most overdue. `images` are the candidates, with the time of their last reading.
    pub fn next(
        &self,
        now: Instant,
        interval: Duration,
        images: impl Iterator<Item = (ImageId, Option<Instant>)>,
    ) -> Option<ImageId> {
        let images: Vec<_> = images.collect();
        let share = interval / u32::try_from(images.len()).unwrap_or(u32::MAX).max(1);
        let rested = |rest: Duration| {
            self.last
                .is_none_or(|last| now.saturating_duration_since(last) >= rest)
        };
        // `None` is less than any time, so images never read come first.
        let (id, read) = images.into_iter().min_by_key(|(id, read)| (*read, *id))?;
        let due = match read {
            None => rested(share.min(FIRST_REST)),
            Some(read) => now.saturating_duration_since(read) >= interval,
        };
        due.then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const HOUR: Duration = Duration::from_secs(3600);

    fn id(inode: u64) -> ImageId {
        ImageId { device: 1, inode }
    }

    /// Reads in two days of simulated time with a map that takes `work`, as (image, seconds).
    fn simulate(images: u64, interval: Duration, work: Duration) -> Vec<(u64, u64)> {
        let start = Instant::now();
        let mut read: BTreeMap<ImageId, Option<Instant>> =
            (0..images).map(|inode| (id(inode), None)).collect();
        let mut schedule = MapSchedule::default();
        let mut reads = Vec::new();
        let mut now = start;
        while now < start + 48 * HOUR {
            let candidates = read.iter().map(|(id, read)| (*id, *read));
            if let Some(next) = schedule.next(now, interval, candidates) {
                reads.push((next.inode, (now - start).as_secs()));
                now += work;
                read.insert(next, Some(now));
                schedule.finished(now);
            }
            now += Duration::from_secs(1);
        }
        reads
    }

    #[test]
    fn every_map_is_read_each_interval_and_soon_after_the_start() {
        let reads = simulate(100, 12 * HOUR, Duration::from_secs(3));
        for image in 0..100 {
            let times: Vec<_> = reads.iter().filter(|r| r.0 == image).map(|r| r.1).collect();
            assert!(times.len() >= 4, "{image}: {times:?}");
            assert!(times[0] < 100 * 20, "{image}: {times:?}");
            for pair in times.windows(2) {
                assert!(pair[1] - pair[0] >= 12 * 3600, "{image}: {times:?}");
                assert!(pair[1] - pair[0] <= 12 * 3600 + 600, "{image}: {times:?}");
            }
        }
    }

    #[test]
    fn the_first_maps_are_spread_even_when_the_interval_is_short() {
        let reads = simulate(10, Duration::from_secs(100), Duration::ZERO);
        for pair in reads[..10].windows(2) {
            assert!(pair[1].1 - pair[0].1 >= 10, "{reads:?}");
        }
    }

    #[test]
    fn nothing_to_read_is_nothing_to_do() {
        let schedule = MapSchedule::default();
        assert_eq!(
            schedule.next(Instant::now(), HOUR, std::iter::empty()),
            None
        );
    }
}
