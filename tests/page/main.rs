//! The pages of a real daemon, as sent and in a real browser, and the report.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "clippy knows the tests, but not what they call, and all numbers here are small"
)]

#[path = "../support/mod.rs"]
mod support;

mod browser;
mod proxy;
mod report;
mod seen;
mod sent;
mod world;
