//! The protocol of the lock: our client against the answers of the tests and the source of others; and
//! that the server of our other tests answers as airlock does.
//!
//! | source | what |
//! |---|---|
//! | zincati | <https://github.com/coreos/zincati>: docs/development/fleetlock/protocol.md, src/fleet_lock/mock_tests.rs and mod.rs |
//! | airlock | <https://github.com/coreos/airlock>: internal/server, internal/lock with semaphore_test.go, internal/herrors |
//! | poseidon | <https://github.com/poseidon/fleetlock>: internal/encode_test.go |

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use fragwatch::internals::fleet::{Denied, FleetLock};
use serde_json::{Value, json};

use crate::fleet::GROUP;
use crate::support::fleetlock::FleetLockServer;
use crate::support::free_address;

/// Of src/fleet_lock/mock_tests.rs of zincati.
const ID: &str = "e0f3745b108f471cbd4883c6fbed8cdd";
const WORKERS: &str = "mock-workers";

/// What a server was sent: the lines before the body, and the body.
struct Received {
    head: Vec<String>,
    body: Value,
}

/// A server of one connection. Ends it after these bytes; without any, when the client does.
fn answers(answer: Vec<u8>) -> (String, JoinHandle<Received>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serve = move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let lines = reader.by_ref().lines().map(Result::unwrap);
        let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
        let length = |line: &String| {
            let line = line.to_ascii_lowercase();
            line.strip_prefix("content-length: ")?.parse().ok()
        };
        let mut body = vec![0; head.iter().find_map(length).unwrap()];
        reader.read_exact(&mut body).unwrap();
        // The client may have ended the connection.
        drop(stream.write_all(&answer));
        if answer.is_empty() {
            drop(reader.read(&mut [0]));
        }
        let body = serde_json::from_slice(&body).unwrap();
        Received { head, body }
    };
    (url, thread::spawn(serve))
}

fn http(status: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn of(url: &str, group: &str, id: &str) -> FleetLock {
    FleetLock {
        url: url.to_owned(),
        group: group.to_owned(),
        id: id.to_owned(),
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

#[test]
fn a_request_is_that_of_the_protocol() {
    for (endpoint, takes) in [("pre-reboot", true), ("steady-state", false)] {
        for base in ["", "/base", "/base/"] {
            let (url, server) = answers(http("200 OK", ""));
            let lock = of(&format!("{url}{base}"), WORKERS, ID);
            match takes {
                true => wait(lock.take()).unwrap(),
                false => assert_eq!(wait(lock.release()), Ok(None)),
            }
            let Received { head, body } = server.join().unwrap();
            let base = base.trim_end_matches('/');
            assert_eq!(head[0], format!("POST {base}/v1/{endpoint} HTTP/1.1"));
            let is_protocol =
                |line: &String| line.eq_ignore_ascii_case("fleet-lock-protocol: true");
            assert!(head.iter().any(is_protocol), "{head:?}");
            assert_eq!(body, json!({"client_params": {"id": ID, "group": WORKERS}}));
        }
    }
}

/// What an answer means. For a lock that is requested: granted; not granted, and nothing is to be
/// released; perhaps granted. For one that is released: released; there is nothing; try again.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Meaning {
    Done,
    Nothing,
    Perhaps,
}
use Meaning::{Done, Nothing, Perhaps};

/// The meaning of an answer for both requests, and what is shown of it.
fn meaning(answer: &[u8]) -> ([Meaning; 2], String) {
    let (url, server) = answers(answer.to_owned());
    let taken = wait(of(&url, WORKERS, ID).take());
    server.join().unwrap();
    let (of_taken, text) = match taken {
        Ok(()) => (Done, String::new()),
        Err(Denied::Refused(text)) => (Nothing, text),
        Err(Denied::Unclear(text) | Denied::Failed(text)) => (Perhaps, text),
        Err(Denied::Unsent(text)) => panic!("{text}"),
    };
    let (url, server) = answers(answer.to_owned());
    let released = wait(of(&url, WORKERS, ID).release());
    server.join().unwrap();
    let of_released = match released {
        Ok(None) => Done,
        Ok(Some(_)) => Nothing,
        Err(_) => Perhaps,
    };
    ([of_taken, of_released], text)
}

#[test]
fn each_answer_has_one_meaning() {
    let error = |kind: &str, value: &str| json!({"kind": kind, "value": value}).to_string();
    let full = "semaphore currently full, all slots are locked already";
    let identity = "failed to validate client identity: empty client group";
    let held = "reboot lease unavailable, held by e0f3745b108f471cbd4883c6fbed8cdd";
    for (source, status, kind, value, means) in [
        (
            "zincati: test_pre_reboot_error",
            "404",
            "f1",
            "pre-reboot failure",
            Nothing,
        ),
        (
            "zincati: test_service_rejection_display",
            "466",
            "failure_foo",
            "failed to perform foo",
            Nothing,
        ),
        (
            "zincati: protocol.md, Errors",
            "409",
            "failed_lock_semaphore_full",
            full,
            Nothing,
        ),
        (
            "airlock: validateIdentity",
            "400",
            "invalid_client_identity",
            identity,
            Nothing,
        ),
        (
            "airlock: preRebootHandler",
            "400",
            "unknown_group",
            "unknown group \"x\"",
            Nothing,
        ),
        (
            "airlock: preRebootHandler",
            "500",
            "failed_sem_init",
            "context deadline exceeded",
            Perhaps,
        ),
        (
            "airlock: addHolder",
            "500",
            "failed_lock",
            "all 2 semaphore slots currently locked",
            Perhaps,
        ),
        (
            "airlock: Manager.set",
            "500",
            "failed_lock",
            "conflict on semaphore detected, aborting",
            Perhaps,
        ),
        (
            "airlock: TestJSON",
            "500",
            "generic_kind",
            "generic value",
            Perhaps,
        ),
        (
            "poseidon: TestEncodeReply",
            "405",
            "method_not_allowed",
            "required method POST",
            Nothing,
        ),
        (
            "poseidon: TestEncodeReply",
            "400",
            "missing_header",
            "missing required header fleet-lock-protocol: true",
            Nothing,
        ),
        (
            "poseidon: TestEncodeReply",
            "400",
            "decode_error",
            "error decoding message",
            Nothing,
        ),
        (
            "poseidon: TestEncodeReply",
            "500",
            "internal_error",
            "error getting reboot lease",
            Perhaps,
        ),
        (
            "poseidon: TestEncodeReply",
            "423",
            "lock_held",
            held,
            Nothing,
        ),
    ] {
        // Go's http.Error adds a line break.
        let (found, text) = meaning(&http(&format!("{status} X"), error(kind, value) + "\n"));
        assert_eq!(found, [means; 2], "{source}");
        let value = value.replace('"', "\\\"");
        for part in [status, kind, &value] {
            assert!(text.contains(part), "{source}: {text}");
        }
    }
}

#[test]
fn an_answer_of_another_form_means_what_its_status_does() {
    let [html, types] = ["<html>\n<h1>Bad</h1>", r#"{"kind": 1, "value": ["x"]}"#];
    for (source, status, body, means) in [
        (
            "poseidon: TestEncodeReply",
            "200 OK",
            &br#"{"kind": "other", "value": "message"}"#[..],
            Done,
        ),
        ("zincati: map_response", "204 No Content", b"", Done),
        ("zincati: test_http_error_display", "433 X", b"", Nothing),
        ("zincati: test_http_error_display", "533 X", b"", Perhaps),
        (
            "zincati: RemoteJsonError, other types",
            "400 X",
            types.as_bytes(),
            Nothing,
        ),
        (
            "zincati: RemoteJsonError, other types",
            "500 X",
            types.as_bytes(),
            Perhaps,
        ),
        (
            "zincati: RemoteJsonError, no object",
            "500 X",
            b"null",
            Perhaps,
        ),
        ("no UTF-8", "400 X", b"\xff\xfe\x1b[2J", Nothing),
        (
            "Go's net/http: no such path",
            "404 Not Found",
            b"404 page not found\n",
            Nothing,
        ),
        ("a proxy", "502 Bad Gateway", html.as_bytes(), Perhaps),
        (
            "a proxy",
            "503 Service Unavailable",
            html.as_bytes(),
            Perhaps,
        ),
        ("a proxy", "504 Gateway Timeout", html.as_bytes(), Perhaps),
        ("a proxy", "401 Unauthorized", html.as_bytes(), Perhaps),
        ("a proxy", "403 Forbidden", html.as_bytes(), Perhaps),
        (
            "a proxy",
            "407 Proxy Authentication Required",
            html.as_bytes(),
            Perhaps,
        ),
        ("a proxy", "408 Request Timeout", html.as_bytes(), Perhaps),
        ("a proxy", "429 Too Many Requests", html.as_bytes(), Perhaps),
        ("no HTTP status", "999 X", b"", Perhaps),
    ] {
        let (found, text) = meaning(&http(status, body));
        assert_eq!(found, [means; 2], "{source}: {status}");
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}

/// protocol.md: the header is there so that no request is taken that a redirection leads to.
#[test]
fn a_redirection_is_not_followed() {
    let elsewhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let address = elsewhere.local_addr().unwrap();
    for status in [301, 302, 303, 307, 308] {
        let answer = format!(
            "HTTP/1.1 {status} X\r\nLocation: http://{address}/v1/pre-reboot\r\n\
             Content-Length: 0\r\n\r\n"
        );
        assert_eq!(meaning(answer.as_bytes()).0, [Perhaps; 2], "{status}");
    }
    assert!(elsewhere.accept().is_err());
}

#[test]
fn what_is_no_answer_may_have_been_granted() {
    let long = vec![b'x'; 5 << 20];
    for (what, answer) in [
        ("an end", b"\r\n".to_vec()),
        ("another protocol", b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()),
        ("half a head", b"HTTP/1.1 200".to_vec()),
        (
            "half a body",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx".to_vec(),
        ),
        ("a long body", http("200 OK", long)),
        // Until the limit of the client.
        ("silence", Vec::new()),
    ] {
        assert_eq!(meaning(&answer).0, [Perhaps; 2], "{what}");
    }
    let lock = of(&format!("http://{}", free_address()), WORKERS, ID);
    assert!(matches!(wait(lock.take()), Err(Denied::Unsent(_))));
}

/// The tests of airlock's semaphore (internal/lock/semaphore_test.go), over the network.
fn has_one_slot(url: &str, group: &str, holders: &dyn Fn(&str) -> BTreeSet<String>) {
    let [a, b] = ["a", "b"].map(|id| of(url, group, id));
    let held = |ids: &[&str]| {
        let ids = ids.iter().map(|id| (*id).to_owned());
        assert_eq!(holders(group), ids.collect());
    };
    // TestSingleLock.
    wait(a.take()).unwrap();
    held(&["a"]);
    assert_eq!(wait(a.release()), Ok(None));
    held(&[]);
    // TestRecursivelock.
    wait(a.take()).unwrap();
    wait(a.take()).unwrap();
    // addHolder.
    let full = wait(b.take());
    let text = "all 1 semaphore slots currently locked";
    assert!(
        matches!(&full, Err(Denied::Unclear(why)) if why.contains(text)),
        "{full:?}"
    );
    // removeHolderIfPresent.
    assert_eq!(wait(b.release()), Ok(None));
    held(&["a"]);
    assert_eq!(wait(a.release()), Ok(None));
    held(&[]);
}

fn has_three_slots(url: &str, group: &str, holders: &dyn Fn(&str) -> BTreeSet<String>) {
    let [a, b, c] = ["a", "b", "c"].map(|id| of(url, group, id));
    let held = |ids: [&str; 2]| assert_eq!(holders(group), ids.map(str::to_owned).into());
    // TestHolderOrdering.
    for lock in [&c, &a, &b] {
        wait(lock.take()).unwrap();
    }
    assert_eq!(wait(b.release()), Ok(None));
    held(["a", "c"]);
}

#[test]
fn the_server_of_these_tests_passes_the_tests_of_airlock() {
    let server = FleetLockServer::start(1);
    has_one_slot(&server.url(), "one", &|group| server.holders(group));
    server.set_slots(3);
    has_three_slots(&server.url(), "three", &|group| server.holders(group));
}

/// Status and kind of error of the answer to a request as it is.
fn raw(address: SocketAddr, path: &str, header: &str, body: &str) -> (String, Value) {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\n{header}Content-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    // At once: what airlock receives after its answer would reset the connection.
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let kind = serde_json::from_str::<Value>(body).map(|error| error["kind"].clone());
    (
        head.lines().next().unwrap().to_owned(),
        kind.unwrap_or_default(),
    )
}

/// The answers are those that airlock at commit a3585ed gave to the same requests.
#[test]
fn the_server_of_these_tests_answers_as_airlock_does() {
    let server = FleetLockServer::start(1);
    let header = "Fleet-Lock-Protocol: true\r\n";
    let client =
        |id: &str, group: &str| json!({"client_params": {"id": id, "group": group}}).to_string();
    let invalid = ("400 Bad Request", json!("invalid_client_identity"));
    let granted = ("200 OK", Value::Null);
    let full = ("500 Internal Server Error", json!("failed_lock"));
    let (take, release) = ("/v1/pre-reboot", "/v1/steady-state");
    for (path, header, body, (status, kind)) in [
        (take, "", client("a", GROUP), &invalid),
        (
            take,
            "Fleet-Lock-Protocol: false\r\n",
            client("a", GROUP),
            &invalid,
        ),
        (take, header, "{".to_owned(), &invalid),
        (take, header, "{}".to_owned(), &invalid),
        (take, header, client("", GROUP), &invalid),
        (take, header, client("a", ""), &invalid),
        (
            "/v2/pre-reboot",
            header,
            client("a", GROUP),
            &("404 Not Found", Value::Null),
        ),
        (release, header, client("a", GROUP), &granted),
        (take, header, client("a", GROUP), &granted),
        (take, header, client("a", GROUP), &granted),
        (take, header, client("b", GROUP), &full),
        (release, "", client("a", GROUP), &invalid),
        (release, header, client("b", GROUP), &granted),
        (release, header, client("a", GROUP), &granted),
        (take, header, client("b", GROUP), &granted),
    ] {
        assert_eq!(
            raw(server.address(), path, header, &body),
            (format!("HTTP/1.1 {status}"), kind.clone()),
            "{path} {header} {body}"
        );
    }
}
