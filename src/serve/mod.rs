//! What the daemon publishes: HTTP pages, control socket, textfile. Metrics and status come from
//! the [`shared_status`] in memory: a scrape never waits for a disk. Only the [pages](page) for people
//! and `fragwatch history` read the history, on a thread that may wait.
//!
//! A new key of the status is a field in [`status`], set where it changes by
//! [`SharedStatus::update`](shared_status::SharedStatus::update); nothing else has to change.

pub mod control;
pub mod history;
mod host;
pub mod http;
pub mod listener;
pub mod metrics;
pub mod page;
pub mod parts;
pub mod plan;
pub mod shared_status;
pub mod snapshot;
pub mod status;
pub mod textfile;
pub mod view;

use std::path::Path;

use serde_json::{Value, json};

use crate::model::path::{hex_unless_exact, shown};

/// A JSON object of a file: its path, for an inexact one also `path_hex`, then these `keys`.
pub fn of_file(path: &Path, keys: Value) -> Value {
    let mut object = json!({ "path": shown(path) });
    if let Some(hex) = hex_unless_exact(path) {
        object["path_hex"] = json!(hex);
    }
    if let (Value::Object(object), Value::Object(keys)) = (&mut object, keys) {
        object.extend(keys);
    }
    object
}
