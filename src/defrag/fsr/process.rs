//! The xfs_fsr process: started behind the gate, monitored, signalled, reaped.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

use crate::defrag::engine::Controls;
use crate::defrag::gate::Gate;
use crate::defrag::guard::Target;
use crate::defrag::messages::printable;
use crate::defrag::run::{Action, Input, Machine};
use crate::model::{Bytes, NamedProcess, Stop};
use crate::sys::child::{has_ended, lower_priority};
use crate::sys::proc::counters;

/// Delay from the closing of its output to its exit.
const EXIT_DELAY: Duration = Duration::from_millis(1);
/// Maximum that it may read and write before it has opened the image.
const ASTRAY: Bytes = Bytes(4 << 20);
/// Maximum length of kept output: a few lines with a path of 4096 bytes each.
const LONGEST_OUTPUT: usize = 16_384;

/// A running xfs_fsr.
pub(super) struct XfsFsr {
    child: Child,
    gate: Gate,
    output: File,
    printed: Vec<u8>,
    /// Bytes read and written.
    pub(super) moved: (Bytes, Bytes),
    /// The process that waits at the gate.
    pub(super) blocked: Option<NamedProcess>,
    /// Our end of its terminal.
    _terminal: Option<OwnedFd>,
}

/// The end of an xfs_fsr.
pub(super) struct End {
    /// `None` if it has not ended.
    pub(super) status: Option<ExitStatus>,
    pub(super) printed: String,
    pub(super) blocked: Option<NamedProcess>,
    /// Bytes read and written.
    pub(super) moved: (Bytes, Bytes),
}

impl XfsFsr {
    pub(super) fn start(program: &Path, target: &Target, mut gate: Gate) -> io::Result<XfsFsr> {
        let (output, its_output) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&output, true)?;
        let (terminal, input) = match terminal() {
            Ok((ours, its)) => (Some(ours), Stdio::from(its)),
            Err(_) => (None, Stdio::null()),
        };
        let mut command = Command::new(program);
        command
            .arg("-v")
            .arg(&target.path)
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(input)
            .stdout(its_output.try_clone()?)
            .stderr(its_output)
            .process_group(0);
        lower_priority(&mut command, gate.descriptor());
        let child = command.spawn()?;
        gate.set_worker(child.id().cast_signed());
        // Closes our copies of its ends of pipe and terminal, and of its gate descriptor.
        drop(command);
        Ok(XfsFsr {
            child,
            gate,
            output: output.into(),
            printed: Vec::new(),
            moved: (Bytes(0), Bytes(0)),
            blocked: None,
            _terminal: terminal,
        })
    }

    /// Waits for an event, for `most` at most.
    pub(super) fn wait(&self, most: Duration) {
        let mut events = vec![PollFd::new(&self.output, PollFlags::IN)];
        // A process already known to wait there would make poll(2) return at once every time.
        if self.blocked.is_none() {
            events.push(PollFd::new(&self.gate, PollFlags::IN));
        }
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: most.subsec_nanos().into(),
        };
        let _ = poll(&mut events, Some(&timeout));
        let closed = |event: &PollFd<'_>| event.revents().contains(PollFlags::HUP);
        if events.first().is_some_and(closed) {
            // It is about to end, and its pipe is always ready from now on.
            std::thread::sleep(EXIT_DELAY);
        }
    }

    /// The events since the last call.
    pub(super) fn inputs(&mut self, controls: &mut Controls<'_, '_>) -> Vec<Input> {
        self.read_output();
        let has_ended = has_ended(&self.child);
        let before = self.moved;
        // /proc/PID/io remains readable after the exit, until the process is waited for.
        self.moved = moved(&controls.request.host.proc, self.child.id()).unwrap_or(before);
        if has_ended {
            return vec![Input::Exited];
        }
        let in_all = self.moved.0.saturating_add(self.moved.1);
        let mut inputs = Vec::from_iter(self.serve_gate().map(Input::Stop));
        inputs.extend(controls.inputs(in_all));
        inputs.extend((self.moved != before).then_some(Input::Moved));
        if in_all > ASTRAY && !self.gate.worker_came() {
            inputs.push(Input::Stop(Stop::Astray));
        }
        inputs.push(Input::Tick);
        inputs
    }

    /// Lets ours in. Returns [`Stop::Opened`] for the first process that has to wait, and if the
    /// gate cannot be served any more, because then no process may be left waiting at it.
    fn serve_gate(&mut self) -> Option<Stop> {
        if self.blocked.is_some() {
            return None;
        }
        match self.gate.let_ours_in() {
            Ok(blocked) => {
                self.blocked = Some(blocked?);
                Some(Stop::Opened)
            }
            Err(_) => Some(Stop::Opened),
        }
    }

    /// Passes an input to the machine and carries out the resulting actions.
    pub(super) fn step(&self, machine: &mut Machine, now: Duration, input: Input) {
        for action in machine.step(now, input) {
            match action {
                Action::Pause => self.signal(Signal::STOP),
                Action::Continue => self.signal(Signal::CONT),
                Action::Terminate => self.signal(Signal::TERM),
                Action::Kill => self.signal(Signal::KILL),
                Action::Abandon => {}
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // Not waited for yet, so the PID is still valid.
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }

    fn read_output(&mut self) {
        let mut buffer = [0; 1024];
        // At most the capacity of a pipe per call, in case it never stops printing.
        for _ in 0..64 {
            match self.output.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(length) => self.printed.extend_from_slice(&buffer[..length]),
            }
        }
        let too_much = self.printed.len().saturating_sub(LONGEST_OUTPUT);
        self.printed.drain(..too_much);
    }

    /// Waits for the process if it has ended, and opens the gate.
    pub(super) fn end(mut self) -> End {
        let status = has_ended(&self.child).then(|| {
            // Its child processes, if any.
            self.signal(Signal::KILL);
            self.child.wait().ok()
        });
        self.read_output();
        End {
            status: status.flatten(),
            printed: printable(&self.printed),
            blocked: self.blocked,
            moved: self.moved,
        }
    }
}

fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let its = ioctl_tiocgptpeer(&ours, flags)?;
    Ok((ours, its))
}

/// Bytes read from and written to disk.
fn moved(proc: &Path, pid: u32) -> Option<(Bytes, Bytes)> {
    let text = std::fs::read(proc.join(format!("{pid}/io"))).ok()?;
    let field = |name: &[u8]| counters(&text).find(|(is, _)| *is == name);
    let (_, read) = field(b"read_bytes")?;
    let (_, written) = field(b"write_bytes")?;
    Some((Bytes(read), Bytes(written)))
}
