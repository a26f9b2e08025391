//! What a host asks others on the network before it defragments: a lock that a group of hosts shares
//! ([`lock`]), and whether something speaks against a run now ([`hold`]). No state; the daemon's
//! scheduler decides when to ask.

pub mod hold;
pub mod lock;

use hyper::StatusCode;

/// Why a request was not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The server has answered: not now.
    #[error("{0}")]
    Refused(String),
    /// There is no answer, or it is not understood.
    #[error("{0}")]
    Failed(String),
}

/// Maximum length of a server's text in messages, in characters.
const LONGEST_TEXT: usize = 200;

impl Denied {
    fn failed(url: &str, error: &anyhow::Error) -> Denied {
        Denied::Failed(format!("{url}: {error:#}"))
    }

    /// A server's text without control characters, and not too long.
    fn text(status: StatusCode, body: &[u8]) -> String {
        let text = String::from_utf8_lossy(body);
        let visible = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        let text: String = visible.take(LONGEST_TEXT).collect();
        format!("{} {}", status.as_u16(), text.trim())
    }
}
