//! A FUSE file system of one file, which passes everything on to a file elsewhere. The server of
//! [`super::stall`].
//!
//! It speaks the protocol of /dev/fuse itself (include/uapi/linux/fuse.h, version 7.31 or older):
//! what is needed of it is small, and a library would bring threads of its own and hide what they
//! wait for. One thread, one request at a time; stopped in between, it answers nothing.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// Opcodes (`enum fuse_opcode`) that get an answer other than ENOSYS.
mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
}

const ROOT: u64 = 1;
const FILE: u64 = 2;
/// Bytes of one READ or WRITE at most.
const MAX_IO: u32 = 1 << 20;
/// `struct fuse_in_header`.
const IN_HEADER: usize = 40;
/// `struct fuse_out_header`.
const OUT_HEADER: usize = 16;
/// Seconds for which the kernel may believe what it was told: for good.
const VALID: u64 = 1 << 30;
/// `FOPEN_DIRECT_IO`: the kernel caches nothing of the file, so that every read of the loop device
/// comes here.
const FOPEN_DIRECT_IO: u32 = 1;

/// Mounts the file system on `mount_point`, with `backing` in it under its own name, and serves it
/// until it is unmounted. `pace` is a file that says how slow it is, see [`set_pace`].
pub fn serve(backing: &Path, mount_point: &Path, pace: &Path) -> io::Result<()> {
    // A file system that lies on this one may be what memory reclaim would write to: reclaim on
    // our behalf must not wait for it. That takes CAP_SYS_RESOURCE, which root in a container may
    // lack; without it the danger is there only when memory is short.
    let _ = rustix::process::configure_io_flusher_behavior(true);
    let mut server = Server {
        device: OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")?,
        backing: OpenOptions::new().read(true).write(true).open(backing)?,
        pace: File::open(pace)?,
        name: backing.file_name().unwrap_or_default().as_bytes().to_vec(),
    };
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        server.device.as_raw_fd()
    );
    mount(
        "fragwatch-stall",
        mount_point,
        "fuse",
        MountFlags::NODEV | MountFlags::NOSUID,
        CString::new(options)?.as_c_str(),
    )?;
    server.run()
}

/// From now on the server takes so long for each page that is read or written, and one page after
/// the other, as a disk does.
pub fn set_pace(pace: &Path, page: Duration) -> io::Result<()> {
    let nanoseconds = page.as_nanos() as u64;
    fs::write(pace, nanoseconds.to_ne_bytes())
}

struct Server {
    device: File,
    backing: File,
    pace: File,
    name: Vec<u8>,
}

impl Server {
    fn run(&mut self) -> io::Result<()> {
        // Both are as long as they will ever be.
        let mut request = vec![0; MAX_IO as usize + 4096];
        let mut answer = Answer(Vec::with_capacity(MAX_IO as usize + OUT_HEADER));
        loop {
            let length = match self.device.read(&mut request) {
                Ok(length) => length,
                // The request was withdrawn, or we were stopped while we waited for one.
                Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::INTR)) => {
                    continue;
                }
                // Unmounted.
                Err(e) if Errno::from_io_error(&e) == Some(Errno::NODEV) => return Ok(()),
                Err(e) => return Err(e),
            };
            let request = Request(&request[..length]);
            if matches!(
                request.opcode(),
                op::FORGET | op::BATCH_FORGET | op::INTERRUPT
            ) {
                continue;
            }
            answer.begin();
            let error = self.handle(&request, &mut answer).err();
            if matches!(request.opcode(), op::READ | op::WRITE) {
                self.dawdle(request.u32(16))?;
            }
            match self.device.write(answer.end(request.unique(), error)) {
                // Whoever asked was killed meanwhile.
                Err(e) if Errno::from_io_error(&e) == Some(Errno::NOENT) => {}
                other => drop(other?),
            }
        }
    }

    /// Takes its time for so many bytes.
    fn dawdle(&self, bytes: u32) -> io::Result<()> {
        let mut page = [0; 8];
        // While it is written anew there is nothing in it for a moment, and no delay.
        let read = self.pace.read_at(&mut page, 0)?;
        let nanoseconds = u64::from_ne_bytes(page) * u64::from(read == 8);
        if nanoseconds > 0 {
            let pages = u64::from(bytes.div_ceil(4096));
            std::thread::sleep(Duration::from_nanos(nanoseconds * pages));
        }
        Ok(())
    }

    fn handle(&self, request: &Request<'_>, answer: &mut Answer) -> io::Result<()> {
        match request.opcode() {
            op::INIT => init(request, answer),
            op::LOOKUP => self.lookup(request, answer)?,
            op::GETATTR => {
                answer.u64(VALID).u64(0);
                self.attributes(request.node(), answer)?;
            }
            op::OPEN => drop(answer.u64(0).u32(FOPEN_DIRECT_IO).u32(0)),
            op::READ => self.read(request, answer)?,
            op::WRITE => self.write(request, answer)?,
            op::FALLOCATE => {
                let flags = FallocateFlags::from_bits_retain(request.u32(24));
                fallocate(&self.backing, flags, request.u64(8), request.u64(16))?;
            }
            op::STATFS => {
                // All of it zero, but for the block size and the longest name.
                answer.u64(0).u64(0).u64(0).u64(0).u64(0);
                answer.u32(4096).u32(255).u32(4096).u32(0);
                answer.u64(0).u64(0).u64(0);
            }
            // Nothing outlives the test: there is no power cut to be ready for.
            op::FSYNC | op::RELEASE => {}
            _ => return Err(Errno::NOSYS.into()),
        }
        Ok(())
    }

    /// `struct fuse_entry_out`.
    fn lookup(&self, request: &Request<'_>, answer: &mut Answer) -> io::Result<()> {
        if request.node() != ROOT || request.body().strip_suffix(b"\0") != Some(&self.name) {
            return Err(Errno::NOENT.into());
        }
        answer.u64(FILE).u64(0).u64(VALID).u64(VALID).u64(0);
        self.attributes(FILE, answer)
    }

    /// `struct fuse_attr`.
    fn attributes(&self, node: u64, answer: &mut Answer) -> io::Result<()> {
        let (size, blocks, mode) = match node {
            ROOT => (0, 0, libc::S_IFDIR | 0o755),
            _ => {
                let of = self.backing.metadata()?;
                (of.size(), of.blocks(), libc::S_IFREG | 0o600)
            }
        };
        let no_time = 0;
        answer.u64(node).u64(size).u64(blocks);
        answer.u64(no_time).u64(no_time).u64(no_time);
        answer.u32(0).u32(0).u32(0);
        let (links, user, group, device) = (1, 0, 0, 0);
        answer.u32(mode).u32(links).u32(user).u32(group).u32(device);
        answer.u32(4096).u32(0);
        Ok(())
    }

    /// `struct fuse_read_in`.
    fn read(&self, request: &Request<'_>, answer: &mut Answer) -> io::Result<()> {
        let data = answer.room(request.u32(16).min(MAX_IO) as usize);
        self.backing.read_exact_at(data, request.u64(8))
    }

    /// `struct fuse_write_in`.
    fn write(&self, request: &Request<'_>, answer: &mut Answer) -> io::Result<()> {
        let size = request.u32(16);
        let data = &request.body()[40..][..size as usize];
        self.backing.write_all_at(data, request.u64(8))?;
        answer.u32(size).u32(0);
        Ok(())
    }
}

/// `struct fuse_init_in` and `struct fuse_init_out`.
fn init(request: &Request<'_>, answer: &mut Answer) {
    const ASYNC_READ: u32 = 1;
    const BIG_WRITES: u32 = 1 << 5;
    const MAX_PAGES: u32 = 1 << 22;
    let (minor, readahead, offered) = (request.u32(4), request.u32(8), request.u32(12));
    let flags = offered & (ASYNC_READ | BIG_WRITES | MAX_PAGES);
    answer.u32(7).u32(minor.min(31)).u32(readahead).u32(flags);
    // Requests in the background: as many as the kernel likes.
    answer.u32(0).u32(MAX_IO);
    let time_granularity = 1;
    let max_pages = MAX_IO / 4096;
    answer.u32(time_granularity).u32(max_pages);
    answer.u64(0).u64(0).u64(0).u64(0);
}

/// A request as it was read.
struct Request<'a>(&'a [u8]);

impl Request<'_> {
    fn opcode(&self) -> u32 {
        number(self.0, 4, u32::from_ne_bytes)
    }

    fn unique(&self) -> u64 {
        number(self.0, 8, u64::from_ne_bytes)
    }

    fn node(&self) -> u64 {
        number(self.0, 16, u64::from_ne_bytes)
    }

    /// What follows the header.
    fn body(&self) -> &[u8] {
        &self.0[IN_HEADER..]
    }

    fn u32(&self, at: usize) -> u32 {
        number(self.body(), at, u32::from_ne_bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        number(self.body(), at, u64::from_ne_bytes)
    }
}

fn number<const N: usize, T>(bytes: &[u8], at: usize, read: fn([u8; N]) -> T) -> T {
    let bytes = bytes[at..]
        .first_chunk()
        .expect("the kernel sends all of it");
    read(*bytes)
}

/// An answer that is being written.
struct Answer(Vec<u8>);

impl Answer {
    fn begin(&mut self) {
        self.0.clear();
        self.0.resize(OUT_HEADER, 0);
    }

    fn u32(&mut self, value: u32) -> &mut Answer {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Answer {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn room(&mut self, length: usize) -> &mut [u8] {
        let start = self.0.len();
        self.0.resize(start + length, 0);
        &mut self.0[start..]
    }

    /// Completes the header. An error has nothing behind it.
    fn end(&mut self, unique: u64, error: Option<io::Error>) -> &[u8] {
        let errno = error.map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
        if errno != 0 {
            self.0.truncate(OUT_HEADER);
        }
        let length = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[4..8].copy_from_slice(&(-errno).to_ne_bytes());
        self.0[8..16].copy_from_slice(&unique.to_ne_bytes());
        &self.0
    }
}
