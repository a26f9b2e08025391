//! The history: counts, defragmentations, severities and incidents, in an SQLite database.
//!
//! ```text
//! daemon ─► Recorder ─► bounded queue ─► thread: store ─► history.db
//!                                                             │
//!                                 HistoryReader ◄─────────────┘   (a connection of its own)
//! ```
//!
//! - **Recording never blocks.** The database may be on a stalled file system or a full disk: a
//!   record is queued or lost at once, and lost records are counted ([`Health`]). All statements
//!   run on one thread ([`open`]); the queue is bounded by rows.
//! - **It survives a kill and a power failure.** A sweep is one transaction, flushed to disk at
//!   commit. A damaged file is renamed, with the time, and a new one created. A file of another
//!   program or of a newer version is not touched.
//! - **It stays small**: sweeps are merged, and later removed, as they age ([`mod@retention`]).
//!
//! The daemon takes the [`lock`] of the directory first, so that two daemons never write the same
//! history. `schema.sql` documents the tables for operators.

mod error;
mod file;
mod join;
pub mod lock;
mod reader;
mod record;
mod recorder;
mod rekey;
mod retention;
mod schema;
mod store;

pub use error::StoreError;
#[cfg(test)]
pub use reader::LastSample;
pub use reader::{HistoryReader, ImageInfo, PastSeverity, ReadError, Reading};
pub use record::{IncidentRow, MapRow, Record, SampleRow, SeverityRow, Sweep};
pub use recorder::{Health, Recorder, open};
pub use rekey::rekey;
pub use store::Store;

#[cfg(test)]
mod tests;
