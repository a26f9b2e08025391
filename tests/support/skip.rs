//! What a test does where the bed cannot be made: no root, no loop device, no XFS.
//!
//! Rust's test harness knows "passed" and "failed" but no "skipped" that is decided at run time. A
//! test that returns early would count as passed, so it says so in a place of its own: one line to
//! the file that `FRAGWATCH_SKIP_LOG` names,
//!
//! ```text
//! SKIPPED: bed::xfs_mounts: no root
//! ```
//!
//! and the same line to stderr. Whoever starts the tests (`tests/run`) sets the variable, counts
//! those lines and takes them off the passed. With `CI=true` or `FRAGWATCH_TESTS_REQUIRED=1` a bed
//! that cannot be made is a failure: there it has to be possible. What depends on how the
//! kernel was built runs in a VM where it cannot run here (see `elsewhere`). [`optional`] is for data
//! that do not come with the source: what needs them is skipped there as well, and told.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;

/// Why something cannot be done on this machine.
#[derive(Debug)]
pub struct NotHere(String);

/// What can be made on some machines only.
pub type Here<T> = Result<T, NotHere>;

impl NotHere {
    /// `reason` completes "not possible here because".
    pub fn because(reason: impl fmt::Display) -> NotHere {
        NotHere(reason.to_string())
    }
}

impl fmt::Display for NotHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not possible here because {}", self.0)
    }
}

/// The value of a [`Here`], or the end of the test: skipped, and failed where nothing may be.
macro_rules! require {
    ($value:expr) => {
        match $value {
            Ok(value) => value,
            Err(why) => {
                $crate::support::skip::missing($crate::support::skip::this_test!(), &why);
                return;
            }
        }
    };
}

/// As [`require`], but skipped everywhere.
macro_rules! optional {
    ($value:expr) => {
        match $value {
            Ok(value) => value,
            Err(why) => {
                $crate::support::skip::skip($crate::support::skip::this_test!(), &why);
                return;
            }
        }
    };
}

/// The path of the function it stands in. The name of the thread would not do: a runner that gives
/// each test its process lets it run on the main thread.
macro_rules! this_test {
    () => {{
        fn here() {}
        std::any::type_name_of_val(&here).trim_end_matches("::here")
    }};
}

pub(crate) use {optional, require, this_test};

/// The bed of `test` cannot be made.
///
/// # Panics
/// Where it has to be possible.
pub fn missing(test: &str, why: &NotHere) {
    let set = |name, value| std::env::var_os(name).is_some_and(|v| v == value);
    if set("CI", "true") || set("FRAGWATCH_TESTS_REQUIRED", "1") {
        panic!("{test}: {why}");
    }
    skip(test, why);
}

/// Takes `test` off the passed ones.
pub fn skip(test: &str, why: &NotHere) {
    let line = format!("SKIPPED: {test}: {why}\n");
    eprint!("{line}");
    let Some(path) = std::env::var_os("FRAGWATCH_SKIP_LOG") else {
        return;
    };
    // One write in append mode: lines of tests that run at the same time do not mix.
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut log| log.write_all(line.as_bytes()))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
