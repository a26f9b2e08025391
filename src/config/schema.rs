//! The keys and sections that a file may have, with examples: a file that sets all of them.

use std::sync::LazyLock;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::settings::Settings;
use crate::model::{ExtentCount, ExtentsPerDay};

const EXAMPLES: &str = r#"
[[klog.rule]]
name = "disk_failed"
pattern = 'md/raid.*Disk failure on'
action = "observe"

[[thresholds.override]]
images = ["/srv/db-*"]

[thresholds.override.warning]
extents = 100_000
growth_per_day = 250_000
time_to_critical = "14d"

[thresholds.override.critical]
extents = 1_000_000
growth_per_day = 500_000
time_to_critical = "1d"

[[maintenance.window]]
days = ["Sat", "Sun"]
start = "01:00"
duration = "4h"

[[maintenance.blackout]]
from = 2026-12-20
to = 2027-01-06
"#;

/// A file that sets every key to a valid value, each in a line below the header of its section.
pub(super) static EVERY_KEY: LazyLock<String> = LazyLock::new(|| {
    let mut settings = Settings::default();
    // Both limits may be a number or "never".
    settings.thresholds.critical.growth_per_day =
        Some(ExtentsPerDay::from_count(ExtentCount(500_000)));
    settings.to_toml() + EXAMPLES
});

/// The parsed [`EVERY_KEY`]: the keys and sections that a file may have.
pub(super) static SCHEMA: LazyLock<DeTable<'static>> =
    LazyLock::new(|| DeTable::parse_recoverable(&EVERY_KEY).0.into_inner());

/// A value and its place in the file.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// The keys of a section, or of the first in a list of sections. `None` for any other value.
pub(super) fn section<'s, 'v>(value: &'s DeValue<'v>) -> Option<&'s DeTable<'v>> {
    value.get(0).map_or(value, Spanned::get_ref).as_table()
}

/// The header of a section: `[sampling]`, `[[klog.rule]]`. `None` if there is no such section.
pub(super) fn header(path: &str) -> Option<&'static str> {
    let is_header = |line: &&str| line.starts_with('[') && line.trim_matches(['[', ']']) == path;
    EVERY_KEY.lines().find(is_header)
}

/// The header of the first section that has a key of this name.
pub(super) fn home(key: &str) -> Option<&'static str> {
    let mut header = "";
    EVERY_KEY.lines().find_map(|line| {
        if line.starts_with('[') {
            header = line;
        }
        let is_key = line.split_once(" = ").is_some_and(|(name, _)| name == key);
        is_key.then_some(header)
    })
}

/// A value of the schema as TOML.
pub(super) fn example_of(value: &Value<'_>) -> &'static str {
    EVERY_KEY.get(value.span()).unwrap_or_default()
}
