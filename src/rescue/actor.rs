//! Writes to /proc/sys/vm on its own thread: a write to drop_caches runs the shrinkers in the
//! writer (`drop_slab`, mm/vmscan.c), and these may wait for XFS.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, pwrite};

use super::clock::now;
use super::entry::{JOB_WORDS, Job, REPORT_WORDS, Report};
use super::exchange::{Exchange, clear_wakeup, wake};
use super::proof::{Counters, Files};
use super::ring::{Consumer, Producer};
use crate::model::{Monotonic, Outcome, RescueStep};

/// How often the counters are read at rest, as values before an action: reading them just before it
/// would take kernel memory, and a millisecond on hosts with many processors.
const BASELINE_INTERVAL: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// Files opened before the actor is armed.
#[derive(Debug)]
pub(super) struct VmSysctls {
    drop_caches: File,
    compact_memory: Option<File>,
    counters: Files,
}

impl VmSysctls {
    /// Opens the files below `proc`. compact_memory is missing without CONFIG_COMPACTION.
    pub(super) fn open(proc: &Path) -> io::Result<VmSysctls> {
        let open = |name: &str| {
            let path = proc.join("sys/vm").join(name);
            let opened = OpenOptions::new().write(true).open(&path);
            opened.map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })
        };
        Ok(VmSysctls {
            drop_caches: open("drop_caches")?,
            compact_memory: open("compact_memory").ok(),
            counters: Files::open(proc)?,
        })
    }

    /// Writes a step (Documentation/admin-guide/sysctl/vm.rst), always at offset 0: the kernel
    /// ignores writes at other positions (`proc_first_pos_non_zero_ignore`, kernel/sysctl.c).
    fn write(&self, step: RescueStep) -> Result<usize, Errno> {
        let (file, value) = match step {
            RescueStep::DropSlab => (Some(&self.drop_caches), b"2"),
            RescueStep::DropAll => (Some(&self.drop_caches), b"3"),
            RescueStep::CompactMemory => (self.compact_memory.as_ref(), b"1"),
        };
        pwrite(file.ok_or(Errno::NOENT)?, value, 0)
    }
}

pub(super) struct Actor {
    pub(super) sysctls: VmSysctls,
    pub(super) exchange: Arc<Exchange>,
    pub(super) jobs: Consumer<Job, JOB_WORDS>,
    pub(super) reports: Producer<Report, REPORT_WORDS>,
    pub(super) before: Counters,
    pub(super) before_at: Monotonic,
    pub(super) buffer: Box<[u8]>,
}

impl Actor {
    /// Runs until stopped. Allocates nothing and calls only poll, read, pread, pwrite and write.
    pub(super) fn run(mut self) {
        self.refresh();
        while !self.exchange.is_stopping() {
            let waited = {
                let mut events = [PollFd::new(&self.exchange.to_actor, PollFlags::IN)];
                poll(&mut events, Some(&BASELINE_INTERVAL))
            };
            clear_wakeup(&self.exchange.to_actor);
            match self.jobs.pop() {
                Some(job) => self.carry_out(&job),
                None if waited == Ok(0) => self.refresh(),
                None => {}
            }
        }
    }

    fn refresh(&mut self) {
        self.before = self.sysctls.counters.read(&mut self.buffer);
        self.before_at = now();
    }

    /// Carries out a job. Also run at the start with `dry_run`, which skips the write.
    pub(super) fn carry_out(&mut self, job: &Job) {
        let began = now();
        let acting_since = &self.exchange.acting_since;
        acting_since.store(began.0, Ordering::Relaxed);
        let written = match job.dry_run {
            true => Ok(0),
            false => self.sysctls.write(job.order.step),
        };
        let ended = now();
        let (before, before_at) = (self.before, self.before_at);
        self.refresh();
        let outcome = match written {
            Ok(_) if job.dry_run => Outcome::DryRun,
            Ok(_) if self.before.show(job.order.step, &before) => Outcome::Done,
            _ => Outcome::Failed,
        };
        self.reports.push(&Report {
            order: job.order,
            drill: job.drill,
            outcome,
            error: written.map_or_else(|error| error.raw_os_error().unsigned_abs(), |_| 0),
            read: job.read,
            began,
            ended,
            before_at,
            before,
            after: self.before,
        });
        self.exchange.acting_since.store(0, Ordering::Relaxed);
        self.exchange.done.store(Some(outcome));
        wake(&self.exchange.to_reader);
        self.exchange.wake_slow_side();
    }
}
