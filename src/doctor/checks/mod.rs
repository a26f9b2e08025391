//! The checks, one file a family: pure functions over the readings.

mod ext4;
mod kernel;
mod memory;
mod open_images;
mod own;
mod waiting;

use super::outcome::Checked;
use super::readings::Readings;

/// A check.
type Check = fn(&Readings) -> Checked;

/// All checks, by the number of their identifiers.
pub const CHECKS: &[(u16, Check)] = &[
    (1, waiting::memory),
    (2, waiting::throttled),
    (3, waiting::log_space),
    (4, waiting::journal),
    (5, waiting::xfs_lock),
    (6, waiting::disk),
    (7, waiting::remote),
    (8, waiting::pipe),
    (9, waiting::elsewhere),
    (10, memory::dirty),
    (15, memory::pieces),
    (104, kernel::statfs_hangs),
    (105, kernel::no_reports_left),
    (201, ext4::writeback),
    (202, ext4::no_journal),
    (301, open_images::mixed),
    (401, own::not_armed),
    (402, own::no_daemon),
    (403, own::parts),
    (404, own::drill_failed),
];
