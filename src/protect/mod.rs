//! Prevention: images that cannot fragment, or no longer.

pub mod rewrite;
