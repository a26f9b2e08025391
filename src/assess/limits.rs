//! The thresholds of each image.

use std::path::Path;
use std::time::Duration;

use globset::GlobSet;

use crate::config::settings::{Limits, Thresholds};
use crate::model::globs::compile_globs;
use crate::model::{ExtentCount, Severity};

/// The thresholds, with compiled globs.
#[derive(Debug)]
pub struct Assessor {
    thresholds: Thresholds,
    overridden: GlobLists,
}

/// The thresholds of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageLimits {
    /// At these limits it needs attention.
    pub warning: Limits,
    /// At these limits it endangers the host.
    pub critical: Limits,
}

impl Assessor {
    /// Compiles the globs of the overrides. An invalid glob matches nothing.
    pub fn new(thresholds: &Thresholds) -> Assessor {
        let globs = thresholds.overrides.iter();
        Assessor {
            thresholds: thresholds.clone(),
            overridden: GlobLists::new(globs.map(|over| over.images.as_slice())),
        }
    }

    /// All thresholds.
    pub fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// The time over which growth is measured.
    pub fn window(&self) -> Duration {
        self.thresholds.growth_window
    }

    /// The thresholds of an image: each one is that of the last matching override that sets it.
    pub fn limits(&self, image: &Path) -> ImageLimits {
        let mut limits = ImageLimits {
            warning: self.thresholds.warning.clone(),
            critical: self.thresholds.critical.clone(),
        };
        let matching = self.overridden.matching(image).into_iter();
        for over in matching.filter_map(|number| self.thresholds.overrides.get(number)) {
            over.warning.apply(&mut limits.warning);
            over.critical.apply(&mut limits.critical);
        }
        limits
    }

    /// The severity by extents alone. A count equal to the threshold reaches it.
    pub fn of_count(&self, image: &Path, extents: ExtentCount) -> Severity {
        let ImageLimits { warning, critical } = self.limits(image);
        if extents >= critical.extents {
            Severity::Critical
        } else if extents >= warning.extents {
            Severity::Warning
        } else {
            Severity::Ok
        }
    }
}

/// Several lists of globs, matched all at once.
#[derive(Debug, Default)]
struct GlobLists {
    paths: Vec<Part>,
    names: Vec<Part>,
}

/// Globs compiled together, and the list of each.
#[derive(Debug)]
struct Part {
    globs: GlobSet,
    lists: Vec<usize>,
}

impl GlobLists {
    /// Compiles the lists. An invalid glob matches nothing.
    fn new<'g>(lists: impl IntoIterator<Item = &'g [String]>) -> GlobLists {
        let globs = lists.into_iter().enumerate();
        let globs =
            globs.flat_map(|(list, globs)| globs.iter().map(move |glob| (list, glob.as_str())));
        let (paths, names): (Vec<_>, Vec<_>) = globs.partition(|(_, glob)| glob.contains('/'));
        GlobLists {
            paths: compile_parts(&paths),
            names: compile_parts(&names),
        }
    }

    /// The numbers of the lists that match the path, in ascending order.
    fn matching(&self, path: &Path) -> Vec<usize> {
        let mut lists = Vec::new();
        let mut ask = |parts: &[Part], text: &Path| {
            for part in parts {
                let globs = part.globs.matches(text);
                lists.extend(globs.iter().filter_map(|glob| part.lists.get(*glob)));
            }
        };
        ask(&self.paths, path);
        if let Some(name) = path.file_name() {
            ask(&self.names, Path::new(name));
        }
        lists.sort_unstable();
        lists.dedup();
        lists
    }
}

/// Compiles the globs into one part, or into several if one is too large for the regex compiler.
fn compile_parts(globs: &[(usize, &str)]) -> Vec<Part> {
    match compile_globs(globs.iter().map(|(_, glob)| *glob)) {
        _ if globs.is_empty() => Vec::new(),
        Ok(set) => vec![Part {
            globs: set,
            lists: globs.iter().map(|(list, _)| *list).collect(),
        }],
        Err(_) if globs.len() == 1 => Vec::new(),
        Err(_) => {
            let (one, other) = globs.split_at(globs.len() / 2);
            let mut parts = compile_parts(one);
            parts.extend(compile_parts(other));
            parts
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{LimitChanges, Override};
    use crate::model::ExtentsPerDay;
    use crate::model::globs::Globs;
    use proptest::prelude::*;
    use rustix::time::{ClockId, clock_gettime};
    use std::path::PathBuf;
    use std::time::Duration;

    /// An override for these images.
    fn over(images: &[&str], extents: u64) -> Override {
        Override {
            images: images.iter().map(|&glob| glob.to_owned()).collect(),
            warning: LimitChanges {
                extents: Some(ExtentCount(extents)),
                ..LimitChanges::default()
            },
            critical: LimitChanges::default(),
        }
    }

    /// One override after the other.
    fn one_by_one(overrides: &[(Globs, u64)], image: &Path) -> Option<u64> {
        let mut matching = overrides.iter().filter(|(globs, _)| globs.matches(image));
        matching.next_back().map(|(_, extents)| *extents)
    }

    proptest! {
        #[test]
        fn all_overrides_at_once_are_as_one_by_one(
            lists in prop::collection::vec(prop::collection::vec("/?[ab*?]{1,3}(/[ab*]{1,2})?", 0..4), 0..8),
            image in "(/[ab]{1,3}){1,3}",
        ) {
            let overrides: Vec<_> = lists.iter().enumerate().map(|(number, images)| {
                let images: Vec<_> = images.iter().map(String::as_str).collect();
                over(&images, number as u64)
            }).collect();
            let globs = overrides.iter().zip(0..).map(|(over, number)| (Globs::new(&over.images).unwrap(), number));
            let expected = one_by_one(&globs.collect::<Vec<_>>(), Path::new(&image));
            let assessor = Assessor::new(&Thresholds { overrides, ..Thresholds::default() });
            let extents = assessor.limits(Path::new(&image)).warning.extents.0;
            prop_assert_eq!(extents, expected.unwrap_or(500_000));
        }
    }

    /// A host whose configuration is written by a tool: an override for each image, in every form. The
    /// sweep judges each image by them, on the thread that answers.
    #[test]
    fn thousands_of_overrides_take_little_time() {
        const OVERRIDES: usize = 1500;
        let glob = |n: usize| match n % 4 {
            0 => format!("/srv/vm-{n}/*.raw"),
            1 => format!("vm-{n}.*"),
            2 => format!("/srv/**/vm-{n}-?.img"),
            _ => format!("/srv/{{a,b}}/[vw]m-{n}*"),
        };
        let overrides: Vec<_> = (0..OVERRIDES)
            .map(|n| over(&[&glob(n)], n as u64))
            .collect();
        let images: Vec<_> = (0..300)
            .map(|n| PathBuf::from(format!("/srv/b/vm-{}.raw", n * 4 + 1)))
            .collect();
        let globs = overrides
            .iter()
            .zip(0..)
            .map(|(over, n)| (Globs::new(&over.images).unwrap(), n));
        let globs: Vec<_> = globs.collect();
        // Not the time of others who run meanwhile.
        let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
        let began = now();
        let expected: Vec<_> = images
            .iter()
            .map(|image| one_by_one(&globs, image))
            .collect();
        let before = now() - began;
        let began = now();
        let assessor = Assessor::new(&Thresholds {
            overrides,
            ..Thresholds::default()
        });
        let compiled = now() - began;
        let limits = |image: &PathBuf| Some(assessor.limits(image).warning.extents.0);
        let began = now();
        let found: Vec<_> = images.iter().map(limits).collect();
        let after = now() - began;
        assert_eq!(found, expected);
        eprintln!("one by one {before:?}; compiled in {compiled:?}, at once {after:?}");
        assert!(after * 5 < before, "{after:?} after {before:?}");
    }

    #[test]
    fn a_threshold_itself_is_reached() {
        let assessor = Assessor::new(&Thresholds::default());
        let of = |extents| assessor.of_count(Path::new("/a"), ExtentCount(extents));
        assert_eq!(of(0), Severity::Ok);
        assert_eq!(of(499_999), Severity::Ok);
        assert_eq!(of(500_000), Severity::Warning);
        assert_eq!(of(4_999_999), Severity::Warning);
        assert_eq!(of(5_000_000), Severity::Critical);
    }

    #[test]
    fn the_last_override_wins_threshold_by_threshold() {
        let over = |image: &str, extents, rate: Option<Option<f64>>| Override {
            images: vec![image.to_owned()],
            warning: LimitChanges {
                extents: Some(ExtentCount(extents)).filter(|count| count.0 > 0),
                growth_per_day: rate.map(|rate| rate.map(ExtentsPerDay)),
                time_to_critical: None,
            },
            critical: LimitChanges::default(),
        };
        let thresholds = Thresholds {
            overrides: vec![
                over("/srv/*", 100, Some(Some(7.0))),
                over("db-*", 200, None),
                over("*.raw", 0, Some(None)),
            ],
            ..Thresholds::default()
        };
        let assessor = Assessor::new(&thresholds);
        let of = |path: &str| {
            let limits = assessor.limits(Path::new(path));
            assert_eq!(limits.critical, thresholds.critical);
            let rate = limits.warning.growth_per_day.map(|rate| rate.0);
            (limits.warning.extents.0, rate)
        };
        assert_eq!(of("/other/a"), (500_000, Some(250_000.0)));
        assert_eq!(of("/srv/a"), (100, Some(7.0)));
        assert_eq!(of("/srv/deep/a"), (500_000, Some(250_000.0)));
        assert_eq!(of("/srv/db-1"), (200, Some(7.0)));
        assert_eq!(of("/srv/db-1.raw"), (200, None));
        assert_eq!(of("/x/db-1.raw"), (200, None));
        let severity = assessor.of_count(Path::new("/srv/db-1"), ExtentCount(199));
        assert_eq!(severity, Severity::Ok);
    }
}
