//! Which engines are usable on this host, independent of the image.

use super::kernels::{self, Sources, Trust};
use super::program::installed;
use super::{HostInterfaces, KernelCheck};
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
    let missing = |reason, program: &str, code| {
        Some(Unusable {
            reason,
            brief: format!("{program} is not installed"),
            text: Refusal::from(code).text,
        })
    };
    match engine {
        Engine::XfsFsr if installed("xfs_fsr").is_none() => {
            return missing(UnusableReason::NoXfsFsr, "xfs_fsr", ReasonCode::NoXfsFsr);
        }
        Engine::BlockCopy if installed("virsh").is_none() => {
            return missing(UnusableReason::NoVirsh, "virsh", ReasonCode::NoVirsh);
        }
        _ => {}
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
