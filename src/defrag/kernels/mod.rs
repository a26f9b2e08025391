//! Which kernels an engine may be used on: the kernel defects that could damage an image, and the
//! proof that the running kernel does not have them. Without proof the engine is refused.
//!
//! ```text
//! /proc: release, level ─► every repair in it? ───────────────────────► trusted
//!   └─ no ─► defrag.trusted_kernels names the release? ───────────────► trusted
//!        └─ no ─► changelog of its package names what is missing? ────► trusted
//!             └─ no ─► nothing but its level in it? ─► known bad, else unknown: refused
//! ```
//!
//! - [`release`]: the version that a kernel reports, and what it proves
//! - [`table`]: the defects, one per row, with sources
//! - [`changelog`], [`package`]: other places that name repairs
//! - [`judge`](mod@judge): the verdict, as text
//!
//! A release in `defrag.trusted_kernels` is trusted even if known bad: it may have been patched.
//!
#![doc = include_str!("left-out.md")]

pub mod changelog;
pub mod judge;
pub mod package;
pub mod release;
pub mod table;

use std::sync::{Mutex, PoisonError};

pub use judge::{Judgement, Trust};
pub use package::Sources;

use crate::model::Engine;

type Key = (Engine, String, Sources);

/// The last evidence found: a process searches once for its kernel.
static SEARCHED: Mutex<Option<(Key, judge::Evidence)>> = Mutex::new(None);

/// Judges the running kernel for an engine. May take as long as [`Sources::deadline`], and hang
/// with the disk that holds the changelog: not for a thread that others wait for.
pub fn judge_host(engine: Engine, sources: &Sources, vouched: &[String]) -> Judgement {
    let (running, version) = package::running(&sources.proc);
    judge::judge(engine, &running, vouched, |defects| {
        let key = (engine, version, sources.clone());
        // Held during the search, so that no other thread repeats it.
        let mut searched = SEARCHED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, evidence)) = searched.as_ref().filter(|(known, _)| *known == key) {
            return evidence.clone();
        }
        let evidence = package::search(sources, &running, defects);
        // A failed search is repeated the next time.
        *searched = evidence.is_ok().then(|| (key, evidence.clone()));
        evidence
    })
}
