//! The HTTP pages, all read-only: `/metrics`, `/healthz` for monitoring, and a landing page.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::{Router, routing::get};
use hyper::body::Frame;

use super::shared_status::{Page, SharedStatus};
use crate::table::counted;

/// The text format of Prometheus (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The routes of the pages.
pub fn router(status: Arc<SharedStatus>) -> Router {
    Router::new()
        .route("/", get(landing))
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .with_state(status)
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

async fn landing(State(status): State<Arc<SharedStatus>>) -> Html<String> {
    let status = status.status();
    let mut page = String::from(HEAD);
    // Writing to a String cannot fail, here and below.
    let _ = write!(
        page,
        "<p>{} watched by fragwatch {}. \
         <a href=\"/metrics\">metrics</a> · <a href=\"/healthz\">health</a></p>",
        counted(status.images.total as u64, "image"),
        env!("CARGO_PKG_VERSION")
    );
    if status.images.unprotected > 0 {
        let _ = write!(
            page,
            "<p>{} can shatter: fragwatch protect names them.</p>",
            counted(status.images.unprotected as u64, "image")
        );
    }
    for stalled in &status.stalled {
        let _ = write!(
            page,
            "<p class=\"critical\">The file system {} has not answered for {} s; its counts are old.</p>",
            escaped(&stalled.mount),
            stalled.seconds
        );
    }
    if !status.worst.is_empty() {
        page.push_str("<table><tr><th>Image<th>Extents<th>Severity");
        for row in &status.worst {
            let _ = write!(
                page,
                "<tr><td>{}<td class=\"number\">{}<td class=\"{severity}\">{severity}",
                escaped(&row.path),
                row.extents,
                severity = row.severity
            );
        }
        page.push_str("</table>");
    }
    page.push_str("</body></html>\n");
    Html(page)
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>fragwatch</title><style>\
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color-scheme:light dark}\
table{border-collapse:collapse;width:100%}th{text-align:left}\
th,td{padding:.25rem .75rem .25rem 0;border-bottom:1px solid #8884;overflow-wrap:anywhere}\
.number,th:nth-child(2){text-align:right;font-variant-numeric:tabular-nums}\
td.ok{color:#2a7d2a}.warning{color:#b36b00}.critical{color:#c62828;font-weight:600}\
</style></head><body><h1>fragwatch</h1>";

/// A file name may contain markup.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_names_stays_text() {
        assert_eq!(escaped("<b>\"&amp;"), "&lt;b&gt;&quot;&amp;amp;");
    }
}
