//! The metrics as a file for node_exporter's textfile collector, for hosts on which no other port
//! may be opened. Replaced as a whole, and removed when the daemon ends: node_exporter would
//! continue to serve the old values.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use tracing::{info, warn};

use super::parts::State;
use crate::background::{Background, Jobs, STACK};
use crate::durable::replace;
use crate::model::path::shown;

const STOP_TIMEOUT: Duration = Duration::from_millis(300);
/// Readable for node_exporter, which runs as another user and reads only names ending in `.prom`,
/// not the temporary file.
const MODE: u32 = 0o644;

/// Writes the file on a separate thread, because its disk may hang.
#[derive(Debug)]
pub struct Textfile {
    path: PathBuf,
    /// Queues one text besides the one being written.
    texts: Background<Vec<Bytes>>,
    failing: Arc<AtomicBool>,
}

impl Textfile {
    /// Starts the thread.
    pub fn start(path: PathBuf) -> io::Result<Self> {
        let file = path.clone();
        let failing = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&failing);
        let work = move |texts: &mut Jobs<Vec<Bytes>>| write_all(&file, texts, &shared);
        Ok(Textfile {
            path,
            texts: Background::start("textfile", 1, STACK, work)?,
            failing,
        })
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Queues a text, and returns the state of the part. The text is dropped if an earlier one is
    /// still queued because the disk does not answer.
    pub fn write(&self, text: impl Iterator<Item = Bytes>) -> State {
        let path = shown(&self.path);
        if !self.texts.push(text.collect()) {
            State::Down(format!("{path} is not written: its disk does not answer"))
        } else if self.failing.load(Ordering::Relaxed) {
            State::Down(format!("{path} cannot be written, see the log"))
        } else {
            State::Up
        }
    }
}

impl Drop for Textfile {
    fn drop(&mut self) {
        if !self.texts.stop(STOP_TIMEOUT) {
            warn!(
                "{} is left behind, its disk does not answer; remove it by hand",
                self.path.display()
            );
        }
    }
}

fn write_all(path: &Path, texts: &mut Jobs<Vec<Bytes>>, failing: &AtomicBool) {
    for text in texts {
        let written = replace(path, &text.concat(), MODE);
        // Logged once, not every 15 s.
        match (failing.swap(written.is_err(), Ordering::Relaxed), written) {
            (true, Ok(())) => info!("{} is written again", path.display()),
            (false, Err(error)) => {
                warn!("metrics.textfile: cannot write {}: {error}", path.display());
            }
            _ => {}
        }
    }
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => warn!("cannot remove {}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn it_is_there_as_a_whole_and_gone_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fragwatch.prom");
        fs::write(&path, "old").unwrap();
        let textfile = Textfile::start(path.clone()).unwrap();
        assert_eq!(
            textfile.write(["fragwatch_x", " 1\n"].map(Bytes::from).into_iter()),
            State::Up
        );
        while fs::read(&path).unwrap() == b"old" {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(fs::read(&path).unwrap(), b"fragwatch_x 1\n");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "node_exporter must read it");
        drop(textfile);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "precious").unwrap();
        let path = directory.path().join("fragwatch.prom");
        std::os::unix::fs::symlink(&target, &path).unwrap();
        replace(&path, b"new", MODE).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"precious");
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn no_directory_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(replace(&directory.path().join("not/there.prom"), b"x", MODE).is_err());
    }
}
