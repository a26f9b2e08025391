//! What requests to other hosts share: waiting for an answer, counting and logging it.

use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::fleet::Denied;
use crate::serve::metrics;
pub(super) use crate::serve::metrics::FleetRequest as Request;

/// Waits for the answer of a task; forever if there is no task. Cancel-safe.
pub(super) async fn join(task: Option<&mut JoinHandle<Result<(), Denied>>>) -> Result<(), Denied> {
    let Some(task) = task else {
        return std::future::pending().await;
    };
    let ended = |error| Err(Denied::Failed(format!("its task has ended: {error}")));
    task.await.unwrap_or_else(ended)
}

/// Counts an answer; logs it if it differs from the one before.
pub(super) fn report(
    request: Request,
    answer: &Result<(), Denied>,
    before: Option<&Result<(), Denied>>,
) {
    count(request, answer);
    let what = request.text();
    match (answer, before) {
        (answer, Some(before)) if answer == before => {}
        (Err(Denied::Refused(why) | Denied::Unclear(why)), _) => info!("{what}: {why}"),
        (Err(Denied::Failed(why) | Denied::Unsent(why)), _) => warn!("{what}: {why}"),
        (Ok(()), Some(Err(_))) => info!("{what}: granted"),
        (Ok(()), _) => {}
    }
}

/// Counts an answer.
pub(super) fn count(request: Request, answer: &Result<(), Denied>) {
    let outcome = match answer {
        Ok(()) => "granted",
        Err(Denied::Refused(_) | Denied::Unclear(_)) => "refused",
        Err(Denied::Failed(_) | Denied::Unsent(_)) => "failed",
    };
    metrics::fleet_request(request, outcome);
}
