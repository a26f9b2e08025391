//! A loop device that detaches itself.
//!
//! losetup(8) sets it up in one step and makes it detach itself in another, if at all; whoever is
//! killed in between leaves it behind. `LOOP_CONFIGURE` (since Linux 5.8) does both at once.
#![allow(unsafe_code, reason = "there is no other way to the ioctls of loop(4)")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, Setter};

use super::skip::{Here, NotHere};
use super::tools;

const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_config` of linux/loop.h, as far as it is used.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    /// `struct loop_info64` up to `lo_flags`.
    unused: [u64; 6],
    unused_key_size: u32,
    flags: u32,
    /// Its names and key, and what is reserved behind it.
    rest: [u64; 30],
}
const _: () = assert!(size_of::<LoopConfig>() == 304);
const _: () = assert!(std::mem::offset_of!(LoopConfig, flags) == 8 + 52);

/// Makes `image` a block device: its path, and the file that holds it until somebody else does.
pub fn attach(image: &File) -> Here<(PathBuf, File)> {
    let control = open("/dev/loop-control")
        .or_else(|_| {
            tools::load_module("loop");
            open("/dev/loop-control")
        })
        .map_err(|e| NotHere::because(format_args!("/dev/loop-control: {e}")))?;
    loop {
        // SAFETY: GetFree describes LOOP_CTL_GET_FREE.
        let n = unsafe { ioctl::ioctl(&control, GetFree) }
            .map_err(|e| NotHere::because(format_args!("there is no free loop device: {e}")))?;
        let path = format!("/dev/loop{n}");
        let device = open(&path).map_err(|e| NotHere::because(format_args!("{path}: {e}")))?;
        match configure(&device, image) {
            Ok(()) => return Ok((PathBuf::from(path), device)),
            // Somebody else took it since we asked.
            Err(rustix::io::Errno::BUSY) => {}
            Err(e) => return Err(NotHere::because(format_args!("{path}: {e}"))),
        }
    }
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn configure(device: &File, image: &File) -> rustix::io::Result<()> {
    let config = LoopConfig {
        fd: image.as_raw_fd().cast_unsigned(),
        block_size: 0,
        unused: [0; 6],
        unused_key_size: 0,
        // Where the image's file system cannot do direct I/O, the kernel drops that flag.
        flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
        rest: [0; 30],
    };
    // SAFETY: LOOP_CONFIGURE reads one struct loop_config, whose size is checked above.
    unsafe { ioctl::ioctl(device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) }
}

/// `LOOP_CTL_GET_FREE`: answers with the number of a device that is free, made if need be.
struct GetFree;

// SAFETY: it passes no pointer; the kernel neither reads nor writes memory of ours.
unsafe impl Ioctl for GetFree {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(
        number: IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<i32> {
        Ok(number)
    }
}
