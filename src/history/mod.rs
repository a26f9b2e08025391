//! What images were like before, and what that says of what comes.

pub mod growth;
pub mod recent;
