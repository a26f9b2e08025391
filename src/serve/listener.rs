//! A listener whose connections cannot be many, idle or long: whoever opens a thousand of them,
//! never reads, or sends a byte a second takes nothing from the others but a little time.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixListener;
use tokio::net::unix::UCred;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

/// How often a connection looks at the clock and at how many others there are.
pub const TICK: Duration = Duration::from_millis(250);

/// What connections may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open at the same time; more wait in the kernel's queue (listen(2)).
    pub connections: usize,
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
        idle: Duration::from_secs(5),
        lifetime: Duration::from_secs(60),
    };
    /// An answer from the history can take seconds.
    pub const CONTROL: Limits = Limits {
        connections: 64,
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
}

impl<L> Bounded<L> {
    /// Puts `limits` on `listener`.
    #[must_use]
    pub fn new(listener: L, limits: Limits) -> Self {
        Bounded {
            listener,
            free: Arc::new(Semaphore::new(limits.connections)),
            limits,
        }
    }
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // Closed by nobody: without a permit there is none to be had, and then there is no limit.
        let permit = Arc::clone(&self.free).acquire_owned().await.ok();
        let (io, address) = self.listener.accept().await;
        let others = Arc::clone(&self.free);
        (Connection::new(io, self.limits, others, permit), address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that ends itself.
#[derive(Debug)]
pub struct Connection<I> {
    io: I,
    idle: Duration,
    /// When its lifetime is over.
    end: Instant,
    /// When the last byte passed.
    last: Instant,
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
            idle: limits.idle,
            end: now + limits.lifetime,
            last: now,
            alarm: Box::pin(sleep_until(now + TICK)),
            free,
            _permit: permit,
        }
    }

    /// What came of a read or a write, unless the time is up.
    fn bounded<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let now = Instant::now();
        if outcome.is_ready() && now < self.end {
            self.last = now;
            return outcome;
        }
        while now < self.end {
            ready!(self.alarm.as_mut().poll(context));
            let full = self.free.available_permits() == 0;
            let idle = now.duration_since(self.last);
            if idle >= self.idle || (full && idle >= TICK) {
                break;
            }
            self.alarm.as_mut().reset(now + TICK);
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
        let outcome = Pin::new(&mut self.io).poll_read(context, buffer);
        self.bounded(context, outcome)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Connection<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(context, bytes);
        self.bounded(context, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_shutdown(context);
        self.bounded(context, outcome)
    }
}

/// Who is at the other end of a Unix socket (SO_PEERCRED, unix(7)); nothing if the kernel does not
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
