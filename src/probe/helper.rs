//! The helper process, which makes the calls that may hang. It reads requests from its standard
//! input, a socket whose other end a [`worker`](super::worker) holds, and answers there.
//!
//! It keeps no file open between requests, so that file systems can be unmounted. A watch does not
//! prevent that either: it ends with the mount (inotify(7), IN_UNMOUNT).

use std::io::{self, BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::stdio::{stdin, stdout};

use super::extents::{Bounds, MapReader, ReadPace};
use super::protocol::{
    CensusRequest, DirectoryRequest, Fault, ImageRequest, MapPart, Reply, Request, Root,
};
use super::reply_writer::ReplyWriter;
use super::survey::{self, SurveyState};
use super::{census, count, open, space};
use crate::discover::mounts::Mount;
use crate::discover::paths::{self, Followed};
use crate::model::path::PlainPath;
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
    let socket = UnixStream::from(stdin().try_clone_to_owned()?);
    let flags = rustix::fs::fcntl_getfl(stdout())?;
    rustix::fs::fcntl_setfl(stdout(), flags | OFlags::NONBLOCK)?;
    let mut out = ReplyWriter::new(socket.try_clone()?)?;
    let mut state = SurveyState::default();
    for request in BufReader::new(socket).split(b'\n') {
        let request = serde_json::from_slice(&request?)?;
        answer(&request, &mut state, &mut out);
        out.done()?;
        heap::trim();
    }
    Ok(())
}

fn answer(request: &Request, state: &mut SurveyState, out: &mut ReplyWriter) {
    let (place, result) = match request {
        Request::Survey(survey) => (&survey.mount.point, survey::run(survey, state, out)),
        Request::Map(image, part) => (&image.path, map(image, part, out)),
        Request::Sample(image) => (&image.path, sample(image, out)),
        Request::Census(census) => (&census.path, self::census(census, out)),
        Request::Directory(directory) => (&directory.path, self::directory(directory, out)),
        Request::FreeSpace(mount) => (&mount.point, free_space(mount, out)),
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

fn directory(request: &DirectoryRequest, out: &mut ReplyWriter) -> io::Result<()> {
    out.at_hand(&request.path);
    out.push(&match paths::follow(&request.path, &request.scope)? {
        Followed::Elsewhere(path) => Reply::Elsewhere(Root::literal(path)),
        Followed::Here(path) => {
            let hint = count::directory_hint(&open::directory(&path)?);
            Reply::Directory(PlainPath(path), hint)
        }
    });
    Ok(())
}

fn free_space(mount: &Mount, out: &mut ReplyWriter) -> io::Result<()> {
    out.at_hand(&mount.point);
    let space = space::free_space(mount, &mut || out.beat())?;
    out.push(&Reply::FreeSpace(Box::new(space)));
    Ok(())
}

fn sample(image: &ImageRequest, out: &mut ReplyWriter) -> io::Result<()> {
    out.at_hand(&image.path);
    let (file, _) = open::image(&image.path, image.id)?;
    let outlook = MapReader::default().sample(&file, image.expected, &mut || out.beat())?;
    out.push(&Reply::Sampled(outlook));
    Ok(())
}

fn map(image: &ImageRequest, part: &MapPart, out: &mut ReplyWriter) -> io::Result<()> {
    out.at_hand(&image.path);
    let (file, stat) = open::image(&image.path, image.id)?;
    let mut builder = part.builder.clone();
    let pace = [ReadPace::GENTLE, ReadPace::QUICK][usize::from(part.quick)];
    let bounds = Bounds {
        max_extents: part.max_extents,
        budget: part.budget.min(Duration::from_secs(10)),
        pace,
    };
    let size = open::size(&stat);
    let map =
        MapReader::default().read_part(&file, size, &mut builder, bounds, &mut || out.beat())?;
    out.push(&match map {
        Some(map) => Reply::Map(Box::new(map)),
        None => Reply::MapPart(Box::new(builder)),
    });
    Ok(())
}
