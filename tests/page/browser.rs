//! Chromium without a screen, over its DevTools protocol (<https://chromedevtools.github.io>): JSON with
//! a NUL behind each message, on two pipes.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::support::child::Child;
use crate::support::rundir::{self, Place};
use crate::support::{Here, tools};

/// One page in a browser.
pub struct Browser {
    _process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Option<String>,
    last: u64,
    events: Vec<Value>,
    home: PathBuf,
}

impl Browser {
    /// Starts Chromium with an empty page.
    pub fn start() -> Here<Browser> {
        let chromium = tools::have("chromium").or_else(|_| tools::have("chromium-browser"))?;
        let home = rundir::new_dir(Place::Disk).unwrap();
        // The pipes of the protocol are 3 and 4.
        let script = "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(chromium);
        command.args([
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",
            "--disable-gpu",
        ]);
        command.args([
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
        ]);
        command
            .arg(format!("--user-data-dir={}", home.display()))
            .arg("about:blank");
        command
            .env("HOME", &home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Child::spawn(&mut command).unwrap();
        let pipes = process.pipes();
        let to = pipes.stdin.take().unwrap();
        let from = BufReader::new(pipes.stdout.take().unwrap());
        let mut browser = Browser {
            _process: process,
            to,
            from,
            session: None,
            last: 0,
            events: Vec::new(),
            home,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Ok(browser)
    }

    /// Calls a method and returns its result; events until then are kept.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to
            .write_all(format!("{message}\0").as_bytes())
            .unwrap();
        loop {
            let message = self.message();
            if message["id"] == json!(self.last) {
                assert_eq!(message["error"], Value::Null, "{method}");
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    fn message(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes).unwrap();
        bytes.pop();
        serde_json::from_slice(&bytes).expect("the browser has ended")
    }

    /// Loads a page, and waits until its scripts and pictures are there.
    pub fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
        self.wait_for_load();
    }

    /// Waits for the end of a load that has been started.
    pub fn wait_for_load(&mut self) {
        let is_it = |event: &Value| event["method"] == "Page.loadEventFired";
        if let Some(at) = self.events.iter().position(is_it) {
            self.events.remove(at);
            return;
        }
        loop {
            let event = self.message();
            if is_it(&event) {
                return;
            }
            self.events.push(event);
        }
    }

    /// The value of an expression, and of its promise.
    pub fn eval(&mut self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", params);
        assert_eq!(result["exceptionDetails"], Value::Null, "{expression}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true: the page has drawn what it is to draw.
    pub fn until(&mut self, expression: &str) {
        let poll = format!(
            "new Promise((done) => {{ const look = () => ({expression}) ? done(true) : requestAnimationFrame(look); look(); }})"
        );
        self.eval(&poll);
    }

    /// Sets the width in pixels and the colour scheme, `light` or `dark`.
    pub fn look(&mut self, width: u32, scheme: &str) {
        let size =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call(
            "Emulation.setEmulatedMedia",
            json!({ "features": features }),
        );
    }

    /// Presses a key.
    pub fn key(&mut self, key: &str, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let mut params = json!({ "type": kind, "key": key, "code": key });
            if kind == "keyDown" && !text.is_empty() {
                params["text"] = json!(text);
            }
            if key == "Tab" {
                params["windowsVirtualKeyCode"] = json!(9);
            }
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    /// Drags the mouse from one place to another.
    pub fn drag(&mut self, from: (f64, f64), to: (f64, f64)) {
        for (kind, (x, y), buttons) in [
            ("mouseMoved", from, 0),
            ("mousePressed", from, 1),
            ("mouseMoved", to, 1),
            ("mouseReleased", to, 0),
        ] {
            let params = json!({ "type": kind, "x": x, "y": y, "button": "left", "buttons": buttons, "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", params);
        }
    }

    /// A picture of what is seen, or of the whole page.
    pub fn screenshot(&mut self, file: &Path, whole: bool) {
        let params = json!({ "format": "png", "captureBeyondViewport": whole });
        let picture = self.call("Page.captureScreenshot", params);
        let decoder = tools::have("base64").unwrap();
        let mut decode = Command::new(decoder);
        let mut decode = decode
            .arg("-d")
            .stdin(Stdio::piped())
            .stdout(fs::File::create(file).unwrap())
            .spawn()
            .unwrap();
        let text = picture["data"].as_str().unwrap();
        decode
            .stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        assert!(decode.wait().unwrap().success());
    }

    /// What the console has of errors, and the addresses of all requests.
    pub fn complaints_and_requests(&mut self) -> (Vec<String>, Vec<String>) {
        let (mut complaints, mut requests) = (Vec::new(), Vec::new());
        for event in &self.events {
            let params = &event["params"];
            match event["method"].as_str().unwrap_or_default() {
                "Runtime.exceptionThrown" | "Log.entryAdded" | "Page.javascriptDialogOpening" => {
                    complaints.push(params.to_string());
                }
                "Runtime.consoleAPICalled" if params["type"] == "error" => {
                    complaints.push(params.to_string());
                }
                "Network.requestWillBeSent" => {
                    let url = params["request"]["url"].as_str().unwrap();
                    requests.push(url.to_owned());
                }
                _ => {}
            }
        }
        (complaints, requests)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self._process.signal(rustix::process::Signal::KILL);
        rundir::remove(&self.home);
    }
}
