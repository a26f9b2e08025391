//! The page server (TCP) and the control socket's server, started and moved with the settings.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::blocking::within;
use crate::config::settings::Control;
use crate::serve::control::{self, SocketFile};
use crate::serve::http;
use crate::serve::listener::{Bounded, Limits, Peer};
use crate::serve::page;
use crate::serve::parts::{Part, State};
use crate::serve::shared_status::SharedStatus;

const LISTEN_TIMEOUT: Duration = Duration::from_secs(2);

const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The control socket and its server, which ends on drop.
pub(super) struct ControlServer {
    pub(super) control: Control,
    _server: JoinSet<()>,
    _file: SocketFile,
}

impl ControlServer {
    /// Sets the state of the part, and logs why there is no socket.
    pub(super) async fn start(
        control: &Control,
        pages: &control::Pages,
        status: &SharedStatus,
    ) -> Option<Self> {
        let ours = control.clone();
        // /etc and /run may hang. If this returns later, its socket is removed again.
        let listening = within(LISTEN_TIMEOUT, move || control::listen(&ours)).await;
        let hangs = || {
            Err(io::Error::other(
                "its directory or /etc/group does not answer",
            ))
        };
        let (listener, file) = match listening.unwrap_or_else(hangs) {
            Ok(listening) => listening,
            Err(error) => {
                let socket = control::socket_path(control);
                let reason = format!("no control socket at {}: {error}", socket.display());
                error!("{reason}");
                status.set_part(Part::ControlSocket, State::Down(reason));
                return None;
            }
        };
        status.set_part(Part::ControlSocket, State::Up);
        let listener = Bounded::new(listener, Limits::CONTROL);
        let pages = control::router(pages.clone()).into_make_service_with_connect_info::<Peer>();
        let mut server = JoinSet::new();
        server.spawn(async move {
            if let Err(error) = axum::serve(listener, pages).await {
                warn!("the control socket has ended: {error}");
            }
        });
        Some(ControlServer {
            control: control.clone(),
            _server: server,
            _file: file,
        })
    }
}

/// The pages at their configured address, and their server while it can run.
pub(super) struct PageServer {
    listen: SocketAddr,
    pages: page::Sources,
    server: JoinSet<()>,
    /// Where the server listens: with port 0 the kernel has chosen one.
    address: SocketAddr,
}

impl PageServer {
    /// Serves the pages now, or as soon as the address is free: another program may use it, or its
    /// interface may come up later.
    pub(super) async fn start(listen: SocketAddr, sources: page::Sources) -> Self {
        let mut pages = PageServer {
            listen,
            pages: sources,
            server: JoinSet::new(),
            address: listen,
        };
        if let Err(error) = pages.listen(listen).await {
            error!(
                "no metrics are served: {error:#}; retrying every {} s",
                RETRY_INTERVAL.as_secs()
            );
        }
        pages
    }

    /// Waits a few seconds, then listens again if the pages are not served. Cancel-safe.
    pub(super) async fn keep_listening(&mut self) {
        tokio::time::sleep(RETRY_INTERVAL).await;
        while self.server.try_join_next().is_some() {}
        if self.server.is_empty() {
            // Logged at the start, and in the status since.
            let _ = self.listen(self.listen).await;
        }
    }

    async fn listen(&mut self, at: SocketAddr) -> anyhow::Result<()> {
        let bound = bind(at).await;
        let error = bound.as_ref().err().map(|error| format!("{error:#}"));
        self.pages.status.listening(error);
        self.serve(bound?);
        Ok(())
    }

    fn serve(&mut self, listener: TcpListener) {
        self.address = listener.local_addr().unwrap_or(self.listen);
        info!("metrics at http://{}/metrics", self.address);
        let listener = Bounded::new(listener, Limits::PAGES);
        let pages = http::router(self.pages.clone());
        self.server.spawn(async move {
            if let Err(error) = axum::serve(listener, pages).await {
                warn!("the page server has ended: {error}");
            }
        });
    }

    /// Serves the pages at another address; on an error the former one stays.
    pub(super) async fn move_to(&mut self, listen: SocketAddr) -> anyhow::Result<()> {
        if listen == self.listen {
            return Ok(());
        }
        let mut bound = bind(listen).await;
        let is_taken = |error: &anyhow::Error| {
            let error = error.downcast_ref::<io::Error>();
            error.is_some_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        };
        // 0.0.0.0 conflicts with 127.0.0.1 on the same port: leave the former address first.
        if bound.as_ref().is_err_and(is_taken) && listen.port() == self.address.port() {
            self.leave().await;
            bound = bind(listen).await;
            if bound.is_err() {
                // Retried later if it fails.
                let _ = self.listen(self.address).await;
            }
        }
        let bound = bound?;
        self.leave().await;
        self.listen = listen;
        self.serve(bound);
        self.pages.status.listening(None);
        Ok(())
    }

    async fn leave(&mut self) {
        if !self.server.is_empty() {
            info!("no longer listening on {}", self.address);
            self.server.shutdown().await;
        }
    }
}

async fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(listen).await;
    listener.with_context(|| format!("cannot listen on {listen} (metrics.listen)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::History;
    use crate::daemon::registry::SharedRegistry;
    use crate::model::UnixTime;
    use crate::serve::metrics::Lifetime;
    use crate::serve::plan::PlanRequests;
    use crate::state_dir::StateDir;
    use std::sync::Arc;
    use tokio::net::TcpStream;
    use tokio::sync::{mpsc, watch};

    async fn serving() -> PageServer {
        let status = SharedStatus::new(Lifetime::detached(), UnixTime(0), Duration::MAX / 4);
        let sources = page::Sources {
            status: Arc::new(status),
            inventory: Arc::new(SharedRegistry::default()),
            settings: watch::channel(Arc::default()).1,
            state: StateDir::of(&History::default()),
            plans: PlanRequests(mpsc::channel(1).0),
        };
        PageServer::start("127.0.0.1:0".parse().unwrap(), sources).await
    }

    #[tokio::test]
    async fn a_move_that_fails_leaves_the_pages_where_they_are() {
        let mut pages = serving().await;
        let former = pages.address;
        // TEST-NET-1 (RFC 5737) is an address of no host.
        let nowhere = SocketAddr::from(([192, 0, 2, 1], former.port()));
        // Another program on one of all addresses.
        let taken = SocketAddr::from(([127, 0, 0, 2], former.port()));
        let _other = TcpListener::bind(taken).await.unwrap();
        let all = SocketAddr::from(([0, 0, 0, 0], former.port()));
        for refused in [nowhere, all, nowhere, all] {
            pages.move_to(refused).await.unwrap_err();
            assert_eq!(pages.address, former);
            TcpStream::connect(former).await.unwrap();
        }
        assert_eq!(pages.pages.status.status().daemon.listen_error, None);
    }

    #[tokio::test]
    async fn the_pages_move_to_all_addresses_and_back() {
        let mut pages = serving().await;
        let former = pages.address;
        let all = SocketAddr::from(([0, 0, 0, 0], former.port()));
        for next in [all, former, all] {
            pages.move_to(next).await.unwrap();
            assert_eq!(pages.address, next);
            TcpStream::connect(former).await.unwrap();
        }
    }
}
