//! The checks, one file a family: pure functions over the readings.

mod devices;
mod ext4;
mod idle;
mod images;
mod kernel;
mod memory;
mod mounted;
mod open_images;
mod own;
mod scheduled;
mod settings;
mod slab;
mod waiting;
mod xfs;

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
    (11, idle::waits_on_idle_disks),
    (12, idle::steal),
    (13, devices::limited),
    (14, devices::commits),
    (15, memory::pieces),
    (16, slab::stalls),
    (17, slab::unreclaimable),
    (18, waiting::pipe_loop),
    (101, kernel::engine_defects),
    (102, kernel::writes_elsewhere),
    (104, kernel::statfs_hangs),
    (105, kernel::no_reports_left),
    (110, settings::dirty_limit),
    (111, settings::reserve),
    (113, settings::compaction),
    (114, settings::zone_reclaim),
    (115, settings::huge_pages),
    (116, settings::swappiness),
    (201, ext4::writeback),
    (202, ext4::no_journal),
    (203, mounted::no_barriers),
    (204, xfs::log_roundoff),
    (205, xfs::full),
    (206, xfs::groups),
    (207, xfs::small_log),
    (208, xfs::no_online),
    (209, xfs::realtime),
    (210, xfs::discard),
    (211, xfs::allocsize),
    (212, xfs::project_quotas),
    (301, open_images::mixed),
    (302, scheduled::xfs_fsr),
    (303, images::sparse),
    (304, images::clusters),
    (305, images::discards),
    (401, own::not_armed),
    (402, own::no_daemon),
    (403, own::parts),
    (404, own::drill_failed),
    (405, own::history_beside_images),
    (406, own::no_window),
    (407, own::short_windows),
    (408, own::clock),
];
