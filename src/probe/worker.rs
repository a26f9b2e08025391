//! Our end of a helper process: one per file system, one call at a time, each step with a deadline.
//!
//! If a step exceeds the deadline, the call ends with [`CallError::Stalled`]; earlier replies
//! remain valid. The helper is left alone, since it cannot be interrupted. Until its step returns,
//! every further call fails at once with the same error: a second helper would only hang too.

use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio::time::{error::Elapsed, timeout};

use super::protocol::{Reply, Request, append};
use crate::discover::watch::News;
use crate::model::path::shown;
use crate::sys::mutex::lock;

/// The hidden subcommand that runs the program as a helper.
pub const HELPER_COMMAND: &str = "probe-helper";

/// Maximum number of bytes reported of an ended helper's standard error.
const EXIT_DIAGNOSTICS_BYTES: u64 = 2000;

/// Maximum number of bytes of replies read at once.
const MOST_READ: usize = 32 << 10;

/// Maximum length of a reply in bytes: a helper out of control must not take the daemon's memory.
const LONGEST_REPLY: u64 = 64 << 20;

/// Minimum interval between pieces of news: one sweep handles all that arrive meanwhile.
const NEWS_INTERVAL: Duration = Duration::from_millis(50);

/// How long to wait for a late reply: a working helper sends a beat this often.
const LATE_REPLY_TIMEOUT: Duration = Duration::from_millis(100);

/// Why a call did not complete.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// A step exceeded the deadline, or an earlier one still hangs.
    #[error("{}", stalled_text(.on.as_ref(), *.elapsed))]
    Stalled {
        /// The file that the step concerns, if the helper reported it.
        on: Option<PathBuf>,
        /// How long it has hung.
        elapsed: Duration,
    },
    /// Another call has held the worker for longer than a step may take.
    #[error(
        "the file system's worker is busy with another image; it is asked again at the next sweep"
    )]
    Busy,
    /// The helper ended, or violated the protocol.
    #[error("the probe helper failed: {0}")]
    Helper(#[source] io::Error),
    #[error("cannot start the probe helper: {0}")]
    Start(#[source] io::Error),
}

fn stalled_text(on: Option<&PathBuf>, elapsed: Duration) -> String {
    let on = on.map(|path| format!(" on {}", shown(path)));
    format!(
        "the file system does not answer: a probe{} has hung for {} s; it goes on by itself when the file system does",
        on.unwrap_or_default(),
        elapsed.as_secs()
    )
}

/// Since when a worker's file system has hung. Can be read at any time by any thread.
#[derive(Debug, Clone, Default)]
pub struct StallFlag(Arc<Mutex<Option<Instant>>>);

impl StallFlag {
    /// How long the file system has not answered; `None` while it does.
    pub fn stalled_for(&self) -> Option<Duration> {
        lock(&self.0).map(|since| since.elapsed())
    }

    fn set(&self, since: Option<Instant>) {
        *lock(&self.0) = since;
    }
}

/// The helper of one file system.
#[derive(Debug, Default)]
pub struct Worker {
    state: HelperState,
    flag: StallFlag,
    listener: Option<Listener>,
}

/// Receives the news of a directory watch.
pub type Listener = UnboundedSender<News>;

#[derive(Debug, Default)]
enum HelperState {
    /// No helper runs, or the call that held it was cancelled.
    #[default]
    Absent,
    Idle(Connection),
    /// A step hangs. The task keeps reading until the call ends, then returns the connection.
    Stalled(Stall, JoinHandle<Option<Connection>>),
}

#[derive(Debug)]
struct Stall {
    since: Instant,
    on: Option<PathBuf>,
}

impl Stall {
    fn error(&self) -> CallError {
        CallError::Stalled {
            on: self.on.clone(),
            elapsed: self.since.elapsed(),
        }
    }
}

impl Worker {
    /// A worker whose helper watches directories if there is a listener.
    pub fn with_listener(listener: Option<Listener>) -> Self {
        Worker {
            listener,
            ..Worker::default()
        }
    }

    /// The flag that shows whether the file system hangs.
    pub fn flag(&self) -> StallFlag {
        self.flag.clone()
    }

    /// Has the helper carry out a request; passes on its replies as they arrive, also before an
    /// error. Each step may take `deadline` plus `extra_time`. The first call starts the helper.
    pub async fn call(
        &mut self,
        request: &Request,
        deadline: Duration,
        mut on_reply: impl FnMut(Reply),
    ) -> Result<(), CallError> {
        let mut connection = self.connection().await?;
        if let Err(error) = connection.send(request).await {
            return Err(connection.failed(error));
        }
        let mut slow = None;
        let mut last = Instant::now();
        let deadline = deadline + request.extra_time();
        loop {
            let left = deadline.saturating_sub(last.elapsed());
            match connection.receive_within(left).await {
                Err(_) => {
                    let (since, on) = (last, slow);
                    return Err(self.give_up(connection, Stall { since, on }));
                }
                Ok(Err(error)) => return Err(connection.failed(error)),
                Ok(Ok(Reply::Done)) => break,
                // Identifies what hangs, but is no sign of progress.
                Ok(Ok(Reply::Slow(path))) => slow = Some(path.0),
                Ok(Ok(reply)) => {
                    last = Instant::now();
                    // The slow step has returned.
                    slow = None;
                    on_reply(reply);
                }
            }
        }
        self.state = HelperState::Idle(connection);
        Ok(())
    }

    /// Takes an idle connection out of the state. A call that is dropped half-way thus leaves none
    /// behind; its replies could not be matched to requests.
    async fn connection(&mut self) -> Result<Connection, CallError> {
        let connection = match std::mem::take(&mut self.state) {
            HelperState::Idle(connection) => Some(connection),
            HelperState::Absent => None,
            HelperState::Stalled(stall, back) if !back.is_finished() => {
                let error = stall.error();
                self.state = HelperState::Stalled(stall, back);
                return Err(error);
            }
            HelperState::Stalled(_, back) => back.await.ok().flatten(),
        };
        let start = || Connection::start(self.listener.clone()).map_err(CallError::Start);
        connection.map_or_else(start, Ok)
    }

    fn give_up(&mut self, mut connection: Connection, stall: Stall) -> CallError {
        self.flag.set(Some(stall.since));
        let flag = self.flag.clone();
        let back = tokio::spawn(async move {
            let rest = connection.drain().await;
            flag.set(None);
            rest.ok().map(|()| connection)
        });
        let error = stall.error();
        self.state = HelperState::Stalled(stall, back);
        error
    }
}

#[derive(Debug)]
struct Connection {
    helper: Option<Child>,
    socket: BufReader<UnixStream>,
    /// What was received of the next reply.
    line: Vec<u8>,
}

impl Connection {
    fn start(listener: Option<Listener>) -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut helper = Command::new("/proc/self/exe")
            .arg0("fragwatch")
            .arg(HELPER_COMMAND)
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(match listener {
                Some(_) => Stdio::piped(),
                None => Stdio::null(),
            })
            // Not inherited: a reader of our standard error would wait for a helper that hangs.
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal is for the command, which then closes the socket.
            .process_group(0)
            .spawn()?;
        if let (Some(listener), Some(news)) = (listener, helper.stdout.take()) {
            listen(OwnedFd::from(news), listener)?;
        }
        Ok(Connection {
            helper: Some(helper),
            socket: BufReader::with_capacity(MOST_READ, UnixStream::from_std(ours)?),
            line: Vec::new(),
        })
    }

    async fn send(&mut self, request: &Request) -> io::Result<()> {
        let mut line = Vec::new();
        append(&mut line, request)?;
        self.socket.get_mut().write_all(&line).await
    }

    /// The next reply. Cancel-safe: received bytes are kept.
    async fn receive(&mut self) -> io::Result<Reply> {
        let left = LONGEST_REPLY.saturating_sub(self.line.len() as u64);
        let mut socket = (&mut self.socket).take(left);
        socket.read_until(b'\n', &mut self.line).await?;
        if !self.line.ends_with(b"\n") {
            return Err(match socket.limit() {
                0 => io::Error::new(io::ErrorKind::InvalidData, "its reply is too long"),
                _ => io::ErrorKind::UnexpectedEof.into(),
            });
        }
        let reply = serde_json::from_slice(&self.line)?;
        self.line.clear();
        Ok(reply)
    }

    async fn receive_within(&mut self, left: Duration) -> Result<io::Result<Reply>, Elapsed> {
        match timeout(left, self.receive()).await {
            // We may have been stopped or not scheduled while the reply arrived; read once more.
            Err(_) => timeout(LATE_REPLY_TIMEOUT, self.receive()).await,
            in_time => in_time,
        }
    }

    async fn drain(&mut self) -> io::Result<()> {
        while !matches!(self.receive().await?, Reply::Done) {}
        Ok(())
    }

    /// The error of a failed call, with the exit status and standard error of an ended helper.
    fn failed(&mut self, error: io::Error) -> CallError {
        let helper = self.helper.as_mut();
        let ended =
            helper.and_then(|helper| Some((helper.try_wait().ok()??, helper.stderr.take())));
        let Some((status, stderr)) = ended else {
            return CallError::Helper(error);
        };
        let mut words = Vec::new();
        if let Some(stderr) = stderr {
            // The helper has ended, so this read ends too. If it fails, there are no diagnostics.
            let _ = stderr.take(EXIT_DIAGNOSTICS_BYTES).read_to_end(&mut words);
        }
        let words = String::from_utf8_lossy(&words);
        let words = words.trim().replace('\n', "; ");
        let text = format!("{error} ({status}) {}", shown(Path::new(&words)));
        CallError::Helper(io::Error::new(error.kind(), text.trim_end()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(mut helper) = self.helper.take() {
            // Fails only if it has already ended.
            let _ = helper.kill();
            helper.stderr = None;
            reap_later(helper);
        }
    }
}

fn listen(news: OwnedFd, listener: Listener) -> io::Result<()> {
    let mut news = pipe::Receiver::from_owned_fd(news)?;
    tokio::spawn(async move {
        let mut bytes = [0; 1024];
        while let Ok(length @ 1..) = news.read(&mut bytes).await {
            if listener.send(News::of_bytes(&bytes[..length])).is_err() {
                return;
            }
            tokio::time::sleep(NEWS_INTERVAL).await;
        }
    });
    Ok(())
}

/// Reaps ended helpers without blocking: one that hangs ends only when its call returns. Each new
/// one is the occasion to check the earlier ones.
fn reap_later(helper: Child) {
    static ENDED: Mutex<Vec<Child>> = Mutex::new(Vec::new());
    let mut ended = lock(&ENDED);
    ended.push(helper);
    ended.retain_mut(|helper| matches!(helper.try_wait(), Ok(None)));
}

#[cfg(test)]
impl StallFlag {
    /// The flag of a file system that hangs.
    pub fn hanging() -> StallFlag {
        StallFlag(Arc::new(Mutex::new(Some(Instant::now()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::path::PlainPath;
    use std::io::Write as _;

    /// A connection, and the helper's end of its socket.
    fn connected() -> (Connection, std::os::unix::net::UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let connection = Connection {
            helper: None,
            socket: BufReader::new(UnixStream::from_std(ours).unwrap()),
            line: Vec::new(),
        };
        (connection, theirs)
    }

    #[tokio::test]
    async fn a_reply_without_an_end_is_not_read_for_ever() {
        let (mut connection, mut theirs) = connected();
        let helper = std::thread::spawn(move || {
            let part = vec![b' '; 1 << 20];
            while theirs.write_all(&part).is_ok() {}
        });
        for _ in 0..2 {
            let error = connection.receive().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert_eq!(connection.line.len() as u64, LONGEST_REPLY);
        }
        drop(connection);
        helper.join().unwrap();
    }

    #[tokio::test]
    async fn a_line_break_in_a_name_does_not_end_a_reply() {
        let (mut connection, mut theirs) = connected();
        let path = PathBuf::from("/srv/a\nb\r\n.img");
        let mut lines = Vec::new();
        append(&mut lines, &Reply::Slow(PlainPath(path.clone()))).unwrap();
        append(&mut lines, &Reply::Done).unwrap();
        // A reply that is cut off.
        lines.extend(b"\"Do");
        theirs.write_all(&lines).unwrap();
        drop(theirs);
        let received = connection.receive().await.unwrap();
        assert!(matches!(received, Reply::Slow(PlainPath(found)) if found == path));
        assert!(matches!(connection.receive().await.unwrap(), Reply::Done));
        let error = connection.receive().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
