//! The process that makes the calls that may hang: reads requests from its standard input, a socket
//! that a [`worker`](super::worker) holds the other end of, and answers there.
//!
//! It keeps no file open between requests, so that it stands in nobody's way when the file system
//! is to be unmounted. (A watch does not either: it ends with the mount, inotify(7), IN_UNMOUNT.)

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::stdio::{stdin, stdout};

use super::extents::{Bounds, Pace, Reader};
use super::format_cache::FormatCache;
use super::outbox::Outbox;
use super::protocol::{
    CensusRequest, MapRequest, Reply, Request, Root, SampleRequest, read_request,
};
use super::{census, fault, for_kind, open, survey};
use crate::discover::paths::{self, Followed};
use crate::discover::watch::{DirectoryWatch, News, Refusal};
use crate::model::Bytes;

/// Serves until the other side closes.
///
/// # Errors
/// When standard input is no socket of ours, or sends what is no request.
pub fn serve() -> io::Result<()> {
    // Started by a link in procfs, it would be called "exe" in lists of processes. Only the name.
    let _ = rustix::thread::set_name(c"fragwatch-probe");
    // Somebody's working directory must not be kept from being unmounted.
    std::env::set_current_dir("/")?;
    let mut socket = UnixStream::from(stdin().try_clone_to_owned()?);
    let flags = rustix::fs::fcntl_getfl(stdout())?;
    rustix::fs::fcntl_setfl(stdout(), flags | OFlags::NONBLOCK)?;
    let mut out = Outbox::new(socket.try_clone()?)?;
    let mut memory = Memory::default();
    while let Some(request) = read_request(&mut socket)? {
        answer(&request, &mut memory, &mut out);
        out.done()?;
    }
    Ok(())
}

/// What is kept from one survey to the next.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) formats: FormatCache,
    pub(super) watch: Watch,
}

/// The watch of the directories, once one was asked for.
#[derive(Default)]
pub(super) struct Watch(Option<Result<DirectoryWatch, Refusal>>);

impl Watch {
    /// Begins a survey with it; nothing if there can be none.
    pub(super) fn begin(&mut self, sweep: u64) -> Option<&mut DirectoryWatch> {
        if !matches!(self.0, Some(Ok(_))) {
            self.0 = Some(DirectoryWatch::new(tell));
        }
        let watch = self.0.as_mut()?.as_mut().ok()?;
        watch.begin(sweep);
        Some(watch)
    }

    /// Why not all directories of this sweep are watched, if so.
    pub(super) fn refused(&self) -> Option<&Refusal> {
        match self.0.as_ref()? {
            Ok(watch) => watch.refused(),
            Err(refusal) => Some(refusal),
        }
    }
}

/// Says what was heard. Does not wait: where the pipe is full there is news in it already, and
/// where nobody reads it nobody wants to know.
fn tell(news: News) {
    let _ = rustix::io::write(stdout(), &[news.to_byte()]);
}

fn answer(request: &Request, memory: &mut Memory, out: &mut Outbox) {
    let (place, result) = match request {
        Request::Survey(request) => {
            let mut probe = for_kind(request.mount.kind());
            (
                &request.mount.point,
                survey::run(request, probe.as_mut(), memory, out),
            )
        }
        Request::Map(request) => (&request.path, map(request, out)),
        Request::Sample(request) => (&request.path, sample(request, out)),
        Request::Census(request) => (&request.path, census(request, out)),
    };
    if let Err(error) = result {
        out.push(&Reply::Fault(fault(place, &error)));
    }
}

fn census(request: &CensusRequest, out: &mut Outbox) -> io::Result<()> {
    out.at_hand(&request.path);
    let reply = match paths::follow(&request.path, &request.territory)? {
        Followed::Elsewhere(path) => Reply::Elsewhere(Root::literal(path)),
        Followed::Here(_) => {
            let census = census::census(request, &mut || out.beat())?;
            Reply::Census(Box::new(census))
        }
    };
    out.push(&reply);
    Ok(())
}

fn sample(request: &SampleRequest, out: &mut Outbox) -> io::Result<()> {
    out.at_hand(&request.path);
    let (file, _) = open::image(&request.path, request.id)?;
    let outlook = Reader::new().sample(&file, request.expected, &mut || out.beat())?;
    out.push(&Reply::Sampled(outlook));
    Ok(())
}

fn map(request: &MapRequest, out: &mut Outbox) -> io::Result<()> {
    out.at_hand(&request.path);
    let (file, stat) = open::image(&request.path, request.id)?;
    let mut builder = request.builder.clone();
    let bounds = Bounds {
        max_extents: request.max_extents,
        budget: request.budget.min(Duration::from_secs(10)),
        pace: if request.quick {
            Pace::QUICK
        } else {
            Pace::GENTLE
        },
    };
    let size = Bytes(u64::try_from(stat.st_size).unwrap_or(0));
    let map = Reader::new().read_part(&file, size, &mut builder, bounds, &mut || out.beat())?;
    out.push(&match map {
        Some(map) => Reply::Map(Box::new(map)),
        None => Reply::MapPart(Box::new(builder)),
    });
    Ok(())
}
