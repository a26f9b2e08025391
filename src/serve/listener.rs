//! A listener that limits the number, idle time and lifetime of connections: a client that opens a
//! thousand of them, never reads, or sends one byte per second only delays other clients a little.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixListener;
use tokio::net::unix::UCred;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::sys::mutex::lock;

/// If all connections are in use, one that has been idle that long may be replaced.
const TICK: Duration = Duration::from_millis(250);

/// Limits for connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open at the same time. For another one, the oldest is closed that is idle or has not sent
    /// its request yet; if there is none, the new one waits.
    pub connections: usize,
    /// From the connection, or the first byte of a further request, to the end of the request head.
    pub request: Duration,
    /// Without a byte in either direction.
    pub idle: Duration,
    /// From the first byte to the last, over all requests.
    pub lifetime: Duration,
}

impl Limits {
    /// Prometheus scrapes every few seconds, people rarely, and an answer takes milliseconds.
    pub const PAGES: Limits = Limits {
        connections: 128,
        request: Duration::from_secs(5),
        idle: Duration::from_secs(5),
        lifetime: Duration::from_secs(60),
    };
    /// An answer from the history can take seconds.
    pub const CONTROL: Limits = Limits {
        connections: 64,
        request: Duration::from_secs(5),
        idle: Duration::from_secs(20),
        lifetime: Duration::from_secs(60),
    };
}

/// Applies [`Limits`] to the connections of another listener.
#[derive(Debug)]
pub struct Bounded<L> {
    listener: L,
    limits: Limits,
    free: Arc<Semaphore>,
    /// Oldest first.
    open: VecDeque<Weak<Mutex<Progress>>>,
}

impl<L> Bounded<L> {
    /// Applies `limits` to `listener`.
    pub fn new(listener: L, limits: Limits) -> Self {
        Bounded {
            listener,
            free: Arc::new(Semaphore::new(limits.connections)),
            limits,
            open: VecDeque::new(),
        }
    }

    async fn permit(&mut self) -> Option<OwnedSemaphorePermit> {
        loop {
            if self.free.available_permits() == 0 {
                self.close_one();
            }
            let permit = Arc::clone(&self.free).acquire_owned();
            // A closed connection ends soon.
            if let Ok(permit) = timeout(TICK, permit).await {
                // The semaphore is never closed. If it were, there would be no limit.
                return permit.ok();
            }
        }
    }

    fn close_one(&mut self) {
        self.open.retain(|one| one.strong_count() > 0);
        let now = Instant::now();
        let closed = self.open.iter().position(|one| {
            let Some(one) = one.upgrade() else {
                return false;
            };
            let mut progress = lock(&one);
            let may_go = !progress.is_asked || now.duration_since(progress.last) >= TICK;
            if may_go && !progress.closed {
                progress.closed = true;
                progress.waker.take().into_iter().for_each(Waker::wake);
                return true;
            }
            false
        });
        closed.map(|at| self.open.remove(at));
    }
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (io, address) = self.listener.accept().await;
        let permit = self.permit().await;
        let connection = Connection::new(io, self.limits, permit);
        self.open.push_back(Arc::downgrade(&connection.progress));
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

#[derive(Debug)]
struct Progress {
    last: Instant,
    began: Instant,
    /// Whether the request head is complete. No accepted request has a body.
    is_asked: bool,
    /// Whether the answer has begun: bytes read from now on are the next request.
    is_answered: bool,
    /// Line breaks at the end of the bytes read; two end the head.
    breaks: u8,
    /// Closed in favour of another connection.
    closed: bool,
    waker: Option<Waker>,
}

impl Progress {
    fn read(&mut self, bytes: &[u8], now: Instant) {
        if self.is_answered && !bytes.is_empty() {
            (self.is_asked, self.is_answered) = (false, false);
            (self.began, self.breaks) = (now, 0);
        }
        for byte in bytes {
            self.breaks = match byte {
                b'\n' => self.breaks + 1,
                b'\r' => self.breaks,
                _ => 0,
            };
            if self.breaks == 2 {
                self.is_asked = true;
                return;
            }
        }
    }
}

/// A connection that enforces its limits.
#[derive(Debug)]
pub struct Connection<I> {
    io: I,
    limits: Limits,
    /// When its lifetime is over.
    end: Instant,
    progress: Arc<Mutex<Progress>>,
    alarm: Pin<Box<Sleep>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<I> Connection<I> {
    fn new(io: I, limits: Limits, permit: Option<OwnedSemaphorePermit>) -> Self {
        let now = Instant::now();
        Connection {
            io,
            limits,
            end: now + limits.lifetime,
            progress: Arc::new(Mutex::new(Progress {
                last: now,
                began: now,
                is_asked: false,
                is_answered: false,
                breaks: 0,
                closed: false,
                waker: None,
            })),
            alarm: Box::pin(sleep_until(now + limits.request)),
            _permit: permit,
        }
    }

    /// The outcome, or an error if a limit is reached. `note` records the progress.
    fn bounded<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
        note: impl FnOnce(&mut Progress, Instant),
    ) -> Poll<io::Result<T>> {
        let now = Instant::now();
        let mut progress = lock(&self.progress);
        if outcome.is_ready() && now < self.end && !progress.closed {
            progress.last = now;
            note(&mut progress, now);
            return outcome;
        }
        progress.waker = Some(context.waker().clone());
        let mut due = self.end.min(progress.last + self.limits.idle);
        if !progress.is_asked {
            due = due.min(progress.began + self.limits.request);
        }
        if now < due && !progress.closed {
            drop(progress);
            // Set only if it has to go off earlier or has gone off: a timer costs more than a look.
            if due < self.alarm.deadline() || self.alarm.is_elapsed() {
                self.alarm.as_mut().reset(due);
            }
            ready!(self.alarm.as_mut().poll(context));
            // The time was over between the two looks at the clock, or it was prolonged meanwhile.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Connection<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.io).poll_read(context, buffer);
        let read = buffer.filled().get(before..).unwrap_or_default();
        self.bounded(context, outcome, |progress, now| progress.read(read, now))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Connection<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(context, bytes);
        self.bounded(context, outcome, |progress, _| progress.is_answered = true)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_shutdown(context);
        self.bounded(context, outcome, |_, _| {})
    }
}

/// The process at the other end of a Unix socket (SO_PEERCRED, unix(7)); `None` if unknown.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub Option<UCred>);

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(who) => match who.pid() {
                Some(pid) => write!(f, "user {} (process {pid})", who.uid()),
                None => write!(f, "user {}", who.uid()),
            },
            None => f.write_str("an unidentified process"),
        }
    }
}

impl Connected<IncomingStream<'_, Bounded<UnixListener>>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded<UnixListener>>) -> Self {
        Peer(stream.io().io.peer_cred().ok())
    }
}
