//! Whether the running kernel is known to damage data of files with an extent-size hint.
//!
//! Left out: 6d8a45ce29c7 "xfs: don't screw up direct writes when freesp is fragmented". Before it, a
//! direct write to shared blocks can go wrong when no free extent reaches the written block, with any
//! hint for copy on write, also the default of 32 blocks. Which levels have it was not established.

use std::path::Path;

use crate::defrag::kernels::package;
use crate::defrag::kernels::release::Running;
use crate::defrag::kernels::table::{DEFECTS, Defect};

/// On an XFS with reflink, from 5.1 to before 5.5 except 5.4.70 and later.
const COMMIT: &str = "aee38af574a1";

/// Why hints are not set on an XFS with reflink; `None` unless the kernel is known to be bad, and not
/// in `trusted`, the releases of `defrag.trusted_kernels`.
pub fn obstacle(proc: &Path, trusted: &[String]) -> Option<String> {
    obstacle_on(&package::running(proc).0, trusted)
}

fn obstacle_on(running: &Running, trusted: &[String]) -> Option<String> {
    let is_it = |defect: &&Defect| defect.commit == COMMIT;
    let defect = DEFECTS.iter().find(is_it)?;
    let is_bad = defect.is_in(running.level?) && !trusted.contains(&running.release);
    is_bad.then(|| {
        format!(
            "kernel {} lacks the repair of {COMMIT}: {}; what helps is a kernel of {} or later",
            running.release,
            defect.harm,
            defect.repaired.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_not_set_where_they_damage_what_is_shared() {
        let on = |release: &str, trusted: &[String]| {
            obstacle_on(&Running::new(release, "", ""), trusted)
        };
        for bad in ["5.1.0", "5.3.18", "5.4.69"] {
            assert!(on(bad, &[]).is_some_and(|why| why.contains(bad)), "{bad}");
            assert_eq!(on(bad, &[bad.to_owned()]), None);
        }
        for good in [
            "4.18.0-553.el8.x86_64",
            "5.0.21",
            "5.4.70",
            "5.5.0",
            "6.18.44",
            "",
        ] {
            assert_eq!(on(good, &[]), None, "{good}");
        }
    }
}
