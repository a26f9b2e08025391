//! A server of FleetLock, after the protocol that Zincati publishes
//! (<https://coreos.github.io/zincati/development/fleetlock/protocol/>): at most a number of hosts of a
//! group have the lock. It answers as airlock does (internal/server and internal/lock of
//! <https://github.com/coreos/airlock>), but has every group, and refuses what the protocol does not
//! have.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

#[derive(Debug, Default)]
struct Slots {
    number: usize,
    /// The hosts that have the lock, by group.
    held: BTreeMap<String, BTreeSet<String>>,
    /// The most that any group had at once.
    most: usize,
}

/// Serves for as long as the process lives.
pub struct FleetLockServer {
    address: SocketAddr,
    slots: Arc<Mutex<Slots>>,
}

impl FleetLockServer {
    /// With a number of slots for each group.
    pub fn start(number: usize) -> FleetLockServer {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let slots = Slots {
            number,
            ..Slots::default()
        };
        let slots = Arc::new(Mutex::new(slots));
        let ours = Arc::clone(&slots);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let slots = Arc::clone(&ours);
                let answer = move || drop(answer(stream, &slots));
                let thread = thread::Builder::new().stack_size(256 << 10);
                thread.spawn(answer).unwrap();
            }
        });
        FleetLockServer { address, slots }
    }

    /// What `maintenance.lock.url` is to be.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on there are so many; those that have the lock keep it.
    pub fn set_slots(&self, number: usize) {
        self.slots.lock().unwrap().number = number;
    }

    /// The hosts of a group that have the lock.
    pub fn holders(&self, group: &str) -> BTreeSet<String> {
        let slots = self.slots.lock().unwrap();
        slots.held.get(group).cloned().unwrap_or_default()
    }

    /// The most hosts of one group that had it at once.
    pub fn most(&self) -> usize {
        self.slots.lock().unwrap().most
    }
}

fn answer(mut stream: TcpStream, slots: &Mutex<Slots>) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_ascii_lowercase()),
        }
    }
    let header = |name: &str| {
        let mut values = head.iter().filter_map(|line| line.strip_prefix(name));
        values.next().map(|value| value.trim().to_owned())
    };
    let length = header("content-length:").and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let is_protocol = header("fleet-lock-protocol:").is_some_and(|value| value == "true");
    let (status, answer) = match is_protocol {
        true => decide(head.first().map_or("", |line| line), &body, slots),
        false => invalid("wrong 'fleet-lock-protocol' header"),
    };
    let length = answer.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{answer}"
    )
}

/// As Go's `http.Error`: with a line break.
fn refusal(kind: &str, value: &str) -> String {
    format!("{}\n", json!({"kind": kind, "value": value}))
}

fn invalid(why: &str) -> (&'static str, String) {
    let value = format!("failed to validate client identity: {why}");
    (
        "400 Bad Request",
        refusal("invalid_client_identity", &value),
    )
}

fn decide(request: &str, body: &[u8], slots: &Mutex<Slots>) -> (&'static str, String) {
    let Ok(client) = serde_json::from_slice::<Value>(body) else {
        return invalid("no JSON");
    };
    let parameter = |name: &str| {
        let value = client["client_params"][name].as_str()?;
        let usual = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
        (!value.is_empty() && value.chars().all(usual)).then(|| value.to_owned())
    };
    let Some(group) = parameter("group") else {
        return invalid("empty client group");
    };
    let Some(id) = parameter("id") else {
        return invalid("empty client ID");
    };
    let mut slots = slots.lock().unwrap();
    let number = slots.number;
    let held = slots.held.entry(group).or_default();
    match request {
        "post /v1/pre-reboot http/1.1" if held.contains(&id) || held.len() < number => {
            held.insert(id);
            let now = held.len();
            slots.most = slots.most.max(now);
        }
        "post /v1/pre-reboot http/1.1" => {
            let value = format!("all {number} semaphore slots currently locked");
            let refusal = refusal("failed_lock", &value);
            return ("500 Internal Server Error", refusal);
        }
        "post /v1/steady-state http/1.1" => _ = held.remove(&id),
        _ => return ("404 Not Found", "404 page not found\n".to_owned()),
    }
    ("200 OK", String::new())
}
