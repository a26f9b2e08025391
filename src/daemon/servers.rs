//! The page server (TCP) and the control socket's server, started and moved with the settings.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{error, info, warn};

use crate::config::settings::Control;
use crate::serve::control::{self, SocketFile};
use crate::serve::http;
use crate::serve::listener::{Bounded, Limits, Peer};
use crate::serve::parts::{Part, State};
use crate::serve::shared_status::SharedStatus;

const LISTEN_TIMEOUT: Duration = Duration::from_secs(2);

const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The configured address of the pages, and their server while it can run.
pub(super) struct PageServer {
    listen: SocketAddr,
    status: Arc<SharedStatus>,
    server: Option<Server>,
    retries: Interval,
}

struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

/// The control socket and its server.
pub(super) struct ControlServer {
    pub(super) control: Control,
    task: JoinHandle<()>,
    _file: SocketFile,
}

impl ControlServer {
    /// Sets the state of the part, and logs why there is no socket.
    pub(super) async fn start(
        control: &Control,
        pages: &control::Pages,
        status: &SharedStatus,
    ) -> Option<Self> {
        let socket = control::socket_path(control);
        let (listener, file) = match listen(control.clone()).await {
            Ok(listening) => listening,
            Err(error) => {
                let reason = format!("no control socket at {}: {error}", socket.display());
                error!("{reason}");
                status.set_part(Part::ControlSocket, State::Down(reason));
                return None;
            }
        };
        status.set_part(Part::ControlSocket, State::Up);
        let listener = Bounded::new(listener, Limits::CONTROL);
        let pages = control::router(pages.clone());
        let task = tokio::spawn(async move {
            let pages = pages.into_make_service_with_connect_info::<Peer>();
            if let Err(error) = axum::serve(listener, pages).await {
                warn!("the control socket has ended: {error}");
            }
        });
        Some(ControlServer {
            control: control.clone(),
            task,
            _file: file,
        })
    }
}

/// On a thread that may be left behind: /etc and /run may hang. If it returns later, its socket is
/// removed again.
async fn listen(control: Control) -> io::Result<(UnixListener, SocketFile)> {
    let listening = tokio::task::spawn_blocking(move || control::listen(&control));
    match tokio::time::timeout(LISTEN_TIMEOUT, listening).await {
        Ok(Ok(listening)) => listening,
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "its directory or /etc/group does not answer",
        )),
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl PageServer {
    /// Serves the pages now, or as soon as the address is free: another program may use it, or its
    /// interface may come up later.
    pub(super) async fn start(listen: SocketAddr, status: Arc<SharedStatus>) -> Self {
        let mut retries = interval(RETRY_INTERVAL);
        retries.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pages = PageServer {
            listen,
            status,
            server: None,
            retries,
        };
        if let Err(error) = pages.listen().await {
            error!(
                "no metrics are served: {error:#}; tried again every {} s",
                RETRY_INTERVAL.as_secs()
            );
        }
        pages
    }

    /// Retries every few seconds while the pages are not served. Cancel-safe.
    pub(super) async fn keep_listening(&mut self) {
        self.retries.tick().await;
        let serves = |server: &Server| !server.task.is_finished();
        if !self.server.as_ref().is_some_and(serves) {
            // Logged at the start, and in the status since.
            let _ = self.listen().await;
        }
    }

    async fn listen(&mut self) -> anyhow::Result<()> {
        let started = Server::start(self.listen, Arc::clone(&self.status)).await;
        let error = started.as_ref().err().map(|error| format!("{error:#}"));
        self.status.listening(error);
        self.server = Some(started?);
        Ok(())
    }

    /// Serves the pages at another address; on an error the former one stays.
    pub(super) async fn move_to(&mut self, listen: SocketAddr) -> anyhow::Result<()> {
        if listen == self.listen {
            return Ok(());
        }
        let start = || Server::start(listen, Arc::clone(&self.status));
        let moved = match (start().await, &mut self.server) {
            // 0.0.0.0 conflicts with 127.0.0.1 on the same port: leave the former address first.
            (Err(_), Some(server)) if listen.port() == server.address.port() => {
                server.stop().await;
                start().await
            }
            (other, _) => other,
        };
        match moved {
            Ok(server) => {
                self.listen = listen;
                self.server = Some(server);
                self.status.listening(None);
                Ok(())
            }
            Err(error) => {
                if self.server.as_ref().is_some_and(|it| it.task.is_finished()) {
                    // Retried later if it fails.
                    let _ = self.listen().await;
                }
                Err(error)
            }
        }
    }
}

impl Server {
    async fn start(listen: SocketAddr, status: Arc<SharedStatus>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen} (metrics.listen)"))?;
        let address = listener.local_addr().unwrap_or(listen);
        info!("metrics at http://{address}/metrics");
        let listener = Bounded::new(listener, Limits::PAGES);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, http::router(status)).await {
                warn!("the page server has ended: {error}");
            }
        });
        Ok(Server { address, task })
    }

    async fn stop(&mut self) {
        self.task.abort();
        // An aborted task has no result.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        info!("no longer listening on {}", self.address);
        self.task.abort();
    }
}
