//! Limits the pages that are built and sent at the same time, because each is wholly in memory.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Pages at the same time.
pub const PAGES: usize = 4;
/// Less than what hyper buffers of a connection, so that the rest of a large page waits here.
const PART: usize = 16 << 10;

/// Answers a request if it is among the first [`PAGES`], and with 503 otherwise.
pub async fn take(State(free): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let Ok(turn) = free.try_acquire_owned() else {
        let headers = [(header::RETRY_AFTER, "1")];
        let text = format!("{PAGES} other pages are being sent; try again in a second\n");
        return (StatusCode::SERVICE_UNAVAILABLE, headers, text).into_response();
    };
    keep(next.run(request).await, turn).await
}

/// The answer, which keeps its turn until it is sent.
async fn keep(answer: Response, turn: OwnedSemaphorePermit) -> Response {
    let (head, body) = answer.into_parts();
    // A page is one text in memory; this neither waits nor fails.
    let page = to_bytes(body, usize::MAX).await.unwrap_or_default();
    Response::from_parts(head, Body::new(Sent { page, _turn: turn }))
}

/// A page that is sent in parts.
struct Sent {
    page: Bytes,
    _turn: OwnedSemaphorePermit,
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.page.len().min(PART);
        let part = self.page.split_to(part);
        Poll::Ready((!part.is_empty()).then(|| Ok(Frame::data(part))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.page.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_kept_until_the_page_is_sent() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let free = Arc::new(Semaphore::new(PAGES));
            let text: String = (0..20_000).map(|n| format!("{n} ")).collect();
            let turn = Arc::clone(&free).try_acquire_owned().unwrap();
            let answer = keep(text.clone().into_response(), turn).await;
            assert_eq!(free.available_permits(), PAGES - 1);
            let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
            assert!(body == text.as_bytes(), "not what was to be sent");
            assert_eq!(free.available_permits(), PAGES);
        });
    }
}
