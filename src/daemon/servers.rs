//! Who answers: the pages over TCP and the control socket, each a task that starts, moves and ends
//! with the settings.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::config::settings::Control;
use crate::serve::board::Board;
use crate::serve::control::{self, SocketFile};
use crate::serve::http;
use crate::serve::listener::{Bounded, Limits, Peer};

/// The page server and where it listens.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) task: JoinHandle<()>,
}

/// The control socket and who answers there.
pub(super) struct ControlServer {
    pub(super) control: Control,
    task: JoinHandle<()>,
    _file: SocketFile,
}

impl ControlServer {
    /// Says in the log why there is none.
    pub(super) fn start(control: &Control, pages: &control::Pages) -> Option<Self> {
        let (listener, file) = control::listen(control)
            .inspect_err(|error| {
                let socket = control::socket_path(control);
                error!("no control socket at {}: {error}", socket.display());
            })
            .ok()?;
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

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(super) async fn start(listen: SocketAddr, board: Arc<Board>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen} (metrics.listen)"))?;
        let address = listener.local_addr().unwrap_or(listen);
        info!("metrics at http://{address}/metrics");
        let listener = Bounded::new(listener, Limits::PAGES);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, http::router(board)).await {
                warn!("the page server has ended: {error}");
            }
        });
        Ok(Server { address, task })
    }

    /// Closes the address.
    pub(super) async fn stop(&mut self) {
        self.task.abort();
        // It was told to end; how it does is of no interest.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        info!("no longer listening on {}", self.address);
        self.task.abort();
    }
}
