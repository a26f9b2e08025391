//! Whether an engine may be used on a kernel, from evidence, and in words why not. Pure.

use std::fmt::Write as _;

use super::changelog::Found;
use super::release::{Level, Running};
use super::table::{self, Defect};
use crate::model::Engine;

/// What was proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel has none of the defects that endanger the engine, or the operator vouches for it.
    Trusted(Proof),
    /// It has this one.
    KnownBad(&'static Defect),
    /// Whether it has this one cannot be told.
    Unknown(&'static Defect),
}

/// Why a kernel is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Its level has all repairs.
    Level(Level),
    /// The changelog of its package names the repairs that its level lacks.
    Changelog,
    /// `defrag.trusted_kernels` names it.
    Vouched,
    /// No defect endangers the engine.
    NothingToFear,
}

/// A verdict on the running kernel, and what it rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    engine: Engine,
    release: String,
    looked_at: String,
}

/// Judges a kernel for an engine. `changelog` is asked only if the kernel's level proves nothing;
/// it gives what the changelog of its package names and where that was, or why there is none.
pub fn judge(
    engine: Engine,
    running: &Running,
    vouched: &[String],
    changelog: impl FnOnce(&[&'static Defect]) -> Result<(Found, String), String>,
) -> Judgement {
    let judgement = |verdict, looked_at| Judgement {
        verdict,
        engine,
        release: running.release.clone(),
        looked_at,
    };
    let trusted = |proof| judgement(Verdict::Trusted(proof), String::new());
    let defects: Vec<&'static Defect> = table::of(engine).collect();
    if defects.is_empty() {
        return trusted(Proof::NothingToFear);
    }
    let is_absent = |defect: &Defect| running.level.is_some_and(|level| !defect.is_in(level));
    if let Some(level) = running
        .level
        .filter(|_| defects.iter().all(|it| is_absent(it)))
    {
        return trusted(Proof::Level(level));
    }
    if vouched.contains(&running.release) {
        return trusted(Proof::Vouched);
    }
    let found = changelog(&defects);
    let is_open = |defect: &&&'static Defect| {
        let named = found.as_ref().map(|(found, _)| found.of(defect));
        let named = named.unwrap_or_default();
        // One that came later than the level was brought, if its origin was.
        let is_absent = is_absent(defect) && !named.origin;
        !is_absent && !named.is_repaired()
    };
    let Some(open) = defects.iter().find(is_open).copied() else {
        return trusted(Proof::Changelog);
    };
    let verdict = match running.exact {
        true => Verdict::KnownBad(open),
        false => Verdict::Unknown(open),
    };
    judgement(verdict, looked_at(running, &found))
}

fn looked_at(running: &Running, found: &Result<(Found, String), String>) -> String {
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
    /// Why the engine is not used, in a few words; nothing if it may be.
    #[must_use]
    pub fn brief(&self) -> Option<String> {
        let release = match self.release.as_str() {
            "" => "of unknown release",
            release => release,
        };
        match self.verdict {
            Verdict::Trusted(_) => None,
            Verdict::KnownBad(defect) => Some(format!(
                "kernel {release} lacks the repair of {}",
                defect.name()
            )),
            Verdict::Unknown(defect) => Some(format!(
                "kernel {release} is not proven to have the repair of {}",
                defect.name()
            )),
        }
    }

    /// The same in one sentence, with what was looked at, what would settle it, and what to do
    /// meanwhile.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let (Verdict::KnownBad(defect) | Verdict::Unknown(defect)) = self.verdict else {
            return None;
        };
        let good: Vec<_> = table::good_from(self.engine)
            .iter()
            .map(Level::to_string)
            .collect();
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
