//! `fragwatch defrag`: by which engine. Those that were named, or those of the configuration, in
//! their order; where something is wrong with one of them and not with the image, the next one has
//! its turn.
//!
//! Two are asked. The planner sees what the guards cannot: the name of the VM, and whether a run
//! would be done when the window closes. The guards see what the planner cannot, a loop device for
//! instance, and have the last word.

use std::path::Path;

use super::args::EngineName;
use super::planning;
use crate::config::Settings;
use crate::model::Engine;

/// The engines that are tried, one after the other.
pub(super) struct Choice<'s> {
    settings: &'s Settings,
    engines: Vec<Engine>,
    /// Whoever names engines does not want the planner's advice.
    advised: bool,
    /// Whether runs may lie outside of windows.
    always: bool,
}

/// An engine that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) engine: Engine,
    /// Why, in words.
    pub(super) reason: String,
}

/// What an engine has said, and whether the next one is to be asked.
pub(super) enum Answer<T> {
    /// This is what came of it.
    Final(T),
    /// The reason for which it left the image to another; and what came of it, if there is none.
    Another(String, T),
}

impl<'s> Choice<'s> {
    /// Those that were `named`, or those that are configured.
    pub(super) fn new(named: &[EngineName], settings: &'s Settings, always: bool) -> Choice<'s> {
        let engine = |name: &EngineName| match name {
            EngineName::XfsFsr => Engine::XfsFsr,
            EngineName::Online => Engine::Online,
        };
        let named: Vec<Engine> = named.iter().map(engine).collect();
        Choice {
            settings,
            advised: named.is_empty(),
            engines: match named.is_empty() {
                true => settings.defrag.engines.clone(),
                false => named,
            },
            always,
        }
    }

    /// Has engines `work` on an image until one gives a final answer. Of those before it `tell` is
    /// told.
    pub(super) fn work<T>(
        &self,
        image: &Path,
        mut work: impl FnMut(Engine) -> Answer<T>,
        mut tell: impl FnMut(&Passed, Engine),
    ) -> Option<(T, Vec<Passed>)> {
        let advice = match self.advised && self.engines.len() > 1 {
            true => planning::advise(self.settings, image, self.always),
            false => None,
        };
        let mut passed = Vec::new();
        let (last, others) = self.engines.split_last()?;
        for (engine, next) in others.iter().zip(self.engines.iter().skip(1)) {
            let against = advice.as_ref().and_then(|advice| advice.against(*engine));
            let reason = match against {
                Some(reason) => reason,
                None => match work(*engine) {
                    Answer::Final(said) => return Some((said, passed)),
                    Answer::Another(reason, _) => reason,
                },
            };
            let engine = *engine;
            passed.push(Passed { engine, reason });
            passed
                .iter()
                .last()
                .into_iter()
                .for_each(|it| tell(it, *next));
        }
        let (Answer::Final(said) | Answer::Another(_, said)) = work(*last);
        Some((said, passed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice<'s>(settings: &'s Settings, engines: &[Engine]) -> Choice<'s> {
        Choice {
            settings,
            engines: engines.to_vec(),
            advised: false,
            always: true,
        }
    }

    const BOTH: [Engine; 2] = [Engine::XfsFsr, Engine::Online];

    fn tried(engines: &[Engine], finals: &[Engine]) -> Option<(Engine, Vec<Engine>)> {
        let settings = Settings::default();
        let choice = choice(&settings, engines);
        let work = |engine| match finals.contains(&engine) {
            true => Answer::Final(engine),
            false => Answer::Another(format!("not {engine}"), engine),
        };
        let mut told = Vec::new();
        let tell = |passed: &Passed, next| told.push((passed.clone(), next));
        let (said, passed) = choice.work(Path::new("/none"), work, tell)?;
        assert!(passed.iter().eq(told.iter().map(|(passed, _)| passed)));
        assert!(
            passed
                .iter()
                .all(|it| it.reason == format!("not {}", it.engine))
        );
        Some((said, passed.iter().map(|it| it.engine).collect()))
    }

    #[test]
    fn the_first_that_can_does_and_the_last_has_the_last_word() {
        assert_eq!(tried(&BOTH, &BOTH), Some((Engine::XfsFsr, vec![])));
        let passed = vec![Engine::XfsFsr];
        let online = Some((Engine::Online, passed));
        assert_eq!(tried(&BOTH, &[Engine::Online]), online);
        assert_eq!(tried(&BOTH, &[]), online);
        assert_eq!(tried(&BOTH[..1], &[]), Some((Engine::XfsFsr, vec![])));
        assert_eq!(tried(&[], &[]), None);
    }

    #[test]
    fn who_is_named_is_asked_and_nobody_else() {
        let settings = Settings::default();
        let named = |names: &[EngineName]| Choice::new(names, &settings, false).engines;
        assert_eq!(named(&[]), BOTH);
        assert_eq!(named(&[EngineName::Online]), [Engine::Online]);
        let turned = [EngineName::Online, EngineName::XfsFsr];
        assert_eq!(named(&turned), [Engine::Online, Engine::XfsFsr]);
    }
}
