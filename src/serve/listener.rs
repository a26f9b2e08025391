//! A listener whose connections cannot be many, idle or long: whoever opens a thousand of them,
//! never reads, or sends a byte a second takes nothing from the others but a little time.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixListener;
use tokio::net::unix::UCred;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

/// How often a connection looks at the clock. One without a byte for so long makes way for a new one
/// when there are too many.
pub const TICK: Duration = Duration::from_millis(250);

/// What connections may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open at the same time. For one more, the oldest is closed that has not sent its request yet or
    /// is idle; without one, the new one waits.
    pub connections: usize,
    /// From the connection, or from the first byte of a further request, to the end of its head.
    pub request: Duration,
    /// Without a byte in either direction; while all connections are taken, [`TICK`].
    pub idle: Duration,
    /// From the first byte to the last. A client that keeps its connection for the next request
    /// opens another.
    pub lifetime: Duration,
}

impl Limits {
    /// Prometheus asks every few seconds, people now and then, and an answer takes milliseconds.
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

/// Keeps [`Limits`] on what another listener accepts.
#[derive(Debug)]
pub struct Bounded<L> {
    listener: L,
    limits: Limits,
    free: Arc<Semaphore>,
    /// The open ones, oldest first.
    open: VecDeque<Weak<Mutex<Progress>>>,
}

impl<L> Bounded<L> {
    /// Puts `limits` on `listener`.
    pub fn new(listener: L, limits: Limits) -> Self {
        Bounded {
            listener,
            free: Arc::new(Semaphore::new(limits.connections)),
            limits,
            open: VecDeque::new(),
        }
    }

    /// A permit for one more connection, and if need be in the place of another.
    async fn permit(&mut self) -> Option<OwnedSemaphorePermit> {
        loop {
            if self.free.available_permits() == 0 {
                self.close_one();
            }
            let permit = Arc::clone(&self.free).acquire_owned();
            // What is closed has ended in a moment.
            if let Ok(permit) = timeout(TICK, permit).await {
                // Closed by nobody: without a permit there is none to be had, and then there is no
                // limit.
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
        let connection = Connection::new(io, self.limits, Arc::clone(&self.free), permit);
        self.open.push_back(Arc::downgrade(&connection.progress));
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// How far a connection has come.
#[derive(Debug)]
struct Progress {
    /// When the last byte passed.
    last: Instant,
    /// When its request began.
    began: Instant,
    /// Whether the head of its request is there. No request that is answered has a body.
    is_asked: bool,
    /// Whether the answer has begun: what is read from now on is the next request.
    is_answered: bool,
    /// Line breaks at the end of what was read; two end the head.
    breaks: u8,
    /// It is to end: another one needs its place.
    closed: bool,
    /// The task that waits for bytes.
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

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    // It is never left half changed.
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that ends itself.
#[derive(Debug)]
pub struct Connection<I> {
    io: I,
    limits: Limits,
    /// When its lifetime is over.
    end: Instant,
    progress: Arc<Mutex<Progress>>,
    /// The next look at the clock.
    alarm: Pin<Box<Sleep>>,
    free: Arc<Semaphore>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<I> Connection<I> {
    fn new(
        io: I,
        limits: Limits,
        free: Arc<Semaphore>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
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
            alarm: Box::pin(sleep_until(now + TICK)),
            free,
            _permit: permit,
        }
    }

    /// What came of a read or a write, unless the time is up. `note` notes what has passed.
    fn bounded<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
        note: impl FnOnce(&mut Progress, Instant),
    ) -> Poll<io::Result<T>> {
        let now = Instant::now();
        let full = self.free.available_permits() == 0;
        let mut progress = lock(&self.progress);
        let may_go_on = now < self.end && !progress.closed;
        if outcome.is_ready() && may_go_on {
            progress.last = now;
            note(&mut progress, now);
            return outcome;
        }
        progress.waker = Some(context.waker().clone());
        let idle = now.duration_since(progress.last);
        let late = !progress.is_asked && now.duration_since(progress.began) >= self.limits.request;
        drop(progress);
        if may_go_on && !late && idle < self.limits.idle && !(full && idle >= TICK) {
            loop {
                ready!(self.alarm.as_mut().poll(context));
                self.alarm.as_mut().reset(now + TICK);
            }
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

/// The process at the other end of a Unix socket (SO_PEERCRED, unix(7)); `None` if the kernel does not
/// say.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub Option<UCred>);

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(who) => match who.pid() {
                Some(pid) => write!(f, "user {} (process {pid})", who.uid()),
                None => write!(f, "user {}", who.uid()),
            },
            None => f.write_str("somebody whom the kernel does not name"),
        }
    }
}

impl Connected<IncomingStream<'_, Bounded<UnixListener>>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded<UnixListener>>) -> Self {
        Peer(stream.io().io.peer_cred().ok())
    }
}
