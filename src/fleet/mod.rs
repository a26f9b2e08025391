//! What a host asks others on the network before it defragments: a lock that a group of hosts shares
//! ([`lock`]), and whether something speaks against a run now ([`hold`]). No state; the daemon's
//! scheduler decides when to ask.

pub mod hold;
pub mod lock;

use hyper::StatusCode;

use crate::http_client::NoConnection;

/// Why a request was not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The server has answered: not now.
    #[error("{0}")]
    Refused(String),
    /// As [`Refused`](Denied::Refused), by an error of the server, which may have done a part.
    #[error("{0}")]
    Unclear(String),
    /// There is no answer, or it is not understood.
    #[error("{0}")]
    Failed(String),
    /// There was no connection, so the server has not received the request.
    #[error("{0}")]
    Unsent(String),
}

/// Maximum length of a server's text in messages, in characters.
const LONGEST_TEXT: usize = 200;

impl Denied {
    fn failed(url: &str, error: &anyhow::Error) -> Denied {
        let text = format!("{url}: {error:#}");
        match error.is::<NoConnection>() {
            true => Denied::Unsent(text),
            false => Denied::Failed(text),
        }
    }

    /// A server's text, as it can be shown.
    fn text(status: StatusCode, body: &[u8]) -> String {
        let text = shorten(&String::from_utf8_lossy(body));
        format!("{} {}", status.as_u16(), text.trim())
    }
}

/// A text without control characters, and not too long.
fn shorten(text: &str) -> String {
    let visible = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = visible.take(LONGEST_TEXT).collect();
    if text.chars().nth(LONGEST_TEXT).is_some() {
        short.push('…');
    }
    short
}
