//! The helper process, which makes the calls that may hang. It reads requests from its standard
//! input, a socket whose other end a [`worker`](super::worker) holds, and answers there.
//!
//! It keeps no file open between requests, so that file systems can be unmounted. A watch does not
//! prevent that either: it ends with the mount (inotify(7), IN_UNMOUNT).

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::stdio::{stdin, stdout};

use super::count::Probe;
use super::extents::{Bounds, MapReader, ReadPace};
use super::protocol::{
    CensusRequest, Fault, MapRequest, Reply, Request, Root, SampleRequest, read_request,
};
use super::reply_writer::ReplyWriter;
use super::survey::{self, Memory};
use super::{census, open};
use crate::discover::paths::{self, Followed};
use crate::model::Bytes;
use crate::sys::heap;

/// Serves requests until the other side closes the socket.
///
/// # Errors
/// If standard input is not a socket, or for an invalid request.
pub fn serve() -> io::Result<()> {
    heap::configure();
    // Cosmetic, may fail: started by a link in procfs, it would appear as "exe" in process lists.
    let _ = rustix::thread::set_name(c"fragwatch-probe");
    // A working directory would keep its file system from being unmounted.
    std::env::set_current_dir("/")?;
    let mut socket = UnixStream::from(stdin().try_clone_to_owned()?);
    let flags = rustix::fs::fcntl_getfl(stdout())?;
    rustix::fs::fcntl_setfl(stdout(), flags | OFlags::NONBLOCK)?;
    let mut out = ReplyWriter::new(socket.try_clone()?)?;
    let mut memory = Memory::default();
    while let Some(request) = read_request(&mut socket)? {
        answer(&request, &mut memory, &mut out);
        out.done()?;
        heap::trim();
    }
    Ok(())
}

fn answer(request: &Request, memory: &mut Memory, out: &mut ReplyWriter) {
    let (place, result) = match request {
        Request::Survey(request) => {
            let mut probe = Probe::new(request.mount.kind());
            (
                &request.mount.point,
                survey::run(request, &mut probe, memory, out),
            )
        }
        Request::Map(request) => (&request.path, map(request, out)),
        Request::Sample(request) => (&request.path, sample(request, out)),
        Request::Census(request) => (&request.path, census(request, out)),
    };
    if let Err(error) = result {
        out.push(&Reply::Fault(Fault::new(place, &error)));
    }
}

fn census(request: &CensusRequest, out: &mut ReplyWriter) -> io::Result<()> {
    out.at_hand(&request.path);
    let reply = match paths::follow(&request.path, &request.scope)? {
        Followed::Elsewhere(path) => Reply::Elsewhere(Root::literal(path)),
        Followed::Here(_) => {
            let census = census::census(request, &mut || out.beat())?;
            Reply::Census(Box::new(census))
        }
    };
    out.push(&reply);
    Ok(())
}

fn sample(request: &SampleRequest, out: &mut ReplyWriter) -> io::Result<()> {
    out.at_hand(&request.path);
    let (file, _) = open::image(&request.path, request.id)?;
    let outlook = MapReader::new().sample(&file, request.expected, &mut || out.beat())?;
    out.push(&Reply::Sampled(outlook));
    Ok(())
}

fn map(request: &MapRequest, out: &mut ReplyWriter) -> io::Result<()> {
    out.at_hand(&request.path);
    let (file, stat) = open::image(&request.path, request.id)?;
    let mut builder = request.builder.clone();
    let bounds = Bounds {
        max_extents: request.max_extents,
        budget: request.budget.min(Duration::from_secs(10)),
        pace: if request.quick {
            ReadPace::QUICK
        } else {
            ReadPace::GENTLE
        },
    };
    let size = Bytes(u64::try_from(stat.st_size).unwrap_or(0));
    let map = MapReader::new().read_part(&file, size, &mut builder, bounds, &mut || out.beat())?;
    out.push(&match map {
        Some(map) => Reply::Map(Box::new(map)),
        None => Reply::MapPart(Box::new(builder)),
    });
    Ok(())
}
