//! Reads an extent map chunk by chunk, resting in between to let the guest proceed.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::model::borders::BorderCount;
use crate::model::sampling::{SAMPLED_FROM, Sampling};
use crate::model::{Bytes, Extent, ExtentCount, ExtentFlags, ExtentMap, MapBuilder, Outlook};
use crate::sys::fiemap;

/// Rest after a piece of work, as a fraction of the time it took. Reading a chunk holds the file's
/// I/O lock, and a writer waiting for the lock also blocks all readers behind it. All of them
/// proceed between chunks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReadPace(f32);

impl ReadPace {
    /// For interactive use: rests for a tenth of the working time.
    pub const QUICK: ReadPace = ReadPace(0.1);
    /// For the daemon: rests for as long as it works.
    pub const GENTLE: ReadPace = ReadPace(1.0);

    /// Lets others proceed after a system call; sleeps once `worked`, the time since the last sleep, is
    /// long enough.
    pub(super) fn rest(self, worked: &mut Duration) {
        // A task woken on our processor would otherwise wait until we sleep: the scheduler lets a
        // thread that has just begun run its slice (RUN_TO_PARITY, kernel/sched/features.h).
        std::thread::yield_now();
        if *worked >= PIECE {
            // Short enough for a deadline of seconds, even after one slow call.
            std::thread::sleep(worked.mul_f32(self.0).min(Duration::from_millis(50)));
            *worked = Duration::ZERO;
        }
    }
}

/// Work between rests: long enough that the minimum sleep time (timer slack, prctl(2)) hardly
/// matters and that few guests wake up on the processor in use.
const PIECE: Duration = Duration::from_millis(4);

/// Reads extent maps; has a buffer of 7 KB.
#[derive(Default)]
pub struct MapReader {
    chunk: fiemap::Chunk,
}

impl MapReader {
    /// Visits the extents from byte `start` in ascending order without overlap, until the last one
    /// or until the visitor breaks off; returns whether the last one was reached. `beat` is called
    /// before each system call. The map may change meanwhile; the result then mixes old and new
    /// state, but no extent is visited twice, and it ends.
    ///
    /// # Errors
    /// Errors of FIEMAP; EOPNOTSUPP if the file system does not support it.
    pub fn read(
        &mut self,
        file: &File,
        start: Bytes,
        pace: ReadPace,
        mut visit: impl FnMut(Extent) -> ControlFlow<()>,
        beat: &mut dyn FnMut(),
    ) -> io::Result<bool> {
        let mut at = start.0;
        let mut worked = Duration::ZERO;
        loop {
            beat();
            let began = Instant::now();
            let extents = self.chunk.read(file, at)?;
            worked += began.elapsed();
            // No extent beyond `at`: the end of the map, also if the file has shrunk meanwhile.
            let Some(last) = extents.last().copied() else {
                return Ok(true);
            };
            for extent in extents.iter().filter_map(|extent| beyond(extent, at)) {
                if visit(extent).is_break() {
                    return Ok(false);
                }
            }
            let end = last.logical.saturating_add(last.length);
            if last.flags & fiemap::EXTENT_LAST != 0 || end <= at {
                // `end <= at` is no progress: such a file system would keep us here forever.
                return Ok(true);
            }
            at = end;
            pace.rest(&mut worked);
        }
    }

    /// The extents in the `length` bytes from `start`, cut to that range, but only as many as one
    /// call returns. Also returns the offset up to which they are complete. Errors as for
    /// [`read`](MapReader::read).
    pub fn read_range(
        &mut self,
        file: &File,
        start: Bytes,
        length: Bytes,
    ) -> io::Result<(Vec<Extent>, Bytes)> {
        let end = start.0.saturating_add(length.0);
        let extents = self.chunk.read_range(file, start.0, length.0)?;
        let is_full = extents.len() >= fiemap::CHUNK as usize;
        let cut = |extent: &fiemap::Extent| {
            let mut extent = beyond(extent, start.0)?;
            extent.length.0 = extent.length.0.min(end.checked_sub(extent.logical.0)?);
            (extent.length.0 > 0).then_some(extent)
        };
        let extents: Vec<_> = extents.iter().filter_map(cut).collect();
        let last = extents.last().filter(|_| is_full);
        let known = last.map_or(end, |last| last.logical.0 + last.length.0);
        Ok((extents, Bytes(known)))
    }

    /// Estimates from a sample of the map what defragmenting a file with this many extents could
    /// gain: some hundred calls of about 50 µs each; the first one loads the whole map if it is not
    /// loaded yet. A map no longer than a sample is read completely. Errors as for
    /// [`read`](MapReader::read).
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
            let visit = |extent: Extent| {
                if extent.logical >= end {
                    return ControlFlow::Break(());
                } else if extent.logical >= start {
                    count.push(&extent);
                } else {
                    count.skip(&extent);
                }
                ControlFlow::Continue(())
            };
            // Starts one byte earlier, to include the extent that ends there.
            let before = Bytes(start.0.saturating_sub(1));
            self.read(file, before, ReadPace::GENTLE, visit, beat)?;
            counts.push(count.borders);
        }
        Ok(Outlook::of_sample(&counts, &sampling))
    }

    /// Continues reading a map for about `budget`. Returns the finished map, or `None` if there is
    /// more to read; `builder` then holds what was read so far. Stops at `max_extents` with a map
    /// marked as incomplete. Errors as for [`read`](MapReader::read).
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
        let visit = |extent| {
            // The clock is read once per chunk.
            let chunk_done = visited > 0 && visited.is_multiple_of(u64::from(fiemap::CHUNK));
            let is_late = chunk_done && began.elapsed() >= bounds.budget;
            if builder.extents() >= bounds.max_extents || is_late {
                return ControlFlow::Break(());
            }
            visited += 1;
            builder.push(extent);
            ControlFlow::Continue(())
        };
        let is_whole = self.read(file, start, bounds.pace, visit, beat)?;
        let capped = !is_whole && builder.extents() >= bounds.max_extents;
        Ok((is_whole || capped).then(|| std::mem::take(builder).finish(size, !capped)))
    }
}

/// Limits for reading a part of a map.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Maximum number of extents in all parts together.
    pub max_extents: ExtentCount,
    /// Approximate time for this part.
    pub budget: Duration,
    /// Rests between chunks.
    pub pace: ReadPace,
}

/// The part of a kernel extent from `at` on; `None` if it ends before.
fn beyond(extent: &fiemap::Extent, at: u64) -> Option<Extent> {
    let skip = at.saturating_sub(extent.logical);
    let length = extent.length.checked_sub(skip).filter(|it| *it > 0)?;
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
