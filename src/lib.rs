//! fragwatch watches the extent fragmentation of VM disk images on KVM hypervisors.
pub mod discover;
pub mod model;
pub mod sys;
