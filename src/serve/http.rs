//! The HTTP pages, all read-only: `/metrics`, `/healthz` for monitoring, and those of [`page`].

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Router, middleware, routing::get};
use hyper::body::Frame;

use super::shared_status::{Page, SharedStatus};
use super::{host, page};

/// The text format of Prometheus (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The routes of the pages.
pub fn router(sources: page::Sources) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .with_state(Arc::clone(&sources.status))
        .merge(page::router(sources))
        .layer(middleware::from_fn_with_state(host::names(), host::check))
}

async fn metrics(State(status): State<Arc<SharedStatus>>) -> impl IntoResponse {
    let body = Body::new(Written(status.metrics()));
    ([(header::CONTENT_TYPE, METRICS_TYPE)], body)
}

/// A body that is written while it is sent.
struct Written(Page);

impl hyper::body::Body for Written {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(|chunk| Ok(Frame::data(chunk))))
    }
}

/// 200 while no sweep is overdue. A hanging file system has its own metric and does not count.
async fn health(State(status): State<Arc<SharedStatus>>) -> (StatusCode, String) {
    match status.status().daemon.sweep_overdue_seconds {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(overdue) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the sweep over all images is overdue by {overdue} s\n"),
        ),
    }
}
