//! Runs the program under test.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::child::Child;
use super::rundir::{self, Place};

/// How long a started daemon may take until it answers.
const START: Duration = Duration::from_secs(60);

/// The program, to be given arguments. `output()` runs it; `assert_cmd::Command::from` makes
/// assertions of it.
pub fn fragwatch() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fragwatch"));
    // What the developer has set for himself, or systemd for the runner of the tests.
    for variable in [
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "JOURNAL_STREAM",
        "NO_COLOR",
        "COLUMNS",
    ] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

/// A `fragwatch run` that answers. Killed when it goes out of scope.
#[derive(Debug)]
pub struct RunningDaemon {
    process: Child,
    address: SocketAddr,
    dir: PathBuf,
    /// Of its state, and of its control socket.
    given: [PathBuf; 2],
}

impl RunningDaemon {
    /// Starts `fragwatch run --config FILE` and waits until it answers at `address`, which the
    /// configuration has as `metrics.listen`.
    ///
    /// # Panics
    /// If it does not, with what it wrote to stderr.
    pub fn start(config: &Path, address: SocketAddr) -> RunningDaemon {
        let mut command = fragwatch();
        command.arg("run").arg("--config").arg(config);
        RunningDaemon::spawn(&mut command, address)
    }

    /// As [`RunningDaemon::start`], of a command that is prepared otherwise.
    pub fn spawn(command: &mut Command, address: SocketAddr) -> RunningDaemon {
        let dir = rundir::new_dir(Place::quick()).expect("the run directory");
        // To a file: a pipe that nobody reads would stop a talkative daemon.
        // A state of its own, unless the test gives it one: two daemons on one are refused.
        let given = ["STATE_DIRECTORY", "RUNTIME_DIRECTORY"].map(|variable| {
            let given = command.get_envs().find(|(name, _)| *name == variable);
            let given = given.and_then(|(_, value)| value).map(PathBuf::from);
            let directory = given.unwrap_or_else(|| dir.clone());
            command.env(variable, &directory);
            directory
        });
        let [out, err] = ["stdout", "stderr"].map(|name| File::create(dir.join(name)).unwrap());
        let process = Child::spawn(command.stdout(out).stderr(err))
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let mut daemon = RunningDaemon {
            process,
            address,
            dir,
            given,
        };
        daemon.wait_for_answer();
        daemon
    }

    fn wait_for_answer(&mut self) {
        let deadline = Instant::now() + START;
        while let Err(e) = http_get(self.address, "/metrics") {
            let ended = self.process.wait(Duration::from_millis(20));
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "no answer from {}: {e}; {}; stderr:\n{}",
                self.address,
                ended.map_or("it runs".to_owned(), |status| status.to_string()),
                self.stderr()
            );
        }
    }

    /// Where it keeps its state, and unless the test says otherwise its control socket.
    pub fn directory(&self) -> &Path {
        &self.given[0]
    }

    /// A command that asks it: `fragwatch status` and so on.
    pub fn ask(&self, subcommand: &str) -> Command {
        let mut command = fragwatch();
        command
            .arg(subcommand)
            .env("STATE_DIRECTORY", &self.given[0])
            .env("RUNTIME_DIRECTORY", &self.given[1]);
        command
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// From now on [`RunningDaemon::get`] asks at `address`.
    pub fn moved_to(&mut self, address: SocketAddr) {
        self.address = address;
    }

    /// GET of `path`.
    ///
    /// # Panics
    /// If there is no answer, with what it wrote to stderr.
    pub fn get(&self, path: &str) -> Answer {
        http_get(self.address, path)
            .unwrap_or_else(|e| panic!("GET {path}: {e}; stderr:\n{}", self.stderr()))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until it ends of itself.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let ended = self.process.wait(within);
        ended.unwrap_or_else(|| panic!("it does not end; stderr:\n{}", self.stderr()))
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        self.said("stderr")
    }

    /// What it wrote to stdout so far.
    pub fn stdout(&self) -> String {
        self.said("stdout")
    }

    /// Waits until its stderr has `text`.
    ///
    /// # Panics
    /// If that does not come.
    pub fn wait_for_stderr(&self, text: &str, within: Duration) {
        let deadline = Instant::now() + within;
        while !self.stderr().contains(text) {
            let stderr = self.stderr();
            assert!(
                Instant::now() < deadline,
                "no {text:?} in stderr:\n{stderr}"
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn said(&self, name: &str) -> String {
        let bytes = fs::read(self.dir.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for RunningDaemon {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("stderr of the daemon:\n{}", self.stderr());
        }
        rundir::remove(&self.dir);
    }
}

/// An address at which nobody listens now.
pub fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("there is a free port")
}

/// An answer to [`http_get`].
#[derive(Debug)]
pub struct Answer {
    /// 200 and so on.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// What follows.
    pub body: String,
}

impl Answer {
    /// The value of the header `name`, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(n, _)| n == name)?;
        Some(value)
    }
}

/// A GET as the simplest client sends it; half a minute for everything that can take long.
pub fn http_get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    http(address, "GET", path)
}

/// As [`http_get`], with any method.
pub fn http(address: SocketAddr, method: &str, path: &str) -> io::Result<Answer> {
    http_with(address, method, path, &format!("Host: {address}"))
}

/// As [`http`], with any headers, one a line.
pub fn http_with(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
) -> io::Result<Answer> {
    let limit = Duration::from_secs(30);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    // HTTP/1.0: the answer ends with the connection and comes in one piece.
    let request = format!("{method} {path} HTTP/1.0\r\n{headers}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    parse(&text).ok_or_else(|| io::Error::other(format!("not an answer: {text:?}")))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    });
    Some(Answer {
        status: status.parse().ok()?,
        headers: headers.collect::<Option<_>>()?,
        body: body.to_owned(),
    })
}
