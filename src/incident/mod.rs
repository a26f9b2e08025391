//! The slow side of the rescue: incident files with evidence of the host's state, and a hook.

pub mod archive;
mod entry;
pub mod evidence;
pub mod format;
pub mod gatherer;
pub mod hook;
pub mod recorder;
pub mod words;
mod writer;
