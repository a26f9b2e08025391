//! The examples for a proxy, with the programs they are for: TLS, a password, and nothing but reading.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::child::Child;
use crate::support::rundir::{self, Place};
use crate::support::{self, Here, RunningDaemon, tools};

const PASSWORD: &str = "correct horse";
/// The example's hash, of no password.
const NO_HASH: &str = "$2a$14$REPLACE.THIS.BY.THE.HASH.OF.A.PASSWORD";

/// A certificate, and what a proxy needs beside it.
struct Tls(PathBuf);

impl Tls {
    fn new() -> Here<Tls> {
        let tls = Tls(rundir::new_dir(Place::Disk).unwrap());
        let mut command = Command::new(tools::have("openssl")?);
        command.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ]);
        command.args([
            "-subj",
            "/CN=localhost",
            "-days",
            "1",
            "-keyout",
            "host.key",
            "-out",
            "host.crt",
        ]);
        tools::run(command.current_dir(&tls.0))?;
        Ok(tls)
    }

    /// An example, with the places of this test.
    fn example(&self, name: &str, daemon: &str, port: u16) -> String {
        let example = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("packaging/proxy")
            .join(name);
        let text = fs::read_to_string(example).unwrap();
        for part in ["/etc/fragwatch/tls/", "127.0.0.1:9843", "9844"] {
            assert!(text.contains(part), "{name} has no {part}");
        }
        text.replace("/etc/fragwatch/tls/", &format!("{}/", self.0.display()))
            .replace("127.0.0.1:9843", daemon)
            .replace("9844", &port.to_string())
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        rundir::remove(&self.0);
    }
}

/// A daemon without images.
fn daemon(directory: &Path) -> (RunningDaemon, String) {
    let address = support::free_address();
    let config = directory.join("fragwatch.toml");
    let text = format!(
        "[images]\npaths = [{directory:?}]\n[metrics]\nlisten = \"{address}\"\n[rescue]\nenabled = false\n"
    );
    fs::write(&config, text).unwrap();
    (RunningDaemon::start(&config, address), address.to_string())
}

/// The status of an answer through the proxy, and its headers.
fn curl(port: u16, arguments: &[&str]) -> Option<(String, String)> {
    let mut curl = Command::new(tools::have("curl").unwrap());
    curl.args([
        "-sk",
        "-o",
        "/dev/null",
        "-D",
        "-",
        "-w",
        "%{http_code}",
        "--max-time",
        "10",
    ]);
    let output = curl
        .args(arguments)
        .arg(format!("https://127.0.0.1:{port}/"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (head, status) = text.split_at(text.len().checked_sub(3)?);
    output
        .status
        .success()
        .then(|| (status.to_owned(), head.to_lowercase()))
}

fn passes_only_what_it_should(port: u16) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while curl(port, &[]).is_none() {
        assert!(Instant::now() < deadline, "the proxy does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = |arguments: &[&str]| curl(port, arguments).unwrap().0;
    let user = format!("operator:{PASSWORD}");
    assert_eq!(status(&[]), "401");
    assert_eq!(status(&["-u", "operator:wrong"]), "401");
    let (answer, head) = curl(port, &["-u", &user]).unwrap();
    assert_eq!(answer, "200");
    // Whatever name the proxy is known by.
    let named = ["-u", &user, "-H", "Host: kvm.example.com"];
    assert_eq!(status(&named), "200");
    for header in [
        "content-security-policy: default-src 'none'",
        "strict-transport-security",
    ] {
        assert!(head.contains(header), "no {header} in {head}");
    }
    let refused = status(&["-u", &user, "-X", "POST"]);
    assert!(["403", "405"].contains(&refused.as_str()), "{refused}");
}

#[test]
fn nginx_serves_the_pages_with_tls_and_a_password() {
    let nginx = support::require!(tools::have("nginx"));
    let tls = support::require!(Tls::new());
    let (_daemon, address) = daemon(&tls.0);
    let port = support::free_address().port();
    let mut hash = Command::new(support::require!(tools::have("openssl")));
    let hash = hash.args(["passwd", "-6", PASSWORD]).output().unwrap();
    let hash = String::from_utf8(hash.stdout).unwrap();
    fs::write(tls.0.join("htpasswd"), format!("operator:{hash}")).unwrap();
    fs::write(
        tls.0.join("site.conf"),
        tls.example("nginx.conf", &address, port),
    )
    .unwrap();
    let directory = tls.0.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {directory}/{name};\n"))
        .concat();
    let config = format!(
        "daemon off;\nuser root;\npid {directory}/pid;\nerror_log {directory}/error.log;\nevents {{}}\n\
         http {{\naccess_log off;\n{temporary}include {directory}/site.conf;\n}}\n"
    );
    let file = tls.0.join("nginx.conf");
    fs::write(&file, config).unwrap();
    support::require!(tools::run(
        Command::new(&nginx)
            .arg("-t")
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(&tls.0)
    ));
    let mut command = Command::new(&nginx);
    command
        .arg("-c")
        .arg(&file)
        .arg("-p")
        .arg(&tls.0)
        .stdin(Stdio::null());
    // It ends in order, with its workers.
    let nginx = Child::spawn(&mut command).unwrap();
    passes_only_what_it_should(port);
    nginx.signal(rustix::process::Signal::TERM);
    let mut nginx = nginx;
    assert!(nginx.wait(Duration::from_secs(20)).is_some());
}

#[test]
fn caddy_serves_the_pages_with_tls_and_a_password() {
    let caddy = support::require!(tools::have("caddy"));
    let tls = support::require!(Tls::new());
    let (_daemon, address) = daemon(&tls.0);
    let port = support::free_address().port();
    let hash = Command::new(&caddy)
        .args(["hash-password", "--plaintext", PASSWORD])
        .output()
        .unwrap();
    let hash = String::from_utf8(hash.stdout).unwrap();
    let text = tls.example("Caddyfile", &address, port);
    assert!(text.contains(NO_HASH));
    let file = tls.0.join("Caddyfile");
    fs::write(&file, text.replace(NO_HASH, hash.trim())).unwrap();
    let mut command = Command::new(&caddy);
    command
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(&file);
    command
        .env("HOME", &tls.0)
        .env("XDG_DATA_HOME", &tls.0)
        .stdin(Stdio::null());
    let _caddy =
        Child::spawn(command.stderr(fs::File::create(tls.0.join("log")).unwrap())).unwrap();
    passes_only_what_it_should(port);
}
