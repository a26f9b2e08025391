//! `fragwatch defrag-job`: the process of a defragmentation by the daemon.

use std::io;

use super::defrag::Signals;
use super::output::{self, SUCCESS};
use crate::defrag::job::{DefragJob, JobMessage};

/// Carries out the job on standard input.
pub(super) fn run() -> anyhow::Result<u8> {
    let job = DefragJob::read(io::stdin().lock())?;
    let signals = Signals::handle()?;
    let mut orders = || signals.order();
    let write = |message: JobMessage| -> anyhow::Result<()> {
        Ok(output::print(&format!(
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
