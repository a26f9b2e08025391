//! Judges by evidence whether an engine may be used on a kernel, and gives the reason. Pure.

use std::fmt::Write as _;

use super::changelog::Found;
use super::release::{Level, Running};
use super::table::{self, Defect};
use crate::model::Engine;

/// What a changelog names of the defects, and where; or why this is unknown.
pub type Evidence = Result<(Found, String), String>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The kernel has none of the engine's defects, or the operator trusts it.
    Trusted(Proof),
    KnownBad(&'static Defect),
    /// Whether it has this defect is unknown.
    Unknown(&'static Defect),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Its level has all repairs.
    Level(Level),
    /// Its package's changelog names the repairs that its level lacks.
    Changelog,
    /// `defrag.trusted_kernels` names it.
    Vouched,
    /// No defect endangers the engine.
    NoDefects,
}

/// The verdict on the running kernel, and its basis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Whether the kernel is trusted, and why.
    pub verdict: Trust,
    engine: Engine,
    release: String,
    looked_at: String,
}

/// Judges a kernel for an engine. `changelog` is called only if level and `vouched` prove nothing.
pub fn judge(
    engine: Engine,
    running: &Running,
    vouched: &[String],
    changelog: impl FnOnce(&[&'static Defect]) -> Evidence,
) -> Judgement {
    let judgement = |verdict, looked_at| Judgement {
        verdict,
        engine,
        release: running.release.clone(),
        looked_at,
    };
    let trusted = |proof| judgement(Trust::Trusted(proof), String::new());
    let defects: Vec<&'static Defect> = table::of(engine).collect();
    if defects.is_empty() {
        return trusted(Proof::NoDefects);
    }
    let is_absent = |defect: &Defect| running.level.is_some_and(|level| !defect.is_in(level));
    let all_absent = defects.iter().all(|defect| is_absent(defect));
    if let Some(level) = running.level.filter(|_| all_absent) {
        return trusted(Proof::Level(level));
    }
    if vouched.contains(&running.release) {
        return trusted(Proof::Vouched);
    }
    let found = changelog(&defects);
    let is_open = |defect: &&&'static Defect| {
        let named = found.as_ref().map(|(found, _)| found.of(defect));
        let named = named.unwrap_or_default();
        // A defect newer than the level was backported if the commit that introduced it was.
        let is_absent = is_absent(defect) && !named.origin;
        !is_absent && !named.is_repaired()
    };
    let Some(open) = defects.iter().find(is_open).copied() else {
        return trusted(Proof::Changelog);
    };
    let verdict = match running.exact {
        true => Trust::KnownBad(open),
        false => Trust::Unknown(open),
    };
    judgement(verdict, looked_at(running, &found))
}

fn looked_at(running: &Running, found: &Evidence) -> String {
    let mut text = match running.level {
        Some(level) => format!("level {level} ({})", running.source),
        None => format!("no level ({})", running.source),
    };
    // Writing to a String cannot fail, here and below.
    let _ = match found {
        Ok((_, place)) => write!(text, " and changelog ({place}), which does not name it"),
        Err(why) => write!(text, "; {why}"),
    };
    text
}

impl Judgement {
    /// A short reason why the engine is not used; `None` if it may be.
    pub fn brief(&self) -> Option<String> {
        let release = match self.release.as_str() {
            "" => "of unknown release",
            release => release,
        };
        let (lacks, defect) = match self.verdict {
            Trust::Trusted(_) => return None,
            Trust::KnownBad(defect) => ("lacks", defect),
            Trust::Unknown(defect) => ("is not proven to have", defect),
        };
        let name = defect.name();
        Some(format!("kernel {release} {lacks} the repair of {name}"))
    }

    /// The same as one sentence, with the evidence, what would settle it, and an alternative.
    pub fn refusal(&self) -> Option<String> {
        let (Trust::KnownBad(defect) | Trust::Unknown(defect)) = self.verdict else {
            return None;
        };
        let good = table::good_from(self.engine);
        let good: Vec<_> = good.iter().map(Level::to_string).collect();
        let commit = match defect.cve {
            Some(_) => format!(" ({}, \"{}\")", defect.commit, defect.title()),
            None => format!(" (\"{}\")", defect.title()),
        };
        Some(format!(
            "{brief}{commit}, without which {harm}: looked at {looked_at}; what settles it is a \
             kernel of {good} or later, a package whose changelog names the repair, or, if its \
             vendor confirms it, defrag.trusted_kernels; until then xfs_fsr can do it while nobody \
             has the image open",
            brief = self.brief()?,
            harm = defect.harm,
            looked_at = self.looked_at,
            good = good.join(", "),
        ))
    }
}

#[cfg(test)]
mod tests;
