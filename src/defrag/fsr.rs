//! Runs xfs_fsr on one image: behind the guards and the gate, humbly, watched, and to an end.
//!
//! - It is given the image's path alone, absolute and canonical. A directory or a mount point would
//!   make it defragment the whole file system; only regular files come here.
//! - Its standard input is a terminal of our own making: with anything else it writes to syslog
//!   instead of its standard output (`gflag = !isatty(0)`, fsr/xfs_fsr.c). Where there is no
//!   terminal to be had it is /dev/null, and what it says is in syslog.
//! - Disk class idle, nice 19, a process group of its own. Bandwidth and pressure are kept by making
//!   it stand still (SIGSTOP, SIGCONT): that takes effect between two of its system calls, so never
//!   with a lock held. A limit by cgroup (io.max) would be smoother, but needs a group delegated to
//!   the service and the number of the disk below.
//! - How far it is, /proc/PID/io says. The image is asked nothing while xfs_fsr works: in its final
//!   swap it holds the file's locks, and the question would hang.
//! - Time limits are ours; its own (`-t`) has no effect on single files.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

use super::awake::Awake;
use super::gate::Gate;
use super::guard::{self, Facts, Refusal, Target};
use super::messages::{self, Messages};
use super::meter::Meter;
use super::pressure::{Asked, Gauge, WithoutIo};
use super::run::{Action, Hold, Input, Machine, State};
use super::{Host, leftovers};
use crate::config::settings::Defrag;
use crate::model::{
    Account, Borders, Bytes, Engine, ExtentCount, RunOutcome, RunReport, Stop, Visitor,
};
use crate::probe::{open, reason};
use crate::sys::child::humble;
use crate::sys::fsxattr;

/// How long xfs_fsr may do nothing. Its final swap moves nothing that /proc/PID/io shows, and takes
/// minutes with millions of extents and reverse mapping.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often it is looked at.
const BEAT: Duration = Duration::from_millis(20);
/// The same while it is to end.
const LAST_BEAT: Duration = Duration::from_millis(10);
/// From closing its output to its end.
const LAST_BREATH: Duration = Duration::from_millis(1);
/// How often the pressure is looked at: it is an average of ten seconds.
const PRESSURE_BEAT: Duration = Duration::from_secs(1);
/// How often it is looked whether the image is still there.
const GONE_BEAT: Duration = Duration::from_secs(1);
/// What it may have read or written without having opened the image.
const ASTRAY: Bytes = Bytes(4 << 20);
/// What is kept of what it prints: a few lines with a path of 4096 bytes in each.
const MOST_SAID: usize = 16_384;
/// What is quoted of a line of it.
const MOST_QUOTED: usize = 300;
/// Where it is if PATH does not lead there, as that of many users does not.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

/// What is to be done.
#[derive(Debug)]
pub struct Request<'a> {
    /// The image.
    pub path: &'a Path,
    /// Limits of all kinds.
    pub limits: &'a Defrag,
    /// When it has to be over.
    pub until: Option<Instant>,
}

/// What goes on.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Temporary files of an earlier run that was killed were removed.
    Swept(usize),
    /// The guards let it pass.
    Cleared(Facts),
    /// There is I/O pressure that does not hold it up.
    WithoutIo(WithoutIo),
    /// xfs_fsr works.
    Started {
        /// Its process.
        pid: u32,
    },
    /// So far it has come.
    Progress {
        /// Read from disk.
        read: Bytes,
        /// Written to disk; when it is as much as the image occupies the final swap is left.
        written: Bytes,
        /// Why it stands still, if it does.
        held: Option<Hold>,
    },
    /// It is being ended.
    Ending(Stop),
    /// Somebody waits at the gate.
    AtTheGate(Visitor),
}

/// Asks the guards, as [`run`] does, and starts nothing.
///
/// # Errors
/// What is not right.
pub fn rehearse(request: &Request<'_>, host: &Host) -> Result<Facts, Refusal> {
    program().ok_or(Refusal::NoEngine)?;
    let cleared = clear(request, host, &mut |_| {})?;
    Ok(cleared.facts)
}

/// Defragments one image. `orders` is asked some fifty times a second whether to stop; `watch` is
/// told what goes on.
///
/// It must be called on a thread that lives as long as the run: the kernel kills xfs_fsr with it.
pub fn run(
    request: &Request<'_>,
    host: &Host,
    orders: &mut dyn FnMut() -> Option<Stop>,
    watch: &mut dyn FnMut(Event),
) -> RunReport {
    let began = Instant::now();
    let mut report = RunReport::of(Engine::XfsFsr, RunOutcome::Unchanged { message: None });
    report.outcome = match attempt(request, host, &mut report, orders, watch) {
        Ok(outcome) => outcome,
        Err(refusal) => RunOutcome::Refused {
            guard: refusal.name().to_owned(),
            reason: refusal.to_string(),
        },
    };
    report.took = began.elapsed();
    report
}

fn attempt(
    request: &Request<'_>,
    host: &Host,
    report: &mut RunReport,
    orders: &mut dyn FnMut() -> Option<Stop>,
    watch: &mut dyn FnMut(Event),
) -> Result<RunOutcome, Refusal> {
    let program = program().ok_or(Refusal::NoEngine)?;
    let cleared = clear(request, host, watch)?;
    report.from = Some(cleared.facts.extents);
    watch(Event::Cleared(cleared.facts));
    let Cleared {
        target,
        gate,
        gauge,
        turn,
        ..
    } = cleared;
    let mut machine = Machine::new(PATIENCE);
    machine.step(machine_time(), Input::Cleared);
    // As long as openers wait for us, we are not to be stopped.
    let _awake = Awake::start();
    let mut work = match Work::start(&program, &target, gate) {
        Ok(work) => work,
        Err(error) => {
            let reason = format!(
                "{} cannot be started: {}",
                program.display(),
                reason(&error)
            );
            return Ok(RunOutcome::Failed { reason });
        }
    };
    machine.step(machine_time(), Input::Started);
    let pid = work.child.id();
    watch(Event::Started { pid });
    let mut pace = Pace::new(request, gauge);
    while machine.state() != State::Ended {
        work.wait(if machine.state() == State::Ending {
            LAST_BEAT
        } else {
            BEAT
        });
        for input in work.look(&mut pace, host, (request, &target), orders) {
            work.take(&mut machine, input, watch);
        }
        if let Some(pressure) = pace.news() {
            watch(Event::WithoutIo(pressure));
        }
        let (read, written) = work.moved;
        let held = machine.held_by();
        watch(Event::Progress {
            read,
            written,
            held,
        });
        report.held += pace.stood_still(held.is_some());
    }
    (report.read, report.written) = work.moved;
    let end = work.end();
    if end.status.is_none() {
        // Whatever it hangs in, we would hang in too.
        return Ok(judge(&cleared.facts, None, &machine, end, &target.path));
    }
    // What a killed xfs_fsr leaves is found by the next run too.
    let _ = leftovers::sweep(target.directory.as_fd(), &host.proc);
    drop(turn);
    let counted = count(&target);
    report.to = counted.as_ref().ok().copied();
    if let Some(to) = report.to.filter(|to| *to < cleared.facts.extents) {
        report.account = Some(Account::of_whole_copy(&cleared.borders, to));
    }
    let outcome = judge(&cleared.facts, report.to, &machine, end, &target.path);
    Ok(as_counted(outcome, counted.err()))
}

/// Without the count after it a run that seems to have changed nothing has an unknown result. It is
/// not refused: xfs_fsr has run.
fn as_counted(outcome: RunOutcome, error: Option<io::Error>) -> RunOutcome {
    match (outcome, error) {
        (RunOutcome::Unchanged { .. }, Some(error)) => {
            let why = reason(&error);
            let reason =
                format!("xfs_fsr has run, but the extents cannot be counted after it: {why}");
            RunOutcome::Failed { reason }
        }
        (outcome, _) => outcome,
    }
}

/// What came of it. The counts of extents have the first word, then what we did ourselves, then the
/// [`messages`], and the status the last: it is 0 after most refusals.
fn judge(
    facts: &Facts,
    to: Option<ExtentCount>,
    machine: &Machine,
    end: End,
    path: &Path,
) -> RunOutcome {
    let failed = |reason: String| {
        let last = end.said.trim().lines().last().unwrap_or_default();
        let colon = if last.is_empty() { "" } else { ": " };
        let reason = format!("{reason}{colon}{}", quoted(last));
        RunOutcome::Failed { reason }
    };
    let status = match end.status {
        // What we have asked for by a signal may have been done a moment before.
        _ if to.is_some_and(|to| to < facts.extents) => return RunOutcome::Improved,
        None => return failed("xfs_fsr hangs in the kernel and was left behind".to_owned()),
        Some(status) => status,
    };
    match machine.stopped_by() {
        Some(Stop::Opened) => return RunOutcome::Busy { by: end.visitor },
        Some(stop @ (Stop::Stuck | Stop::Astray)) => {
            return failed(format!("xfs_fsr was ended, because {stop}"));
        }
        Some(why) => return RunOutcome::Stopped { why },
        None => {}
    }
    if let Some(signal) = status.signal() {
        return failed(format!("xfs_fsr was ended by signal {signal}"));
    }
    let code = status.code().unwrap_or(-1);
    match messages::interpret(&end.said, &messages::of_path(path)) {
        Messages::Busy => RunOutcome::Busy { by: None },
        Messages::NoSpace => RunOutcome::NoSpace,
        Messages::Failed(message) => RunOutcome::Failed {
            reason: format!("xfs_fsr: {}", quoted(&message)),
        },
        _ if code != 0 => failed(format!("xfs_fsr ended with status {code}")),
        Messages::Fine => RunOutcome::Unchanged { message: None },
        Messages::Unknown(message) => RunOutcome::Unchanged {
            message: Some(quoted(&message)),
        },
    }
}

/// As much of a line as fits into a report.
fn quoted(line: &str) -> String {
    line.chars().take(MOST_QUOTED).collect()
}

/// An image that a run may begin with.
struct Cleared {
    target: Target,
    gate: Gate,
    facts: Facts,
    gauge: Gauge,
    /// Its extents by what keeps them apart.
    borders: Borders,
    /// As long as it is held no other run begins on the file system.
    turn: File,
}

fn clear(
    request: &Request<'_>,
    host: &Host,
    watch: &mut dyn FnMut(Event),
) -> Result<Cleared, Refusal> {
    let target = guard::open(request.path, host)?;
    let turn = take_turn(&target)?;
    let swept = leftovers::sweep(target.directory.as_fd(), &host.proc)?;
    if swept > 0 {
        watch(Event::Swept(swept));
    }
    guard::check_quick(&target, request.limits, host)?;
    let (mut gauge, most) = (
        Gauge::new(target.mount.device),
        request.limits.max_io_pressure,
    );
    guard::check_pressure(&mut gauge, most, host)?;
    let no_gate = |error: io::Error| Refusal::NoGate(reason(&error));
    let mut gate = Gate::raise(&target.file, &host.proc).map_err(no_gate)?;
    guard::check_unused(&target, &mut gate, host)?;
    guard::check_settled(&target, &mut gate)?;
    let borders = guard::check_map(&target, count(&target)?, &mut gate)?;
    // Once more, behind the gate: until it was raised all could change.
    let facts = guard::check_quick(&target, request.limits, host)?;
    guard::recheck_pressure(&mut gauge, most, host)?;
    Ok(Cleared {
        target,
        gate,
        facts,
        gauge,
        borders,
        turn,
    })
}

/// One run at a time on a file system, whoever starts it: a lock on its root directory, which goes
/// with us.
pub(super) fn take_turn(target: &Target) -> Result<File, Refusal> {
    let root = open::mount_point(&target.mount.point)?;
    match flock(&root, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(root),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Refusal::OtherRun),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn count(target: &Target) -> io::Result<ExtentCount> {
    let attributes = fsxattr::attributes(&target.file)?;
    Ok(ExtentCount(attributes.extents.into()))
}

/// Where xfs_fsr is.
pub(super) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM.into_iter().map(PathBuf::from))
        .map(|directory| directory.join("xfs_fsr"))
        .find(|file| file.is_absolute() && file.is_file())
}

/// Looks now and then whether the image is still there.
pub(super) struct Presence(Instant);

impl Presence {
    pub(super) fn new() -> Presence {
        Presence(Instant::now())
    }

    /// Whether the image has gone.
    pub(super) fn look(&mut self, target: &Target, host: &Host) -> Option<Input> {
        if self.0.elapsed() < GONE_BEAT {
            return None;
        }
        self.0 = Instant::now();
        target.is_gone(host).then_some(Input::Stop(Stop::Gone))
    }
}

/// The clocks and limits of a run.
pub(super) struct Pace {
    began: Instant,
    meter: Meter,
    gauge: Gauge,
    /// Above this others wait too much.
    most: u32,
    pressure_at: Option<Instant>,
    news: Option<WithoutIo>,
    pub(super) presence: Presence,
    looked: Instant,
}

impl Pace {
    /// `gauge` is that by which the guards have looked.
    pub(super) fn new(request: &Request<'_>, gauge: Gauge) -> Pace {
        Pace {
            began: Instant::now(),
            meter: Meter::new(request.limits.bandwidth),
            gauge,
            most: request.limits.max_io_pressure,
            pressure_at: None,
            news: None,
            presence: Presence::new(),
            looked: Instant::now(),
        }
    }

    /// Time since it was asked last, if it stood still.
    pub(super) fn stood_still(&mut self, held: bool) -> Duration {
        let now = Instant::now();
        let since = now - std::mem::replace(&mut self.looked, now);
        if held { since } else { Duration::ZERO }
    }

    pub(super) fn bandwidth(&mut self, moved: Bytes) -> Input {
        match self.meter.is_over(self.began.elapsed(), moved) {
            true => Input::Held(Hold::Bandwidth),
            false => Input::Freed(Hold::Bandwidth),
        }
    }

    /// Once held, it goes on when the pressure is well below the limit.
    pub(super) fn pressure(&mut self, host: &Host, held: bool) -> Option<Input> {
        if self
            .pressure_at
            .is_some_and(|at| at.elapsed() < PRESSURE_BEAT)
        {
            return None;
        }
        self.pressure_at = Some(Instant::now());
        // Standing still, it makes no pressure itself, and the host can be asked; nor does it keep
        // the disks at work. It stands still since the last time at least.
        let asked = if held { Asked::OrHost } else { Asked::Others };
        let found = self.gauge.look(host, asked, held)?;
        self.news = self.news.or(self.gauge.news(Some(found), self.most));
        let most = if held { self.most / 4 * 3 } else { self.most };
        Some(match found.counts.is_above(most) {
            true => Input::Held(Hold::Pressure),
            false => Input::Freed(Hold::Pressure),
        })
    }

    /// The pressure that does not hold it up, once.
    pub(super) fn news(&mut self) -> Option<WithoutIo> {
        self.news.take()
    }
}

/// xfs_fsr at work.
struct Work {
    child: Child,
    gate: Gate,
    output: File,
    said: Vec<u8>,
    /// Read and written.
    moved: (Bytes, Bytes),
    visitor: Option<Visitor>,
    pressed: bool,
    /// The terminal's other side.
    _terminal: Option<OwnedFd>,
}

/// How it ended.
struct End {
    /// Nothing if it has not.
    status: Option<ExitStatus>,
    said: String,
    visitor: Option<Visitor>,
}

impl Work {
    fn start(program: &Path, target: &Target, mut gate: Gate) -> io::Result<Work> {
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
        humble(&mut command, gate.descriptor());
        let child = command.spawn()?;
        gate.set_worker(child.id().cast_signed());
        // With the command go its ends of pipe and terminal, and its share in the gate.
        drop(command);
        Ok(Work {
            child,
            gate,
            output: output.into(),
            said: Vec::new(),
            moved: (Bytes(0), Bytes(0)),
            visitor: None,
            pressed: false,
            _terminal: terminal,
        })
    }

    /// Until something happens, or that long.
    fn wait(&self, most: Duration) {
        let mut events = vec![PollFd::new(&self.output, PollFlags::IN)];
        // Who waits there already would wake us up all the time.
        if self.visitor.is_none() {
            events.push(PollFd::new(&self.gate, PollFlags::IN));
        }
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: most.subsec_nanos().into(),
        };
        let _ = poll(&mut events, Some(&timeout));
        if self.has_closed(&events) {
            // It is about to end; there is nothing to wait for by its pipe.
            std::thread::sleep(LAST_BREATH);
        }
    }

    fn has_closed(&self, events: &[PollFd<'_>]) -> bool {
        events
            .first()
            .is_some_and(|event| event.revents().contains(PollFlags::HUP))
    }

    /// What has happened.
    fn look(
        &mut self,
        pace: &mut Pace,
        host: &Host,
        (request, target): (&Request<'_>, &Target),
        orders: &mut dyn FnMut() -> Option<Stop>,
    ) -> Vec<Input> {
        self.listen();
        let before = self.moved;
        if has_ended(&self.child) {
            // What it did since the last look; until it is waited for, it is still told.
            self.moved = moved(&host.proc, self.child.id()).unwrap_or(before);
            return vec![Input::Exited];
        }
        let mut inputs = Vec::new();
        inputs.extend(self.attend_gate().map(Input::Stop));
        inputs.extend(orders().map(Input::Stop));
        inputs.extend(pace.presence.look(target, host));
        if request.until.is_some_and(|until| Instant::now() >= until) {
            inputs.push(Input::Stop(Stop::WindowClosed));
        }
        self.moved = moved(&host.proc, self.child.id()).unwrap_or(before);
        let in_all = self.moved.0.saturating_add(self.moved.1);
        inputs.extend((self.moved != before).then_some(Input::Moved));
        if in_all > ASTRAY && !self.gate.worker_came() {
            inputs.push(Input::Stop(Stop::Astray));
        }
        inputs.push(pace.bandwidth(in_all));
        if let Some(input) = pace.pressure(host, self.pressed) {
            self.pressed = input == Input::Held(Hold::Pressure);
            inputs.push(input);
        }
        inputs.push(Input::Tick);
        inputs
    }

    /// Somebody at the gate is told of once. If the gate cannot be served any more, nobody may be
    /// kept waiting at it.
    fn attend_gate(&mut self) -> Option<Stop> {
        if self.visitor.is_some() {
            return None;
        }
        match self.gate.let_ours_in() {
            Ok(visitor) => {
                self.visitor = Some(visitor?);
                Some(Stop::Opened)
            }
            Err(_) => Some(Stop::Opened),
        }
    }

    fn take(&mut self, machine: &mut Machine, input: Input, watch: &mut dyn FnMut(Event)) {
        if let Input::Stop(Stop::Opened) = input
            && let Some(visitor) = &self.visitor
        {
            watch(Event::AtTheGate(visitor.clone()));
        }
        let now = machine_time();
        for action in machine.step(now, input) {
            match action {
                Action::Pause => self.signal(Signal::STOP),
                Action::Continue => self.signal(Signal::CONT),
                Action::Kill => self.signal(Signal::KILL),
                Action::Terminate => {
                    self.signal(Signal::TERM);
                    watch(Event::Ending(
                        machine.stopped_by().unwrap_or(Stop::Shutdown),
                    ));
                }
                Action::Start | Action::Abandon => {}
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // Not waited for, so the number is not yet another's.
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }

    /// Takes in what it says, and keeps the last of it.
    fn listen(&mut self) {
        let mut buffer = [0; 1024];
        // As much as a pipe holds at a time, should it never stop talking.
        for _ in 0..64 {
            match self.output.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(length) => self.said.extend_from_slice(&buffer[..length]),
            }
        }
        let too_much = self.said.len().saturating_sub(MOST_SAID);
        self.said.drain(..too_much);
    }

    /// The process is gone, or never will be. The gate is opened.
    fn end(mut self) -> End {
        let status = has_ended(&self.child).then(|| {
            // Nothing of its group is to live on, if it had children at all.
            self.signal(Signal::KILL);
            self.child.wait().ok()
        });
        self.listen();
        End {
            status: status.flatten(),
            said: printable(&self.said),
            visitor: self.visitor,
        }
    }
}

/// A clock for the machine.
pub(super) fn machine_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(
        now.tv_sec.try_into().unwrap_or(0),
        now.tv_nsec.try_into().unwrap_or(0),
    )
}

/// A terminal: our side and its.
fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let its = ioctl_tiocgptpeer(&ours, flags)?;
    Ok((ours, its))
}

/// What a process has read from disk and written to it.
fn moved(proc: &Path, pid: u32) -> Option<(Bytes, Bytes)> {
    let text = std::fs::read_to_string(proc.join(format!("{pid}/io"))).ok()?;
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().parse().ok().map(Bytes)
    };
    Some((field("read_bytes:")?, field("write_bytes:")?))
}

/// Whether it has ended. It stays on the kernel's list, and keeps its number, until it is waited
/// for.
fn has_ended(child: &Child) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(
        waitid(WaitId::Pid(Pid::from_child(child)), options),
        Ok(Some(_)) | Err(rustix::io::Errno::CHILD)
    )
}

/// What a strange program says, harmless for a terminal.
pub(super) fn printable(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let harmless = |c: char| if c.is_control() && c != '\n' { '?' } else { c };
    text.chars().map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(from: u64, to: u64, status: i32, said: &str, stop: Option<Stop>) -> RunOutcome {
        judged_of("/srv/a", from, to, status, said, stop)
    }

    fn judged_of(
        path: &str,
        from: u64,
        to: u64,
        status: i32,
        said: &str,
        stop: Option<Stop>,
    ) -> RunOutcome {
        let mut machine = Machine::new(PATIENCE);
        machine.step(Duration::ZERO, Input::Cleared);
        machine.step(Duration::ZERO, Input::Started);
        if let Some(stop) = stop {
            machine.step(Duration::ZERO, Input::Stop(stop));
        }
        let end = End {
            status: Some(ExitStatus::from_raw(status)),
            said: said.to_owned(),
            visitor: None,
        };
        let facts = Facts {
            extents: ExtentCount(from),
            allocated: Bytes(0),
            stall: Duration::ZERO,
        };
        judge(
            &facts,
            Some(ExtentCount(to)),
            &machine,
            end,
            Path::new(path),
        )
    }

    #[test]
    fn counts_are_believed_and_not_words() {
        let done = "extents before:7 after:1 DONE /srv/a";
        let unchanged = |message: Option<&str>| RunOutcome::Unchanged {
            message: message.map(str::to_owned),
        };
        assert_eq!(judged(7, 7, 0, done, None), unchanged(None));
        assert_eq!(judged(7, 7, 0, "", None), unchanged(Some("")));
        let news = "/srv/a: deferred";
        assert_eq!(judged(7, 7, 0, news, None), unchanged(Some(news)));
        assert_eq!(
            judged(7, 1, 9, "", Some(Stop::Opened)),
            RunOutcome::Improved
        );
        let busy = judged(7, 7, 15, "", Some(Stop::Opened));
        assert_eq!(busy, RunOutcome::Busy { by: None });
        let why = Stop::WindowClosed;
        assert_eq!(judged(7, 8, 15, "", Some(why)), RunOutcome::Stopped { why });
        let space = "insufficient freespace for: /srv/a: size=1: ignoring";
        assert_eq!(judged(7, 7, 0, space, None), RunOutcome::NoSpace);
        let busy = "/srv/a: file busy\n";
        assert_eq!(judged(7, 7, 0, busy, None), RunOutcome::Busy { by: None });
    }

    #[test]
    fn a_run_that_cannot_be_counted_has_failed_and_is_not_refused() {
        let error = || Some(io::Error::from_raw_os_error(libc::EIO));
        let unchanged = RunOutcome::Unchanged { message: None };
        let reason =
            "xfs_fsr has run, but the extents cannot be counted after it: Input/output error";
        let failed = RunOutcome::Failed {
            reason: reason.to_owned(),
        };
        assert_eq!(as_counted(unchanged.clone(), error()), failed);
        assert_eq!(as_counted(unchanged.clone(), None), unchanged);
        let why = Stop::WindowClosed;
        let stopped = RunOutcome::Stopped { why };
        assert_eq!(as_counted(stopped.clone(), error()), stopped);
    }

    /// What xfs_fsr printed at hosts of others; each time it ended with 0 and changed nothing.
    #[test]
    fn refusals_of_the_field() {
        let judged = |printed| judged_of("/data/a.raw", 2047, 2047, 0, printed, None);
        let busy = judged(include_str!("../../tests/data/xfs_fsr/D01-said1.txt"));
        assert_eq!(busy, RunOutcome::Busy { by: None });
        let space = judged(include_str!("../../tests/data/xfs_fsr/D01-said2.txt"));
        assert_eq!(space, RunOutcome::NoSpace);
        let failed = judged(include_str!("../../tests/data/xfs_fsr/D02-said1.txt"));
        let reason = "xfs_fsr: XFS_IOC_SWAPEXT failed: /data/a.raw: Invalid argument".to_owned();
        assert_eq!(failed, RunOutcome::Failed { reason });
        let space = judged(include_str!("../../tests/data/xfs_fsr/D02-said2.txt"));
        assert_eq!(space, RunOutcome::NoSpace);
    }

    #[test]
    fn what_went_wrong_is_said() {
        let reason = |status, said, stop| match judged(7, 7, status, said, stop) {
            RunOutcome::Failed { reason } => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            reason(0x100, "usage:\nno\n", None),
            "xfs_fsr ended with status 1: no"
        );
        assert_eq!(reason(9, "", None), "xfs_fsr was ended by signal 9");
        assert_eq!(
            reason(15, "", Some(Stop::Stuck)),
            "xfs_fsr was ended, because it did nothing for too long"
        );
    }

    #[test]
    fn what_it_says_cannot_upset_a_terminal() {
        assert_eq!(printable(b"a\x1b[2J\xff\nb\r"), "a?[2J\u{fffd}\nb?");
    }
}
