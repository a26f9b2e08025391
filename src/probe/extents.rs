//! Reading an extent map chunk by chunk, with rests in which the guest gets its turn.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::model::borders::BorderCount;
use crate::model::sampling::{SAMPLED_FROM, Sampling};
use crate::model::{Bytes, Extent, ExtentCount, ExtentFlags, ExtentMap, MapBuilder, Outlook};
use crate::sys::fiemap;

/// How long to rest after a piece of work, as a share of the time that it took.
///
/// A chunk holds the file's I/O lock; a writer that waits for it makes all readers behind it wait
/// too. Between chunks they all get through.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReadPace(f32);

impl ReadPace {
    /// For someone who waits: a tenth of the time is rest.
    pub const QUICK: ReadPace = ReadPace(0.1);
    /// For the daemon, which has time: as much rest as work.
    pub const GENTLE: ReadPace = ReadPace(1.0);

    fn rest(self, worked: Duration) -> Duration {
        // Short enough for a deadline of seconds even after a call that was slow once.
        worked.mul_f32(self.0).min(Duration::from_millis(50))
    }
}

/// After so much work comes a rest: so long that it matters little how long the shortest sleep takes
/// (timer slack, prctl(2)), and that few guests wake up on the processor on which we just did.
const PIECE: Duration = Duration::from_millis(4);

/// Reads extent maps.
pub struct MapReader {
    chunk: fiemap::Chunk,
}

/// Why reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The last extent was read.
    Last,
    /// The visitor had enough.
    Stopped,
}

impl MapReader {
    /// With a buffer of its own (7 KB).
    pub fn new() -> Self {
        MapReader {
            chunk: fiemap::Chunk::new(),
        }
    }

    /// Visits the extents from byte `start` on, in ascending order and without overlap, until the
    /// last one or until the visitor breaks off. `beat` is called before each system call.
    ///
    /// The map may change while it is read; what is seen is then a mixture, but never an extent
    /// twice and never without an end.
    ///
    /// # Errors
    /// Those of FIEMAP; EOPNOTSUPP where the file system has none.
    pub fn read(
        &mut self,
        file: &File,
        start: Bytes,
        pace: ReadPace,
        mut visit: impl FnMut(Extent) -> ControlFlow<()>,
        beat: &mut dyn FnMut(),
    ) -> io::Result<End> {
        let mut at = start.0;
        let mut worked = Duration::ZERO;
        loop {
            beat();
            let began = Instant::now();
            let extents = self.chunk.read(file, at)?;
            worked += began.elapsed();
            // No extent beyond `at`: the end, also of a file that has shrunk meanwhile.
            let Some(last) = extents.last().copied() else {
                return Ok(End::Last);
            };
            for extent in extents.iter().filter_map(|extent| beyond(extent, at)) {
                if visit(extent).is_break() {
                    return Ok(End::Stopped);
                }
            }
            let end = last.logical.saturating_add(last.length);
            if last.flags & fiemap::EXTENT_LAST != 0 || end <= at {
                // The second is no progress: a file system that answers so would do it for ever.
                return Ok(End::Last);
            }
            at = end;
            // A task that was woken up on our processor meanwhile would wait until we sleep: the scheduler lets
            // a thread that has just begun have its turn (RUN_TO_PARITY, kernel/sched/features.h).
            std::thread::yield_now();
            if worked >= PIECE {
                std::thread::sleep(pace.rest(worked));
                worked = Duration::ZERO;
            }
        }
    }

    /// The extents of `length` bytes from `start` on, but only so many as one call gives, cut to
    /// that range. With them, up to where they are all that there are.
    ///
    /// # Errors
    /// As [`read`](MapReader::read).
    pub fn read_range(
        &mut self,
        file: &File,
        start: Bytes,
        length: Bytes,
    ) -> io::Result<(Vec<Extent>, Bytes)> {
        let end = start.0.saturating_add(length.0);
        let extents = self.chunk.read_range(file, start.0, length.0)?;
        let is_full = extents.len() >= fiemap::CHUNK;
        let cut = |mut extent: Extent| {
            extent.length.0 = extent.length.0.min(end.checked_sub(extent.logical.0)?);
            (extent.length.0 > 0).then_some(extent)
        };
        let extents: Vec<_> = extents
            .iter()
            .filter_map(|extent| beyond(extent, start.0).and_then(cut))
            .collect();
        let last = extents.last().filter(|_| is_full);
        let known = last.map_or(end, |last| last.logical.0 + last.length.0);
        Ok((extents, Bytes(known)))
    }

    /// What could be gained of a file of so many extents, by a sample of its map: some hundred calls
    /// of some 50 µs. The first of them loads the whole map if it is not loaded yet. A map that is no
    /// longer than a sample is read as a whole.
    ///
    /// # Errors
    /// As [`read`](MapReader::read).
    pub fn sample(
        &mut self,
        file: &File,
        extents: ExtentCount,
        beat: &mut dyn FnMut(),
    ) -> io::Result<Outlook> {
        let size = Bytes(file.metadata()?.len());
        if extents <= SAMPLED_FROM {
            let mut count = BorderCount::default();
            let visit = |extent: Extent| {
                count.push(&extent);
                ControlFlow::Continue(())
            };
            self.read(file, Bytes(0), ReadPace::GENTLE, visit, beat)?;
            return Ok(Outlook::of_map(&count.borders));
        }
        let sampling = Sampling { size, extents };
        let mut counts = Vec::new();
        for (start, end) in sampling.windows() {
            let mut count = BorderCount::default();
            let visit = |extent: Extent| match extent.logical {
                logical if logical >= end => ControlFlow::Break(()),
                logical if logical >= start => {
                    count.push(&extent);
                    ControlFlow::Continue(())
                }
                _ => {
                    count.skip(&extent);
                    ControlFlow::Continue(())
                }
            };
            // With the byte before it, in which the extent before it ends.
            let before = Bytes(start.0.saturating_sub(1));
            self.read(file, before, ReadPace::GENTLE, visit, beat)?;
            counts.push(count.borders);
        }
        Ok(Outlook::of_sample(&counts, &sampling))
    }

    /// Continues a map for about `budget`. Returns the finished map, or None if there is more to
    /// read; then `builder` holds what was read so far. Stops at `max_extents` with a map that is
    /// marked as incomplete.
    ///
    /// # Errors
    /// As [`read`](MapReader::read).
    pub fn read_part(
        &mut self,
        file: &File,
        size: Bytes,
        builder: &mut MapBuilder,
        bounds: Bounds,
        beat: &mut dyn FnMut(),
    ) -> io::Result<Option<ExtentMap>> {
        let began = Instant::now();
        let mut visited: u64 = 0;
        let start = builder.logical_end();
        let end = self.read(
            file,
            start,
            bounds.pace,
            |extent| {
                // The clock is looked at once a chunk.
                let chunk_done = visited > 0 && visited.is_multiple_of(fiemap::CHUNK as u64);
                if builder.extents() >= bounds.max_extents
                    || (chunk_done && began.elapsed() >= bounds.budget)
                {
                    return ControlFlow::Break(());
                }
                visited += 1;
                builder.push(extent);
                ControlFlow::Continue(())
            },
            beat,
        )?;
        let capped = end == End::Stopped && builder.extents() >= bounds.max_extents;
        let finished = end == End::Last || capped;
        Ok(finished.then(|| std::mem::take(builder).finish(size, !capped)))
    }
}

impl Default for MapReader {
    fn default() -> Self {
        Self::new()
    }
}

/// Within what a part of a map is read.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// No more extents than this, in all parts together.
    pub max_extents: ExtentCount,
    /// About so long, for this part.
    pub budget: Duration,
    /// How to rest between chunks.
    pub pace: ReadPace,
}

/// The part of a kernel's extent from `at` on. None if it ends before.
fn beyond(extent: &fiemap::Extent, at: u64) -> Option<Extent> {
    let skip = at.saturating_sub(extent.logical);
    let length = extent
        .length
        .checked_sub(skip)
        .filter(|length| *length > 0)?;
    let has = |flag| extent.flags & flag != 0;
    Some(Extent {
        logical: Bytes(extent.logical + skip),
        physical: Bytes(extent.physical.wrapping_add(skip)),
        length: Bytes(length),
        flags: ExtentFlags {
            unwritten: has(fiemap::EXTENT_UNWRITTEN),
            shared: has(fiemap::EXTENT_SHARED),
            delayed: has(fiemap::EXTENT_DELALLOC | fiemap::EXTENT_UNKNOWN),
        },
    })
}
