//! promtool, and a real Prometheus that scrapes the program under test.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::child::Child;
use super::daemon::{free_address, http_get};
use super::rundir::{self, Place};
use super::skip::Here;
use super::tools;

/// `prometheus` or `promtool`, where `tests/run` puts it, or the machine has it.
pub fn tool(name: &str) -> Here<PathBuf> {
    tools::have(name).or_else(|missing| {
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/usr/bin");
        let tool = unpacked.join(name);
        tool.is_file().then_some(tool).ok_or(missing)
    })
}

/// A Prometheus that scrapes one daemon each second.
pub struct Prometheus {
    address: SocketAddr,
    // Ends before its directory goes.
    process: Option<Child>,
    dir: PathBuf,
}

impl Prometheus {
    /// Starts `program`; the job is called fragwatch.
    pub fn start(program: &Path, daemon: SocketAddr) -> Prometheus {
        let config = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n\
             - {{job_name: fragwatch, static_configs: [{{targets: [\"{daemon}\"]}}]}}\n"
        );
        let dir = rundir::new_dir(Place::Disk).expect("the run directory");
        Self::with_config(program, dir, &config)
    }

    /// Starts `program` with a configuration, in a directory that is removed in the end. Its
    /// subdirectory `data` has the blocks of the past, if there are any.
    pub fn with_config(program: &Path, dir: PathBuf, config: &str) -> Prometheus {
        let address = free_address();
        fs::write(dir.join("prometheus.config"), config).unwrap();
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
        let process = Child::spawn(
            Command::new(program)
                .arg(flag("config.file", &dir.join("prometheus.config")))
                .arg(flag("storage.tsdb.path", &dir.join("data")))
                .arg(format!("--web.listen-address={address}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::create(dir.join("log")).unwrap()),
        )
        .unwrap();
        Prometheus {
            address,
            process: Some(process),
            dir,
        }
    }

    /// The base of its URLs.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All that it answers to an instant query; nothing while it does not answer at all.
    pub fn ask(&self, query: &str) -> Option<Value> {
        let query = serde_urlencoded::to_string([("query", query)]).unwrap();
        self.get(&format!("/api/v1/query?{query}"))
    }

    /// The JSON at a path of its API; none while it does not answer at all.
    pub fn get(&self, path: &str) -> Option<Value> {
        let answer = http_get(self.address, path).ok()?;
        serde_json::from_str(&answer.body).ok()
    }

    /// What an instant query finds: labels and values.
    pub fn query(&self, query: &str) -> Option<Vec<(Value, String)>> {
        let json = self.ask(query)?;
        let result = json["data"]["result"].as_array()?.iter();
        let value =
            |one: &Value| Some((one["metric"].clone(), one["value"][1].as_str()?.to_owned()));
        result.map(value).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.process = None;
        rundir::remove(&self.dir);
    }
}
