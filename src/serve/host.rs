//! Refuses what a web page of somebody else asks through a name of its own (DNS rebinding).
//!
//! Such a page has its name resolve to the address of this daemon, whereupon the browser regards both
//! as one origin and lets the page read the answers. The requests carry that name in `Host`
//! (RFC 9110, 7.2), which no page can change. Answered are IP addresses and `localhost`, which no DNS
//! is asked for, and the name of this host. Programs ask for `/metrics` and `/healthz` under any name:
//! there a request is refused only if it has `Accept-Language`, which browsers append to all requests
//! (Fetch Standard, 4 "Fetching") and Prometheus does not send.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use rustix::system::uname;

/// Of every answer: no other origin embeds or frames it, and no browser guesses its type.
const HEADERS: [(HeaderName, HeaderValue); 3] = [
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
];

/// Names the host nowhere: the page of somebody else reads it.
const REFUSED: &str = "fragwatch answers browsers only at an IP address of this host, as localhost and by \
    the host's name (uname -n), so that no other web page reads this through a name of its own. Use \
    one of them, or a proxy: /usr/share/fragwatch/proxy\n";

/// Answers a request unless a browser sent it to another name than this host has.
pub async fn check(request: Request, next: Next) -> Response {
    let name = uname().nodename().to_string_lossy().into_owned();
    let mut answer = if is_refused(request.uri().path(), request.headers(), &name) {
        (StatusCode::FORBIDDEN, REFUSED).into_response()
    } else {
        next.run(request).await
    };
    answer.headers_mut().extend(HEADERS);
    answer
}

fn is_refused(path: &str, headers: &HeaderMap, name: &str) -> bool {
    let is_of_program = !headers.contains_key(header::ACCEPT_LANGUAGE);
    if matches!(path, "/metrics" | "/healthz") && is_of_program {
        return false;
    }
    // Every browser sends it.
    let host = headers.get(header::HOST);
    host.is_some_and(|host| !is_own(host.as_bytes(), name))
}

/// Whether a `Host` is an IP address, `localhost` or `name`, in full or its first part.
fn is_own(host: &[u8], name: &str) -> bool {
    let Ok(authority) = Authority::try_from(host) else {
        return false;
    };
    let host = authority.host().trim_end_matches('.');
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let short = name.split('.').next().unwrap_or(name);
    let is = |name: &str| host.eq_ignore_ascii_case(name);
    address.parse::<IpAddr>().is_ok() || is("localhost") || is(name) || is(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_host_are_own() {
        for own in [
            "127.0.0.1:9843",
            "192.0.2.7",
            "[::1]:9843",
            "[2001:db8::7]",
            "localhost:9843",
            "LOCALHOST.",
            "kvm-7.example.com:9843",
            "KVM-7",
        ] {
            assert!(is_own(own.as_bytes(), "kvm-7.example.com"), "{own}");
        }
        for foreign in [
            "",
            "attacker.example:9843",
            "kvm-7.attacker.example",
            "127.0.0.1.attacker.example",
            "localhost.attacker.example",
            "kvm-70",
            "a b",
            "\u{e4}",
        ] {
            assert!(
                !is_own(foreign.as_bytes(), "kvm-7.example.com"),
                "{foreign}"
            );
        }
    }

    #[test]
    fn programs_ask_for_metrics_under_any_name() {
        let host = |name| HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(name))]);
        let refused = |path, headers: &HeaderMap| is_refused(path, headers, "kvm-7");
        let mut foreign = host("kvm.example.com");
        for path in ["/metrics", "/healthz"] {
            assert!(!refused(path, &foreign));
        }
        assert!(refused("/", &foreign) && refused("/api/history", &foreign));
        assert!(!refused("/", &host("kvm-7:9843")) && !refused("/", &HeaderMap::new()));
        foreign.insert(header::ACCEPT_LANGUAGE, HeaderValue::from_static("en"));
        for path in ["/metrics", "/healthz", "/"] {
            assert!(refused(path, &foreign));
        }
    }
}
