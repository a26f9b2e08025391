//! One request over HTTP/1.1, without TLS: to the daemon's control socket, and to the servers that
//! are asked before a run.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

/// Limit for all of [`send`], the look-up of the name included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// One look-up at a time: while the resolver does not answer, each occupies one of the runtime's few
/// blocking threads for longer than [`TIMEOUT`].
static LOOK_UP: Semaphore = Semaphore::const_new(1);
/// Maximum length of an answer to [`send`], in bytes.
const LONGEST: usize = 4 << 20;

/// The body of a request.
pub type Body = Full<Bytes>;

/// Cause of an error of [`send`] before anything was sent.
#[derive(Debug, thiserror::Error)]
#[error("no connection")]
pub struct NoConnection;

/// Sends a request over a connected stream. Returns the status and the body of the answer.
///
/// # Errors
/// Those of the stream; an answer that is not HTTP, or longer than `longest` bytes.
pub async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Body>,
    longest: usize,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), longest).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!(error))?;
    Ok((status, body.to_bytes()))
}

/// Sends a request to the host of its URI, `http://HOST[:PORT]/…`.
///
/// # Errors
/// As [`exchange`], and [`NoConnection`]; no answer within five seconds.
pub async fn send(mut request: Request<Body>) -> anyhow::Result<(StatusCode, Bytes)> {
    let uri = std::mem::take(request.uri_mut());
    let host = uri.host().context("the URL has no host")?;
    let address = format!("{host}:{}", uri.port_u16().unwrap_or(80));
    *request.uri_mut() = uri.path_and_query().map_or("/", |it| it.as_str()).parse()?;
    request.headers_mut().insert(header::HOST, address.parse()?);
    let end = Instant::now() + TIMEOUT;
    let late = || format!("no answer within {} s", TIMEOUT.as_secs());
    let stream = timeout_at(end, connect(address)).await.with_context(late);
    let stream = stream.flatten().context(NoConnection)?;
    let answer = exchange(stream, request, LONGEST);
    timeout_at(end, answer).await.with_context(late)?
}

/// `address` is `HOST:PORT`.
async fn connect(address: String) -> anyhow::Result<TcpStream> {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return Ok(TcpStream::connect(address).await?);
    }
    let permit = LOOK_UP.acquire().await?;
    let look_up = move || {
        let addresses = address.to_socket_addrs().map(Vec::from_iter);
        drop(permit);
        addresses
    };
    let addresses = spawn_blocking(look_up).await??;
    Ok(TcpStream::connect(&*addresses).await?)
}
