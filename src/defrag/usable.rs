//! Which engines are usable on this host, independent of the image.

use super::kernels::{self, Sources, Trust};
use super::{HostInterfaces, KernelCheck, fsr};
use crate::config::settings::Defrag;
use crate::model::{Engine, EngineState, ReasonCode, Refusal, Unusable, UnusableReason};

/// The state of each engine. It may take as long as [`kernels::judge_host`].
pub fn engines(limits: &Defrag, host: &HostInterfaces) -> Vec<EngineState> {
    let state = |engine| EngineState {
        engine,
        unusable: unusable(engine, limits, host),
    };
    Engine::ALL.into_iter().map(state).collect()
}

fn unusable(engine: Engine, limits: &Defrag, host: &HostInterfaces) -> Option<Unusable> {
    if !limits.engines.contains(&engine) {
        return Some(Unusable {
            reason: UnusableReason::NotConfigured,
            brief: format!("{engine} is not configured"),
            text: format!("{engine} is not in defrag.engines"),
        });
    }
    if engine == Engine::XfsFsr && fsr::program().is_none() {
        return Some(Unusable {
            reason: UnusableReason::NoXfsFsr,
            brief: "xfs_fsr is not installed".to_owned(),
            text: Refusal::from(ReasonCode::NoXfsFsr).text,
        });
    }
    if host.kernel == KernelCheck::Overridden {
        return None;
    }
    let sources = Sources::of(&host.proc);
    let judgement = kernels::judge_host(engine, &sources, &limits.trusted_kernels);
    let reason = match judgement.verdict {
        Trust::Trusted(_) => return None,
        Trust::KnownBad(_) => UnusableReason::KernelKnownBad,
        Trust::Unknown(_) => UnusableReason::KernelUnknown,
    };
    Some(Unusable {
        reason,
        brief: judgement.brief()?,
        text: judgement.refusal()?,
    })
}
