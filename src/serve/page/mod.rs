//! The pages for people: the host, its images, plan, runs and incidents. Read-only.
//!
//! A page is built for each request from the [status](super::shared_status), the images that the
//! daemon knows, its plan and the history, and nothing of it is kept. What the history or an
//! incident file would tell is left out, with a sentence, if its disk does not answer in time.
//! [`rows`], [`detail`] and [`story`] are what is shown, also by `fragwatch report`.

pub mod chart;
pub mod detail;
pub mod filter;
mod gather;
pub mod html;
pub mod past;
pub mod rows;
pub mod story;
mod turn;
mod views;

use std::sync::Arc;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Router, middleware};
use tokio::sync::Semaphore;

use gather::Pages;
pub use gather::Sources;

/// The style sheet.
pub const STYLE: &str = include_str!("assets/page.css");
/// Files of the pages, by name, with their types. uPlot draws a chart that can be zoomed, in 51 KB
/// and without other libraries; version 1.6.32, its licence is beside it.
const ASSETS: [(&str, &str, &str); 5] = [
    ("page.css", "text/css; charset=utf-8", STYLE),
    (
        "page.js",
        "text/javascript; charset=utf-8",
        include_str!("assets/page.js"),
    ),
    (
        "uplot.css",
        "text/css; charset=utf-8",
        include_str!("assets/uPlot.min.css"),
    ),
    (
        "uplot.js",
        "text/javascript; charset=utf-8",
        include_str!("assets/uPlot.iife.min.js"),
    ),
    ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
];

/// The routes of the pages.
pub fn router(sources: Sources) -> Router {
    let turns = Arc::new(Semaphore::new(turn::PAGES));
    Router::new()
        .route("/", get(views::overview))
        .route("/images", get(views::images))
        .route("/image", get(views::image))
        .route("/api/history", get(views::history))
        .route("/plan", get(views::plan))
        .route("/runs", get(views::runs))
        .route("/incidents", get(views::incidents))
        .route("/incident", get(views::incident))
        .layer(middleware::from_fn_with_state(turns, turn::take))
        // They are in memory anyway, and a browser loads them beside a page.
        .route("/assets/{name}", get(asset))
        .with_state(Pages::new(sources))
}

async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.into_iter().find(|(asset, ..)| *asset == name) {
        Some((_, kind, text)) => {
            let headers = [
                (header::CONTENT_TYPE, kind),
                (header::CACHE_CONTROL, "max-age=3600"),
            ];
            (headers, text).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
