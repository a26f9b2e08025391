//! The metrics as a file for node_exporter's textfile collector, on hosts where nothing else may
//! listen. Replaced as a whole, removed when the daemon ends: a file that stays would be scraped as
//! if somebody still counted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::durable::replace;

/// How long the end waits for the file to be removed.
const LAST_WISH: Duration = Duration::from_millis(300);
/// node_exporter, which runs as another user, must read it. It reads no temporary file: only names
/// that end in `.prom`.
const MODE: u32 = 0o644;

/// Writes the file on a thread of its own: its disk may hang, and then nothing else does.
#[derive(Debug)]
pub struct Textfile {
    path: PathBuf,
    /// Holds one text. Nothing once the end has come.
    texts: Option<SyncSender<String>>,
    thread: Option<JoinHandle<()>>,
}

impl Textfile {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(path: PathBuf) -> io::Result<Self> {
        let (texts, inbox) = sync_channel(1);
        let file = path.clone();
        let thread = std::thread::Builder::new()
            .name("textfile".to_owned())
            .spawn(move || write_all(&file, &inbox))?;
        Ok(Textfile {
            path,
            texts: Some(texts),
            thread: Some(thread),
        })
    }

    /// Where it writes to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has the file replaced. While one text is being written and another one waits, this one is
    /// dropped: the next comes soon and is newer.
    pub fn write(&self, text: String) {
        match self.texts.as_ref().map(|texts| texts.try_send(text)) {
            None | Some(Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) => {}
        }
    }
}

impl Drop for Textfile {
    fn drop(&mut self) {
        drop(self.texts.take());
        let Some(thread) = self.thread.take() else {
            return;
        };
        let deadline = Instant::now() + LAST_WISH;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !thread.is_finished() {
            warn!(
                "{} is left behind, its disk does not answer; remove it by hand",
                self.path.display()
            );
        }
    }
}

/// Until there are no more texts; then the file is removed.
fn write_all(path: &Path, inbox: &Receiver<String>) {
    let mut failing = false;
    for text in inbox {
        match replace(path, text.as_bytes(), MODE) {
            Ok(()) if failing => info!("{} is written again", path.display()),
            Ok(()) => {}
            // Once, not every 15 s.
            Err(error) if !failing => {
                warn!("metrics.textfile: cannot write {}: {error}", path.display());
                failing = true;
                continue;
            }
            Err(_) => continue,
        }
        failing = false;
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
        textfile.write("fragwatch_x 1\n".to_owned());
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
