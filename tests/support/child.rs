//! Processes that do not outlive the test.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{self, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::rundir::{self, Place};

/// A child that is killed when it goes out of scope, and by the janitor if the test process is.
#[derive(Debug)]
pub struct Child {
    inner: process::Child,
    /// Tells the janitor.
    record: PathBuf,
}

impl Child {
    /// Starts `command`.
    pub fn spawn(command: &mut Command) -> io::Result<Child> {
        let records = rundir::of_process(Place::Disk).join("children");
        fs::create_dir_all(&records)?;
        let inner = command.spawn()?;
        let pid = inner.id();
        let start = rundir::start_time(pid).expect("a child is there until it is waited for");
        let record = records.join(format!("{pid}.{start}"));
        let child = Child { inner, record };
        fs::write(&child.record, "")?;
        Ok(child)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.inner.id()
    }

    /// Its ends of pipes.
    pub fn pipes(&mut self) -> &mut process::Child {
        &mut self.inner
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        // Not waited for, so the id is not yet another's.
        let _ = kill_process(Pid::from_child(&self.inner), signal);
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        self.inner.wait().expect("it is a child")
    }

    /// Waits for its end, but not longer than `within`.
    pub fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            match self.inner.try_wait().expect("it is a child") {
                None if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                ended => return ended,
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.wait(Duration::ZERO).is_none() {
            self.signal(Signal::KILL);
        }
        // A thread of it may hang in a stalled file system, which our caller resumes only after
        // us: leave it to the janitor then.
        if self.wait(Duration::from_secs(5)).is_some() {
            let _ = fs::remove_file(&self.record);
        } else {
            eprintln!("process {} does not die", self.id());
        }
    }
}
