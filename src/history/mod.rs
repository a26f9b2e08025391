//! The history: counts, defragmentations, severities and incidents, in an SQLite database.
//!
//! ```text
//! daemon ─► Recorder ─► bounded queue ─► thread: store ─► history.db
//!                                                             │
//!                                        Reader ◄─────────────┘   (a connection of its own)
//! ```
//!
//! **Nobody waits for it.** The database may lie on the file system that hangs, or on a full disk: a
//! record is queued or lost at once, and lost records are counted ([`Health`]). All statements run on
//! one thread ([`open`]); the queue is bounded by rows.
//!
//! **It survives a kill and a power cut.** A sweep is one transaction, flushed to the disk when it is
//! committed. A damaged file is moved aside under a name with the time, and a new one begun. A file
//! that is not ours, or from a newer version, is left alone.
//!
//! **It stays small**: sweeps are merged, and later removed, as they grow old ([`mod@retention`]).
//!
//! A daemon takes the [`lock`] of the directory before it opens anything, so that two never write the
//! same history. `schema.sql` documents the tables for operators.

mod error;
mod file;
mod join;
pub mod lock;
mod reader;
mod record;
mod recorder;
mod retention;
mod schema;
mod store;

pub use crate::model::ImageRef;
#[cfg(test)]
pub use reader::LastSample;
pub use reader::{ImageInfo, PastSeverity, ReadError, Reader, Reading};
pub use record::{IncidentRow, MapRow, Record, SampleRow, SeverityRow, Sweep};
pub use recorder::{Health, Recorder, WriterGuard, open};
pub use store::Store;

#[cfg(test)]
mod tests;
