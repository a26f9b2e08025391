//! fragwatch watches the extent fragmentation of VM disk images on KVM hypervisors.
pub mod klog;
pub mod model;
pub mod rescue;
