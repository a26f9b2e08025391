//! The history: what was counted, done and suffered, in an SQLite database.
//!
//! ```text
//! daemon ─► Recorder ─► bounded queue ─► thread: store ─► history.db
//!                                                             │
//!                                        Reader ◄─────────────┘   (a connection of its own)
//! ```
//!
//! **Nobody waits for it.** The database may lie on the file system that hangs, or on a full disk:
//! telling the history something takes it over or loses it, at once, and what is lost is counted
//! ([`Health`]). All statements run on one thread ([`open`]); the queue is bounded by rows.
//!
//! **It is whole after any death.** A sweep is one transaction, flushed to the disk when it is
//! committed. A file that is damaged all the same is moved aside under a name with the time, and a
//! new one begun. A file that is not ours, or from a newer version, is left alone.
//!
//! **It stays small** by packing samples ([`mod@pack`]), and by forgetting some as they grow old.
//!
//! A daemon takes the [`lock`] of the directory before it opens anything, so that two never write
//! the same history. `schema.sql` explains the tables to operators.

mod file;
pub mod growth;
mod join;
pub mod lock;
pub mod pack;
pub mod reader;
pub mod recent;
mod record;
mod recorder;
mod schema;
pub mod store;

pub use crate::model::ImageRef;
pub use reader::{ImageInfo, ReadError, Reader};
pub use record::{IncidentRow, MapRow, Record, SampleRow, SeverityRow, Sweep};
pub use recorder::{Health, Keeper, Recorder, open};
pub use store::Store;

#[cfg(test)]
mod tests;
