//! Queries the running daemon on its control socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper::body::Bytes;
use hyper::{Method, Request, header};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::command::block_on;
use crate::config::settings::Settings;
use crate::http_client::{Body, exchange};
use crate::serve::control::socket_path;

/// The daemon answers from memory, or at most from its history.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum length of an answer, in bytes.
const LONGEST: usize = 64 << 20;

/// The socket does not answer: no daemon runs, or it listens elsewhere.
#[derive(Debug, thiserror::Error)]
#[error(
    "no daemon answers at {socket} ({reason}): see `systemctl status fragwatch`; start it with `systemctl start fragwatch` or `fragwatch run`"
)]
pub(super) struct NotRunning {
    socket: String,
    reason: io::Error,
}

/// The daemon's answer to a GET of `path`. Fails with [`NotRunning`] if the socket does not answer.
pub(super) fn get<T: DeserializeOwned>(settings: &Settings, path: &str) -> anyhow::Result<T> {
    call(settings, Method::GET, path)
}

/// The daemon's answer to a POST to `path`. Fails as [`get`].
pub(super) fn post<T: DeserializeOwned>(settings: &Settings, path: &str) -> anyhow::Result<T> {
    call(settings, Method::POST, path)
}

/// The daemon's answer to a GET of `path`, as text. Fails as [`get`].
pub(super) fn get_text(settings: &Settings, path: &str) -> anyhow::Result<String> {
    let body = body(settings, Method::GET, path)?;
    String::from_utf8(body.into()).context("the daemon's answer is not text")
}

fn call<T: DeserializeOwned>(settings: &Settings, method: Method, path: &str) -> anyhow::Result<T> {
    let body = body(settings, method, path)?;
    serde_json::from_slice(&body).context("the daemon's answer is not understood")
}

fn body(settings: &Settings, method: Method, path: &str) -> anyhow::Result<Bytes> {
    let socket = socket_path(&settings.control);
    block_on(async {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, ask(&socket, method, path)).await;
        answer.with_context(|| {
            let (socket, seconds) = (socket.display(), ANSWER_TIMEOUT.as_secs());
            format!("the daemon at {socket} does not answer within {seconds} s")
        })?
    })
}

async fn ask(socket: &Path, method: Method, path: &str) -> anyhow::Result<Bytes> {
    let stream = UnixStream::connect(socket).await.map_err(|reason| {
        if reason.kind() == io::ErrorKind::PermissionDenied {
            let message = "only root and the group of control.group may ask the daemon";
            return anyhow::Error::new(reason).context(message);
        }
        let socket = socket.display().to_string();
        NotRunning { socket, reason }.into()
    })?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "fragwatch")
        .body(Body::default())?;
    let (status, body) = exchange(stream, request, LONGEST).await?;
    if !status.is_success() {
        bail!("the daemon says: {}", String::from_utf8_lossy(&body).trim());
    }
    Ok(body)
}
