//! `fragwatch defrag-job`: the process of a defragmentation by the daemon.

use std::io;
use std::sync::atomic::Ordering;

use super::defrag::ended_by_signals;
use super::{SUCCESS, terminal};
use crate::defrag::job::{DefragJob, JobMessage};
use crate::model::Stop;

/// Carries out the job on standard input.
pub(super) fn run() -> anyhow::Result<u8> {
    let job = DefragJob::read(io::stdin().lock())?;
    let ended = ended_by_signals()?;
    let mut orders = || ended.load(Ordering::Relaxed).then_some(Stop::Shutdown);
    let write = |message: JobMessage| -> anyhow::Result<()> {
        Ok(terminal::print(&format!(
            "{}\n",
            serde_json::to_string(&message)?
        ))?)
    };
    // A daemon that has ended reads nothing; it has this process killed.
    let mut report = |progress| drop(write(JobMessage::Progress(progress)));
    let done = job.run(&mut orders, &mut report);
    write(JobMessage::Report(Box::new(done)))?;
    Ok(SUCCESS)
}
