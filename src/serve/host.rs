//! Refuses what a web page of somebody else asks through a name of its own (DNS rebinding).
//!
//! Such a page has its name resolve to the address of this daemon, whereupon the browser regards both
//! as one origin and lets the page read the answers. The requests carry that name in `Host`
//! (RFC 9110, 7.2), which no page can change. Answered are IP addresses and `localhost`, which no DNS
//! is asked for, and the names of this host. Prometheus asks for `/metrics` under any name: there a
//! request is refused only if it has `Accept-Language`, which browsers append to all requests (Fetch
//! Standard, 4 "Fetching") and Prometheus does not send. `/healthz` has nothing to be read.

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
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
const REFUSED: &str = "fragwatch answers browsers only at an IP address of this host, as localhost, and by \
    the names that the host has in uname -n and /etc/hosts (as of the daemon's start), so that no other \
    web page reads this through a name of its own. Use one of them, or a proxy that sends one as Host: \
    /usr/share/fragwatch/proxy\n";

/// The names of this host: that of `uname`, its first part, and those on a line with one of them in
/// `/etc/hosts`, where a host has its full name (hostname(1)).
pub fn names() -> Arc<[String]> {
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    names_of(&uname().nodename().to_string_lossy(), &hosts).into()
}

fn names_of(node: &str, hosts: &str) -> Vec<String> {
    let mut names = vec![node.to_owned()];
    names.extend(node.split('.').next().map(str::to_owned));
    let entry = |line: &'_ str| -> Vec<String> {
        let line = line.split('#').next().unwrap_or_default();
        line.split_whitespace().skip(1).map(str::to_owned).collect()
    };
    let own = names.clone();
    let entries = hosts.lines().map(entry);
    let own_entries = entries.filter(|its| its.iter().any(|name| own.contains(name)));
    names.extend(own_entries.flatten());
    names
}

/// Answers a request unless a browser sent it to another name than this host has.
pub async fn check(State(names): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    let mut answer = if is_refused(request.uri().path(), request.headers(), &names) {
        (StatusCode::FORBIDDEN, REFUSED).into_response()
    } else {
        next.run(request).await
    };
    answer.headers_mut().extend(HEADERS);
    answer
}

fn is_refused(path: &str, headers: &HeaderMap, names: &[String]) -> bool {
    let is_of_program = !headers.contains_key(header::ACCEPT_LANGUAGE);
    if path == "/healthz" || path == "/metrics" && is_of_program {
        return false;
    }
    // Every browser sends it.
    let host = headers.get(header::HOST);
    host.is_some_and(|host| !is_own(host.as_bytes(), names))
}

/// Whether a `Host` is an IP address, `localhost` or one of these names.
fn is_own(host: &[u8], names: &[String]) -> bool {
    let Ok(authority) = Authority::try_from(host) else {
        return false;
    };
    let host = authority.host().trim_end_matches('.');
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let is = |name: &str| host.eq_ignore_ascii_case(name);
    address.parse::<IpAddr>().is_ok() || is("localhost") || names.iter().any(|name| is(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_host_are_own() {
        let full = names_of("kvm-7.example.com", "");
        let hosts = "# 192.0.2.1 kvm-7 old\n127.0.0.1 localhost\n127.0.1.1 kvm-7.example.com kvm-7 # kvm-7 x\n\
                     192.0.2.9 kvm-70.example.com kvm-70\n";
        let short = names_of("kvm-7", hosts);
        for names in [&full, &short] {
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
                assert!(is_own(own.as_bytes(), names), "{own}");
            }
            for foreign in [
                "",
                "attacker.example:9843",
                "kvm-7.attacker.example",
                "127.0.0.1.attacker.example",
                "localhost.attacker.example",
                "kvm-70",
                "old",
                "x",
                "a b",
                "\u{e4}",
            ] {
                assert!(!is_own(foreign.as_bytes(), names), "{foreign}");
            }
        }
    }

    #[test]
    fn programs_ask_for_metrics_under_any_name() {
        let host = |name| HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(name))]);
        let names = names_of("kvm-7", "");
        let refused = |path, headers: &HeaderMap| is_refused(path, headers, &names);
        let mut foreign = host("kvm.example.com");
        for path in ["/metrics", "/healthz"] {
            assert!(!refused(path, &foreign));
        }
        assert!(refused("/", &foreign) && refused("/api/history", &foreign));
        assert!(!refused("/", &host("kvm-7:9843")) && !refused("/", &HeaderMap::new()));
        foreign.insert(header::ACCEPT_LANGUAGE, HeaderValue::from_static("en"));
        assert!(refused("/metrics", &foreign) && refused("/", &foreign));
        assert!(!refused("/healthz", &foreign));
    }
}
