//! A copy in progress: started, governed, watched until it is ready, compared.

use std::fs::File;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::ask::{self, Asked};
use super::content::Content;
use super::decide::Step;
use super::domain::{Disk, MirrorState};
use super::latency::Writes;
use super::note::{Note, Noted, identify};
use super::recover;
use super::refusal;
use super::target::Place;
use super::virsh::{Virsh, VirshError};
use crate::defrag::engine::{Controls, Event, Progress, cannot, monotonic};
use crate::defrag::guard::{self, Target};
use crate::defrag::metadata::Metadata;
use crate::defrag::run::{Input, Machine, RunState};
use crate::model::{Bytes, GuestWrites, ReasonCode, Refusal, RunOutcome, Stop};

const INTERVAL: Duration = Duration::from_millis(200);
const STUCK_TIMEOUT: Duration = Duration::from_secs(600);
/// How long libvirt may be unreachable: QEMU copies on while it is restarted.
const UNREACHABLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a copy that is ready waits for others to close the image.
const READERS_TIMEOUT: Duration = Duration::from_secs(60);
/// The limit of a copy that is held, in bytes per second: 0 would be none.
const HELD: Bytes = Bytes(1);
/// How much QEMU reads ahead: writes of the guest wait for what is in flight. With the 16 MiB of
/// QEMU (DEFAULT_MIRROR_BUF_SIZE, block/mirror.c), 0.1 % of them wait two and a half times as long.
const BUFFER: Bytes = Bytes(1 << 20);
/// How many pieces of both files are compared, and their size in bytes.
const PIECES: u64 = 256;
const PIECE: usize = 64 << 10;
/// How long those that differ are compared again while the guest stands still, but for one of them: each may
/// cost several seeks, and under a guest that writes all the time nearly all of them differ.
pub(super) const COMPARE_TIME: Duration = Duration::from_millis(100);

/// A copy in progress.
pub(super) struct Session<'c, 't, 'r> {
    pub(super) controls: &'c mut Controls<'t, 'r>,
    pub(super) virsh: Virsh,
    pub(super) noted: Noted,
    /// The process of the VM.
    pub(super) pid: u32,
    pub(super) file: File,
    place: &'c Place,
    /// Format of the image, and the length of the guest's disk in it.
    format: String,
    size: u64,
    machine: Machine,
    progress: Progress,
    /// The limit in force.
    limit: Bytes,
    done: u64,
    unreachable_since: Option<Instant>,
    /// How long writes of the guest take.
    pub(super) writes: Option<GuestWrites>,
}

impl<'c, 't, 'r> Session<'c, 't, 'r> {
    /// Creates the file, and notes it before it gets a name.
    pub(super) fn begin(
        controls: &'c mut Controls<'t, 'r>,
        virsh: Virsh,
        asked: &Asked,
        disk: &Disk,
        place: &'c Place,
        hint: Option<Bytes>,
        progress: Progress,
    ) -> Result<Session<'c, 't, 'r>, RunOutcome> {
        let target = controls.target;
        let content = Content::of(&target.file, disk.format())?;
        let copy = place.create(target, &content, hint)?;
        let kind = target.mount.kind();
        let note = || -> io::Result<Noted> {
            let access = Metadata::of(&target.file)?;
            let note = Note {
                image: target.path.clone(),
                copy: place.path.clone(),
                former: asked.facts.former.clone().unwrap_or_default(),
                old: identify(&target.file, kind)?,
                new: identify(&copy, kind)?,
                owner: access.owner(),
                label: access.label(),
                domain: asked.facts.answers.live.uuid.clone(),
                disk: disk.target.clone(),
                step: Step::Copying,
                mark: None,
                database: controls.request.host.database.clone(),
                holder: controls.request.host.holder,
            };
            Noted::write(note, &controls.request.host.hints)
        };
        let noted = note().map_err(cannot("the copy cannot be noted in the state directory"))?;
        let named = place.link(&copy).map_err(|error| (error, "a name"));
        let tried = || {
            noted
                .note
                .try_link()
                .map_err(|error| (error, "the name of the image"))
        };
        if let Err((error, name)) = named.and_then(|()| tried()) {
            place.unlink(&copy);
            let _ = noted.remove();
            return Err(cannot(&format!("the copy cannot be given {name}"))(error));
        }
        Ok(Session {
            limit: Bytes((controls.request.limits.bandwidth.0 / 2).max(1)),
            format: disk.format().to_owned(),
            size: progress.total,
            machine: Machine::new(monotonic(), STUCK_TIMEOUT),
            controls,
            virsh,
            noted,
            pid: asked.pid,
            file: copy,
            place,
            progress,
            done: 0,
            unreachable_since: None,
            writes: None,
        })
    }

    /// Copies until the copy is ready. The error is the outcome of a copy that is to be given up.
    pub(super) fn copy(&mut self) -> Result<(), RunOutcome> {
        let before = self.guest_writes();
        self.start()?;
        self.wait_until_ready()?;
        let since = before.zip(self.guest_writes());
        self.writes = since.and_then(|(before, now)| now.since(&before));
        Ok(())
    }

    /// Those that QEMU accounts for so far, if libvirt answers.
    fn guest_writes(&self) -> Option<Writes> {
        let note = &self.noted.note;
        Writes::of(&self.virsh, &note.domain, &note.disk).ok()
    }

    /// Takes all steps that are left, whatever has happened.
    pub(super) fn end(&mut self) -> Result<(), RunOutcome> {
        let mut notices = Vec::new();
        let patience = recover::PATIENCE;
        let mut notice = |text| notices.push(text);
        let ended = recover::end(&self.virsh, &mut self.noted, patience, &mut notice);
        for text in notices {
            self.controls.send(Event::Notice(text));
        }
        let note = &self.noted.file;
        let unended = |why: String| RunOutcome::Failed {
            reason: format!(
                "{why}; the next run or start of fragwatch ends the copy ({})",
                note.display()
            ),
        };
        match ended {
            Ok(recover::Ended::Open) => Err(unended("libvirt does not answer".to_owned())),
            Ok(_) => Ok(()),
            Err(refusal) => Err(unended(refusal.text)),
        }
    }

    fn start(&mut self) -> Result<(), RunOutcome> {
        let (limit, note) = (self.limit.0.to_string(), &self.noted.note);
        let arguments: [&dyn AsRef<std::ffi::OsStr>; 14] = [
            &"--domain",
            &note.domain,
            &"--path",
            &note.disk,
            &"--dest",
            &note.copy,
            &"--format",
            &self.format,
            &"--reuse-external",
            &"--transient-job",
            &"--synchronous-writes",
            &"--bytes",
            &format!("--bandwidth={limit}"),
            &format!("--buf-size={}", BUFFER.0),
        ];
        // Whether libvirtd has begun it before it died shows later.
        let started = self.virsh.run("blockcopy", &arguments);
        self.reached(started).map(drop)
    }

    fn wait_until_ready(&mut self) -> Result<(), RunOutcome> {
        let mut limit = self.limit;
        loop {
            // QEMU itself keeps to the bandwidth.
            for input in self
                .controls
                .inputs(Bytes(0))
                .into_iter()
                .chain([Input::Tick])
            {
                self.machine.step(monotonic(), input);
            }
            if matches!(self.machine.state(), RunState::Ending | RunState::Ended) {
                let why = self.machine.stopped_by().unwrap_or(Stop::Shutdown);
                return Err(RunOutcome::Stopped { why });
            }
            let held = self.machine.held_by();
            self.controls.note_held(held.is_some());
            let wanted = if held.is_some() { HELD } else { self.limit };
            if wanted != limit && self.set_limit(wanted)? {
                limit = wanted;
            }
            let limits = self.controls.request.limits;
            guard::check_space(self.controls.target, Bytes(0), limits.keep_free)
                .map_err(|_| RunOutcome::NoSpace)?;
            if self.is_ready()? && held.is_none() {
                return Ok(());
            }
            (self.progress.done, self.progress.held) = (self.done, held);
            self.controls.send(Event::Progress(self.progress));
            thread::sleep(INTERVAL);
        }
    }

    /// Whether libvirt could be reached.
    fn set_limit(&mut self, limit: Bytes) -> Result<bool, RunOutcome> {
        let (note, limit) = (&self.noted.note, format!("--bandwidth={}", limit.0));
        let arguments: [&dyn AsRef<std::ffi::OsStr>; 6] = [
            &"--domain",
            &note.domain,
            &"--path",
            &note.disk,
            &"--bytes",
            &limit,
        ];
        let set = self.virsh.run("blockjob", &arguments);
        Ok(self.reached(set)?.is_some())
    }

    /// Looks at the job. Fails if there is none any more.
    fn is_ready(&mut self) -> Result<bool, RunOutcome> {
        let note = &self.noted.note;
        let job = ask::block_job(&self.virsh, &note.domain, &note.disk);
        let Some(job) = self.reached(job)? else {
            return Ok(false);
        };
        let Some(job) = job else {
            return Err(self.lost());
        };
        // Grows with what the guest writes.
        self.progress.total = job.end.max(1);
        if job.cur != self.done {
            self.done = job.cur;
            self.machine.step(monotonic(), Input::Moved);
        }
        if job.cur != job.end || job.end == 0 {
            return Ok(false);
        }
        let note = &self.noted.note;
        let live = ask::domain(&self.virsh, &note.domain, &[]);
        let live = self.reached(live)?;
        let disk = live
            .as_ref()
            .and_then(|live| live.disk(&self.noted.note.disk));
        let mirror = disk.and_then(|disk| disk.mirror.as_ref());
        Ok(mirror.is_some_and(|it| it.state == MirrorState::Ready))
    }

    /// The answer of libvirt, or `None` for a minute while it cannot be reached.
    fn reached<T>(&mut self, answer: Result<T, VirshError>) -> Result<Option<T>, RunOutcome> {
        match answer {
            Ok(answer) => {
                self.unreachable_since = None;
                Ok(Some(answer))
            }
            Err(VirshError::Unreachable(_))
                if self
                    .unreachable_since
                    .get_or_insert_with(Instant::now)
                    .elapsed()
                    < UNREACHABLE_TIMEOUT =>
            {
                Ok(None)
            }
            Err(error) => Err(failed(&error)),
        }
    }

    /// The job has ended by itself, for which libvirt states no reason.
    fn lost(&self) -> RunOutcome {
        let limits = self.controls.request.limits;
        let left = guard::check_space(self.controls.target, Bytes(PIECE as u64), limits.keep_free);
        match left {
            Err(_) => RunOutcome::NoSpace,
            Ok(()) => RunOutcome::Failed {
                reason: "QEMU has ended the copy: its disk was detached, its VM ended, or writing \
                         the copy failed (see its log in /var/log/libvirt/qemu)"
                    .to_owned(),
            },
        }
    }

    fn ask(&self) -> Result<Asked, Refusal> {
        let (target, request) = (self.controls.target, &self.controls.request);
        let (former, keep_free) = (self.noted.note.former(), request.limits.keep_free);
        ask::ask(
            &self.virsh,
            target,
            former,
            self.place,
            keep_free,
            request.host,
        )
    }

    /// Whether others have the image open.
    pub(super) fn has_others(&self) -> io::Result<bool> {
        let (target, host) = (self.controls.target, self.controls.request.host);
        ask::has_others(target, self.noted.note.former(), self.pid, host)
    }

    /// Checks once more that the copy may be taken into use. A process that only looks at the image is
    /// waited for.
    pub(super) fn check(&mut self) -> Result<(), RunOutcome> {
        let changed = |text: &str| Err(Refusal::new(ReasonCode::Hypervisor, text).into());
        let [image, copy] = contents(self.controls.target, &self.file, &self.format)?;
        if [image.size()?, copy.size()?] != [self.size; 2] {
            return changed("the image or its copy has another size now");
        }
        let deadline = Instant::now() + READERS_TIMEOUT;
        while self.has_others()? && Instant::now() < deadline {
            if let Some(why) = self.controls.stop() {
                return Err(RunOutcome::Stopped { why });
            }
            thread::sleep(INTERVAL);
        }
        // The job may have ended meanwhile.
        self.is_ready()?;
        let asked = self.ask()?;
        let mut facts = asked.facts;
        if (asked.pid, &facts.answers.live.uuid) != (self.pid, &self.noted.note.domain) {
            return changed("another VM has it open now");
        }
        // Our own job, and what it needs.
        facts.answers.block_job = None;
        facts.needs = Bytes(0);
        for disk in facts.answers.live.disks.iter_mut() {
            if disk.target == self.noted.note.disk {
                disk.mirror = None;
            }
        }
        facts.answers.state = match facts.answers.state.as_str() {
            "paused" => "running".to_owned(),
            other => other.to_owned(),
        };
        refusal::check(&facts)?;
        Ok(())
    }

    /// Compares pieces all over the disk, as [`differing`] does. What is compressed in the image is not compared.
    pub(super) fn differences(
        &mut self,
        pieces: impl IntoIterator<Item = u64>,
        deadline: Option<Instant>,
    ) -> Result<Vec<u64>, RunOutcome> {
        let compared =
            |error: io::Error| cannot("the image and its copy cannot be compared")(error);
        let [image, copy] =
            contents(self.controls.target, &self.file, &self.format).map_err(compared)?;
        let differs = |at| {
            let found = image.read(at, PIECE)?.zip(copy.read(at, PIECE)?);
            Ok(found.is_some_and(|(image, copy)| image != copy))
        };
        let mut stop = || self.controls.stop();
        differing(pieces, deadline, &mut stop, |at| {
            differs(at).map_err(compared)
        })
    }

    /// Offsets of the pieces to be compared.
    pub(super) fn pieces(&self) -> impl Iterator<Item = u64> + use<> {
        let step = (self.size / PIECES)
            .next_multiple_of(PIECE as u64)
            .max(PIECE as u64);
        let size = self.size;
        (0..PIECES)
            .map(move |number| number * step)
            .take_while(move |at| *at < size)
    }
}

/// The guest's disk in the image and in the copy.
fn contents<'f>(target: &'f Target, copy: &'f File, format: &str) -> io::Result<[Content<'f>; 2]> {
    Ok([
        Content::of(&target.file, format)?,
        Content::of(copy, format)?,
    ])
}

pub(super) fn failed(error: &VirshError) -> RunOutcome {
    RunOutcome::Failed {
        reason: error.to_string(),
    }
}

/// The offsets of the pieces that differ, which may be written to at this moment. After `deadline`, no
/// further one is compared.
fn differing(
    pieces: impl IntoIterator<Item = u64>,
    deadline: Option<Instant>,
    stop: &mut dyn FnMut() -> Option<Stop>,
    differs: impl Fn(u64) -> Result<bool, RunOutcome>,
) -> Result<Vec<u64>, RunOutcome> {
    let mut different = Vec::new();
    for at in pieces {
        if let Some(why) = stop() {
            return Err(RunOutcome::Stopped { why });
        }
        if differs(at)? {
            different.push(at);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break;
        }
    }
    Ok(different)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_compared_until_the_deadline() {
        let compared = std::cell::Cell::new(0);
        let compare = |deadline, why| {
            compared.set(0);
            let differs = |at| {
                compared.set(compared.get() + 1);
                Ok(at % 2 == 0)
            };
            differing(0..PIECES, deadline, &mut || why, differs)
        };
        let ahead = Instant::now() + UNREACHABLE_TIMEOUT;
        for deadline in [None, Some(ahead)] {
            let different = compare(deadline, None).unwrap();
            assert!(different.into_iter().eq((0..PIECES).step_by(2)));
            assert_eq!(compared.get(), PIECES);
        }
        assert_eq!(compare(Some(Instant::now()), None), Ok(vec![0]));
        assert_eq!(compared.get(), 1);
        let why = Stop::Shutdown;
        assert_eq!(compare(None, Some(why)), Err(RunOutcome::Stopped { why }));
        assert_eq!(compared.get(), 0);
    }
}
