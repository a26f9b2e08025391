//! The slow half of the rescue: what happened in an emergency, kept for later. One file an incident,
//! with evidence of the host's state, and the operator's hook.

pub mod archive;
mod entry;
pub mod evidence;
pub mod format;
pub mod gatherer;
pub mod hook;
pub mod recorder;
mod writer;
