//! Our side of a helper process: one a file system, one call at a time, each step with a deadline.
//!
//! When a step does not return in time the call ends with [`CallError::Stalled`]; what was answered
//! before counts. The helper stays as it is, for it cannot be helped, and until its step returns
//! every further call ends at once with the same error: a second one would only hang beside it.

use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio::time::{error::Elapsed, timeout};

use super::protocol::{Reply, Request, append, frame_length};
use crate::discover::watch::News;
use crate::model::path::shown;

/// The hidden subcommand that makes the program a helper.
pub const HELPER_COMMAND: &str = "probe-helper";

/// Bytes of what an ended helper wrote to standard error that are reported at most.
const EXIT_DIAGNOSTICS_BYTES: u64 = 2000;

/// What of the replies is read at once, more or less.
const MOST_READ: usize = 32 << 10;

/// From one piece of news to the next: one sweep answers all that comes in between.
const NEWS_INTERVAL: Duration = Duration::from_millis(50);

/// How long a late reply is still waited for: a helper at work sends a beat this often.
const LATE_REPLY_TIMEOUT: Duration = Duration::from_millis(100);

/// Why a call did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// A step did not return within the deadline, or an earlier one still has not.
    #[error("{}", stalled_text(.on.as_ref(), *.elapsed))]
    Stalled {
        /// The file that the step is about, if the helper reported it.
        on: Option<PathBuf>,
        /// For how long it has hung.
        elapsed: Duration,
    },
    /// Another call has kept the worker for longer than a step may take.
    #[error(
        "the file system's worker is busy with another image; it is asked again at the next sweep"
    )]
    Busy,
    /// The helper ended, or broke the protocol.
    #[error("the probe helper failed: {0}")]
    Helper(#[source] io::Error),
    /// The helper could not be started.
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

/// Since when a worker's file system has hung. Can be read at any time, by anyone.
#[derive(Debug, Clone, Default)]
pub struct StallFlag(Arc<Mutex<Option<Instant>>>);

impl StallFlag {
    /// For how long the file system has not answered. None while it does.
    pub fn stalled_for(&self) -> Option<Duration> {
        self.lock().map(|since| since.elapsed())
    }

    fn set(&self, since: Option<Instant>) {
        *self.lock() = since;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The helper of one file system.
#[derive(Debug, Default)]
pub struct Worker {
    state: HelperState,
    flag: StallFlag,
    /// Receives the news of the helper's directory watch.
    listener: Option<Listener>,
}

/// Receives the news of a directory watch.
pub type Listener = UnboundedSender<News>;

#[derive(Debug, Default)]
enum HelperState {
    /// No helper runs, or the call that had it was given up.
    #[default]
    Absent,
    /// Waiting for a request.
    Idle(Connection),
    /// A step hangs. The task reads on until the call ends and then gives the connection back.
    Stalled {
        since: Instant,
        on: Option<PathBuf>,
        back: JoinHandle<Option<Connection>>,
    },
}

impl Worker {
    /// One whose helper is to watch directories.
    pub fn with_listener(listener: Option<Listener>) -> Self {
        Worker {
            listener,
            ..Worker::default()
        }
    }

    /// Shows whether the file system hangs.
    pub fn flag(&self) -> StallFlag {
        self.flag.clone()
    }

    /// Has the helper carry out a request, each step of which may take `deadline` (and what the
    /// request rightly takes beyond), and hands out its replies as they come. The first call starts
    /// the helper.
    ///
    /// # Errors
    /// [`CallError`]; replies that came before it were handed out.
    pub async fn call(
        &mut self,
        request: &Request,
        deadline: Duration,
        mut on_reply: impl FnMut(Reply),
    ) -> Result<(), CallError> {
        let mut connection = self.connection().await?;
        let began = connection.send(request).await;
        began.map_err(|error| CallError::Helper(connection.exit_diagnostics(error)))?;
        let mut slow = None;
        let mut last = Instant::now();
        let deadline = deadline + request.extra_time();
        loop {
            let left = deadline.saturating_sub(last.elapsed());
            match connection.receive_within(left).await {
                Err(_) => return Err(self.give_up(connection, last, slow)),
                Ok(Err(error)) => {
                    return Err(CallError::Helper(connection.exit_diagnostics(error)));
                }
                Ok(Ok(Reply::Done)) => break,
                // Names what hangs, but is no sign that it does not.
                Ok(Ok(Reply::Slow(path))) => slow = Some(path.0),
                Ok(Ok(reply)) => {
                    last = Instant::now();
                    // It came out of that step.
                    slow = None;
                    on_reply(reply);
                }
            }
        }
        self.state = HelperState::Idle(connection);
        Ok(())
    }

    /// An idle connection, taken out of the state: a call that is dropped half-way leaves none
    /// behind: its replies could not be matched to requests.
    async fn connection(&mut self) -> Result<Connection, CallError> {
        match std::mem::replace(&mut self.state, HelperState::Absent) {
            HelperState::Idle(connection) => Ok(connection),
            HelperState::Absent => self.start(),
            HelperState::Stalled { since, on, back } if !back.is_finished() => {
                let error = CallError::Stalled {
                    on: on.clone(),
                    elapsed: since.elapsed(),
                };
                self.state = HelperState::Stalled { since, on, back };
                Err(error)
            }
            HelperState::Stalled { back, .. } => match back.await {
                Ok(Some(connection)) => Ok(connection),
                _ => self.start(),
            },
        }
    }

    fn start(&self) -> Result<Connection, CallError> {
        Connection::start(self.listener.clone()).map_err(CallError::Start)
    }

    fn give_up(
        &mut self,
        mut connection: Connection,
        since: Instant,
        on: Option<PathBuf>,
    ) -> CallError {
        self.flag.set(Some(since));
        let flag = self.flag.clone();
        let back = tokio::spawn(async move {
            let rest = connection.drain().await;
            flag.set(None);
            rest.ok().map(|()| connection)
        });
        let elapsed = since.elapsed();
        self.state = HelperState::Stalled {
            since,
            on: on.clone(),
            back,
        };
        CallError::Stalled { on, elapsed }
    }
}

/// A running helper and the socket to it.
#[derive(Debug)]
struct Connection {
    helper: Option<Child>,
    socket: UnixStream,
    /// Bytes that were received, from `used` on not yet understood.
    received: Vec<u8>,
    used: usize,
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
            // Not ours: a reader of ours would wait for a helper that hangs.
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal is for the command, which then closes the socket.
            .process_group(0)
            .spawn()?;
        if let (Some(listener), Some(news)) = (listener, helper.stdout.take()) {
            listen(OwnedFd::from(news), listener)?;
        }
        Ok(Connection {
            helper: Some(helper),
            socket: UnixStream::from_std(ours)?,
            received: Vec::new(),
            used: 0,
        })
    }

    async fn send(&mut self, request: &Request) -> io::Result<()> {
        let mut frame = Vec::new();
        append(&mut frame, request)?;
        self.socket.write_all(&frame).await
    }

    /// The next reply. May be dropped at any point and called again: bytes are kept.
    async fn receive(&mut self) -> io::Result<Reply> {
        loop {
            if let Some(reply) = self.next_received()? {
                return Ok(reply);
            }
            self.received.drain(..self.used);
            self.used = 0;
            // By itself it would make room for 64 bytes and read an image at a time.
            self.received.reserve(MOST_READ);
            if self.socket.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next reply, if it comes in time.
    async fn receive_within(&mut self, left: Duration) -> Result<io::Result<Reply>, Elapsed> {
        match timeout(left, self.receive()).await {
            // It may be us who were away, stopped or not scheduled, and the reply lies there: woken
            // so, we first see what time it is.
            Err(_) => timeout(LATE_REPLY_TIMEOUT, self.receive()).await,
            in_time => in_time,
        }
    }

    fn next_received(&mut self) -> io::Result<Option<Reply>> {
        let Some((prefix, rest)) = self.received[self.used..].split_first_chunk() else {
            return Ok(None);
        };
        let length = frame_length(*prefix)?;
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        let reply = serde_json::from_slice(frame)?;
        self.used += prefix.len() + length;
        Ok(Some(reply))
    }

    /// Reads replies up to the last one of the request.
    async fn drain(&mut self) -> io::Result<()> {
        while !matches!(self.receive().await?, Reply::Done) {}
        Ok(())
    }

    /// How the helper ended, if it did, and its standard error, as the reason for a failed read.
    fn exit_diagnostics(&mut self, error: io::Error) -> io::Error {
        let Some(helper) = &mut self.helper else {
            return error;
        };
        let Ok(Some(status)) = helper.try_wait() else {
            return error;
        };
        let mut words = Vec::new();
        if let Some(stderr) = helper.stderr.take() {
            // It has ended, so that this read ends. Without it there are no diagnostics.
            let _ = stderr.take(EXIT_DIAGNOSTICS_BYTES).read_to_end(&mut words);
        }
        let words = String::from_utf8_lossy(&words);
        let words = words.trim().replace('\n', "; ");
        let text = format!("{error} ({status}) {}", shown(Path::new(&words)));
        io::Error::new(error.kind(), text.trim_end())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(mut helper) = self.helper.take() {
            // Fails only if it has ended already.
            let _ = helper.kill();
            // Its diagnostics are not needed any more.
            helper.stderr = None;
            reap_later(helper);
        }
    }
}

/// Forwards the news of a helper's watch, until the helper ends.
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

/// Waits for ended helpers without waiting: one that hangs ends only when its call returns. Each
/// further helper that ends is the occasion to look at the earlier ones.
fn reap_later(helper: Child) {
    static ENDED: Mutex<Vec<Child>> = Mutex::new(Vec::new());
    let mut ended = ENDED.lock().unwrap_or_else(PoisonError::into_inner);
    ended.push(helper);
    ended.retain_mut(|helper| matches!(helper.try_wait(), Ok(None)));
}
